"""The Recall@k surrogate: smooth ranks of the positives, and a second sigmoid for whether they are among the first k.

``L = 1 - 1/B Σ_q 1/|K| Σ_{k ∈ K} min(k, Σ_{p ∈ P_q} σ((k - r(p)) / T_r)) / min(k, |P_q|)`` with the smooth rank
``r(p) = 1 + Σ_{z ≠ p, q} σ((s_qz - s_qp) / T)``. Items z are the rest of the batch and, with a memory, images of
earlier steps; ``P_q`` are those of the class of q.

Source:
    Patel, Tolias and Matas, Recall@k Surrogate Loss with Large Batches and Similarity Mixup, CVPR 2022,
    arXiv:2108.11179, Eq. 4 to 6, with T = 0.01, T_r = 1 and K = {1, 2, 4, 8, 16}. What differs: the authors' code
    (yash0307/RecallatK_surrogate) ranks the query among its own items, which puts every positive one rank lower; here
    it is left out, as in the text. Their large batches are ``train.batch_size`` with a memory limit, or the memory;
    their similarity mixup is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from vitrieve.objective.smooth_ap import compare_softly
from vitrieve.objective.term import LossBatch, TermConfig, loss_function, mark_pairs
from vitrieve.settings import Positive, Range

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitrieve.objective.memory import MemoryRows

CutOffs = Annotated[
    tuple[int, ...], Range("one or more whole numbers above 0", lambda ks: len(ks) > 0 and all(k >= 1 for k in ks))
]


@dataclass(frozen=True, kw_only=True)
class RecallAtKConfig(TermConfig):
    """The Recall@k surrogate: every image of the batch is a query and ranks the batch and the memory."""

    ks: CutOffs = (1, 2, 4, 8, 16)
    """Values of k whose recalls are averaged."""
    temperature: Positive = 0.01
    """Divides the differences of two cosines in the smooth rank."""
    rank_temperature: Positive = 1.0
    """Divides the differences of k and a rank."""

    needs_pairs = True
    reads_memory = True

    def compute(self, batch: LossBatch, state: nn.Module) -> Tensor:
        """Compute the loss over the batch and the memory."""
        return recall_at_k_loss(
            batch.embeddings,
            batch.labels,
            ks=self.ks,
            temperature=self.temperature,
            rank_temperature=self.rank_temperature,
            rows=batch.rows,
            memory=batch.memory,
        )


@loss_function
def recall_at_k_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    ks: tuple[int, ...] = (1, 2, 4, 8, 16),
    temperature: float = 0.01,
    rank_temperature: float = 1.0,
    rows: Tensor | None = None,
    memory: MemoryRows | None = None,
) -> Tensor:
    """Compute one minus the smooth recall of the batch.

    Args:
        embeddings: ``(B, E)``, L2-normalized.
        labels: ``(B,)`` int64.
        ks: Values of k, at least one.
        temperature: T, above 0.
        rank_temperature: T_r, above 0.
        rows: ``(B,)`` int64, the training image that each embedding shows; needed with a memory.
        memory: Embeddings of earlier steps, which are ranked too, but for those that show the query; or None.

    Returns:
        A scalar in [0, 1), the mean over all B queries; a query without positives adds zero. It needs memory for the
        similarities of all items for each pair of a query and a positive.
    """
    import torch

    similarity = embeddings @ embeddings.T
    is_positive, is_negative = mark_pairs(labels)
    is_item = is_positive | is_negative
    if memory is not None and len(memory.labels):
        assert rows is not None, "a memory needs the rows of the batch"
        is_other_image = rows[:, None] != memory.rows
        similarity = torch.cat([similarity, embeddings @ memory.embeddings.to(embeddings.dtype).T], dim=1)
        is_positive = torch.cat([is_positive, (labels[:, None] == memory.labels) & is_other_image], dim=1)
        is_item = torch.cat([is_item, is_other_image], dim=1)
    queries, above = compare_softly(similarity, is_positive, temperature)
    ranks = 1 + above.where(is_item.index_select(0, queries), 0).sum(dim=1)  # (P,)
    num_positives = is_positive.sum(dim=1)
    recall = embeddings.new_zeros(len(labels))
    for k in ks:
        among_first = ((k - ranks) / rank_temperature).sigmoid()
        found = embeddings.new_zeros(len(labels)).index_add(0, queries, among_first)
        recall = recall + found.clamp_max(k) / num_positives.clamp(1, k)
    return (1 - recall / len(ks)).where(num_positives > 0, 0).mean()
