"""The authors' trained mapper into our form, and back.

    python -m attention.checkpoints convert pretrained_models/final_mapper.pt --output runs/authors
    python -m attention.checkpoints convert runs/ffhq --back --output mine.pt

The first writes runs/authors/editor.safetensors, which loads like a run of our own; the second writes a file for the
authors' program. --generator FILE ties the editor to the generator that it belongs to.
"""

import itertools
import json
import re
import sys
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attention.checkpoints import atomic_torch_save, read_safetensors, read_torch_file, write_safetensors
from attention.cluster_pickle import released_regions
from attention.config import TrainConfig, option, parse_config
from attention.domains import load_generator, settled
from attention.errors import UserError
from attention.generator import conv_layers, edited_layers, rgb_fed_by, synthesis_layers
from attention.mapper import StyleMapper
from attention.regions import UNKNOWN, RegionClusters, position_planes
from attention.spatial_attention import SpatialAttention

DOMAIN = "ffhq"           # of the published run


@dataclass(frozen=True)
class ConvertConfig:
    """Options of `convert FILE`."""

    output: Path | None = option(None, "folder for editor.safetensors, with --back the file; default: named after FILE")
    generator: Path | None = option(None, "weights of the generator that the authors' mapper belongs to")
    cluster_layer: int | None = option(None, "conv layer of its regions, counted from 1; default: where it blends", min=1)
    back: bool = option(False, "make a file for the authors' program of an editor of ours")


def main(argv: Sequence[str] | None = None) -> Path:
    """`convert FILE [flags]`; returns the path of what was written."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    config = parse_config(ConvertConfig, arguments[len(words):], __doc__)
    if len(words) != 2 or words[0] != "convert":
        raise UserError(f"got {' '.join(words) or 'no words'}, expected: convert FILE [--output PATH] (see --help)")
    file = Path(words[1])
    if config.back:
        return restore(file, config.output)
    return convert(file, config.output, config.generator, config.cluster_layer)


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
        self.used, self.unused = {}, {}
        for ours, theirs in self.names.items():
            self.used[theirs] = shape = tuple(self.get_parameter(ours).shape)
            if theirs.endswith(".conv.weight"):
                self.used |= {theirs: (1, *shape, 1, 1), theirs.replace("conv", "noise"): (1,)}
                linear, width = theirs.replace("conv.weight", "conv.modulation"), shape[1]
                self.unused |= {f"{linear}.weight": (width, width), f"{linear}.bias": (width,)}
        for layer in self.mapper.layers:
            linear = f"mapper_textca_{layer.index}.fc"
            self.unused |= {f"{linear}.weight": (4 * hidden, text_dim), f"{linear}.bias": (4 * hidden,)}


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
    problems += [f"unexpected {name}" for name in state if name not in expected and name not in parts.unused]
    problems += [f"{name} is {tuple(state[name].shape)} instead of {shape}" for name, shape in expected.items()
                 if name in state and state[name].shape != shape]
    if problems:
        raise _mistake(source, problems)
    if noisy := [name for name in expected if name.endswith(".noise.weight") and state[name].any()]:
        warnings.warn(f"{source}: {', '.join(noisy)} not 0, so the published attention maps are random; ours leave that "
                      "noise out", stacklevel=2)
    parts.load_state_dict({ours: state[theirs].float().reshape(parts.get_parameter(ours).shape)
                           for ours, theirs in parts.names.items()}, assign=True)
    return parts, state["initial_state"].float()


def to_released(parts: TrainedParts, centroids: Tensor) -> dict[str, Tensor]:
    """The inverse of `from_released`, for strict=True in the authors' program; noise and what it never uses are zeros."""
    ours = parts.state_dict()
    state = {name: torch.zeros(shape) for name, shape in (parts.used | parts.unused).items()} | {"initial_state": centroids}
    state |= {theirs: ours[name].reshape(parts.used[theirs]) for name, theirs in parts.names.items()}
    return {f"module.{name}": value for name, value in state.items()}


def convert(file: Path, output: Path | None = None, generator: Path | None = None,
            cluster_layer: int | None = None) -> Path:
    """Write the authors' final_mapper.pt as an editor that `load_run` takes; returns its path.

    Args:
        output: folder for editor.safetensors, or a path with that ending; default is the folder named after `file`.
        generator: the weights that it belongs to; without them the editor says that its generator is unknown.
        cluster_layer: conv layer of its regions, counted from 1, which the file does not say; default is where it blends.
    Raises:
        UserError: `file` is not a whole published mapper, its regions do not fit their layer, or `generator` is another.
    """
    parts, centroids = from_released(read_torch_file(file), file)
    layer = parts.blend if cluster_layer is None else cluster_layer - 1
    rgb_fed_by(parts.layers, layer)                                     # refuses a layer that is not a conv layer
    channels = parts.layers[layer].out_channels
    if centroids.shape[1] != (width := channels + 2 * position_planes(channels)):
        raise UserError(f"{file} has regions of width {centroids.shape[1]}, but the {channels} channels of layer "
                        f"{layer + 1} need {width}; give the conv layer that they were fitted at with --cluster_layer")
    generator_hash = UNKNOWN if generator is None else _generator_hash(generator, parts, file)
    regions = released_regions(centroids, layer, DOMAIN, generator_hash)
    output = output or file.with_suffix("")
    output = output if output.suffix == ".safetensors" else output / "editor.safetensors"
    config = TrainConfig(domain=DOMAIN, run=output.parent, recipe="released", ckpt=generator, max_change=0.0,
                         attention_layer=parts.blend + 1, cluster_layer=layer + 1, cluster_num=regions.num_regions)
    write_safetensors(output, parts.state_dict() | {"regions.centroids": regions.centroids},
                      {"kind": "where2edit editor", "config": json.dumps(asdict(settled(config)), default=str),
                       "generator_hash": generator_hash, "regions": json.dumps(regions.metadata)})
    print(f"{output}: blends at layer {parts.blend + 1} (counted from 1), {regions.num_regions} regions, "
          f"generator {generator_hash or 'unknown'}")
    return output


def restore(file: Path, output: Path | None = None) -> Path:
    """Write an editor of ours (a run folder, or its editor.safetensors) as a file for the authors' program.

    Args:
        output: default is final_mapper.pt beside the editor.
    Raises:
        UserError: `file` is no whole editor, or one whose edits would be others in the authors' program.
    """
    file = file / "editor.safetensors" if file.is_dir() else file
    tensors, metadata = read_safetensors(file, "where2edit editor", "python -m attention.run_attention")
    heads = sum(name.endswith(".style.weight") for name in tensors) - 1         # the rest but attention.last
    edited = sum(name.startswith("mapper.from_style.") and name.endswith(".weight") for name in tensors)
    try:
        regions = RegionClusters.from_metadata(tensors.pop("regions.centroids"), json.loads(metadata["regions"]), file)
        if "mapper.limit_0" in tensors or regions.position_weight != 1:
            raise UserError(f"{file} bounds the change of styles or weighs positions by {regions.position_weight:g}, which "
                            "the authors' program cannot do; fit regions with position_weight 1, train with --max_change 0")
        channels = [tensors[f"attention.heads.{i}.weight"].shape[1] for i in range(1, heads, 2)]
        hidden, text_dim = len(tensors["mapper.from_text.0.1.weight"]), tensors["mapper.from_text.0.0.weight"].shape[1]
        with torch.device("meta"):
            parts = TrainedParts(channels, edited, text_dim, hidden, features=len(tensors["attention.heads.0.weight"]))
        parts.load_state_dict(tensors, assign=True)
    except (KeyError, IndexError, RuntimeError) as error:
        raise UserError(f"{file} does not hold a whole editor ({' '.join(str(error).split())[:200]}); train it again: "
                        "python -m attention.run_attention") from error
    output = output or file.with_name("final_mapper.pt")
    atomic_torch_save(OrderedDict(to_released(parts, regions.centroids)), output)
    print(f"{output}: for the authors' program; the {len(parts.unused)} tensors that it never uses are zeros")
    return output


def _empty_parts(state: Mapping[str, Any], source: object) -> TrainedParts:
    """Parts without memory, of the sizes that a published state dict has."""
    if strange := [name for name, value in state.items() if not isinstance(value, Tensor) or not value.is_floating_point()]:
        raise _mistake(source, [f"{name} is no tensor of floats" for name in strange])
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
        raise _mistake(source, [f"missing {name} among {', '.join(list(state)[:3])}, ..."])
    if state[name].ndim <= axis:
        raise _mistake(source, [f"{name} is {tuple(state[name].shape)}"])
    return state[name].shape[axis]


def _mistake(source: object, problems: Sequence[str]) -> UserError:
    more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
    return UserError(f"{source} is not the authors' trained mapper: {', '.join(problems[:8])}{more}; get it again: "
                     "python -m attention.download final_mapper.pt")


def _generator_hash(path: Path, parts: TrainedParts, mapper: Path) -> str:
    generator, generator_hash = load_generator(path)
    channels = {layer.resolution: layer.out_channels for layer in conv_layers(parts.layers)}
    if generator.channels != channels:
        raise UserError(f"{path} has channels by side {generator.channels}, but {mapper} is for {channels}; give the "
                        "generator that the mapper belongs to with --generator")
    return generator_hash
