"""The regions of a world's faces: features of sampled faces, and k-means over them."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from attention.config import ClusterConfig
from attention.errors import UserError
from attention.generator import blended_layers
from attention.method.regions import MAX_POINTS, RegionClusters, fit_kmeans, position_planes, region_overlay, region_points
from attention.worlds.world import World

OVERLAY_FACES = 8
MOST_FACES = 1_000_000       # whose latents are in memory at once


def fit_regions(world: World, config: ClusterConfig) -> RegionClusters:
    """The regions of the layer that the options name, with all that says where they come from.

    Raises:
        UserError: the layer is not a conv layer, or there are fewer pixels than regions, or more faces than memory holds.
    """
    if (faces := config.step * config.batch_size) > MOST_FACES:
        raise UserError(f"--step {config.step} times --batch_size {config.batch_size} are {faces:,} faces, expected at "
                        f"most {MOST_FACES:,}")
    layer = config.attention_layer - 1
    blended_layers(world.generator.layers, layer)                       # refuses a layer that is not a conv layer
    centroids = fit_kmeans(sample_points(world, config, layer), config.cluster_num, config.seed)
    return RegionClusters(centroids, layer, world.name, config.seed, world.generator_hash, config.position_weight,
                          config.enlarge).to(world.device)


@torch.no_grad()
def sample_points(world: World, config: ClusterConfig, layer: int) -> Tensor:
    """(N, D) features of the sampled faces; from each batch an equal random share, at most MAX_POINTS in all.

    They are written in place, batch by batch: joining the shares at the end would need twice the memory.
    """
    spec, random = world.generator.layers[layer], np.random.default_rng(config.seed)
    share = min(max(1, MAX_POINTS // config.step), config.batch_size * (spec.resolution * config.enlarge)**2)
    width = spec.out_channels + 2 * position_planes(spec.out_channels)
    sampled = torch.empty(config.step * share, width, device=world.device)
    w = world.sample_w(config.step * config.batch_size, config.seed)
    for rows, part in zip(sampled.split(share), tqdm(w.split(config.batch_size), desc="features"), strict=True):
        features = world.generator.synthesis(world.generator.styles(part), until=layer).features
        points = region_points(features[layer], config.position_weight, config.enlarge)
        chosen = np.sort(random.permutation(len(points))[:share])
        rows.copy_(points[torch.from_numpy(chosen).to(world.device)])
    return sampled


@torch.no_grad()
def sample_overlay(world: World, regions: RegionClusters, seed: int) -> Image.Image:
    """`region_overlay` of OVERLAY_FACES seeded faces in a row, made one by one to save memory."""
    side, pictures = world.generator.layers[regions.layer].resolution, []
    for w in world.sample_w(OVERLAY_FACES, seed).split(1):
        image, features = world.generator.synthesis(world.generator.styles(w), feature_side=side)
        assert image is not None                                # synthesis stops nowhere
        pictures.append(region_overlay(image, regions.assign(features[regions.layer])))
    return Image.fromarray(np.concatenate(pictures, axis=1))
