"""The Proxy-Anchor loss: one learned proxy a class asks the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrieve.objective.multi_similarity import soft_sum


class ProxyAnchorLoss(nn.Module):
    """Proxy-Anchor loss over the batch, with proxies as parameters.

    Source:
        Kim et al., Proxy Anchor Loss for Deep Metric Learning, CVPR 2020, arXiv:2003.13911, Eq. 4.
    """

    def __init__(self, num_classes: int, embedding_dim: int, *, margin: float = 0.1, alpha: float = 32.0) -> None:
        """Draw the proxies from torch's global generator.

        Args:
            num_classes: Labels run from 0 to this, exclusive.
            embedding_dim: Length of an embedding.
            margin: δ of the paper.
            alpha: Sharpness.
        """
        super().__init__()
        self.proxies = nn.Parameter(torch.empty(num_classes, embedding_dim))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")
        self.margin = margin
        self.alpha = alpha

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            embeddings: ``(B, E)``, L2-normalized, float32 or float64.
            labels: ``(B,)`` int64 in ``[0, num_classes)``.

        Returns:
            A scalar: mean over proxies present in the batch of the pull, plus mean over all of the push.
        """
        proxies = functional.normalize(self.proxies.to(embeddings.dtype), dim=1)
        similarity = proxies @ embeddings.T  # (C, B)
        is_positive = torch.arange(len(proxies), device=labels.device)[:, None] == labels  # (C, B)
        pull = soft_sum(-self.alpha * (similarity - self.margin), is_positive)
        push = soft_sum(self.alpha * (similarity + self.margin), ~is_positive)
        is_present = is_positive.any(dim=1)
        return pull[is_present].mean() + push.mean()
