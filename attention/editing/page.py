"""A web page that edits faces: what, where, how strongly; regions to click, history, style transfer, download.

    where2edit demo                    a shipped editor, at http://127.0.0.1:7860: of real-looking faces, if their generator
                                       is there (python -m attention.download faces), else of drawn ones
    where2edit demo --run runs/ffhq    another editor

In a checkout that is not installed: python show_demo/try_demo.py instead of where2edit demo. Nothing of a user is kept but
in the user's own page; its address holds seed and texts, so that a reload keeps the work. Uploads lie in a temporary folder
of this server; what nobody has used for an hour is deleted, and all of it when the server ends.
"""

import errno
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from attention.config import CKPT, DEVICE, TRUST, Config, option, parse_config
from attention.errors import UserError
from attention.extras import need
from attention.worlds.registry import BEST, usual_run, usual_world


class DemoConfig(Config):
    """Options."""

    run: Path = option(Path("drawn"), "run folder of the editor, or the name of a shipped one")
    ckpt: Path | None = option(None, CKPT)
    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0 lets other machines in")
    port: int = option(7860, "to listen at", min=1, max=65535)
    device: str = option("auto", DEVICE)
    trust: bool = option(False, TRUST)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until it is stopped."""
    config = parse_config(DemoConfig, argv, __doc__, usual_run)
    need("demo", "the web page")
    check_place(config.host, config.port)
    for name in ("SIGTERM", "SIGHUP"):                  # as Ctrl-C does by itself: an end that sweeps
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, frame: sys.exit(128 + number))

    from attention.editing.folder import ServerFolder
    with ServerFolder() as folder:
        import torch

        tempfile.tempdir = str(folder.path)             # whatever else is written meanwhile goes there too
        from attention.editing.desk import Desk
        from attention.editing.session import load_editor
        try:
            from attention.editing.widgets import build, serve
        except ImportError as error:
            raise UserError(f"the installed gradio cannot be used ({error}); get the right one with: pip install -U "
                            "\"gradio>=6\"") from error
        # Half of the cores: a browser needs some too, and threads that wait for each other take 30 times as long.
        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
        if str(config.run) == usual_world() != BEST:
            print(f"this is {config.run}; for real-looking faces: python -m attention.download {BEST}", file=sys.stderr)
        desk = Desk(load_editor(config.run, config.device, config.trust, config.ckpt), folder)
        page = build(desk)
        try:
            serve(page, desk, server_name=config.host, server_port=config.port, quiet=True)
        except OSError as error:
            raise UserError(f"nothing can be served at --host {config.host} --port {config.port} ({error}); try another "
                            "--port") from error
        print(f"{page.local_url} is ready; Ctrl-C ends it and deletes what was uploaded", flush=True)
        threading.Event().wait()


def check_place(host: str, port: int) -> None:
    """Whether something can be served there.

    Raises:
        UserError: the port is taken or not allowed, or the host is no address of this machine.
    """
    at = f"--host {host} --port {port}"
    try:
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as place:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        number = getattr(error, "errno", None)
        if number == errno.EADDRINUSE:
            raise UserError(f"{at} is taken ({reason}); is another page there? Try another --port") from None
        if number == errno.EACCES:
            raise UserError(f"{at} may not be used ({reason}), as ports below 1024 are the system's. Try another --port"
                            ) from None
        raise UserError(f"--host {host} is no address of this machine ({reason}); give 127.0.0.1 for this machine alone, "
                        "0.0.0.0 for others too") from None
