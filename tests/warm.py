"""Programs that tests start and end as processes of their own, without the seconds in which each would import torch.

They come of Python's fork server, which has imported what training needs and has done nothing else.
"""

import multiprocessing
import os
import sys
from pathlib import Path

from attention.files.published import ROOT

CONTEXT = multiprocessing.get_context("forkserver")
IMPORTED = ["attention.training.loop", "torch._dynamo", "torch.utils.tensorboard", "matplotlib.figure"]


class Program:
    """Python code that runs as `python -c CODE ARGUMENTS` in the repository's root; used as a subprocess.Popen is."""

    def __init__(self, code: str, arguments: list[str], folder: Path):
        folder.mkdir(exist_ok=True)
        self._said = [folder / "stdout.txt", folder / "stderr.txt"]
        CONTEXT.set_forkserver_preload(IMPORTED)
        self._process = CONTEXT.Process(target=_run, args=(code, arguments, self._said))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What it has said on stdout and stderr, once it has ended."""
        self._process.join(timeout)
        if self._process.is_alive():
            self._process.kill()
            raise TimeoutError(f"not done after {timeout} seconds")
        out, errors = (path.read_text() for path in self._said)
        return out, errors


def _run(code: str, arguments: list[str], said: list[Path]) -> None:
    for number, path in enumerate(said, start=1):
        with path.open("wb", buffering=0) as file:
            os.dup2(file.fileno(), number)
    os.chdir(ROOT)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
