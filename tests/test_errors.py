"""What is printed ends no job: whatever the terminal can show, and whoever has stopped reading."""

import os
import subprocess
import sys

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
