"""The KoLeo entropy regularizer: every embedding keeps its distance to the nearest.

``L = -1/B Σ_i log min_{j ≠ i} ‖z_i - z_j‖``

Source:
    El-Nouby et al., arXiv:2102.05644, Eq. 5; Sablayrolles et al., ICLR 2019, arXiv:1806.03198.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitrieve.objective.term import LossBatch, TermConfig, loss_function

if TYPE_CHECKING:
    from torch import Tensor, nn

DISTANCE_MIN = 1e-6
"""Distances below this count as this, which keeps the logarithm and its gradient finite for duplicates."""


@dataclass(frozen=True, kw_only=True)
class KoleoConfig(TermConfig):
    """The KoLeo entropy regularizer (Eq. 5); its weight is the paper's lambda."""

    def compute(self, batch: LossBatch, state: nn.Module) -> Tensor:
        """Compute the regularizer over the different images of the batch.

        It runs over all images of tuples, as Eq. 5 says; the anchors alone (five) tell little about the density. An
        image that stands twice in a batch, as one of a class of few images or a negative of two tuples, counts once:
        it cannot be spread from itself.
        """
        return koleo_loss(batch.embeddings.index_select(0, find_first_showings(batch.rows)))


@loss_function
def koleo_loss(embeddings: Tensor) -> Tensor:
    """Compute Eq. 5: minus the mean logarithm of the distance to the nearest other embedding of the batch.

    The gradient runs into both ends of each nearest pair; it is zero for pairs closer than ``DISTANCE_MIN``.

    Args:
        embeddings: ``(B, E)``, L2-normalized.

    Returns:
        A scalar, at least ``-log 2`` for unit vectors; zero (with zero gradient) for fewer than two.
    """
    if len(embeddings) < 2:
        return embeddings.sum() * 0
    nearest = _nearest_rows(embeddings.detach())
    # index_select, because the gradient of embeddings[nearest] adds up in the order in which threads come by.
    squared = (embeddings - embeddings.index_select(0, nearest)).square().sum(dim=1)  # (B,)
    return -0.5 * squared.clamp_min(DISTANCE_MIN**2).log().mean()


def _nearest_rows(embeddings: Tensor) -> Tensor:
    """Return ``(B,)`` rows of the nearest other embedding, by Euclidean distance."""
    import torch

    # Direct differences, not 2 - 2 z·z: near duplicates would drown in rounding.
    distance = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    distance.fill_diagonal_(torch.inf)
    return distance.argmin(dim=1)


def find_first_showings(rows: Tensor) -> Tensor:
    """Find the positions at which an image stands for the first time: ``(U,)`` int64, rising.

    Args:
        rows: ``(B,)`` int64, the training image at each position.

    >>> import torch
    >>> find_first_showings(torch.tensor([7, 3, 7, 5, 3])).tolist()
    [0, 1, 3]
    """
    is_repeated = (rows[:, None] == rows).tril(diagonal=-1).any(dim=1)
    return (~is_repeated).nonzero().flatten()
