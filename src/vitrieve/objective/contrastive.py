"""The contrastive loss of the paper, over the batch and a cross-batch memory.

``L = 1/B Σ_i [ Σ_{j: y_j = y_i} (1 - z_i·z_j) + Σ_{j: y_j ≠ y_i} max(0, z_i·z_j - β) ]``

Source:
    El-Nouby et al., arXiv:2102.05644, Eq. 1; memory: Wang et al., arXiv:1912.06798.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitrieve.objective.term import LossBatch, TermConfig, loss_function, mark_pairs
from vitrieve.settings import Cosine

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitrieve.objective.memory import MemoryRows


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(TermConfig):
    """The contrastive loss of the paper (Eq. 1)."""

    margin: Cosine = 0.5
    """beta of Eq. 1: negatives less similar than this cost nothing."""
    mean_nonzero: bool = False
    """Average the loss over the pairs that cost something, instead of Eq. 1's sum divided by the batch."""

    needs_pairs = True
    reads_memory = True
    takes_relations = True

    @property
    def needs_whole_memory(self) -> bool:
        """Whether means over pairs, unlike Eq. 1's sum, need the memory in one place."""
        return self.mean_nonzero

    def compute(self, batch: LossBatch, state: nn.Module) -> Tensor:
        """Compute the loss over the batch and the memory."""
        return contrastive_loss(
            batch.embeddings,
            batch.labels,
            margin=self.margin,
            rows=batch.rows,
            memory=batch.memory,
            is_mean_nonzero=self.mean_nonzero,
            pairs=batch.mark_pairs(),
        )


@loss_function
def contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.5,
    rows: Tensor | None = None,
    memory: MemoryRows | None = None,
    is_mean_nonzero: bool = False,
    pairs: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Compute Eq. 1: positives are pulled to similarity 1, negatives are pushed below the margin.

    The sum runs over pairs of the batch (j ≠ i, gradient into both sides) and over pairs of an anchor with
    a memory row of an earlier step (gradient into the anchor only), and is divided by the batch size B.
    Memory rows that show the anchor's own image are left out: they are earlier copies of it.

    Args:
        embeddings: ``(B, E)``, L2-normalized, float32 or float64.
        labels: ``(B,)`` int64.
        margin: β in Eq. 1, in [-1, 1): negatives less similar than this cost nothing.
        rows: ``(B,)`` int64, the training image that each embedding shows; needed with a memory.
        memory: Embeddings of earlier steps, or None.
        is_mean_nonzero: Instead of the sum divided by B, add the mean over positive pairs that cost
            something and the mean over negative pairs that do (the public re-implementation's way).
        pairs: Two ``(B, B)`` bool masks, the positives and the negatives of the batch; None: the labels say it.

    Returns:
        A scalar; zero where no pair costs anything.
    """
    import torch

    from vitrieve.objective.memory import MemoryCost

    costs = [_pair_costs(embeddings @ embeddings.T, *(mark_pairs(labels) if pairs is None else pairs), margin)]
    if not is_mean_nonzero:
        total = sum((side.sum() for side in costs[0]), embeddings.new_zeros(()))
        if memory is not None and (len(memory.labels) or memory.sum_parts is not None):
            assert rows is not None, "a memory needs the rows of the batch"
            total = total + MemoryCost.apply(embeddings, labels, rows, memory, margin)
        return total / len(embeddings)
    if memory is not None and len(memory.labels):
        assert rows is not None, "a memory needs the rows of the batch"
        costs.append(_list_memory_costs(embeddings, labels, rows, memory, margin))
    positives, negatives = (torch.cat([side.flatten() for side in sides]) for sides in zip(*costs, strict=True))
    return _mean_nonzero(positives) + _mean_nonzero(negatives)


def _list_memory_costs(
    embeddings: Tensor, labels: Tensor, rows: Tensor, memory: MemoryRows, margin: float
) -> tuple[Tensor, Tensor]:
    """Return the costs of all pairs with the memory, ``(B, M)``, as positives and as negatives."""
    is_same = labels[:, None] == memory.labels
    is_other_image = rows[:, None] != memory.rows
    return _pair_costs(
        embeddings @ memory.embeddings.to(embeddings.dtype).T, is_same & is_other_image, ~is_same, margin
    )


def _pair_costs(similarity: Tensor, is_positive: Tensor, is_negative: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    positive = (1 - similarity).where(is_positive, 0)
    negative = (similarity - margin).clamp_min(0).where(is_negative, 0)
    return positive, negative


def _mean_nonzero(costs: Tensor) -> Tensor:
    return costs.sum() / (costs > 0).sum().clamp_min(1)
