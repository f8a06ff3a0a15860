"""A web page that edits faces: what, where, how strongly; regions to click, history, style transfer, download.

    where2edit demo                    the shipped editor of drawn faces, at http://127.0.0.1:7860
    where2edit demo --run runs/ffhq    another editor

In a checkout that is not installed: python show_demo/try_demo.py instead of where2edit demo. Nothing of a user is kept but
in the user's own page. Uploads lie in a temporary folder, from which what is an hour old is swept every hour.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from attention.config import CKPT, DEVICE, TRUST, Config, option, parse_config
from attention.errors import UserError
from attention.extras import need


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
    config = parse_config(DemoConfig, argv, __doc__)
    need("demo", "the web page")

    import torch

    from attention.editing.desk import Desk
    from attention.editing.session import load_editor
    from attention.editing.widgets import build, serve
    # Half of the cores: a browser needs some too, and threads that wait for each other take 30 times as long.
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    page = build(Desk(load_editor(config.run, config.device, config.trust, config.ckpt)))
    try:
        serve(page, server_name=config.host, server_port=config.port)
    except OSError as error:
        raise UserError(f"nothing can be served at --host {config.host} --port {config.port} ({error}); is another page "
                        "there? Try another --port") from error
