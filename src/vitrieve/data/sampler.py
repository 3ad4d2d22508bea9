"""Which images make the batch of a step: a pure function of the step, so that resuming needs no state.

Next file: ``loader.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from vitrieve.config import Sampling
from vitrieve.errors import ConfigError


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
        ordered = np.asarray(labels)
        self._rows_of_class = [np.flatnonzero(ordered == label) for label in np.unique(ordered)]

    def batch_rows(self, step: int) -> np.ndarray:
        """Return the ``(B,)`` int64 rows of a step, counted from zero."""
        if self._sampling == "random":
            return self._stream(self._num_rows, step * self._batch_size, self._batch_size)
        num_classes = -(-self._batch_size // self._images_per_class)
        classes = self._stream(len(self._rows_of_class), step * num_classes, num_classes)
        generator = np.random.default_rng([self._seed, _IMAGES_OF_CLASS, step])
        # A class met twice in a batch (few classes, or two permutations meeting) gives new images, not the same.
        rows = [
            _draw(self._rows_of_class[position], times * self._images_per_class, generator)
            for position, times in Counter(classes.tolist()).items()
        ]
        return np.concatenate(rows)[: self._batch_size]

    def _stream(self, num_items: int, start: int, count: int) -> np.ndarray:
        """Return items ``start`` to ``start + count`` of an endless row of permutations."""
        epochs = range(start // num_items, (start + count - 1) // num_items + 1)
        order = [np.random.default_rng([self._seed, _ORDER, epoch]).permutation(num_items) for epoch in epochs]
        offset = start - epochs.start * num_items
        return np.concatenate(order)[offset : offset + count]


_ORDER, _IMAGES_OF_CLASS = 1, 2
"""Keep the generators of the two purposes apart."""


def _draw(rows: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw ``count`` rows; each comes again only after all have come."""
    rounds = [generator.permutation(rows) for _ in range(-(-count // len(rows)))]
    return np.concatenate(rounds)[:count]
