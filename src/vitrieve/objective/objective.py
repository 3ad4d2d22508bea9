"""The objective of a run: named, weighted terms and their sum. Next folder: ``train``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitrieve.config import ObjectiveConfig
from vitrieve.objective.contrastive import contrastive_loss
from vitrieve.objective.koleo import koleo_loss
from vitrieve.objective.memory import CrossBatchMemory
from vitrieve.objective.multi_similarity import multi_similarity_loss
from vitrieve.objective.proxy_anchor import ProxyAnchorLoss


class LossValue(NamedTuple):
    """The loss of one batch.

    Attributes:
        total: Scalar with gradient, the weighted sum.
        terms: The terms before weighting, scalars by name.
    """

    total: Tensor
    terms: Mapping[str, Tensor]


class Objective(nn.Module):
    """The terms of ``ObjectiveConfig`` with their state: the memory and the proxies."""

    def __init__(self, config: ObjectiveConfig, *, num_classes: int, num_images: int, embedding_dim: int) -> None:
        """Build the terms; proxies are drawn from torch's global generator.

        Args:
            config: Which terms, with which weights.
            num_classes: Labels of a batch lie in ``[0, num_classes)``.
            num_images: Size of the training set, for the size of the memory.
            embedding_dim: Length of an embedding.
        """
        super().__init__()
        self.config = config
        self.memory = None
        if config.memory_fraction > 0:
            self.memory = CrossBatchMemory(max(1, round(config.memory_fraction * num_images)), embedding_dim)
        self.proxy_anchor = None
        if config.proxy_anchor_weight > 0:
            self.proxy_anchor = ProxyAnchorLoss(num_classes, embedding_dim)

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor, *, step: int) -> LossValue:
        """Compute the terms over one batch, outside autocast; the memory is read, not changed.

        Args:
            embeddings: ``(B, E)``, L2-normalised, float32.
            labels: ``(B,)`` int64.
            rows: ``(B,)`` int64, the training image each embedding shows.
            step: Number of finished steps.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            weighted = self._weigh_terms(embeddings, labels, rows, step)
        total = torch.stack([weight * value for weight, value in weighted.values()]).sum()
        return LossValue(total, {name: value.detach() for name, (_, value) in weighted.items()})

    def _weigh_terms(
        self, embeddings: Tensor, labels: Tensor, rows: Tensor, step: int
    ) -> dict[str, tuple[float, Tensor]]:
        """Compute the terms that count: name -> weight and value."""
        config = self.config
        is_memory_used = self.memory is not None and step >= config.memory_start_step
        memory = self.memory.contents() if self.memory is not None and is_memory_used else None
        weighted: dict[str, tuple[float, Tensor]] = {}
        if config.contrastive_weight > 0:
            loss = contrastive_loss(
                embeddings,
                labels,
                margin=config.margin,
                rows=rows,
                memory=memory,
                is_mean_nonzero=config.mean_nonzero,
            )
            weighted["contrastive"] = (config.contrastive_weight, loss)
        if config.multi_similarity_weight > 0:
            loss = multi_similarity_loss(
                embeddings, labels, beta=config.multi_similarity_beta, base=config.multi_similarity_base
            )
            weighted["multi_similarity"] = (config.multi_similarity_weight, loss)
        if self.proxy_anchor is not None:
            weighted["proxy_anchor"] = (config.proxy_anchor_weight, self.proxy_anchor(embeddings, labels))
        if config.koleo_weight > 0:
            weighted["koleo"] = (config.koleo_weight, koleo_loss(embeddings))
        return weighted

    @property
    def memory_fill(self) -> float:
        """Filled share of the memory, in [0, 1]; zero without one."""
        return len(self.memory) / self.memory.memory_size if self.memory is not None else 0.0

    def enqueue(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> None:
        """Put a batch into the memory, where there is one; after the loss of the same step."""
        if self.memory is not None:
            self.memory.enqueue(embeddings, labels, rows)


def similarity_statistics(embeddings: Tensor, labels: Tensor, margin: float) -> dict[str, float]:
    """Summarise the pairs of a batch, for the log.

    Args:
        embeddings: ``(B, E)``, L2-normalised.
        labels: ``(B,)`` int64.
        margin: Negatives above it are active.

    Returns:
        ``mean_positive_similarity``, ``mean_negative_similarity`` (NaN-free: missing without such pairs) and
        ``active_negatives_fraction``.
    """
    with torch.no_grad():
        similarity = embeddings @ embeddings.T
        is_same = labels[:, None] == labels
        positive = similarity[is_same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)]
        negative = similarity[~is_same]
    statistics = {}
    if len(positive):
        statistics["mean_positive_similarity"] = float(positive.mean())
    if len(negative):
        statistics["mean_negative_similarity"] = float(negative.mean())
        statistics["active_negatives_fraction"] = float((negative > margin).float().mean())
    return statistics
