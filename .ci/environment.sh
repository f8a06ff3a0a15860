# Sourced by train_scripts.sh and tests/run.sh: the repository root, and a virtual environment with everything in
# requirements.txt. A second run only compares two files.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -z "${VIRTUAL_ENV:-}" ]]; then
    if [[ ! -x .venv/bin/python ]]; then
        echo "making a virtual environment in $PWD/.venv" >&2
        python3 -m venv .venv
    fi
    VIRTUAL_ENV="$PWD/.venv"
fi
if [[ ! -x "$VIRTUAL_ENV/bin/python" ]]; then
    echo "VIRTUAL_ENV is $VIRTUAL_ENV, which holds no bin/python; unset it, and a new one is made in $PWD/.venv" >&2
    exit 2
fi
export VIRTUAL_ENV PATH="$VIRTUAL_ENV/bin:$PATH"

stamp="$VIRTUAL_ENV/where2edit-requirements.txt"               # a copy of what was last installed here
if ! cmp -s requirements.txt "$stamp"; then
    echo "installing requirements.txt into $VIRTUAL_ENV (minutes the first time)" >&2
    python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
    cp requirements.txt "$stamp"
fi
