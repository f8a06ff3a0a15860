"""The web page's widgets, and which action of the desk each of them starts."""

import ctypes
import html
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from starlette.middleware import Middleware

from attention.editing.desk import MOST_FACES, MOST_REFINED, Desk
from attention.editing.door import Door
from attention.editing.folder import KEPT_SECONDS, PARENT
from attention.editing.history import LONGEST_ADDRESS, LONGEST_TEXT, USUAL, Page, said_what, summary
from attention.editing.words import LIST
from attention.errors import UserError
from attention.method.defaults import COVERAGE, STRENGTH, STRONGEST

UPLOAD = "20mb"
KEPT_USERS = 256            # pages that are remembered; the one that was idle longest goes first
TIDIED = 60                 # seconds between two looks at the files
NEW_SEEDS = 10_000          # from which "Another face" draws
GONE = "this page was left for so long that its picture is gone; reload it, and what its address says comes back"
FAST, SLOW = "edits", "photos"              # queues: a photo that takes minutes keeps nobody from editing
STYLE = """
#address, #saved, #shown, #rest { display: none }
#title h2 { margin: 0 }
#told { height: 66px; overflow-y: auto; padding: 0 4px }
#told p { margin: 0; font-size: 14px; line-height: 22px; overflow-wrap: anywhere }
#told .wrong p { color: #b91c1c }
.dark #told .wrong p { color: #fca5a5 }
.picture button, .picture .image-frame, .picture img { width: 100%; height: auto; object-fit: contain }
#edited img, #mask img { max-height: max(320px, 100vh - 200px) }
#found img { width: auto; max-width: 100%; max-height: 420px }
#chips .part { display: flex; flex-wrap: wrap; gap: 4px; margin-bottom: 5px; font-size: 13px; line-height: 20px }
#chips b { min-width: 5.5em; font-weight: 600 }
#chips button { font-size: 13px; font-weight: 400; border: 1px solid var(--border-color-primary); border-radius: 1em;
    padding: 0 8px; box-shadow: none }
#history .grid-wrap, #examples .grid-wrap { min-height: 0; height: auto; max-height: 330px; overflow-y: auto; padding: 0 }
#history .caption-label, #examples .caption-label { font-size: 12px }
@media (max-width: 640px) {
    main.app { padding: 8px 12px !important }
    #title h2 { font-size: 18px }
    #desk, #desk > .column { gap: 8px }
    #edited img, #mask img { max-height: 270px }
    #told { height: 90px }
    #told p { font-size: 13px; line-height: 18px }
    #history .grid-container, #examples .grid-container { grid-template-columns: repeat(3, 1fr) !important }
}
"""
# The address keeps the recipe; a chip fills *what*; a download begins once its file is there.
REMEMBER = "address => { history.replaceState(null, '', address || location.pathname) }"
RECALL = "() => [null, location.search]"
DOWNLOAD = """path => { if (!path) return; const link = document.createElement('a');
link.href = 'gradio_api/file=' + path; link.download = 'edited.png'; link.click() }"""
CHIP = """(() => { for (const [id, text] of [['what', this.innerText], ['where', '']]) {
const field = document.querySelector(`#${id} textarea, #${id} input`);
field.value = text; field.dispatchEvent(new Event('input', {bubbles: true})) }
scrollTo(0, 0) })()"""
# On a phone what was clicked may lie screens below the picture that it changes. At once: new pictures end a smooth scroll.
SHOW = "(...inputs) => { scrollTo(0, 0); return inputs.length == 1 ? inputs[0] : inputs }"
# A slider that moves shows early pictures; once it rests, by mouse or by keys, the whole picture is asked for.
REST = """(...inputs) => { clearTimeout(window.resting);
window.resting = setTimeout(() => document.querySelector('#rest').click(), 350); return inputs }"""
# What lowers the slider's end makes the whole picture itself; a rest that came after it would have a value beyond that end.
NO_REST = "(...inputs) => { clearTimeout(window.resting); return inputs }"
PROGRESS = gr.Progress(track_tqdm=True)
PROXIES = [name for kind in ("http", "https", "all") for name in (f"{kind}_proxy", f"{kind}_proxy".upper())]


def serve(page: gr.Blocks, desk: Desk, **options: Any) -> None:
    """Start the page with its limits and come back; options go to gradio's `launch`."""
    page.queue(default_concurrency_limit=1, max_size=64)
    door = Middleware(Door, blocks=page, uploads=desk.folder.uploads)
    threading.Thread(target=_tidy, args=[desk], daemon=True).start()
    os.environ["GRADIO_RUN_HISTORY"] = "False"                      # nothing of a user is kept elsewhere
    with _without_proxies():                                        # gradio asks its own page whether it is there
        page.launch(max_file_size=UPLOAD, state_session_capacity=KEPT_USERS, show_error=True, css=STYLE, footer_links=[],
                    theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"]), ssr_mode=False,
                    share=False, mcp_server=False, enable_monitoring=False, prevent_thread_lock=True,
                    app_kwargs={"middleware": [door]}, **options)


class Done(NamedTuple):
    """What a slow action made of the page that it began with, at a time when that may be another already."""

    begun: float                # time
    page: Page
    following: Page
    notes: list[str]


class Views:
    """The widgets that show a Page, how each of them is made from it, and how an event changes it."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.state, self.done = (gr.State(None, time_to_live=KEPT_SECONDS) for _ in range(2))
        self.seed = gr.Number(desk.first_seed, label="Seed", elem_id="seed", render=False)
        self.what = gr.Textbox(label="What", placeholder=desk.editor.world.examples[0][1], max_lines=1, min_width=120,
                               max_length=LONGEST_TEXT, elem_id="what", render=False)
        self.where = gr.Textbox(label="Where", placeholder="as What says", max_lines=1, min_width=120,
                                max_length=LONGEST_TEXT, elem_id="where", render=False)
        self.strength = gr.Slider(0, USUAL, STRENGTH, step=0.005, label="Strength", elem_id="strength", render=False)
        self.stronger = gr.Checkbox(False, label="stronger (colours turn lurid)", container=False, elem_id="stronger",
                                    render=False)
        self.coverage = gr.Slider(0, 1, COVERAGE, step=0.01, label="Coverage", elem_id="coverage", render=False)
        self.regions, self.edited, self.mask = (_picture(name) for name in ("regions", "edited", "mask"))
        self.compare = gr.ImageSlider(label="Original | edited", show_label=False, elem_id="compare", interactive=False,
                                      buttons=["fullscreen"], render=False)
        self.told = gr.HTML(elem_id="told", render=False)
        self.steps = _gallery("history", columns=8)
        self.found = _picture("found", visible=False)
        self.face = gr.Number(0, label="Which face (0: the largest)", precision=0, minimum=0, maximum=MOST_FACES,
                              elem_id="face", render=False)
        self.address = gr.Textbox(elem_id="address", label="address", max_length=LONGEST_ADDRESS, render=False)
        self.saved = gr.Textbox(elem_id="saved", label="saved", render=False)
        self.shown = gr.Textbox(elem_id="shown", label="shown", render=False)
        self.after_edit: list[Any] = [self.edited, self.mask, self.compare, self.steps]
        self.how: list[Any] = [self.strength, self.stronger, self.coverage]
        self.fields: list[Any] = [self.what, self.where, *self.how, self.regions]
        self.all: list[Any] = [self.seed, *self.after_edit, *self.fields]
        self.made: dict[Any, Callable[[Page], Any]] = {
            self.edited: desk.picture, self.mask: desk.mask, self.regions: desk.regions, self.compare: desk.compared,
            self.steps: desk.history, self.address: desk.address, self.saved: lambda page: page.saved,
            self.shown: lambda page: page.shown,
            self.found: lambda page: gr.update(value=page.found and page.found.picture, visible=page.found is not None),
            self.face: lambda page: page.found.chosen if page.found else 0,
            self.seed: lambda page: page.opened.origin.get("seed", gr.skip()),
            self.what: lambda page: said_what(page.last) if page.last else gr.skip(),
            self.where: lambda page: page.where,
            self.strength: lambda page: gr.update(value=page.sliders[0], maximum=STRONGEST if page.stronger else USUAL),
            self.stronger: lambda page: page.stronger, self.coverage: lambda page: page.sliders[1]}

    def on(self, event: Callable, action: Callable, inputs: Sequence[Any] = (), shows: Sequence[Any] | None = None,
           opens: bool = False, selects: bool = False, **options: Any) -> None:
        """Let an action answer an event.

        Args:
            event: a widget's, such as `button.click`.
            action: (Page, *inputs) -> Page; if it `opens`, (*inputs) -> Page; if it `selects`, the inputs are what was
                clicked: x and y in a picture, the number in a gallery. The same Page again changes nothing.
            shows: the widgets that change; None: all.
        """
        shows = [self.address, self.shown, *(self.all if shows is None else shows)]

        def answer(page: Page | None, *values: Any) -> tuple:
            begun = time.perf_counter()
            try:
                if page is None and not opens:
                    raise UserError(GONE)
                with _listening() as notes:
                    following = action(*values) if opens else action(page, *values)
                    if following is page:
                        return (gr.skip(),) * (2 + len(shows))
                    self.desk.folder.used(following.files)
                    shown = [self.made[widget](following) for widget in shows]
            except Exception as error:
                return (gr.skip(), _wrong(error, values), *(gr.skip(),) * len(shows))
            begun = values[0].begun if values and isinstance(values[0], Done) else begun
            told = f"{summary(following)} ({(time.perf_counter() - begun) * 1000:.0f} ms)"
            told = _note(told, *(f"Note: {_without_folders(note, values)}" for note in dict.fromkeys(notes)))
            return following, told, *shown

        def select(page: Page | None, clicked: gr.SelectData) -> tuple:
            return answer(page, *np.ravel(clicked.index).tolist())

        event(select if selects else answer, [self.state, *inputs], [self.state, self.told, *shows],
              concurrency_id=FAST, api_visibility="private", show_progress="hidden", **options)

    def on_slowly(self, event: Callable, action: Callable, inputs: Sequence[Any] = (), shows: Sequence[Any] | None = None,
                  **options: Any) -> None:
        """As `on`, for what takes seconds: in a queue of its own, and what was done meanwhile is kept (`Desk.joined`)."""
        def begin(page: Page | None, progress: gr.Progress = PROGRESS, *values: Any) -> tuple:     # which shows tqdm's bars
            begun = time.perf_counter()
            try:
                if page is None:
                    raise UserError(GONE)
                with _listening() as notes:
                    following = action(page, *values)
                return Done(begun, page, following, [_without_folders(note, values) for note in notes]), gr.skip()
            except Exception as error:
                return None, _wrong(error, values)
            finally:
                _give_back_memory()

        def join(page: Page, done: Done | None) -> Page:
            if done is None:
                return page
            for note in done.notes:
                warnings.warn(note, stacklevel=2)
            return self.desk.joined(page, done.page, done.following)

        begun = event(begin, [self.state, *inputs], [self.done, self.told], concurrency_id=SLOW, api_visibility="private",
                      show_progress="full", show_progress_on=self.told, **options)
        self.on(begun.then, join, [self.done], shows)


def build(desk: Desk) -> gr.Blocks:
    """The page: widgets, and which action each of them starts."""
    os.environ[PARENT] = str(desk.folder.uploads)
    gr.set_static_paths([desk.folder.pictures])                     # they are served as they are, and never copied
    with gr.Blocks(title="Where2Edit", analytics_enabled=False) as page:
        views = Views(desk)
        gr.Markdown("## Where you edit is what you get", elem_id="title")
        with gr.Row(elem_id="desk"):
            with gr.Column(scale=5, min_width=300):
                with gr.Tabs():
                    for title, widget in (("Edited", views.edited), ("Compare", views.compare), ("Mask", views.mask)):
                        with gr.Tab(title, render_children=True):
                            widget.render()
                views.told.render()
            with gr.Column(scale=5, min_width=300):
                _edit_panel(desk, views)
            with gr.Column(scale=4, min_width=300):
                _face_panel(desk, views)
                gr.Markdown("Regions: click where the next edit should go")
                views.regions.render()
        gr.Markdown("History: click a step to go there")
        views.steps.render()
        gr.Markdown("Examples: click one to begin with it")
        examples = _gallery("examples", desk.examples()).render()
        for hidden in (views.address, views.saved, views.shown):
            hidden.render()
        views.on(examples.select, desk.example, opens=True, selects=True, js=SHOW)
        views.on(views.steps.select, desk.go_to, shows=[*views.after_edit, *views.fields], selects=True, js=SHOW)
        views.on(views.regions.select, desk.click, shows=[views.regions, views.where], selects=True)
        views.on(page.load, desk.begin, [views.address], opens=True, js=RECALL)
        views.address.change(None, views.address, None, js=REMEMBER)
    return page


def _face_panel(desk: Desk, views: Views) -> None:
    """Where faces come from."""
    with gr.Tabs():
        with gr.Tab("A face"), gr.Row():
            views.seed.render()
            another = gr.Button("Another face", elem_id="another")
        with gr.Tab("Your photo"):
            if needs := desk.photo_needs():
                gr.Markdown(needs, elem_id="needs")
            photo = gr.File(label="Photo", file_types=["image"], height=110, elem_id="photo")
            views.found.render()
            framed = gr.Checkbox(False, label="it is square and framed like the faces here", elem_id="framed")
            with gr.Accordion("If it is not framed", open=False):
                views.face.render()
                landmarks = gr.File(label="Its landmarks (without a detector)", file_types=[".json", ".txt"], height=110,
                                    elem_id="landmarks")
            refine = gr.Slider(0, MOST_REFINED, desk.editor.world.entry.refine, step=10, label="Refinement, steps",
                               elem_id="refine")
            show = gr.Button("Show", elem_id="show")
        with gr.Tab("Like a picture"):
            reference = gr.File(label="A square picture", file_types=["image"], height=110, elem_id="reference")
            exact = gr.Checkbox(False, label="take over its very styles (a framed face)", elem_id="exact")
            like = gr.Button("Make it like this", elem_id="like")
    views.on(views.seed.submit, desk.show_seed, [views.seed], opens=True)
    chosen = another.click(lambda: int(np.random.default_rng().integers(NEW_SEEDS)), None, views.seed,
                           api_visibility="private")
    views.on(chosen.then, desk.show_seed, [views.seed], opens=True, js=SHOW)
    views.on_slowly(photo.change, desk.find_faces, [photo], [views.found, views.face])
    views.on(views.found.select, desk.choose_face, shows=[views.found, views.face], selects=True)
    views.on_slowly(show.click, desk.show_photo, [photo, framed, landmarks, views.face, refine], js=SHOW)
    views.on_slowly(like.click, desk.resemble, [reference, exact, views.where, views.strength, views.coverage],
                    [*views.after_edit, *views.fields], js=SHOW)


def _edit_panel(desk: Desk, views: Views) -> None:
    """What the user says, and the buttons."""
    sliders = [views.strength, views.coverage]
    with gr.Row(elem_id="said"):
        views.what.render()
        views.where.render()
    edit = gr.Button("Edit", variant="primary", elem_id="edit")
    with gr.Row(elem_id="sliders"):
        for slider in sliders:
            slider.render()
    views.stronger.render()
    with gr.Row(elem_id="buttons"):
        undo, redo, over, save = (gr.Button(label, elem_id=name, size="sm", min_width=60) for label, name in
                                  (("Undo", "undo"), ("Redo", "redo"), ("Reset", "over"), ("Download", "save")))
    gr.HTML(_chips(desk.phrases()), elem_id="chips")
    for event in (views.what.submit, views.where.submit, edit.click):
        views.on(event, desk.change, [views.what, views.where, *sliders],
                 [*views.after_edit, views.what, views.where, views.regions], js=SHOW)
    rest = gr.Button("Rest", elem_id="rest")
    moved = [views.shown, *sliders]
    for slider in sliders:
        views.on(slider.input, _if_shown(desk.glance), moved, views.after_edit, trigger_mode="always_last", js=REST)
    views.on(rest.click, _if_shown(desk.rest), moved, views.after_edit)
    views.on(views.stronger.input, desk.allow, [views.stronger, *sliders], [*views.after_edit, *views.how],
             js=NO_REST)
    views.on(views.where.change, desk.type_where, [views.where], [views.regions])      # no input comes when it is emptied
    for button, action in ((undo, desk.undo), (redo, desk.redo), (over, desk.start_over)):
        views.on(button.click, action, shows=[*views.after_edit, *views.fields])
    views.on_slowly(save.click, desk.save, shows=[views.saved])
    views.saved.change(None, views.saved, None, js=DOWNLOAD)


def _if_shown(action: Callable[..., Page]) -> Callable[..., Page]:
    """An action of sliders that leaves a page alone which shows another step by now than when they were moved."""
    return lambda page, shown, *sliders: action(page, *sliders) if shown == page.shown else page


@contextmanager
def _listening() -> Iterator[list[str]]:
    """What is warned of meanwhile in this thread; `warnings.catch_warnings` would mix up those of several."""
    warnings.simplefilter("always", UserWarning)
    if warnings.showwarning is not _hear:
        _heard.otherwise, warnings.showwarning = warnings.showwarning, _hear
    _heard.here.notes = []
    try:
        yield _heard.here.notes
    finally:
        _heard.here.notes = None


class _Heard:
    def __init__(self) -> None:
        self.here, self.otherwise = threading.local(), warnings.showwarning


_heard = _Heard()


def _hear(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    notes = getattr(_heard.here, "notes", None)
    if notes is None:
        _heard.otherwise(message, category, *place, **more)
    elif category is UserWarning:
        notes.append(str(message))


@contextmanager
def _without_proxies() -> Iterator[None]:
    """No proxy meanwhile: it would be asked for our own address, and its answer taken for ours."""
    taken = {name: os.environ.pop(name) for name in PROXIES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


def _wrong(error: Exception, values: Sequence[Any]) -> str:
    return _note(_without_folders(_told(error), values), wrong=True)


def _told(error: Exception) -> str:
    """A sentence about what kept an action from being done."""
    if isinstance(error, UserError):
        return str(error).replace(f" {LIST}", "")                   # it stands on the page
    if isinstance(error, OSError):
        return f"the server cannot keep or find a picture ({error.strerror}); nothing changed, try again later"
    traceback.print_exc()               # a fault of ours, which must not end the page for everyone
    return f"this went wrong inside the program ({type(error).__name__}); nothing changed, and the server's log says more"


def _give_back_memory() -> None:
    """Let the system have what was freed: glibc else keeps the largest photo that each of gradio's threads ever read."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _tidy(desk: Desk) -> None:
    while desk.folder.path.exists():
        desk.folder.tidy()
        _give_back_memory()
        time.sleep(TIDIED)


def _note(*lines: str, wrong: bool = False) -> str:
    """Lines of the one place for notes."""
    shown = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    return f'<div class="wrong" role="alert">{shown}</div>' if wrong else f'<div role="status">{shown}</div>'


def _chips(phrases: dict[str, tuple[str, ...]]) -> str:
    """What can be said, by part of the face; a click fills *what*."""
    rows = []
    for part, said in phrases.items():
        chips = "".join(f'<button type="button" onclick="{html.escape(CHIP)}">{html.escape(phrase)}</button>'
                        for phrase in said)
        rows.append(f'<div class="part"><b>{html.escape(part)}</b>{chips}</div>')
    return f"<p>What can be said:</p>{''.join(rows)}"


def _without_folders(message: str, values: Sequence[Any]) -> str:
    """A message about an upload, which names the user's file without our temporary folder."""
    for value in values:
        if isinstance(value, str) and Path(value).is_absolute():
            message = message.replace(value, Path(value).name)
    return message


def _picture(name: str, visible: bool = True) -> gr.Image:
    return gr.Image(label=name, show_label=False, interactive=False, elem_id=name, elem_classes="picture", buttons=[],
                    visible=visible, render=False)


def _gallery(name: str, value: list | None = None, columns: int = 6) -> gr.Gallery:
    return gr.Gallery(value, label=name, show_label=False, columns=columns, fit_columns=False, height="auto", elem_id=name,
                      allow_preview=False, interactive=False, buttons=[], render=False)
