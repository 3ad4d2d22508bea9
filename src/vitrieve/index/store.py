"""What a vector store is: the one protocol behind the exact, the LanceDB and the Milvus index. Next: ``exact.py``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from vitrieve.data.records import ImageRecord
from vitrieve.index.filter import Filter

StoreKind = Literal["exact", "lance", "milvus"]


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """What an index says about itself.

    Attributes:
        kind: Which store holds it.
        fingerprint: Of the encoder that made the vectors, and must make the queries.
        encoder_source: Where that encoder came from: a folder or a weights name.
        image_size: Side of that encoder's input in pixels.
        embedding_dim: Length of a vector.
        license: Licence and attribution of the images; empty when unknown.
    """

    kind: StoreKind
    fingerprint: str
    encoder_source: str
    image_size: int
    embedding_dim: int
    license: str = ""


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One image found.

    Attributes:
        record: The image.
        score: Cosine similarity to the query, in [-1, 1]; higher is nearer. From the full vectors, not from the
            short codes that an approximate index searches.
    """

    record: ImageRecord
    score: float


class VectorStore(Protocol):
    """Vectors with their images, to be changed and searched; ``tests/index/conformance.py`` is what one must pass.

    One process writes at a time; any number read. A call that changes the store returns when its change is on disk
    (or acknowledged by the cluster): a process killed later loses nothing of it, and a call that was killed has
    changed everything it was given or nothing.
    """

    @property
    def info(self) -> StoreInfo:
        """Return what the index says about itself."""
        ...

    def upsert(self, vectors: np.ndarray, records: Sequence[ImageRecord]) -> None:
        """Add images, and replace those whose ``image_id`` is there.

        Args:
            vectors: ``(N, E)`` float32, finite, L2-normalised.
            records: Their ``N`` images, each ``image_id`` once.

        Raises:
            DataError: Another shape, vectors that are not normalised, or an ``image_id`` that occurs twice.
        """
        ...

    def delete(self, image_ids: Sequence[str]) -> int:
        """Remove images; return how many were there."""
        ...

    def search(self, queries: np.ndarray, k: int, filter: Filter = ()) -> list[list[Hit]]:
        """Find the nearest images of every query.

        Args:
            queries: ``(Q, E)`` float32 embeddings of the same encoder.
            k: Images to find for each, at least 1; fewer come back when fewer pass the filter.
            filter: Conditions that all hold for what is found.

        Returns:
            For each query its hits, nearest first; equal scores ordered by ``image_id``.

        Raises:
            InputError: ``k`` below 1, another width, a number that is not finite, or an unknown column.
        """
        ...

    def get(self, image_ids: Sequence[str]) -> tuple[np.ndarray, list[ImageRecord]]:
        """Return vectors ``(N, E)`` and images by name, in the order asked for.

        Raises:
            DataError: An ``image_id`` is not there.
        """
        ...

    def image_ids(self) -> Iterator[str]:
        """Yield the name of every image, rising."""
        ...

    def columns(self) -> tuple[str, ...]:
        """Return the names of the metadata columns, sorted: what a filter may use."""
        ...

    def count(self, filter: Filter = ()) -> int:
        """Count the images that pass the filter."""
        ...

    def optimise(self) -> None:
        """Build or bring up to date what makes searching fast, and drop what is no longer needed."""
        ...

    def verify(self) -> list[str]:
        """Check the whole index; return its faults in words, none when it is sound."""
        ...

    def close(self) -> None:
        """Release files and connections; the store cannot be used afterwards. Closing twice is allowed."""
        ...
