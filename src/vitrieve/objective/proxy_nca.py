"""The ProxyNCA++ loss: the probability that an embedding picks the proxy of its own class among all proxies.

``L = -1/B Σ_i log( exp(-D(z_i, p_{y_i}) / T) / Σ_c exp(-D(z_i, p_c) / T) )``, with the squared Euclidean distance
D of vectors of unit length. As ``D = 2 - 2 z·p``, this is the normalized softmax at half the temperature; what
makes it another method is how it is trained.

Source:
    Teh, DeVries and Taylor, ProxyNCA++, ECCV 2020, arXiv:2004.01113, section 3: the probability with the own
    proxy in the denominator, temperature scaling (T = 1/9). Its fast proxies are ``optimizer.proxy_learning_rate``,
    its max pooling ``model.pooling``, its layer norm without parameters ``model.head_norm``, its balanced classes
    ``m_per_class``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitrieve.objective.proxies import ProxyTermConfig
from vitrieve.objective.term import LossBatch, Sizes, loss_function
from vitrieve.settings import Positive

if TYPE_CHECKING:
    from torch import Tensor, nn

PROXY_SPREAD = 1 / 8
"""Standard deviation of a fresh proxy's coordinates, as in the authors' code (euwern/proxynca_pp, loss.py). Only a
proxy's direction counts, so its length sets how far one step of a given learning rate turns it."""


@dataclass(frozen=True, kw_only=True)
class ProxyNcaConfig(ProxyTermConfig):
    """The ProxyNCA++ loss, with one proxy for each class."""

    temperature: Positive = 1 / 9
    """Divides the squared distances."""

    def draw(self, sizes: Sizes) -> dict[str, Tensor]:
        """Draw the proxies."""
        import torch

        return {"proxies": PROXY_SPREAD * torch.randn(sizes.num_classes, sizes.embedding_dim)}

    def compute(self, batch: LossBatch, state: nn.Module) -> Tensor:
        """Compute the loss over the batch."""
        proxies, labels = self.select("proxies", batch, state)
        return proxy_nca_loss(batch.embeddings, labels, proxies, temperature=self.temperature)


@loss_function
def proxy_nca_loss(embeddings: Tensor, labels: Tensor, proxies: Tensor, *, temperature: float = 1 / 9) -> Tensor:
    """Compute the loss; the length of a proxy has no effect on it.

    Args:
        embeddings: ``(B, E)``, L2-normalized, float32 or float64.
        labels: ``(B,)`` int64 in ``[0, C)``.
        proxies: ``(C, E)``, one for each class, of any length.
        temperature: T, above 0.

    Returns:
        A scalar of at least zero, the mean over the batch; zero for a single class.
    """
    from torch.nn import functional

    proxies = functional.normalize(proxies.to(embeddings.dtype), dim=1)
    squared_distance = 2 - 2 * embeddings @ proxies.T  # (B, C)
    return functional.cross_entropy(-squared_distance / temperature, labels)
