"""Editors are rated by edits that lie among each other without names, and what judges say is read with care."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from attention.errors import UserError
from attention.files.published import ROOT
from benchmarks import rated
from benchmarks.judged import JUDGES

SAID = {str(number): [number % 3, 1 + number % 5] for number in range(6)}


def drawn(folder):
    """Edits by two names of three faces, each of its own brightness, and their sheets."""
    edits = folder / "edits" / "red_hair"
    edits.mkdir(parents=True)
    for number, (name, face) in enumerate((name, face) for name in ("after", "before") for face in (0, 2, 11)):
        Image.new("RGB", (rated.SIDE, rated.SIDE), (40 * number + 20,) * 3).save(edits / f"{face}_{name}.png")
    rated.main(["--out", str(folder)])
    return json.loads((folder / "keys.json").read_text())["red hair"]


def test_every_edit_lies_once_on_the_sheets_where_the_keys_say(tmp_path):
    keys = drawn(tmp_path)
    assert sorted(map(tuple, keys)) == [(name, face) for name in ("after", "before") for face in ("0", "11", "2")]
    assert keys != sorted(keys)                                                         # in no order
    sheet = np.asarray(Image.open(tmp_path / "red_hair/sheet_00.png"))
    for number, (name, face) in enumerate(keys):
        row, column = rated.SIDE * (number // 3) + rated.SIDE // 2, rated.SIDE * (number % 3) + rated.SIDE // 2
        shown = np.asarray(Image.open(tmp_path / f"edits/red_hair/{face}_{name}.png"))
        assert (sheet[row, column] == shown[0, 0]).all()


def test_the_table_has_the_means_of_what_two_judges_say(tmp_path, capsys):
    keys = drawn(tmp_path)
    for judge, more in zip(JUDGES, (0.0, 0.5), strict=True):
        (tmp_path / "red_hair" / judge).write_text(json.dumps({number: [so, min(photo + more, 5)]
                                                               for number, (so, photo) in SAID.items()}))
    told = rated.main(["--out", str(tmp_path)]).read_text()
    found = json.loads((tmp_path / "rated.json").read_text())["red hair"]
    for name in ("after", "before"):
        numbers = [number for number, (of, _) in enumerate(keys) if of == name]
        assert list(found[name]) == [keys[number][1] for number in numbers]
        so = np.mean([number % 3 for number in numbers])
        photo = np.mean([[1 + number % 5, min(1.5 + number % 5, 5)] for number in numbers])
        good = np.mean([[number % 5 == 3 or number % 5 == 4, number % 5 >= 2.5] for number in numbers])
        assert f"| red hair, {name} | 3 | {so:.2f} | {photo:.2f} | {good:.2f} |" in told
        assert f"| **all**, {name} | 3 | {so:.2f} | {photo:.2f} | {good:.2f} |" in told


@pytest.mark.parametrize("said", [None, "no JSON", {}, [], {**SAID, "5": [3, 1]}, {**SAID, "5": [1, 0]}, {**SAID, "5": [1]},
                                  {**SAID, "5": [1, float("nan")]}, {**SAID, "5": "13"}, {**SAID, "6": [1, 1]}])
def test_a_rating_that_lacks_something_is_told(said, tmp_path):
    drawn(tmp_path)
    for judge in JUDGES:
        (tmp_path / "red_hair" / judge).write_text(json.dumps(SAID))
    second = tmp_path / "red_hair" / JUDGES[1]
    second.unlink() if said is None else second.write_text(said if isinstance(said, str) else json.dumps(said))
    with pytest.raises(UserError, match=re.escape(JUDGES[1])):
        rated.main(["--out", str(tmp_path)])
    assert not (tmp_path / "rated.json").exists()


@pytest.mark.parametrize("asked, told", [(["--name", "A/b"], "--name is"), ([], "no edits are"),
                                         (["--name", "a", "--prompts", "green hair"], "green hair"),
                                         (["--name", "a", "--photos", "nowhere"], "--photos is nowhere")])
def test_what_cannot_be_drawn_or_mixed_is_told(asked, told, tmp_path):
    with pytest.raises(UserError, match=told):
        rated.main(["--out", str(tmp_path), *asked])


def test_a_folder_s_pictures_are_its_photos_in_order(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in rated.photos_in(tmp_path)] == ["a.JPG", "b.png"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"red hair": []}', '{"green hair": [["a", "1"]]}',
                                  '{"red hair": [["a"]]}', '{"red hair": [["a", 1]]}', '{"red hair": 3}'])
def test_damaged_keys_are_told(text, tmp_path):
    drawn(tmp_path)
    (tmp_path / "keys.json").write_text(text)
    with pytest.raises(UserError, match=r"keys\.json is not what"):
        rated.main(["--out", str(tmp_path)])


def test_a_damaged_edit_is_told_and_a_prompt_without_edits_is_left_out(tmp_path):
    (tmp_path / "edits" / "grey_hair").mkdir(parents=True)
    drawn(tmp_path)
    assert list(json.loads((tmp_path / "keys.json").read_text())) == ["red hair"]
    (tmp_path / "keys.json").unlink()
    edit = tmp_path / "edits/red_hair/2_after.png"
    edit.write_bytes(edit.read_bytes()[:60])
    with pytest.raises(UserError, match=r"2_after\.png"):
        rated.main(["--out", str(tmp_path)])
    assert not (tmp_path / "keys.json").exists()


def test_the_documented_means_are_those_of_the_table():
    told = rated.table(json.loads((ROOT / "benchmarks/results/faces/rated_shipped.json").read_text()))
    rows = {line.split(" | ")[0]: line.split(" | ") for line in told.splitlines()}
    after, before = (rows[f"| **all**, {name}"] for name in ("after", "before"))
    text = (ROOT / "docs/faces.md").read_text()
    good, good_before = (row[4].removesuffix(" |") for row in (after, before))
    assert f"Like a photograph {after[3]} in the mean, {before[3]} before" in text
    assert f"4 and more {good} of them, {good_before} before" in text and f"so {after[2]} and {before[2]}" in text


def test_the_documented_means_without_a_gate_with_hysteresis_and_of_layers_left_alone_are_those_that_were_rated():
    folder, text = ROOT / "benchmarks/results/faces", (ROOT / "docs/faces.md").read_text()
    sure = rated.table(json.loads((folder / "rated_sure.json").read_text())).splitlines()
    after, before = (next(line for line in sure if line.startswith(f"| **all**, {name} |")).split(" | ")
                     for name in ("after", "before"))
    assert f"Like a photograph {after[3]} in the mean, {before[3]} without; 4 and more {after[4][:4]} of the" in text
    assert f"of the ratings, {before[4][:4]} without" in text
    layers = json.loads((folder / "rated_layers.json").read_text())
    (red, grey, blonde) = ({name: f"{np.mean([mark[1] for face in faces.values() for mark in face]):.2f}"
                            for name, faces in layers[hair].items()} for hair in ("red hair", "grey hair", "blonde hair"))
    assert f"rated {red['seven']} in place of {red['shipped']}" in text
    assert f"with eight {grey['six']} in place of {grey['shipped']}" in text
    assert f"with six {blonde['six']} of {blonde['shipped']}, with seven {blonde['seven']}" in text


def test_edits_that_are_mixed_already_stay_as_they_are(tmp_path):
    drawn(tmp_path)
    with pytest.raises(UserError, match="mixed already"):
        rated.main(["--out", str(tmp_path), "--name", "other"])


def test_a_tile_shows_what_is_round_a_part_and_nothing_beyond_the_picture():
    pixels = np.zeros((512, 512, 3), np.uint8)
    pixels[200:240, 300:400] = 255
    part = np.zeros((128, 128), bool)
    part[50:60, 75:100] = True
    shown = np.asarray(rated.tile(pixels, part))
    wide = 2 * rated.ROUND * 24 * 4                                                     # pixels of the picture
    assert shown.shape == (rated.SIDE, rated.SIDE, 3)
    assert (shown[..., 0] > 127).mean() == pytest.approx(40 * 100 / wide**2, abs=0.02)
    part[:, :] = True
    assert np.asarray(rated.tile(pixels, part)).mean() == pytest.approx(pixels.mean(), rel=0.05)


@pytest.mark.parametrize("name", ["rated_shipped", "rated_matted", "rated_matted_narrow", "rated_rows", "rated_rows_first",
                                  "rated_sure"])
def test_the_documented_ratings_are_the_means_of_what_was_rated(name):
    found = json.loads((ROOT / f"benchmarks/results/faces/{name}.json").read_text())
    text = (ROOT / "docs/faces.md").read_text()
    for prompt, names in found.items():
        marks = ([mark for face in names[editor].values() for mark in face] for editor in ("after", "before"))
        (so, photo), (so_before, photo_before) = (np.mean(of, axis=0) for of in marks)
        faces = len(names["after"])
        assert f"| {prompt} | {faces} | {so:.2f}, {so_before:.2f} | {photo:.2f}, {photo_before:.2f} |" in text, prompt
