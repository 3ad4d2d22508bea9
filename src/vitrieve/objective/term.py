"""The contract of a loss: settings that build what the loss keeps, and compute it over a batch.

A loss is one file of this folder: its equation and source, its settings with their ranges, and its tensors. Torch is
imported inside the functions of such a file, because its settings are flags of the command line, which works without
torch.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, ParamSpec

from vitrieve.settings import NotNegative

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitrieve.objective.memory import MemoryRows


Args = ParamSpec("Args")


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
    relations: Relations | None = None

    def mark_pairs(self) -> tuple[Tensor, Tensor]:
        """Mark the positives and the negatives of each image of the batch, as ``mark_pairs``, by all that is known."""
        if self.relations is None:
            return mark_pairs(self.labels)
        return self.relations.mark_pairs(self.labels, self.rows)


class Relations(NamedTuple):
    """What is known of pairs of training images beside one label of each.

    Attributes:
        more_labels: ``(N, L)`` int64, further labels of each training image, padded with -1.
        negatives: ``(P, 2)`` int64, rows of training images that are negatives whatever their labels say, each pair in
            both orders.
    """

    more_labels: Tensor
    negatives: Tensor

    def mark_pairs(self, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mark positives, images that share a label, and negatives, all others but the image itself.

        Args:
            labels: ``(B,)`` int64.
            rows: ``(B,)`` int64, the training image that each embedding shows.

        Returns:
            Two ``(B, B)`` bool masks.
        """
        import torch

        every = torch.cat([labels[:, None], self.more_labels.to(labels.device)[rows]], dim=1)  # (B, 1 + L)
        # One column for each label of the batch: comparing all with all would take the square of the labels an image.
        known, places = torch.unique(every, return_inverse=True)
        has_label = torch.zeros(len(labels), len(known), device=labels.device).scatter_(1, places, 1.0)  # (B, known)
        has_label[:, known < 0] = 0
        is_same = has_label @ has_label.T > 0
        num_images = len(self.more_labels)
        keys = rows[:, None] * num_images + rows
        negatives = self.negatives.to(labels.device)
        is_same &= ~torch.isin(keys, negatives[:, 0] * num_images + negatives[:, 1])
        itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        return is_same & ~itself, ~is_same & ~itself


class Sizes(NamedTuple):
    """What the state of a loss is built from.

    Attributes:
        num_classes: Labels of a batch lie in ``[0, num_classes)``.
        num_images: Number of training images; rows lie in ``[0, num_images)``.
        embedding_dim: Length of an embedding.
        teacher: ``(N, T)`` float32, a teacher's embeddings of the training images; None without a teacher.
    """

    num_classes: int
    num_images: int
    embedding_dim: int
    teacher: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class TermConfig(ABC):
    """The settings of a loss, the base class of each loss's own."""

    weight: NotNegative = 0.0
    """Weight of this term in the sum; 0 leaves it out."""

    reads_memory: ClassVar[bool] = False
    """Whether the loss reads the cross-batch memory."""
    needs_tuples: ClassVar[bool] = False
    """Whether the loss is defined for batches of tuples only."""
    takes_relations: ClassVar[bool] = False
    """Whether the loss looks at pairs alone, so that an image may have several labels (``LossBatch.mark_pairs``)."""
    needs_pairs: ClassVar[bool] = False
    """Whether the loss pulls pairs of one class together, and so needs such pairs in the batch or the memory."""
    has_proxies: ClassVar[bool] = False
    """Whether the loss has parameters of its own, which learn at ``optimizer.proxy_learning_rate``."""

    def describe_fault(self) -> str | None:
        """Say which settings cannot go together, as the rest of a sentence after the loss's name; None: all can."""
        return None

    @property
    def needs_whole_memory(self) -> bool:
        """Whether the loss compares with all of the memory at once, so that processes cannot divide it."""
        return self.reads_memory

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


def loss_function(compute: Callable[Args, Tensor]) -> Callable[Args, Tensor]:
    """Make a function of tensors a loss that can be trusted in any precision and with any input.

    Arguments in half precision are widened to float32, autocast is off, and embeddings that are not finite make the
    loss NaN, also where it would leave them out: a comparison with NaN is false, so a loss that chooses its pairs by
    comparing would call such a batch perfect.

    Args:
        compute: Function whose first tensor is the embeddings, and which returns a scalar.
    """

    @functools.wraps(compute)
    def guarded(*args: Args.args, **kwargs: Args.kwargs) -> Tensor:
        import torch

        given: Any = [_widen(value) for value in args]
        named: Any = {name: _widen(value) for name, value in kwargs.items()}
        embeddings = next(value for value in (*given, *named.values()) if isinstance(value, torch.Tensor))
        with torch.autocast(embeddings.device.type, enabled=False):
            return compute(*given, **named) + 0 * embeddings.sum()  # 0 * NaN and 0 * inf are NaN

    return guarded


def _widen(value: Any) -> Any:
    from torch import Tensor

    return widen(value) if isinstance(value, Tensor) else value


def widen(tensor: Tensor) -> Tensor:
    """Widen half precision to float32; everything else stays."""
    import torch

    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def mark_pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mark the positives and the negatives of each image of a batch.

    Args:
        labels: ``(B,)`` int64.

    Returns:
        Two ``(B, B)`` bool masks: images of the same label but the image itself, and images of other labels.

    >>> import torch
    >>> [mask.long().tolist() for mask in mark_pairs(torch.tensor([0, 0, 1]))]
    [[[0, 1, 0], [1, 0, 0], [0, 0, 0]], [[0, 0, 1], [0, 0, 1], [1, 1, 0]]]
    """
    import torch

    is_same = labels[:, None] == labels
    return is_same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~is_same
