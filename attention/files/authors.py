"""The authors' trained mapper: its tensors as our modules, and back; every name and shape checked."""

import itertools
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attention.errors import UserError
from attention.files.reading import shown
from attention.files.tensors import bare, checked
from attention.files.torch_files import read_tensors
from attention.generator import edited_layers, synthesis_layers
from attention.method.mapper import StyleMapper
from attention.method.spatial_attention import SpatialAttention


class TrainedParts(nn.Module):
    """Mapper and attention without their generator; the parameters have their names in editor.safetensors.

    Args:
        channels: width of the generator's maps at 4, 8, 16, ... px.
        edited: number of edited styles, from which the layer to blend at follows: 14 for the published layer 13.
        text_dim, hidden, features: see StyleMapper and SpatialAttention.
    """

    def __init__(self, channels: Sequence[int], edited: int, text_dim: int, hidden: int, features: int):
        super().__init__()
        sides = [4 * 2**i for i in range(len(channels))]
        self.layers = synthesis_layers(sides[-1], dict(zip(sides, channels, strict=True)))
        last = self.layers[min(edited, len(self.layers)) - 1]
        self.blend = last.index - (last.kind == "rgb")                          # from 0
        self.mapper = StyleMapper(edited_layers(self.layers, self.blend), text_dim, hidden)
        self.attention = SpatialAttention(self.layers, channels[0], text_dim, self.layers[self.blend].resolution, features)
        # Our parameter names -> the published ones, and published name -> shape: of what the published program computes
        # with (but the regions), and of what it creates and never uses.
        self.names = {f"{part}.{ours}": theirs for part in ("mapper", "attention")
                      for ours, theirs in getattr(self, part).released_names().items()}
        self.used: dict[str, tuple[int, ...]] = {}
        self.unused: dict[str, tuple[int, ...]] = {}
        for ours, theirs in self.names.items():
            self.used[theirs] = shape = tuple(self.get_parameter(ours).shape)
            if theirs.endswith(".conv.weight"):
                self.used |= {theirs: (1, *shape, 1, 1), theirs.replace("conv", "noise"): (1,)}
                linear, width = theirs.replace("conv.weight", "conv.modulation"), shape[1]
                self.unused |= {f"{linear}.weight": (width, width), f"{linear}.bias": (width,)}
        for layer in self.mapper.layers:
            linear = f"mapper_textca_{layer.index}.fc"
            self.unused |= {f"{linear}.weight": (4 * hidden, text_dim), f"{linear}.bias": (4 * hidden,)}


ADVICE = "get it again: python -m attention.download final_mapper.pt"
NOISE = ".noise.weight"         # of the published attention: strengths of noise that is drawn anew for every map


def read_released(path: Path) -> dict[str, Any]:
    """The state dict of a published mapper's file, without wrappers, every tensor checked.

    Raises:
        UserError: the file is missing, cut short, or holds what no network has.
    """
    state = bare(read_tensors(path))
    if strange := [name for name, value in state.items() if not isinstance(value, Tensor) or not value.is_floating_point()]:
        raise _mistake(path, [f"{shown(name, 80)} is no tensor of floats" for name in strange])
    return checked(state, path, ADVICE)


def from_released(state: Mapping[str, Tensor], source: object) -> tuple[TrainedParts, Tensor]:
    """The published state dict as our modules and the regions' centroids (K, D), float32, every name and shape checked.

    Args:
        state: tensors under their published names, all with or all without the prefix `module.`; those that the
            published program never uses may be missing.
        source: the file to name in messages.
    Raises:
        UserError: lists what is missing, unexpected or of another shape.
    """
    prefix = "module." if all(str(name).startswith("module.") for name in state) else ""
    state = {str(name).removeprefix(prefix): value for name, value in state.items()}
    parts = _empty_parts(state, source)
    expected = parts.used | {"initial_state": tuple(_size(state, "initial_state", axis, source) for axis in (0, 1))}
    problems = [f"missing {name}" for name in expected if name not in state]
    problems += [f"unexpected {shown(name, 80)}" for name in state if name not in expected and name not in parts.unused]
    problems += [f"{name} is {tuple(state[name].shape)} instead of {shape}" for name, shape in expected.items()
                 if name in state and state[name].shape != shape]
    if problems:
        raise _mistake(source, problems)
    if noisy := [name for name, strength in released_noise(state).items() if strength]:
        warnings.warn(f"{source}: {', '.join(noisy)} not 0, so the published attention maps are random; ours leave that "
                      "noise out, and a converted file keeps its strengths for --back", stacklevel=2)
    parts.load_state_dict({ours: state[theirs].float().reshape(parts.get_parameter(ours).shape)
                           for ours, theirs in parts.names.items()}, assign=True)
    return parts, state["initial_state"].float()


def released_noise(state: Mapping[str, Tensor]) -> dict[str, float]:
    """The strengths of the noise in a published state dict, without the prefix: ours never uses them, as an edit of the
    same face by the same text is the same edit."""
    return {name.removeprefix("module."): float(value) for name, value in state.items() if name.endswith(NOISE)}


def to_released(parts: TrainedParts, centroids: Tensor, noise: Mapping[str, float] | None = None) -> dict[str, Tensor]:
    """The inverse of `from_released`, for strict=True in the authors' program; what it never uses is zeros.

    Args:
        noise: as `released_noise` gave it, of the file that the parts came from; zeros where there is none.
    """
    ours = parts.state_dict()
    state = {name: torch.zeros(shape) for name, shape in (parts.used | parts.unused).items()} | {"initial_state": centroids}
    state |= {theirs: ours[name].reshape(parts.used[theirs]) for name, theirs in parts.names.items()}
    state |= {name: torch.full(parts.used[name], value) for name, value in (noise or {}).items()
              if name.endswith(NOISE)}
    return {f"module.{name}": value for name, value in state.items()}


def _empty_parts(state: Mapping[str, Any], source: object) -> TrainedParts:
    """Parts without memory, of the sizes that a published state dict has."""
    found = {match.groups() for name in state if (match := re.match(r"(attention|mapper)_(?:[a-z]+_)?(\d+)\.", name))}
    # Layers count by any of their tensors and without a gap, so that what is missing or foreign is reported as that.
    blocks = next(i for i in itertools.count(1) if not found & {("attention", f"{3 * i - 1}"), ("attention", f"{3 * i}")})
    edited = next(i for i in itertools.count() if ("mapper", f"{i}") not in found)
    # The last conv layer of side number i has the index 3 i.
    channels = [_size(state, f"attention_{3 * i}.conv.weight", 2, source) for i in range(max(blocks, 2))]
    with torch.device("meta"):
        return TrainedParts(channels, max(edited, 1), text_dim=_size(state, "mapper_text_0.0.weight", 1, source),
                            hidden=_size(state, "mapper_text_0.1.weight", 0, source),
                            features=_size(state, "attention_0.conv.weight", 1, source))


def _size(state: Mapping[str, Tensor], name: str, axis: int, source: object) -> int:
    if name not in state:
        raise _mistake(source, [f"missing {name} among {shown(', '.join(list(state)[:3]))}, ..."])
    if state[name].ndim <= axis:
        raise _mistake(source, [f"{name} is {tuple(state[name].shape)}"])
    return state[name].shape[axis]


def _mistake(source: object, problems: Sequence[str]) -> UserError:
    more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
    return UserError(f"{source} is not the authors' trained mapper: {', '.join(problems[:8])}{more}; {ADVICE}")
