"""The authors' trained mapper as an editor of ours, and back; see attention/convert.py."""

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, TypeAdapter

from attention.config import TrainConfig
from attention.errors import UserError
from attention.files.authors import NOISE, TrainedParts, from_released, read_released, released_noise, to_released
from attention.files.cluster_pickle import released_regions
from attention.files.disk import refuse_overwriting
from attention.files.generator import load_generator
from attention.files.reading import parse_json, shown
from attention.files.regions import regions_from_metadata
from attention.files.safetensors import read_safetensors, write_safetensors
from attention.files.torch_files import atomic_torch_save
from attention.generator import blended_layers, conv_layers
from attention.method.regions import UNKNOWN, position_planes
from attention.training.folder import claimed
from attention.training.runs import KIND, plain, remake
from attention.worlds.registry import configured

DOMAIN = "ffhq"           # of the published run
LARGEST_NOISE = 1e6
Strength = Annotated[float, Field(strict=True, ge=-LARGEST_NOISE, le=LARGEST_NOISE)]
NOISE_KEY = "released noise"            # in the metadata of a converted editor, see `authors.released_noise`


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
    state = read_released(file)
    parts, centroids = from_released(state, file)
    layer = parts.blend if cluster_layer is None else cluster_layer - 1
    blended_layers(parts.layers, layer)                                     # refuses a layer that is not a conv layer
    channels = parts.layers[layer].out_channels
    if centroids.shape[1] != (width := channels + 2 * position_planes(channels)):
        raise UserError(f"{file} has regions of width {centroids.shape[1]}, but the {channels} channels of layer "
                        f"{layer + 1} need {width}; give the conv layer that they were fitted at with --cluster_layer")
    generator_hash = UNKNOWN if generator is None else _generator_hash(generator, parts, file)
    regions = released_regions(centroids, layer, DOMAIN, generator_hash)
    output = output or file.with_suffix("")
    output = output if output.suffix == ".safetensors" else output / "editor.safetensors"
    refuse_overwriting([output], [file, *([generator] if generator else [])], "--output")
    refuse_there(output)
    config = configured(TrainConfig, domain=DOMAIN, run=output.parent, recipe="released", ckpt=generator, max_change=0.0,
                        attention_layer=parts.blend + 1, cluster_layer=layer + 1, cluster_num=regions.num_regions)
    with claimed(output.parent, "--output"):
        write_safetensors(output, parts.state_dict() | {"regions.centroids": regions.centroids},
                          {"kind": "where2edit editor", "config": json.dumps(plain(config)),
                           "generator_hash": generator_hash, "regions": json.dumps(regions.metadata),
                           NOISE_KEY: json.dumps(released_noise(state))})
    print(f"{output}: blends at layer {parts.blend + 1} (counted from 1), {regions.num_regions} regions, "
          f"generator {generator_hash or 'unknown'}")
    return output


def refuse_there(output: Path) -> None:
    """Refuse to write over a file, whoever's it is.

    Raises:
        UserError: it is there.
    """
    if os.path.lexists(output):
        raise UserError(f"{shown(output)} is there already, and would be replaced; name another place with --output, or "
                        "move it")


def restore(file: Path, output: Path | None = None) -> Path:
    """Write an editor of ours (a run folder, or its editor.safetensors) as a file for the authors' program.

    Args:
        output: default is final_mapper.pt beside the editor.
    Raises:
        UserError: `file` is no whole editor, or one whose edits would be others in the authors' program.
    """
    file = file / "editor.safetensors" if os.path.isdir(file) else file
    tensors, metadata = read_safetensors(file, KIND, remake(file.parent))
    heads = sum(name.endswith(".style.weight") for name in tensors) - 1         # the rest but attention.last
    edited = sum(name.startswith("mapper.from_style.") and name.endswith(".weight") for name in tensors)
    try:
        said = parse_json(metadata.get(NOISE_KEY, "{}"), f"{file} has no table of noise", "a table of numbers")
        noise = TypeAdapter(dict[str, Strength]).validate_python(said)
        regions = regions_from_metadata(tensors.pop("regions.centroids"), json.loads(metadata["regions"]), file)
        if "mapper.limit_0" in tensors or regions.position_weight != 1:
            raise UserError(f"{file} bounds the change of styles or weighs positions by {regions.position_weight:g}, which "
                            "the authors' program cannot do; fit regions with position_weight 1, train with --max_change 0")
        channels = [tensors[f"attention.heads.{i}.weight"].shape[1] for i in range(1, heads, 2)]
        hidden, text_dim = len(tensors["mapper.from_text.0.1.weight"]), tensors["mapper.from_text.0.0.weight"].shape[1]
        with torch.device("meta"):
            parts = TrainedParts(channels, edited, text_dim, hidden, features=len(tensors["attention.heads.0.weight"]))
        parts.load_state_dict(tensors, assign=True)
        if unknown := [name for name in noise if not (name.endswith(NOISE) and name in parts.used)]:
            raise ValueError(f"the noise of {unknown[0]}")
        state = to_released(parts, regions.centroids, noise)
    except UserError:
        raise
    except (KeyError, IndexError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{file} does not hold a whole editor ({shown(' '.join(str(error).split()))}); train it again: "
                        f"{remake(file.parent)}") from error
    output = output or file.with_name("final_mapper.pt")
    refuse_overwriting([output], [file], "--output")
    refuse_there(output)
    atomic_torch_save(OrderedDict(state), output)
    print(f"{output}: for the authors' program; the {len(parts.unused)} tensors that it never uses are zeros")
    return output


def _generator_hash(path: Path, parts: TrainedParts, mapper: Path) -> str:
    generator, generator_hash = load_generator(path)
    channels = {layer.resolution: layer.out_channels for layer in conv_layers(parts.layers)}
    if generator.channels != channels:
        raise UserError(f"{path} has channels by side {generator.channels}, but {mapper} is for {channels}; give the "
                        "generator that the mapper belongs to with --generator")
    return generator_hash
