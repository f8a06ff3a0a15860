"""How much of a strength suits a text: what is chosen, what is written, what an edit then does, and garbled tables."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from attention import calibrate
from attention.config import CalibrateConfig
from attention.editing.session import load_editor
from attention.errors import UserError
from attention.evaluation import calibration
from attention.evaluation.calibration import suiting
from attention.files.published import SHIPPED
from attention.files.safetensors import packed, read_safetensors, write_safetensors
from attention.generator import sample_z
from attention.training.runs import KIND, Calibration, load_run, write_calibration
from attention.worlds.registry import WORLDS

PROMPTS = ("purple hair", "beard")


@pytest.mark.parametrize("success, slack, taken", [
    ({0.5: 0.2, 1.0: 0.85, 2.0: 0.9}, 0.1, 1.0),                # nearly as good, and weaker
    ({0.5: 0.2, 1.0: 0.7, 2.0: 0.9}, 0.1, 2.0),
    ({0.5: 0.6, 1.0: 0.3, 2.0: 0.1}, 0.0, 0.5),                 # what overshoots
    ({0.5: 0.7, 1.0: 0.3, 2.0: 0.9}, 0.0, 0.5),                 # and what succeeds beyond that by no face
    ({0.5: 0.0, 1.0: 0.0}, 0.1, 1.0),                           # nothing is known of what never succeeds
    ({}, 0.1, 1.0)])             # no face lacked it
def test_the_least_is_taken_that_is_nearly_as_good_as_the_best(success, slack, taken):
    assert suiting(success, slack) == taken


def test_what_suits_a_prompt_becomes_a_part_of_the_editor_and_can_be_taken_away(tmp_path, monkeypatch, capsys):
    path = tmp_path / "editor.safetensors"
    tensors, metadata = read_safetensors(SHIPPED / "editor.safetensors", KIND, "")
    regions = {name: tensors.pop(name) for name in list(tensors) if name.startswith("regions.")}
    write_safetensors(path, {**packed(tensors), **regions}, metadata)                   # as editors are shipped
    plain, _, _ = load_run(tmp_path, "cpu")
    whole = path.read_bytes()
    monkeypatch.setitem(WORLDS, "drawn", replace(WORLDS["drawn"], prompts=PROMPTS))
    monkeypatch.setattr(calibration, "SHARES", (0.05, 0.8, 1.0))
    monkeypatch.setattr(calibration, "KEPT_BELOW", (0,))
    assert calibrate.main(["--run", str(tmp_path), "--faces", "4", "--device", "cpu"]) == path
    assert capsys.readouterr().out.count("| purple hair |") == 2                        # its place, and its strength
    _, metadata = read_safetensors(path, KIND, "")
    amounts = json.loads(metadata["amounts"])
    assert amounts["purple hair"] == 0.8 and set(amounts) == set(PROMPTS)              # a twentieth shows nothing
    offsets = json.loads(metadata["offsets"])
    assert set(offsets) == {"purple hair", "hair", "beard", "chin"}
    assert all(set(json.loads(metadata[side])) == set(offsets) for side in ("above", "below"))
    assert weights_of(path.read_bytes()) == weights_of(whole)
    editor = load_editor(tmp_path, "cpu")
    what = editor.embed("purple hair")
    source = editor.open_seed(3).source
    moved, usual = (mapper(source.styles, what, 0.1)[0] - source.styles[0]
                    for mapper in (editor.region_editor.mapper, plain.mapper))
    assert float(moved.norm() / usual.norm()) == pytest.approx(0.8, rel=0.03)
    logits, usually = (attention(plain.generator.constant, source.features, what)
                       for attention in (editor.region_editor.attention, plain.attention))
    assert (logits - usually).mean().item() == pytest.approx(offsets["purple hair"], rel=0.03)
    assert editor.identity != load_editor("drawn", "cpu").identity              # a recipe belongs to what made it
    calibrated = path.read_bytes()
    calibrate.main(["--run", str(tmp_path), "--show"])
    assert "| purple hair | 0.8 |" in capsys.readouterr().out and path.read_bytes() == calibrated
    calibrate.main(["--run", str(tmp_path), "--forget"])
    assert path.read_bytes() == whole


def weights_of(file: bytes) -> bytes:
    return file[8 + int.from_bytes(file[:8], "little"):]


def test_the_offset_taken_is_that_of_the_best_overlap(monkeypatch):
    """Of an attention that is the true part itself, less a constant, the constant is found again."""
    monkeypatch.setitem(WORLDS, "drawn", replace(WORLDS["drawn"], prompts=("purple hair",)))
    editor, world, _ = load_run(SHIPPED, "cpu")
    z = sample_z(2, world.generator.style_dim, 5)
    faces, sources = world.truth.faces(z), [editor.source(w[None]) for w in world.w_from_z(z)]
    part = torch.nn.functional.adaptive_avg_pool2d(faces.part("purple hair").float(), editor.attention.map_size)[:, None]
    shown = iter(part.split(1))
    monkeypatch.setattr(editor.attention, "forward", lambda constant, features, text: (
        torch.where(next(shown) > 0.5, -2.0, -20.0).expand(len(text), -1, -1, -1)))
    config = CalibrateConfig()
    found = calibration.overlaps(editor, world, sources, faces, config)["purple hair", "purple hair"]
    assert found[0.0] == 0                                                      # sigmoid(-2) is far below the gate
    assert max(found, key=found.__getitem__) + -2 >= 1.38                       # the gate's own logit


def test_a_text_lies_between_the_rows_in_which_any_face_has_its_part():
    """Eyes are seen in rows 2 to 4 of 10 and 3 to 6, by "big eyes" no farther than 5; no face shows a tail."""
    parts = {prompt: torch.zeros(2, 10, 10, dtype=torch.bool) for prompt in ("big eyes", "blue eyes", "long tail", "bald")}
    parts["blue eyes"][0, 2:5, 4], parts["blue eyes"][1, 3:7, 2], parts["big eyes"][:, 3:6, 3] = True, True, True
    parts["bald"][0, :4] = True
    world = SimpleNamespace(prompts=tuple(parts), truth=SimpleNamespace(part_name=lambda prompt: prompt.split()[-1]))
    above, below = calibration.rows_of(world, SimpleNamespace(part=parts.__getitem__))
    assert above == {"big eyes": 0.3, "eyes": 0.2, "blue eyes": 0.2, "long tail": 0, "tail": 0, "bald": 0}
    assert below == {"big eyes": 0.4, "eyes": 0.3, "blue eyes": 0.3, "long tail": 0, "tail": 0, "bald": 0.6}


def test_the_narrowest_gate_is_taken_that_overlaps_nearly_as_well_as_the_best():
    assert calibration.reaching({-1.0: 0.3, 0.0: 0.572, 1.0: 0.6, 2.0: 0.595}) == 0.0
    assert calibration.reaching({-1.0: 0.3, 0.0: 0.568, 1.0: 0.6, 2.0: 0.595}) == 1.0


def test_a_prompt_is_read_as_its_parts_name_where_that_finds_the_part_better():
    prompts = ("red lipstick", "pink lipstick")
    world = SimpleNamespace(prompts=prompts, truth=SimpleNamespace(part_name=lambda prompt: "lips"))
    overlap = {("lips", "red lipstick"): {0.0: 0.46}, ("red lipstick",) * 2: {0.0: 0.43},
               ("lips", "pink lipstick"): {0.0: 0.44}, ("pink lipstick",) * 2: {0.0: 0.3}}
    assert calibration.better_named(overlap, world) == {"pink lipstick": "lips"}
    assert calibration.by_texts(overlap)["lips"][0.0] == pytest.approx(0.45)


def test_a_text_that_is_read_as_another_is_where_that_one_is_and_what_it_says_stays(tmp_path):
    path = tmp_path / "editor.safetensors"
    tensors, metadata = read_safetensors(SHIPPED / "editor.safetensors", KIND, "")
    write_safetensors(path, tensors, metadata)
    plain, world, _ = load_run(tmp_path, "cpu")
    write_calibration(path, Calibration(offsets={"beard": 0.5, "hair": -1}, places={"beard": "hair"}))
    moved, _, _ = load_run(tmp_path, "cpu")
    source = plain.source(world.sample_w(1, 3))
    beard, hair, glasses = world.clip.encode_text(["beard", "hair", "glasses"]).split(1)
    found, named, own, other, same = (editor.attention(editor.generator.constant, source.features, text) for editor, text in
                                      ((moved, beard), (plain, hair), (plain, beard), (moved, glasses), (plain, glasses)))
    assert (found - (named + 0.5)).abs().mean() < 0.05 * (own - named).abs().mean()         # by its own offset
    assert (other - same).abs().max() < 1e-3 * same.abs().max()
    assert all(torch.equal(*pair) for pair in zip(moved.mapper(source.styles, beard, 0.1),
                                                  plain.mapper(source.styles, beard, 0.1), strict=True))


@pytest.mark.parametrize("shares, share", [({}, 0.4), ({"beard": 0.7, "hair": 0.1}, 0.7)])
def test_a_text_that_is_changed_toward_another_gets_what_both_would_say(shares, share, tmp_path):
    """The mapper's own change by so much of the other embedding and the rest of its own, at its own place."""
    path = tmp_path / "editor.safetensors"
    tensors, metadata = read_safetensors(SHIPPED / "editor.safetensors", KIND, "")
    write_safetensors(path, tensors, metadata)
    plain, world, _ = load_run(tmp_path, "cpu")
    write_calibration(path, Calibration(toward={"beard": "glasses"}, shares=shares))
    moved, _, _ = load_run(tmp_path, "cpu")
    source = plain.source(world.sample_w(1, 3))
    beard, glasses, hair = world.clip.encode_text(["beard", "glasses", "purple hair"]).split(1)
    both = torch.nn.functional.normalize((1 - share) * beard + share * glasses) * glasses.norm()
    before = torch.cat(source.styles, dim=1)
    pairs = ((moved, beard), (plain, both), (plain, beard), (moved, hair), (plain, hair))
    changed, wanted, own, other, same = (torch.cat(editor.mapper(source.styles, text, 0.1), dim=1) - before
                                         for editor, text in pairs)
    assert (changed - wanted).norm() < 0.05 * (own - wanted).norm()
    assert (other - same).norm() < 0.02 * same.norm()
    assert torch.equal(moved.locate(source, beard).raw, plain.locate(source, beard).raw)


@pytest.mark.parametrize("least, taken", [(0.6, (0.45, 0.8)), (1.6, (2.0, 0.8)), (9.0, (1.0, 0.87))])
def test_amount_and_enough_are_those_that_move_faces_least_and_give_them_what_they_lack(least, taken):
    """Gains that rise straight up to a share of 1.7, so that of an amount a up to 1 a share e is had at 1.7 a e; a share is
    nearest to 0.6 from 0.52 on, to 1.6 from 1.442 on, which 1.456 comes nearest to: 0.8 on the line from 1.2 to 2. Nothing
    is known of what never succeeds."""
    shares = torch.tensor(calibration.SHARES)
    held = (shares >= least).numpy()
    tried = calibration.Tried(held[None].repeat(3, axis=0), (shares / 1.7).clamp(max=1).expand(3, -1))
    assert calibration.dosing(tried, 0.05) == taken
    assert tried.success == dict(zip(calibration.SHARES, held.astype(float), strict=True))


def test_an_amount_beyond_which_success_falls_is_not_taken_for_what_succeeds_again():
    shares = torch.tensor(calibration.SHARES)
    held = ((shares == 0.45) | (shares >= 1.3)).numpy()
    held = np.stack([held, (shares >= 1.3).numpy()])                            # 0.5 at 0.45, 1 from 1.3 on
    amount, _ = calibration.dosing(calibration.Tried(held, shares.expand(2, -1)), 0.05)
    assert amount <= 0.45


def test_layers_that_suit_a_text_unchanged_stay_so_when_the_editor_is_loaded(tmp_path):
    path = tmp_path / "editor.safetensors"
    tensors, metadata = read_safetensors(SHIPPED / "editor.safetensors", KIND, "")
    write_safetensors(path, tensors, metadata)
    write_calibration(path, Calibration(kept={"beard": 2}, kept_last={"beard": 1}))
    editor, world, _ = load_run(tmp_path, "cpu")
    source = editor.source(world.sample_w(1, 3))
    moved = editor.mapper(source.styles, world.clip.encode_text(["beard"]), 0.1)
    kept = [torch.equal(style, after) for style, after in zip(source.styles, moved, strict=True)]
    assert kept == [not 2 <= layer < len(editor.edited) - 1 for layer in range(len(kept))]


def tried(success: dict[float, float]) -> calibration.Tried:
    """Four faces whose success by share is this, else none; their gains rise straight up to a share of 1.7."""
    shares = torch.tensor(calibration.SHARES)
    wanted = torch.tensor([success.get(round(share, 2), 0.0) for share in shares.tolist()])
    return calibration.Tried((torch.arange(4)[:, None] < 4 * wanted).numpy(), (shares / 1.7).clamp(max=1).expand(4, -1))


@pytest.mark.parametrize("dosed", [False, True])
@pytest.mark.parametrize("by_kept, taken", [
    ({0: {1.0: 1.0}, 4: {2.0: 1.0}, 7: {2.0: 0.75}}, 4),        # as good, of which it changes least
    ({0: {1.0: 1.0}, 4: {2.0: 0.75}}, 0),
    ({0: {1.0: 0.5}, 4: {0.3: 0.75}}, 4),
    ({0: {}, 4: {}}, 0), ({}, 0)])                              # nothing is known
def test_as_many_layers_are_kept_as_success_allows(by_kept, taken, dosed):
    found = calibration.suit({kept: tried(success) for kept, success in by_kept.items()}, 0.05, dosed)
    assert found.kept == taken and (found.enough is not None) == (dosed and bool(by_kept))
    assert dosed or found.amount == (min(by_kept[taken]) if any(by_kept.values()) else 1.0)


def test_every_prompt_is_tried_without_coarse_layers_and_what_was_kept_is_written(tmp_path, monkeypatch, capsys):
    """Hair succeeds either way, a beard with all layers alone."""
    tensors, metadata = read_safetensors(SHIPPED / "editor.safetensors", KIND, "")
    write_safetensors(tmp_path / "editor.safetensors", tensors, metadata)
    write_calibration(tmp_path / "editor.safetensors", Calibration(kept_last={"beard": 1.0}, spared={"beard": 0.5},
                                                                     structure={"beard": 1.0}, reach={"beard": 2.0},
                                                                     surer={"beard": 1.5}))
    monkeypatch.setitem(WORLDS, "drawn", replace(WORLDS["drawn"], prompts=PROMPTS))
    monkeypatch.setattr(calibration, "OFFSETS", (0.0,))
    seen = []

    def measured(editor, world, sources, faces, config):
        kept = editor.mapper.kept(world.clip.encode_text(list(PROMPTS))).round().flatten().tolist()
        seen.append(kept)
        return {"purple hair": tried({1.3: 1.0}), "beard": tried({0.6: 0.25 if kept[1] else 1.0})}

    monkeypatch.setattr(calibration, "at_all_shares", measured)
    path = calibrate.main(["--run", str(tmp_path), "--faces", "1", "--device", "cpu"])
    coarse = calibration.kept_counts(load_run(tmp_path, "cpu")[0].edited)[1]
    assert seen == [[0, 0], [coarse, coarse]]
    _, metadata = read_safetensors(path, KIND, "")
    assert json.loads(metadata["kept"]) == {"purple hair": coarse}
    assert json.loads(metadata["kept_last"]) == {"beard": 1}                    # set by hand, which nothing here measures
    for name, number in {"spared": 0.5, "structure": 1, "reach": 2, "surer": 1.5}.items():
        assert json.loads(metadata[name]) == {"beard": number}
    assert json.loads(metadata["amounts"]) == {"purple hair": 1.3, "beard": 0.6}
    assert "layers kept" in capsys.readouterr().out


def test_layers_are_tried_without_those_of_small_maps():
    editor, _, _ = load_run(SHIPPED, "cpu")
    nothing, coarse = calibration.kept_counts(editor.edited)
    assert nothing == 0 and editor.edited[coarse - 1].resolution == 8 and editor.edited[coarse].resolution == 16


@pytest.mark.parametrize("table", [name for name in Calibration._fields if name not in ("places", "toward")])
@pytest.mark.parametrize("said", ["{", "[]", '{"a": "b"}', '{"a": NaN}', '{"a": 1e9}', '{"a": true}', '{"a": -30}'])
def test_a_garbled_table_is_refused_with_its_file(said, table, tmp_path):
    path = tmp_path / "editor.safetensors"
    tensors, metadata = read_safetensors(SHIPPED / "editor.safetensors", KIND, "")
    write_safetensors(path, tensors, {**metadata, table: said})
    with pytest.raises(UserError, match=r"editor\.safetensors was made by another version"):
        load_run(tmp_path, "cpu")


@pytest.mark.parametrize("said", ["{", "[]", '{"a": 1}', '{"a": ""}', '{"a": null}', '{"a": ["b"]}',
                                  json.dumps({"a": "b" * 1000})])
@pytest.mark.parametrize("table", ["places", "toward"])
def test_garbled_texts_are_refused_with_their_file(said, table, tmp_path):
    test_a_garbled_table_is_refused_with_its_file(said, table, tmp_path)


def test_a_folder_without_an_editor_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^--run \S+ holds no editor\.safetensors"):
        calibrate.main(["--run", str(tmp_path)])
