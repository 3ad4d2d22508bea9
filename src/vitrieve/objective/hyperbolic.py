"""Pairwise cross-entropy in the Poincaré ball or on the sphere: the losses of Hyp-ViT and Sph-ViT.

``L = 1/|Q| Σ_{(a, p) ∈ Q} -log( exp(-d_ap / T) / (exp(-d_ap / T) + Σ_{n: y_n ≠ y_a} exp(-d_an / T)) )`` over all
ordered pairs Q of one class. In the ball of curvature c a vector v is clipped to the radius r and becomes
``x = tanh(√c ‖v‖) v / (√c ‖v‖)``, and ``d(x, y) = 2/√c artanh(√c ‖-x ⊕ y‖)``. With c = 0, ``-d`` is the cosine.

Source:
    Ermolov et al., Hyperbolic Vision Transformers: Combining Improvements in Metric Learning, CVPR 2022,
    arXiv:2203.10833, Eq. 3 to 6; clipping: Guo et al., arXiv:2107.11472. Values of the authors' code (htdt/hyp_metric):
    c = 0.1, r = 2.3, T = 0.2, 128 dimensions; on the sphere T = 0.1. What differs: their linear layer to 128 dimensions
    is a part of the encoder, and search compares points of the ball. Here it is a part of the loss, and search compares
    what comes before it by cosine, as their code does with ``skip_head``. It reads embeddings of unit length, times
    the root of their dimensions: the length that the last layer norm of a ViT gives them. An anchor's negatives are
    those of the whole batch; their code takes the images of two views of each class at a time (the same for two images
    of a class) and adds up the pairs of views.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitrieve.objective.term import LossBatch, Sizes, TermConfig, loss_function, mark_pairs, widen
from vitrieve.settings import Count, NotNegative, Positive

if TYPE_CHECKING:
    from torch import Tensor, nn

MAX_REACH = 5.0
"""Largest √c r: cosh²(5) times the rounding of a float32 number is below a thousandth."""
LENGTH_MIN = 1e-6
"""Shorter vectors have no direction: they stay at the origin."""


@dataclass(frozen=True, kw_only=True)
class HyperbolicConfig(TermConfig):
    """The pairwise cross-entropy of Hyp-ViT, in the Poincaré ball or on the sphere."""

    curvature: NotNegative = 0.1
    """Curvature of the Poincaré ball; 0: the sphere."""
    temperature: Positive = 0.2
    """Divides the distances, or the cosines on the sphere."""
    clip_radius: Positive = 2.3
    """Longest vector that is mapped into the ball; longer ones are shortened to it."""
    projection_dim: Count | None = 128
    """Dimensions of a trained linear layer before the ball, which is dropped after training; None: no such layer, and
    all points lie at one radius."""

    needs_pairs = True
    has_proxies = True

    def describe_fault(self) -> str | None:
        """Refuse points so near to the rim of the ball that float32 cannot tell them apart."""
        reach = math.sqrt(self.curvature) * self.clip_radius
        if reach <= MAX_REACH:
            return None
        return (
            f"clip_radius is {self.clip_radius} with curvature {self.curvature}: the root of the curvature times the "
            f"radius is {reach:.3g}, and above {MAX_REACH:g} rounding hides small distances; lower one of them."
        )

    def build(self, sizes: Sizes) -> nn.Module:
        """Draw the linear layer with orthonormal rows."""
        import torch
        from torch import nn

        if self.projection_dim is None:
            return nn.Module()
        projection = nn.init.orthogonal_(torch.empty(self.projection_dim, sizes.embedding_dim))
        return nn.ParameterDict({"projection": nn.Parameter(projection)})

    def compute(self, batch: LossBatch, state: nn.Module) -> Tensor:
        """Compute the loss over the batch."""
        return hyperbolic_loss(
            widen(batch.embeddings) * math.sqrt(batch.embeddings.shape[1]),
            batch.labels,
            projection=None if self.projection_dim is None else state.get_parameter("projection"),
            curvature=self.curvature,
            temperature=self.temperature,
            clip_radius=self.clip_radius,
        )


@loss_function
def hyperbolic_loss(
    vectors: Tensor,
    labels: Tensor,
    *,
    projection: Tensor | None = None,
    curvature: float = 0.1,
    temperature: float = 0.2,
    clip_radius: float = 2.3,
) -> Tensor:
    """Compute the cross-entropy of every pair of one class among the negatives of its anchor.

    Args:
        vectors: ``(B, E)`` of any length; on the sphere the length has no effect.
        labels: ``(B,)`` int64.
        projection: ``(D, E)``, by which vectors are multiplied first; None: they stay.
        curvature: c, at least 0; 0: the sphere.
        temperature: T, above 0.
        clip_radius: r, above 0.

    Returns:
        A scalar of at least zero, the mean over the ordered pairs of one class; zero without such pairs or without
        negatives.
    """
    import torch
    from torch.nn import functional

    if projection is not None:
        vectors = vectors @ projection.to(vectors.dtype).T  # (B, D)
    if curvature > 0:
        logits = -poincare_distances(vectors, curvature=curvature, clip_radius=clip_radius) / temperature
    else:
        directions = functional.normalize(vectors, dim=1)
        logits = directions @ directions.T / temperature  # (B, B)
    is_positive, is_negative = mark_pairs(labels)
    negatives = logits.masked_fill(~is_negative, -torch.inf).logsumexp(dim=1, keepdim=True)  # (B, 1)
    costs = functional.softplus(negatives - logits).where(is_positive, 0)
    return costs.sum() / is_positive.sum().clamp_min(1)


def poincare_distances(vectors: Tensor, *, curvature: float, clip_radius: float) -> Tensor:
    """Map vectors into the Poincaré ball and compute their distances there, ``(B, B)``.

    It uses ``artanh(√c ‖-x ⊕ y‖) = arsinh(√c ‖x - y‖ cosh(√c ‖v‖) cosh(√c ‖w‖))`` for the points x and y of v and w,
    which has a gradient at equal points (zero) and needs no guard at the rim of the ball.

    Args:
        vectors: ``(B, D)`` of any length.
        curvature: c, above 0.
        clip_radius: r, above 0.
    """
    import torch

    root = math.sqrt(curvature)
    length = vectors.norm(dim=1, keepdim=True)  # (B, 1)
    radius = root * length.clamp_max(clip_radius)
    points = radius.tanh() / root * vectors / length.clamp_min(LENGTH_MIN)
    # Direct differences, because ‖x‖² + ‖y‖² - 2 x·y drowns near duplicates in rounding.
    apart = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    stretch = radius.cosh()
    distances: Tensor = (root * apart * stretch * stretch.T).asinh() * (2 / root)
    return distances
