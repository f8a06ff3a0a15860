"""The attribute reader: reads a picture back into the numbers of a drawn face, to judge edits.

It is trained on drawings alone and the editor never sees it, so that an edit cannot be made to fool it. Its accuracy
travels in its file, because every success rate rests on it.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from attention.checkpoints import consistent, read_safetensors, write_safetensors
from attention.clip_models.base import preprocess
from attention.drawn.concepts import CONCEPTS, OPTIONS, Concept
from attention.drawn.faces import SIZE, FaceParams, draw_faces
from attention.drawn.fit_generator import sample_z, to_image
from attention.generator import Generator

FORMAT = "where2edit attribute reader 1"    # written into the file, so that another file is recognised as such
REBUILD = "python -m attention.drawn.build"
# Colours that no concept speaks of are not read.
READ_WIDTHS = {name: width for name, width in FaceParams.widths().items() if name not in ("background", "clothes")}
# A full step of position_x and position_y in pixels: the renderer's 0.10 and 0.08 of a half picture.
POSITION_STEP = {"position_x": 0.10 * SIZE / 2, "position_y": 0.08 * SIZE / 2}

NOISES = 128        # ready-made noise pictures that training picks from


@dataclass(frozen=True)
class ReaderFit:
    """How the shipped reader is made."""

    faces: int = 15_000
    steps: int = 2300
    batch: int = 48
    rate: float = 3e-3
    seed: int = 700


class AttributeReader(nn.Module):
    """Picture -> numbers of FaceParams: strided convolutions, then dense layers, because parts keep their places.

    Args:
        widths: channels of the convolutions; each halves the side, the first sees SIZE px.
        squeeze: channels that reach the dense layers.
        hidden: width of the dense layer.
    """

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96, 96), squeeze: int = 24, hidden: int = 128):
        super().__init__()
        self.config = dict(widths=list(widths), squeeze=squeeze, hidden=hidden)
        self.accuracies: dict[str, dict[str, float]] = {}       # by kind of picture, then by phrase; kept in the file
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths), (*widths, squeeze), strict=True):
            last = len(layers) == 3 * len(widths)
            layers += [nn.Conv2d(before, after, 1 if last else 3, stride=1 if last else 2, padding=0 if last else 1,
                                 bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        side = SIZE >> len(widths)
        self.trunk = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(squeeze * side * side, hidden), nn.ReLU(),
                                  nn.Linear(hidden, sum(READ_WIDTHS.values())))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, R, R) in [-1, 1] -> logits by field: (B, options) of a category, (B, 1) of a value."""
        pixels = preprocess(images, SIZE).contiguous(memory_format=torch.channels_last)
        logits = self.head(self.trunk(pixels))
        return dict(zip(READ_WIDTHS, logits.split(list(READ_WIDTHS.values()), dim=1), strict=True))

    @torch.no_grad()
    def read(self, images: Tensor) -> FaceParams:
        """(B, 3, R, R) in [-1, 1] -> what the reader sees; background and clothes, which it does not read, are 0.5."""
        training = self.training
        self.eval()
        parts = [self(part) for part in images.split(64)]
        self.train(training)
        values = {}
        for name in READ_WIDTHS:
            logits = torch.cat([part[name] for part in parts])
            seen = logits.softmax(dim=1) if name in OPTIONS else logits.sigmoid()[:, 0]
            values[name] = seen.float().cpu().numpy()
        unread = np.full((len(images), 3), 0.5, np.float32)
        return FaceParams(**values, background=unread, clothes=unread)

    def holds(self, concept: Concept, images: Tensor) -> np.ndarray:
        """(B,) bool: the concept is seen in each picture (see `seen_in`)."""
        return seen_in(concept, self.read(images))

    def save(self, path: str | Path) -> None:
        """Write weights, configuration and accuracies as one safetensors file, all of it or nothing."""
        metadata = {"kind": FORMAT, "config": json.dumps(self.config), "accuracies": json.dumps(self.accuracies)}
        write_safetensors(Path(path), self.state_dict(), metadata)

    @classmethod
    def load(cls, path: str | Path) -> "AttributeReader":
        """Read a file that `save` wrote: fixed weights, in evaluation mode.

        Raises:
            UserError: the file is missing, cut short, of another kind, or its tensors contradict its configuration.
        """
        weights, metadata = read_safetensors(Path(path), FORMAT, REBUILD)
        with consistent(Path(path), REBUILD):
            reader = cls(**json.loads(metadata["config"]))
            reader.load_state_dict(weights)
            reader.accuracies = json.loads(metadata["accuracies"])
        return reader.requires_grad_(False).eval()


def seen_in(concept: Concept, params: FaceParams) -> np.ndarray:
    """(N,) bool: the option's weight is the largest, or the value is beyond the middle of the concept's two bounds."""
    values = getattr(params, concept.field)
    if concept.option is not None:
        return values.argmax(axis=1) == OPTIONS[concept.field].index(concept.option)
    middle = (concept.true_beyond + concept.false_before) / 2
    return values > middle if concept.true_beyond >= concept.false_before else values < middle


def accuracy(reader: AttributeReader, images: Tensor, params: FaceParams) -> dict[str, float]:
    """Balanced accuracy of `holds` by phrase, over the faces where the phrase is plainly true or plainly false.

    Args:
        images: (N, 3, R, R) in [-1, 1], pictures of `params`.
    Returns:
        Mean of the shares of true and of false faces read rightly; a phrase that lacks either is left out.
    """
    seen, result = reader.read(images), {}
    for concept in CONCEPTS:
        truth, held = concept.truth(params), seen_in(concept, seen)
        if (truth == 1).any() and (truth == 0).any():
            result[concept.phrase] = float((held[truth == 1].mean() + 1 - held[truth == 0].mean()) / 2)
    return result


@torch.no_grad()
def measure(reader: AttributeReader, generator: Generator, count: int = 512, seed: int = 123) -> dict:
    """`accuracy` on held-out drawings ("drawings") and on unedited generated faces ("generated"); also kept in it."""
    params = FaceParams.sample(count, seed)
    z = sample_z(count, seed)
    made = torch.cat([generator.synthesis(generator.styles(generator.mapping(part))).image for part in z.split(32)])
    reader.accuracies = {"drawings": accuracy(reader, to_image(draw_faces(params).images), params),
                         "generated": accuracy(reader, made, FaceParams.from_z(z.numpy()))}
    return reader.accuracies


def fit_reader(fit: ReaderFit = ReaderFit()) -> AttributeReader:
    """Train a reader on augmented drawings; it sees no generated face."""
    torch.manual_seed(fit.seed)
    reader = AttributeReader().train()
    params = FaceParams.sample(fit.faces, fit.seed)
    parts = [params.take(slice(i, i + 512)) for i in range(0, fit.faces, 512)]
    pixels = np.concatenate([draw_faces(part).images for part in tqdm(parts, desc="drawings")])
    targets = {name: torch.from_numpy(getattr(params, name)).reshape(fit.faces, -1) for name in READ_WIDTHS}
    optimiser = torch.optim.AdamW(reader.parameters(), lr=fit.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, fit.rate, total_steps=fit.steps, pct_start=0.05)
    random = torch.Generator().manual_seed(fit.seed)
    bar = tqdm(range(fit.steps), desc="reader")
    for step in bar:
        rows = torch.randint(fit.faces, (fit.batch,), generator=random)
        images, shift = augment(to_image(pixels[rows.numpy()]), random)
        wanted = {name: target[rows] for name, target in targets.items()}
        for axis, name in enumerate(("position_x", "position_y")):
            wanted[name] = (wanted[name] + shift[:, axis:axis + 1] / POSITION_STEP[name]).clamp(0, 1)
        loss = _loss(reader(images), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{float(loss.detach()):.4f}")
    return reader.requires_grad_(False).eval()


def _loss(logits: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy over the fields, less the part that no answer can avoid: 0 is perfect."""
    total = torch.zeros(())
    for name, target in wanted.items():
        if name in OPTIONS:
            excess = F.cross_entropy(logits[name], target) + torch.special.xlogy(target, target).sum(dim=1).mean()
        else:
            unavoidable = torch.special.xlogy(target, target) + torch.special.xlogy(1 - target, 1 - target)
            excess = F.binary_cross_entropy_with_logits(logits[name], target) + unavoidable.mean()
        total = total + excess
    return total / len(wanted)


def augment(images: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Make drawings less clean: blur (sigma to 1.5 px), loss of resolution, shift (to 3 px), colour jitter, noise.

    Generated and edited faces are softer than drawings; a quarter of the pictures stay sharp.
    Returns:
        The pictures, and (B, 2) the shift of each in pixels, x and y.
    """
    count, size = len(images), images.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=random)

    shift = uniform(-3, 3, 2).round()
    sigma = (uniform(-0.5, 1.5)).clamp(min=0.05).view(-1, 1, 1)
    rows, columns = (_blur_matrix(size, sigma, shift[:, axis].view(-1, 1, 1)) for axis in (1, 0))
    images = rows @ images.permute(0, 2, 3, 1).reshape(count, size, -1)                 # (B, H, 3W)
    images = images.view(count, size, size, 3).permute(0, 3, 1, 2).reshape(count, -1, size) @ columns.mT
    images = images.view(count, 3, size, size)
    coarse = torch.rand(count, generator=random) < 0.25
    if coarse.any():
        side = int(torch.randint(size * 2 // 5, size, (), generator=random))
        images[coarse] = F.interpolate(preprocess(images[coarse], side), size=(size, size), mode="bilinear")
    images = images * uniform(0.92, 1.08, 3, 1, 1) + uniform(-0.06, 0.06, 3, 1, 1)
    noise = _noise_bank(size)[torch.randint(NOISES, (count,), generator=random)]
    return images.addcmul(noise, uniform(-0.06, 0.06, 1, 1, 1)).clamp_(-1, 1), shift


@lru_cache(maxsize=2)
def _noise_bank(size: int) -> Tensor:
    """(NOISES, 3, size, size) normal noise: drawing it anew would take as long as half the training step."""
    return torch.randn(NOISES, 3, size, size, generator=torch.Generator().manual_seed(0))


def _blur_matrix(size: int, sigma: Tensor, shift: Tensor) -> Tensor:
    """(B, size, size) matrices that blur one axis and move it by `shift` px; past the edge the last pixel goes on."""
    place = torch.arange(size, dtype=torch.float32)
    distance = place.view(1, 1, -1) - (place.view(1, -1, 1) - shift).clamp(0, size - 1)
    # Bounded and cut off: denormal numbers would make this and the products three times as slow.
    weights = F.threshold(torch.exp((-0.5 * (distance / sigma) ** 2).clamp(min=-20)), 1e-6, 0)
    return weights / weights.sum(dim=2, keepdim=True)
