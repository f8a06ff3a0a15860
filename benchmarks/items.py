"""What is measured: pairs of functions with one result, computed the published way (plain.py) and our way."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from attention.config import TrainConfig
from attention.generator import Blend, MobileStyleGAN, StyleGAN2, sample_z
from attention.images import area_resize
from attention.inversion.perceptual import VGG_SIDE
from attention.method.editor import RegionEditor
from attention.method.regions import RegionClusters, pool_by_region, region_points
from attention.ops import fused_leaky_relu, upfirdn2d
from attention.training.runs import build_editor
from attention.training.step import Draw, Learner, gradients
from attention.worlds.ffhq import FFHQ
from attention.worlds.registry import configured
from attention.worlds.world import World
from benchmarks import plain
from benchmarks.training_step import LAYER, REGIONS, random_world, world_around

BLEND, BLEND_SIDE = LAYER - 1, 64
PROCESSES = 8                   # of the published run, with one prompt each
MANY_REGIONS = 200
THIN = 16                       # thin models divide the widths of the published networks by this
MAP_CHANNELS = 32               # of the largest feature maps at 1024 px
MOBILE_WIDTHS = (512, 512, 512, 512, 512, 256, 128, 64)     # published, 1024 px

Results = dict[str, Any]        # tensors by name


@dataclass(frozen=True)
class Models:
    """The models at one size, with random weights, each made on first use.

    Args:
        side: of the picture.
        prompts: edited together in the items with several.
        faces: of a batch of clustering.
        thin: the published structure with narrow layers and shallow transformers, which computes in a second.
        exact: for comparing results: no weight is 0 that would hide a term, and nothing runs in half precision.
    """

    side: int
    device: torch.device
    prompts: int = PROCESSES
    faces: int = 2
    thin: bool = False
    exact: bool = False

    @cached_property
    def world(self) -> World:
        make, vgg = thin_world if self.thin else random_world, self.vgg[:plain.RELU2_2]
        torch.manual_seed(0)
        world = make(self.side, vgg, self.device)
        if self.exact:
            assert isinstance(world.generator, StyleGAN2)
            _stir(world.generator, ("noise.weight", "activate.bias", "to_rgb1.bias", *(
                f"to_rgbs.{i}.bias" for i in range(len(world.generator.to_rgbs)))))
        return world

    @cached_property
    def vgg(self) -> nn.Sequential:
        """VGG-16 up to relu4_3."""
        widths = [width if width == "M" or not self.thin else width // THIN for width in cfgs["D"]]
        layers = make_layers(widths)[:plain.RELU4_3].requires_grad_(False).eval()
        for layer in layers:
            if isinstance(layer, nn.Conv2d):                # torchvision's own, under which features keep their size
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        return layers.to(self.device)

    @cached_property
    def styles(self) -> list[Tensor]:
        """Of one face."""
        return [style.detach() for style in self.world.generator.styles(self.world.sample_w(1, seed=1))]

    @cached_property
    def mobile(self) -> MobileStyleGAN:
        """The generator of real faces, as large as the picture asks for."""
        torch.manual_seed(0)
        return mobile_network(self.side, self.thin).requires_grad_(False).to(self.device)

    def editor(self, config: TrainConfig) -> RegionEditor:
        """An untrained editor whose regions are around random pixels of a face."""
        with torch.no_grad():
            points = region_points(self.world.generator.synthesis(self.styles, until=BLEND).features[BLEND])
        torch.manual_seed(0)
        centroids = points[torch.randperm(len(points))[:config.cluster_num]]
        editor = build_editor(config, self.world, RegionClusters(centroids, BLEND, self.world.name).to(self.device))
        if self.exact:
            _stir(editor, ("bias",))
            nn.init.ones_(editor.attention.initial)         # about half of the region means then pass the gate
        return editor


@torch.no_grad()
def _stir(module: nn.Module, endings: tuple[str, ...]) -> None:
    """Add noise to the parameters whose names end so."""
    for name, parameter in module.named_parameters():
        if name.endswith(endings):
            parameter.add_(0.2 * torch.randn_like(parameter))


def mobile_network(side: int, thin: bool) -> MobileStyleGAN:
    """MobileStyleGAN of random weights that lets a picture through, of the published widths or a sixty-fourth of them."""
    widths = [width // 64 if thin else width for width in MOBILE_WIDTHS[:side.bit_length() - 3]]
    network = MobileStyleGAN(widths, *((8, 1) if thin else ()))
    for name, value in network.state_dict().items():
        if name.endswith("modulation.bias"):
            nn.init.ones_(value)                            # styles around 1, or the picture dies out on its way
        elif name.endswith(("noise", "bias")):
            nn.init.normal_(value)
    return network


def thin_world(side: int, vgg: nn.Module, device: torch.device) -> World:
    """`random_world` with narrow layers: a generator of this side, and a CLIP with one layer."""
    channels = {2**power: 32 if 2**power <= BLEND_SIDE else 16 for power in range(2, side.bit_length())}
    clip = CLIP(16, CLIPVisionCfg(layers=1, width=32, head_width=16, patch_size=32),
                CLIPTextCfg(width=16, heads=2, layers=1), quick_gelu=True)
    generator = StyleGAN2(side, style_dim=16, mapping_layers=2, channels=channels)
    return world_around(generator, clip, vgg, device, samples=64)


@dataclass(frozen=True)
class Pair:
    """Two functions with one result. `part` is as much of `plain` as it takes to warm up and to reach its peak memory."""

    plain: Callable[[], Results]
    ours: Callable[[], Results]
    part: Callable[[], Results] | None = None


@dataclass(frozen=True)
class Item:
    """A pair to measure."""

    what: str                           # for readers; {prompts} and {faces} stand for those of the models
    build: Callable[[Models], Pair]
    tolerance: float                    # how far results may differ, relative to the largest value of each
    heavy: bool = False                 # whole steps: minutes at the published sizes
    target: str = ""                    # how many times faster, and with which share of the memory

    @property
    def repeats(self) -> int:
        return 3 if self.heavy else 5


def largest_difference(ours: Results, plainly: Results) -> tuple[float, str]:
    """The largest error of any result relative to the result's largest value, and the name of that result."""
    def difference(name: str) -> float:
        expected = plainly[name].detach().double()
        actual = ours[name].detach().double().reshape(expected.shape)
        error = float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
        return math.inf if math.isnan(error) else error

    if ours.keys() != plainly.keys():
        return math.inf, ", ".join(sorted(ours.keys() ^ plainly.keys()))
    return max((difference(name), name) for name in plainly)


# --- whole training steps


def training_step(models: Models, processes: int, prompts: int, target: str, precision: str = "fp32",
                  regions: int = REGIONS) -> Pair:
    """A step of the first of several processes: its gradients of mapper and attention, and its losses.

    The embeddings of the other processes are constants. Our process takes its prompts together; the published program has
    one process for each prompt, so the plain side takes as many steps, one after another, and averages.
    """
    config = configured(TrainConfig, domain=FFHQ.name, batch_size=prompts, precision=precision, cluster_num=regions)
    editor, world = models.editor(config), models.world
    published = plain.plain_world(world, editor, models.vgg)
    with torch.no_grad():       # pictures of noise: near enough to those of faces that no prompt is an easy choice
        generated, targets = (world.clip.encode_image(torch.randn(processes * prompts, 3, 32, 32, device=world.device))
                              for _ in range(2))
    texts = list(FFHQ.prompts[:prompts])
    source_z, target_z = torch.randn(1 + prompts, world.generator.style_dim).split([1, prompts])
    learner = Learner.of(config, world, editor)

    def drawn() -> Draw:
        """What `training.step.draw` computes of its random numbers, of those that the plain side has too."""
        with torch.no_grad():
            where = world.clip.encode_text(texts)
            what = (world.clip.encode_image(world.picture(world.w_from_z(target_z))) if target == "image"
                    else world.clip.encode_text(texts))
        return Draw(0.5, editor.source(world.w_from_z(source_z)), what, where, where[:0], range(prompts))  # all ramps at 1

    def ours() -> Results:
        draw = drawn()
        others = replace(learner, gather=lambda rows: torch.cat([
            rows, (targets if rows is draw.target else generated)[prompts:]]))
        return _step_results(gradients(others, draw), published_gradients(editor))

    def theirs(rows: int) -> Results:
        results: dict[str, Any] = {}
        constants = (generated, targets)
        if models.exact and prompts > 1:
            constants = _first_pass(published, source_z, texts, *constants)
        for row in range(rows):
            own = slice(row, row + 1)
            given: dict[str, Any] = dict(target_z=target_z[own]) if target == "image" else dict(what=texts[own])
            values = plain.plain_step(published, source_z, texts[own], row, *constants,
                                      contrastive_weight=float(prompts), **given)
            found = {name: weight.grad for name, weight in published.editor.items()}
            for name, value in _step_results(values, found).items():
                results[name] = results.get(name, 0) + value / rows
        return results

    return Pair(lambda: theirs(prompts), ours, lambda: theirs(1))


@torch.no_grad()
def _first_pass(published: plain.PlainWorld, source_z: Tensor, texts: list[str], generated: Tensor,
                targets: Tensor) -> tuple[Tensor, Tensor]:
    """The embeddings of all processes; the first rows are those that this step's texts lead to."""
    source = plain.plain_source(published, source_z)
    edits: list[Tensor] = []
    aims: list[Tensor] = []
    for text in texts:
        aims.append(plain.plain_text(published, [text]))
        edit = plain.plain_edit(published, source, aims[-1], aims[-1])
        edits.append(plain.plain_embed(published, edit.image))
    return torch.cat([*edits, generated[len(edits):]]), torch.cat([*aims, targets[len(aims):]])


def published_gradients(editor: RegionEditor) -> Results:
    """Published name -> gradient."""
    parts: tuple[Any, ...] = (editor.mapper, editor.attention)
    return {theirs: part.get_parameter(name).grad for part in parts
            for name, theirs in part.released_names().items()}


def _step_results(values: Mapping[str, float], gradients: Results) -> Results:
    compared = ("clip_contrastive", "region_consistency", "attention_budget", "perceptual", "style_delta")
    found = {f"gradient of {name}": gradient for name, gradient in gradients.items()}
    return found | {name: torch.tensor(values[name]) for name in compared}


def step_image(models: Models) -> Pair:
    """The published setting: CLIP embeddings of other faces drive the edits, a prompt for each of eight processes."""
    return training_step(models, PROCESSES, 1, "image")


def step_text(models: Models) -> Pair:
    """All prompts in one process."""
    return training_step(models, 1, models.prompts, "text", "fp32" if models.exact else "bf16")


def regions_20_200(models: Models) -> Pair:
    """Our own step with many regions, in place of the plain side with the published number."""
    many = training_step(models, PROCESSES, 1, "image", regions=MANY_REGIONS)
    return many if models.exact else Pair(training_step(models, PROCESSES, 1, "image").ours, many.ours)


# --- parts of a step


def generator(models: Models, precision: torch.dtype = torch.float32) -> Pair:
    """A picture and all features of one face, without gradients."""
    ours, weights, styles = models.world.generator, _plain_generator(models), models.styles

    @torch.no_grad()
    def fast() -> Results:
        with torch.autocast(models.device.type, precision, enabled=precision != torch.float32):
            image, features = ours.synthesis(styles)
        return {"image": image} | {f"feature {i}": feature for i, feature in enumerate(features)}

    @torch.no_grad()
    def slow() -> Results:
        image, features = plain.synthesis(weights, styles)
        return {"image": image} | {f"feature {i}": feature for i, feature in enumerate(features[:-1])}

    return Pair(slow, fast)


def generator_bf16(models: Models) -> Pair:
    """The same, ours in bfloat16."""
    return generator(models, torch.bfloat16)


def faces(models: Models) -> Pair:
    """A picture of one real face."""
    network, weights, styles = models.mobile, _plain_mobile(models), _faces_styles(models, 1)

    @torch.no_grad()
    def slow() -> Results:
        return {"image": plain.mobile_synthesis(weights, styles)[-1]}

    return Pair(slow, lambda: {"image": network.picture(styles)})


def faces_slider(models: Models) -> Pair:
    """A real face edited inside a mask after a slider has moved: its styles up to the blend are other ones."""
    network, weights = models.mobile, _plain_mobile(models)
    styles, others = (_faces_styles(models, seed) for seed in (1, 2))
    side = min(BLEND_SIDE, models.side // 4)
    layer = max(layer.index for layer in network.layers if layer.kind == "conv" and layer.resolution == side)
    edited = [*others[:layer + 1], *styles[layer + 1:]]
    mask = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(3)).to(models.device)
    with torch.no_grad():
        blend = Blend(layer, mask, network.synthesis(styles, until=layer).features)

    @torch.no_grad()
    def fast() -> Results:
        return {"image": network.synthesis(edited, blend=blend, feature_side=0).image}

    @torch.no_grad()
    def slow() -> Results:
        features = plain.mobile_synthesis(weights, styles)
        return {"image": plain.mobile_synthesis(weights, edited, (layer, mask, features))[-1]}

    return Pair(slow, fast)


def _faces_styles(models: Models, seed: int) -> list[Tensor]:
    return models.mobile.styles(sample_z(1, models.mobile.style_dim, seed).to(models.device))      # z does for a w


def _plain_mobile(models: Models) -> plain.Weights:
    return {name: tensor.contiguous() for name, tensor in models.mobile.state_dict().items()}


def cluster_features(models: Models) -> Pair:
    """The blend layer's features of a batch of faces, for clustering."""
    ours, weights = models.world.generator, _plain_generator(models)
    styles = [style.detach() for style in ours.styles(models.world.sample_w(models.faces, seed=2))]

    @torch.no_grad()
    def fast() -> Results:
        return {"features": ours.synthesis(styles, until=BLEND).features[BLEND]}

    @torch.no_grad()
    def slow() -> Results:
        return {"features": plain.synthesis(weights, styles)[1][BLEND]}

    return Pair(slow, fast)


def _plain_generator(models: Models) -> plain.Weights:
    ours = models.world.generator
    assert isinstance(ours, StyleGAN2)
    return {name: tensor.contiguous() for name, tensor in ours.state_dict().items()}


def attention(models: Models) -> Pair:
    """Mapper, attention, regions, their means and the gate for one face and one prompt, forward and backward."""
    config = configured(TrainConfig, domain=FFHQ.name)
    editor, what, where = models.editor(config), *torch.randn(2, 1, models.world.clip.dim, device=models.device)
    features = editor.generator.synthesis(models.styles).features
    source = replace(editor.source_of(models.styles), features=features)     # whole maps, which ours shrinks first
    weights = plain.plain_world(models.world, editor, models.vgg).editor
    maps = [feature.contiguous() for feature in [*features, editor.generator.constant]]
    out = [torch.randn_like(value) for value in (*models.styles, *([source.labels[:, None].float()] * 3))]

    def results(styles: list[Tensor], raw: Tensor, means: Tensor, mask: Tensor, labels: Tensor) -> Results:
        total: Any = sum((value * factor).sum() for value, factor in zip([*styles, raw, means, mask], out, strict=True))
        total.backward()
        return {"raw": raw, "means": means, "mask": mask, "labels": labels}

    def fast() -> Results:
        editor.zero_grad(set_to_none=True)
        labels = editor.regions.assign(source.features[BLEND])
        place = editor.locate(replace(source, labels=labels), where, straight_through=True)
        found = results(editor.mapper(source.styles, what), place.raw, place.attention, place.mask, labels)
        return found | published_gradients(editor)

    def slow() -> Results:
        for weight in weights.values():
            weight.grad = None
        labels = plain.assign(maps[BLEND], editor.regions.centroids)
        raw = plain.attention(weights, maps, where, maps[BLEND].shape[-1])
        means, _ = plain.region_means(raw, labels, editor.regions.num_regions)
        found = results(plain.mapper(weights, models.styles, what), raw, means, plain.gate(means), labels)
        return found | {name: weight.grad for name, weight in weights.items()}

    return Pair(slow, fast)


def regions(models: Models, number: int = REGIONS) -> Pair:
    """Which region each pixel of a face belongs to, and the means over the regions, forward and backward."""
    feature = torch.randn(1, 512 // (THIN if models.thin else 1), BLEND_SIDE, BLEND_SIDE, device=models.device)
    clusters = RegionClusters(region_points(feature)[:number], BLEND, "random").to(models.device)
    values, out = torch.rand(2, 1, 1, BLEND_SIDE, BLEND_SIDE, device=models.device)

    def with_gradient(pool: Callable[[Tensor], Tensor]) -> Results:
        leaf = values.clone().requires_grad_()
        pooled = pool(leaf)
        pooled.backward(out)
        return {"means": pooled, "gradient": leaf.grad}

    return Pair(
        lambda: with_gradient(lambda x: plain.region_means(x, plain.assign(feature, clusters.centroids), number)[0]),
        lambda: with_gradient(lambda x: pool_by_region(x, clusters.assign(feature), number)))


def clip_input(models: Models) -> Pair:
    """A picture to the 224 px that CLIP and VGG-16 see, and the gradient back."""
    return _operation(torch.randn(1, 3, models.side, models.side, device=models.device),
                      plain.clip_input, lambda images: area_resize(images, VGG_SIDE))


def leaky_relu(models: Models) -> Pair:
    """Bias, leaky ReLU and gain on a map of the full side, and the gradient back."""
    bias = torch.randn(MAP_CHANNELS, device=models.device)
    return _operation(torch.randn(1, MAP_CHANNELS, models.side, models.side, device=models.device),
                      lambda x: plain.activate(x + bias.view(1, -1, 1, 1)), lambda x: fused_leaky_relu(x, bias))


def upfirdn(models: Models) -> Pair:
    """The blur after a convolution that doubles a map to the full side, and the gradient back."""
    kernel = torch.outer(*[torch.tensor([1.0, 3.0, 3.0, 1.0], device=models.device)] * 2) / 16
    return _operation(torch.randn(1, MAP_CHANNELS, models.side + 1, models.side + 1, device=models.device),
                      lambda x: plain.upfirdn2d(x, kernel, pad=(1, 1)), lambda x: upfirdn2d(x, kernel, pad=(1, 1)))


def _operation(x: Tensor, slow: Callable[[Tensor], Tensor], fast: Callable[[Tensor], Tensor]) -> Pair:
    """An operation on x and the gradient back; ours has its maps in channels-last order, as in our generator."""
    factor = torch.randn_like(slow(x))

    def run(operation: Callable[[Tensor], Tensor], order: torch.memory_format) -> Callable[[], Results]:
        leaf, gradient = (tensor.contiguous(memory_format=order) for tensor in (x.clone(), factor))
        leaf.requires_grad_()

        def once() -> Results:
            leaf.grad = None
            y = operation(leaf)
            y.backward(gradient)
            return {"value": y, "gradient": leaf.grad}

        return once

    return Pair(run(slow, torch.contiguous_format), run(fast, torch.channels_last))


ITEMS = {
    "step_image": Item("training step as published: image targets, one of eight processes", step_image, 2e-3, heavy=True,
                       target="7; 0.4"),
    "step_text": Item("training step with {prompts} texts, ours bf16 at once, plain one by one (memory: of one)",
                      step_text, 2e-3, heavy=True, target="15; 0.35"),
    "generator": Item("generator, picture and features", generator, 2e-5, target="2; 0.7"),
    "generator_bf16": Item("generator, picture and features, ours bf16", generator_bf16, 0.1, target="4; 0.5"),
    "faces": Item("a real face (MobileStyleGAN)", faces, 2e-5, target="2; 0.5"),
    "faces_slider": Item("a real face edited, after a slider's move", faces_slider, 2e-5, target="3; 0.5"),
    "attention": Item("mapper, attention and regions, forward and backward", attention, 1e-4, target="20; 0.1"),
    "regions": Item("regions of a face and means over them, forward and backward", regions, 2e-5),
    "clip_input": Item("picture to CLIP's input, forward and backward", clip_input, 2e-5, target="25; 0.05"),
    "cluster_features": Item("features of {faces} faces for clustering", cluster_features, 2e-5, target="9; 0.2"),
    "regions_20_200": Item("our training step, 20 regions against 200", regions_20_200, 2e-3, heavy=True,
                           target="0.87; 1.1"),
    "leaky_relu": Item("bias, leaky ReLU and gain, forward and backward", leaky_relu, 2e-5),
    "upfirdn2d": Item("blur, forward and backward", upfirdn, 2e-5),
}
