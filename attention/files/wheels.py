"""Published networks that lie in packages: a wheel is verified by its hash and read as an archive; none of it is run."""

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from pooch import file_hash
from safetensors.torch import save

from attention.errors import UserError
from attention.files.openvino import Graph, mobile_state

PIP_LIMIT = 900                     # seconds for some 40 MB
MESH_FOLDER, MESH_NETWORKS = "mediapipe/modules", ("face_landmark/face_landmark", "iris_landmark/iris_landmark",
                                                   "selfie_segmentation/selfie_segmentation")


class Wheel(NamedTuple):
    """One wheel of a package, and the file that is made of it.

    Attributes:
        name: of the file that pip gets.
        options: of pip, so that every machine gets the same one.
        build: its archive and its name for messages -> the bytes of our file.
    """

    name: str
    sha256: str
    options: tuple[str, ...]
    build: Callable[[zipfile.ZipFile, str], bytes]


def mobile_generator(archive: zipfile.ZipFile, name: str) -> bytes:
    """MobileStyleGAN of FFHQ as the safetensors file of `generator.mobile`."""
    mapping, synthesis = (Graph(archive.read(f"random_face/data/{network}.xml"),
                                archive.read(f"random_face/data/{network}.bin"), f"{network}.xml in {name}")
                          for network in ("MappingNetwork", "SynthesisNetwork"))
    return save(mobile_state(mapping, synthesis))


def mesh_networks(archive: zipfile.ZipFile, name: str) -> bytes:
    """The networks of MediaPipe's face mesh as an archive of their own, the same bytes wherever it is made."""
    made = BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as small:
        for network in MESH_NETWORKS:
            entry = zipfile.ZipInfo(f"{network.rpartition('/')[2]}.tflite")
            entry.create_system = 3
            small.writestr(entry, archive.read(f"{MESH_FOLDER}/{network}.tflite"))
    return made.getvalue()


# What pip is asked for -> the wheel that it gets.
WHEELS = {
    "random-face==2021.7.21.1": Wheel(
        "random_face-2021.7.21.1-py3-none-any.whl", "e5d10e2be7df63f06123855ec591ca35dcb1d059eba47ddcb175d7d26b4019b5",
        (), mobile_generator),
    "mediapipe==0.10.14": Wheel(
        "mediapipe-0.10.14-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "a807328339e7356fda0bb14df12fedbf1d33bdf81649c5f8666b0026b1cc30b4",
        ("--python-version", "3.11", "--platform", "manylinux2014_x86_64"), mesh_networks),
}


def fetch_wheel(requirement: str, path: Path) -> None:
    """Make a file of a wheel: of one that lies beside `path`, or of the one that pip gets.

    Args:
        requirement: a key of WHEELS: the package and its version, as pip reads it.
    Raises:
        UserError: pip gets no wheel, or another one; what to do by hand.
    """
    wheel = WHEELS[requirement]
    with opened_wheel(requirement, path.parent) as archive:
        path.write_bytes(wheel.build(archive, wheel.name))


@contextmanager
def opened_wheel(requirement: str, beside: Path) -> Iterator[zipfile.ZipFile]:
    """A wheel as an archive, its hash verified: one that lies in the folder `beside`, or the one that pip gets.

    Args:
        requirement: a key of WHEELS.
    Raises:
        UserError: pip gets no wheel, or another one; what to do by hand.
    """
    wheel = WHEELS[requirement]
    with tempfile.TemporaryDirectory() as folder:
        file = beside / wheel.name
        if not file.is_file():
            file = _got(requirement, Path(folder), beside)
        digest = file_hash(str(file))
        if digest != wheel.sha256:
            raise UserError(f"{file} is not the published wheel: its SHA-256 is {digest}, but {wheel.sha256} was expected; "
                            "delete it and run the same command again")
        with zipfile.ZipFile(file) as archive:
            yield archive


def _got(requirement: str, folder: Path, beside: Path) -> Path:
    """The file of a wheel that pip has put into a folder; by hand it would be put into `beside`."""
    wheel = WHEELS[requirement]
    command = ["download", "--no-deps", "--only-binary", ":all:", *wheel.options, requirement]
    try:
        found = subprocess.run([sys.executable, "-m", "pip", *command, "--retries", "1", "--disable-pip-version-check",
                                "--dest", str(folder)], capture_output=True, text=True, timeout=PIP_LIMIT)
        said = found.stderr
    except subprocess.TimeoutExpired:
        said = f"nothing after {PIP_LIMIT} seconds"
    file = folder / wheel.name
    if not file.is_file():
        reason = (said.strip().splitlines() or ["it gives another file"])[-1].removeprefix("ERROR: ")
        raise UserError(f"pip could not get {wheel.name} ({reason}); where there is a network, run: pip "
                        f"{' '.join(command)}, put the file into {beside}, and run the same command again. "
                        "The drawn faces need no download: --run pretrained_models/drawn")
    return file
