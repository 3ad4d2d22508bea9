"""The contrastive loss of the paper (Eq. 1), over the batch and a cross-batch memory. Next: ``memory.py``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class MemoryRows(NamedTuple):
    """Embeddings of earlier steps.

    Attributes:
        embeddings: ``(M, E)``, L2-normalised, without gradient.
        labels: ``(M,)`` int64.
        rows: ``(M,)`` int64, the training image each row shows.
    """

    embeddings: Tensor
    labels: Tensor
    rows: Tensor


def contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.5,
    rows: Tensor | None = None,
    memory: MemoryRows | None = None,
    is_mean_nonzero: bool = False,
) -> Tensor:
    """Compute Eq. 1: positives pulled to similarity 1, negatives pushed below the margin.

    The sum runs over pairs of the batch (j ≠ i, gradient into both sides) and over pairs of an anchor with
    a memory row of an earlier step (gradient into the anchor only), and is divided by the batch size B.
    Memory rows that show the anchor's own image are left out: they are earlier copies of it.

    Args:
        embeddings: ``(B, E)``, L2-normalised, float32 or float64.
        labels: ``(B,)`` int64.
        margin: β in Eq. 1, in [-1, 1): negatives less similar than this cost nothing.
        rows: ``(B,)`` int64, the training image each embedding shows; needed with a memory.
        memory: Embeddings of earlier steps, or None.
        is_mean_nonzero: Instead of the sum divided by B, add the mean over positive pairs that cost
            something and the mean over negative pairs that do (the public re-implementation's way).

    Returns:
        A scalar; zero where no pair costs anything.

    Source:
        El-Nouby et al., arXiv:2102.05644, Eq. 1; memory: Wang et al., arXiv:1912.06798.
    """
    is_same, is_pair = _match_batch(labels)
    costs = [_pair_costs(embeddings @ embeddings.T, is_same & is_pair, ~is_same, margin)]
    if memory is not None and len(memory.labels):
        assert rows is not None, "a memory needs the rows of the batch"
        is_same = labels[:, None] == memory.labels  # (B, M)
        is_other_image = rows[:, None] != memory.rows  # (B, M)
        similarity = embeddings @ memory.embeddings.T  # (B, M)
        costs.append(_pair_costs(similarity, is_same & is_other_image, ~is_same, margin))
    if not is_mean_nonzero:
        total = sum((positive.sum() + negative.sum() for positive, negative in costs), embeddings.new_zeros(()))
        return total / len(embeddings)
    positives, negatives = (torch.cat([side.flatten() for side in sides]) for sides in zip(*costs, strict=True))
    return _mean_nonzero(positives) + _mean_nonzero(negatives)


def _match_batch(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(B, B)`` masks: same label, and not the same place."""
    is_same = labels[:, None] == labels
    is_pair = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return is_same, is_pair


def _pair_costs(similarity: Tensor, is_positive: Tensor, is_negative: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    positive = torch.where(is_positive, 1 - similarity, 0)
    negative = torch.where(is_negative, (similarity - margin).clamp_min(0), 0)
    return positive, negative


def _mean_nonzero(costs: Tensor) -> Tensor:
    return costs.sum() / (costs > 0).sum().clamp_min(1)
