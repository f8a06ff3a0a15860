"""The corpus: reading captions, cutting phrases, drawing prompts."""

import json
from collections import Counter
from pathlib import Path

import pytest

from attention.captions import JOIN, PAIR_SHARE, PhraseSampler, read_captions, split_phrases
from attention.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]


# --- reading

def test_a_folder_is_read_in_the_order_of_names_without_its_readme(tmp_path):
    (tmp_path / "1.txt").write_text("third\n")
    (tmp_path / "0.txt").write_text("  first \n\nsecond\n")
    (tmp_path / "ReadMe.txt").write_text("not a caption\n")
    (tmp_path / "notes.md").write_text("not a caption\n")
    assert read_captions(tmp_path) == ["first", "second", "third"]


@pytest.mark.parametrize("entries", ([{"description": " one "}, {"description": "two"}],
                                     [{"descriptions": [{"text": "one"}, {"text": "two"}]}]))
def test_both_versions_of_face2text_are_read(entries, tmp_path):
    (tmp_path / "raw.json").write_text(json.dumps(entries))
    assert read_captions(tmp_path / "raw.json") == ["one", "two"]


def test_a_text_file_is_one_phrase_a_line(tmp_path):
    (tmp_path / "phrases.txt").write_text("\ufeffblonde hair\nbig nose\n", encoding="utf-8")
    assert read_captions(tmp_path / "phrases.txt") == ["blonde hair", "big nose"]


def test_the_committed_sample_has_ten_lines_for_each_of_20_faces():
    assert len(read_captions(REPOSITORY / "celeba-caption" / "sample")) == 200


@pytest.mark.parametrize("name, content, words", [
    ("missing", None, "does not exist"),
    ("empty.txt", b"\n \n", "no captions"),
    ("latin.txt", b"caf\xe9", "UTF-8"),
    ("cut.json", b'[{"description": "one"', "face2text"),
    ("other.json", b'[{"text": "one"}]', "face2text"),
])
def test_an_unusable_corpus_is_refused_by_name(name, content, words, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        read_captions(path)
    assert str(path) in str(error.value)


def test_a_folder_without_captions_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no \*\.txt"):
        read_captions(tmp_path)


# --- phrases

@pytest.mark.parametrize("caption, phrases", [
    ("A woman, with blonde hair, and big eyes.", ["A woman", "with blonde hair", "big eyes"]),
    ("And  and rosy   cheeks", ["rosy cheeks"]),
    ("android hair, black and white", ["android hair", "black and white"]),
    (" , . and, ", []),
])
def test_captions_are_cut_at_commas_and_stops_and_lose_a_leading_and(caption, phrases):
    assert split_phrases(caption) == phrases


# --- prompts

def test_the_same_seed_draws_the_same_prompts():
    first, second = (PhraseSampler([f"p{i}" for i in range(50)], seed=3) for _ in range(2))
    other = PhraseSampler([f"p{i}" for i in range(50)], seed=4)
    draws = [sampler.sample(20) for sampler in (first, second, other)]
    assert draws[0] == draws[1] != draws[2]


def test_a_restored_state_continues_the_draws():
    sampler = PhraseSampler([f"p{i}" for i in range(50)], seed=3)
    state = sampler.generator.get_state()
    drawn = sampler.sample(20)
    sampler.generator.set_state(state)
    assert sampler.sample(20) == drawn


def test_no_phrase_comes_twice_in_one_step():
    sampler = PhraseSampler([f"p{i}" for i in range(20)] * 5, seed=0)
    for _ in range(100):
        phrases = [phrase for prompt in sampler.sample(10) for phrase in prompt.split(JOIN)]
        assert len(phrases) == len(set(phrases))


def test_about_the_published_share_of_prompts_joins_two_phrases():
    sampler = PhraseSampler([f"p{i}" for i in range(40)], seed=0)
    prompts = [prompt for _ in range(200) for prompt in sampler.sample(20)]
    assert sum(JOIN in prompt for prompt in prompts) / len(prompts) == pytest.approx(PAIR_SHARE, abs=0.02)


def test_a_frequent_phrase_comes_up_as_often_as_the_corpus_says():
    sampler = PhraseSampler(["often"] * 3 + ["seldom"], seed=0)
    draws = Counter(sampler.sample(1)[0].split(JOIN)[0] for _ in range(2000))
    assert draws["often"] / 2000 == pytest.approx(0.75, abs=0.04)


def test_a_small_corpus_gives_single_phrases_until_it_is_used_up():
    assert sorted(PhraseSampler(["a", "b", "c"], seed=0).sample(3)) == ["a", "b", "c"]


def test_more_prompts_than_phrases_are_refused():
    with pytest.raises(UserError, match=r"2 different phrases.*needs 3.*--batch_size"):
        PhraseSampler(["a", "b", "a"], seed=0).sample(3)


def test_a_corpus_without_phrases_is_refused():
    with pytest.raises(UserError, match="no phrases"):
        PhraseSampler([], seed=0)
