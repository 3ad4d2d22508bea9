"""The normalized softmax loss: classification by cosine, with one learned weight for each class.

``L = -1/B Σ_i log( exp(z_i·w_{y_i} / σ) / Σ_c exp(z_i·w_c / σ) )``, with ``z`` and ``w`` of unit length and the
temperature σ. The sum runs over all classes of the training set, those of the batch or not.

Source:
    Zhai and Wu, Classification is a Strong Baseline for Deep Metric Learning, BMVC 2019, arXiv:1811.12649,
    section 3. What differs is outside the loss: the authors put a layer norm without parameters before the
    embedding (the tokens of our ViTs end in a layer norm already, a ResNet's do not), sample balanced classes,
    train class weights alone in the first epoch, and compare binarized embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitrieve.objective.proxies import ProxyTermConfig
from vitrieve.objective.term import LossBatch, Sizes, loss_function
from vitrieve.settings import Positive

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class NormalizedSoftmaxConfig(ProxyTermConfig):
    """The normalized softmax loss, with one weight vector for each class."""

    temperature: Positive = 0.05
    """Divides the cosines."""

    def draw(self, sizes: Sizes) -> dict[str, Tensor]:
        """Draw the class weights."""
        import torch
        from torch import nn

        class_weights = torch.empty(sizes.num_classes, sizes.embedding_dim)
        return {"class_weights": nn.init.kaiming_normal_(class_weights, mode="fan_out")}

    def compute(self, batch: LossBatch, state: nn.Module) -> Tensor:
        """Compute the loss over the batch."""
        class_weights, labels = self.select("class_weights", batch, state)
        return normalized_softmax_loss(batch.embeddings, labels, class_weights, temperature=self.temperature)


@loss_function
def normalized_softmax_loss(
    embeddings: Tensor, labels: Tensor, class_weights: Tensor, *, temperature: float = 0.05
) -> Tensor:
    """Compute the loss; the length of a class weight has no effect on it.

    Args:
        embeddings: ``(B, E)``, L2-normalized, float32 or float64.
        labels: ``(B,)`` int64 in ``[0, C)``.
        class_weights: ``(C, E)``, one for each class, of any length.
        temperature: σ, above 0; smaller asks less of what is nearly right and more of what is confused.

    Returns:
        A scalar of at least zero, the mean over the batch; zero for a single class.
    """
    from torch.nn import functional

    class_weights = functional.normalize(class_weights.to(embeddings.dtype), dim=1)
    similarity = embeddings @ class_weights.T  # (B, C)
    return functional.cross_entropy(similarity / temperature, labels)
