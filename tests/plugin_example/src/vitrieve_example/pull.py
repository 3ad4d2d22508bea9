"""Two losses: a function of embeddings and labels, and a module with parameters of its own."""

from __future__ import annotations

import torch
from torch import Tensor


def pull(embeddings: Tensor, labels: Tensor, power: float = 2.0) -> Tensor:
    """Compute ``mean((1 - z_i·z_j)^power)`` over pairs of one class, a scalar.

    Args:
        embeddings: ``(B, E)``, of unit length.
        labels: ``(B,)`` int64.
        power: Sharpness towards the farthest pairs.
    """
    is_same = labels[:, None] == labels
    return (1 - embeddings @ embeddings.T).clamp_min(1e-6)[is_same].pow(power).mean()


class PullToCenters(torch.nn.Module):
    """The distance of each image to a learned direction, a scalar."""

    def __init__(self, scale: float = 1.0, embedding_dim: int = 64) -> None:
        super().__init__()
        self.scale = scale
        self.center = torch.nn.Parameter(torch.ones(embedding_dim))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of ``(B, E)`` embeddings."""
        return self.scale * (1 - embeddings @ torch.nn.functional.normalize(self.center, dim=0)).mean()
