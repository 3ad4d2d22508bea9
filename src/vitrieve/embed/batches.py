"""Decoding beside encoding: threads prepare the next pictures while the encoder works."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from vitrieve.data.decode import describe_failure, open_picture, read_image_bytes
from vitrieve.data.preprocess import Preprocessing, find_enough_px, to_square
from vitrieve.data.records import ImageRecord
from vitrieve.errors import DecodeError
from vitrieve.machine import count_cores
from vitrieve.runtime.encoder import Encoder

NUM_BATCHES_AHEAD = 2
"""Batches prepared ahead: enough to hide slow files, little enough to bound the memory."""
NUM_DECODE_THREADS_MAX = {"cpu": 4, "cuda": 32}
"""Decoding one picture takes a fraction of encoding it on a CPU, so that a few threads keep that busy. A GPU encodes
hundreds of pictures while one core decodes one, so that it gets all cores."""


Prepared = TypeVar("Prepared")
Encoded = TypeVar("Encoded")


@dataclass(frozen=True)
class EncodedBatch:
    """What became of some records.

    Attributes:
        vectors: ``(G, E)`` float32, one row for each good record, in order.
        reasons: Reason why a record has no vector, for each record; None where it has one.
    """

    vectors: np.ndarray
    reasons: tuple[str | None, ...]


def choose_chunk_size(encoder: Encoder, batch_size: int | None) -> int:
    """Choose how many records are handed to an encoder at a time.

    Args:
        encoder: Turns pictures into embeddings.
        batch_size: Images in one forward pass; None: as many as the engine is fastest with, twice for one chunk.
    """
    return 2 * encoder.batch_size if batch_size is None else batch_size


def encode_batches(
    encoder: Encoder,
    batches: Iterable[Sequence[ImageRecord]],
    *,
    num_threads: int | None = None,
    batch_size: int | None = None,
) -> Iterator[EncodedBatch]:
    """Encode batches of records, in order, decoding ahead in threads.

    Only squares (``(S, S, 3)`` uint8) wait for the encoder, never whole pictures, so that the memory does not depend
    on the size of the files.

    Args:
        encoder: Turns prepared pictures into embeddings.
        batches: Records; an empty batch is allowed.
        num_threads: Threads that decode; None: one for each core, up to four for an encoder on the CPU.
        batch_size: Images in one forward pass; None: as many as the engine is fastest with.

    Yields:
        For each batch, its vectors and the reasons of the pictures that cannot be decoded.
    """
    prepare = partial(_prepare, preprocessing=encoder.preprocessing)
    num_threads = num_threads or min(NUM_DECODE_THREADS_MAX[encoder.device], count_cores())
    prepared = prepare_ahead(prepare, batches, num_threads=num_threads)
    yield from encode_ahead(partial(_encode, encoder, batch_size=batch_size), prepared, encoder.num_parallel)


def encode_ahead(
    encode: Callable[[Prepared], Encoded], prepared: Iterable[Prepared], num_parallel: int
) -> Iterator[Encoded]:
    """Encode prepared batches, in order, in as many threads as the engine has streams.

    Args:
        encode: Called once for each batch.
        prepared: Batches, of which few are taken before their turn.
        num_parallel: Calls that the engine computes side by side.

    Yields:
        For each batch what ``encode`` made of it.
    """
    if num_parallel == 1:  # in the caller's thread: torch would start another team of threads in a new one
        yield from map(encode, prepared)
        return
    with ThreadPoolExecutor(num_parallel) as pool:
        waiting: deque[Future[Encoded]] = deque()
        for batch in prepared:
            waiting.append(pool.submit(encode, batch))
            if len(waiting) > num_parallel:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def encode_in_parallel(encoder: Encoder, squares: np.ndarray, batch_size: int | None = None) -> np.ndarray:
    """Encode squares in as many threads as the engine has streams, for a caller that has nothing else to do meanwhile.

    Args:
        encoder: Turns squares into embeddings.
        squares: ``(B, S, S, 3)`` uint8; any B.
        batch_size: Images in one forward pass; None: as many as the engine is fastest with.

    Returns:
        ``(B, E)`` float32, in order.
    """
    if encoder.num_parallel == 1:
        return encoder.encode_squares(squares, batch_size=batch_size)
    encode = partial(encoder.encode_squares, batch_size=batch_size)
    with ThreadPoolExecutor(encoder.num_parallel) as pool:
        parts = np.array_split(squares, encoder.num_parallel)
        return np.concatenate(list(pool.map(encode, parts)))


def prepare_ahead(
    prepare: Callable[[ImageRecord], Prepared],
    batches: Iterable[Sequence[ImageRecord]],
    *,
    num_threads: int | None = None,
) -> Iterator[list[Prepared]]:
    """Prepare batches of records in threads, in order, a few batches ahead of who takes them.

    Args:
        prepare: Called once for each record, in one of the threads.
        batches: Records; an empty batch is allowed.
        num_threads: Threads that prepare; None: one for each core, up to four.

    Yields:
        For each batch what ``prepare`` made of its records.
    """
    pool = ThreadPoolExecutor(num_threads or min(NUM_DECODE_THREADS_MAX["cpu"], count_cores()))
    waiting: deque[list[Future[Prepared]]] = deque()
    try:
        for batch in batches:
            waiting.append([pool.submit(prepare, record) for record in batch])
            if len(waiting) > NUM_BATCHES_AHEAD:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]
    finally:  # also when the consumer stops early: nothing may go on decoding behind its back
        pool.shutdown(cancel_futures=True)


def _prepare(record: ImageRecord, preprocessing: Preprocessing) -> np.ndarray | str:
    """Decode and prepare one picture, or say why that is impossible."""
    try:
        data, enough_px = read_image_bytes(record.path), find_enough_px(preprocessing)
        with open_picture(data, box=record.box, enough_px=enough_px) as picture:
            return to_square(picture, preprocessing)
    except (DecodeError, MemoryError) as error:
        return describe_failure(error)


def _encode(encoder: Encoder, prepared: Sequence[np.ndarray | str], batch_size: int | None = None) -> EncodedBatch:
    squares = [one for one in prepared if not isinstance(one, str)]
    reasons = tuple(one if isinstance(one, str) else None for one in prepared)
    if not squares:
        return EncodedBatch(np.empty((0, encoder.embedding_dim), dtype=np.float32), reasons)
    return EncodedBatch(encoder.encode_squares(np.stack(squares), batch_size=batch_size), reasons)
