"""The KoLeo entropy regulariser: every embedding keeps its distance to the nearest."""

from __future__ import annotations

import torch
from torch import Tensor

DISTANCE_MIN = 1e-6
"""Distances below this count as this, which keeps the logarithm and its gradient finite for duplicates."""


def koleo_loss(embeddings: Tensor) -> Tensor:
    """Compute Eq. 5: minus the mean logarithm of the distance to the nearest other embedding of the batch.

    Half-precision input is computed in float32, float64 stays; autocast is switched off. The gradient runs
    into both ends of each nearest pair; it is zero for pairs closer than ``DISTANCE_MIN``.

    Args:
        embeddings: ``(B, E)``, L2-normalized.

    Returns:
        A scalar, at least ``-log 2`` for unit vectors; zero (with zero gradient) for fewer than two.

    Source:
        El-Nouby et al., arXiv:2102.05644, Eq. 5; Sablayrolles et al., ICLR 2019, arXiv:1806.03198.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        precise = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
        if len(precise) < 2:
            return precise.sum() * 0
        nearest = _nearest_rows(precise.detach())
        # index_select, because the gradient of precise[nearest] adds up in the order in which threads come by.
        squared = (precise - precise.index_select(0, nearest)).square().sum(dim=1)  # (B,)
        return -0.5 * squared.clamp_min(DISTANCE_MIN**2).log().mean()


def _nearest_rows(embeddings: Tensor) -> Tensor:
    """Return ``(B,)`` rows of the nearest other embedding, by Euclidean distance."""
    # Direct differences, not 2 - 2 z·z: near duplicates would drown in rounding.
    distance = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    distance.fill_diagonal_(torch.inf)
    return distance.argmin(dim=1)
