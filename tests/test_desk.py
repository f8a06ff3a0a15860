"""The page's desk and the folder of its server, without a browser."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from attention.editing.folder import PREFIX, ServerFolder
from attention.errors import UserError
from attention.files.published import ROOT
from attention.images import to_pixels
from attention.worlds.drawn.faces import FaceParams, draw_faces
from attention.worlds.drawn.photos import FRAME, draw_photo


def pixels(edited):
    return to_pixels(edited.tensor)[0]


def test_a_large_photo_is_shown_and_kept_at_the_size_of_a_screen_and_saved_whole(editor, desk, tmp_path):
    photo = draw_photo(FaceParams.sample(1, seed=8), FRAME.scaled(2.5), (1300, 1200))
    photo.image.save(tmp_path / "photo.png")
    (tmp_path / "photo.json").write_text(json.dumps(photo.landmarks.tolist()))
    page = desk.show_photo(None, str(tmp_path / "photo.png"), False, str(tmp_path / "photo.json"), 0, 0)
    page = desk.change(page, "purple hair", "", 0.1, 0.8)
    assert max(edited.photo.picture.size for edited in desk.shelf.kept.values() if edited.photo) == (1024, 945)
    small = [Image.open(file) for file in desk.compared(page)]
    assert small[0].size == small[1].size == (1024, 945)
    saved = Image.open(desk.save(page).saved)
    face = editor.open_photo(tmp_path / "photo.png", tmp_path / "photo.json")
    whole = face.edit("purple hair").image
    assert np.array_equal(np.asarray(saved), np.asarray(whole))
    large = [np.asarray(image, float) for image in (photo.image, whole)]
    small = [np.asarray(image.resize((1300, 1200)), float) for image in small]
    assert np.abs((small[1] - small[0]) - (large[1] - large[0])).mean() < 0.5            # of 255: the same change
    for file, shown in zip((page.opened.thumbnail, page.steps[0].thumbnail), (photo.image, whole), strict=True):
        square = Image.fromarray(face.photo.frame.crop(shown, 160))                     # the photo's, and not its inversion
        coarse = [np.asarray(part.resize((8, 8), Image.Resampling.BOX), float) for part in (square, Image.open(file))]
        assert np.abs(coarse[0] - coarse[1]).mean() < 3
    desk.shelf.drop(page.number)
    desk.shelf.drop(page.opened.number)
    assert np.array_equal(np.asarray(desk.edited(page).image), np.asarray(Image.open(desk.picture(page))))


def test_a_photo_that_was_let_go_is_made_again_along_its_own_edges(desk, monkeypatch, tmp_path):
    monkeypatch.setattr(desk.editor.region_editor, "follows_edges", True)
    Image.fromarray(draw_faces(FaceParams.sample(1, seed=8), 384).images[0]).save(tmp_path / "photo.png")
    page = desk.change(desk.show_photo(None, str(tmp_path / "photo.png"), True, None, 0, 0), "purple hair", "", 0.2, 0.8)
    for number in (page.number, page.opened.number):
        desk.shelf.drop(number)
    assert np.array_equal(np.asarray(desk.edited(page).image), np.asarray(Image.open(desk.picture(page))))


def test_the_faces_of_a_photo_are_shown_in_their_frames_before_one_is_opened(desk, tmp_path, monkeypatch):
    photo = Image.new("RGB", (2048, 1024), (90, 90, 90))
    photo.save(tmp_path / "photo.png")
    large, small, aside = (np.array([(x, 500), (x + width, 500), (x + width / 2, 560), (x, 620), (x + width, 620)], float)
                           for x, width in ((400, 120), (1500, 60), (1000, 4)))
    monkeypatch.setattr("attention.editing.desk.load_detector", lambda: lambda pixels: [
        points * pixels.shape[1] / 2048 for points in (small, aside, large)])
    page = desk.find_faces(desk.show_seed(1), str(tmp_path / "photo.png"))
    assert [frame is None for frame in page.found.frames] == [False, False, True] and page.found.chosen == 0
    expected = desk.editor.world.frame(large)
    assert page.found.frames[0].center == pytest.approx(expected.center / 2)                    # it is shown at 1024 px
    assert page.found.frames[0].half == pytest.approx(expected.half / 2)
    shown, plain = (np.asarray(Image.open(file)).astype(int) for file in (page.found.picture, page.found.plain))
    assert shown.shape == plain.shape == (512, 1024, 3)
    for frame, yellow in zip(page.found.frames[:2], (True, False), strict=True):
        x, y = (frame.center + frame.right).round().astype(int)                     # the middle of its right edge
        assert (shown[y, x] != plain[y, x]).any() and (shown[y, x, 2] < 50) == yellow
    other = desk.choose_face(page, *page.found.frames[1].center.round().astype(int).tolist())
    assert other.found.chosen == 1 and desk.choose_face(other, 3, 3).found.chosen == 1
    for file in other.found.files:
        assert file in other.files
    with pytest.raises(UserError, match="no photo was chosen"):
        desk.choose_face(desk.find_faces(page, None), 3, 3)
    monkeypatch.setattr("attention.editing.desk.load_detector", lambda: lambda pixels: [])
    with pytest.warns(UserWarning, match="no face was found"):
        assert desk.find_faces(page, str(tmp_path / "photo.png")).found is None


def test_all_pages_share_one_budget_of_memory_and_what_was_let_go_is_made_again(editor, desk, monkeypatch):
    monkeypatch.setattr(desk.shelf, "budget", 20 * 2**20)
    pages = [desk.show_seed(seed) for seed in range(3)]
    for what in ("purple hair", "beard", "glasses"):
        pages = [desk.change(page, what, "", 0.1, 0.8) for page in pages]
        assert desk.shelf.size() <= 20 * 2**20
    for seed, page in enumerate(pages):
        expected = editor.open_seed(seed).edit("purple hair").edit("beard")
        assert torch.equal(desk.edited(desk.undo(page)).tensor, expected.tensor)
        assert np.array_equal(np.asarray(Image.open(desk.picture(desk.undo(page)))), pixels(expected))
    slid = pages[0]
    kept = len(desk.shelf.kept)
    for strength in (0.02, 0.04, 0.06):                                        # a slider's way keeps one picture
        slid = desk.slide(slid, strength, 0.8)
        assert len(slid.steps) == 3 and len(desk.shelf.kept) <= kept + 1


def test_a_long_chain_keeps_the_features_of_its_last_edits_only(editor):
    edited = editor.open_seed(3)
    for _ in range(4):
        before, edited = edited, edited.edit("beard", strength=0.02)
    assert len(edited.edits) == 2 and len(edited.masks) == 4
    again = edited.undo().undo().edit("beard", strength=0.02)
    assert torch.equal(again.tensor, before.tensor) and torch.equal(edited.undo().tensor, before.tensor)


def test_files_go_when_nobody_uses_them_and_the_oldest_when_there_are_too_many(desk, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with ServerFolder() as folder:
        files = [folder.uploads / f"{age}.png" for age in (9999, 300, 200, 100)]
        for file in files:
            file.write_bytes(bytes(1000))
            os.utime(file, (time.time() - int(file.stem),) * 2)
        monkeypatch.setattr("attention.editing.folder.DISK", 2500)
        folder.used([str(files[1]), None, "gone"])
        folder.tidy()
        assert [file.exists() for file in files] == [False, True, False, True]
    assert not list(tmp_path.iterdir())


def python(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT,
                          env={**os.environ, **environment}, check=False)


def test_what_a_killed_server_left_is_swept_and_a_living_one_keeps_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    made = "from attention.editing.folder import ServerFolder; import os; folder = ServerFolder(); "
    killed = python(made + "(folder.uploads / 'photo.png').touch(); os.kill(os.getpid(), 9)")
    assert killed.returncode == -9 and len(list(tmp_path.glob(f"{PREFIX}*/uploads/photo.png"))) == 1
    with ServerFolder() as living:
        assert python(made + "folder.remove()").returncode == 0
        assert list(tmp_path.iterdir()) == [living.path] and living.path.stat().st_mode & 0o777 == 0o700


def test_a_temporary_folder_that_cannot_be_used_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "file/folder"))
    with pytest.raises(UserError, match=r"file/folder, which cannot be used \(Not a directory\)"):
        ServerFolder()
    full = python("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"       # as on a full disk
                  "from attention.editing.folder import ServerFolder; ServerFolder()", GRADIO_TEMP_DIR=str(tmp_path))
    assert "cannot be used (File too large); make room there" in full.stderr and len(list(tmp_path.iterdir())) == 1
