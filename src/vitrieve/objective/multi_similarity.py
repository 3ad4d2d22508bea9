"""The multi-similarity loss with its pair mining.

``L = 1/B Σ_i [ 1/α log(1 + Σ_{j ∈ P_i} exp(-α (s_ij - λ))) + 1/β log(1 + Σ_{j ∈ N_i} exp(β (s_ij - λ))) ]``, where
``P_i`` and ``N_i`` are the mined positives and negatives.

Source:
    Wang et al., Multi-Similarity Loss with General Pair Weighting, CVPR 2019, arXiv:1904.06627, Eq. 11–14.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitrieve.objective.term import LossBatch, TermConfig, loss_function, mark_pairs
from vitrieve.settings import Cosine, Positive

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class MultiSimilarityConfig(TermConfig):
    """The multi-similarity loss, over pairs of the batch."""

    beta: Positive = 50.0
    """Sharpness towards the hardest negatives."""
    base: Cosine = 0.5
    """Similarity around which pairs are weighed."""

    needs_pairs = True
    takes_relations = True

    def compute(self, batch: LossBatch, state: nn.Module) -> Tensor:
        """Compute the loss over the batch."""
        return multi_similarity_loss(
            batch.embeddings, batch.labels, beta=self.beta, base=self.base, pairs=batch.mark_pairs()
        )


@loss_function
def multi_similarity_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    mining_margin: float = 0.1,
    pairs: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Compute the multi-similarity loss over the pairs of the batch that are worth it.

    An anchor's negative counts when it is more similar than the anchor's least similar positive less the
    mining margin; a positive when it is less similar than the most similar negative plus the margin.

    Args:
        embeddings: ``(B, E)``, L2-normalized, float32 or float64.
        labels: ``(B,)`` int64.
        pairs: Two ``(B, B)`` bool masks, the positives and the negatives; None: the labels say it.
        alpha: Sharpness of the soft sum over positives.
        beta: Sharpness of the soft sum over negatives.
        base: Similarity (λ in the paper) around which both sides are weighed.
        mining_margin: ε of the mining.

    Returns:
        A scalar, the mean over all B anchors; anchors without positives or negatives add zero.
    """
    import torch

    similarity = embeddings @ embeddings.T  # (B, B)
    is_positive, is_negative = mark_pairs(labels) if pairs is None else pairs
    fixed = similarity.detach()
    hardest_negative = fixed.masked_fill(~is_negative, -torch.inf).amax(dim=1, keepdim=True)  # (B, 1)
    hardest_positive = fixed.masked_fill(~is_positive, torch.inf).amin(dim=1, keepdim=True)  # (B, 1)
    is_mined_positive = is_positive & (fixed - mining_margin < hardest_negative)
    is_mined_negative = is_negative & (fixed + mining_margin > hardest_positive)
    positive = soft_sum(-alpha * (similarity - base), is_mined_positive) / alpha
    negative = soft_sum(beta * (similarity - base), is_mined_negative) / beta
    return (positive + negative).mean()


def soft_sum(exponents: Tensor, is_counted: Tensor) -> Tensor:
    """Compute ``log(1 + Σ exp)`` over the counted entries of each row, without overflow.

    Args:
        exponents: ``(R, C)``.
        is_counted: ``(R, C)`` bool; a row with none counted gives zero.

    Returns:
        ``(R,)``, at least zero.
    """
    import torch

    counted = exponents.masked_fill(~is_counted, -torch.inf)
    one = counted.new_zeros(len(counted), 1)
    return torch.cat([counted, one], dim=1).logsumexp(dim=1)
