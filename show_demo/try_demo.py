"""A web page that edits faces: what, where, how strongly; regions to click, history, style transfer, download.

    python show_demo/try_demo.py                    the shipped editor of drawn faces, at http://127.0.0.1:7860
    python show_demo/try_demo.py --run runs/ffhq    another editor

Needs gradio (pip install gradio). Nothing of a user is kept but in the user's own page. Uploads lie in a temporary folder,
from which what is an hour old is swept every hour.
"""

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attention.config import Config, option, parse_config
from attention.editing.session import COVERAGE, Change, Edited, Editor, load_editor
from attention.errors import UserError, exit_with_message
from attention.files.published import SHIPPED
from attention.images import to_pixels
from attention.inversion.frame import Frame
from attention.method.mapper import STRENGTH
from attention.method.regions import region_overlay

try:
    import gradio as gr
except ImportError:                         # the rest of the project does without; main says how to get it
    gr = None

LARGEST_TYPED = 2**53 - 1   # whole number that a browser writes exactly
STRONGEST = 0.3             # of the slider; more leaves what faces look like
UPLOAD = "20mb"
KEPT_USERS = 64             # pages whose pictures are kept; the one that was idle longest goes first
KEPT_SECONDS = 3600         # that files, and the pictures of closed pages, are kept
CLICKABLE = 512             # pixels, at least, of the picture that is clicked
VIEW = 1024                 # pixels, at most, of a side of a photo on the screen; the download has them all
THUMBNAIL = 160             # pixels, at most, of the pictures of the history
REGIONS = "regions"         # begins the field *where* if regions are chosen
TINT = 0.35                 # of the colours that show the regions
CHOSEN = np.array([255, 230, 0])            # colour of chosen regions
DIMMED = 0.25               # brightness outside of the mask
NEW_SEEDS = 10_000          # from which "Another face" draws
GONE = "this page was left for so long that its picture is gone; choose a face again"
GALLERY = ((21, "purple hair", None), (3, "beard", None), (7, "smiling", "mouth"), (11, "red lipstick", "lips"),
           (21, "glasses", None), (5, "blue eyes", "eyes"))         # seed, what, where
STYLE = """
#download { position: absolute; left: -999px }
#strength input[type=number], #coverage input[type=number] { pointer-events: none }
.picture button, .picture .image-frame, .picture img { width: 100%; height: auto; object-fit: contain }
"""


class DemoConfig(Config):
    """Options."""

    run: Path = option(SHIPPED, "run folder of the editor; default: the shipped one of drawn faces")
    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0 lets other machines in")
    port: int = option(7860, "to listen at", min=1, max=65535)
    device: str = option("auto", "cpu, cuda, cuda:N, or auto")
    trust: bool = option(False, "run a CLIP archive (a program) that is not OpenAI's by its hash")


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until it is stopped."""
    config = parse_config(DemoConfig, argv, __doc__)
    if gr is None:
        raise UserError("the web page needs the package gradio, which is not there; install it with: pip install gradio")
    # Half of the cores: a browser needs some too, and threads that wait for each other take 30 times as long.
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    editor = load_editor(config.run, config.device, config.trust)
    page = build(Desk(editor))
    try:
        serve(page, server_name=config.host, server_port=config.port)
    except OSError as error:
        raise UserError(f"nothing can be served at --host {config.host} --port {config.port} ({error}); is another page "
                        "there? Try another --port") from error


def serve(page: "gr.Blocks", **options: Any) -> None:
    """Start the page with its limits; options go to gradio's `launch`."""
    page.queue(default_concurrency_limit=1, max_size=64)
    page.launch(max_file_size=UPLOAD, state_session_capacity=KEPT_USERS, show_error=True, css=STYLE, footer_links=[],
                theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"]), ssr_mode=False, **options)


@dataclass(frozen=True)
class Page:
    """All that a user's page remembers."""

    edited: Edited
    view: tuple[Image.Image, Frame] | None = None       # the photo at the size of a screen
    chosen: tuple[int, ...] = ()            # regions that the next edit goes to; none: the text says where

    @property
    def where(self) -> str:
        """What the field *where* shows for chosen regions."""
        return f"{REGIONS} {', '.join(map(str, self.chosen))}" if self.chosen else ""


class Desk:
    """What the page can do, apart from its widgets: every action gives the next Page. It holds nothing of a user."""

    def __init__(self, editor: Editor):
        self.editor = editor

    def show_seed(self, seed: float | None) -> Page:
        if seed is None or seed != int(seed) or seed > LARGEST_TYPED:
            raise UserError(f"the seed is {'empty' if seed is None else seed}, expected a whole number from 0 to "
                            f"{LARGEST_TYPED}")
        return Page(self.editor.open(int(seed)))

    def show_photo(self, photo: str | None, framed: bool, landmarks: str | None, face: float | None,
                   refine: float) -> Page:
        if photo is None:
            raise UserError("no photo was chosen; upload one first")
        edited = self.editor.open_photo(photo, landmarks, int(face) if face else None, framed, int(refine))
        whole, frame = edited.photo
        by = min(1.0, VIEW / max(whole.size))
        return Page(edited, (whole.resize([max(1, round(length * by)) for length in whole.size]), frame.scaled(by)))

    def change(self, page: Page, what: str, where: str, strength: float, coverage: float) -> Page:
        return replace(page, edited=page.edited.edit(what, self._where(page, where), strength, coverage))

    def resemble(self, page: Page, reference: str | None, exact: bool, where: str, strength: float,
                 coverage: float) -> Page:
        if reference is None:
            raise UserError("no picture to resemble was chosen; upload one first")
        edited = page.edited.edit(Path(reference), self._where(page, where), strength, coverage, exact=exact)
        return replace(page, edited=edited)

    def slide(self, page: Page, strength: float, coverage: float) -> Page:
        """Move the sliders: the last change follows; without one they wait for the next."""
        return replace(page, edited=page.edited.retouch(strength, coverage)) if page.edited.changes else page

    def undo(self, page: Page) -> Page:
        return replace(page, edited=page.edited.undo())

    def start_over(self, page: Page) -> Page:
        return replace(page, edited=page.edited.with_changes(()), chosen=())

    def click(self, page: Page, x: int, y: int) -> Page:
        """Choose the region at a pixel of regions_picture, or give it back if it is chosen."""
        labels, side = page.edited.regions, clickable_side(page.edited)
        region = int(labels[y * len(labels) // side, x * len(labels) // side])
        chosen = set(page.chosen) ^ {region}
        return replace(page, chosen=tuple(sorted(chosen)))

    def example(self, number: int) -> Page:
        seed, what, where = GALLERY[number]
        return Page(self.editor.edit(seed, what, where))

    def examples(self) -> list[tuple[Image.Image, str]]:
        """Pictures of the examples and what was said."""
        return [(self.example(number).edited.image, f"{what} @ {where}" if where else what)
                for number, (_, what, where) in enumerate(GALLERY)]

    def type_where(self, page: Page, where: str) -> Page:
        """Words in the field *where*, or none, take the place of chosen regions."""
        return page if where.startswith(REGIONS) or not page.chosen else replace(page, chosen=())

    def _where(self, page: Page, where: str) -> str | tuple[int, ...] | None:
        """The chosen regions, as long as the field *where* still shows them; else its text."""
        return page.chosen if page.chosen and where.strip() == page.where else where.strip() or None


def clickable_side(edited: Edited) -> int:
    """Pixels of a side of regions_picture: gradio takes no clicks outside of a picture's own size, so it is large."""
    side = edited.tensor.shape[-1]
    return side * max(1, -(-CLICKABLE // side))


def regions_picture(page: Page) -> Image.Image:
    """The unedited face under the colours of its regions, the chosen ones bright."""
    edited = page.edited
    both = region_overlay(edited.source.image, edited.source.labels, TINT)
    picture = both[len(both) // 2:]                                              # the lower of the two pictures
    chosen = torch.isin(edited.regions, torch.tensor(page.chosen, device=edited.regions.device, dtype=torch.int64))
    inside = F.interpolate(chosen[None, None].float(), size=picture.shape[:2])[0, 0].cpu().numpy() > 0
    picture = np.where(inside[..., None], (picture * 0.4 + CHOSEN * 0.6).astype(np.uint8), picture)
    return Image.fromarray(picture).resize((clickable_side(edited),) * 2, Image.Resampling.NEAREST)


def mask_picture(edited: Edited) -> Image.Image:
    """The unedited face, dark where the last change is not."""
    picture = to_pixels(edited.source.image)[0]
    mask = F.interpolate(edited.mask, size=picture.shape[:2], mode="bilinear")[0, 0].cpu().numpy()
    return Image.fromarray((picture * (DIMMED + (1 - DIMMED) * mask[..., None])).round().astype(np.uint8))


def history(edited: Edited) -> list[tuple[Image.Image, str]]:
    """Every step's picture and what it was."""
    steps = [(edited.source.image, "unedited")]
    steps += [(edit.image, describe(change)) for change, edit in zip(edited.changes, edited.edits, strict=True)]
    pictures = [(_image(image), title) for image, title in steps]
    for picture, _ in pictures:
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return pictures


def compared(page: Page) -> tuple[Image.Image, Image.Image]:
    """The unedited and the edited picture, a photo at the size of a screen."""
    before = page.edited.with_changes(())
    if page.view is None:
        return before.image, page.edited.image
    return before.put_back(*page.view), page.edited.put_back(*page.view)


def describe(change: Change) -> str:
    """A change in a few words."""
    what = change.what if isinstance(change.what, str) else "like the other picture"
    where = change.where if isinstance(change.where, str) else "regions" if isinstance(change.where, list) else "mask"
    return f"{what[:40]} @ {where[:40]}, {change.strength:g}"


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
            self.edited: lambda page: _image(page.edited.tensor), self.mask: lambda page: mask_picture(page.edited),
            self.original: lambda page: _image(page.edited.source.image), self.regions: regions_picture,
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
              concurrency_id="editor", api_name=False, **{"show_progress": "hidden", **options})


def build(desk: Desk) -> "gr.Blocks":
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
    chosen = another.click(lambda: int(np.random.default_rng().integers(NEW_SEEDS)), None, views.seed, api_name=False)
    views.on(chosen.then, desk.show_seed, [views.seed], opens=True)
    views.on(show.click, desk.show_photo, [photo, framed, landmarks, face, refine], opens=True, show_progress="full")


def _edit_panel(desk: Desk, views: Views) -> None:
    """What the user says, and the buttons."""
    how = [views.where, views.strength, views.coverage]
    views.what.render()
    views.where.render()
    edit = gr.Button("Edit", variant="primary", elem_id="edit")
    views.told.render()
    for slider in how[1:]:
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
    saved = save.click(_save, views.state, download, show_progress="hidden", api_name=False)
    saved.success(None, js="() => document.querySelector('#download').click()")


def summary(edited: Edited) -> str:
    """What the picture is, in a line."""
    origin = edited.origin
    face = f"seed {origin['seed']}" if "seed" in origin else "the photo"
    if "psnr" in origin:
        face += f", inverted to {origin['psnr'][1]:.1f} dB"
    if len(edited.changes) > 1:
        face += f", {len(edited.changes)} changes"
    return "; ".join([face, *map(describe, edited.changes[-1:])])


def _without_folders(message: str, values: Sequence[Any]) -> str:
    """A message about an upload, which names the user's file without our temporary folder."""
    for value in values:
        if isinstance(value, str) and Path(value).is_absolute():
            message = message.replace(value, Path(value).name)
    return message


def _image(tensor: torch.Tensor) -> Image.Image:
    return Image.fromarray(to_pixels(tensor)[0])


def _picture(name: str) -> "gr.Image":
    return gr.Image(label=name, show_label=False, format="png", interactive=False, elem_id=name, elem_classes="picture",
                    buttons=[], render=False)


def _gallery(label: str, name: str, height: int, value: list | None = None) -> "gr.Gallery":
    return gr.Gallery(value, label=label, format="png", columns=6, fit_columns=False, height=height, elem_id=name,
                      allow_preview=False, interactive=False, buttons=[], render=False)


def _save(page: Page | None) -> Iterator[str]:
    """The picture with its recipe; gradio copies the file before the folder goes."""
    if page is None:
        raise gr.Error(GONE, duration=None)
    with tempfile.TemporaryDirectory() as folder:
        yield str(page.edited.save(Path(folder) / "edited.png"))


if __name__ == "__main__":
    exit_with_message(main)
