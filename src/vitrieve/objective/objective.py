"""The objective of a run: named, weighted terms and their sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitrieve.config import ObjectiveConfig
from vitrieve.objective.contrastive import MemoryRows, contrastive_loss
from vitrieve.objective.koleo import koleo_loss
from vitrieve.objective.memory import CrossBatchMemory
from vitrieve.objective.multi_similarity import multi_similarity_loss
from vitrieve.objective.normalized_softmax import NormalizedSoftmaxLoss
from vitrieve.objective.proxy_anchor import ProxyAnchorLoss
from vitrieve.objective.proxy_nca import ProxyNcaLoss
from vitrieve.objective.scalable_nca import ScalableNcaLoss
from vitrieve.objective.tuple_contrastive import find_first_showings, tuple_contrastive_loss


class LossValue(NamedTuple):
    """The loss of one batch.

    Attributes:
        total: Scalar with gradient, the weighted sum.
        terms: The terms before weighting, scalars by name.
    """

    total: Tensor
    terms: Mapping[str, Tensor]


class Term(NamedTuple):
    """A loss of the sum.

    Attributes:
        name: As in the log.
        weight: Its factor; 0 leaves it out.
        compute: Returns the scalar; called only when the weight is above 0.
    """

    name: str
    weight: float
    compute: Callable[[], Tensor]


class Objective(nn.Module):
    """The terms of ``ObjectiveConfig`` with their state: the memories and the proxies."""

    def __init__(self, config: ObjectiveConfig, *, num_classes: int, num_images: int, embedding_dim: int) -> None:
        """Build the terms; proxies are drawn from torch's global generator.

        Args:
            config: Which terms, with which weights.
            num_classes: Labels of a batch lie in ``[0, num_classes)``.
            num_images: Size of the training set, for the size of the memories.
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
        self.normalized_softmax = None
        if config.normalized_softmax_weight > 0:
            temperature = config.normalized_softmax_temperature
            self.normalized_softmax = NormalizedSoftmaxLoss(num_classes, embedding_dim, temperature=temperature)
        self.proxy_nca = None
        if config.proxy_nca_weight > 0:
            self.proxy_nca = ProxyNcaLoss(num_classes, embedding_dim, temperature=config.proxy_nca_temperature)
        self.scalable_nca = None
        if config.scalable_nca_weight > 0:
            self.scalable_nca = ScalableNcaLoss(
                num_images,
                embedding_dim,
                temperature=config.scalable_nca_temperature,
                momentum=config.scalable_nca_momentum,
            )

    def forward(
        self, embeddings: Tensor, labels: Tensor, rows: Tensor, *, step: int, anchors: Tensor | None = None
    ) -> LossValue:
        """Compute the terms over one batch, outside autocast; the memories are read, not changed.

        Args:
            embeddings: ``(B, E)``, L2-normalized, float32.
            labels: ``(B,)`` int64.
            rows: ``(B,)`` int64, the training image each embedding shows.
            step: Number of finished steps.
            anchors: ``(B,)`` int64, the place in the batch of each image's anchor; None without tuples.
        """
        terms = [term for term in self._list_terms(embeddings, labels, rows, step, anchors) if term.weight > 0]
        with torch.autocast(embeddings.device.type, enabled=False):
            values = [term.compute() for term in terms]
        total = torch.stack([term.weight * value for term, value in zip(terms, values, strict=True)]).sum()
        return LossValue(total, {term.name: value.detach() for term, value in zip(terms, values, strict=True)})

    def _list_terms(
        self, embeddings: Tensor, labels: Tensor, rows: Tensor, step: int, anchors: Tensor | None
    ) -> list[Term]:
        """List all terms, in the order of the sum."""
        config = self.config

        def contrast() -> Tensor:
            memory = self._read_memory(step)
            return contrastive_loss(
                embeddings,
                labels,
                margin=config.margin,
                rows=rows,
                memory=memory,
                is_mean_nonzero=config.mean_nonzero,
            )

        def compare() -> Tensor:
            beta, base = config.multi_similarity_beta, config.multi_similarity_base
            return multi_similarity_loss(embeddings, labels, beta=beta, base=base)

        def contrast_tuples() -> Tensor:
            assert anchors is not None, "the contrastive loss of tuples needs batches of tuples"
            return tuple_contrastive_loss(embeddings, labels, anchors, margin=config.tuple_margin)

        def spread() -> Tensor:
            # Over all images of the tuples, as Eq. 5 says; the anchors alone (five) tell little about the density. An
            # image that is a negative of two tuples counts once: it cannot be spread from itself.
            is_plain = anchors is None
            return koleo_loss(embeddings if is_plain else embeddings.index_select(0, find_first_showings(rows)))

        def call(module: nn.Module | None, *inputs: Tensor) -> Callable[[], Tensor]:
            return lambda: module(embeddings, labels, *inputs)  # type: ignore[misc]  # built where its weight is above 0

        return [
            Term("contrastive", config.contrastive_weight, contrast),
            Term("multi_similarity", config.multi_similarity_weight, compare),
            Term("proxy_anchor", config.proxy_anchor_weight, call(self.proxy_anchor)),
            Term("normalized_softmax", config.normalized_softmax_weight, call(self.normalized_softmax)),
            Term("proxy_nca", config.proxy_nca_weight, call(self.proxy_nca)),
            Term("scalable_nca", config.scalable_nca_weight, call(self.scalable_nca, rows)),
            Term("tuple_contrastive", config.tuple_contrastive_weight, contrast_tuples),
            Term("koleo", config.koleo_weight, spread),
        ]

    def _read_memory(self, step: int) -> MemoryRows | None:
        is_counted = self.memory is not None and step >= self.config.memory_start_step
        return self.memory.contents() if self.memory is not None and is_counted else None

    @property
    def memory_fill(self) -> float:
        """Filled share of the memory, in [0, 1]; zero without one."""
        return len(self.memory) / self.memory.memory_size if self.memory is not None else 0.0

    def enqueue(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> None:
        """Put a batch into the memories, where there are any; after the loss of the same step.

        Args:
            embeddings: ``(B, E)``, of the encoder or of its momentum encoder.
            labels: ``(B,)`` int64.
            rows: ``(B,)`` int64, the training image each embedding shows.
        """
        if self.memory is not None:
            self.memory.enqueue(embeddings, labels, rows)
        if self.scalable_nca is not None:
            self.scalable_nca.update(embeddings, labels, rows)


def similarity_statistics(embeddings: Tensor, labels: Tensor, margin: float) -> dict[str, float]:
    """Summarize the pairs of a batch, for the log.

    Args:
        embeddings: ``(B, E)``, L2-normalized.
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
