"""Parts of a benchmark that go wrong, in a module that a process of their own imports at once."""

import subprocess


def two_rows(device):
    yield {"what": "first", "ms": 1.0}
    yield {"what": "second", "ms": 2.0}


def breaks(device):
    yield {"what": "before", "ms": 1.0}
    raise RuntimeError("no kernel image")


def is_wrong(device):
    yield {"what": "bf16", "difference": 0.5, "fault": "5e-01, at most 1e-02 is allowed"}


def takes_long(device):
    sleeper = subprocess.Popen(["sleep", "600"])
    yield {"what": "sleeper", "pid": sleeper.pid}
    sleeper.wait()
