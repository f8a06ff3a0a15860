"""Generators from files of every kind that people have."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attention.errors import UserError
from attention.files.networks import FileKind
from attention.files.nvidia import is_pickle, read_nvidia
from attention.files.published import found
from attention.files.reading import shown
from attention.files.safetensors import is_safetensors
from attention.files.tensors import bare, checked
from attention.files.torch_files import read_tensors
from attention.generator import Generator, MobileStyleGAN, StyleGAN2
from attention.generator.early import EarlyGenerator, EarlyHead


class Architecture(NamedTuple):
    """How the weights of one architecture look, and what builds the generator of them.

    Attributes:
        recognises: whether tensors by name are this architecture's.
        build: tensors -> a generator that keeps `generator.base.Generator`; raises UserError where they are not whole.
    """

    recognises: Callable[[Mapping[str, Tensor]], bool]
    build: Callable[[Mapping[str, Tensor]], Generator]


HEAD = FileKind("where2edit early picture", "python -m attention.worlds.faces.build --part heads")
AVERAGE = "latent_avg"
ADVICE = "get or make the file again"
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
    weights = {key: value for key, value in state.items() if key != AVERAGE}
    try:
        generator = (*_kinds(weights), GENERATORS["stylegan2"])[0].build(weights)
    except UserError as error:
        raise UserError(f"{path}: {shown(error, 1000)}") from error
    if AVERAGE in state:
        if state[AVERAGE].numel() % generator.style_dim:
            raise UserError(f"{path} has a mean latent of shape {tuple(state[AVERAGE].shape)}, expected "
                            f"{generator.style_dim} numbers; {ADVICE}")
        generator.mean_w = state[AVERAGE].flatten()[-generator.style_dim:]
    return generator.requires_grad_(False).eval(), weights_hash(state)


def save_head(path: Path, head: EarlyHead) -> None:
    """Write the head of an early picture, in half precision."""
    HEAD.save(path, head, {"config": head.config}, torch.float16)


def early_generator(generator: Generator, path: Path) -> Generator:
    """The early pictures of a whole generator, by the head in a file.

    Raises:
        UserError: the file is missing or broken, or made for a generator of other layers.
    """
    head = HEAD.load(path, lambda said, tensors: 2 * (EarlyHead(**said["config"]),)).to(generator.constant.device)
    try:
        if not isinstance(generator, MobileStyleGAN):
            raise ValueError(f"it reads a MobileStyleGAN, not a {type(generator).__name__}")
        return EarlyGenerator(generator, head).requires_grad_(False).eval()
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} is no early picture of this generator ({error}); make it with: {HEAD.remake}") from error


def read_generator(path: Path) -> dict[str, Tensor]:
    """A generator's tensors under their names without wrappers, and `latent_avg` where the file has one, all checked.

    A safetensors file, rosinality's checkpoint (its g_ema) or a state dict alone, or NVIDIA's pickle; the content says
    which it is, not the name.

    Raises:
        UserError: the file is missing, cut short, of another kind, or holds what no network has.
    """
    path = found(path, "a generator's weights")
    if is_pickle(path):
        return checked(read_nvidia(path), path, ADVICE)
    checkpoint = read_tensors(path)
    state = checkpoint.get("g_ema", checkpoint)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"{path} has a g_ema that is no table of tensors; expected a generator's weights: {ADVICE}")
    weights = bare({name: value for name, value in state.items() if name != AVERAGE})
    if state is checkpoint and not is_safetensors(path) and not _kinds(weights):
        raise UserError(f"{path} has no g_ema, but a generator's checkpoint keeps its weights there; it holds "
                        f"{shown(', '.join(list(checkpoint)[:4]))}, ...")
    average = state.get(AVERAGE, checkpoint.get(AVERAGE))
    return checked(weights | ({AVERAGE: average} if isinstance(average, Tensor) else {}), path, ADVICE)


def _kinds(state: Mapping[str, Any]) -> list[Architecture]:
    return [kind for kind in GENERATORS.values() if kind.recognises(state)]


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """16 hex digits that name a set of weights whatever file they came in."""
    def raw(tensor: Tensor) -> bytes:
        tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor               # numpy has no bfloat16
        return tensor.contiguous().numpy().tobytes()

    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + raw(state[name]))
    return digest.hexdigest()[:16]
