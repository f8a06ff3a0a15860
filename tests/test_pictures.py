"""Pictures of strangers: read as pictures, never run as programs."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import attention
from attention.editing.photo import read_photo
from attention.editing.recipes import read_recipe
from attention.errors import UserError
from attention.evaluation.celeba_mask import CelebAMask
from attention.files.pictures import picture_endings

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 64 64
%%EndComments
newpath 0 0 moveto 64 64 lineto stroke
showpage
%%EOF
"""


@pytest.fixture
def ghostscript(tmp_path, monkeypatch) -> Path:
    """A stand-in for Ghostscript on the path, which leaves a file behind when it is started."""
    started, folder = tmp_path / "started", tmp_path / "bin"
    folder.mkdir()
    (folder / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (folder / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)               # looked for again, and found in the folder
    return started


def test_the_stand_in_is_started_by_pillow_alone(ghostscript, tmp_path):
    (tmp_path / "a.eps").write_bytes(EPS)
    with pytest.raises(OSError), Image.open(tmp_path / "a.eps") as picture:
        picture.load()
    assert ghostscript.exists()


def test_a_program_in_the_disguise_of_a_picture_never_runs(ghostscript, tmp_path):
    labels = tmp_path / "CelebAMask-HQ-mask-anno/0"
    labels.mkdir(parents=True)
    face = attention.load_editor("drawn", device="cpu").open_seed(1)
    for name in ("a.eps", "a.png", "a.jpg"):
        (tmp_path / name).write_bytes(EPS)
        (labels / "00000_hair.png").write_bytes(EPS)
        for read in (read_photo, read_recipe, face.resemble, face.editor.open_photo):
            with pytest.raises(UserError, match=name):
                read(tmp_path / name)
    with pytest.raises(UserError, match=r"00000_hair\.png"):
        CelebAMask(tmp_path).labels("0")
    assert not ghostscript.exists()


def test_what_pillow_decodes_itself_is_read(tmp_path):
    pixels = np.full((32, 48, 3), 200, np.uint8)
    for ending in (".jpg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".gif", ".jp2", ".avif"):
        assert ending in picture_endings(), ending
        Image.fromarray(pixels).save(tmp_path / f"a{ending}")
        assert read_photo(tmp_path / f"a{ending}").size == (48, 32), ending
