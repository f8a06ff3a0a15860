#!/usr/bin/env bash
# What a GPU has to show, in at most nine minutes and without a network: report, figures and log into $OUT (runs/gpu).
#     bash benchmarks/gpu.sh                 on a machine with an NVIDIA GPU
#     bash benchmarks/gpu.sh --rehearse      tiny sizes on a CPU; further flags: --help
# Packages that the machine lacks come along as wheels in runs/wheels, 5 MB; made where there is a network, for its Python:
#     wheels="--only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64 -d runs/wheels"
#     pip download $wheels pydantic_settings platformdirs && pip download $wheels --no-deps open_clip_torch ftfy wcwidth
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python="${VIRTUAL_ENV:-.venv}/bin/python"
[[ -x "$python" ]] || python=python3
if ! "$python" -c "import torch"; then
    echo "error: $python has no torch; activate an environment that has it" >&2
    exit 2
fi
if compgen -G "runs/wheels/*.whl" >/dev/null; then
    site="$(mktemp -d)"
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --target "$site" runs/wheels/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
"$python" -m benchmarks.gpu --out "${OUT:-runs/gpu}" "$@"
