"""The cross-batch memory: a first-in, first-out ring of past embeddings, and the cost of pairs with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
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
        sum_parts: Function that sums a tensor over the processes that divide the memory, of which these are one part;
            None: these are all.
    """

    embeddings: Tensor
    labels: Tensor
    rows: Tensor
    sum_parts: Callable[[Tensor], Tensor] | None = None

    def cut(self, places: slice) -> MemoryRows:
        """Return some of the embeddings."""
        return MemoryRows(self.embeddings[places], self.labels[places], self.rows[places])


class Division(NamedTuple):
    """One of the parts into which several processes divide a memory: every so many-th place of the ring.

    Attributes:
        part: Number of the part, from 0.
        num_parts: Number of parts.
        sum_parts: Function that sums a tensor over the processes, and returns the same on all.
    """

    part: int
    num_parts: int
    sum_parts: Callable[[Tensor], Tensor]


class CrossBatchMemory(nn.Module):
    """The last ``memory_size`` embeddings, with their labels and training images.

    Everything it knows is in buffers, so ``state_dict`` carries it; of a divided memory it carries one part.

    Source:
        Wang et al., Cross-Batch Memory for Embedding Learning, CVPR 2020, arXiv:1912.06798.
    """

    embeddings: Tensor
    labels: Tensor
    rows: Tensor
    num_enqueued: Tensor

    def __init__(self, memory_size: int, embedding_dim: int, division: Division | None = None) -> None:
        """Start empty.

        Args:
            memory_size: Largest number of embeddings kept, on all processes together; at least 1.
            embedding_dim: Length of an embedding.
            division: Part that this process keeps; None: everything.

        Raises:
            ConfigError: ``memory_size`` is not positive.
        """
        super().__init__()
        if memory_size < 1:
            raise ConfigError(f"memory_size is {memory_size}; expected at least 1.")
        self.memory_size = memory_size
        self.division = division
        num_kept = self._count_kept(memory_size)
        self.register_buffer("embeddings", torch.zeros(num_kept, embedding_dim))
        self.register_buffer("labels", torch.zeros(num_kept, dtype=torch.int64))
        self.register_buffer("rows", torch.zeros(num_kept, dtype=torch.int64))
        # Counts all embeddings ever enqueued: the next position is its remainder, and "full" needs no marker.
        self.register_buffer("num_enqueued", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return min(int(self.num_enqueued), self.memory_size)

    def _count_kept(self, num_places: int) -> int:
        """Count the places that this process keeps of the first so many of the ring."""
        part, num_parts = (self.division.part, self.division.num_parts) if self.division else (0, 1)
        return len(range(part, num_places, num_parts))

    def list_places(self) -> list[np.ndarray]:
        """Return the places of the ring that each part keeps, ``(m,)`` int64."""
        num_parts = self.division.num_parts if self.division else 1
        return [np.arange(part, self.memory_size, num_parts) for part in range(num_parts)]

    def contents(self) -> MemoryRows:
        """Return the embeddings that are kept here, without gradient, in no particular order; views, not copies."""
        kept = self._count_kept(len(self))
        sum_parts = self.division.sum_parts if self.division else None
        return MemoryRows(self.embeddings[:kept], self.labels[:kept], self.rows[:kept], sum_parts)

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
        new = torch.arange(num_new - kept, num_new, device=self.labels.device)
        if self.division is not None:
            is_own = positions % self.division.num_parts == self.division.part
            positions, new = positions[is_own] // self.division.num_parts, new[is_own]
        self.embeddings[positions] = embeddings[new].detach().to(self.embeddings)
        self.labels[positions] = labels[new]
        self.rows[positions] = rows[new]
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
            block = memory.cut(slice(start, start + MEMORY_BLOCK_SIZE))
            cost, weights = _weigh_block(anchors, labels, rows, block, margin)
            total += cost
            if ctx.needs_input_grad[0]:
                gradient.addmm_(weights, block.embeddings.to(anchors.dtype))
        if memory.sum_parts is not None:
            total, gradient = memory.sum_parts(total), memory.sum_parts(gradient)
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
    similarity = anchors @ block.embeddings.to(anchors.dtype).T
    # Pairs of one class are few: they are listed, and everything else is treated as negative.
    same = _list_equal(labels, block.labels)
    is_other_image = rows[same[0]] != block.rows[same[1]]
    positives = same[0][is_other_image], same[1][is_other_image]
    positive = (1 - similarity[positives]).sum()
    excess = similarity.sub_(margin).clamp_min_(0)
    excess[same] = 0
    negative = excess.sum()
    weights = excess.sign_()
    weights[positives] = -1
    return positive + negative, weights


def _list_equal(labels: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places of equal pairs in ``(B,)`` and ``(m,)``, in the order of the first, then of the second.

    Only those of ``others`` that equal any of ``labels`` are compared with each of them.
    """
    classes = labels.sort().values
    nearest = torch.searchsorted(classes, others).clamp_max_(len(classes) - 1)
    candidates = (classes[nearest] == others).nonzero().squeeze(1)
    first, second = (labels[:, None] == others[candidates]).nonzero(as_tuple=True)
    return first, candidates[second]
