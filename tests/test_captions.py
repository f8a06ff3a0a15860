"""The corpus: reading captions, cutting phrases, drawing prompts."""

import json
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from attention.config import TrainConfig
from attention.errors import UserError, paths_told
from attention.training import distributed
from attention.training.captions import (
    JOIN,
    PAIR_SHARE,
    PhraseSampler,
    corpus_of,
    prompts_for,
    read_phrases,
    sheet_prompts,
    split_phrases,
)
from attention.worlds.registry import configured

REPOSITORY = Path(__file__).resolve().parents[1]


# --- reading

def test_a_folder_is_read_in_the_order_of_names_without_its_readme(tmp_path):
    (tmp_path / "1.txt").write_text("third\n")
    (tmp_path / "0.txt").write_text("  first \n\nsecond\n")
    (tmp_path / "ReadMe.txt").write_text("not a caption\n")
    (tmp_path / "notes.md").write_text("not a caption\n")
    assert list(read_phrases(tmp_path)) == ["first", "second", "third"]


def test_both_versions_of_face2text_are_read(tmp_path):
    for entries in ([{"description": " one "}, {"description": "two"}],
                    [{"descriptions": [{"text": "one"}, {"text": "two"}]}]):
        (tmp_path / "raw.json").write_text(json.dumps(entries))
        assert list(read_phrases(tmp_path / "raw.json")) == ["one", "two"]


def test_a_text_file_is_one_phrase_a_line(tmp_path):
    (tmp_path / "phrases.txt").write_text("\ufeffblonde hair\nbig nose\n", encoding="utf-8")
    assert list(read_phrases(tmp_path / "phrases.txt")) == ["blonde hair", "big nose"]


def test_the_committed_sample_has_ten_lines_for_each_of_20_faces_and_no_phrase_of_them_is_lost():
    folder = REPOSITORY / "celeba-caption" / "sample"
    lines = [line for file in sorted(folder.glob("*.txt")) for line in file.read_text().splitlines()]
    assert len(lines) == 200
    assert list(read_phrases(folder)) == [phrase for line in lines for phrase in split_phrases(line)]


@pytest.mark.parametrize("lines_a_file", (20, 4000))
def test_memory_holds_the_table_of_phrases_and_not_the_lines(lines_a_file, tmp_path):
    lines, words = 4000, [f"a face with feature number {number} of ten" for number in range(10)]
    for file in range(lines // lines_a_file):
        (tmp_path / f"{file}.txt").write_text((", ".join(words) + "\n") * lines_a_file)
    size = sum(file.stat().st_size for file in tmp_path.glob("*.txt"))
    assert size > 1_400_000
    tracemalloc.start()
    counts = Counter(read_phrases(tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counts == {phrase: lines for phrase in words}
    assert peak < 300_000


# --- what cannot be used

UNUSABLE = (
    ("missing", None, "does not exist"),
    ("empty.txt", b"\n \n", r"no captions.*1 file, in 1 of 1 file, first .*is empty"),
    ("commas.txt", b" , . and,\n", "no captions.*only commas"),
    ("latin.txt", b"caf\xe9", "no captions.*1 line, in 1 of 1 file, first .*line 1 is not UTF-8"),
    ("utf16.txt", "blonde hair\nbig nose\n".encode("utf-16"), "no captions.*line 1 is not UTF-8"),
    ("long.txt", b"a phrase of more than seven words altogether", "no captions.*1 phrase.*line 1 .*too long for CLIP"),
    ("cut.json", b'[{"description": "one"', "face2text"),
    ("other.json", b'[{"text": "one"}]', "face2text"),
    ("none.json", b"[]", "no captions.*is empty"),
)


def test_an_unusable_corpus_is_refused_by_name(tmp_path):
    for name, content, words in UNUSABLE:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=words) as error:
            list(read_phrases(path, fits=lambda prompt: len(prompt.split()) <= 7))
        assert str(path) in str(error.value)


def test_a_folder_that_may_not_be_read_is_told_as_that(tmp_path, monkeypatch):
    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", closed)            # the tests may run as root, to whom nothing is closed
    with pytest.raises(UserError, match=rf"^{tmp_path} cannot be used \(Permission denied\)"), paths_told():
        list(read_phrases(tmp_path))


def test_a_folder_without_captions_is_refused_and_says_what_is_there(tmp_path):
    (tmp_path / "raw.json").write_text("[]")
    with pytest.raises(UserError, match=r"no \*\.txt captions \(found raw\.json\).*ten lines"):
        list(read_phrases(tmp_path))


def test_a_folder_in_which_nothing_can_be_read_is_refused(tmp_path):
    (tmp_path / "0.txt").mkdir()
    (tmp_path / "1.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"1 file, 1 line, in 2 of 2 files, first .*0\.txt: is a folder"):
        list(read_phrases(tmp_path))


def test_what_cannot_be_used_is_left_out_and_told_in_one_warning(tmp_path):
    (tmp_path / "0.txt").write_bytes(b"blonde hair\n")
    (tmp_path / "1.txt").write_bytes(b"big nose\ncaf\xe9 hair, big ears\nbrown eyes, one two three four, small ears\n")
    (tmp_path / "2.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "3.txt").write_bytes(b"")
    with pytest.warns(UserWarning) as told:
        phrases = list(read_phrases(tmp_path, fits=lambda prompt: len(prompt.split()) <= 7))
    assert phrases == ["blonde hair", "big nose", "brown eyes", "small ears"]
    assert [str(warning.message) for warning in told] == [
        f"{tmp_path}: left out 2 lines, 1 phrase, 1 file, in 3 of 4 files, first {tmp_path / '1.txt'}: "
        "line 2 is not UTF-8 text"]


@pytest.mark.parametrize("length", [100_001, 100_002, 1_000_000])
def test_a_line_without_end_is_left_out_and_never_held(length, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("big nose\n" + "x" * length + "\nblonde hair\n" + "y" * length)
    tracemalloc.start()
    with pytest.warns(UserWarning, match="2 lines, .*line 2 has more than 100,000 characters"):
        assert list(read_phrases(path)) == ["big nose", "blonde hair"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_a_bad_description_of_face2text_is_left_out(tmp_path):
    (tmp_path / "raw.json").write_bytes(b'[{"description": "caf\xe9"}, {"description": "big nose."}]')
    with pytest.warns(UserWarning, match="1 description, .*description 1 is not UTF-8"):
        assert list(read_phrases(tmp_path / "raw.json")) == ["big nose"]


def test_a_sound_corpus_warns_of_nothing(tmp_path):
    (tmp_path / "0.txt").write_text("caf\u00e9 au lait skin\n\n", encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(read_phrases(tmp_path)) == ["caf\u00e9 au lait skin"]


def test_no_prompt_is_too_long_for_clip_also_where_two_phrases_are_joined(tmp_path):
    def fits(prompt: str) -> bool:
        return len(prompt.split()) <= 9

    (tmp_path / "0.txt").write_text("\n".join(" ".join([f"w{i}"] * (1 + i % 8)) for i in range(80)))
    with pytest.warns(UserWarning, match="40 phrases, in 1 of 1 file"):
        sampler = PhraseSampler(read_phrases(tmp_path, fits), seed=0)
    prompts = [prompt for _ in range(20) for prompt in sampler.sample(20)]
    assert all(map(fits, prompts))
    assert any(JOIN in prompt and len(prompt.split()) == 9 for prompt in prompts)      # the limit itself is in use


# --- phrases

def test_captions_are_cut_at_commas_and_stops_and_lose_a_leading_and():
    for caption, phrases in (
            ("A woman, with blonde hair, and big eyes.", ["A woman", "with blonde hair", "big eyes"]),
            ("And  and rosy   cheeks", ["rosy cheeks"]),
            ("android hair, black and white", ["android hair", "black and white"]),
            (" , . and, ", [])):
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


def test_further_texts_are_phrases_of_no_prompt_and_none_leave_the_draws_as_they_were():
    first, second = (PhraseSampler([f"p{i}" for i in range(20)] * 5, seed=0) for _ in range(2))
    for _ in range(50):
        prompts = first.sample(8)
        used = {phrase for prompt in prompts for phrase in prompt.split(" and ")}
        assert first.others(prompts, 0) == [] and prompts == second.sample(8)
        some, all_of_them = first.others(prompts, 3), first.others(prompts, 99)
        assert len(set(some)) == 3 and not used & set(some) and {*used, *all_of_them} == set(first.phrases)
        second.generator.set_state(first.generator.get_state())


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


def test_four_processes_share_each_steps_prompts_with_none_twice_and_none_lost(monkeypatch):
    processes, own, steps = 4, 3, 20
    phrases = [f"p{i}" for i in range(40)]
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    parts = []
    for rank in range(processes):
        monkeypatch.setenv("RANK", str(rank))
        sampler = PhraseSampler(phrases, seed=3)
        parts.append([distributed.own_rows(sampler.sample(own * distributed.world_size())) for _ in range(steps)])
    alone = PhraseSampler(phrases, seed=3)
    for step in zip(*parts, strict=True):
        together = [prompt for part in step for prompt in part]
        assert [len(part) for part in step] == [own] * processes
        assert together == alone.sample(own * processes)
        used = [phrase for prompt in together for phrase in prompt.split(JOIN)]
        assert len(used) == len(set(used))


# --- of a training

def test_the_published_world_draws_from_the_corpus_and_says_so_and_the_drawn_world_from_its_own_prompts(capsys):
    world = SimpleNamespace(name="w", prompts=("a", "b"), clip=SimpleNamespace(fits=lambda prompt: True))
    sampler = prompts_for(configured(TrainConfig, domain="ffhq"), world)
    sample = REPOSITORY / "celeba-caption/sample"
    assert set(sampler.phrases) == set(read_phrases(sample))
    assert capsys.readouterr().out == f"recipe paper, targets: text; prompts are drawn from 62 phrases of {sample}\n"
    assert prompts_for(configured(TrainConfig, domain="drawn", batch_size=2), world).phrases == ("a", "b")
    assert capsys.readouterr().out.endswith("from 2 phrases of the world w\n")
    with pytest.raises(UserError, match=r"celeba-caption/sample has 62 different phrases, .* needs 64: .*--captions"):
        prompts_for(configured(TrainConfig, domain="ffhq", batch_size=64), world)


def test_captions_of_ones_own_beside_the_sample_take_its_place(tmp_path):
    (tmp_path / "sample").mkdir()
    (tmp_path / "ReadMe.txt").write_text("not a caption")
    assert corpus_of(tmp_path) == tmp_path / "sample"
    (tmp_path / "0.txt").write_text("big nose\n")
    assert corpus_of(tmp_path) == tmp_path and corpus_of(tmp_path / "0.txt") == tmp_path / "0.txt"


def test_sheets_show_the_published_file_of_prompts_and_the_description(tmp_path):
    world, own = SimpleNamespace(prompts=tuple("abcdef")), tmp_path / "phrases.txt"
    assert sheet_prompts(configured(TrainConfig, description="x"), world, 3) == ["x", "a", "c", "f"]
    own.write_text("\ufeffbig nose\n\n red lips \n", encoding="utf-8")
    config = configured(TrainConfig, own_description_dir=own)
    assert sheet_prompts(config, world, 3) == ["big nose", "red lips"]
    own.write_text(" \n")
    with pytest.raises(UserError, match=r"--own_description_dir .*phrases\.txt is empty"):
        sheet_prompts(config, world, 3)


def test_more_prompts_than_phrases_are_refused():
    with pytest.raises(UserError, match=r"2 different phrases.*needs 3.*--batch_size"):
        PhraseSampler(["a", "b", "a"], seed=0).sample(3)


def test_a_corpus_without_phrases_is_refused():
    with pytest.raises(UserError, match="no phrases"):
        PhraseSampler([], seed=0)
