"""The comparison of methods: who preserves more at equal success, and the command itself."""

import json

import pytest

from attention.errors import UserError
from benchmarks import ablations, compare


def entry(points, given_mask=False):
    """A method's report with one prompt, its (success, PSNR) at rising strengths."""
    return {"given_mask": given_mask, "sweep": [{"prompts": {"beard": {"success": success, "psnr_outside": psnr}}}
                                                for success, psnr in points]}


def test_preservation_at_a_success_is_read_off_the_line_between_two_strengths():
    points = [(0.0, 80.0), (0.5, 60.0), (1.0, 30.0)]
    assert compare.preserved_at(0.75, points) == pytest.approx(45.0)
    assert compare.preserved_at(0.25, points) == pytest.approx(70.0)
    assert compare.preserved_at(1.0, points) == pytest.approx(30.0)
    assert compare.preserved_at(0.0, points) == pytest.approx(80.0)


def test_where_success_falls_again_with_strength_the_better_crossing_counts():
    assert compare.preserved_at(0.4, [(0.0, 80.0), (0.8, 50.0), (0.2, 20.0)]) == pytest.approx(65.0)


def test_methods_are_compared_at_the_highest_success_that_both_reach():
    report = {"methods": {"ours": entry([(0.5, 60), (1.0, 40)]), "mapper": entry([(0.5, 50)]),
                          "true_part": entry([(1.0, 70)], given_mask=True), "nothing": entry([(0.0, 80)])}}
    against, beats = compare.wins(report)
    assert against["mapper"]["prompts"]["beard"] == {"success": 0.5, "ours": 60.0, "theirs": 50.0, "won": True}
    assert against["true_part"]["prompts"]["beard"]["won"] is False and "nothing" not in against
    assert beats == {"won": 1, "of": 1, "lost": []}                # the given mask does not count
    report["methods"]["mapper"] = entry([(1.0, 41)])
    assert compare.wins(report)[1] == {"won": 0, "of": 1, "lost": ["beard"]}


def test_the_command_finds_ours_between_the_floor_and_the_ceiling(tmp_path):
    path = compare.main(["--only", "nothing,ours,true_part", "--prompts", "grey hair", "--faces", "4", "--device", "cpu",
                         "--results", str(tmp_path)])
    report = json.loads(path.read_text())
    nothing, ours, given = (report["methods"][key]["sweep"] for key in ("nothing", "ours", "true_part"))
    assert nothing[0]["mean"]["psnr_outside"] == 80 and nothing[0]["mean"]["success"] == 0
    at = {row["strength"]: row["prompts"]["grey hair"] for row in ours}
    assert at[0.1]["success"] == 1 and given[2]["prompts"]["grey hair"]["iou"] > at[0.1]["iou"]
    assert "| do nothing |" in (tmp_path / "comparison.md").read_text()


@pytest.mark.parametrize("words, told", [(["--only", "ours,magic"], "'magic'.*mapper"), (["--prompts", "wings"], "'wings'"),
                                         (["--only", "mapper", "--checkpoints", "nowhere"], "baselines.fit --only mapper")])
def test_mistakes_are_named(words, told):
    with pytest.raises(UserError, match=told):
        compare.main([*words, "--device", "cpu"])


def test_an_unknown_ablation_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match="no_position_planes"):
        ablations.main(["--only", "nonsense"])
