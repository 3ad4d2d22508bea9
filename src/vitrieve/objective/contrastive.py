"""The contrastive loss of the paper (Eq. 1), over the batch and a cross-batch memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MEMORY_BLOCK_SIZE = 4096
"""Memory rows compared at a time: few enough that their similarities stay in the cache until they are used up."""


class MemoryRows(NamedTuple):
    """Embeddings of earlier steps.

    Attributes:
        embeddings: ``(M, E)``, L2-normalized, without gradient.
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
        embeddings: ``(B, E)``, L2-normalized, float32 or float64.
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
    if not is_mean_nonzero:
        total = sum((side.sum() for side in costs[0]), embeddings.new_zeros(()))
        if memory is not None and len(memory.labels):
            assert rows is not None, "a memory needs the rows of the batch"
            total = total + _MemoryCost.apply(embeddings, labels, rows, memory, margin)
        return total / len(embeddings)
    if memory is not None and len(memory.labels):
        assert rows is not None, "a memory needs the rows of the batch"
        costs.append(_list_memory_costs(embeddings, labels, rows, memory, margin))
    positives, negatives = (torch.cat([side.flatten() for side in sides]) for sides in zip(*costs, strict=True))
    return _mean_nonzero(positives) + _mean_nonzero(negatives)


class _MemoryCost(torch.autograd.Function):
    """The sum over pairs of an anchor with a memory row, and its gradient in the same pass.

    A pair's cost is linear in its similarity wherever it is not zero, so the gradient is a product of weights, each
    -1, 0 or 1, with the memory. Both are made a block of the memory at a time; nothing of the size of anchors times
    memory is kept.
    """

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, labels: Tensor, rows: Tensor, memory: MemoryRows, margin: float) -> Tensor:
        """Return the sum, a scalar."""
        total, gradient = anchors.new_zeros(()), torch.zeros_like(anchors)
        for start in range(0, len(memory.labels), MEMORY_BLOCK_SIZE):
            block = MemoryRows(*(column[start : start + MEMORY_BLOCK_SIZE] for column in memory))
            cost, weights = _weigh_block(anchors, labels, rows, block, margin)
            total += cost
            if ctx.needs_input_grad[0]:
                gradient.addmm_(weights, block.embeddings)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Scale the gradient of the sum."""
        (gradient,) = ctx.saved_tensors
        return grad_output * gradient, None, None, None, None


def _weigh_block(
    anchors: Tensor, labels: Tensor, rows: Tensor, block: MemoryRows, margin: float
) -> tuple[Tensor, Tensor]:
    """Return the cost of all pairs with a block of the memory, and its derivatives in the similarities, ``(B, m)``."""
    similarity = anchors @ block.embeddings.T
    is_same = labels[:, None] == block.labels
    # Positives are few: they are listed, and everything else is treated as negative.
    places, columns = is_same.nonzero(as_tuple=True)
    is_other_image = rows[places] != block.rows[columns]
    places, columns = places[is_other_image], columns[is_other_image]
    positive = (1 - similarity[places, columns]).sum()
    excess = similarity.sub_(margin).clamp_min_(0).masked_fill_(is_same, 0)
    negative = excess.sum()
    weights = excess.sign_()
    weights[places, columns] = -1
    return positive + negative, weights


def _list_memory_costs(
    embeddings: Tensor, labels: Tensor, rows: Tensor, memory: MemoryRows, margin: float
) -> tuple[Tensor, Tensor]:
    """Return the costs of all pairs with the memory, ``(B, M)``, as positives and as negatives."""
    is_same = labels[:, None] == memory.labels
    is_other_image = rows[:, None] != memory.rows
    return _pair_costs(embeddings @ memory.embeddings.T, is_same & is_other_image, ~is_same, margin)


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
