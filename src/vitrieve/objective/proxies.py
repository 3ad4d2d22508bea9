"""What losses with a learned vector for each class share: how the vectors begin, and which of them take part.

Vectors that begin at random are met by few images where classes are many and steps are few, and until then they pull
the images of a batch in directions that mean nothing. With ``from_images`` a vector begins at the mean of the first
images of its class, and takes no part before.

Source:
    Qi, Brown and Lowe, Low-Shot Learning with Imprinted Weights, CVPR 2018, arXiv:1712.07136 (a class weight is the
    normalized mean of the embeddings of its images, and is then trained).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitrieve.objective.term import LossBatch, Sizes, TermConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

CENTER_SPREAD = 0.1
"""Length of the random part of each of several vectors of a class, beside the mean of its images: equal ones would stay
equal."""
MET = "is_met"
"""Name of the buffer that says which classes have been met, ``(C,)`` bool."""


@dataclass(frozen=True, kw_only=True)
class ProxyTermConfig(TermConfig):
    """The settings of a loss with learned vectors for each class, the base class of each such loss's own."""

    from_images: bool = False
    """Begin a class's vectors at the mean embedding of its first images, and leave them out before; no: at random."""

    has_proxies = True

    @abstractmethod
    def draw(self, sizes: Sizes) -> dict[str, Tensor]:
        """Draw the vectors from torch's global generator: ``(C, E)`` or ``(C, K, E)``, by the name of their state."""

    def build(self, sizes: Sizes) -> nn.Module:
        """Draw the vectors; without images none has been met."""
        import torch
        from torch import nn

        state = nn.ParameterDict({name: nn.Parameter(vectors) for name, vectors in self.draw(sizes).items()})
        if self.from_images:
            state.register_buffer(MET, torch.zeros(sizes.num_classes, dtype=torch.bool))
        return state

    def select(self, name: str, batch: LossBatch, state: nn.Module) -> tuple[Tensor, Tensor]:
        """Select the vectors that take part in the loss of a batch.

        Args:
            name: Name of the vectors in the state.
            batch: Batch; vectors of the classes that it shows first are set to begin there.
            state: What ``build`` returned; changed by classes that are new.

        Returns:
            The vectors of the classes met so far, and the positions among them of the labels of the batch, ``(B,)``.
        """
        vectors = state.get_parameter(name)
        # The loss of a batch that is not finite is NaN; the batch must leave nothing behind.
        if not self.from_images or not bool(batch.embeddings.isfinite().all()):
            return vectors, batch.labels
        is_met = state.get_buffer(MET)
        imprint_classes(vectors, is_met, batch.embeddings, batch.labels)
        met = is_met.nonzero().flatten()
        return vectors.index_select(0, met), (is_met.cumsum(dim=0) - 1)[batch.labels]


def imprint_classes(vectors: Tensor, is_met: Tensor, embeddings: Tensor, labels: Tensor) -> None:
    """Set the vectors of classes that have not been met to the normalized mean of their images.

    Args:
        vectors: ``(C, E)``, or ``(C, K, E)`` for several vectors of a class, which then begin near the mean; changed.
        is_met: ``(C,)`` bool; changed.
        embeddings: ``(B, E)``, L2-normalized.
        labels: ``(B,)`` int64 in ``[0, C)``.
    """
    import torch
    from torch.nn import functional

    with torch.no_grad():
        means = vectors.new_zeros(len(is_met), embeddings.shape[1]).index_add_(0, labels, embeddings.to(vectors))
        is_new = torch.zeros_like(is_met).index_fill_(0, labels, True) & ~is_met
        begun = functional.normalize(means, dim=1)  # (C, E)
        if vectors.ndim == 3:
            begun = begun[:, None] + CENTER_SPREAD * functional.normalize(vectors, dim=2)  # (C, K, E)
        vectors.copy_(torch.where(is_new.view(-1, *(1,) * (vectors.ndim - 1)), begun, vectors))
        is_met |= is_new
