"""Similarity-preserving distillation: images are as alike to the trained encoder as they are to a larger one.

``L = 1/B Σ_i ‖ s_i / ‖s_i‖ - t_i / ‖t_i‖ ‖²``, where ``s_i`` and ``t_i`` are the cosines of image i with all images of
the batch, by the trained encoder and by the teacher. Both may have embeddings of any length. Labels have no part in it.

Source:
    Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019, arXiv:1907.09682, Eq. 1–4. What differs:
    embeddings of unit length in place of the activations of a layer, and the mean over rows where theirs is over all
    entries, so that this loss is B times theirs, and a weight means the same for every size of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitrieve.errors import ConfigError
from vitrieve.objective.term import LossBatch, Sizes, TermConfig, loss_function

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(TermConfig):
    """Similarity-preserving distillation from a larger encoder, over pairs of the batch."""

    teacher: str | None = None
    """The larger encoder: a weights name, a run, an encoder's folder, or stored embeddings of the training images. It
    embeds each training image once, before the first step, at its own image size and without augmentation."""

    def build(self, sizes: Sizes) -> nn.Module:
        """Keep the teacher's embeddings; they are not part of the state of a run.

        Raises:
            ConfigError: There are none.
        """
        from torch import nn

        if sizes.teacher is None:
            raise ConfigError("objective.distillation needs the embeddings of a teacher.")
        state = nn.Module()
        state.register_buffer("teacher", sizes.teacher, persistent=False)
        return state

    def compute(self, batch: LossBatch, state: nn.Module) -> Tensor:
        """Compute the loss over the batch."""
        return distillation_loss(batch.embeddings, state.get_buffer("teacher").index_select(0, batch.rows))


@loss_function
def distillation_loss(embeddings: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean squared distance between the rows of two cosine matrices, each of unit length.

    Args:
        embeddings: ``(B, E)``, L2-normalized, float32 or float64.
        teacher: ``(B, T)``, the teacher's of the same images, L2-normalized; without gradient.

    Returns:
        A scalar in [0, 4]; 0 where the cosines are equal up to a factor for each row, and for a single image.
    """
    from torch.nn import functional

    fixed = teacher.detach().to(embeddings.dtype)
    ours = functional.normalize(embeddings @ embeddings.T, dim=1)  # (B, B)
    theirs = functional.normalize(fixed @ fixed.T, dim=1)  # (B, B)
    return (ours - theirs).square().sum(dim=1).mean()
