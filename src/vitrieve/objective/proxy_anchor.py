"""The Proxy-Anchor loss: one learned proxy for each class is compared with the batch.

``L = 1/|P⁺| Σ_{p ∈ P⁺} log(1 + Σ_{i: y_i = p} exp(-α (z_i·p - δ))) + 1/|P| Σ_p log(1 + Σ_{i: y_i ≠ p} exp(α (z_i·p +
δ)))``, where ``P`` are all proxies and ``P⁺`` those with an image in the batch.

Source:
    Kim et al., Proxy Anchor Loss for Deep Metric Learning, CVPR 2020, arXiv:2003.13911, Eq. 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitrieve.objective.multi_similarity import soft_sum
from vitrieve.objective.proxies import ProxyTermConfig
from vitrieve.objective.term import LossBatch, Sizes, loss_function
from vitrieve.settings import Cosine, Positive

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ProxyAnchorConfig(ProxyTermConfig):
    """The Proxy-Anchor loss, with one proxy for each class."""

    margin: Cosine = 0.1
    """delta of Eq. 4: positives more similar than this are pulled less, negatives less similar than minus this are
    pushed less."""
    alpha: Positive = 32.0
    """Sharpness towards the hardest images of each proxy."""
    base: Cosine = 0.0
    """Similarity around which images are weighed; 0 is the paper's. Features whose images are all alike want more."""

    def draw(self, sizes: Sizes) -> dict[str, Tensor]:
        """Draw the proxies."""
        import torch
        from torch import nn

        proxies = torch.empty(sizes.num_classes, sizes.embedding_dim)
        return {"proxies": nn.init.kaiming_normal_(proxies, mode="fan_out")}

    def compute(self, batch: LossBatch, state: nn.Module) -> Tensor:
        """Compute the loss over the batch."""
        proxies, labels = self.select("proxies", batch, state)
        return proxy_anchor_loss(
            batch.embeddings, labels, proxies, margin=self.margin, alpha=self.alpha, base=self.base
        )


@loss_function
def proxy_anchor_loss(
    embeddings: Tensor,
    labels: Tensor,
    proxies: Tensor,
    *,
    margin: float = 0.1,
    alpha: float = 32.0,
    base: float = 0.0,
) -> Tensor:
    """Compute the loss; the length of a proxy has no effect on it.

    Args:
        embeddings: ``(B, E)``, L2-normalized, float32 or float64.
        labels: ``(B,)`` int64 in ``[0, C)``.
        proxies: ``(C, E)``, one for each class, of any length.
        margin: δ of the paper.
        alpha: Sharpness.
        base: Subtracted from every similarity, in [-1, 1); 0 is Eq. 4.

    Returns:
        A scalar: mean over proxies present in the batch of the pull, plus mean over all of the push.
    """
    import torch
    from torch.nn import functional

    proxies = functional.normalize(proxies.to(embeddings.dtype), dim=1)
    similarity = proxies @ embeddings.T - base  # (C, B)
    is_positive = torch.arange(len(proxies), device=labels.device)[:, None] == labels  # (C, B)
    pull = soft_sum(-alpha * (similarity - margin), is_positive)
    push = soft_sum(alpha * (similarity + margin), ~is_positive)
    is_present = is_positive.any(dim=1)
    return pull[is_present].mean() + push.mean()
