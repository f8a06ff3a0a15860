"""Numbers for every text, from those of the texts that it is like: what calibration found and training cannot know."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHARPNESS = 40.0    # of how a text's number follows from those of the texts that are like it, by their cosines
UNKNOWN = 0.02      # weight of `otherwise`


class ByText(nn.Module):
    """Texts with V numbers each; all are `otherwise` for a text that is like none of them.

    Its tensors are no part of a state dict: a file of weights is the same whether or not they are known.
    """

    texts: Tensor           # (N, D) unit embeddings
    values: Tensor          # (N, V)

    def __init__(self, otherwise: float):
        super().__init__()
        self.otherwise = otherwise
        self.set(torch.empty(0, 1), torch.empty(0, 1))

    def set(self, texts: Tensor, values: Tensor) -> None:
        """Know these alone: embeddings (N, D) of any length, values (N, V); N may be 0."""
        self.register_buffer("texts", F.normalize(texts.detach().float(), dim=1), persistent=False)
        self.register_buffer("values", values.float().to(texts.device), persistent=False)

    def forget(self) -> None:
        """Know no text, as in training."""
        self.set(self.texts[:0], self.values[:0])

    def forward(self, text: Tensor) -> Tensor:
        """Embeddings (B, D) -> (B, V)."""
        if not len(self.values):
            return torch.full((len(text), self.values.shape[1]), self.otherwise, device=text.device)
        near = torch.exp(SHARPNESS * (F.normalize(text.float(), dim=1) @ self.texts.T - 1))             # (B, N)
        return (UNKNOWN * self.otherwise + near @ self.values) / (UNKNOWN + near.sum(dim=1, keepdim=True))
