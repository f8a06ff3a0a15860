"""The worlds that the method runs in: which generator, which CLIP, which prompts, and the settings that suit them.

This is the only file that knows concrete choices. A new world is one more entry of DOMAINS.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from attention.checkpoints import read_torch_file
from attention.clip_models import CLIP_MODELS
from attention.clip_models.base import TextImageModel
from attention.drawn.concepts import BY_PHRASE, EDIT_PROMPTS, PART_NAMES
from attention.drawn.fit_clip import augment
from attention.errors import UserError
from attention.generator import Generator

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "pretrained_models"
REAL_WHERE = ("tanned skin", "narrow nose", "narrow eyes", "thin eyebrows", "wearing a pair of earrings",
              "pink lipsticks", "grey hair")                                     # the published attention prompts


@dataclass(frozen=True)
class DomainEntry:
    """What is fixed about a world. `settings` override the general defaults of ClusterConfig and TrainConfig."""

    generator: Path
    clip: str                           # a key of CLIP_MODELS
    clip_source: str                    # a file, or a name that the loader knows
    truncation: float
    prompts: tuple[str, ...]            # what a user would type; training and evaluation draw from them
    where_texts: Callable[[str], tuple[str, ...]]       # prompt -> other texts that name its place
    settings: Mapping[str, Any] = field(default_factory=dict)
    views: Callable[[Tensor, torch.Generator], Tensor] | None = None    # augmented views of an edit for CLIP to score


@dataclass(frozen=True)
class Domain:
    """A loaded world: frozen generator and CLIP on one device."""

    name: str
    entry: DomainEntry
    generator: Generator
    clip: TextImageModel
    generator_hash: str
    device: torch.device

    def sample_w(self, count: int, seed: int) -> Tensor:
        """(count, style_dim) seeded latents of this domain's truncation; the same on every device."""
        return self.w_from_z(torch.randn(count, self.generator.style_dim, generator=torch.Generator().manual_seed(seed)))

    @torch.no_grad()
    def w_from_z(self, z: Tensor) -> Tensor:
        """z (B, style_dim) on any device -> w (B, style_dim)."""
        return self.generator.mapping(z.to(self.device), self.entry.truncation)


def _drawn_where(prompt: str) -> tuple[str, ...]:
    if prompt not in BY_PHRASE:         # a caption's own words; they name their place themselves
        return (prompt,)
    part = BY_PHRASE[prompt].part
    return PART_NAMES[part] + tuple(other for other in EDIT_PROMPTS if BY_PHRASE[other].part == part)


DOMAINS = {
    "ffhq": DomainEntry(generator=WEIGHTS / "stylegan2-ffhq-config-f.pt", clip="released",
                        clip_source=str(WEIGHTS / "ViT-B-32.pt"), truncation=0.7, prompts=REAL_WHERE,
                        where_texts=lambda prompt: REAL_WHERE),
    # The fitted generator covers all of z, so nothing is truncated. A small CLIP gives weaker, noisier gradients than
    # ViT-B/32, and 128 px faces have parts of a few pixels: the README says why each setting differs from the paper's.
    "drawn": DomainEntry(generator=WEIGHTS / "drawn/generator.safetensors", clip="tiny",
                         clip_source=str(WEIGHTS / "drawn/clip.safetensors"), truncation=1.0, prompts=EDIT_PROMPTS,
                         where_texts=_drawn_where, views=augment,
                         settings=dict(cluster_num=40, position_weight=0.6, step=1100, batch_size=16, temperature=0.03,
                                       relative=True, lambda_ess=1.0, lambda_sec=0.02, lambda_area=0.8, lambda_id=0.8,
                                       lambda_delta=0.03, max_change=30.0, precision="bf16")),
}


def domain_entry(name: str) -> DomainEntry:
    """The entry of a known domain.

    Raises:
        UserError: no domain has this name.
    """
    if name not in DOMAINS:
        raise UserError(f"--domain is {name!r}, expected one of {', '.join(DOMAINS)}")
    return DOMAINS[name]


def load_domain(name: str, ckpt: Path | None = None, device: str = "cpu") -> Domain:
    """Load a domain's generator and CLIP, frozen.

    Args:
        name: a key of DOMAINS.
        ckpt: another generator of the same kind than the entry's.
        device: "cpu", "cuda" or "cuda:N".
    Raises:
        UserError: an unknown name or device, or a file that is missing or of another kind.
    """
    entry = domain_entry(name)
    place = checked_device(device)
    path = Path(ckpt or entry.generator)
    state = read_generator(path)
    generator = Generator.from_state_dict({key: value for key, value in state.items() if key != "latent_avg"})
    if "latent_avg" in state:
        generator.mean_w = state["latent_avg"].flatten()[-generator.style_dim:]
    generator = generator.requires_grad_(False).eval().to(place)
    clip = CLIP_MODELS[entry.clip](entry.clip_source).to(place)
    return Domain(name, entry, generator, clip, weights_hash(state), place)


def checked_device(name: str) -> torch.device:
    """The torch device of a flag.

    Raises:
        UserError: an unknown device, or CUDA where there is none.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device is {name!r}, expected cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device is {name!r}, expected cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device is {name!r}, but this machine has {torch.cuda.device_count()} CUDA devices; "
                        "use --device cpu")
    return device


def read_generator(path: Path) -> dict[str, Tensor]:
    """A generator's tensors from a safetensors file or a published .pt (its g_ema, and latent_avg where it has one).

    Raises:
        UserError: the file is missing, cut short or of another kind.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; it should hold the generator's weights: see pretrained_models/README.md")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:      # safetensors raises its own type for a broken header, OSError for a short file
            raise UserError(f"{path} is not a whole safetensors file ({error}); make or download it again") from error
    checkpoint = read_torch_file(path)
    if "g_ema" not in checkpoint:
        raise UserError(f"{path} has no g_ema, but a generator's checkpoint keeps its weights there; "
                        f"it holds {', '.join(map(str, list(checkpoint)[:4]))}, ...")
    extra = {"latent_avg": checkpoint["latent_avg"]} if "latent_avg" in checkpoint else {}
    return {**checkpoint["g_ema"], **extra}


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """16 hex digits that name a set of weights whatever file they came in."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
