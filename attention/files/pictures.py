"""Opening other people's pictures: whole or not at all, by a fixed list of formats, none of which starts a program."""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from attention.errors import UserError
from attention.files.reading import readable, shown

# What Pillow decodes by itself. It hands an EPS file to Ghostscript, which runs the program that such a file is, whatever
# the name of the file; a WMF file goes to Windows.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
PLUG_IN, PLUGGED = "pillow_heif", "HEIF"                        # reads photos of telephones, if it is installed
HEIC = (b"ftyphei", b"ftyphev", b"ftypmif1", b"ftypmsf1")       # bytes 4 to 12 of such a file begin with one of these
HEIC_ENDINGS = {".heic", ".heif", ".hif"}
MEGAPIXELS = 100            # a larger picture is refused: it would need gigabytes
CODE_POINTS = "code_points"                                     # in a picture's `info`: primaries and transfer, by H.273
HEAD = 1_200_000                                                # bytes in which they are looked for: a profile comes first
DEEP = ";16"                                                    # how Pillow calls numbers of 16 bits in a file
ANIMATED = ("AVIF", "GIF", "PNG", "TIFF", "WEBP")               # other formats keep previews and depth maps as frames


def read_picture(file: Path | str | BinaryIO | Image.Image, what: str = "a picture") -> Image.Image:
    """A picture with all of its pixels; of several frames the first, and that is told.

    Args:
        file: or a picture that was opened elsewhere.
        what: it should be, in words, for messages.
    Raises:
        UserError: no file, no whole picture of FORMATS, or one of more than MEGAPIXELS, which is seen before a pixel is
            read.
    """
    name = shown(readable(file, what)) if isinstance(file, Path | str) else "the picture"
    with decoding(name, what):
        picture = file if isinstance(file, Image.Image) else open_picture(Path(file) if isinstance(file, str) else file)
        check_size(picture, name)
        if picture.format in ANIMATED and (frames := getattr(picture, "n_frames", 1)) > 1:
            warnings.warn(f"{name} has {frames} frames, and the first is taken", stacklevel=2)
        if any(DEEP in str(part) for part in getattr(picture, "tile", ())):
            warnings.warn(f"{name} has 16 bits a colour, of which 8 are kept", stacklevel=2)
        picture.load()
    return picture


def check_size(picture: Image.Image, name: str) -> None:
    """Raise UserError if a picture has more than MEGAPIXELS."""
    if (found := picture.width * picture.height / 1e6) > MEGAPIXELS:
        raise UserError(f"{name} has {found:.2f} megapixels, but at most {MEGAPIXELS:g} are read; make it smaller first")


@contextmanager
def decoding(name: str, what: str = "a picture") -> Iterator[None]:
    """Around all that decodes a picture: whatever a decoder raises becomes a sentence.

    Raises:
        UserError: names the picture and the decoder's reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)          # the size is checked
            yield
    except UserError:
        raise
    except Exception as error:          # Pillow's decoders raise nearly every kind, SystemError and MemoryError among them
        reason = shown(" ".join(str(error).split()) or type(error).__name__)
        raise UserError(f"{name} cannot be read as {what} ({reason}); give a JPEG, PNG or WebP file") from error


def open_picture(file: Path | BinaryIO) -> Image.Image:
    """Pillow's Image.open for FORMATS alone: reads the header, no pixels. `info` holds CODE_POINTS if the file has such.

    Raises:
        UserError: it is a HEIC file, and the plug-in for these is not installed.
        OSError: it is no picture of these formats; and whatever a decoder raises for a broken header.
    """
    formats = _known_formats()
    try:
        picture = Image.open(file, formats=formats)
        if points := _code_points(_head(file)):
            picture.info[CODE_POINTS] = points
        return picture
    except Image.UnidentifiedImageError:
        if isinstance(file, Path) and PLUGGED not in formats and _begins_as_heic(file):
            raise UserError(f"{shown(file)} is a HEIC picture, which Pillow reads with a plug-in only; get it with: pip "
                            "install pillow-heif, or save the picture as JPEG") from None
        raise


def _head(file: Path | BinaryIO) -> bytes:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return opened.read(HEAD)
    place = file.tell()
    file.seek(0)
    head = file.read(HEAD)
    file.seek(place)
    return head


def _code_points(head: bytes) -> tuple[int, int] | None:
    """(primaries, transfer) that a PNG (cICP), an AVIF or a HEIC file (nclx) says its numbers are of."""
    if (place := head.find(b"colrnclx")) >= 0 and head[4:8] == b"ftyp":
        return int.from_bytes(head[place + 8:place + 10], "big"), int.from_bytes(head[place + 10:place + 12], "big")
    place = 8
    while head.startswith(b"\x89PNG") and place + 12 <= len(head) and head[place + 4:place + 8] != b"IDAT":
        if head[place + 4:place + 8] == b"cICP":
            return head[place + 8], head[place + 9]
        place += 12 + int.from_bytes(head[place:place + 4], "big")
    return None


def picture_endings() -> set[str]:
    """The endings of names that pictures have, lower case, with the dot; HEIC is one whether or not it can be opened."""
    # A JPEG that turns out to hold several pictures is opened as MPO.
    formats = (*_known_formats(), "MPO")
    return {ending for ending, kind in Image.registered_extensions().items() if kind in formats} | HEIC_ENDINGS


def _known_formats() -> list[str]:
    """Those of FORMATS that this Pillow was built with, and the plug-in's."""
    Image.init()
    _plug_in()
    return [name for name in (*FORMATS, PLUGGED) if name in Image.OPEN]


@cache
def _plug_in() -> None:
    with suppress(ImportError):
        importlib.import_module(PLUG_IN).register_heif_opener()


def _begins_as_heic(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(12)[4:].startswith(HEIC)
