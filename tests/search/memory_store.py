"""A store in memory that follows the protocol word by word: what the tests of searching search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from vitrieve.data.records import ImageRecord
from vitrieve.errors import DataError
from vitrieve.index.filter import NOTHING, FilterLike, Kinds, passes, read_kinds, resolve_filter
from vitrieve.index.store import Hit, StoreInfo, TextBlock
from vitrieve.similarity import similarity


class MemoryStore:
    """Exact, in plain Python; ``depths`` notes the k of every search."""

    def __init__(self, info: StoreInfo) -> None:
        self.info = info
        self.images: dict[str, tuple[np.ndarray, ImageRecord]] = {}
        self.depths: list[int] = []

    def upsert(self, vectors: np.ndarray, records: Sequence[ImageRecord]) -> None:
        for vector, record in zip(vectors, records, strict=True):
            self.images[record.image_id] = (np.asarray(vector, np.float32), record)

    def delete(self, image_ids: Sequence[str]) -> int:
        return sum(self.images.pop(image_id, None) is not None for image_id in image_ids)

    def search(self, queries: np.ndarray, k: int, filter: FilterLike = ()) -> list[list[Hit]]:
        self.depths.append(k)
        tests = resolve_filter(filter, self.columns(), self.kinds)
        kept = [image for image in self.images.values() if passes(image[1].metadata, tests)]
        if not kept:
            return [[] for _ in queries]
        similarities = similarity(queries, np.stack([vector for vector, _ in kept]))
        return [
            sorted(
                (Hit(record=kept[row][1], score=float(score)) for row, score in enumerate(scores)),
                key=lambda hit: (-hit.score, hit.record.image_id),
            )[:k]
            for scores in similarities
        ]

    def get(self, image_ids: Sequence[str]) -> tuple[np.ndarray, list[ImageRecord]]:
        missing = [image_id for image_id in image_ids if image_id not in self.images]
        if missing:
            raise DataError(f"the index holds no image {missing[0]!r}.")
        found = [self.images[image_id] for image_id in image_ids]
        vectors = np.array([vector for vector, _ in found], np.float32).reshape(len(found), self.info.embedding_dim)
        return vectors, [record for _, record in found]

    def image_ids(self) -> Iterator[str]:
        yield from sorted(self.images)

    def sample_ids(self, num_images: int) -> list[str]:
        return sorted(self.images)[:num_images]

    def columns(self) -> tuple[str, ...]:
        return tuple(sorted({column for _, record in self.images.values() for column in record.metadata}))

    def kinds(self, columns: Sequence[str]) -> dict[str, Kinds]:
        found = dict.fromkeys(columns, NOTHING)
        for _, record in self.images.values():
            for column in columns:
                found[column] |= read_kinds(record.metadata.get(column, ""))
        return found

    def count(self, filter: FilterLike = ()) -> int:
        tests = resolve_filter(filter, self.columns(), self.kinds)
        return sum(passes(record.metadata, tests) for _, record in self.images.values())

    def read_texts(self) -> Iterator[TextBlock]:
        names, columns = sorted(self.images), self.columns()
        records = [self.images[name][1] for name in names]
        values = {column: pa.array([r.metadata.get(column) for r in records], pa.string()) for column in columns}
        yield TextBlock(pa.array(names, pa.string()), pa.array([str(r.path) for r in records], pa.string()), values)

    def read_stamp(self) -> None:
        return None  # it is read again for every search

    def optimize(self) -> None: ...

    def verify(self) -> list[str]:
        return []

    def snapshot(self, out: Path) -> None: ...

    def hold(self, max_bytes: int) -> bool:
        return False

    def close(self) -> None: ...


class ForgetfulStore(MemoryStore):
    """Like an approximate store: it misses images that a deeper search finds, near ones among them."""

    def search(self, queries: np.ndarray, k: int, filter: FilterLike = ()) -> list[list[Hit]]:
        return [_forget(hits, k) for hits in super().search(queries, 10**6, filter)]


def _forget(hits: list[Hit], k: int) -> list[Hit]:
    is_missed = [place % 3 == 0 and place >= k // 8 for place in range(len(hits))]
    return [hits[place] for place in sorted(range(len(hits)), key=is_missed.__getitem__)][:k]
