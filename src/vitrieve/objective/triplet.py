"""The triplet loss with semi-hard mining: a negative must be farther than a positive by a margin.

``L = 1/|S| Σ_{(a, p, n) ∈ S} ( d_ap - d_an + δ )`` with squared Euclidean distances, over the semi-hard triplets S of
the batch: those with ``d_ap < d_an < d_ap + δ``.

Source:
    Schroff, Kalenichenko and Philbin, FaceNet, CVPR 2015, arXiv:1503.03832, section 3, with δ = 0.2. What differs: all
    semi-hard negatives of a pair count, where the paper does not say which one of them it takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitrieve.objective.term import LossBatch, TermConfig, loss_function, mark_pairs
from vitrieve.settings import Positive

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class TripletConfig(TermConfig):
    """The triplet loss, over the semi-hard triplets of the batch."""

    margin: Positive = 0.2
    """How much farther a negative must be than a positive, as a squared Euclidean distance (at most 4)."""

    needs_pairs = True

    def compute(self, batch: LossBatch, state: nn.Module) -> Tensor:
        """Compute the loss over the batch."""
        return triplet_loss(batch.embeddings, batch.labels, margin=self.margin)


@loss_function
def triplet_loss(embeddings: Tensor, labels: Tensor, *, margin: float = 0.2) -> Tensor:
    """Compute the mean cost of the semi-hard triplets of the batch.

    Args:
        embeddings: ``(B, E)``, L2-normalized.
        labels: ``(B,)`` int64.
        margin: δ, above 0.

    Returns:
        A scalar in [0, margin); zero without semi-hard triplets. It needs memory for B distances of each pair of one
        class.
    """
    is_positive, is_negative = mark_pairs(labels)
    distance = 2 - 2 * embeddings @ embeddings.T  # (B, B)
    anchors, positives = is_positive.nonzero(as_tuple=True)
    # index_select, because the gradient of distance[anchors] adds up in the order in which threads come by.
    to_positive = distance.flatten().index_select(0, anchors * len(labels) + positives)  # (P,)
    gap = distance.index_select(0, anchors) - to_positive[:, None]  # (P, B)
    is_semi_hard = is_negative.index_select(0, anchors) & (gap > 0) & (gap < margin)
    return (margin - gap).where(is_semi_hard, 0).sum() / is_semi_hard.sum().clamp_min(1)
