"""Pictures of strangers: read as pictures, never run as programs."""

import io
import os
import warnings
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


def test_a_broken_picture_is_a_sentence_whatever_its_format(tmp_path):
    frames = [Image.fromarray(np.random.default_rng(i).integers(256, size=(40, 40, 3), dtype=np.uint8)) for i in range(3)]
    draw = np.random.default_rng(0)
    for ending in (".jpg", ".png", ".webp", ".tif", ".gif", ".jp2", ".avif", ".bmp"):
        several = {"save_all": True, "append_images": frames[1:]} if ending in (".webp", ".tif", ".gif", ".avif") else {}
        frames[0].save(tmp_path / f"a{ending}", **several)
        whole = (tmp_path / f"a{ending}").read_bytes()
        broken = [whole[:len(whole) * share // 8] for share in range(8)] + [whole[:-40]]
        for _ in range(20):
            content = bytearray(whole)
            for place in draw.integers(len(content) if draw.random() < 0.5 else min(len(content), 300), size=5):
                content[place] ^= int(draw.integers(1, 256))
            broken.append(bytes(content))
        told = 0
        for content in broken:
            (tmp_path / f"a{ending}").write_bytes(content)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    read_photo(tmp_path / f"a{ending}")
                except UserError as error:
                    assert f"a{ending}" in str(error), error
                    told += 1
        assert told >= 5, ending


def test_a_bomb_is_refused_before_its_pixels_are_read(tmp_path):
    labels = tmp_path / "CelebAMask-HQ-mask-anno/0"
    labels.mkdir(parents=True)
    file = io.BytesIO()
    Image.new("1", (14_000, 14_000)).save(file, format="PNG")
    for path in (tmp_path / "a.png", labels / "00000_hair.png"):
        path.write_bytes(file.getvalue())
    for read in (read_photo, read_recipe, lambda path: CelebAMask(tmp_path).labels("0")):
        with pytest.raises(UserError, match=r"megapixels|exceeds limit|pixels, at most"):
            read(tmp_path / "a.png")


def test_a_heic_photo_is_named_as_one_with_what_reads_it(tmp_path):
    if "HEIF" in Image.OPEN:
        pytest.skip("the plug-in is installed")
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x24ftypheic" + bytes(100))
    assert ".heic" in picture_endings()
    with pytest.raises(UserError, match=r"a\.heic is a HEIC picture, .* pip install pillow-heif"):
        read_photo(tmp_path / "a.heic")
