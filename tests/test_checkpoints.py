"""Files are written whole or not at all, and nothing that is read is executed."""

import pickle
import warnings

import pytest
import torch

from attention.errors import UserError, exit_with_message
from attention.files.disk import write_atomically
from attention.files.torch_files import atomic_torch_save, read_torch_file


def test_a_full_disk_leaves_the_previous_file_whole(tmp_path):
    path = tmp_path / "state.pt"
    path.write_text("before")

    def full(temporary):
        temporary.write_text("half of")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"state\.pt could not be written .*No space left"):
        write_atomically(path, full)
    assert path.read_text() == "before" and [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps({"g_ema": Hostile()}))
    with pytest.raises(UserError, match=r"weights\.pt"):
        read_torch_file(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "list"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "state.pt"
    if damage == "list":
        torch.save([1, 2], path)
    elif damage != "missing":
        atomic_torch_save({"x": torch.zeros(100)}, path)
        path.write_bytes(path.read_bytes()[: 200 if damage == "truncated" else 0])
    with pytest.raises(UserError, match=r"state\.pt"):
        read_torch_file(path)


@pytest.mark.parametrize(("error", "code"), [(UserError("no"), 2), (KeyboardInterrupt(), 130)])
def test_exit_codes_of_a_mistake_and_of_ctrl_c(error, code, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as exit_:
        exit_with_message(main)
    assert exit_.value.code == code and "Traceback" not in capsys.readouterr().err


def test_a_warning_of_a_command_is_a_note_of_one_line(capsys):
    exit_with_message(lambda: warnings.warn("two faces were found", stacklevel=1))
    assert capsys.readouterr().err == "note: two faces were found\n"
