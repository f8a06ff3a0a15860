"""Generators from files of every kind that people have."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from attention.errors import UserError
from attention.files.nvidia import read_nvidia
from attention.files.published import missing
from attention.files.torch_files import read_torch_file
from attention.generator import Generator, MobileStyleGAN, StyleGAN2


class Architecture(NamedTuple):
    """How the weights of one architecture look, and what builds the generator of them.

    Attributes:
        recognises: whether tensors by name are this architecture's.
        build: tensors -> a generator that keeps `generator.base.Generator`; raises UserError where they are not whole.
    """

    recognises: Callable[[Mapping[str, Tensor]], bool]
    build: Callable[[Mapping[str, Tensor]], Generator]


# The first that recognises a file builds it; if none does, StyleGAN2 says what is missing.
GENERATORS: dict[str, Architecture] = {
    "stylegan2": Architecture(lambda state: "to_rgb1.conv.weight" in state, StyleGAN2.from_state_dict),
    "mobile": Architecture(MobileStyleGAN.recognises, MobileStyleGAN.from_state_dict)}


def load_generator(path: Path) -> tuple[Generator, str]:
    """The frozen generator of a file, its mean latent included where the file has one, and the hash of its weights.

    Raises:
        UserError: see `read_generator`; or the tensors are no generator.
    """
    state = read_generator(path)
    weights = {key: value for key, value in state.items() if key != "latent_avg"}
    found = next((kind for kind in GENERATORS.values() if kind.recognises(weights)), GENERATORS["stylegan2"])
    try:
        generator = found.build(weights)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if "latent_avg" in state:
        generator.mean_w = state["latent_avg"].flatten()[-generator.style_dim:]
    return generator.requires_grad_(False).eval(), weights_hash(state)


def read_generator(path: Path) -> dict[str, Tensor]:
    """A generator's tensors: safetensors, a published .pt (its g_ema, and latent_avg where it has one), NVIDIA's .pkl.

    Raises:
        UserError: the file is missing, cut short or of another kind.
    """
    if not path.is_file():
        raise missing(path)
    if path.suffix == ".pkl":
        return read_nvidia(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:      # safetensors raises its own type for a broken header, OSError for a short file
            raise UserError(f"{path} is not a whole safetensors file ({error}); make or download it again") from error
    checkpoint = read_torch_file(path)
    if "g_ema" not in checkpoint:
        raise UserError(f"{path} has no g_ema, but a generator's checkpoint keeps its weights there; "
                        f"it holds {', '.join(map(str, list(checkpoint)[:4]))}, ...")
    state = checkpoint["g_ema"]
    if not isinstance(state, dict) or not all(isinstance(name, str) and isinstance(value, Tensor)
                                              for name, value in state.items()):
        raise UserError(f"{path} has a g_ema that is no table of tensors; expected a StyleGAN2 generator's weights: "
                        "get or make the file again")
    average = checkpoint.get("latent_avg")
    return {**state, "latent_avg": average} if isinstance(average, Tensor) else state


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """16 hex digits that name a set of weights whatever file they came in."""
    def raw(tensor: Tensor) -> bytes:
        tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor               # numpy has no bfloat16
        return tensor.contiguous().numpy().tobytes()

    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + raw(state[name]))
    return digest.hexdigest()[:16]
