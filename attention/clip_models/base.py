"""What the editor asks of a CLIP model, and the fixed linear map from an image to its input."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class TextImageModel(Protocol):
    """A frozen model that puts pictures and texts into one space.

    Attributes:
        dim: width D of the embeddings.
        image_size: side in pixels of the model's own input; encode_image resizes to it.
        words: that it was taught, in lower case; None if it reads any word by its letters.
    """

    dim: int
    image_size: int
    words: frozenset[str] | None

    def to(self, device: torch.device) -> "TextImageModel":
        """Move to a device."""
        ...

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, D) float32, not normalised, differentiable in `images`."""
        ...

    def encode_text(self, texts: list[str]) -> Tensor:
        """B texts -> (B, D) float32, not normalised, on the model's device."""
        ...

    def fits(self, text: str) -> bool:
        """Whether the model reads the whole text; a longer one is cut."""
        ...
