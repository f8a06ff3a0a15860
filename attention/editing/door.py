"""What may come in: every request that changes something passes here, before anything of it is used.

The page's own widgets send nothing else than what is let in; it is for whoever sends something by hand.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from attention.editing.desk import CLICKABLE
from attention.editing.history import LONGEST_ADDRESS, MOST_STEPS
from attention.editing.inputs import LARGEST_SEED, number_of, text_of, whole
from attention.errors import UserError

EVENT = "/gradio_api/queue/join"
UPLOAD = "/gradio_api/upload"
OTHERS = ("/gradio_api/cancel", "/gradio_api/reset")        # of gradio's own scripts
LARGEST_EVENT = 100_000         # bytes


class Door:
    """ASGI middleware around gradio: refuses what no page sends, in a sentence."""

    def __init__(self, app: ASGIApp, blocks: gr.Blocks, uploads: Path):
        self.app, self.blocks, self.uploads = app, blocks, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self.app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path == UPLOAD:
            return await self._upload(scope, receive, send)
        if path != EVENT and path not in OTHERS:
            return await _refuse(404, "this page answers only its own widgets")(scope, receive, send)
        body = bytearray()
        async for part in Request(scope, receive).stream():
            body += part
            if len(body) > LARGEST_EVENT:
                return await _refuse(413, f"more than {LARGEST_EVENT:,} bytes came in; a text or a list is too long")(
                    scope, receive, send)
        try:
            if path == EVENT:
                checked_event(json.loads(body), self.blocks, self.uploads)
        except UserError as error:
            return await _refuse(400, str(error))(scope, receive, send)
        except (ValueError, RecursionError):
            return await _refuse(400, "what came in is no JSON")(scope, receive, send)
        await self.app(scope, _again(bytes(body), receive), send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except OSError as error:                                        # before an answer began: the disk is full
            await PlainTextResponse(f"the server cannot keep the file ({error.strerror})", 507)(scope, receive, send)


def checked_event(event: Any, blocks: gr.Blocks, uploads: Path) -> None:
    """Hold an event against the widgets that it says it comes from.

    Raises:
        UserError: they can send no such thing.
    """
    if not isinstance(event, dict):
        raise UserError("the event is no JSON object")
    session, number = event.get("session_hash"), event.get("fn_index")
    if not (isinstance(session, str) and re.fullmatch(r"[\w-]{1,64}", session, re.ASCII)):
        raise UserError("session_hash names no page")
    function = blocks.fns.get(number) if type(number) is int else None
    if function is None or function.fn is None:
        raise UserError("fn_index names no event of this page")
    values = event.get("data")
    if not isinstance(values, list) or len(values) != len(function.inputs):
        raise UserError(f"data is no list of {len(function.inputs)} values")
    for widget, value in zip(function.inputs, values, strict=True):
        CHECKS[type(widget)](value, widget, uploads)
    if any(kind == "select" for _, kind in function.targets):
        clicked = event.get("event_data")
        if not isinstance(clicked, dict) or not {"index", "value"} <= set(clicked):
            raise UserError("event_data does not say what was clicked")
        index = clicked["index"]
        for part in index if isinstance(index, list) and len(index) == 2 else [index]:
            whole(part, "what was clicked", max(MOST_STEPS, 100 * CLICKABLE))


def _text(value: Any, widget: Any, uploads: Path) -> None:
    text_of("" if value is None else value, str(widget.label).lower(), widget.max_length or LONGEST_ADDRESS)


def _number(value: Any, widget: Any, uploads: Path) -> None:
    if value is not None and (type(value) not in (int, float) or not abs(value) <= 1e300):
        raise UserError(f"{str(widget.label).lower()} is no number, expected a whole number from 0 to {LARGEST_SEED:,}")


def _slider(value: Any, widget: Any, uploads: Path) -> None:
    number_of(value, str(widget.label).lower(), 1 if widget.maximum <= 1 else widget.maximum)


def _checkbox(value: Any, widget: Any, uploads: Path) -> None:
    if value not in (True, False, None):
        raise UserError(f"{widget.label!r} is neither ticked nor not")


def _file(value: Any, widget: Any, uploads: Path) -> None:
    if value is None:
        return
    path = value.get("path") if isinstance(value, dict) and value.get("meta") == {"_type": "gradio.FileData"} else None
    if not isinstance(path, str) or "\0" in path or not Path(path).resolve().is_relative_to(uploads.resolve()) \
            or not Path(path).is_file():
        raise UserError(f"{str(widget.label).lower()} is no file that was uploaded here, or it is gone; upload it again")


def _state(value: Any, widget: Any, uploads: Path) -> None:
    if value is not None:
        raise UserError("the page's state is the server's own")


CHECKS: dict[type, Callable[[Any, Any, Path], None]] = {gr.Textbox: _text, gr.Number: _number, gr.Slider: _slider,
                                                        gr.Checkbox: _checkbox, gr.File: _file, gr.State: _state}


def _refuse(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"detail": sentence}, status)


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, to be read again."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def following() -> Message:
        return waiting.pop() if waiting else await receive()

    return following
