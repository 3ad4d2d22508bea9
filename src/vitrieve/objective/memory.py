"""The cross-batch memory: a first-in, first-out ring of past embeddings, and the cost of pairs with it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vitrieve.errors import ConfigError

MEMORY_BLOCK_SIZE = 4096
"""Memory rows compared at a time: few enough that their similarities stay in the cache until they are used up."""


class MemoryRows(NamedTuple):
    """Embeddings of earlier steps.

    Attributes:
        embeddings: ``(M, E)``, L2-normalized, without gradient.
        labels: ``(M,)`` int64.
        rows: ``(M,)`` int64, the training image that each embedding shows.
    """

    embeddings: Tensor
    labels: Tensor
    rows: Tensor


class CrossBatchMemory(nn.Module):
    """The last ``memory_size`` embeddings, with their labels and training images.

    Everything it knows is in buffers, so ``state_dict`` carries it whole.

    Source:
        Wang et al., Cross-Batch Memory for Embedding Learning, CVPR 2020, arXiv:1912.06798.
    """

    embeddings: Tensor
    labels: Tensor
    rows: Tensor
    num_enqueued: Tensor

    def __init__(self, memory_size: int, embedding_dim: int) -> None:
        """Start empty.

        Args:
            memory_size: Largest number of embeddings kept, at least 1.
            embedding_dim: Length of an embedding.

        Raises:
            ConfigError: ``memory_size`` is not positive.
        """
        super().__init__()
        if memory_size < 1:
            raise ConfigError(f"memory_size is {memory_size}; expected at least 1.")
        self.register_buffer("embeddings", torch.zeros(memory_size, embedding_dim))
        self.register_buffer("labels", torch.zeros(memory_size, dtype=torch.int64))
        self.register_buffer("rows", torch.zeros(memory_size, dtype=torch.int64))
        # Counts all embeddings ever enqueued: the next position is its remainder, and "full" needs no marker.
        self.register_buffer("num_enqueued", torch.zeros((), dtype=torch.int64))

    @property
    def memory_size(self) -> int:
        """Largest number of embeddings kept."""
        return len(self.labels)

    def __len__(self) -> int:
        return min(int(self.num_enqueued), self.memory_size)

    def contents(self) -> MemoryRows:
        """Return the embeddings that are kept, without gradient, in no particular order; views, not copies."""
        kept = len(self)
        return MemoryRows(self.embeddings[:kept], self.labels[:kept], self.rows[:kept])

    @torch.no_grad()
    def enqueue(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> None:
        """Add a batch; the oldest rows make room. Call it after the loss of the same step.

        Args:
            embeddings: ``(B, E)``; B may exceed the memory, then the last rows stay.
            labels: ``(B,)`` int64.
            rows: ``(B,)`` int64, the training image that each embedding shows.
        """
        num_new = len(labels)
        kept = min(num_new, self.memory_size)
        first = int(self.num_enqueued) + num_new - kept
        positions = torch.arange(first, first + kept, device=self.labels.device) % self.memory_size
        self.embeddings[positions] = embeddings[num_new - kept :].detach().to(self.embeddings)
        self.labels[positions] = labels[num_new - kept :]
        self.rows[positions] = rows[num_new - kept :]
        self.num_enqueued += num_new


class MemoryCost(torch.autograd.Function):
    """The contrastive cost of all pairs of an anchor with a memory row, summed, and its gradient in the same pass.

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
    positions, columns = is_same.nonzero(as_tuple=True)
    is_other_image = rows[positions] != block.rows[columns]
    positions, columns = positions[is_other_image], columns[is_other_image]
    positive = (1 - similarity[positions, columns]).sum()
    excess = similarity.sub_(margin).clamp_min_(0).masked_fill_(is_same, 0)
    negative = excess.sum()
    weights = excess.sign_()
    weights[positions, columns] = -1
    return positive + negative, weights
