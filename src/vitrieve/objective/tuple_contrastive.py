"""The contrastive loss on distances, over tuples of an anchor, its positive and its negatives.

``L = Σ_tuples [ 1/2 ‖z_a - z_p‖² + 1/2 Σ_n max(0, m - ‖z_a - z_n‖)² ]``

Source:
    Radenović, Tolias and Chum, "Fine-tuning CNN image retrieval with no human annotation", 2018,
    arXiv:1711.02512 (contrastive loss), as in their code: cirtorch/layers/functional.py, ``contrastive_loss``.
    What differs is the gradient at distance 0: there 1e-6 is added to every coordinate of the difference, which gives
    equal embeddings a gradient in an arbitrary direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitrieve.objective.term import LossBatch, TermConfig, loss_function
from vitrieve.settings import Positive

if TYPE_CHECKING:
    from torch import Tensor, nn

DISTANCE_MIN = 1e-6
"""Shorter distances count as this: the direction between equal embeddings, and so the gradient, is not defined."""


@dataclass(frozen=True, kw_only=True)
class TupleContrastiveConfig(TermConfig):
    """The contrastive loss on distances, summed over the tuples of a batch."""

    margin: Positive = 0.85
    """Negatives of a tuple farther than this Euclidean distance cost nothing."""

    needs_tuples = True

    def compute(self, batch: LossBatch, state: nn.Module) -> Tensor:
        """Compute the loss over the tuples of the batch."""
        assert batch.anchors is not None, "the contrastive loss of tuples needs batches of tuples"
        return tuple_contrastive_loss(batch.embeddings, batch.labels, batch.anchors, margin=self.margin)


@loss_function
def tuple_contrastive_loss(embeddings: Tensor, labels: Tensor, anchors: Tensor, *, margin: float = 0.85) -> Tensor:
    """Compute the loss of tuples: positives pulled to distance 0, negatives pushed beyond the margin.

    A pair of an anchor with another image of its tuple costs ``D² / 2`` when their labels agree, else
    ``max(0, margin − D)² / 2``, where D is their Euclidean distance. The costs are summed over all pairs of all
    tuples, not averaged: a batch of more tuples has a larger gradient. Images of different tuples make no pair.

    Args:
        embeddings: ``(B, E)``, L2-normalized, float32 or float64.
        labels: ``(B,)`` int64.
        anchors: ``(B,)`` int64, the position in the batch of each image's anchor; an anchor's is its own.
        margin: Distance above 0 beyond which a negative costs nothing; unit vectors are at most 2 apart.

    Returns:
        A scalar with gradient into both sides of a pair; zero for anchors alone. A negative that equals its anchor
        costs ``margin² / 2``, with zero gradient.
    """
    squared = _squared_distances(embeddings, anchors)  # (B,)
    # The square root only of what lies above the minimum, so that its gradient stays finite.
    distance = squared.clamp_min(DISTANCE_MIN**2).sqrt()
    is_positive, is_negative = _find_roles(labels, anchors)
    zero = squared.new_zeros(())
    positive = squared.where(is_positive, zero)
    negative = (margin - distance).clamp_min(0).square().where(is_negative, zero)
    return 0.5 * (positive.sum() + negative.sum())


def tuple_statistics(embeddings: Tensor, labels: Tensor, anchors: Tensor, margin: float) -> dict[str, float]:
    """Summarize the pairs of a batch of tuples, for the log.

    Args:
        embeddings: ``(B, E)``, L2-normalized.
        labels: ``(B,)`` int64.
        anchors: ``(B,)`` int64, as in ``tuple_contrastive_loss``.
        margin: Negatives nearer than it are active.

    Returns:
        ``mean_positive_distance``, ``mean_negative_distance``, ``active_negatives_fraction`` and
        ``hardest_negative_similarity`` (the mean over tuples of their most similar negative's); missing without such
        pairs.
    """
    import torch

    with torch.no_grad():
        distance = _squared_distances(embeddings, anchors).sqrt()
        similarity = (embeddings * embeddings.index_select(0, anchors)).sum(dim=1)
    is_positive, is_negative = _find_roles(labels, anchors)
    statistics = {}
    if bool(is_positive.any()):
        statistics["mean_positive_distance"] = float(distance[is_positive].mean())
    if bool(is_negative.any()):
        hardest = [
            similarity[is_negative & (anchors == anchor)] for anchor in sorted(set(anchors[is_negative].tolist()))
        ]
        statistics["mean_negative_distance"] = float(distance[is_negative].mean())
        statistics["active_negatives_fraction"] = float((distance[is_negative] < margin).float().mean())
        statistics["hardest_negative_similarity"] = float(torch.stack([one.max() for one in hardest]).mean())
    return statistics


def _squared_distances(embeddings: Tensor, anchors: Tensor) -> Tensor:
    # Direct differences, because 2 - 2 z·z drowns near duplicates in rounding; index_select, because the gradient of
    # embeddings[anchors] adds up in the order in which threads come by.
    return (embeddings - embeddings.index_select(0, anchors)).square().sum(dim=1)  # (B,)


def _find_roles(labels: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(B,)`` masks: positives, negatives; an anchor is neither."""
    import torch

    is_same = labels == labels[anchors]
    is_other = anchors != torch.arange(len(anchors), device=anchors.device)
    return is_same & is_other, ~is_same
