"""The contract of a loss: settings that build what the loss keeps, and compute it over a batch.

A loss is one file of this folder: its equation and source, its settings with their ranges, and its tensors. Torch is
imported inside the functions of such a file, because its settings are flags of the command line, which works without
torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from vitrieve.settings import NotNegative

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitrieve.objective.memory import MemoryRows


class LossBatch(NamedTuple):
    """What a loss may look at.

    Attributes:
        embeddings: ``(B, E)``, L2-normalized, float32.
        labels: ``(B,)`` int64.
        rows: ``(B,)`` int64, the training image that each embedding shows.
        step: Number of finished steps.
        anchors: ``(B,)`` int64, the position in the batch of each image's anchor; None without tuples.
        memory: Embeddings of earlier steps; None without a memory, and before it counts.
    """

    embeddings: Tensor
    labels: Tensor
    rows: Tensor
    step: int
    anchors: Tensor | None
    memory: MemoryRows | None


class Sizes(NamedTuple):
    """The sizes that what a loss keeps depends on.

    Attributes:
        num_classes: Labels of a batch lie in ``[0, num_classes)``.
        num_images: Number of training images; rows lie in ``[0, num_images)``.
        embedding_dim: Length of an embedding.
    """

    num_classes: int
    num_images: int
    embedding_dim: int


@dataclass(frozen=True, kw_only=True)
class TermConfig(ABC):
    """The settings of a loss, the base class of each loss's own."""

    weight: NotNegative = 0.0
    """Weight of this term in the sum; 0 leaves it out."""

    reads_memory: ClassVar[bool] = False
    """Whether the loss reads the cross-batch memory."""
    needs_tuples: ClassVar[bool] = False
    """Whether the loss is defined for batches of tuples only."""
    has_proxies: ClassVar[bool] = False
    """Whether the loss has parameters of its own, which learn at ``optimizer.proxy_learning_rate``."""

    def build(self, sizes: Sizes) -> nn.Module:
        """Build what the loss keeps from step to step, as parameters and buffers; by default nothing.

        Parameters are drawn from torch's global generator.
        """
        from torch import nn

        return nn.Module()

    @abstractmethod
    def compute(self, batch: LossBatch, state: nn.Module) -> Tensor:
        """Compute the loss of a batch, a scalar before weighting; ``state`` is what ``build`` returned."""

    def update(self, embeddings: Tensor, labels: Tensor, rows: Tensor, state: nn.Module) -> None:  # noqa: B027  # optional
        """Put a batch into the state, after the loss of the same step; by default nothing happens.

        Args:
            embeddings: ``(B, E)``, of the encoder or of its momentum encoder.
            labels: ``(B,)`` int64.
            rows: ``(B,)`` int64, the training image that each embedding shows.
            state: What ``build`` returned; changed.
        """
