"""The normalized softmax loss: classification by cosine, one learned weight a class."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class NormalizedSoftmaxLoss(nn.Module):
    """Cross-entropy over the cosines of an embedding with one weight vector a class.

    ``L = -1/B Σ_i log( exp(z_i·w_{y_i} / σ) / Σ_c exp(z_i·w_c / σ) )``, with ``z`` and ``w`` of unit length and the
    temperature σ. The sum runs over all classes of the training set, those of the batch or not.

    Source:
        Zhai and Wu, Classification is a Strong Baseline for Deep Metric Learning, BMVC 2019, arXiv:1811.12649,
        section 3. What differs is outside the loss: the authors put a layer norm without parameters before the
        embedding (the tokens of our ViTs end in a layer norm already, a ResNet's do not), sample balanced classes,
        train class weights alone in the first epoch, and compare binarised embeddings.
    """

    def __init__(self, num_classes: int, embedding_dim: int, *, temperature: float = 0.05) -> None:
        """Draw the class weights from torch's global generator.

        Args:
            num_classes: Labels run from 0 to this, exclusive.
            embedding_dim: Length of an embedding.
            temperature: σ, above 0; smaller asks less of what is nearly right and more of what is confused.
        """
        super().__init__()
        self.class_weights = nn.Parameter(torch.empty(num_classes, embedding_dim))
        nn.init.kaiming_normal_(self.class_weights, mode="fan_out")
        self.temperature = temperature

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss; the length of a class weight has no effect on it.

        Args:
            embeddings: ``(B, E)``, L2-normalized, float32 or float64.
            labels: ``(B,)`` int64 in ``[0, num_classes)``.

        Returns:
            A scalar of at least zero, the mean over the batch; zero for a single class.
        """
        class_weights = functional.normalize(self.class_weights.to(embeddings.dtype), dim=1)
        similarity = embeddings @ class_weights.T  # (B, C)
        return functional.cross_entropy(similarity / self.temperature, labels)
