#!/usr/bin/env bash
# The test suite, the style check and the types; makes its own virtual environment if none is active.
#     bash tests/run.sh                      all but the tests that drive whole other programs: a browser, a notebook, ...
#     bash tests/run.sh tests                these too, as CI does
#     bash tests/run.sh tests/test_ops.py    arguments go to pytest (paths from the repository root)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../.ci/environment.sh"

(($#)) || set -- -m "not slow and not program"
style=0
ruff check || style=$?
mypy || style=$?
# Two processes with one thread each are faster than one with two; each takes whole files, whose tests share their models.
# pytest comes last, so that its closing line is the last line; a failure ends here.
export OMP_NUM_THREADS=1
unset PYTHONDONTWRITEBYTECODE                   # else every process that a test starts compiles the package anew
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
exit "$style"
