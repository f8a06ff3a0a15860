"""Worlds and editors of random weights, small enough that a test may train them; importing this takes little time."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from attention.clip_models.tiny import TinyCLIP
from attention.generator import Generator, StyleGAN2
from attention.images import area_resize
from attention.method.editor import RegionEditor
from attention.method.regions import RegionClusters, fit_kmeans, region_points
from attention.worlds.base import Part, WorldEntry
from attention.worlds.world import World

PROMPTS = ("red hair", "blue eyes", "smiling")


def tiny_editor():
    """An untrained editor on a 32 px generator of random weights: blends at the second 16 px convolution, K = 5."""
    torch.manual_seed(0)
    generator = StyleGAN2(32, style_dim=16, mapping_layers=2, channels={4: 16, 8: 16, 16: 16, 32: 8})
    generator.requires_grad_(False).eval()
    with torch.no_grad():
        features = generator.synthesis(generator.styles(torch.randn(4, 16)), until=6).features[6]
    regions = RegionClusters(fit_kmeans(region_points(features), 5, seed=0), layer=6, domain="tiny")
    return RegionEditor(generator, regions, layer=6, text_dim=8)


def tiny_edit():
    """An editor that follows edges, a source, two texts that it knows nothing of, styles of the first and a mask."""
    editor = tiny_editor()
    editor.follows_edges = True
    random = torch.Generator().manual_seed(1)
    source, (text, other) = editor.source(torch.randn(1, 16, generator=random)), torch.randn(2, 1, 8, generator=random)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 5:12, 5:12] = 1
    return editor, source, text, other, editor.mapper(source.styles, text, 1.0), mask


class LinearCLIP:
    """Average-pooled pixels times a fixed matrix, in CLIP's place; it reads no texts."""

    def __init__(self, matrix: Tensor, side: int, factor: float = 1.0):
        self.matrix, self.side, self.factor, self.dim = matrix, side, factor, matrix.shape[1]

    def encode_image(self, images: Tensor) -> Tensor:
        return area_resize(images, self.side).flatten(1) @ self.matrix * self.factor


def tiny_world(generator: Generator, clip: LinearCLIP | None = None, views: str = "plain",
               perceptual: Callable[[Tensor], Tensor] = lambda images: images) -> World:
    """A world around a generator, its parts given."""
    entry = WorldEntry("tiny", Path("none"), ("a",), Part("tiny", "none"), truncation=1.0, views=views)
    return World(entry, generator, "", torch.device("cpu"), clip=clip, perceptual=perceptual)


def tiny_toml(folder: Path) -> Path:
    """Write a world of random weights as a user does: 32 px, blended at 16 px, five regions; returns tiny.toml."""
    weights = tiny_editor().generator.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "generator.safetensors")
    torch.manual_seed(0)
    clip = TinyCLIP(PROMPTS, dim=8, image_size=16, width=4, text_width=8, text_heads=2, text_layers=1)
    clip.save(folder / "clip.safetensors")
    return world_file(folder, "tiny", 'kind = "tiny", source = "clip.safetensors"')


def world_file(folder: Path, name: str, clip: str, generator: str = "generator.safetensors", layer: int = 7) -> Path:
    """NAME.toml of a world of these parts, with five regions."""
    path = folder / f"{name}.toml"
    path.write_text(f'generator = "{generator}"\nclip = {{ {clip} }}\nprompts = {json.dumps(PROMPTS)}\n'
                    f'perceptual = "pixels"\n[settings]\nattention_layer = {layer}\ncluster_num = 5\n')
    return path
