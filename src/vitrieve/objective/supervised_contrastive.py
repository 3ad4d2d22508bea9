"""The supervised contrastive loss: the probability that an anchor picks each of its positives from the whole batch.

``L = -1/B Σ_i 1/|P_i| Σ_{p ∈ P_i} log( exp(z_i·z_p / T) / Σ_{a ≠ i} exp(z_i·z_a / T) )``, where ``P_i`` are the other
images of the class of i and T is the temperature.

Source:
    Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, arXiv:2004.11362, Eq. 2 (the sum over positives
    outside the logarithm), with the temperature 0.1 of their section 4. What differs: the sum over anchors is divided
    by B, as in their code; their projection head and two views of each image are outside this loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitrieve.objective.term import LossBatch, TermConfig, loss_function, mark_pairs
from vitrieve.settings import Positive

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class SupervisedContrastiveConfig(TermConfig):
    """The supervised contrastive loss, over pairs of the batch."""

    temperature: Positive = 0.1
    """Divides the cosines."""

    needs_pairs = True
    takes_relations = True

    def compute(self, batch: LossBatch, state: nn.Module) -> Tensor:
        """Compute the loss over the batch."""
        return supervised_contrastive_loss(
            batch.embeddings, batch.labels, temperature=self.temperature, pairs=batch.mark_pairs()
        )


@loss_function
def supervised_contrastive_loss(
    embeddings: Tensor, labels: Tensor, *, temperature: float = 0.1, pairs: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Compute the loss over the pairs of the batch.

    Args:
        embeddings: ``(B, E)``, L2-normalized.
        labels: ``(B,)`` int64.
        pairs: Two ``(B, B)`` bool masks, the positives and the negatives; None: the labels say it.
        temperature: T, above 0.

    Returns:
        A scalar of at least zero, the mean over all B; an anchor without positives adds zero.
    """
    import torch

    is_positive, is_negative = mark_pairs(labels) if pairs is None else pairs
    exponents = embeddings @ embeddings.T / temperature  # (B, B)
    everyone = exponents.masked_fill(~(is_positive | is_negative), -torch.inf).logsumexp(dim=1, keepdim=True)
    costs = (everyone - exponents).where(is_positive, 0)
    return (costs.sum(dim=1) / is_positive.sum(dim=1).clamp_min(1)).mean()
