"""The circle loss: each similarity is weighed by how far it is from its optimum.

``L = 1/B Σ_i log( 1 + Σ_{n ∈ N_i} exp(a_n (s_in - m) / T) Σ_{p ∈ P_i} exp(-a_p (s_ip - 1 + m) / T) )`` with the weights
``a_n = max(0, s_in + m)`` and ``a_p = max(0, 1 + m - s_ip)``, which have no gradient. The margin is m, and the
temperature T is one over the paper's scale γ.

Source:
    Sun et al., Circle Loss: A Unified Perspective of Pair Similarity Optimization, CVPR 2020, arXiv:2002.10857, Eq. 6
    to 8, with m = 0.4 and γ = 80 as for fine-grained image retrieval in their section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vitrieve.objective.term import LossBatch, TermConfig, loss_function, mark_pairs
from vitrieve.settings import Positive, Share

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class CircleConfig(TermConfig):
    """The circle loss, over pairs of the batch."""

    margin: Share = 0.4
    """How far negatives may be from similarity 0, and positives from 1."""
    temperature: Positive = 1 / 80
    """Divides the weighed similarities: one over the scale of the paper."""

    needs_pairs = True

    def compute(self, batch: LossBatch, state: nn.Module) -> Tensor:
        """Compute the loss over the batch."""
        return circle_loss(batch.embeddings, batch.labels, margin=self.margin, temperature=self.temperature)


class PairWeights(NamedTuple):
    """The weights of all pairs.

    Attributes:
        positive: ``(B, B)``, a_p of each pair as a positive.
        negative: ``(B, B)``, a_n of each pair as a negative.
    """

    positive: Tensor
    negative: Tensor


@loss_function
def circle_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.4,
    temperature: float = 1 / 80,
    weights: PairWeights | None = None,
) -> Tensor:
    """Compute the loss over the pairs of the batch.

    Args:
        embeddings: ``(B, E)``, L2-normalized.
        labels: ``(B,)`` int64.
        margin: m, in [0, 1].
        temperature: T, above 0.
        weights: Weights of the pairs; None: those of these embeddings.

    Returns:
        A scalar of at least zero, the mean over all B anchors; anchors without positives or negatives add zero.
    """
    import torch
    from torch.nn import functional

    similarity = embeddings @ embeddings.T  # (B, B)
    weights = weights or weigh_pairs(similarity.detach(), margin)
    is_positive, is_negative = mark_pairs(labels)
    positive = -weights.positive * (similarity - (1 - margin)) / temperature
    negative = weights.negative * (similarity - margin) / temperature
    # Other anchors are dropped before the logarithms: -inf - -inf has no gradient.
    counted = (is_positive.any(dim=1) & is_negative.any(dim=1)).nonzero().flatten()
    sums = [
        exponents.masked_fill(~is_counted, -torch.inf).index_select(0, counted).logsumexp(dim=1)
        for exponents, is_counted in ((positive, is_positive), (negative, is_negative))
    ]
    return functional.softplus(sums[0] + sums[1]).sum() / len(embeddings)


def weigh_pairs(similarity: Tensor, margin: float) -> PairWeights:
    """Weigh pairs by the distance of their similarity from its optimum, 1 + m for positives and -m for negatives."""
    return PairWeights((1 + margin - similarity).clamp_min(0), (similarity + margin).clamp_min(0))
