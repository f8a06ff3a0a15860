"""What is measured of real-looking faces is what judges see in them, and what they say is read with care."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from attention.errors import UserError
from attention.files.published import ROOT
from attention.worlds.faces.concepts import PROMPTS
from attention.worlds.faces.measures import MEASURES
from benchmarks import judged
from benchmarks.judged import Judged, read_judged, verdicts

BY_EYE, AGAIN = (Path(__file__).parent / "golden" / name for name in ("judged_faces.npz", "judged_again.npz"))
RESULTS = ROOT / "benchmarks/results/faces"


def test_measures_say_what_two_judges_say_who_knew_nothing_of_them():
    agreement = {phrase: judged.agreement(phrase) for phrase, judged in read_judged(BY_EYE).items()}
    assert set(PROMPTS) - set(agreement) == {"grey background"}         # which came later
    assert min(agreement.values()) >= 0.7 and np.mean(list(agreement.values())) >= 0.84, agreement


def test_measures_say_what_other_judges_say_of_faces_by_which_no_bound_was_moved():
    agreement = [judged.agreement(phrase) for phrase, judged in read_judged(AGAIN).items()]
    assert len(agreement) == 9 and min(agreement) >= 0.7 and np.mean(agreement) >= 0.9, agreement


@pytest.mark.parametrize("name", ["judged_d92c94d.npz", "judged_c9106f1.npz"])
def test_measures_say_what_judges_of_two_editors_say_where_these_agree(name):
    found = {phrase: judged.row(phrase) for phrase, judged in read_judged(RESULTS / name).items()}
    agreement = {phrase: row["agreement"] for phrase, row in found.items() if row["judges"] >= 0.7}
    assert set(found) - set(agreement) == {"pink lipstick"} and len(agreement) == 8
    assert min(agreement.values()) >= 0.7 and np.mean(list(agreement.values())) >= 0.88, agreement


def test_measures_say_what_judges_say_of_an_editor_of_before():
    agreement = [judged.agreement(phrase) for phrase, judged in read_judged(RESULTS / "judged_half_way.npz").items()]
    assert len(agreement) == 9 and min(agreement) >= 0.7 and np.mean(agreement) >= 0.84, agreement


@pytest.mark.parametrize("name", ["judged_8e134cc.npz", "judged_012bfe8.npz", "judged_followed.npz"])
def test_measures_say_what_judges_say_of_every_prompt(name):
    found = read_judged(RESULTS / name)
    agreement = {phrase: judged.agreement(phrase) for phrase, judged in found.items()}
    assert set(agreement) == set(PROMPTS) and agreement["red lipstick"] >= 0.8, agreement
    assert np.mean(list(agreement.values())) >= 0.84, agreement
    del agreement["pink lipstick"]                                      # lips a hair below its bound were called pink
    assert min(agreement.values()) >= 0.65, agreement


@pytest.mark.parametrize("name, least", [("judged_before.npz", 0.86), ("judged_6487988.npz", 0.8),
                                         ("judged_beside.npz", 0.9), ("judged_not_shipped.npz", 0.9),
                                         ("judged_tried.npz", 0.88)])
def test_measures_say_what_judges_say_of_what_was_held_beside_it(name, least):
    agreement = {phrase: judged.agreement(phrase) for phrase, judged in read_judged(RESULTS / name).items()}
    assert set(agreement) < set(PROMPTS) and min(agreement.values()) >= 0.7, agreement
    assert np.mean(list(agreement.values())) >= least and agreement.get("red lipstick", 1.0) >= 0.8, agreement


def test_agreement_counts_photographs_that_both_are_sure_of():
    numbers = np.full((5, len(MEASURES)), np.nan)
    numbers[:, list(MEASURES).index("mouth_gap")] = [0.0, 0.2, 0.2, 0.0, 0.2]
    one = Judged(numbers, np.ones(5), np.array([0, 1, 1, 1, 1]), np.array([[0, 0], [1, 1], [0, 0], [1, 0], [0, 0]]),
                 np.array([[0, 0], [0, 0], [0, 0], [0, 0], [0, 1]], bool))
    assert one.agreement("mouth open") == pytest.approx(2 / 3)
    row = one.row("mouth open")
    assert (row["pictures"], row["judges"], row["edits"]) == (5, 0.8, 4)
    assert row["seen"] == pytest.approx(3 / 8) and row["measured"] == 0.75 and row["bad"] == pytest.approx(1 / 8)
    unedited = Judged(*(column[:1] for column in one)).row("mouth open")
    assert unedited["seen"] is None and unedited["measured"] is None and unedited["agreement"] == 1


def test_half_dyed_hair_is_not_what_the_median_says():
    """Of edits; a face as it was generated has the hair that its median says."""
    black = {"hair_L": 8.0, "hair_chroma": 4.0, "hair_rough": 5.0}
    numbers = np.array([[black.get(name, np.nan) for name in MEASURES]] * 3)
    hair = Judged(numbers, np.array([0.9, 0.4, 0.4]), np.array([1, 1, 0]), np.ones((3, 2)), np.zeros((3, 2), bool))
    assert hair.measured("black hair").tolist() == [True, False, True]


@pytest.mark.parametrize("said", [None, "no JSON", {}, [], {"0": "yg"}, {"0": "yg", "1": "xg"}, {"0": "yg", "1": "y"},
                                  {"0": "yg", "1": 3}, {"0": "yg", "1": "ng", "2": "ng"}])
def test_a_judgement_that_lacks_something_is_told(said, tmp_path):
    for name in judged.JUDGES:
        (tmp_path / name).write_text(json.dumps({"0": "yg", "1": "ub"}))
    assert verdicts(tmp_path, 2)[0].tolist() == [[1, 1], [0.5, 0.5]]
    second = tmp_path / judged.JUDGES[1]
    second.unlink() if said is None else second.write_text(said if isinstance(said, str) else json.dumps(said))
    with pytest.raises(UserError, match=re.escape(judged.JUDGES[1])):
        verdicts(tmp_path, 2)


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: b"PK no archive", lambda whole: whole[:-30],
                                    lambda whole: whole[:90] + bytes(40) + whole[130:]])
def test_numbers_that_were_damaged_are_told(damage, tmp_path):
    judged.save(tmp_path / "numbers.npz", {"smiling": np.random.default_rng(0).normal(size=(3, len(MEASURES) + 2))})
    (tmp_path / "numbers.npz").write_bytes(damage((tmp_path / "numbers.npz").read_bytes()))
    with pytest.raises(UserError, match=r"numbers\.npz is not what this command wrote"):
        judged.main(["--out", str(tmp_path)])


@pytest.mark.parametrize("tables", [{"smiling": np.zeros((3, 7))}, {"smiling": np.zeros(3)},
                                    {"a hat": np.zeros((3, len(MEASURES) + 2))}])
def test_tables_of_another_shape_or_of_other_phrases_are_told(tables, tmp_path):
    judged.save(tmp_path / "numbers.npz", tables)
    with pytest.raises(UserError, match=r"numbers\.npz is not what this command wrote"):
        judged.main(["--out", str(tmp_path)])
