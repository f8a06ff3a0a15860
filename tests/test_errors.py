"""What is printed ends no job, whatever the terminal can show and whoever stops reading; a mistake is one sentence."""

import os
import subprocess
import sys
import warnings

import pytest

from attention.errors import exit_with_message
from attention.files.published import ROOT

JOB = """
import sys, warnings
from pathlib import Path
from tqdm import tqdm
from attention.errors import UserError, exit_with_message

def main():
    for number in tqdm(range(500)):
        warnings.warn(f"gr\\u00fc\\u00dfe \\U0001f487 \\udcff {number}", stacklevel=1)
        print("\\u7070\\u8272 \\udcff", number)
        tqdm.write("caf\\u00e9 \\udcff")
    Path(sys.argv[1]).write_text("done")
    raise UserError("\\u7070\\u8272")

exit_with_message(main)
"""


def test_a_job_is_done_whatever_becomes_of_what_it_prints(tmp_path):
    everything = {**os.environ, "PYTHONPATH": str(ROOT)}
    ways = {"ascii": ("{job}", {"PYTHONIOENCODING": "ascii"}), "head": ("set -o pipefail; {job} | head -n 1", {}),
            "both into head": ("set -o pipefail; {job} 2>&1 | head -n 1", {}),
            "a full disk": ("{job} > /dev/full 2> /dev/full", {}), "closed": ("{job} >&- 2>&-", {})}
    for name, (line, environment) in ways.items():
        out = tmp_path / name
        done = subprocess.run(["bash", "-c", line.format(job=f'"$0" -c "$1" "{out}"'), sys.executable, JOB], cwd=tmp_path,
                              env=everything | environment, capture_output=True, timeout=60)
        assert out.exists() and out.read_text() == "done" and done.returncode == 2, (name, done.stderr[-500:])
        assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr, name


def told_by(run, capsys):
    with pytest.raises(SystemExit) as end:
        exit_with_message(run)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_what_the_system_says_of_a_path_is_one_sentence_and_of_no_path_our_fault(tmp_path, capsys):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, reason in ((tmp_path / ("x" * 300), "File name too long"), (tmp_path / "loop", "Too many levels of symbolic"),
                         (tmp_path / "a\x1b[2Jb\udcff", "No such file"), (tmp_path, "Is a directory")):
        said = told_by(path.read_bytes, capsys)
        assert said.count("\n") == 1 and reason in said and said.rstrip("\n").isprintable() and len(said) < 400
    with pytest.raises(OSError, match="of no path"):
        exit_with_message(lambda: (_ for _ in ()).throw(OSError("of no path")))


def test_a_note_is_a_note_also_where_warnings_are_errors(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exit_with_message(lambda: warnings.warn("only a note", stacklevel=1))
    assert "note: only a note" in capsys.readouterr().err


def test_a_backend_for_windows_that_matplotlib_lacks_costs_no_plot(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "total": 0.5}\n')
    job = ("import sys; from attention.errors import exit_with_message; from attention.training import run_log; "
           "exit_with_message(lambda: run_log.plot_metrics(sys.argv[1]))")
    done = subprocess.run([sys.executable, "-c", job, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=60,
                          env=os.environ | {"MPLBACKEND": "nonsense"})
    assert done.returncode == 0 and (tmp_path / "plot.png").exists(), done.stderr[-500:]
