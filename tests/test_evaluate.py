"""The evaluation of a run of drawn faces, end to end; the truth that it is held against, by naive loops."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from attention import evaluate
from attention.errors import UserError
from attention.evaluation import generated
from attention.evaluation.kept import Kept
from attention.evaluation.metrics import METRICS, grow
from attention.evaluation.regions import best_union
from attention.evaluation.reports import refuse_fewer, refuse_others
from attention.files.published import SHIPPED
from attention.method.dose import Judge
from attention.method.spatial_attention import threshold_for
from attention.training.runs import load_run
from attention.worlds.drawn.concepts import BY_PHRASE
from attention.worlds.drawn.faces import FaceParams, draw_faces
from attention.worlds.drawn.truth import true_part
from attention.worlds.registry import WORLDS

PROMPTS = ("purple hair", "big nose", "glasses")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with the shipped editor, evaluated on three prompts and faces at two strengths, of which one is 0."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copyfile(SHIPPED / "editor.safetensors", folder / "editor.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WORLDS, "drawn", replace(WORLDS["drawn"], prompts=PROMPTS))
        evaluate.main(["--run", str(folder), "--faces", "3", "--strengths", "0", "--strength", "0.1"])
    return folder


@pytest.fixture(scope="module")
def report(run):
    return json.loads((run / "metrics.json").read_text())


def test_the_report_has_every_prompt_at_every_strength(report):
    assert [row["strength"] for row in report["sweep"]] == [0, 0.1]
    assert all(tuple(row["prompts"]) == PROMPTS for row in report["sweep"])
    assert report["prompts"] == report["sweep"][1]["prompts"] and report["mean"] == report["sweep"][1]["mean"]


def test_strength_zero_changes_nothing_and_the_default_succeeds_in_the_right_place(report):
    nothing, edits = (row["mean"] for row in report["sweep"])
    assert nothing["success"] == nothing["collateral"] == 0 and nothing["psnr_outside"] == 80
    assert edits["success"] > 0.5 and edits["clip_gain"] > 0.1 and edits["psnr_outside"] > 35
    assert edits["change_inside"] > 20 * edits["change_outside"] and edits["iou"] == nothing["iou"] > 0.3


def test_a_shipped_editor_is_measured_by_its_name_and_nothing_is_written_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(WORLDS, "drawn", replace(WORLDS["drawn"], prompts=PROMPTS[:1]))
    shipped = sorted(path.name for path in SHIPPED.iterdir())
    written = evaluate.main(["--run", "drawn", "--faces", "1", "--strengths", "0.1"])
    assert written.resolve() == tmp_path / "runs/drawn-shipped/metrics.json" and written.exists()
    assert sorted(path.name for path in SHIPPED.iterdir()) == shipped


def test_the_page_shows_the_figures_of_the_report(run, report):
    lines = (run / "metrics.md").read_text().splitlines()
    row = report["prompts"]["big nose"]
    shown = next(line for line in lines if line.startswith("| big nose |")).split(" | ")
    assert shown[1:5] == [f"{row['success']:.2f}" if row["faces"] else "-", f"{row['faces']}",
                          f"{row['collateral']:.3f}", f"{row['psnr_outside']:.1f}"]
    assert sum(line.startswith("| strength |") for line in lines) == 1


def test_the_pictures_are_whole_and_nothing_half_written_is_left(run):
    assert {path.name for path in run.iterdir()} == {"editor.safetensors", "metrics.json", "metrics.md", "edits.png",
                                                     "sweep.png"}
    for name in ("edits.png", "sweep.png"):
        Image.open(run / name).load()


def evaluated(folder, prompts=PROMPTS):
    """What the same evaluation as that of `run` says in another folder."""
    shutil.copyfile(SHIPPED / "editor.safetensors", folder / "editor.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WORLDS, "drawn", replace(WORLDS["drawn"], prompts=prompts))
        path = evaluate.main(["--run", str(folder), "--faces", "3", "--strengths", "0", "--strength", "0.1"])
    return json.loads(path.read_text())


def test_an_evaluation_that_was_stopped_goes_on_with_the_same_command(report, tmp_path, monkeypatch, capsys):
    real, asked = generated.measure, []

    def stops(before, after, gated, about, *others):
        asked.append(about.prompt)
        if len(asked) == 4:                                                     # in the middle of the second prompt
            raise KeyboardInterrupt
        return real(before, after, gated, about, *others)

    monkeypatch.setattr(generated, "measure", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path)
    whole = evaluated(tmp_path)
    assert asked[4:] == [prompt for prompt in PROMPTS[1:] for _ in range(2)]
    assert "going on after 1 prompts that a stopped evaluation has measured" in capsys.readouterr().err
    assert {name: whole[name] for name in ("prompts", "sweep", "mean")} == {
        name: report[name] for name in ("prompts", "sweep", "mean")}
    assert not list(tmp_path.glob("figures-*"))


def test_what_a_stopped_evaluation_left_is_of_its_own_settings_and_named_if_it_is_garbled(tmp_path):
    kept, figures = Kept.of(tmp_path, {"faces": 3}), {**dict.fromkeys(METRICS, 0.5), "iou": None}
    kept.of_block(0).add("beard", {0.1: figures})
    assert Kept.of(tmp_path, {"faces": 4}).of_block(0).figures == {}
    again = Kept.of(tmp_path, {"faces": 3})
    assert again.of_block(0).figures == {"beard": {0.1: figures}} and again.of_block(1).figures == {}
    for text in ("", "{", "[]", '{"blocks": {"0": {"beard": {"0.1": {"iou": "high"}}}}}',
                 '{"blocks": {"0": {"beard": {"0.1": {"iou": NaN}}}}}',
                 '{"blocks": {"0": {"beard": {"0.1": {"iou": 0.5}}}}}'):
        kept.path.write_text(text)
        with pytest.raises(UserError, match=rf"{kept.path.name}.*delete it, and all is measured anew"):
            Kept.of(tmp_path, {"faces": 3})


def test_blocks_of_faces_have_the_figures_of_all_together(report, tmp_path, monkeypatch):
    monkeypatch.setattr(generated, "BLOCK", 2)
    divided = evaluated(tmp_path)
    assert divided["reader_balanced_accuracy"] == report["reader_balanced_accuracy"]
    for prompt, figures in report["prompts"].items():
        known = {name: value for name, value in figures.items()
                 if value is not None and not name.startswith("change")}                 # which are of pixels, not of faces
        mixed = {name: divided["prompts"][prompt][name] for name in known}
        assert mixed == pytest.approx(known, rel=2e-3, abs=1e-4), prompt


def test_the_seconds_are_the_median_without_the_run_that_warms_up(monkeypatch):
    clock, waits = [0.0], iter([99, 5, 1, 9, 2, 8, 3, 7, 4, 6])

    def action():
        clock[0] += next(waits)

    monkeypatch.setattr(generated.time, "perf_counter", lambda: clock[0])
    assert generated.median_seconds(action) == 5


@torch.no_grad()
def test_edits_inside_stored_masks_are_the_editors_own():
    editor, world, _ = load_run(SHIPPED)
    editor.judge = Judge(world.clip.encode_image, world.generator)                          # as in worlds that are dosed
    sources = [editor.source(w) for w in world.sample_w(3, seed=5).split(2)]
    places = generated.locate(editor, world, sources, "red hair", coverage=0.8)
    doses = generated.suited(editor, world, sources, places, "red hair", "fp32")
    edits = generated.edited(editor, world, sources, places, doses, "red hair", 0.2, "fp32")
    text = world.clip.encode_text(["red hair"])
    for source, place, images in zip(sources, places, edits.split(2), strict=True):
        texts = text.expand(len(source), -1)
        own = editor(source, texts, texts, 0.2, threshold_for(0.8))
        assert torch.equal(own.image, images) and torch.equal(own.place.gated, place.gated)


def test_a_wrong_list_of_strengths_is_one_sentence_with_an_example():
    for text in ("", "0.1,", "0.1;0.2", "0.1,x", "0.1,-0.1", "1.5", "nan"):
        with pytest.raises(UserError, match=r"--strengths is .*separated by commas, as in"):
            generated.parse_strengths(text)


def test_a_run_of_a_world_without_the_truth_is_refused_before_the_work(monkeypatch, tmp_path):
    shutil.copyfile(SHIPPED / "editor.safetensors", tmp_path / "editor.safetensors")
    monkeypatch.setitem(WORLDS, "drawn", replace(WORLDS["drawn"], truth=None))
    with pytest.raises(UserError, match=r"nothing is known of the faces of drawn .* it is known of drawn"):
        evaluate.main(["--run", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["editor.safetensors"]


def test_grow_equals_a_naive_loop():
    mask = torch.from_numpy(np.random.default_rng(0).random((2, 9, 9)) < 0.05)
    expected = torch.zeros_like(mask)
    for n, y, x in mask.nonzero().tolist():
        expected[n, max(0, y - 2):y + 3, max(0, x - 2):x + 3] = True
    assert torch.equal(grow(mask, 2), expected)


def test_the_best_union_of_regions_equals_trying_every_union():
    counts = np.random.default_rng(1).integers(0, 50, (6, 3))
    best = 0.0
    for chosen in range(1, 2**6):
        rows = [row for row in range(6) if chosen >> row & 1]
        inside, size = counts[rows, 1].sum(), counts[rows].sum()
        best = max(best, inside / (counts[:, 1].sum() + size - inside))
    assert abs(best_union(counts, 1) - best) < 1e-12


def test_the_true_part_of_a_hair_colour_is_the_drawn_hair():
    params = FaceParams.sample(8, seed=5)
    concept = BY_PHRASE["blonde hair"]
    part, hair = true_part(params, concept), draw_faces(params).mask("hair")
    assert (part & hair).sum() == hair.sum() and part.sum() < 1.1 * hair.sum()


def test_the_true_part_of_glasses_covers_every_pixel_that_putting_them_on_changes():
    params = FaceParams.sample(8, seed=6)
    concept = BY_PHRASE["glasses"]
    before, after = draw_faces(params).images, draw_faces(concept.apply(params)).images
    changed = np.abs(before.astype(int) - after).max(axis=3) > 16
    assert not (changed & ~true_part(params, concept)).any()


def test_results_of_somebody_else_are_not_replaced(tmp_path):
    def refuse(run, photos):
        refuse_others(tmp_path, ("metrics.json", "edits.png"), {"run": run, "photos": photos}, "--results")

    refuse("runs/a", "in")
    (tmp_path / "metrics.json").write_text('{"run": "runs/a", "photos": "in"}')
    refuse("runs/a", "in")
    for run, photos, whose in (("runs/b", "in", "runs/a"), ("runs/a", "out", "in")):
        with pytest.raises(UserError, match=rf"has metrics\.json, which is of an evaluation of {whose} and would be"):
            refuse(run, photos)
    (tmp_path / "metrics.json").unlink()
    (tmp_path / "edits.png").touch()
    with pytest.raises(UserError, match=r"has edits\.png, which is of no evaluation and would be replaced; .*--results"):
        refuse("runs/a", "in")


def test_figures_of_more_faces_are_not_replaced_by_those_of_fewer(tmp_path):
    refuse_fewer(tmp_path, 8)
    (tmp_path / "metrics.json").write_text('{"faces": 32}')
    refuse_fewer(tmp_path, 32)
    refuse_fewer(tmp_path, 256)
    with pytest.raises(UserError, match=r"metrics\.json is of 32 faces and would be replaced by .* of 8; .*--faces 32"):
        refuse_fewer(tmp_path, 8)
    (tmp_path / "metrics.json").write_text("[]")
    refuse_fewer(tmp_path, 8)
