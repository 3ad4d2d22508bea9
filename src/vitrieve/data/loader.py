"""The training batches: decoded once where they fit in memory, augmented ahead of the step that needs them.

A batch is a pure function of (seed, step): every random choice is drawn from a generator made of the seed,
the step and the place in the batch. Resuming at a step therefore needs no state, and the number of threads
changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrieve.config import LoaderConfig
from vitrieve.data.augment import augment
from vitrieve.data.decode import read_image
from vitrieve.data.preprocess import Preprocessing, preprocess, to_pixels
from vitrieve.data.records import ImageRecord
from vitrieve.data.sampler import EpochTuples, Sampler
from vitrieve.errors import DecodeError
from vitrieve.machine import count_cores
from vitrieve.quoting import quote_name

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
        pixels: ``(B, 3, S, S)`` float32, normalized per channel.
        labels: ``(B,)`` int64 in ``[0, num_classes)``: positions among the sorted training labels.
        rows: ``(B,)`` int64, positions among the training records.
        anchors: ``(B,)`` int64, the place in the batch of each image's anchor; None without tuples.
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
            image_size_at: From a number of finished steps to the side of the next one's views; None: preprocessing's.
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
        )
        self._decoded: dict[int, Image.Image] = {}
        self._free_bytes = bound_cache(config, len(self._records), preprocessing.image_size)

    @property
    def num_classes(self) -> int:
        """Number of different labels."""
        return int(self._labels.max()) + 1

    def batches(self, start_step: int, end_step: int, tuples: EpochTuples | None = None) -> Iterator[Batch]:
        """Yield the batches of the steps from ``start_step`` up to ``end_step``, one prepared ahead.

        Args:
            start_step: Number of finished steps.
            end_step: Number of finished steps after the last batch.
            tuples: Of an epoch that holds all these steps; None: the sampler chooses.

        Raises:
            DecodeError: An image cannot be read.
        """
        with ThreadPoolExecutor(max_workers=1) as ahead, ThreadPoolExecutor(NUM_THREADS) as pool:
            pending: Future[Batch] | None = None
            try:
                for step in range(start_step, end_step):
                    batch = (pending or ahead.submit(self._make_batch, step, pool, tuples)).result()
                    pending = ahead.submit(self._make_batch, step + 1, pool, tuples) if step + 1 < end_step else None
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

    def _make_batch(self, step: int, pool: ThreadPoolExecutor, tuples: EpochTuples | None) -> Batch:
        rows, anchors = (self._sampler.batch_rows(step), None) if tuples is None else tuples.batch_rows(step)
        views = list(pool.map(self._make_view, rows.tolist(), [step] * len(rows), range(len(rows))))
        picked = torch.from_numpy(rows)
        places = None if anchors is None else torch.from_numpy(anchors)
        batch = Batch(torch.from_numpy(np.stack(views)), self._labels[picked], picked, places)
        if not self._is_pinned:
            return batch
        return Batch(*(None if one is None else one.pin_memory() for one in batch))  # type: ignore[arg-type]

    def _make_plain(self, row: int) -> np.ndarray:
        return preprocess(self._read(row), self._preprocessing)

    def _make_view(self, row: int, step: int, place: int) -> np.ndarray:
        """Make a ``(3, S, S)`` float32 view.

        In NumPy, because torch would start a second team of threads here, which spins against the training step's.
        """
        generator = np.random.default_rng([self._seed, _VIEWS, step, place])
        view = augment(self._read(row), self._config, self._image_size_at(step), generator)
        return to_pixels(view, self._preprocessing)

    def _read(self, row: int) -> Image.Image:
        image = self._decoded.get(row)
        if image is None:
            image = _shrink(_read_named(self._records[row]), SOURCE_TO_VIEW_MAX * self._preprocessing.image_size)
            num_bytes = 3 * image.width * image.height
            if num_bytes <= self._free_bytes:
                self._decoded[row] = image
                self._free_bytes -= num_bytes
        return image


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
