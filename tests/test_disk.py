"""Writing: all of a file or nothing of it, under any name, through no link, over nothing that is read."""

import os

import pytest

from attention.errors import UserError
from attention.files.disk import refuse_overwriting, write_text


def test_a_name_as_long_as_names_can_be_is_written(tmp_path):
    for name in ("a" * 255, "ä" * 127, "日" * 85):
        write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(UserError, match=r"could not be written .*too long"):
        write_text(tmp_path / ("a" * 256), "text")


def test_what_is_written_replaces_a_link_and_never_goes_through_it(tmp_path):
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "link").symlink_to("kept")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "kept").read_text() == "kept" and (tmp_path / "link").read_text() == "new"
    assert not (tmp_path / "link").is_symlink()


def test_a_file_that_is_written_has_the_rights_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "ours", "text")
    assert os.stat(tmp_path / "ours").st_mode == os.stat(tmp_path / "plain").st_mode


def test_no_command_writes_over_what_it_reads_whatever_the_name(tmp_path):
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"photo")
    (tmp_path / "link.png").symlink_to("photo.png")
    (tmp_path / "folder").symlink_to(tmp_path)
    os.link(photo, tmp_path / "second.png")
    for name in ("photo.png", "./photo.png", "link.png", "folder/photo.png", "second.png"):
        with pytest.raises(UserError, match=r"--out would overwrite .*photo\.png, which is read"):
            refuse_overwriting([tmp_path / "other.png", tmp_path / name], [tmp_path / "nothing", photo])
    with pytest.raises(UserError, match="written twice"):
        refuse_overwriting([tmp_path / "a.png", tmp_path / "folder/a.png"], [photo])
    refuse_overwriting([tmp_path / "a.png", tmp_path / "b.png"], [photo, "a\0b"])
