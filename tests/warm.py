"""Programs that tests start and end as processes of their own, without the seconds in which each would import torch.

They come of Python's fork server, which has imported what training needs and has done nothing else.
"""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from attention.files.published import ROOT

CONTEXT = multiprocessing.get_context("forkserver")
IMPORTED = ["attention.training.loop", "torch._dynamo", "torch.utils.tensorboard", "matplotlib.figure", "open_clip"]


class Program:
    """A process that is used as a subprocess.Popen is.

    Args:
        run: what it does, importable.
        folder: where what it says is kept.
    """

    def __init__(self, run: Callable[[], object], folder: Path):
        folder.mkdir(exist_ok=True)
        self._said = [folder / "stdout.txt", folder / "stderr.txt"]
        CONTEXT.set_forkserver_preload(IMPORTED)
        self._process = CONTEXT.Process(target=_run, args=(run, self._said))
        self._process.start()

    @classmethod
    def of_code(cls, code: str, arguments: Sequence[str], folder: Path) -> "Program":
        """`python -c CODE ARGUMENTS` in the repository's root."""
        return cls(partial(_code, code, arguments), folder)

    @classmethod
    def of_script(cls, script: str, arguments: Sequence[str], where: Path, environment: Mapping[str, str],
                  folder: Path) -> "Program":
        """`python SCRIPT ARGUMENTS` in the folder `where`, of a copy of the package that nothing has imported yet."""
        return cls(partial(_script, script, arguments, where, environment), folder)

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


def _run(run: Callable[[], object], said: list[Path]) -> None:
    for number, path in enumerate(said, start=1):
        with path.open("wb", buffering=0) as file:
            os.dup2(file.fileno(), number)
    run()


def _code(code: str, arguments: Sequence[str]) -> None:
    os.chdir(ROOT)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


def _script(script: str, arguments: Sequence[str], where: Path, environment: Mapping[str, str]) -> None:
    os.chdir(where)
    os.environ.update(environment)
    for name in [name for name in sys.modules if name.partition(".")[0] == "attention"]:
        del sys.modules[name]
    sys.path[:] = [str((where / script).parent), *(path for path in sys.path if Path(path).resolve() != ROOT)]
    sys.argv = [script, *arguments]
    runpy.run_path(str(where / script), run_name="__main__")      # as Python itself, by its whole path
