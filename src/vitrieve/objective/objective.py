"""The objective of a run: named, weighted terms and their sum."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrieve.errors import ConfigError
from vitrieve.objective.losses import ObjectiveConfig
from vitrieve.objective.memory import CrossBatchMemory, Division, MemoryRows
from vitrieve.objective.own import OwnTerm
from vitrieve.objective.term import LossBatch, Relations, Sizes

DIVIDED_ABOVE_BYTES = 256 * 2**20
"""Largest cross-batch memory that each of several processes keeps whole: 174,762 embeddings of 384 dimensions."""


class LossValue(NamedTuple):
    """The loss of one batch.

    Attributes:
        total: Scalar with gradient, the weighted sum.
        terms: The terms before weighting, scalars by name.
    """

    total: Tensor
    terms: Mapping[str, Tensor]


class Objective(nn.Module):
    """The terms of an objective with their state: the memories, the proxies, and modules of a user's own.

    With prefixes, every loss of the package is the sum of itself on the whole embedding and on each leading part of it,
    normalized, with proxies and slots of its own for each; the memory is shared. A user's own terms see the whole
    embedding.

    Source:
        Kusupati et al., Matryoshka Representation Learning, NeurIPS 2022, arXiv:2205.13147, Eq. 1 with all weights 1.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        *,
        num_classes: int,
        num_images: int,
        embedding_dim: int,
        own_terms: Sequence[OwnTerm] = (),
        teacher: Tensor | None = None,
        division: Division | None = None,
    ) -> None:
        """Build the terms; proxies are drawn from torch's global generator.

        Args:
            config: Which terms, with which weights.
            num_classes: Labels of a batch lie in ``[0, num_classes)``.
            num_images: Size of the training set, for the size of the memories.
            embedding_dim: Length of an embedding.
            own_terms: Terms that are not of this package; modules among them are copied.
            teacher: ``(N, T)`` float32, the embeddings of a teacher, which distillation needs.
            division: Part of the cross-batch memory that this process keeps where several divide it, as they do where
                it is large (``DIVIDED_ABOVE_BYTES``) and every loss that reads it is a sum over it.

        Raises:
            ConfigError: A prefix is not shorter than the embedding, or a term lacks its teacher.
        """
        super().__init__()
        self._relations: Relations | None = None
        self.config = config
        self.memory = None
        if config.memory_fraction > 0:
            memory_size = max(1, round(config.memory_fraction * num_images))
            is_small = memory_size * embedding_dim * torch.float32.itemsize <= DIVIDED_ABOVE_BYTES
            if is_small or own_terms or any(term.needs_whole_memory for term in config.terms.values()):
                division = None
            self.memory = CrossBatchMemory(memory_size, embedding_dim, division)
        require_prefixes(config, embedding_dim)
        sizes = Sizes(num_classes, num_images, embedding_dim, teacher)
        for name, term in config.terms.items():
            self.add_module(name, term.build(sizes))
        for length in config.prefixes:
            of_prefix = sizes._replace(embedding_dim=length)
            parts = {name: term.build(of_prefix) for name, term in config.terms.items()}
            self.add_module(_prefix_name(length), nn.ModuleDict(parts))
        self.own_terms = tuple(own_terms)
        for own in own_terms:
            if isinstance(own.function, nn.Module):
                self.add_module(_state_name(own), copy.deepcopy(own.function))

    def use_relations(self, relations: Relations | None) -> None:
        """Compare the images of a batch by all that is known of them, from now on.

        Args:
            relations: What is known of pairs of training images beside one label of each; None: nothing.

        Raises:
            ConfigError: A term needs one class of each image.
        """
        if relations is not None:
            _require_pairs_alone(self.config, self.own_terms)
        self._relations = relations

    @property
    def has_relations(self) -> bool:
        """Whether more is known of the images than one class of each."""
        return self._relations is not None

    def forward(
        self, embeddings: Tensor, labels: Tensor, rows: Tensor, *, step: int, anchors: Tensor | None = None
    ) -> LossValue:
        """Compute the terms over one batch, outside autocast; the memories are read, not changed.

        Args:
            embeddings: ``(B, E)``, L2-normalized, float32.
            labels: ``(B,)`` int64.
            rows: ``(B,)`` int64, the training image that each embedding shows.
            step: Number of finished steps.
            anchors: ``(B,)`` int64, the position in the batch of each image's anchor; None without tuples.
        """
        batch = LossBatch(embeddings, labels, rows, step, anchors, self._read_memory(step), self._relations)
        with torch.autocast(embeddings.device.type, enabled=False):
            values = {name: term.compute(batch, self.get_submodule(name)) for name, term in self.config.terms.items()}
            for length in self.config.prefixes:
                part, states = _cut_batch(batch, length), self.get_submodule(_prefix_name(length))
                for name, term in self.config.terms.items():
                    values[name] = values[name] + term.compute(part, states.get_submodule(name))
            for own in self.own_terms:
                values[own.name] = own.compute(getattr(self, _state_name(own), own.function), batch)
        weights = [*(term.weight for term in self.config.terms.values()), *(own.weight for own in self.own_terms)]
        total = torch.stack([weight * value for weight, value in zip(weights, values.values(), strict=True)]).sum()
        return LossValue(total, {name: value.detach() for name, value in values.items()})

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
            rows: ``(B,)`` int64, the training image that each embedding shows.
        """
        if self.memory is not None:
            self.memory.enqueue(embeddings, labels, rows)
        for name, term in self.config.terms.items():
            term.update(embeddings, labels, rows, self.get_submodule(name))
            for length in self.config.prefixes:
                state = self.get_submodule(f"{_prefix_name(length)}.{name}")
                term.update(cut_embeddings(embeddings, length), labels, rows, state)


WITHOUT_CLASSES = ("koleo", "distillation")
"""Terms that read no labels."""


def _require_pairs_alone(config: ObjectiveConfig, own_terms: Sequence[OwnTerm]) -> None:
    """Refuse terms that need one class of each image.

    Raises:
        ConfigError: The message names one, and those that take pairs.
    """
    takers = ", ".join(name for name, loss in config.losses.items() if loss.takes_relations)
    needing = [name for name, term in config.terms.items() if not term.takes_relations and name not in WITHOUT_CLASSES]
    needing += [own.name for own in own_terms]
    if config.memory_fraction > 0:
        needing.append("memory_fraction")
    if needing:
        raise ConfigError(
            f"objective.{needing[0]} needs one class of each image, but images have several labels or pairs that "
            f"contradict them; use {takers}, without a memory, or leave the pairs and further labels out."
        )


def _prefix_name(length: int) -> str:
    return f"prefix{length}"


def cut_embeddings(embeddings: Tensor, length: int) -> Tensor:
    """Cut embeddings to their first ``length`` dimensions and normalize what remains, ``(B, length)``."""
    return functional.normalize(embeddings[:, :length], dim=1)


def _cut_batch(batch: LossBatch, length: int) -> LossBatch:
    memory = batch.memory
    if memory is not None:
        memory = memory._replace(embeddings=cut_embeddings(memory.embeddings, length))
    return batch._replace(embeddings=cut_embeddings(batch.embeddings, length), memory=memory)


def _state_name(own: OwnTerm) -> str:
    return f"own_{own.name}"


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


def require_prefixes(config: ObjectiveConfig, embedding_dim: int) -> None:
    """Refuse prefixes that are no shorter than the embedding.

    Raises:
        ConfigError: One is not.
    """
    if max(config.prefixes, default=0) >= embedding_dim:
        raise ConfigError(
            f"objective.prefixes has {max(config.prefixes)}; expected lengths below that of the embedding, "
            f"{embedding_dim}, which counts anyway."
        )
