"""Softmax over class centers with a margin for the own class: CosFace and ArcFace, with sub-centers.

``L = -1/B Σ_i log( exp(m(c_i) / T) / (exp(m(c_i) / T) + Σ_{k ≠ y_i} exp(max_j z_i·w_kj / T)) )`` with the cosine to the
nearest center of the own class, ``c_i = max_j z_i·w_{y_i j}``. CosFace subtracts the margin from the cosine,
``m(c) = c - δ``; ArcFace adds it to the angle, ``m(c) = cos(arccos c + δ)``. The temperature T is one over their scale.

Source:
    Wang et al., CosFace, CVPR 2018, arXiv:1801.09414, Eq. 4 (δ = 0.35, scale 64); Deng et al., ArcFace, CVPR 2019,
    arXiv:1801.07698, Eq. 3 (δ = 0.5, scale 64); Deng et al., Sub-center ArcFace, ECCV 2020 (several centers, of which
    the nearest counts). Where the angle and the margin exceed 180 degrees the loss goes on as ``c - δ sin δ``, as in
    their code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vitrieve.objective.proxies import ProxyTermConfig
from vitrieve.objective.term import LossBatch, Sizes, loss_function
from vitrieve.settings import Count, NotNegative, Positive

if TYPE_CHECKING:
    from torch import Tensor, nn

MarginOn = Literal["cosine", "angle"]
SINE_MIN = 1e-3
"""Smaller sines count as this: the derivative of the angle by the cosine has no bound at 0 and at 180 degrees."""


@dataclass(frozen=True, kw_only=True)
class MarginSoftmaxConfig(ProxyTermConfig):
    """Softmax with a margin for the own class: CosFace and ArcFace, with sub-centers."""

    margin_on: MarginOn = "angle"
    """angle: the margin is added to the angle, in radians (ArcFace). cosine: it is subtracted from the cosine
    (CosFace)."""
    margin: NotNegative = 0.5
    """What the own class must win by."""
    temperature: Positive = 1 / 64
    """Divides the cosines: one over the scale of the papers."""
    num_centers: Count = 1
    """Centers of each class, of which the nearest counts."""

    def describe_fault(self) -> str | None:
        """Refuse a margin on the angle that is given in degrees."""
        if self.margin_on == "cosine" or self.margin <= math.pi / 2:
            return None
        return (
            f"margin is {self.margin}, but the margin on the angle is in radians: give at most 1.57 (0.5 are 28.6 "
            "degrees)."
        )

    def draw(self, sizes: Sizes) -> dict[str, Tensor]:
        """Draw the centers, of about unit length."""
        import torch

        centers = torch.randn(sizes.num_classes, self.num_centers, sizes.embedding_dim)
        return {"centers": centers / math.sqrt(sizes.embedding_dim)}

    def compute(self, batch: LossBatch, state: nn.Module) -> Tensor:
        """Compute the loss over the batch."""
        centers, labels = self.select("centers", batch, state)
        return margin_softmax_loss(
            batch.embeddings,
            labels,
            centers,
            margin_on=self.margin_on,
            margin=self.margin,
            temperature=self.temperature,
        )


@loss_function
def margin_softmax_loss(
    embeddings: Tensor,
    labels: Tensor,
    centers: Tensor,
    *,
    margin_on: MarginOn = "angle",
    margin: float = 0.5,
    temperature: float = 1 / 64,
) -> Tensor:
    """Compute the loss; the length of a center has no effect on it.

    Args:
        embeddings: ``(B, E)``, L2-normalized.
        labels: ``(B,)`` int64 in ``[0, C)``.
        centers: ``(C, K, E)``, K for each class, of any length.
        margin_on: What the margin changes.
        margin: δ, at least 0: in radians on the angle.
        temperature: T, above 0.

    Returns:
        A scalar of at least zero, the mean over the batch; zero for a single class.
    """
    import torch
    from torch.nn import functional

    centers = functional.normalize(centers.to(embeddings.dtype), dim=2)
    cosine = torch.einsum("be,cke->bck", embeddings, centers).amax(dim=2)  # (B, C)
    own = cosine.gather(1, labels[:, None])  # (B, 1)
    less = own - margin if margin_on == "cosine" else _add_to_angle(own, margin)
    return functional.cross_entropy(cosine.scatter(1, labels[:, None], less) / temperature, labels)


def _add_to_angle(cosine: Tensor, margin: float) -> Tensor:
    sine = (1 - cosine.square()).clamp_min(SINE_MIN**2).sqrt()
    turned = cosine * math.cos(margin) - sine * math.sin(margin)
    return turned.where(cosine >= -math.cos(margin), cosine - margin * math.sin(margin))
