"""Scalable NCA: the probability that an embedding picks a training image of its own class.

``L = -1/B Σ_i log Σ_{j ≠ i, y_j = y_i} p_ij`` with ``p_ij = exp(z_i·v_j / σ) / Σ_{k ≠ i} exp(z_i·v_k / σ)``. There are
no class weights, but a memory with one slot ``v_j`` for every training image. After its step a slot becomes
``normalize(m v_j + (1 - m) z_j)``.

Source:
    Wu, Efros and Yu, Improving Generalization via Scalable Neighborhood Component Analysis, ECCV 2018,
    arXiv:1808.04699, section 3; temperature and momentum as in the authors' code (zhirongw/snca.pytorch).
    What differs: there the slots start as random vectors, which pull on a pre-trained encoder like any
    neighbor; here a slot counts once its image has been seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vitrieve.objective.term import LossBatch, Sizes, TermConfig, loss_function
from vitrieve.settings import BelowOne, Positive

if TYPE_CHECKING:
    from torch import Tensor, nn


class Slots(NamedTuple):
    """One slot for each training image.

    Attributes:
        slots: ``(M, E)``, L2-normalized where filled.
        labels: ``(M,)`` int64.
        is_filled: ``(M,)`` bool, whether the image has been seen.
    """

    slots: Tensor
    labels: Tensor
    is_filled: Tensor


@dataclass(frozen=True, kw_only=True)
class ScalableNcaConfig(TermConfig):
    """The scalable NCA loss, over a memory of its own with one slot for each training image."""

    temperature: Positive = 0.05
    """Divides the cosines."""
    momentum: BelowOne = 0.5
    """Share of itself that a slot keeps when its image comes again."""

    def build(self, sizes: Sizes) -> nn.Module:
        """Make empty slots."""
        from torch import nn

        state = nn.Module()
        for name, tensor in build_slots(sizes.num_images, sizes.embedding_dim)._asdict().items():
            state.register_buffer(name, tensor)
        return state

    def compute(self, batch: LossBatch, state: nn.Module) -> Tensor:
        """Compute the loss over the batch and the slots."""
        slots = _get_slots(state)
        return scalable_nca_loss(batch.embeddings, batch.labels, batch.rows, slots, temperature=self.temperature)

    def update(self, embeddings: Tensor, labels: Tensor, rows: Tensor, state: nn.Module) -> None:
        """Move the slots of the batch towards its embeddings."""
        update_slots(_get_slots(state), embeddings, labels, rows, momentum=self.momentum)


def _get_slots(state: nn.Module) -> Slots:
    return Slots(*(state.get_buffer(name) for name in Slots._fields))


def build_slots(num_images: int, embedding_dim: int) -> Slots:
    """Make an empty slot for each of ``num_images`` training images."""
    import torch

    return Slots(
        torch.zeros(num_images, embedding_dim),
        torch.zeros(num_images, dtype=torch.int64),
        torch.zeros(num_images, dtype=torch.bool),
    )


@loss_function
def scalable_nca_loss(
    embeddings: Tensor, labels: Tensor, rows: Tensor, slots: Slots, *, temperature: float = 0.05
) -> Tensor:
    """Compute the loss; the gradient goes into the embeddings only, the slots are read.

    Args:
        embeddings: ``(B, E)``, L2-normalized, float32 or float64.
        labels: ``(B,)`` int64.
        rows: ``(B,)`` int64, the training image that each embedding shows; its own slot is left out.
        slots: Memory of the training images.
        temperature: σ, above 0.

    Returns:
        A scalar of at least zero, the mean over all B; an embedding whose class has no filled slot but its own
        adds zero, as in the authors' code.
    """
    import torch

    is_other_image = rows[:, None] != torch.arange(len(slots.slots), device=rows.device)  # (B, M)
    is_neighbor = is_other_image & slots.is_filled  # (B, M)
    is_positive = is_neighbor & (labels[:, None] == slots.labels)  # (B, M)
    # Rows without a positive are dropped before the logarithms: -inf - -inf has no gradient.
    is_counted = is_positive.any(dim=1)  # (B,)
    exponents = embeddings[is_counted] @ slots.slots.to(embeddings.dtype).T / temperature
    everyone = exponents.masked_fill(~is_neighbor[is_counted], -torch.inf).logsumexp(dim=1)
    positives = exponents.masked_fill(~is_positive[is_counted], -torch.inf).logsumexp(dim=1)
    return (everyone - positives).sum() / len(embeddings)


def update_slots(slots: Slots, embeddings: Tensor, labels: Tensor, rows: Tensor, *, momentum: float = 0.5) -> None:
    """Move the slots of a batch towards its embeddings. Call it after the loss of the same step.

    Args:
        slots: Memory of the training images; changed.
        embeddings: ``(B, E)``, L2-normalized; several views of one image count as their mean.
        labels: ``(B,)`` int64.
        rows: ``(B,)`` int64, the training image that each embedding shows.
        momentum: m, the share that a slot keeps of itself, in [0, 1).
    """
    import torch
    from torch.nn import functional

    with torch.no_grad():
        seen, positions = torch.unique(rows, return_inverse=True)  # (U,), (B,)
        # index_add_ adds in the order of the batch; assignment to a row named twice would keep either.
        views = torch.zeros_like(slots.slots[seen]).index_add_(0, positions, embeddings.detach().to(slots.slots))
        views = functional.normalize(views, dim=1)  # (U, E)
        moved = functional.normalize(momentum * slots.slots[seen] + (1 - momentum) * views, dim=1)
        slots.slots[seen] = torch.where(slots.is_filled[seen, None], moved, views)
        slots.labels[rows] = labels
        slots.is_filled[seen] = True
