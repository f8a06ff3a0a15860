"""Released CLIP models through open_clip: OpenAI's ViT-B-32.pt from disk, or a model that open_clip can download."""

import hashlib
import os
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP, build_model_from_openai_state_dict
from torch import Tensor, nn

from attention.errors import UserError
from attention.files.reading import readable, shown
from attention.files.tensors import bare, checked
from attention.files.torch_files import read_tensors
from attention.images import area_resize

# The published archive's SHA-256; it is also part of its address at OpenAI's download server.
OPENAI_SHA256 = {"ViT-B-32.pt": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"}
OPENAI_SCALARS = ("input_resolution", "context_length", "vocab_size")    # entries of the archive that are not weights
LONGEST_CONTEXT = 1024          # tokens; OpenAI's read 77, others some hundreds
HASHED = 2**20                  # bytes at a time
GET_OPENAI = "get OpenAI's with: python -m attention.download ViT-B-32.pt"
FILE_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")


class OpenClip(nn.Module):
    """A CLIP of open_clip behind the TextImageModel protocol: evaluation mode, frozen, float32 unless asked otherwise.

    Images enter in [-1, 1] without OpenAI's mean and standard deviation, as in the published program.
    """

    words: frozenset[str] | None = None                 # its tokens are pieces of words

    def __init__(self, model: nn.Module, tokenize=open_clip.tokenize, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.model: Any = model.to(dtype).requires_grad_(False)
        self.tokenize, self.dtype = tokenize, dtype
        visual: Any = model.visual
        size = visual.image_size
        self.image_size: int = size[0] if isinstance(size, tuple) else size
        self.dim: int = visual.output_dim
        self.eval()

    def train(self, mode: bool = True) -> "OpenClip":
        return super().train(False)                    # part of a module in training, CLIP itself never is

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, R, R) in [-1, 1] -> (B, dim) float32, not normalised, differentiable in `images`."""
        return self.model.encode_image(area_resize(images, self.image_size).to(self.dtype)).float()

    def encode_text(self, texts: list[str]) -> Tensor:
        """B texts -> (B, dim) float32, not normalised. Texts longer than the context are cut, as published."""
        tokens = self.tokenize(texts, context_length=self.model.context_length)          # (B, context)
        return self.model.encode_text(tokens.to(self.model.logit_scale.device)).float()

    def fits(self, text: str) -> bool:
        """Whether the model reads the whole text; a longer one is cut."""
        return not self.tokenize([text], context_length=self.model.context_length + 1)[0, -1]


def load_clip(name_or_path: str | Path, *, pretrained: str = "openai", trust: bool = False,
              dtype: torch.dtype = torch.float32, gelu: bool = False) -> OpenClip:
    """Load a released CLIP from a local file, or by its open_clip name.

    Args:
        name_or_path: a file of OpenAI's (its TorchScript archive, or the same weights as a state dict in .pt or
            .safetensors), or a name such as "ViT-B-32" (OpenAI's spelling "ViT-B/32" is the same).
        pretrained: for a name: open_clip's tag of the weights, or the path of an open_clip checkpoint.
        trust: for a file: run a TorchScript archive that is not one of OpenAI's by its hash. An archive holds a
            program, so this is for files whose origin you know. Other kinds are read as tensors only.
        dtype: that the model computes in; embeddings are float32 all the same.
        gelu: for a file: its model was trained with GELU, as most of open_clip's own; else QuickGELU is taken, OpenAI's.
            The weights do not say which. OpenAI's files are known by three whole numbers beside them, which open_clip
            never writes; of any other file it is told what is assumed.
    Raises:
        UserError: no such file or name, a damaged file, weights of another model, an unknown archive without trust.
    """
    name = str(name_or_path).replace("/", "-")
    if name in open_clip.list_models():
        return _load_named(name, str(pretrained), dtype)
    path = Path(name_or_path)
    if not os.path.exists(path):
        if path.suffix in FILE_SUFFIXES or "/" in str(name_or_path):
            raise UserError(f"{shown(path)} is not a file; it should be the CLIP weights that turn texts and pictures into "
                            f"embeddings; {GET_OPENAI}")
        raise UserError(f"{shown(name_or_path)} is neither a file nor a CLIP that open_clip knows; use for example "
                        "ViT-B-32, or the path of OpenAI's ViT-B-32.pt")
    readable(path, f"CLIP weights ({GET_OPENAI})")
    weights = _read_weights(path, trust)
    openai = all(name in weights for name in OPENAI_SCALARS)
    weights = checked({name: value for name, value in weights.items() if name not in OPENAI_SCALARS}, path, GET_OPENAI)
    try:
        # First without memory: sizes that contradict each other are told before any is asked for.
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if build_model_from_openai_state_dict(dict(weights), cast_dtype=None).context_length > LONGEST_CONTEXT:
                raise ValueError(f"texts of more than {LONGEST_CONTEXT} tokens")
        # open_clip builds this model in half precision: load again after widening, or float32 weights get rounded.
        model = build_model_from_openai_state_dict(dict(weights), quick_gelu=not gelu, cast_dtype=None).float()
        model.load_state_dict(weights)
    except (KeyError, RuntimeError, IndexError, ValueError, ZeroDivisionError, AssertionError, TypeError) as error:
        raise UserError(f"{path} does not hold OpenAI CLIP weights ({_reason(error)}); "
                        f"expected the tensors of OpenAI's ViT-B-32.pt: {GET_OPENAI}") from error
    if not (openai or gelu):
        warnings.warn(f"{path} does not say by which activation it was trained: QuickGELU is taken, as OpenAI's and "
                      "open_clip's -quickgelu models; for one of GELU, such as LAION's, write in the world's TOML file "
                      f'clip = {{ kind = "released-gelu", source = "{path.name}" }}', stacklevel=2)
    return OpenClip(model, dtype=dtype)


def _load_named(name: str, pretrained: str, dtype: torch.dtype) -> OpenClip:
    # open_clip only warns when a tag's weights were trained with the other activation, and then computes wrongly.
    quick_gelu = open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu", False)
    try:
        model = open_clip.create_model(name, pretrained, force_quick_gelu=quick_gelu, require_pretrained=True)
    except (RuntimeError, OSError, UnpicklingError) as error:
        raise UserError(f"open_clip could not load {name} with pretrained={pretrained} ({_reason(error)}); without "
                        "a network, download the file elsewhere and give its path instead of the name") from error
    if not isinstance(model, CLIP):
        raise UserError(f"{name} is a {type(model).__name__} model, which has another text encoder; "
                        "expected one of CLIP's own kind such as ViT-B-32")
    return OpenClip(model, open_clip.get_tokenizer(name), dtype)


def _read_weights(path: Path, trust: bool) -> dict[str, Tensor]:
    """The tensors of a file as a plain dict. Only an archive that is known or trusted is ever executed."""
    weights: Any
    try:
        if _is_torchscript(path):
            _check_archive(path, trust)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)      # torch.jit.load is deprecated; the format is not
                weights = torch.jit.load(path, map_location="cpu").state_dict()
        else:
            weights = read_tensors(path)
            weights = weights.get("state_dict", weights)
    except UserError as error:
        raise UserError(f"{error}; it may be cut short or of another kind") from error
    except Exception as error:          # zipfile and torch each raise their own kinds
        raise UserError(f"{path} cannot be read as CLIP weights ({_reason(error)}); "
                        "it may be cut short or of another kind: download it again") from error
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise UserError(f"{path} holds a {type(weights).__name__} that is not a table of tensors; "
                        "expected CLIP weights such as OpenAI's ViT-B-32.pt")
    return bare(weights)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _check_archive(path: Path, trust: bool) -> None:
    if trust:
        return
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(HASHED):
            digest.update(piece)
    found = digest.hexdigest()
    if found not in OPENAI_SHA256.values():
        raise UserError(f"{path} is a TorchScript archive (a program) with SHA-256 {found[:12]}..., not OpenAI's "
                        f"{OPENAI_SHA256['ViT-B-32.pt'][:12]}...; download it again, or run it with --trust (trust=True)")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {shown(' '.join(str(error).split()))}"
