"""The training batches: the choice of their images, which are decoded once and augmented ahead of their step.

A batch is a pure function of (seed, step): every random choice is drawn from a generator made of the seed,
the step and the position in the batch. Resuming at a step therefore needs no state, and the number of threads
changes nothing.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrieve.config import LoaderConfig, Sampling, SourceRule
from vitrieve.data.background import find_cutout, paste
from vitrieve.data.decode import read_image
from vitrieve.data.preprocess import Preprocessing, augment, preprocess, to_pixels
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ConfigError, DecodeError
from vitrieve.machine import count_cores
from vitrieve.quoting import quote_name


@dataclass(frozen=True, kw_only=True)
class EpochTuples:
    """The tuples of an epoch, as ``training/tuples.py`` mines them, and their order in its steps.

    Attributes:
        epoch: Number of finished epochs.
        rows: ``(T, 2 + num_negatives)`` int64 rows of the training set: anchor, positive, negatives; −1 in the last
            positions of an anchor for which there are fewer negatives. T is the same in every epoch.
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
        """Return the ``(B,)`` int64 rows of a step and, for each, the position of its anchor in the batch."""
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
        self,
        labels: Sequence[int],
        *,
        batch_size: int,
        sampling: Sampling,
        images_per_class: int,
        seed: int,
        sources: Sequence[int] | None = None,
        rule: SourceRule = "mixed",
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
            sources: Number of the source of each row, from 0; no class is of two. None: one source.
            rule: ``mixed``: the classes of a batch (with ``random`` its images) come from the sources in turn, and from
                each as an endless row of permutations of its own. ``one``: so do whole batches. ``together``: sources
                count for nothing.

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
        first_rows, class_of_row, class_sizes = np.unique(
            np.asarray(labels), return_index=True, return_inverse=True, return_counts=True
        )[1:]
        # One sort serves every class: a search for each class would look at all images once a class.
        self._rows_by_class = np.argsort(class_of_row, kind="stable")
        self._class_ends = np.cumsum(class_sizes)
        self._class_sizes = class_sizes
        source_of_row = (
            np.zeros(len(labels), np.int64) if sources is None or rule == "together" else np.asarray(sources)
        )
        source_of_item = source_of_row if sampling == "random" else source_of_row[first_rows]
        self._items = [np.flatnonzero(source_of_item == source) for source in range(int(source_of_item.max()) + 1)]
        """For each source the rows (``random``) or the positions of the classes (``m_per_class``) that are drawn."""
        self._has_pure_batches = rule == "one"
        self._orders: list[dict[int, np.ndarray]] = [{} for _ in self._items]

    def batch_rows(self, step: int) -> np.ndarray:
        """Return the ``(B,)`` int64 rows of a step, counted from zero."""
        if self._sampling == "random":
            return self._draw_items(step, self._batch_size)
        num_classes = -(-self._batch_size // self._images_per_class)
        classes = self._draw_items(step, num_classes)
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

    def _draw_items(self, step: int, count: int) -> np.ndarray:
        """Return the ``(count,)`` rows or classes of a step, from the sources whose turn it is.

        A turn is one row or class, or the whole batch. Turn ``t`` is that of source ``t`` modulo the number of sources,
        so that nobody has to count what a source has given in earlier steps.
        """
        num_sources = len(self._items)
        turn_size = count if self._has_pure_batches else 1
        turns = np.arange(step * count, (step + 1) * count) // turn_size
        items = np.empty(count, np.int64)
        for source in range(num_sources):
            is_own = turns % num_sources == source
            if is_own.any():
                start = int(turns[is_own][0]) // num_sources * turn_size
                items[is_own] = self._stream(source, start, int(is_own.sum()))
        return items

    def _stream(self, source: int, start: int, count: int) -> np.ndarray:
        """Return ``start`` to ``start + count`` of an endless row of permutations of a source's rows or classes."""
        num_items = len(self._items[source])
        parts = []
        for epoch in range(start // num_items, (start + count - 1) // num_items + 1):
            first = max(start - epoch * num_items, 0)
            parts.append(self._order(source, epoch)[first : start + count - epoch * num_items])
        return np.concatenate(parts)

    def _order(self, source: int, epoch: int) -> np.ndarray:
        """Return the permutation of an epoch; two are kept, because shuffling a million images takes a while."""
        orders = self._orders[source]
        if epoch not in orders:
            # The first source draws as a lone one does, because NumPy fills a short seed up with zeros.
            generator = np.random.default_rng([self._seed, _ORDER, epoch, source])
            kept = {other: order for other, order in orders.items() if other == epoch - 1}
            self._orders[source] = orders = {**kept, epoch: generator.permutation(self._items[source])}
        return orders[epoch]


_ORDER, _IMAGES_OF_CLASS = 1, 2
"""Keep the generators of the two purposes apart."""


def _draw(rows: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw ``count`` rows; each comes again only after all have come."""
    rounds = [generator.permutation(rows) for _ in range(-(-count // len(rows)))]
    return np.concatenate(rounds)[:count]


_VIEWS = 3
"""Keeps the generators of augmentation apart from the sampler's."""
NUM_THREADS = max(2, min(32, count_cores()))
"""Pictures decoded and augmented at a time. Two feed a step on two cores thirty times over; a GPU wants more."""

SOURCE_TO_VIEW_MAX = 4
"""Larger pictures are reduced to this many times the side of a view, always, whether they are kept or not: a camera's
full resolution would fill the memory after a few dozen pictures, and a view shows nothing of it."""
CACHE_ASPECT_MAX = 2.0
"""Long side by short side that a picture in the cache is counted with."""


class Batch(NamedTuple):
    """One training batch.

    Attributes:
        pixels: ``(B, 3, S, S)`` float32, normalized per channel; of a batch that processes share, ``(b, 3, S, S)``
            of the images that this one encodes.
        labels: ``(B,)`` int64 in ``[0, num_classes)``: positions among the sorted training labels.
        rows: ``(B,)`` int64, positions among the training records.
        anchors: ``(B,)`` int64, the position in the batch of each image's anchor; None without tuples.
    """

    pixels: Tensor
    labels: Tensor
    rows: Tensor
    anchors: Tensor | None = None


def bound_cache(config: LoaderConfig, num_images: int, image_size: int) -> int:
    """Return the memory that decoded training pictures can fill, in bytes: 28 small ones need no two gigabytes.

    A picture is kept with a short side of ``SOURCE_TO_VIEW_MAX`` times ``image_size`` at most. One of another shape
    than ``CACHE_ASPECT_MAX`` counts as that; what does not fit then is decoded each time.
    """
    side = SOURCE_TO_VIEW_MAX * image_size
    return min(config.cache_bytes, int(3 * side * side * CACHE_ASPECT_MAX) * num_images)


FindPlaces = Callable[[int], np.ndarray]
"""A function from the size of a batch to the ``(b,)`` int64 places of some of its images."""


class TrainingLoader:
    """Batches of augmented training images, by step."""

    def __init__(
        self,
        records: Sequence[ImageRecord],
        config: LoaderConfig,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        seed: int,
        image_size_at: Callable[[int], int] | None = None,
        is_pinned: bool = False,
    ) -> None:
        """Prepare, without reading an image.

        Args:
            records: The training images, at least one; their files must be readable.
            config: Sampling and augmentation.
            preprocessing: Gives the side of a view, mean and standard deviation.
            batch_size: Images in a batch.
            seed: Source of all randomness.
            image_size_at: Function from a number of finished steps to the side of the next views; None: one side.
            is_pinned: Put batches into pinned memory, from which a GPU copies while it computes.
        """
        self._records = tuple(records)
        self._config = config
        self._preprocessing = preprocessing
        self._seed = seed
        self._image_size_at = image_size_at or (lambda step: preprocessing.image_size)
        self._is_pinned = is_pinned
        _, positions = np.unique([record.label for record in records], return_inverse=True)
        self._labels = torch.from_numpy(positions.astype(np.int64))
        self._sampler = Sampler(
            positions.tolist(),
            batch_size=batch_size,
            sampling=config.sampling,
            images_per_class=config.images_per_class,
            seed=seed,
            sources=_number_sources(records),
            rule=config.sources,
        )
        self._decoded: dict[int, Image.Image] = {}
        self._free_bytes = bound_cache(config, len(self._records), preprocessing.image_size)

    @property
    def num_classes(self) -> int:
        """Number of different labels."""
        return int(self._labels.max()) + 1

    def batches(
        self, start_step: int, end_step: int, tuples: EpochTuples | None = None, find_places: FindPlaces = np.arange
    ) -> Iterator[Batch]:
        """Yield the batches of the steps from ``start_step`` up to ``end_step``, one prepared ahead.

        Args:
            start_step: Number of finished steps.
            end_step: Number of finished steps after the last batch.
            tuples: Tuples of an epoch that holds all these steps; None: the sampler chooses.
            find_places: Function from the size of a batch to the places of the images whose views are made, ``(b,)``.

        Raises:
            DecodeError: An image cannot be read.
        """
        with ThreadPoolExecutor(max_workers=1) as ahead, ThreadPoolExecutor(NUM_THREADS) as pool:
            make = partial(self._make_batch, pool=pool, tuples=tuples, find_places=find_places)
            pending: Future[Batch] | None = None
            try:
                for step in range(start_step, end_step):
                    batch = (pending or ahead.submit(make, step)).result()
                    pending = ahead.submit(make, step + 1) if step + 1 < end_step else None
                    yield batch
            finally:
                if pending is not None:
                    pending.cancel()

    def plain_batches(self, rows: Sequence[int], batch_size: int) -> Iterator[Tensor]:
        """Yield images as a measurement sees them, ``(B, 3, S, S)`` in the order of ``rows``, one batch ahead.

        Raises:
            DecodeError: An image cannot be read.
        """
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            waiting: deque[list[Future[np.ndarray]]] = deque()
            for start in range(0, len(rows), batch_size):
                waiting.append([pool.submit(self._make_plain, row) for row in rows[start : start + batch_size]])
                if len(waiting) > 1:
                    yield _stack(waiting.popleft())
            while waiting:
                yield _stack(waiting.popleft())

    def _make_batch(
        self, step: int, pool: ThreadPoolExecutor, tuples: EpochTuples | None, find_places: FindPlaces
    ) -> Batch:
        rows, anchors = (self._sampler.batch_rows(step), None) if tuples is None else tuples.batch_rows(step)
        places = find_places(len(rows))
        views = list(pool.map(self._make_view, rows[places].tolist(), [step] * len(places), places.tolist()))
        picked = torch.from_numpy(rows)
        positions = None if anchors is None else torch.from_numpy(anchors)
        batch = Batch(torch.from_numpy(np.stack(views)), self._labels[picked], picked, positions)
        if not self._is_pinned:
            return batch
        return Batch(*(None if one is None else one.pin_memory() for one in batch))  # type: ignore[arg-type]

    def _make_plain(self, row: int) -> np.ndarray:
        return preprocess(self._read(row), self._preprocessing)

    def _make_view(self, row: int, step: int, position: int) -> np.ndarray:
        """Make a ``(3, S, S)`` float32 view.

        In NumPy, because torch would start a second team of threads here, which spins against the training step's.
        """
        generator = np.random.default_rng([self._seed, _VIEWS, step, position])
        image = self._read(row)
        # Without the share nothing is drawn, so that the views are those of a version without it.
        if self._config.background_share and generator.random() < self._config.background_share:
            image = self._change_background(image, generator)
        view = augment(image, self._config, self._image_size_at(step), generator)
        return to_pixels(view, self._preprocessing)

    def _change_background(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        """Show what is on a plain background on a part of another picture; leave any other picture as it is."""
        cutout = find_cutout(image)
        if cutout is None:
            return image
        return paste(image, cutout, self._read(int(generator.integers(len(self._records)))), generator)

    def _read(self, row: int) -> Image.Image:
        image = self._decoded.get(row)
        if image is None:
            image = _shrink(_read_named(self._records[row]), SOURCE_TO_VIEW_MAX * self._preprocessing.image_size)
            num_bytes = 3 * image.width * image.height
            if num_bytes <= self._free_bytes:
                self._decoded[row] = image
                self._free_bytes -= num_bytes
        return image


def _number_sources(records: Sequence[ImageRecord]) -> list[int]:
    """Number the sources in the order in which they appear."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(record.source for record in records))}
    return [numbers[record.source] for record in records]


def _read_named(record: ImageRecord) -> Image.Image:
    try:
        return read_image(record)
    except DecodeError as error:
        name = quote_name(record.image_id)
        raise DecodeError(f"{name}, which could be read when the run began, no longer can: {error}.") from error


def _stack(views: Sequence[Future[np.ndarray]]) -> Tensor:
    return torch.from_numpy(np.stack([view.result() for view in views]))


def _shrink(image: Image.Image, side_max: int) -> Image.Image:
    """Resize a picture so that its short side is at most ``side_max`` pixels."""
    scale = side_max / min(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
