"""Smooth-AP: average precision with a sigmoid in place of each comparison of two similarities.

``L = 1 - 1/B Σ_q 1/|P_q| Σ_{p ∈ P_q} r(p, P_q) / r(p, Ω)`` with the smooth rank of p in a set,
``r(p, S) = 1 + Σ_{z ∈ S, z ≠ p} σ((s_qz - s_qp) / T)``. ``Ω`` is the whole batch, ``P_q`` are its images of the class
of q, and T is the temperature.

Source:
    Brown et al., Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval, ECCV 2020, arXiv:2007.12163, Eq. 7,
    with the temperature 0.01 of their section 5. As in the authors' code, the query itself is the first of its own
    ranking, and one of its positives. What differs: classes may have different numbers of images in a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitrieve.objective.term import LossBatch, TermConfig, loss_function
from vitrieve.settings import Positive

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class SmoothApConfig(TermConfig):
    """The Smooth-AP loss: every image of the batch is a query and ranks the batch."""

    temperature: Positive = 0.01
    """Divides the differences of two cosines; smaller is nearer to average precision, with a gradient for fewer
    pairs."""

    needs_pairs = True

    def compute(self, batch: LossBatch, state: nn.Module) -> Tensor:
        """Compute the loss over the batch."""
        return smooth_ap_loss(batch.embeddings, batch.labels, temperature=self.temperature)


@loss_function
def smooth_ap_loss(embeddings: Tensor, labels: Tensor, *, temperature: float = 0.01) -> Tensor:
    """Compute one minus the smooth average precision of the batch.

    Args:
        embeddings: ``(B, E)``, L2-normalized.
        labels: ``(B,)`` int64.
        temperature: T, above 0.

    Returns:
        A scalar in [0, 1), the mean over all B queries; a query that is alone in its class adds something only where
        an image is as near to it as it is to itself. It needs memory for B similarities of each pair of one class.
    """
    is_relevant = labels[:, None] == labels  # (B, B)
    queries, above = compare_softly(embeddings @ embeddings.T, is_relevant, temperature)
    rank = 1 + above.sum(dim=1)  # (P,)
    rank_of_relevant = 1 + above.where(is_relevant.index_select(0, queries), 0).sum(dim=1)
    precision = above.new_zeros(len(labels)).index_add(0, queries, rank_of_relevant / rank)
    return 1 - (precision / is_relevant.sum(dim=1)).mean()


def compare_softly(similarity: Tensor, is_relevant: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Compare every relevant item of every query with all items of that query.

    Args:
        similarity: ``(Q, G)`` of queries with items.
        is_relevant: ``(Q, G)`` bool.
        temperature: Divisor of the differences of similarities.

    Returns:
        The query of each relevant item, ``(P,)``, and by how much each item stands above it, ``(P, G)`` in [0, 1];
        zero for the item itself.
    """
    import torch

    queries, items = is_relevant.nonzero(as_tuple=True)
    num_items = similarity.shape[1]
    # index_select, because the gradient of similarity[queries] adds up in the order in which threads come by.
    of_query = similarity.index_select(0, queries)  # (P, G)
    of_item = similarity.flatten().index_select(0, queries * num_items + items)  # (P,)
    is_itself = items[:, None] == torch.arange(num_items, device=items.device)
    return queries, ((of_query - of_item[:, None]) / temperature).sigmoid().masked_fill(is_itself, 0)
