"""Opening other people's pictures: by a fixed list of formats, none of which starts another program."""

from pathlib import Path
from typing import BinaryIO

from PIL import Image

# What Pillow decodes by itself. It hands an EPS file to Ghostscript, which runs the program that such a file is, whatever
# the name of the file; a WMF file goes to Windows.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


def open_picture(file: Path | BinaryIO) -> Image.Image:
    """Pillow's Image.open for FORMATS alone: reads the header, no pixels.

    Raises:
        OSError: it is no picture of these formats; and whatever a decoder raises for a broken header.
    """
    Image.init()                                                # registers what this Pillow was built with
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def picture_endings() -> set[str]:
    """The endings of names that FORMATS have, lower case, with the dot."""
    # A JPEG that turns out to hold several pictures is opened as MPO.
    return {ending for ending, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
