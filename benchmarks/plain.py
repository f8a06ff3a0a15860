"""The published program's algorithm on one device, written down plainly: the other side of every benchmark.

It keeps the waste of the published program: grouped convolutions with weights of their own for every image, every
operation by itself, whole feature maps, loops over masks, five passes through the generator a step, and gradients for all
weights whether used or not. Nothing here calls the package: weights are read from it, under their published names, and
everything is computed anew, in the dtype of those weights.

Left out, to the published program's advantage: the noise of weight 0 that its attention heads draw, and the broadcast of
all feature maps to the other processes.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-8
STRENGTH, THRESHOLD, ALLOWED_MEAN, TEMPERATURE = 0.1, 0.8, 0.7, 0.01
LAMBDA_ESS, LAMBDA_SEC, LAMBDA_ID, LAMBDA_DELTA = 0.03, 0.01, 0.1, 0.03
RELU2_2, RELU4_3 = 9, 23        # VGG-16's layers up to here, of torchvision's `features`
CLIP_SIDE, ENLARGE = 32, 7      # the picture is enlarged 7x, then blocks of a 32nd of its side are averaged: 224 pixels

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class PlainWorld:
    """All that a published process holds; every weight asks for its gradient."""

    generator: Weights              # published names
    mean_w: Tensor                  # (D,)
    truncation: float
    clip: Any                       # of open_clip
    tokenize: Callable[[list[str]], Tensor]
    vgg: nn.Sequential              # VGG-16 up to relu4_3
    editor: Weights                 # mapper and attention, published names and shapes
    centroids: Tensor               # (K, C + 2 * (C // 16))
    layer: int                      # where edits blend, from 0


@dataclass(frozen=True)
class PlainSource:
    """The unedited picture: per style layer its style (B, C) and its feature map, the constant input last."""

    image: Tensor
    styles: list[Tensor]
    features: list[Tensor]


@dataclass(frozen=True)
class PlainEdit:
    """Edited pictures (B, 3, R, R), their styles, maps (B, 1, h, w), and region means (B, K), -1 for an empty region."""

    image: Tensor
    styles: list[Tensor]
    raw: Tensor
    attention: Tensor
    mask: Tensor
    means: Tensor


def plain_world(world, editor, vgg: nn.Sequential, dtype: torch.dtype = torch.float32) -> PlainWorld:
    """Copy the weights of ours.

    Args:
        world: a World of a CLIP of open_clip.
        editor: a RegionEditor.
        vgg: torchvision's VGG-16 `features`, at least up to relu4_3.
    """
    clip = world.clip.model
    released = {theirs: part.get_parameter(ours) for part in (editor.mapper, editor.attention)
                for ours, theirs in part.released_names().items()}
    # The published shape of a convolution's weights is (1, out, in, 1, 1).
    released = {name: tensor[None, :, :, None, None] if name.endswith("conv.weight") else tensor
                for name, tensor in released.items()}
    return PlainWorld(
        generator=_copy(world.generator.state_dict(), dtype), mean_w=world.generator.mean_w.detach().to(dtype),
        truncation=world.entry.truncation, clip=deepcopy(clip).to(dtype).requires_grad_(True),
        tokenize=lambda texts: world.clip.tokenize(texts, context_length=clip.context_length).to(world.device),
        vgg=deepcopy(vgg[:RELU4_3]).to(dtype).requires_grad_(True), editor=_copy(released, dtype),
        centroids=editor.regions.centroids.detach().to(dtype), layer=editor.layer)


def _copy(weights: Weights, dtype: torch.dtype) -> Weights:
    """Contiguous copies; all but filters and noise maps, which are no weights, ask for gradients."""
    return {name: tensor.detach().to(dtype, copy=True).contiguous().requires_grad_(
        not (name.endswith("kernel") or name.startswith("noises."))) for name, tensor in weights.items()}


# --- a training step


def plain_step(world: PlainWorld, source_z: Tensor, where: list[str], row: int, all_generated: Tensor, all_targets: Tensor,
               target_z: Tensor | None = None, what: list[str] | None = None,
               contrastive_weight: float = 1.0) -> dict[str, float]:
    """One step of one process, all ramps at 1; leaves gradients in `.grad` of all weights.

    As published, only those of the editor are cleared first; those of generator, CLIP and VGG add up for ever.

    Args:
        source_z: (1, D) of the source.
        where: B texts that the attention reads.
        row: this process's first row among those of all processes.
        all_generated, all_targets: (N, D) CLIP embeddings of all processes; the rows from `row` to `row + B` are replaced
            by those of this process, the others are constants.
        target_z: (B, D) of the faces whose CLIP image embeddings drive the edit (published), or
        what: B texts that drive it.
        contrastive_weight: 1, or N to undo that the published gather and averaging divide the term by N.
    """
    for weight in world.editor.values():
        weight.grad = None
    source = plain_source(world, source_z)
    target = plain_text(world, what or []) if target_z is None else plain_target(world, target_z)        # (B, D)
    edit = plain_edit(world, source, target, plain_text(world, where))
    generated = plain_embed(world, edit.image)                                                           # (B, D)
    terms = plain_losses(world, source, edit)
    terms["clip_contrastive"] = (contrastive_weight, info_nce(
        torch.cat([all_generated[:row], generated, all_generated[row + len(generated):]]),
        torch.cat([all_targets[:row], target, all_targets[row + len(target):]])))
    total: Any = sum(weight * term for weight, term in terms.values())
    total.backward()
    return {"total": total.item(), **{name: term.item() for name, (_, term) in terms.items()}}


def plain_source(world: PlainWorld, z: Tensor) -> PlainSource:
    """The face of z (1, D): once for its latents, and again for its picture and features."""
    styles = affine(world.generator, latents_of(world, z))
    image, features = synthesis(world.generator, styles)
    return PlainSource(image, styles, features)


def plain_target(world: PlainWorld, z: Tensor) -> Tensor:
    """(B, D) CLIP embeddings of other faces: once for their latents, and again for their pictures."""
    image, _ = synthesis(world.generator, affine(world.generator, latents_of(world, z)))
    return plain_embed(world, image)


def plain_text(world: PlainWorld, texts: list[str]) -> Tensor:
    """(B, D) CLIP embeddings."""
    return world.clip.encode_text(world.tokenize(texts))


def plain_embed(world: PlainWorld, images: Tensor) -> Tensor:
    """(B, 3, R, R) -> (B, D) CLIP embeddings."""
    return world.clip.encode_image(clip_input(images))


def plain_edit(world: PlainWorld, source: PlainSource, target: Tensor, where: Tensor) -> PlainEdit:
    """Edit one source with B embeddings (B, D) of what and where, as in training; it is copied for each of them."""
    features = [feature.repeat(len(target), 1, 1, 1) for feature in source.features]
    styles = [style.repeat(len(target), 1) for style in source.styles]
    edited = mapper(world.editor, styles, target)
    raw = attention(world.editor, features, where, features[world.layer].shape[-1])                     # (B, 1, h, h)
    labels = assign(features[world.layer], world.centroids)                                             # (B, h, h)
    pooled, means = region_means(raw, labels, len(world.centroids))
    mask = gate(pooled)
    image, _ = synthesis(world.generator, edited, blend=(world.layer, mask, features))
    return PlainEdit(image, edited, raw, pooled, mask, means)


def plain_losses(world: PlainWorld, source: PlainSource, edit: PlainEdit) -> dict[str, tuple[float, Tensor]]:
    """Name -> (weight, value) of every term but the contrastive one."""
    count = len([name for name in world.editor if name.startswith("mapper_all") and name.endswith("weight")])
    before = [style.repeat(len(edit.image), 1) for style in source.styles]
    deltas = [(after - old).norm(dim=1).mean() for after, old in zip(edit.styles[:count], before, strict=False)]
    images = source.image.repeat(len(edit.image), 1, 1, 1)
    return {
        "region_consistency": (LAMBDA_ESS, (edit.raw - edit.attention.detach()).pow(2).mean()),
        "attention_budget": (LAMBDA_SEC, F.relu(edit.means - ALLOWED_MEAN).sum() / len(edit.means)),
        "perceptual": (LAMBDA_ID, F.mse_loss(vgg_features(world.vgg, edit.image)[0], vgg_features(world.vgg, images)[0])),
        "style_delta": (LAMBDA_DELTA, sum(deltas) / count),
    }


def info_nce(generated: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each row of `generated` against its own row of `target`, both (N, D)."""
    generated = generated / generated.norm(dim=1, keepdim=True)
    target = target / target.norm(dim=1, keepdim=True)
    return F.cross_entropy(generated @ target.T / TEMPERATURE, torch.arange(len(generated), device=generated.device))


def clip_input(images: Tensor) -> Tensor:
    """(B, 3, R, R) -> (B, 3, 224, 224), by way of (B, 3, 7 R, 7 R)."""
    return F.avg_pool2d(F.interpolate(images, scale_factor=ENLARGE, mode="nearest"), images.shape[-1] // CLIP_SIDE)


def vgg_features(vgg: nn.Sequential, images: Tensor) -> tuple[Tensor, Tensor]:
    """relu2_2, which is compared, and relu4_3, which is not."""
    shallow = vgg[:RELU2_2](clip_input(images))
    return shallow, vgg[RELU2_2:](shallow)


# --- where and what


def mapper(weights: Weights, styles: Sequence[Tensor], text: Tensor) -> list[Tensor]:
    """Every layer's style (B, C); those that the mapper has weights for move a tenth of the way to their target."""
    edited = list(styles)
    for i, style in enumerate(styles):
        if f"mapper_{i}.weight" in weights:
            by_style = linear(weights, f"mapper_{i}", style)
            by_text = activate(linear(weights, f"mapper_text_{i}.0", text))
            by_text = activate(linear(weights, f"mapper_text_{i}.1", by_text))
            goal = linear(weights, f"mapper_all_{i}", torch.cat([by_style, by_text], dim=1))
            edited[i] = style + STRENGTH * (goal - style)
    return edited


def attention(weights: Weights, features: Sequence[Tensor], text: Tensor, side: int) -> Tensor:
    """(B, 1, side, side) in [0, 1], from every conv layer's whole map and, first, the constant (last in `features`)."""
    numbers = [i for i in range(len(features)) if f"attention_{i}.conv.weight" in weights]
    maps = []
    for name, feature in [("first", features[-1]), *((str(i), features[i]) for i in numbers)]:
        x = text_conv(weights, name, feature, text)                                  # (B, 32, H, W)
        maps.append(F.interpolate(x, size=(side, side), mode="nearest"))             # (B, 32, h, h)
    logits = text_conv(weights, "last", torch.cat(maps, dim=1), text)                # (B, 1, h, h)
    return torch.sigmoid(logits + weights["initial_bias"])


def text_conv(weights: Weights, name: str, x: Tensor, text: Tensor) -> Tensor:
    """A 1x1 convolution whose weights a text modulates, bias and activation."""
    style = linear(weights, f"attention_textca_{name}", text)                        # (B, C)
    x = modulated_conv2d(x, weights[f"attention_{name}.conv.weight"], style)
    return activate(x + weights[f"attention_{name}.activate.bias"].view(1, -1, 1, 1))


def assign(feature: Tensor, centroids: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h, w) number of the nearest centroid to each pixel, its position included."""
    batch, channels, height, width = feature.shape
    x = torch.linspace(-1, 1, width, device=feature.device, dtype=feature.dtype).view(1, 1, 1, -1)
    y = torch.linspace(-1, 1, height, device=feature.device, dtype=feature.dtype).view(1, 1, -1, 1)
    planes = [feature, x.repeat(batch, channels // 16, height, 1), y.repeat(batch, channels // 16, 1, width)]
    points = torch.cat(planes, dim=1).permute(0, 2, 3, 1).reshape(batch * height * width, -1)           # (N, D)
    distances = (points[:, None, :] - centroids[None, :, :]).pow(2).sum(dim=2)       # (N, K), by way of (N, K, D)
    return distances.argmin(dim=1).view(batch, height, width)


def region_means(values: Tensor, labels: Tensor, regions: int) -> tuple[Tensor, Tensor]:
    """Each pixel's (B, 1, h, w) region mean, mask by mask, and the means (B, K); an empty region has none, here -1."""
    pooled, means = torch.zeros_like(values), []
    for image in range(len(values)):
        for region in range(regions):
            mask = (labels[image] == region).to(values.dtype)
            mean = (values[image, 0] * mask).sum() / mask.sum()
            if torch.isnan(mean):
                means.append(torch.full_like(mean, -1.0))
                continue
            own = torch.zeros_like(values)
            own[image, 0] = mask
            pooled = pooled + own * mean
            means.append(mean)
    return pooled, torch.stack(means).view(len(values), regions)


def gate(values: Tensor) -> Tensor:
    """Values (B, 1, h, w) below the threshold become 0 but keep their gradient; then a 5x5 blur of sigma 1.1."""
    hard = torch.where(values < THRESHOLD, torch.zeros_like(values), values)
    straight = values + (hard - values).detach()
    offset = torch.arange(-2, 3, device=values.device, dtype=values.dtype)
    taps = torch.exp(-offset.pow(2) / (2 * 1.1**2))
    kernel = torch.outer(taps, taps) / taps.sum().pow(2)
    return F.conv2d(F.pad(straight, (2, 2, 2, 2), mode="reflect"), kernel[None, None])


# --- the generator


def layer_names(weights: Weights) -> list[str]:
    """The style layers in the order of synthesis, by the beginning of their parameters' names."""
    blocks = len([name for name in weights if name.startswith("to_rgbs.") and name.endswith("conv.weight")])
    return ["conv1", "to_rgb1", *(name for i in range(blocks)
                                  for name in (f"convs.{2 * i}", f"convs.{2 * i + 1}", f"to_rgbs.{i}"))]


def latents_of(world: PlainWorld, z: Tensor) -> Tensor:
    """z (B, D) -> w+ (B, n_latent, D), truncated.

    The published program asks its whole generator for them: a picture with fresh noise is made and thrown away.
    """
    weights = world.generator
    z = z.to(world.mean_w)                                                           # its device and dtype
    w = z * torch.rsqrt(z.pow(2).mean(dim=1, keepdim=True) + EPSILON)
    for i in range(1, 1 + len([name for name in weights if name.startswith("style.") and name.endswith("weight")])):
        w = activate(linear(weights, f"style.{i}", w, rate=0.01))
    w = world.mean_w + world.truncation * (w - world.mean_w)
    count = 2 * len([name for name in weights if name.startswith("to_rgbs.") and name.endswith("conv.weight")]) + 2
    latents = w[:, None, :].repeat(1, count, 1)
    synthesis(weights, affine(weights, latents), fresh_noise=True)
    return latents


def affine(weights: Weights, latents: Tensor) -> list[Tensor]:
    """w+ (B, n_latent, D) -> one style (B, C) per layer; a ToRGB layer shares its row with the next convolution."""
    rows = [0, 1] + [2 * block + offset for block in range(latents.shape[1] // 2 - 1) for offset in (1, 2, 3)]
    return [linear(weights, f"{name}.conv.modulation", latents[:, row])
            for name, row in zip(layer_names(weights), rows, strict=True)]


def synthesis(weights: Weights, styles: Sequence[Tensor], blend: tuple[int, Tensor, Sequence[Tensor]] | None = None,
              fresh_noise: bool = False) -> tuple[Tensor, list[Tensor]]:
    """Styles -> picture (B, 3, R, R) and every layer's map, the constant input appended.

    Args:
        blend: layer, mask (B, 1, h, w) and the source's maps: there, and in the next ToRGB, the source stays outside
            the mask.
        fresh_noise: instead of the stored maps.
    """
    names = layer_names(weights)
    blended = () if blend is None else (blend[0], next(i for i in range(blend[0], len(names)) if "rgb" in names[i]))
    constant = weights["input.input"].repeat(len(styles[0]), 1, 1, 1)                # (B, C, 4, 4)
    x, features, number = constant, [], 0
    picture: Any = None                                                              # until the first rgb layer
    for index, (name, style) in enumerate(zip(names, styles, strict=True)):
        if "rgb" in name:
            picture = out = to_rgb(weights, name, x, style, picture)
        else:
            noise = None if fresh_noise else weights[f"noises.noise_{number}"]
            x = out = styled_conv(weights, name, x, style, noise)
            number += 1
        if blend is not None and index in blended:
            mask = F.interpolate(blend[1], size=out.shape[-2:], mode="nearest")
            out = mask * out + (1 - mask) * blend[2][index]
            x, picture = (x, out) if "rgb" in name else (out, picture)
        features.append(out)
    return picture, [*features, constant]


def styled_conv(weights: Weights, name: str, x: Tensor, style: Tensor, noise: Tensor | None) -> Tensor:
    """(B, Cin, H, W) -> (B, Cout, H', W'): convolution, noise, bias, leaky ReLU, gain, one after the other."""
    x = modulated_conv2d(x, weights[f"{name}.conv.weight"], style, blur=weights.get(f"{name}.conv.blur.kernel"))
    if noise is None:
        noise = x.new_empty(len(x), 1, *x.shape[2:]).normal_()
    x = x + weights[f"{name}.noise.weight"] * noise
    return activate(x + weights[f"{name}.activate.bias"].view(1, -1, 1, 1))


def to_rgb(weights: Weights, name: str, x: Tensor, style: Tensor, below: Tensor | None) -> Tensor:
    """(B, C, H, W) -> (B, 3, H, W): colours, added to the enlarged picture of the resolution below."""
    rgb = modulated_conv2d(x, weights[f"{name}.conv.weight"], style, demodulate=False) + weights[f"{name}.bias"]
    return rgb if below is None else rgb + upfirdn2d(below, weights[f"{name}.upsample.kernel"], up=2, pad=(2, 1))


def modulated_conv2d(x: Tensor, weight: Tensor, style: Tensor, demodulate: bool = True,
                     blur: Tensor | None = None) -> Tensor:
    """x (B, Cin, H, W), weight (1, Cout, Cin, k, k), style (B, Cin): one group, with weights of its own, per image."""
    batch, channels, height, width = x.shape
    outputs, size = weight.shape[1], weight.shape[3]
    weight = weight * (channels * size**2) ** -0.5 * style.view(batch, 1, channels, 1, 1)    # (B, Cout, Cin, k, k)
    if demodulate:
        weight = weight * torch.rsqrt(weight.pow(2).sum(dim=(2, 3, 4), keepdim=True) + EPSILON)
    x = x.reshape(1, batch * channels, height, width)
    if blur is None:
        y = F.conv2d(x, weight.view(batch * outputs, channels, size, size), padding=size // 2, groups=batch)
        return y.view(batch, outputs, height, width)
    weight = weight.transpose(1, 2).reshape(batch * channels, outputs, size, size)
    y = F.conv_transpose2d(x, weight, stride=2, groups=batch)                        # (1, B * Cout, 2H + 1, 2W + 1)
    return upfirdn2d(y.view(batch, outputs, *y.shape[2:]), blur, pad=(1, 1))         # (B, Cout, 2H, 2W)


def mobile_synthesis(weights: Weights, styles: Sequence[Tensor],
                     blend: tuple[int, Tensor, Sequence[Tensor]] | None = None) -> list[Tensor]:
    """MobileStyleGAN: styles -> every layer's map, the last of which is the picture (B, 3, R, R).

    Args:
        blend: layer, mask (B, 1, h, w) and the source's maps: there the source stays outside the mask.
    """
    x, features = weights["input"].repeat(len(styles[0]), 1, 1, 1), []              # (B, C, 4, 4)
    for index, style in enumerate(styles):
        x = x * style[:, :, None, None]
        own: dict[str, Any] = {name: weights.get(f"synthesis_layers.{index}.{name}")
                               for name in ("depthwise", "weight", "noise", "bias")}
        depthwise, weight, noise, bias = own.values()
        if depthwise is not None:
            x = F.conv2d(x, depthwise, padding=1, groups=x.shape[1])
        if weight is not None:
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        if noise is not None:
            x = F.leaky_relu(x + noise + bias.view(1, -1, 1, 1), 0.2)
        else:
            x = inverse_haar(x if bias is None else x + bias.view(1, -1, 1, 1))
        if blend is not None and index == blend[0]:
            x = blend[1] * x + (1 - blend[1]) * blend[2][index]
        features.append(x)
    return features


def inverse_haar(x: Tensor) -> Tensor:
    """Bands (B, 4C, H, W), the C low ones first, to the map (B, C, 2H, 2W)."""
    low, high = x.split([x.shape[1] // 4, 3 * x.shape[1] // 4], dim=1)
    down, across, both = high.unflatten(1, (-1, 3)).unbind(2)                        # (B, C, H, W) each
    pixels = [low + down + across + both, low + down - across - both,
              low - down + across - both, low - down - across + both]
    return F.pixel_shuffle(torch.stack(pixels, dim=2).flatten(1, 2) * 0.5, 2)


def upfirdn2d(x: Tensor, kernel: Tensor, up: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """Zeros after every sample, padding, and a convolution with all channels as images of their own."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch * channels, 1, height, 1, width, 1)
    x = F.pad(x, (0, up - 1, 0, 0, 0, up - 1)).view(batch * channels, 1, height * up, width * up)
    x = F.conv2d(F.pad(x, (*pad, *pad)), kernel.flip(0, 1)[None, None])
    return x.view(batch, channels, *x.shape[2:])


def linear(weights: Weights, name: str, x: Tensor, rate: float = 1.0) -> Tensor:
    """An equalised linear layer."""
    weight = weights[f"{name}.weight"]
    return F.linear(x, weight * (rate * weight.shape[1] ** -0.5), weights[f"{name}.bias"] * rate)


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU and the gain that keeps the variance."""
    return F.leaky_relu(x, 0.2) * 2**0.5
