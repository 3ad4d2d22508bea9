"""An index in memory, for a process that answers many searches; the one on disk stays the truth.

An embedded engine plans every query anew and reads its candidates from files, which costs many times the comparing.
A copy of vectors and records in memory answers what has no conditions; whatever it cannot answer, and everything
while the index on disk is newer than the copy, is the store's. So answers are always those of the newest state, and
only their speed depends on the copy.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vitrieve.data.records import ImageRecord
from vitrieve.index.lance_files import Table
from vitrieve.index.lance_table import read_records, read_vectors, record_names
from vitrieve.index.store import Hit, count_candidates
from vitrieve.similarity import FloatArray, top_k

RECORD_BYTES = 2_000
"""About what an image takes beside its vector and code: its record, its name in a dictionary, and what reading leaves
behind. With 384 dimensions a process grows by 390 MB for 100,000 images."""
CANDIDATES_PER_HIT = 4
MIN_CANDIDATES = 64
MAX_CANDIDATES = 4_096
"""Deeper answers are the store's: here they would cost as much."""
BLOCK_ROWS = 8_192
"""Images read at a time."""
LISTS_PER_ROOT = 2
"""Lists that FAISS divides N codes into, for each of the root of N; rounded down to a power of two, so that from
``lance.MIN_INDEXED_ROWS`` on there are enough rows to learn them from."""
NUM_PROBES = 48
"""Lists looked through for a query. Of 512 lists, for 100,000 images: recall@10 of 0.998 (dev/LOG.md)."""
TRAINING_ROWS_PER_LIST = 48
"""What FAISS learns the lists from; with fewer than 39 it warns."""
PAUSE_PER_LOADING_SECOND = 10
"""After a change, loading again waits this many times as long as it takes: an index that changes all the time is
better searched on disk."""


def has_faiss() -> bool:
    """Say whether FAISS is installed, without importing it."""
    return find_spec("faiss") is not None


def count_bytes(num_images: int, embedding_dim: int) -> int:
    """Return about what a copy of an index takes: vectors, a byte a dimension for FAISS, records.

    While it is read, the vectors are there twice for a moment.
    """
    return num_images * (5 * embedding_dim + RECORD_BYTES)


class ResidentRows:
    """One state of an index; never changes, so any number of threads may search it.

    Args:
        table: What is read.
        embedding_dim: Length of a vector.
        is_exact: Compare every vector with a query; else FAISS chooses candidates by codes of a byte a dimension.

    Raises:
        OSError, RuntimeError, ValueError: The table cannot be read, or changes while it is.
    """

    def __init__(self, table: Table, embedding_dim: int, *, is_exact: bool) -> None:
        self._vectors, self._records = _read_sorted(table, embedding_dim)
        self._rows = {name: row for row, name in enumerate(self._records["image_id"].to_pylist())}
        self._index = None if is_exact else _build_lists(self._vectors)

    def search(self, query: FloatArray, k: int) -> list[Hit] | None:
        """Find the nearest images of one query ``(E,)``; None where the candidates are too few, or would be many."""
        if self._index is None:
            similarities, rows = top_k(query[None], self._vectors, k)
            return self._to_hits(rows[0], similarities[0])
        num_candidates = count_candidates(k, CANDIDATES_PER_HIT, MIN_CANDIDATES)
        if num_candidates > MAX_CANDIDATES:
            return None
        found = self._index.search(query[None], num_candidates)[1][0]
        candidates = np.sort(found[found >= 0])  # -1 fills up where the lists held too few
        if len(candidates) < k:
            return None
        similarities, nearest = top_k(query[None], self._vectors[candidates], k)
        return self._to_hits(candidates[nearest[0]], similarities[0])

    def get(self, image_ids: Sequence[str]) -> tuple[FloatArray, list[ImageRecord]] | None:
        """Return vectors and images by name, in the order asked for; None when one is not there."""
        rows = [self._rows.get(image_id, -1) for image_id in image_ids]
        if not rows or min(rows) < 0:
            return None
        return self._vectors[rows], list(read_records(self._records.take(pa.array(rows))))

    def _to_hits(self, rows: np.ndarray, similarities: FloatArray) -> list[Hit]:
        records = read_records(self._records.take(pa.array(rows)))
        return [Hit(record=record, score=float(score)) for record, score in zip(records, similarities, strict=True)]


class ResidentCopy:
    """Keeps ``ResidentRows`` of the newest state, as far as one is loaded.

    Args:
        read_stamp: Returns what changes with every change of the index, by any process; called for every search. None
            while the index is being replaced.
        load: Reads the rows; None when they are too many to hold.
    """

    def __init__(self, read_stamp: Callable[[], Hashable], load: Callable[[], ResidentRows | None]) -> None:
        self._read_stamp = read_stamp
        self._load = load
        self._loaded: tuple[Hashable, ResidentRows] | None = None
        self._lock = threading.Lock()
        self._may_load_at = 0.0

    def find_current(self) -> ResidentRows | None:
        """Return the rows of the newest state, or None and begin to load them in a thread."""
        loaded = self._loaded
        if loaded is not None and loaded[0] == self._read_stamp():
            return loaded[1]
        if time.monotonic() >= self._may_load_at and self._lock.acquire(blocking=False):
            try:
                threading.Thread(target=self._load_and_release, name="resident copy").start()
            except RuntimeError:  # no thread to be had: the index on disk answers, and a later search tries again
                self._lock.release()
        return None

    def load(self) -> bool:
        """Load the rows now; say whether there is a copy."""
        self._lock.acquire()
        self._load_and_release()
        return self._loaded is not None

    def _load_and_release(self) -> None:
        begun = time.monotonic()
        try:
            stamp = self._read_stamp()
            if self._loaded is not None and self._loaded[0] == stamp:
                return  # another thread was quicker
            self._loaded = None  # an old copy answers nothing any more, and two need twice the memory
            rows = self._load()
            is_same = stamp is not None and self._read_stamp() == stamp  # else it changed while it was read
            if is_same and rows is not None:
                self._loaded = (stamp, rows)
        except (OSError, RuntimeError, ValueError, MemoryError):
            pass  # searches read the same files themselves, and tell the reason
        finally:
            ended = time.monotonic()
            self._may_load_at = ended + PAUSE_PER_LOADING_SECOND * (ended - begun)
            self._lock.release()


def _read_sorted(table: Table, embedding_dim: int) -> tuple[FloatArray, pa.Table]:
    """Read vectors and records in the order of their names: then ties, which are ordered by row, are by name."""
    names = record_names(table.schema)
    # Into one array from the start: what Arrow gathers and frees again stays with the process.
    vectors = np.empty((table.count_rows(), embedding_dim), dtype=np.float32)
    parts, num_read = [], 0
    for batch in table.search().select([*names, "vector"]).to_batches(BLOCK_ROWS):
        rows = pa.Table.from_batches([batch])
        vectors[num_read : num_read + len(rows)] = read_vectors(rows, embedding_dim)  # ValueError: more than there were
        num_read += len(rows)
        parts.append(rows.select(names))
    if num_read != len(vectors):
        raise ValueError("the index changed while it was read")
    records = pa.concat_tables([pa.schema([table.schema.field(name) for name in names]).empty_table(), *parts])
    order = pc.sort_indices(records["image_id"])
    return vectors[order.to_numpy()], records.take(order).combine_chunks()


def _build_lists(vectors: FloatArray) -> Any:
    """Build an inverted file of codes of a byte a dimension (FAISS)."""
    import faiss

    num_lists = 2 ** int(np.log2(LISTS_PER_ROOT * len(vectors) ** 0.5))
    index: Any = faiss.index_factory(vectors.shape[1], f"IVF{num_lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    generator = np.random.default_rng(0)
    num_training = min(len(vectors), TRAINING_ROWS_PER_LIST * num_lists)
    index.train(vectors[np.sort(generator.choice(len(vectors), num_training, replace=False))])
    index.add(vectors)
    index.nprobe = NUM_PROBES
    return index
