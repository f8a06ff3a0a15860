"""The web page's widgets, and which action of the desk each of them starts."""

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from attention.editing.desk import (
    GALLERY,
    Desk,
    Page,
    compared,
    history,
    mask_picture,
    picture_of,
    regions_picture,
    summary,
)
from attention.errors import UserError
from attention.method.defaults import COVERAGE, STRENGTH

STRONGEST = 0.3             # of the slider; more leaves what faces look like
UPLOAD = "20mb"
KEPT_USERS = 64             # pages whose pictures are kept; the one that was idle longest goes first
KEPT_SECONDS = 3600         # that files, and the pictures of closed pages, are kept
NEW_SEEDS = 10_000          # from which "Another face" draws
GONE = "this page was left for so long that its picture is gone; choose a face again"
STYLE = """
#download { position: absolute; left: -999px }
#strength input[type=number], #coverage input[type=number] { pointer-events: none }
.picture button, .picture .image-frame, .picture img { width: 100%; height: auto; object-fit: contain }
"""


def serve(page: gr.Blocks, **options: Any) -> None:
    """Start the page with its limits; options go to gradio's `launch`."""
    page.queue(default_concurrency_limit=1, max_size=64)
    page.launch(max_file_size=UPLOAD, state_session_capacity=KEPT_USERS, show_error=True, css=STYLE, footer_links=[],
                theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"]), ssr_mode=False, **options)


class Views:
    """The widgets that show a Page, how each of them is made from it, and how an event changes it."""

    def __init__(self) -> None:
        self.state = gr.State(None, time_to_live=KEPT_SECONDS)
        self.seed = gr.Number(GALLERY[0][0], label="Seed", elem_id="seed", render=False)
        self.what = gr.Textbox(label="What", placeholder="purple hair", max_lines=1, elem_id="what", render=False)
        self.where = gr.Textbox(label="Where (in words, or click regions)", placeholder="as what says", max_lines=1,
                                elem_id="where", render=False)
        self.strength = gr.Slider(0, STRONGEST, STRENGTH, step=0.005, label="Strength", elem_id="strength", render=False)
        self.coverage = gr.Slider(0, 1, COVERAGE, step=0.01, label="Coverage", elem_id="coverage", render=False)
        self.regions, self.original, self.edited, self.mask = (_picture(name) for name in
                                                               ("regions", "original", "edited", "mask"))
        self.compare = gr.ImageSlider(label="Original | edited", format="png", elem_id="compare", interactive=False,
                                      max_height=420, buttons=["fullscreen"], render=False)
        self.told = gr.Textbox(show_label=False, interactive=False, elem_id="told", max_lines=3, render=False)
        self.steps = _gallery("History", "history", 160)
        self.made = {
            self.edited: lambda page: picture_of(page.edited.tensor), self.mask: lambda page: mask_picture(page.edited),
            self.original: lambda page: picture_of(page.edited.source.image), self.regions: regions_picture,
            self.compare: compared, self.steps: lambda page: history(page.edited), self.where: lambda page: page.where,
            self.strength: lambda page: page.edited.changes[-1].strength if page.edited.changes else STRENGTH,
            self.coverage: lambda page: page.edited.changes[-1].coverage if page.edited.changes else COVERAGE}
        self.typed = {self.seed: lambda page: page.edited.origin["seed"],
                      self.what: lambda page: page.edited.changes[-1].what}
        self.after_edit = [self.edited, self.mask, self.compare, self.steps]

    def on(self, event: Callable, action: Callable, inputs: Sequence[Any] = (), shows: Sequence[Any] | None = None,
           opens: bool = False, selects: bool = False, **options: Any) -> None:
        """Let an action answer an event.

        Args:
            event: a widget's, such as `button.click`.
            action: (Page, *inputs) -> Page; if it `opens`, (*inputs) -> Page; if it `selects`, the inputs are what was
                clicked: x and y in a picture, the number in a gallery. The same Page again changes nothing.
            shows: the widgets that change; None: all that people do not type into.
        """
        shows = list(self.made if shows is None else shows)
        makers = [(self.made | self.typed)[widget] for widget in shows]

        def answer(page: Page | None, *values: Any) -> tuple:
            if page is None and not opens:
                raise gr.Error(GONE, duration=None, print_exception=False)
            begun = time.perf_counter()
            with warnings.catch_warnings(record=True) as notes:
                warnings.simplefilter("always", UserWarning)
                try:
                    following = action(*values) if opens else action(page, *values)
                except UserError as error:
                    raise gr.Error(_without_folders(str(error), values), duration=None, print_exception=False) from None
            if following is page:
                return (gr.skip(),) * (2 + len(shows))
            shown = [make(following) for make in makers]
            told = [f"{summary(following.edited)} ({(time.perf_counter() - begun) * 1000:.0f} ms)"]
            told += [f"Note: {_without_folders(str(note.message), values)}" for note in notes
                     if note.category is UserWarning]
            return following, "\n".join(told), *shown

        def select(page: Page | None, clicked: gr.SelectData) -> tuple:
            return answer(page, *np.ravel(clicked.index).tolist())

        event(select if selects else answer, [self.state, *inputs], [self.state, self.told, *shows],
              concurrency_id="editor", api_visibility="private", **{"show_progress": "hidden", **options})


def build(desk: Desk) -> gr.Blocks:
    """The page: widgets, and which action each of them starts."""
    with gr.Blocks(title="Where2Edit", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        views = Views()
        gr.Markdown("## Where you edit is what you get\nSay *what* to change and *where*; the rest of the picture stays as "
                    "it was. Strength and coverage (of a place in words) move the last change.")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                _face_panel(desk, views)
                _edit_panel(desk, views)
            with gr.Column(scale=5):
                with gr.Row():
                    for title, picture in (("**Regions**: click to choose", views.regions),
                                           ("**Original**", views.original), ("**Edited**", views.edited),
                                           ("**Where** it changed last", views.mask)):
                        with gr.Column(min_width=140):
                            gr.Markdown(title)
                            picture.render()
                views.compare.render()
                views.steps.render()
        examples = _gallery("Examples: click one", "examples", 230, desk.examples()).render()
        views.on(examples.select, desk.example, shows=[*views.made, *views.typed], opens=True, selects=True)
        views.on(views.regions.select, desk.click, shows=[views.regions, views.where], selects=True)
        views.on(page.load, desk.show_seed, [views.seed], opens=True)
    return page


def _face_panel(desk: Desk, views: Views) -> None:
    """Where faces come from."""
    with gr.Tab("A face"):
        views.seed.render()
        another = gr.Button("Another face", elem_id="another")
    with gr.Tab("Your photo"):
        photo = gr.File(label="Photo", file_types=["image"], height=130, elem_id="photo")
        framed = gr.Checkbox(False, label="it is square and framed like the faces here", elem_id="framed")
        with gr.Accordion("If it is not framed", open=False):
            face = gr.Number(0, label="Which face (0: the largest)", precision=0, elem_id="face")
            landmarks = gr.File(label="Its landmarks (without a detector)", file_types=[".json", ".txt"], height=130,
                                elem_id="landmarks")
        refine = gr.Slider(0, 50, 0, step=10, label="Refinement, steps", elem_id="refine")
        show = gr.Button("Show", elem_id="show")
    views.on(views.seed.submit, desk.show_seed, [views.seed], opens=True)
    chosen = another.click(lambda: int(np.random.default_rng().integers(NEW_SEEDS)), None, views.seed,
                           api_visibility="private")
    views.on(chosen.then, desk.show_seed, [views.seed], opens=True)
    views.on(show.click, desk.show_photo, [photo, framed, landmarks, face, refine], opens=True, show_progress="full")


def _edit_panel(desk: Desk, views: Views) -> None:
    """What the user says, and the buttons."""
    how = [views.where, views.strength, views.coverage]
    views.what.render()
    views.where.render()
    edit = gr.Button("Edit", variant="primary", elem_id="edit")
    views.told.render()
    for slider in (views.strength, views.coverage):
        slider.render()
        views.on(slider.input, desk.slide, how[1:], views.after_edit, trigger_mode="always_last")
    with gr.Row():
        undo, over, save = (gr.Button(label, elem_id=name, size="md", min_width=80)
                            for label, name in (("Undo", "undo"), ("Reset", "over"), ("Download", "save")))
    with gr.Accordion("Like another picture", open=False):
        reference = gr.File(label="A square picture", file_types=["image"], height=130, elem_id="reference")
        exact = gr.Checkbox(False, label="take over its very styles (a framed face)", elem_id="exact")
        like = gr.Button("Make it like this", elem_id="like")
    download = gr.DownloadButton(elem_id="download")
    for event in (views.what.submit, views.where.submit, edit.click):
        views.on(event, desk.change, [views.what, *how], views.after_edit)
    views.on(like.click, desk.resemble, [reference, exact, *how], views.after_edit)
    views.on(views.where.change, desk.type_where, [views.where], [views.regions])      # no input comes when it is emptied
    views.on(undo.click, desk.undo, shows=[*views.after_edit, views.strength, views.coverage])
    views.on(over.click, desk.start_over)
    saved = save.click(_save, views.state, download, show_progress="hidden", api_visibility="private")
    saved.success(None, js="() => document.querySelector('#download').click()")


def _without_folders(message: str, values: Sequence[Any]) -> str:
    """A message about an upload, which names the user's file without our temporary folder."""
    for value in values:
        if isinstance(value, str) and Path(value).is_absolute():
            message = message.replace(value, Path(value).name)
    return message


def _picture(name: str) -> gr.Image:
    return gr.Image(label=name, show_label=False, format="png", interactive=False, elem_id=name, elem_classes="picture",
                    buttons=[], render=False)


def _gallery(label: str, name: str, height: int, value: list | None = None) -> gr.Gallery:
    return gr.Gallery(value, label=label, format="png", columns=6, fit_columns=False, height=height, elem_id=name,
                      allow_preview=False, interactive=False, buttons=[], render=False)


def _save(page: Page | None) -> Iterator[str]:
    """The picture with its recipe; gradio copies the file before the folder goes."""
    if page is None:
        raise gr.Error(GONE, duration=None)
    with tempfile.TemporaryDirectory() as folder:
        yield str(page.edited.save(Path(folder) / "edited.png"))
