"""The comparison of methods: who preserves more at equal success, and the command itself."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from attention.errors import UserError
from attention.files.published import ROOT
from attention.files.safetensors import write_safetensors
from attention.method.losses import TERMS
from attention.worlds.registry import WORLDS
from benchmarks import ablations, compare


def entry(points, given_mask=False):
    """A method's report with one prompt, its (success, PSNR) at rising strengths; the other measures say the same."""
    return {"given_mask": given_mask, "sweep": [
        {"prompts": {"beard": {"success": success, "psnr_outside": psnr, "mse_outside": 10 ** (-psnr / 10)}}}
        for success, psnr in points]}


def test_preservation_at_a_success_is_read_off_the_line_between_two_strengths():
    points = [(0.0, 80.0), (0.5, 60.0), (1.0, 30.0)]
    assert compare.preserved_at(0.75, points) == pytest.approx(45.0)
    assert compare.preserved_at(0.25, points) == pytest.approx(70.0)
    assert compare.preserved_at(1.0, points) == pytest.approx(30.0)
    assert compare.preserved_at(0.0, points) == pytest.approx(80.0)


def test_where_success_falls_again_with_strength_the_better_crossing_counts():
    assert compare.preserved_at(0.4, [(0.0, 80.0), (0.8, 50.0), (0.2, 20.0)]) == pytest.approx(65.0)


@pytest.mark.parametrize("preserved", ("psnr_outside", "mse_outside"))
def test_methods_are_compared_at_the_highest_success_that_both_reach(preserved):
    report = {"methods": {"ours": entry([(0.5, 60), (1.0, 40)]), "mapper": entry([(0.5, 50)]),
                          "true_part": entry([(1.0, 70)], given_mask=True), "nothing": entry([(0.0, 80)])}}
    found = compare.wins(report, preserved)
    row = found["methods"]["mapper"]["prompts"]["beard"]
    unit = (lambda psnr: psnr) if preserved == "psnr_outside" else (lambda psnr: 10 ** (-psnr / 10))
    assert row == {"success": 0.5, "ours": pytest.approx(unit(60)), "theirs": pytest.approx(unit(50)), "won": True}
    assert found["methods"]["true_part"]["prompts"]["beard"]["won"] is False and "nothing" not in found["methods"]
    assert found["all"] == {"won": 1, "of": 1, "lost": []}          # the given mask does not count
    report["methods"]["mapper"] = entry([(1.0, 41)])
    assert compare.wins(report, preserved)["all"] == {"won": 0, "of": 1, "lost": ["beard"]}


def test_a_tie_is_no_win_and_a_method_that_never_succeeds_is_not_compared():
    report = {"methods": {"ours": entry([(1.0, 40)]), "mapper": entry([(1.0, 40)]), "directions": entry([(0.0, 70)])}}
    found = compare.wins(report, "psnr_outside")
    assert found["methods"]["mapper"]["won"] == 0 and found["methods"]["mapper"]["of"] == 1
    assert found["methods"]["directions"]["of"] == 0 and found["all"] == {"won": 0, "of": 1, "lost": ["beard"]}


def test_a_prompt_without_faces_for_it_is_not_compared():
    report = {"methods": {"ours": entry([(None, 40)]), "mapper": entry([(1.0, 40)])}}
    assert compare.wins(report, "psnr_outside")["all"] == {"won": 0, "of": 0, "lost": []}


@pytest.mark.parametrize("minutes", ["abc", "nan", "-1"])
def test_a_file_that_does_not_say_what_its_training_took_is_told(minutes, tmp_path):
    write_safetensors(tmp_path / "mapper.safetensors", {"a": torch.zeros(1)}, {"minutes": minutes})
    with pytest.raises(UserError, match=r"mapper\.safetensors does not say how many minutes .* --only mapper"):
        compare.training("mapper", SimpleNamespace(name="drawn"), tmp_path)


@pytest.mark.program
def test_the_command_finds_ours_between_the_floor_and_the_ceiling(tmp_path):
    settings = ["--prompts", "grey hair", "--faces", "2", "--device", "cpu", "--results", str(tmp_path)]
    compare.main(["--only", "nothing, ours", *settings])
    path = compare.main(["--only", "true_part", *settings])                  # the others' figures stay
    report = json.loads(path.read_text())
    nothing, ours, given = (report["methods"][key]["sweep"] for key in ("nothing", "ours", "true_part"))
    assert nothing[0]["mean"]["psnr_outside"] == 80 and nothing[0]["mean"]["success"] == 0
    at = {row["strength"]: row["prompts"]["grey hair"] for row in ours}
    assert at[0.1]["success"] == 1 and given[2]["prompts"]["grey hair"]["iou"] > at[0.1]["iou"]
    assert "| do nothing |" in (tmp_path / "comparison.md").read_text()
    with pytest.raises(UserError, match=r"other faces than these; name another folder with --results"):
        compare.main(["--only", "ours", *settings[:2], "--faces", "3", *settings[4:]])


def test_mistakes_are_named():
    for words, told in ((["--only", "ours,magic"], "'magic'.*mapper"), (["--prompts", "wings"], "'wings'"),
                        (["--only", "mapper", "--checkpoints", "nowhere"], "baselines.fit --only mapper"),
                        (["--domain", "mine"], "--domain is 'mine', expected one of")):
        with pytest.raises(UserError, match=told):
            compare.main([*words, "--device", "cpu"])


def test_a_world_without_the_truth_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(WORLDS, "drawn", replace(WORLDS["drawn"], truth=None))
    with pytest.raises(UserError, match="nothing is known of the faces of drawn"):
        compare.main(["--device", "cpu", "--results", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


def test_a_garbled_earlier_comparison_is_named(tmp_path):
    whole = json.loads((compare.RESULTS / "comparison.json").read_text())
    ours = whole["methods"]["ours"]
    damaged = [{**whole, "methods": {"ours": {**ours, **wrong}}} for wrong in (
        {"sweep": []}, {"sweep": None}, {"strength": 0.7}, {"training": [1]},
        {"sweep": [{**ours["sweep"][2], "prompts": {"beard": {}}}]},
        {"sweep": [{**ours["sweep"][2], "prompts": {"beard": ours["sweep"][2]["prompts"]["beard"]}}]})]
    for content in ('{"faces": 64', "[1]", "[]", "null", '{"faces": 64}', "[" * 100_000, '{"faces": NaN}',
                    *map(json.dumps, (*damaged, {**whole, "methods": []}, {**whole, "seed": None}))):
        (tmp_path / "comparison.json").write_text(content)
        with pytest.raises(UserError, match=r"comparison\.json cannot be read.*--results") as error:
            compare.earlier(compare.CompareConfig(results=tmp_path), {})
        assert "\n" not in str(error.value) and len(str(error.value)) < 600
    (tmp_path / "comparison.json").write_text(json.dumps(whole))
    settings = {name: whole.get(name, "drawn") for name in ("domain", "faces", "subset_faces", "seed", "prompts")}
    found = compare.earlier(compare.CompareConfig(results=tmp_path), settings)
    assert {name: found[name] for name in ("methods", "ours_on_subset")} == {
        name: whole[name] for name in ("methods", "ours_on_subset")}


def test_a_garbled_report_of_an_ablation_is_named(tmp_path):
    report = tmp_path / "K_5/metrics.json"
    report.parent.mkdir()
    for content in ("[]", "null", "[" * 100_000, '{"mean": [1]}', '{"mean": {"iou": NaN}}'):
        report.write_text(content)
        with pytest.raises(UserError, match=r"K_5/metrics\.json is n.* report of attention\.evaluate"):
            ablations.write_table(tmp_path)


def test_a_file_in_place_of_a_folder_is_named_by_its_flag(tmp_path):
    (tmp_path / "taken").write_text("")
    for main, flag in ((compare.main, "--results"), (ablations.main, "--runs")):
        with pytest.raises(UserError, match=f"{flag} .*taken cannot be written"):
            main([flag, str(tmp_path / "taken")])


def test_every_ablation_leaves_out_the_term_that_it_names():
    names = {"no consistency term": ["region_consistency"], "no budget term": ["attention_budget"],
             "no area term": ["attention_area"], "no budget, no area": ["attention_budget", "attention_area"]}
    for name, terms in names.items():
        given = ablations.VARIANTS[name][2].split()
        assert given == [word for term in terms for word in (f"--{TERMS[term].flag}", "0")], name


def test_what_is_told_of_the_comparison_on_real_looking_faces_is_what_was_measured():
    text, folder = (ROOT / "docs/faces.md").read_text(), ROOT / "benchmarks/results/faces"
    report = json.loads((folder / "comparison.json").read_text())
    won = {key: found["methods"]["pixels"] for key, found in report["wins"].items()}
    psnr, mse, ssim, largest = (won[f"{key}_outside"]["won"] for key in ("psnr", "mse", "ssim", "largest"))
    assert f"**{psnr} of 24** prompts" in text and f"than attention by pixels for {psnr} of 24 prompts alone" in text
    assert f"by MSE it is {mse} of 24 against attention by pixels, by SSIM {ssim}" in text
    assert f"**by the largest change {largest}**" in text
    ours = report["methods"]["ours"]
    mean = next(row["mean"] for row in ours["sweep"] if row["strength"] == ours["strength"])
    row = f"| ours | {mean['success']:.2f} | {mean['collateral']:.3f} | {mean['psnr_outside']:.1f} dB | {mean['iou']:.2f} |"
    assert f"{row} {mean['identity']:.2f} | {ours['seconds_per_edit']:.2f} |" in text


def test_an_unknown_ablation_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match="no_position_planes"):
        ablations.main(["--only", "nonsense"])
