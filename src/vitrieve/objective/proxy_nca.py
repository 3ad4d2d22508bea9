"""The ProxyNCA++ loss: one learned proxy a class, as a probability over all proxies."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

PROXY_SPREAD = 1 / 8
"""Standard deviation of a fresh proxy's coordinates, as in the authors' code (euwern/proxynca_pp, loss.py). Only a
proxy's direction counts, so its length sets how far one step of a given learning rate turns it."""


class ProxyNcaLoss(nn.Module):
    """Negative logarithm of the probability that an embedding picks its own class's proxy.

    ``L = -1/B Σ_i log( exp(-D(z_i, p_{y_i}) / T) / Σ_c exp(-D(z_i, p_c) / T) )``, with the squared Euclidean distance
    D of vectors of unit length. As ``D = 2 - 2 z·p``, this is the normalized softmax at half the temperature; what
    makes it another method is how it is trained.

    Source:
        Teh, DeVries and Taylor, ProxyNCA++, ECCV 2020, arXiv:2004.01113, section 3: the probability with the own
        proxy in the denominator, temperature scaling (T = 1/9). Its fast proxies are
        ``optimizer.proxy_learning_rate``, its max pooling ``model.pooling``, its balanced classes ``m_per_class``.
        What differs is outside the loss: no layer norm without parameters and no linear layer before the embedding.
    """

    def __init__(self, num_classes: int, embedding_dim: int, *, temperature: float = 1 / 9) -> None:
        """Draw the proxies from torch's global generator.

        Args:
            num_classes: Labels run from 0 to this, exclusive.
            embedding_dim: Length of an embedding.
            temperature: T, above 0.
        """
        super().__init__()
        self.proxies = nn.Parameter(PROXY_SPREAD * torch.randn(num_classes, embedding_dim))
        self.temperature = temperature

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            embeddings: ``(B, E)``, L2-normalized, float32 or float64.
            labels: ``(B,)`` int64 in ``[0, num_classes)``.

        Returns:
            A scalar of at least zero, the mean over the batch; zero for a single class.
        """
        proxies = functional.normalize(self.proxies.to(embeddings.dtype), dim=1)
        squared_distance = 2 - 2 * embeddings @ proxies.T  # (B, C)
        return functional.cross_entropy(-squared_distance / self.temperature, labels)
