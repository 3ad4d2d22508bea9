"""Scalable NCA: neighbors in a memory with one slot for each training image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ScalableNcaLoss(nn.Module):
    """Negative logarithm of the probability that an embedding picks a training image of its own class.

    ``p_ij = exp(z_i·v_j / σ) / Σ_{k ≠ i} exp(z_i·v_k / σ)`` and ``L = -1/B Σ_i log Σ_{j ≠ i, y_j = y_i} p_ij``: no
    class weights, but a memory slot ``v_j`` for every training image. After its step a slot becomes
    ``normalize(m v_j + (1 - m) z_j)``. All of it is in buffers, so ``state_dict`` carries it whole.

    Source:
        Wu, Efros and Yu, Improving Generalization via Scalable Neighborhood Component Analysis, ECCV 2018,
        arXiv:1808.04699, section 3; temperature and momentum as in the authors' code (zhirongw/snca.pytorch).
        What differs: there the slots start as random vectors, which pull on a pre-trained encoder like any
        neighbor; here a slot counts once its image has been seen.
    """

    slots: Tensor
    labels: Tensor
    is_filled: Tensor

    def __init__(
        self, num_images: int, embedding_dim: int, *, temperature: float = 0.05, momentum: float = 0.5
    ) -> None:
        """Start with empty slots.

        Args:
            num_images: Size of the training set; rows run from 0 to this, exclusive.
            embedding_dim: Length of an embedding.
            temperature: σ, above 0.
            momentum: m, the share that a slot keeps of itself, in [0, 1).
        """
        super().__init__()
        self.register_buffer("slots", torch.zeros(num_images, embedding_dim))
        self.register_buffer("labels", torch.zeros(num_images, dtype=torch.int64))
        self.register_buffer("is_filled", torch.zeros(num_images, dtype=torch.bool))
        self.temperature = temperature
        self.momentum = momentum

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """Compute the loss; gradient into the embeddings only, the slots are read.

        Args:
            embeddings: ``(B, E)``, L2-normalized, float32 or float64.
            labels: ``(B,)`` int64.
            rows: ``(B,)`` int64, the training image each embedding shows; its own slot is left out.

        Returns:
            A scalar of at least zero, the mean over all B; an embedding whose class has no filled slot but its own
            adds zero, as in the authors' code.
        """
        is_other_image = rows[:, None] != torch.arange(len(self.slots), device=rows.device)  # (B, M)
        is_neighbor = is_other_image & self.is_filled  # (B, M)
        is_positive = is_neighbor & (labels[:, None] == self.labels)  # (B, M)
        # Rows without a positive are dropped before the logarithms: -inf - -inf has no gradient.
        is_counted = is_positive.any(dim=1)  # (B,)
        exponents = embeddings[is_counted] @ self.slots.to(embeddings.dtype).T / self.temperature
        everyone = exponents.masked_fill(~is_neighbor[is_counted], -torch.inf).logsumexp(dim=1)
        positives = exponents.masked_fill(~is_positive[is_counted], -torch.inf).logsumexp(dim=1)
        return (everyone - positives).sum() / len(embeddings)

    @torch.no_grad()
    def update(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> None:
        """Move the slots of a batch towards its embeddings. Call it after the loss of the same step.

        Args:
            embeddings: ``(B, E)``, L2-normalized; several views of one image count as their mean.
            labels: ``(B,)`` int64.
            rows: ``(B,)`` int64, the training image each embedding shows.
        """
        seen, places = torch.unique(rows, return_inverse=True)  # (U,), (B,)
        # index_add_ adds in the order of the batch; assignment to a row named twice would keep either.
        views = torch.zeros_like(self.slots[seen]).index_add_(0, places, embeddings.detach().to(self.slots))
        views = functional.normalize(views, dim=1)  # (U, E)
        moved = functional.normalize(self.momentum * self.slots[seen] + (1 - self.momentum) * views, dim=1)
        self.slots[seen] = torch.where(self.is_filled[seen, None], moved, views)
        self.labels[rows] = labels
        self.is_filled[seen] = True
