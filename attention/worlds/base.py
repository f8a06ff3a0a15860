"""What a world is made of: a generator, and what can be said and known of its pictures.

A `WorldEntry` names the parts and loads none, so that a command line can show a world's settings at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Part(NamedTuple):
    """A part of a world: which kind (a key of a registry in worlds/parts.py), and the file or name it is loaded from."""

    kind: str
    source: Path | str


@dataclass(frozen=True)
class WorldEntry:
    """All that is fixed about a world. A TOML file can say everything that an entry says.

    Attributes:
        generator: its weights.
        prompts: what a user would type; training and evaluation draw from them.
        early: head of its generator's early picture (generator/early.py), which training sees; None: whole
            pictures.
        preview: the same, of the larger picture that evaluation sees.
        clip, encoder: see `CLIP_MODELS` and `ENCODERS`; without an encoder the world cannot take pictures.
        truncation: of sampled latents.
        words: a key of WORDS: which texts name the place of a prompt.
        synonyms: word or phrase that its CLIP knows -> other words for it, beside those in SAYINGS.
        places: what --shared_where draws from; the prompts if empty.
        frame: a key of FRAMES: how its pictures frame a face.
        views: a key of VIEWS: what CLIP is shown of an edit in training.
        perceptual: a key of PERCEPTUAL: what the perceptual loss compares.
        least_psnr: dB in which the encoder's latent draws a picture again; below, it is no picture of this world and
            refused. None where nobody has measured it.
        refine: steps by which the encoder's latent of a photo is brought nearer to it, unless a user says otherwise.
        layout: what of a photo is background, by the maps of an encoder of the kind "faces" (inversion/layout.py).
        recognised: its pictures are photographs of persons, framed as FFHQ's are, whom dlib's recogniser tells apart
            (inversion/identity.py).
        dosed: of every strength, as much is taken as suits a face by its CLIP (method/dose.py).
        follows_edges: edits end where the picture has edges (method/seam.py).
        truth: a key of TRUTHS; None where nothing but its pictures is known.
        editor: run folder of the editor that is shipped for this world, if one is.
        examples: seed, what and where of the edits that the page begins with; () takes the first prompts.
        captions: corpus that training draws from instead of the prompts.
        settings: take the place of the defaults of ClusterConfig and TrainConfig.
    """

    name: str
    generator: Path
    prompts: tuple[str, ...]
    clip: Part
    early: Path | None = None
    preview: Path | None = None
    encoder: Part | None = None
    truncation: float = 0.7
    words: str = "itself"
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    places: tuple[str, ...] = ()
    frame: str = "ffhq"
    views: str = "plain"
    perceptual: str = "vgg16"
    least_psnr: float | None = None
    refine: int = 0
    layout: Path | None = None
    recognised: bool = False
    dosed: bool = False
    follows_edges: bool = False
    truth: str | None = None
    editor: Path | None = None
    examples: tuple[tuple[int, str, str], ...] = ()
    captions: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> list[Path | str]:
        """All that it is read from."""
        parts = [part.source for part in (self.clip, self.encoder) if part]
        return [path for path in (self.generator, self.early, self.preview, self.layout, self.captions, *parts) if path]
