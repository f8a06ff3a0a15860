"""Kept memory: blocks that are used again cost no page faults, unless the environment has decided otherwise."""

import os
import subprocess
import sys

import pytest

from attention.files.published import ROOT

# Pages that a thread and the main one fault in while they use blocks of 64 MB again and again, after a first time.
CODE = """
import resource, threading
import numpy as np
from attention.memory import keep_memory
keep_memory()
def use():
    for size in (8_000_000, 7_500_000) * 5:
        np.empty(size).fill(1)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
other = threading.Thread(target=use)
other.start()
other.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.parametrize(("variables", "kept"), [({}, True), ({"MALLOC_ARENA_MAX": "1"}, False)])
def test_blocks_that_are_used_again_cost_no_page_faults(variables, kept):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, env=clean | variables, capture_output=True, text=True,
                          check=True)
    assert (int(done.stdout) < 1000) == kept, done.stdout
