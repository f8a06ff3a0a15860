"""Small networks of ours as files: weights, the arguments that rebuild them, and what else they remember."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from attention.files.reading import parse_json, shown
from attention.files.safetensors import consistent, packed, read_safetensors, write_safetensors
from attention.files.tensors import Bounded

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class FileKind:
    """A kind of file, told by the name in its header.

    Attributes:
        name: so that another file is recognised as such.
        remake: the command that makes such a file, for messages.
    """

    name: str
    remake: str

    def save(self, path: str | Path, weights: nn.Module, said: dict[str, Any], dtype: torch.dtype = torch.float32) -> None:
        """Write weights and what is said of them as one safetensors file, all of it or nothing.

        Args:
            said: name -> anything that JSON holds.
            dtype: of the weights in the file; torch.float16 halves it, torch.int8 quarters it (`packed`).
        """
        state = weights.state_dict()
        others = {name: value for name, value in state.items() if not value.is_floating_point()}
        floats = {name: value for name, value in state.items() if name not in others}
        stored = packed(floats) if dtype is torch.int8 else {name: value.to(dtype) for name, value in floats.items()}
        tensors = {**stored, **others}
        metadata = {"kind": self.name, **{key: json.dumps(value) for key, value in said.items()}}
        write_safetensors(Path(path), tensors, metadata)

    def load(self, path: str | Path,
             build: Callable[[dict[str, Any], dict[str, Tensor]], tuple[Network, nn.Module]]) -> Network:
        """Read what `save` wrote: float32, frozen, in evaluation mode.

        Args:
            build: (what is said, tensors) -> the network, and the part of it whose weights were saved.
        Raises:
            UserError: the file is missing, cut short, of another kind, or its tensors contradict what it says.
        """
        tensors, metadata = read_safetensors(Path(path), self.name, self.remake)
        with consistent(Path(path), self.remake):
            said = {key: parse_json(value, f"{path} has a {shown(key, 80)} that is no JSON", "what describes the network")
                    for key, value in metadata.items() if key != "kind"}
            with Bounded(tensors):
                network, weights = build(said, tensors)
            weights.load_state_dict(tensors)
        network.requires_grad_(False).eval()
        return network
