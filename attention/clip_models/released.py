"""Released CLIP models through open_clip: OpenAI's ViT-B-32.pt from disk, or a model that open_clip can download."""

import hashlib
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP, build_model_from_openai_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from attention.errors import UserError
from attention.images import area_resize

# The published archive's SHA-256; it is also part of its address at OpenAI's download server.
OPENAI_SHA256 = {"ViT-B-32.pt": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"}
OPENAI_SCALARS = ("input_resolution", "context_length", "vocab_size")    # entries of the archive that are not weights
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
              dtype: torch.dtype = torch.float32) -> OpenClip:
    """Load a released CLIP from a local file, or by its open_clip name.

    Args:
        name_or_path: a file of OpenAI's (its TorchScript archive, or the same weights as a state dict in .pt or
            .safetensors), or a name such as "ViT-B-32" (OpenAI's spelling "ViT-B/32" is the same).
        pretrained: for a name: open_clip's tag of the weights, or the path of an open_clip checkpoint.
        trust: for a file: run a TorchScript archive that is not one of OpenAI's by its hash. An archive holds a
            program, so this is for files whose origin you know. Other kinds are read as tensors only.
        dtype: that the model computes in; embeddings are float32 all the same.
    Raises:
        UserError: no such file or name, a damaged file, weights of another model, an unknown archive without trust.
    """
    name = str(name_or_path).replace("/", "-")
    if name in open_clip.list_models():
        return _load_named(name, str(pretrained), dtype)
    path = Path(name_or_path)
    if not path.is_file():
        if path.suffix in FILE_SUFFIXES or path.exists() or "/" in str(name_or_path):
            raise UserError(f"{path} is not a file; it should be the CLIP weights that turn texts and pictures into "
                            "embeddings; get OpenAI's with: python -m attention.download ViT-B-32.pt")
        raise UserError(f"{name_or_path} is neither a file nor a CLIP that open_clip knows; use for example "
                        "ViT-B-32, or the path of OpenAI's ViT-B-32.pt")
    weights = _read_weights(path, trust)
    try:
        # open_clip builds this model in half precision: load again after widening, or float32 weights get rounded.
        model = build_model_from_openai_state_dict(dict(weights), cast_dtype=None).float()
        model.load_state_dict(weights)
    except (KeyError, RuntimeError, IndexError, ValueError, ZeroDivisionError, AssertionError) as error:
        raise UserError(f"{path} does not hold OpenAI CLIP weights ({_reason(error)}); "
                        "expected the tensors of OpenAI's ViT-B-32.pt: python -m attention.download ViT-B-32.pt") from error
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
        if path.suffix == ".safetensors":
            weights = load_file(path)
        elif _is_torchscript(path):
            _check_archive(path, trust)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)      # torch.jit.load is deprecated; the format is not
                weights = torch.jit.load(path, map_location="cpu").state_dict()
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
            weights = weights.get("state_dict", weights) if isinstance(weights, dict) else weights
    except UserError:
        raise
    except Exception as error:          # zipfile, pickle, torch and safetensors each raise their own kinds
        raise UserError(f"{path} cannot be read as CLIP weights ({_reason(error)}); "
                        "it may be cut short or of another kind: download it again") from error
    if not isinstance(weights, dict) or not all(isinstance(name, str) and isinstance(value, Tensor)
                                                for name, value in weights.items()):
        raise UserError(f"{path} holds a {type(weights).__name__} that is not a table of tensors; "
                        "expected CLIP weights such as OpenAI's ViT-B-32.pt")
    return {name.removeprefix("module."): value for name, value in weights.items() if name not in OPENAI_SCALARS}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _check_archive(path: Path, trust: bool) -> None:
    if trust:
        return
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found not in OPENAI_SHA256.values():
        raise UserError(f"{path} is a TorchScript archive (a program) with SHA-256 {found[:12]}..., not OpenAI's "
                        f"{OPENAI_SHA256['ViT-B-32.pt'][:12]}...; download it again, or run it with --trust (trust=True)")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
