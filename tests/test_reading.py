"""The one way in for files: whatever a path can be ends in one sentence, quickly."""

import os

import pytest

from attention.errors import UserError
from attention.files.reading import read_json, read_text, readable


def odd_paths(folder):
    """Paths that are no readable file, by kind."""
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "large").write_bytes(b"x" * 101)
    (folder / "file").write_text("x")
    return {"missing": folder / "nothing", "folder": folder / "folder", "pipe": folder / "pipe", "device": "/dev/zero",
            "random": "/dev/urandom", "loop": folder / "loop", "long": folder / ("a" * 300), "NUL": f"{folder}/a\0b",
            "sentence": "make her hair grey, please" * 20, "large": folder / "large", "below a file": folder / "file/x",
            "escape": folder / "a\x1b[31mred", "surrogate": folder / "a\udcff"}


def test_whatever_a_path_can_be_is_told_in_one_printable_sentence(tmp_path):
    for kind, path in odd_paths(tmp_path).items():
        with pytest.raises(UserError, match=r"a text|a folder|bytes") as error:
            read_text(path, "a text", most=100)
        assert str(error.value).isprintable() and len(str(error.value)) < 400, kind


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_text(tmp_path / "a", "a text") == "[1]" and read_json(tmp_path / "a", "a list") == [1]


def test_what_is_no_json_is_told(tmp_path):
    for text in (b"", b"{", b"nan", b"[Infinity]", b"[NaN]", b"[" * 100_000, b"{\"a\":" * 100_000, b"[1] 2",
                 b"\xff\xfe[\x001\x00]\x00"):
        (tmp_path / "a.json").write_bytes(text)
        with pytest.raises(UserError, match=r"a\.json is no (JSON|UTF-8)"):
            read_json(tmp_path / "a.json", "a list")


def test_a_readable_file_of_any_size_is_its_path(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    assert readable(str(tmp_path / "a"), "a picture") == tmp_path / "a"
