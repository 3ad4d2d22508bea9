"""The cross-batch memory: a first-in, first-out ring of past embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitrieve.errors import ConfigError
from vitrieve.objective.contrastive import MemoryRows


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
        # Counts all embeddings ever enqueued: the next place is its remainder, "full" needs no marker.
        self.register_buffer("num_enqueued", torch.zeros((), dtype=torch.int64))

    @property
    def memory_size(self) -> int:
        """Largest number of embeddings kept."""
        return len(self.labels)

    def __len__(self) -> int:
        return min(int(self.num_enqueued), self.memory_size)

    def contents(self) -> MemoryRows:
        """Return what is kept, without gradient, in no particular order; views, not copies."""
        kept = len(self)
        return MemoryRows(self.embeddings[:kept], self.labels[:kept], self.rows[:kept])

    @torch.no_grad()
    def enqueue(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> None:
        """Add a batch, the oldest rows make place. Call it after the loss of the same step.

        Args:
            embeddings: ``(B, E)``; B may exceed the memory, then the last rows stay.
            labels: ``(B,)`` int64.
            rows: ``(B,)`` int64, the training image each embedding shows.
        """
        num_new = len(labels)
        kept = min(num_new, self.memory_size)
        first = int(self.num_enqueued) + num_new - kept
        places = torch.arange(first, first + kept, device=self.labels.device) % self.memory_size
        self.embeddings[places] = embeddings[num_new - kept :].detach().to(self.embeddings)
        self.labels[places] = labels[num_new - kept :]
        self.rows[places] = rows[num_new - kept :]
        self.num_enqueued += num_new
