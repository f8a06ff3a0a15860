"""The command line that edits: seeds, framed pictures, photos with landmarks, folders, and mistakes."""

import json
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from attention import extras
from attention.editing import command, session
from attention.editing.detector import load_detector
from attention.editing.recipes import read_recipe
from attention.errors import UserError
from attention.files.published import SHIPPED
from attention.images import area_resize, psnr
from attention.inversion import invert
from attention.method.defaults import COVERAGE, STRENGTH
from attention.worlds.drawn.faces import FaceParams, draw_faces
from attention.worlds.drawn.photos import draw_photo
from attention.worlds.world import World


@pytest.fixture(scope="module")
def main():
    """The command, in the drawn world unless --run says otherwise, whatever was downloaded here."""
    def run(*words):
        return command.main([*map(str, words), *(() if "--run" in words else ("--run", "drawn")), "--device", "cpu"])

    return run


def test_a_seed_with_further_changes_is_what_python_makes(main, editor, tmp_path):
    out = tmp_path / "edited.png"
    main("--seed", 7, "--what", "grey hair", "--where", "hair", "--strength", 0.2, "--then", "red lipstick@lips", "--then",
         "beard", "--out", out, "--save_mask", "--grid")
    expected = editor.open_seed(7).edit("grey hair", "hair", strength=0.2)
    expected = expected.edit("red lipstick", "lips", strength=0.2).edit("beard", strength=0.2)
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(expected.image))
    assert torch.equal(editor.replay(out).tensor, expected.tensor)
    mask = np.asarray(Image.open(tmp_path / "edited_mask.png"))
    smooth = F.interpolate(expected.mask, size=expected.tensor.shape[2:], mode="bilinear")[0, 0].numpy()
    assert mask.shape == expected.image.size[::-1] and np.abs(mask / 255 - smooth).max() <= 0.5 / 255 + 1e-6
    assert Image.open(tmp_path / "edited_grid.png").height > 2 * expected.tensor.shape[-1]      # three prompts: two blocks


def test_a_photo_is_edited_in_the_mask_and_elsewhere_stays_bit_for_bit(main, editor, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(invert, "lpips_available", lambda: False)
    photo, places, inside = draw_photo(FaceParams.sample(1, seed=5))
    photo.save(tmp_path / "photo.png")
    (tmp_path / "points.json").write_text(json.dumps(places.tolist()))
    out = tmp_path / "edited.png"
    main(tmp_path / "photo.png", "--landmarks", tmp_path / "points.json", "--what", "purple hair", "--out", out)
    assert re.search(r"photo\.png: inverted to \d+\.\d dB\n", capsys.readouterr().out)
    before, after = np.asarray(photo), np.asarray(Image.open(out))
    changed = (before != after).any(axis=2)
    edited = editor.replay(out, tmp_path / "photo.png")
    assert np.array_equal(np.asarray(edited.image), after) and after.shape == before.shape
    assert 0.02 < changed.mean() < 0.5 and changed[inside].any()
    # The frame that was found by landmarks lies where the drawing was put, up to the face's own proportions.
    origin = read_recipe(out)["source"]
    assert np.abs(np.array(origin["photo"]["center"]) - [260, 230]).max() < 15
    assert origin["psnr"][0] > 18
    with pytest.raises(UserError, match=r"^\S*edited\.png is the edit of the photo 'photo\.png'"):
        editor.replay(out)
    with pytest.raises(UserError, match=r"^\S*edited\.png is the edit of another photo"):
        editor.replay(out, Image.fromarray(255 - before))


def test_refinement_brings_the_picture_nearer_and_says_how_near(main, editor, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(invert, "lpips_available", lambda: True)
    monkeypatch.setattr(invert, "load_lpips", lambda device: lambda made, wanted: (made - wanted).abs().mean(dim=(1, 2, 3)))
    drawing = Image.fromarray(draw_faces(FaceParams.sample(1, seed=12)).images[0])          # its guess leaves much to do
    drawing.save(tmp_path / "a.png")
    out = main(tmp_path / "a.png", "--aligned", "--refine", 8, "--what", "beard", "--out", tmp_path / "b.png")
    origin = read_recipe(out)["source"]
    (before, after), (far, near) = origin["psnr"], origin["lpips"]
    assert after > before + 0.3 and near < far
    assert (f"a.png: inverted to {before:.1f} dB (LPIPS {far:.3f}), refined to {after:.1f} dB (LPIPS {near:.3f})\n"
            in capsys.readouterr().out)


def test_an_interrupted_refinement_keeps_the_best_so_far(editor, monkeypatch):
    image = torch.from_numpy(draw_faces(FaceParams.sample(1, seed=8)).images).permute(0, 3, 1, 2) / 127.5 - 1
    made = []

    def picture(styles):
        if len(made) == 6:
            raise KeyboardInterrupt
        with torch.autocast("cpu", enabled=False):          # pictures that can be told apart to 1e-4
            made.append(editor.world.generator.synthesis(styles)[0])
        return made[-1]

    generator = SimpleNamespace(picture=picture, styles=editor.world.generator.styles, style_dim=512,
                                n_latent=editor.world.generator.n_latent)
    faces = editor.world.sample_w(600, seed=0)
    start = editor.world.encoder(image)
    with pytest.warns(UserWarning, match="was interrupted; the best"):
        found = invert._refine([generator, generator], image, start, faces, 40, ())
    nearest = min(made, key=lambda picture: float((picture.detach() - image).square().mean()
                                                  + invert.slope_error(picture.detach(), image)))
    torch.testing.assert_close(editor.world.picture(found), nearest, atol=1e-4, rtol=0)


def test_the_first_two_thirds_of_a_refinement_go_by_smaller_pictures(editor):
    image, made = editor.open_seed(5).tensor, []
    generator = editor.world.generator

    def shows(size):
        def picture(styles):
            made.append(size)
            return area_resize(generator.picture(styles), size)
        return SimpleNamespace(picture=picture, styles=generator.styles, style_dim=512, n_latent=generator.n_latent)

    start = editor.world.sample_w(1, 5) + 0.1
    found = invert._refine([shows(32), shows(128)], image, start, editor.world.sample_w(600, seed=0), 9, ())
    assert made == [32] * 6 + [128] * 4                         # the guess once more, in the larger picture
    before, after = (psnr(editor.world.picture(w), image).item() for w in (start, found))
    assert after > before + 0.5


def test_few_steps_of_refinement_never_lead_away(editor):
    image, faces = editor.open_seed(5).tensor, editor.world.sample_w(600, seed=0)
    generator = editor.world.generator
    start = editor.world.sample_w(1, 5)                         # as near as can be: whatever a step does is worse
    for steps in (1, 2, 3):
        found = invert._refine([generator, generator], image, start, faces, steps, ())
        assert torch.equal(found, start[:, None].expand(found.shape))


def test_ctrl_c_ends_a_folder_with_the_picture_that_is_refined(main, tmp_path, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(draw_faces(FaceParams.sample(1, seed=8)).images[0]).convert("L").save(tmp_path / "in" / name)
    monkeypatch.setattr(invert, "fit", lambda *arguments: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)           # a shell's background ignores the signal
    try:
        with pytest.raises(KeyboardInterrupt):
            main(tmp_path / "in", "--aligned", "--refine", 4, "--what", "purple hair", "--out", tmp_path / "out")
    finally:
        signal.signal(signal.SIGINT, before)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    told = capsys.readouterr().err
    assert "note: a.png: the face is black and white" in told and "note: a.png: refinement was interrupted" in told
    assert "stopped at " in told and "in/a.png, picture 1 of 2" in told


def test_slopes_differ_by_what_neighbours_differ():
    made, wanted = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    down = [(made[:, :, y + 1] - made[:, :, y]) - (wanted[:, :, y + 1] - wanted[:, :, y]) for y in range(4)]
    across = [(made[..., x + 1] - made[..., x]) - (wanted[..., x + 1] - wanted[..., x]) for x in range(3)]
    expected = sum(torch.stack(part).square().mean() for part in (down, across))
    torch.testing.assert_close(invert.slope_error(made, wanted), expected)


def test_lpips_is_minimised_on_photographs_and_only_measured_on_drawings(editor, monkeypatch):
    # A distance that nothing else brings down: how far the mean is from white, whatever the picture.
    monkeypatch.setattr(invert, "lpips_available", lambda: True)
    monkeypatch.setattr(invert, "load_lpips", lambda device: lambda made, wanted: (1 - made).mean(dim=(1, 2, 3)))
    image = torch.from_numpy(draw_faces(FaceParams.sample(1, seed=8)).images).permute(0, 3, 1, 2) / 127.5 - 1
    drawings = editor.world
    photographs = World(replace(drawings.entry, perceptual="vgg16"), drawings.generator, drawings.generator_hash,
                        drawings.device)
    drawn, photograph = (world.invert(image, steps=4) for world in (drawings, photographs))
    assert drawn.lpips_before == photograph.lpips_before
    assert photograph.lpips_after < min(photograph.lpips_before, drawn.lpips_after) - 0.01


def test_a_large_picture_is_shrunk_before_lpips(editor, monkeypatch):
    shapes = []
    monkeypatch.setattr(invert, "load_lpips", lambda device: lambda *pictures: shapes.append([*map(np.shape, pictures)]))
    invert._small_lpips(torch.device("cpu"))(torch.zeros(1, 3, 512, 512), torch.zeros(1, 3, 128, 128))
    assert shapes == [[(1, 3, 256, 256), (1, 3, 128, 128)]]


def test_a_picture_can_say_what_to_change_to(main, editor, tmp_path):
    Image.fromarray(draw_faces(FaceParams.sample(1, seed=8), 256).images[0]).save(tmp_path / "other.png")
    out = main("--seed", 7, "--reference", tmp_path / "other.png", "--where", "hair", "--out", tmp_path / "a.png")
    assert "embedding" in read_recipe(out)["changes"][0]["what"]
    assert not np.array_equal(np.asarray(Image.open(out)), np.asarray(editor.open_seed(7).image))


def test_nothing_that_is_read_is_ever_overwritten(main, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    face = Image.fromarray(draw_faces(FaceParams.sample(1, seed=6)).images[0])
    for name in ("a.png", "a_grid.png", "other.png"):
        face.save(folder / name)
    (tmp_path / "link.png").symlink_to(folder / "a.png")
    (tmp_path / "hard.png").hardlink_to(folder / "a.png")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    edit = ("--aligned", "--what", "beard", "--run", tmp_path)              # no editor there: nothing is loaded
    for words in ((folder / "a.png", *edit, "--out", folder / "../in/a.png"),
                  (folder / "a.png", *edit, "--out", tmp_path / "link.png"),
                  (folder / "a.png", *edit, "--out", tmp_path / "hard.png"),
                  (folder / "a_grid.png", *edit, "--grid", "--out", folder / "a.png"),
                  ("--seed", 1, "--reference", folder / "other.png", "--run", tmp_path, "--out", folder / "other.png")):
        with pytest.raises(UserError, match="would overwrite"):
            main(*words)
    with pytest.raises(UserError, match="would be written twice"):
        main(folder, *edit, "--grid", "--out", tmp_path / "out")
    assert before == {path: path.read_bytes() for path in folder.iterdir()} and not (tmp_path / "out").exists()


def test_a_photo_is_not_overwritten_from_python_either(editor, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(draw_faces(FaceParams.sample(1, seed=6)).images[0]).save(path)
    edited = editor.open_photo(path, aligned=True).edit("beard")
    with pytest.raises(UserError, match=r"would overwrite \S*a\.png"):
        edited.save(tmp_path / "../" / tmp_path.name / "a.png")
    edited.save(tmp_path / "b.png")
    editor.replay(tmp_path / "b.png", path).save(tmp_path / "b.png")                     # its own recipe may be


def test_a_picture_of_others_is_replaced_only_if_that_is_said(main, editor, tmp_path):
    out, names = tmp_path / "a.png", ("a.png", "a_mask.png", "a_grid.png")
    words = ("--seed", 7, "--what", "beard", "--save_mask", "--grid", "--out", out)
    for name, content in zip(names, (b"a letter", None, b""), strict=True):
        if content is None:
            Image.new("RGB", (32, 32)).save(tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content)
        before = (tmp_path / name).read_bytes()
        with pytest.raises(UserError, match=rf"{name} is there already, was not written by Where2Edit.* by --overwrite"):
            main(*words)
        with pytest.raises(UserError, match=r"was not written by Where2Edit.* by overwrite=True"):
            editor.open_seed(7).save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before and len(list(tmp_path.iterdir())) == 1
        (tmp_path / name).rename(tmp_path / "kept")
        if name != names[-1]:
            (tmp_path / "kept").unlink()
    (tmp_path / "kept").rename(out)
    main(*words, "--overwrite")
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    main(*words)                                                         # its own pictures, unasked
    assert len(written) == 3 and all(path.stat().st_mtime_ns > time for path, time in written.items())


def test_a_pipe_in_the_place_of_a_picture_is_told_and_not_waited_for(main, tmp_path):
    os.mkfifo(tmp_path / "a_mask.png")
    with pytest.raises(UserError, match=r"a_mask\.png is there already, was not written by Where2Edit"):
        main("--seed", 7, "--what", "beard", "--save_mask", "--out", tmp_path / "a.png")


def test_of_a_folder_no_picture_of_others_is_replaced(main, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    face = Image.fromarray(draw_faces(FaceParams.sample(1, seed=6)).images[0])
    for path in ("in/a.jpg", "in/b.jpg", "out/b.png"):
        face.save(tmp_path / path)
    with pytest.raises(UserError, match=r"b\.png is there already"):
        main(tmp_path / "in", "--aligned", "--what", "beard", "--out", tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_an_edit_that_changes_nothing_says_so_and_why_once(main, tmp_path, capsys):
    for words, why in ((("--strength", 0), "the strength is 0"), (("--coverage", 0), "'lips' is nowhere in this face")):
        with pytest.warns(UserWarning) as told:
            main("--seed", 7, "--what", "red lipstick", "--where", "lips", *words, "--out", tmp_path / "a.png")
        assert [str(note.message)[:len(why) + 17] for note in told] == [f"nothing changed: {why}"]
        assert capsys.readouterr().out == f"wrote {tmp_path}/a.png\n"
    main("--seed", 7, "--what", "red lipstick", "--out", tmp_path / "a.png", "--save_mask", "--grid")
    names = ", ".join(f"{tmp_path}/a{name}.png" for name in ("", "_mask", "_grid"))
    assert capsys.readouterr().out == f"wrote {names}\n"


def test_a_picture_that_the_world_cannot_show_is_refused(editor):
    clouds = np.random.default_rng(0).integers(256, size=(4, 4, 3), dtype=np.uint8)
    others = {"clouds": Image.fromarray(clouds).resize((256, 256)), "white": Image.new("RGB", (256, 256), "white"),
              "upside down": Image.fromarray(draw_faces(FaceParams.sample(1, seed=6)).images[0][::-1])}
    for name, picture in others.items():
        with pytest.raises(UserError, match=r"does not look like the pictures of drawn: .* \d+\.\d dB, but at least"):
            pytest.fail(f"{name}: {editor.open_photo(picture, aligned=True).origin['psnr']}")


def test_of_a_folder_what_can_be_edited_is_and_the_rest_is_named(main, tmp_path, capsys):
    folder, odd = tmp_path / "in", b"caf\xe9.png".decode("utf-8", "surrogateescape")
    folder.mkdir()
    face = Image.fromarray(draw_faces(FaceParams.sample(1, seed=6)).images[0])
    good = ["a.png", "c.jpg", "d.JFIF", "e.avif", "f.jp2", "g.mpo", odd]
    for name in good:
        face.save(folder / name, format="JPEG" if name in ("d.JFIF", "g.mpo") else None)
    face.save(folder / "h.tif", save_all=True, append_images=[face], compression="tiff_deflate")
    (folder / "h.tif").write_bytes((folder / "h.tif").read_bytes()[:-300])
    (folder / "b.png").write_text("no picture")
    (folder / "i.heic").write_bytes(b"\0\0\0\x24ftypheic" + bytes(100))
    for name in ("notes.txt", "a.json", "movie.mov", ".hidden.png"):
        (folder / name).write_text("no picture either")
    with pytest.raises(UserError, match="would be overwritten"):
        main(folder, "--aligned", "--what", "grey hair", "--out", folder)
    with pytest.raises(UserError, match=r"4 of 11 pictures were passed over: movie\.mov, b\.png, h\.tif, i\.heic;"):
        main(folder, "--aligned", "--what", "grey hair", "--out", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(f"{Path(name).stem}.png" for name in good)
    told = capsys.readouterr().err
    assert all(f"in/{name}" in told for name in ("b.png cannot be read as a picture", "movie.mov: by its ending",
                                                 "h.tif cannot be read", "i.heic is a HEIC picture"))


@pytest.mark.parametrize("words, message", [
    (["--what", "beard"], "either a photo"), (["a.png", "--seed", "1", "--what", "beard"], "either a photo"),
    (["--seed", "1"], "say what to change"),
    (["--seed", "1", "--what", "beard", "--reference", "b.png"], "say what to change"),
    (["--seed", "1", "--what", "beard", "--out", "a.jpg"], r"a\.jpg, expected a name that ends in \.png"),
    (["nowhere.png", "--what", "beard"], r"nowhere\.png is missing"), (["--seed", "1", "--what", " "], "text is empty"),
    (["--seed", "1", "--what", "beard", "--strength", "2"], "--strength is 2"),
    (["--seed", "9" * 30, "--what", "beard"], "--seed is 999"),
    (["--seed", "1", "--what", "beard", "--aligned"], "about photos"),
    (["--seed", "1", "--what", "beard", "--face", "0"], "--face is about photos"),
    (["a.png", "--what", "beard", "--aligned", "--face", "0"], "--face says where .* --aligned"),
    (["a.png", "--what", "beard", "--aligned", "--landmarks", "b.json"], "--landmarks says where .* --aligned"),
    (["--seed", "1", "--reference", "nowhere.png"], r"nowhere\.png is missing"),
    (["--seed", "1", "--what", "beard", "--then", "red lipstick@"], "--then is 'red lipstick@', expected WHAT or WHAT@W"),
    (["--seed", "1", "--what", "beard", "--then", "glasses", "--then", "a@b@c"], "--then is 'a@b@c', expected"),
])
def test_mistakes_are_told_in_a_sentence_and_nothing_is_written(words, message, main, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        main(*words)
    assert not list(tmp_path.iterdir())


def test_pictures_that_would_have_one_name_are_refused(main, tmp_path):
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    with pytest.raises(UserError, match=r"differ only in their ending, but all edits end in \.png: a\.jpg, a\.png; rename"):
        main(tmp_path, "--what", "beard", "--aligned", "--out", tmp_path / "out")


def test_the_flags_have_the_defaults_of_python():
    config = command.EditConfig()
    assert (config.strength, config.coverage) == (STRENGTH, COVERAGE)
    with pytest.raises(UserError, match="--seed is 9"):
        command.EditConfig(seed=session.LARGEST_SEED + 1)


def test_an_editor_goes_by_its_folder_or_its_name_even_beside_a_folder_of_that_name(main, tmp_path, monkeypatch):
    (tmp_path / "drawn").mkdir()
    monkeypatch.chdir(tmp_path)
    for run in ("drawn", SHIPPED):
        main("--seed", 7, "--what", "beard", "--run", run, "--out", tmp_path / f"{Path(run).is_absolute()}.png")
    by_name, by_folder = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in (False, True))
    assert np.array_equal(by_name, by_folder)
    with pytest.raises(UserError, match="nowhere"):
        main("--seed", 7, "--what", "beard", "--run", "nowhere")


def test_an_empty_folder_is_told(main, tmp_path):
    with pytest.raises(UserError, match="holds no pictures"):
        main(tmp_path, "--what", "beard")


def test_pictures_need_a_face_a_frame_or_landmarks(editor, monkeypatch):
    wide = Image.new("RGB", (64, 32))
    for options in ({"face": 0}, {"landmarks": np.zeros((5, 2))}):
        with pytest.raises(UserError, match=f"aligned says .* but {next(iter(options))} says"):
            editor.open_photo(wide, aligned=True, **options)
    with pytest.raises(UserError, match="face is '1', expected the number of a face"):
        editor.open_photo(wide, face="1")
    with pytest.raises(UserError, match="framed already is square"):
        editor.open_photo(wide, aligned=True)
    with pytest.raises(UserError, match="no face was found"):
        editor.open_photo(wide, detect=lambda pixels: None)
    load_detector.cache_clear()
    monkeypatch.setitem(sys.modules, "dlib", None)                           # as if it were not installed
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"\(dlib and face_.*\); get it with: pip install .*\[photos\]\", or give the"):
        editor.open_photo(wide)
