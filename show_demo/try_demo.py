"""Serve the web page that edits faces: `where2edit demo` from a checkout that is not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attention.editing.page import main
from attention.errors import exit_with_message

if __name__ == "__main__":
    exit_with_message(main)
