"""Which images make the batch of a step: a pure function of the step, so that resuming needs no state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitrieve.config import Sampling
from vitrieve.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EpochTuples:
    """The tuples of an epoch, as ``training/tuples.py`` mines them, and their order in its steps.

    Attributes:
        epoch: Number of finished epochs.
        rows: ``(T, 2 + num_negatives)`` int64 rows of the training set: anchor, positive, negatives; −1 in the last
            places of an anchor for which there are fewer negatives. T is the same in every epoch.
        tuples_per_batch: Tuples in a step. A last batch that would hold fewer is left out, unless it is the only one.
    """

    epoch: int
    rows: np.ndarray
    tuples_per_batch: int

    @property
    def start_step(self) -> int:
        """Number of steps before the epoch."""
        return self.epoch * count_tuple_steps(len(self.rows), self.tuples_per_batch)

    @property
    def end_step(self) -> int:
        """Number of steps at its end."""
        return (self.epoch + 1) * count_tuple_steps(len(self.rows), self.tuples_per_batch)

    def batch_rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ``(B,)`` int64 rows of a step and, for each, the place of its anchor in the batch."""
        assert self.start_step <= step < self.end_step, f"step {step} lies outside epoch {self.epoch}"
        start = (step - self.start_step) * self.tuples_per_batch
        tuples = self.rows[start : start + self.tuples_per_batch]
        is_there = tuples >= 0
        sizes = is_there.sum(axis=1)
        return tuples[is_there], np.repeat(np.cumsum(sizes) - sizes, sizes)


def count_tuple_steps(num_tuples: int, tuples_per_batch: int) -> int:
    """Count the steps of an epoch, at least one.

    >>> count_tuple_steps(2_000, 5), count_tuple_steps(14, 5), count_tuple_steps(3, 5)
    (400, 2, 1)
    """
    return max(1, num_tuples // tuples_per_batch)


class Sampler:
    """Batches of rows of the training set, by step."""

    def __init__(
        self, labels: Sequence[int], *, batch_size: int, sampling: Sampling, images_per_class: int, seed: int
    ) -> None:
        """Prepare the sampling of a training set.

        Args:
            labels: Label of each row, at least one.
            batch_size: Rows in a batch.
            sampling: ``random``: an endless row of permutations of all rows, cut into batches.
                ``m_per_class``: an endless row of permutations of all classes, ``images_per_class`` images
                of each, without repetition where the class has enough.
            images_per_class: Images of one class, with ``m_per_class``.
            seed: Two samplers with the same seed and labels give the same batches.

        Raises:
            ConfigError: A size is not positive, or a batch is smaller than ``images_per_class``.
        """
        if batch_size < 1 or images_per_class < 1:
            raise ConfigError(
                f"batch_size is {batch_size} and images_per_class is {images_per_class}; both must be at least 1."
            )
        if sampling == "m_per_class" and images_per_class > batch_size:
            raise ConfigError(f"images_per_class is {images_per_class}, more than the batch_size of {batch_size}.")
        self._batch_size = batch_size
        self._sampling = sampling
        self._images_per_class = images_per_class
        self._seed = seed
        self._num_rows = len(labels)
        _, class_of_row, class_sizes = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
        # One sort serves every class: a search for each class would look at all images once a class.
        self._rows_by_class = np.argsort(class_of_row, kind="stable")
        self._class_ends = np.cumsum(class_sizes)
        self._class_sizes = class_sizes
        self._orders: dict[int, np.ndarray] = {}

    def batch_rows(self, step: int) -> np.ndarray:
        """Return the ``(B,)`` int64 rows of a step, counted from zero."""
        if self._sampling == "random":
            return self._stream(self._num_rows, step * self._batch_size, self._batch_size)
        num_classes = -(-self._batch_size // self._images_per_class)
        classes = self._stream(len(self._class_sizes), step * num_classes, num_classes)
        generator = np.random.default_rng([self._seed, _IMAGES_OF_CLASS, step])
        # A class met twice in a batch (few classes, or two permutations meeting) gives new images, not the same.
        rows = [
            _draw(self._rows_of_class(position), times * self._images_per_class, generator)
            for position, times in Counter(classes.tolist()).items()
        ]
        return np.concatenate(rows)[: self._batch_size]

    def _rows_of_class(self, position: int) -> np.ndarray:
        """Return the rows of a class, rising; ``position`` counts the classes in the order of their labels."""
        end = self._class_ends[position]
        return self._rows_by_class[end - self._class_sizes[position] : end]

    def _stream(self, num_items: int, start: int, count: int) -> np.ndarray:
        """Return items ``start`` to ``start + count`` of an endless row of permutations."""
        parts = []
        for epoch in range(start // num_items, (start + count - 1) // num_items + 1):
            first = max(start - epoch * num_items, 0)
            parts.append(self._order(epoch, num_items)[first : start + count - epoch * num_items])
        return np.concatenate(parts)

    def _order(self, epoch: int, num_items: int) -> np.ndarray:
        """Return the permutation of an epoch; two are kept, because shuffling a million images takes a while."""
        if epoch not in self._orders:
            kept = {other: order for other, order in self._orders.items() if other == epoch - 1}
            order = np.random.default_rng([self._seed, _ORDER, epoch]).permutation(num_items)
            self._orders = {**kept, epoch: order}
        return self._orders[epoch]


_ORDER, _IMAGES_OF_CLASS = 1, 2
"""Keep the generators of the two purposes apart."""


def _draw(rows: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw ``count`` rows; each comes again only after all have come."""
    rounds = [generator.permutation(rows) for _ in range(-(-count // len(rows)))]
    return np.concatenate(rounds)[:count]
