"""Tuples for training on particular objects: pairs of an epoch, and hard negatives mined with the current weights.

The pairs and the candidates of an epoch are functions of (seed, epoch), the negatives of the weights too. Those change
within the epoch, so that its tuples belong to the state of the run (``state.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vitrieve.config import Config
from vitrieve.data.loader import EpochTuples, TrainingLoader, count_tuple_steps
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ConfigError
from vitrieve.model.encoder import ImageEncoder, evaluation_mode
from vitrieve.runtime.device import resolve_precision
from vitrieve.runtime.engine import choose_batch_size
from vitrieve.similarity import similarity_chunks
from vitrieve.training.ranks import current_ranks, share_places

_PAIRS, _CANDIDATES = 4, 5
"""Numbers that keep the generators of the two purposes apart, and apart from those of sampler and loader."""

Track = Callable[[Iterator[torch.Tensor], str, int], Iterator[torch.Tensor]]
"""A function that shows progress over batches; it takes the batches, a few words, and their number."""


@dataclass(frozen=True, kw_only=True)
class TupleMiner:
    """Makes the tuples of each epoch.

    Attributes:
        config: Settings of tuples, seed and precision.
        loader: Loader of the training images.
        labels: ``(N,)`` int64, labels of the training images.
        pairs: ``(P, 2)`` int64 rows of the pairs that the source lists; None: any two images of a class are a pair.
    """

    config: Config
    loader: TrainingLoader
    labels: np.ndarray
    pairs: np.ndarray | None

    @property
    def num_tuples(self) -> int:
        """Number of tuples in an epoch."""
        num_anchors = len(_find_anchors(self.labels)) if self.pairs is None else len(self.pairs)
        return min(self.config.tuples.num_pairs, num_anchors)

    def describe(self) -> str:
        """Say how long an epoch is, and which images or pairs are fewer than asked for."""
        tuples = self.config.tuples
        num_steps = count_tuple_steps(self.num_tuples, tuples.tuples_per_batch)
        text = (
            f"tuples: an epoch is {self.num_tuples} pairs in {num_steps} steps, "
            f"{self.config.train.num_steps / num_steps:.3g} epochs in all"
        )
        if self.num_tuples < tuples.num_pairs:
            text += f"; {tuples.num_pairs} pairs were asked for, there are no more"
        if len(self.labels) < tuples.num_candidates:
            text += f"; {tuples.num_candidates} candidates were asked for, all {len(self.labels)} images are"
        num_most = len(np.unique(self.labels)) - 1
        if num_most < tuples.num_negatives:
            text += f"; {tuples.num_negatives} negatives were asked for, other classes give {num_most}"
        return text

    def is_current(self, tuples: EpochTuples | None, step: int) -> bool:
        """Say whether the step after ``step`` finished ones lies in the epoch of these tuples."""
        return tuples is not None and tuples.start_step <= step < tuples.end_step

    def mine(self, encoder: ImageEncoder, step: int, track: Track) -> EpochTuples:
        """Draw the pairs of the step's epoch and find the negatives of each anchor with the encoder's weights.

        Args:
            encoder: Encoder, which is run in evaluation mode and left in the mode it was in.
            step: Number of finished steps.
            track: Function that shows how far embedding is.
        """
        tuples, seed = self.config.tuples, self.config.train.seed
        epoch = step // count_tuple_steps(self.num_tuples, tuples.tuples_per_batch)
        drawing = np.random.default_rng([seed, _PAIRS, epoch])
        if self.pairs is None:
            pairs = draw_class_pairs(self.labels, self.num_tuples, drawing)
        else:
            pairs = self.pairs[drawing.permutation(len(self.pairs))[: self.num_tuples]]
        order = np.random.default_rng([seed, _CANDIDATES, epoch]).permutation(len(self.labels))
        candidates = np.sort(order[: tuples.num_candidates])
        embedded, positions = np.unique(np.concatenate([pairs[:, 0], candidates]), return_inverse=True)
        embeddings = self._embed(encoder, embedded, track)
        negatives = find_hard_negatives(
            embeddings[positions[: len(pairs)]],
            self.labels[pairs[:, 0]],
            embeddings[positions[len(pairs) :]],
            self.labels[candidates],
            tuples.num_negatives,
        )
        # −1, "no further negative", stays −1.
        rows = np.concatenate([pairs, np.where(negatives >= 0, candidates[negatives], -1)], axis=1)
        return EpochTuples(epoch=epoch, rows=rows, tuples_per_batch=tuples.tuples_per_batch)

    def _embed(self, encoder: ImageEncoder, rows: np.ndarray, track: Track) -> np.ndarray:
        """Embed training images without augmentation, ``(R, E)`` float32; several processes divide them."""
        ranks = current_ranks()
        shares = share_places(len(rows), ranks.size)
        own = rows[shares[ranks.rank]]
        device = next(encoder.parameters()).device
        batch_size = choose_batch_size(device.type)
        batches = self.loader.plain_batches(own.tolist(), batch_size)
        is_bf16 = resolve_precision(self.config.train.precision, device.type) == "bf16"
        with (
            evaluation_mode(encoder),
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=is_bf16),
        ):
            shown = track(batches, "mine negatives", -(-len(own) // batch_size))
            empty = np.empty((0, encoder.spec.embedding_dim), np.float32)
            embeddings = [empty, *(encoder(pixels.to(device)).float().cpu().numpy() for pixels in shown)]
        return ranks.gather_arrays(np.concatenate(embeddings), shares)


def build_miner(
    config: Config,
    records: Sequence[ImageRecord],
    positive_pairs: Sequence[tuple[str, str]],
    loader: TrainingLoader,
) -> TupleMiner | None:
    """Build the miner of a run; None when it does not train on tuples.

    Args:
        config: The complete settings.
        records: Training images.
        positive_pairs: ``image_id`` of anchors and positives; pairs of images that do not train are left out. Empty:
            any two images of a class are a pair.
        loader: Loader of the training images, in the same order.

    Raises:
        ConfigError: No pair to train on, or a pair of images with different labels.
    """
    if config.loader.sampling != "tuples":
        return None
    labels = np.array([record.label for record in records], dtype=np.int64)
    pairs = find_pair_rows(records, positive_pairs) if positive_pairs else None
    if (len(_find_anchors(labels)) if pairs is None else len(pairs)) == 0:
        reason = f"none of the source's {len(positive_pairs)} pairs joins two training images"
        if not positive_pairs:
            reason = "no class has two training images"
        raise ConfigError(f"tuples need pairs: {reason}; choose another loader.sampling.")
    return TupleMiner(config=config, loader=loader, labels=labels, pairs=pairs)


def find_pair_rows(records: Sequence[ImageRecord], positive_pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Find the rows of listed pairs among the training images: ``(P, 2)`` int64, in their order, without repetition.

    Raises:
        ConfigError: A pair joins images of different labels, so that a positive could be a negative, too.
    """
    rows = {record.image_id: row for row, record in enumerate(records)}
    pairs: dict[tuple[int, int], None] = {}
    for anchor_id, positive_id in positive_pairs:
        anchor, positive = rows.get(anchor_id), rows.get(positive_id)
        if anchor is None or positive is None or anchor == positive:
            continue
        if records[anchor].label != records[positive].label:
            raise ConfigError(
                f"the pair {anchor_id!r} and {positive_id!r} has the labels {records[anchor].label} and "
                f"{records[positive].label}; images of a pair need the same label, because negatives are sought under "
                "all others."
            )
        pairs[anchor, positive] = None
    return np.array(list(pairs), dtype=np.int64).reshape(-1, 2)


def draw_class_pairs(labels: np.ndarray, num_pairs: int, generator: np.random.Generator) -> np.ndarray:
    """Draw pairs of two images of a class; an image is the anchor of one pair at most.

    Args:
        labels: ``(N,)`` int64.
        num_pairs: At most as many come back as there are images with another of their class.
        generator: Source of all randomness.

    Returns:
        ``(P, 2)`` int64 rows, anchor and positive, which always differ.
    """
    anchors = generator.permutation(_find_anchors(labels))[:num_pairs]
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    first, last = (np.searchsorted(ordered, labels[anchors], side=side) for side in ("left", "right"))
    own = np.empty(len(labels), dtype=np.int64)
    own[order] = np.arange(len(labels))
    # A step of 1 to n − 1 from the anchor's own position, around the n images of its class.
    steps = generator.integers(1, last - first)
    positives = order[first + (own[anchors] - first + steps) % (last - first)]
    return np.stack([anchors, positives], axis=1)


def find_hard_negatives(
    anchors: np.ndarray,
    anchor_labels: np.ndarray,
    candidates: np.ndarray,
    candidate_labels: np.ndarray,
    num_negatives: int,
) -> np.ndarray:
    """Find for each anchor the most similar candidates with other labels, at most one of each label.

    Args:
        anchors: ``(P, E)`` embeddings.
        anchor_labels: ``(P,)`` int64.
        candidates: ``(C, E)`` embeddings, at least one.
        candidate_labels: ``(C,)`` int64.
        num_negatives: Candidates for each anchor.

    Returns:
        ``(P, num_negatives)`` int64 rows of ``candidates``, most similar first; −1 in the last columns where the other
        labels are fewer. Ties are ordered by label, under one label by row.

    Source:
        Radenović, Tolias and Chum, arXiv:1711.02512, section 3.3; their code walks down each anchor's ranking and
        skips labels that it has met, which finds the same images.
    """
    order = np.argsort(candidate_labels, kind="stable")
    labels, starts = np.unique(candidate_labels[order], return_index=True)
    ends = np.append(starts[1:], len(order))
    found = np.full((len(anchors), num_negatives), -1, dtype=np.int64)
    for chunk, similarity in similarity_chunks(anchors, candidates):
        by_label = similarity[:, order]  # (P', C)
        best = np.maximum.reduceat(by_label, starts, axis=1)  # (P', L)
        best[anchor_labels[chunk, None] == labels] = -np.inf
        nearest = np.argsort(-best, axis=1, kind="stable")[:, :num_negatives]
        for row, positions in enumerate(nearest):
            for rank, position in enumerate(positions[np.isfinite(best[row, positions])]):
                start = starts[position]
                found[chunk.start + row, rank] = order[start + by_label[row, start : ends[position]].argmax()]
    return found


def _find_anchors(labels: np.ndarray) -> np.ndarray:
    """Find the rows whose class has another image."""
    _, positions, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.flatnonzero(counts[positions] > 1)
