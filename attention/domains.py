"""The worlds that the method runs in: which generator, which CLIP, which prompts, and the settings that suit them.

This is the only file that knows concrete choices. A new world is one more entry of DOMAINS.
"""

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from attention.checkpoints import read_torch_file
from attention.clip_models import CLIP_MODELS
from attention.clip_models.base import TextImageModel
from attention.config import GENERAL, KINDS, RECIPES, TrainConfig, WorldConfig, resolve
from attention.distributed import local_rank, world_size
from attention.drawn.concepts import BY_PHRASE, EDIT_PROMPTS, PART_NAMES
from attention.drawn.faces import FaceParams, landmarks
from attention.drawn.fit_clip import augment
from attention.drawn.fit_encoder import DrawnEncoder
from attention.errors import UserError
from attention.generator import Generator, published_channels
from attention.inversion.e4e import E4E_FILE, load_e4e
from attention.nvidia import read_nvidia
from attention.photo import Frame, ffhq_frame, frame_like, framing_points
from attention.published import SHIPPED, WEIGHTS, missing

REAL_WHERE = ("tanned skin", "narrow nose", "narrow eyes", "thin eyebrows", "wearing a pair of earrings",
              "pink lipsticks", "grey hair")                                     # the published attention prompts
REAL_PROMPTS = tuple(dict.fromkeys(REAL_WHERE + EDIT_PROMPTS))      # a step needs as many as it has prompts, all different
World = TypeVar("World", bound=WorldConfig)


@dataclass(frozen=True)
class DomainEntry:
    """What is fixed about a world. `settings` override the general defaults of ClusterConfig and TrainConfig."""

    generator: Path
    clip: str                           # a key of CLIP_MODELS
    clip_source: str                    # a file, or a name that the loader knows
    truncation: float
    prompts: tuple[str, ...]            # what a user would type; training and evaluation draw from them
    where_texts: Callable[[str], tuple[str, ...]]       # prompt -> texts that name its place
    places: tuple[str, ...] = ()        # what --shared_where draws from; the prompts if empty
    drawn: bool = False                 # faces of the renderer: the truth about them is known to the pixel
    settings: Mapping[str, Any] = field(default_factory=dict)
    encoder: Callable[[], nn.Module] | None = None      # loads what makes a w or w+ of an aligned picture
    frame: Callable[[np.ndarray], Frame] = ffhq_frame   # landmarks of a photo -> the square that its generator frames
    views: Callable[[Tensor, torch.Generator], Tensor] | None = None    # augmented views of an edit for CLIP to score


@dataclass(frozen=True)
class Domain:
    """A loaded world: a frozen generator and a frozen CLIP on one device; CLIP is loaded on first use."""

    name: str
    entry: DomainEntry
    generator: Generator
    generator_hash: str
    device: torch.device
    trust: bool = False

    @cached_property
    def clip(self) -> TextImageModel:
        return CLIP_MODELS[self.entry.clip](self.entry.clip_source, trust=self.trust).to(self.device)

    @cached_property
    def encoder(self) -> nn.Module:
        """Pictures (B, 3, R, R) in [-1, 1] -> w (B, style_dim) or w+ (B, n_latent, style_dim).

        Raises:
            UserError: this world has none, or its file is missing.
        """
        if self.entry.encoder is None:
            raise UserError(f"the world {self.name} has no encoder, so it cannot take pictures; give a seed or a latent")
        return self.entry.encoder().to(self.device)

    def sample_w(self, count: int, seed: int) -> Tensor:
        """(count, style_dim) seeded latents of this domain's truncation; the same on every device."""
        return self.w_from_z(torch.randn(count, self.generator.style_dim, generator=torch.Generator().manual_seed(seed)))

    def picture(self, w: Tensor) -> Tensor:
        """w (B, style_dim) or w+ (B, n_latent, style_dim) -> its pictures (B, 3, R, R) float32, differentiable."""
        return self.generator.synthesis(self.generator.styles(w), feature_side=0).image.float()

    @torch.no_grad()
    def w_from_z(self, z: Tensor) -> Tensor:
        """z (B, style_dim) on any device -> w (B, style_dim)."""
        return self.generator.mapping(z.to(self.device), self.entry.truncation)


def _face_where(prompt: str) -> tuple[str, ...]:
    """The names of a prompt's part, and other prompts of the same part; any other text names its place itself."""
    if prompt not in BY_PHRASE:
        return (prompt,)
    part = BY_PHRASE[prompt].part
    others = tuple(other for other in EDIT_PROMPTS if BY_PHRASE[other].part == part)
    # Half of the draws are to be names, however many prompts share the part.
    return PART_NAMES[part] * max(1, len(others) // len(PART_NAMES[part])) + others


def _drawn_frame(points: np.ndarray) -> Frame:
    """The square in which eyes and corners of the mouth lie as on the mean drawn face."""
    found, typical = framing_points(points), landmarks(FaceParams.mean())
    names = {"left eye": "left_eye", "right eye": "right_eye", "left mouth": "left_mouth", "right mouth": "right_mouth"}
    return frame_like(np.array([found[name] for name in names]), np.array([typical[own][0] for own in names.values()]))


DOMAINS = {
    "ffhq": DomainEntry(generator=WEIGHTS / "stylegan2-ffhq-config-f.pt", clip="released",
                        clip_source=str(WEIGHTS / "ViT-B-32.pt"), truncation=0.7, prompts=REAL_PROMPTS,
                        where_texts=_face_where, places=REAL_WHERE, encoder=lambda: load_e4e(WEIGHTS / E4E_FILE)),
    # The fitted generator covers all of z, so nothing is truncated. A small CLIP gives weaker, noisier gradients than
    # ViT-B/32, and 128 px faces have parts of a few pixels: the README says why each setting differs from the paper's.
    "drawn": DomainEntry(generator=SHIPPED / "generator.safetensors", clip="tiny",
                         clip_source=str(SHIPPED / "clip.safetensors"), truncation=1.0, prompts=EDIT_PROMPTS,
                         where_texts=_face_where, drawn=True, views=augment, frame=_drawn_frame,
                         encoder=lambda: DrawnEncoder.load(SHIPPED / "encoder.safetensors"),
                         settings=dict(cluster_num=64, position_weight=0.5, step=1200, batch_size=16, temperature=0.03,
                                       relative=True, lambda_ess=1.0, lambda_sec=0.02, lambda_area=0.4, lambda_id=0.8,
                                       lambda_delta=0.03, max_change=30.0, precision="bf16")),
}


def domain_entry(name: str) -> DomainEntry:
    """The entry of a known domain, or of one that a TOML file describes.

    Raises:
        UserError: no domain has this name, or the file is missing or wrong.
    """
    if name.endswith(".toml"):
        return _read_entry(Path(name))
    if name not in DOMAINS:
        raise UserError(f"--domain is {name!r}, expected one of {', '.join(DOMAINS)}, or a TOML file that describes a "
                        "world (pretrained_models/example.toml)")
    return DOMAINS[name]


_TEXT = ("a text", lambda value: isinstance(value, str))
_TEXTS = ("a list of texts", lambda value: isinstance(value, list) and all(isinstance(entry, str) for entry in value))
_NUMBER = ("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool))
_TABLE = ("a table", lambda value: isinstance(value, dict))
# What a TOML file may say: key -> what its value must be. Paths count from the file's own folder.
TOML_KEYS = {"generator": _TEXT, "clip": _TEXT, "truncation": _NUMBER, "captions": _TEXT, "prompts": _TEXTS,
             "where": _TEXTS, "settings": _TABLE}


def _read_entry(path: Path) -> DomainEntry:
    """A domain from a TOML file; see pretrained_models/example.toml."""
    def wrong(reason: str) -> UserError:
        return UserError(f"{path} {reason}; see the example pretrained_models/example.toml")

    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise wrong(f"cannot be read as TOML ({error})") from error
    for key, value in said.items():
        if key not in TOML_KEYS:
            raise wrong(f"has the key {key!r}, but knows only {', '.join(TOML_KEYS)}")
        expected, fits = TOML_KEYS[key]
        if not fits(value):
            raise wrong(f"has {value!r} for {key}, expected {expected}")
    if absent := [key for key in ("generator", "prompts") if not said.get(key)]:
        raise wrong(f"lacks {' and '.join(absent)}")
    settings = dict(said.get("settings", {}))
    for key, value in settings.items():
        if key not in GENERAL:
            raise wrong(f"has the setting {key!r}, but knows only {', '.join(GENERAL)}")
        kind = type(GENERAL[key])
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise wrong(f"has {value!r} for the setting {key}, expected {KINDS[kind]}")
    if "captions" in said:
        settings["captions"] = path.parent / said["captions"]
    clip = said.get("clip", "ViT-B-32.pt")
    local = path.parent / clip
    return DomainEntry(generator=path.parent / said["generator"], clip="released",
                       clip_source=str(local) if local.exists() else clip, truncation=float(said.get("truncation", 0.7)),
                       prompts=tuple(said["prompts"]), where_texts=lambda prompt: (prompt,),
                       places=tuple(said.get("where", ())), settings=settings)


def settled(config: World) -> World:
    """Fill in every option that was not given: by its recipe, its domain, the general default, in this order."""
    name = config.domain or ("ffhq" if config.ckpt else "drawn")
    config = replace(config, domain=name, run=config.run or Path("runs") / Path(name).stem)
    recipe = RECIPES[config.recipe]
    if config.recipe == "released":     # its gather kept only a process's own gradient, which was then averaged (trap 3)
        recipe = {**recipe, "lambda_clip": 1 / world_size()}
    return resolve(config, recipe, domain_entry(name).settings, GENERAL)


def load_domain(name: str = "drawn", ckpt: Path | None = None, device: str = "auto", clip_model: str | None = None,
                trust: bool = False) -> Domain:
    """Load a domain's generator, frozen; its CLIP is loaded when first used.

    Args:
        name: a key of DOMAINS, or a TOML file that describes a world.
        ckpt: another generator of the same kind than the entry's.
        device: "auto", "cpu", "cuda" or "cuda:N".
        clip_model: another CLIP than the entry's: a file, or a name that open_clip knows.
        trust: run a CLIP archive (a program) that is not OpenAI's by its hash.
    Raises:
        UserError: an unknown name or device, or a file that is missing or of another kind.
    """
    entry = domain_entry(name)
    if clip_model is not None:
        entry = replace(entry, clip="released", clip_source=clip_model)
    place = checked_device(device)
    generator, generator_hash = load_generator(Path(ckpt or entry.generator))
    return Domain(Path(name).stem, entry, generator.to(place), generator_hash, place, trust)


def domain_of(config: WorldConfig) -> Domain:
    """Load the domain of a settled configuration and hold the generator against --stylegan_size, --channel_multiplier.

    Raises:
        UserError: as `load_domain`; or a flag says something else than the weights.
    """
    training = isinstance(config, TrainConfig)
    domain = load_domain(config.domain, config.ckpt, config.device, config.clip_model if training else None,
                         config.trust if training else False)
    generator, path = domain.generator, config.ckpt or domain.entry.generator
    if config.stylegan_size not in (None, generator.resolution):
        raise UserError(f"--stylegan_size is {config.stylegan_size}, but {path} holds a generator of "
                        f"{generator.resolution} px; leave the flag out, or give the other file with --ckpt")
    multiplier = config.channel_multiplier
    if multiplier is not None and published_channels(generator.resolution, multiplier) != generator.channels:
        widths = ", ".join(f"{width} at {side} px" for side, width in generator.channels.items() if side >= 64)
        raise UserError(f"--channel_multiplier is {multiplier}, but the maps in {path} have other widths ({widths}); "
                        "leave the flag out, or give the other file with --ckpt")
    return domain


def checked_device(name: str) -> torch.device:
    """The torch device of a flag.

    Raises:
        UserError: an unknown device, or CUDA where there is none.
    """
    if name == "auto":
        return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device("cuda", local_rank()) if name == "cuda" else torch.device(name)
    except RuntimeError:
        raise UserError(f"--device is {name!r}, expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device is {name!r}, expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device is {name!r}, but this machine has {torch.cuda.device_count()} CUDA devices; "
                        "use --device cpu")
    return device


def load_generator(path: Path) -> tuple[Generator, str]:
    """The frozen generator of a file, its mean latent included where the file has one, and the hash of its weights.

    Raises:
        UserError: see `read_generator`; or the tensors are no generator.
    """
    state = read_generator(path)
    try:
        generator = Generator.from_state_dict({key: value for key, value in state.items() if key != "latent_avg"})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if "latent_avg" in state:
        generator.mean_w = state["latent_avg"].flatten()[-generator.style_dim:]
    return generator.requires_grad_(False).eval(), weights_hash(state)


def read_generator(path: Path) -> dict[str, Tensor]:
    """A generator's tensors: safetensors, a published .pt (its g_ema, and latent_avg where it has one), NVIDIA's .pkl.

    Raises:
        UserError: the file is missing, cut short or of another kind.
    """
    if not path.is_file():
        raise missing(path)
    if path.suffix == ".pkl":
        return read_nvidia(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:      # safetensors raises its own type for a broken header, OSError for a short file
            raise UserError(f"{path} is not a whole safetensors file ({error}); make or download it again") from error
    checkpoint = read_torch_file(path)
    if "g_ema" not in checkpoint:
        raise UserError(f"{path} has no g_ema, but a generator's checkpoint keeps its weights there; "
                        f"it holds {', '.join(map(str, list(checkpoint)[:4]))}, ...")
    state = checkpoint["g_ema"]
    if not isinstance(state, dict) or not all(isinstance(name, str) and isinstance(value, Tensor)
                                              for name, value in state.items()):
        raise UserError(f"{path} has a g_ema that is no table of tensors; expected a StyleGAN2 generator's weights: "
                        "get or make the file again")
    average = checkpoint.get("latent_avg")
    return {**state, "latent_avg": average} if isinstance(average, Tensor) else state


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """16 hex digits that name a set of weights whatever file they came in."""
    def raw(tensor: Tensor) -> bytes:
        tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor               # numpy has no bfloat16
        return tensor.contiguous().numpy().tobytes()

    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + raw(state[name]))
    return digest.hexdigest()[:16]
