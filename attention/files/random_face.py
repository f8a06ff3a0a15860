"""MobileStyleGAN of FFHQ from the package random-face: its wheel is verified and read as an archive; none of it is run."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from pooch import file_hash
from safetensors.torch import save

from attention.errors import UserError
from attention.files.openvino import Graph, mobile_state

WHEEL = "random_face-2021.7.21.1-py3-none-any.whl"
WHEEL_SHA256 = "e5d10e2be7df63f06123855ec591ca35dcb1d059eba47ddcb175d7d26b4019b5"
PIP_LIMIT = 900                     # seconds for 37.6 MB


def fetch_mobile(requirement: str, path: Path) -> None:
    """Make the generator's safetensors file of the wheel: one that lies beside `path`, or the one that pip gets.

    Args:
        requirement: the package and its version, as pip reads it.
    Raises:
        UserError: pip gets no wheel, or another one; what to do by hand.
    """
    beside = path.parent / WHEEL
    if beside.is_file():
        return write_mobile(beside, path)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--retries", "1",
               "--disable-pip-version-check", requirement, "--dest"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = subprocess.run([*command, folder], capture_output=True, text=True, timeout=PIP_LIMIT)
            said = found.stderr
        except subprocess.TimeoutExpired:
            said = f"nothing after {PIP_LIMIT} seconds"
        wheel = Path(folder) / WHEEL
        if not wheel.is_file():
            reason = (said.strip().splitlines() or ["it gives another file"])[-1].removeprefix("ERROR: ")
            raise UserError(f"pip could not get {WHEEL} ({reason}); where there is a network, run: pip download --no-deps "
                            f"{requirement}, put the file into {path.parent}, and run the same command again. "
                            "The drawn faces need no download: --run pretrained_models/drawn")
        write_mobile(wheel, path)


def write_mobile(wheel: Path, path: Path) -> None:
    """Verify the wheel by its hash, read both networks from it, and write the tensors of `generator.mobile` to `path`.

    Raises:
        UserError: it is another file.
    """
    digest = file_hash(str(wheel))
    if digest != WHEEL_SHA256:
        raise UserError(f"{wheel} is not the published wheel: its SHA-256 is {digest}, but {WHEEL_SHA256} was expected; "
                        "delete it and run the same command again")
    with zipfile.ZipFile(wheel) as archive:
        mapping, synthesis = (Graph(archive.read(f"random_face/data/{name}.xml"),
                                    archive.read(f"random_face/data/{name}.bin"), f"{name}.xml in {wheel.name}")
                              for name in ("MappingNetwork", "SynthesisNetwork"))
    path.write_bytes(save(mobile_state(mapping, synthesis)))
