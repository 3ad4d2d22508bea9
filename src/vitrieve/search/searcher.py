"""Search an index by picture. Next file: ``page.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vitrieve.data.decode import convert_to_rgb, decode_image, read_image_bytes
from vitrieve.errors import ArtifactError, ConfigError, DecodeError, FingerprintError
from vitrieve.index.exact import ExactStore
from vitrieve.runtime.encoder import Encoder, load_encoder

Query = str | Path | bytes | Image.Image


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """One picture found.

    Attributes:
        image_id: Its name in the collection.
        score: Cosine similarity to the query, in [-1, 1]; higher is nearer.
        path: Where the picture was when it was embedded.
        metadata: Further columns of its source, as text.
        box: The region of the picture that was embedded, ``(x_1, y_1, x_2, y_2)`` in pixels; None for all of it.
    """

    image_id: str
    score: float
    path: Path
    metadata: Mapping[str, str]
    box: tuple[float, float, float, float] | None = None


class Searcher:
    """An index and the encoder that made it.

    ``Searcher.open("index").search("query.jpg", k=5)`` returns the five nearest pictures, nearest first.
    """

    def __init__(self, store: ExactStore, encoder: Encoder) -> None:
        """Join an index with an encoder.

        Raises:
            FingerprintError: The index was made by another encoder.
        """
        if encoder.fingerprint != store.fingerprint:
            raise FingerprintError(
                f"the index was made by {store.encoder_source} at {store.image_size} px (fingerprint "
                f"{store.fingerprint[:12]}…), not by {encoder.source} at {encoder.preprocessing.image_size} px "
                f"({encoder.fingerprint[:12]}…): their vectors are not comparable. Search with the index's own "
                "encoder, or embed and index the collection again with this one."
            )
        self.store = store
        self.encoder = encoder

    @classmethod
    def open(
        cls, index_folder: Path | str, encoder: Encoder | str | Path | None = None, *, num_threads: int | None = None
    ) -> Searcher:
        """Open an index, and load the encoder that made it.

        Args:
            index_folder: Made by ``build_index``.
            encoder: An encoder, its folder or its weights name; None: where the index says that its encoder is.
            num_threads: CPU threads of an encoder that is loaded here; None: all cores.

        Raises:
            ArtifactError: The index cannot be read, or its encoder is no longer where it was.
            FingerprintError: ``encoder`` is not the one that made the index.
        """
        store = ExactStore.open(index_folder)
        if not isinstance(encoder, Encoder):
            encoder = _load_encoder(store, encoder, num_threads)
        return cls(store, encoder)

    def search(self, image: Query, k: int = 10) -> list[SearchResult]:
        """Find the pictures most like ``image``.

        Args:
            image: A path, the bytes of an image file, or a Pillow picture.
            k: Pictures to find, at least 1; a smaller collection gives all it has.

        Returns:
            Results, nearest first; equal scores in the order of the collection.

        Raises:
            DecodeError: The query cannot be decoded; the message names it where it has a name.
            ConfigError: ``k`` is below 1.
        """
        if k < 1:
            raise ConfigError(f"k is {k}; it must be 1 or more.")
        return self.search_vector(self.encoder.encode([read_query(image)])[0], k)

    def search_vector(self, vector: np.ndarray, k: int = 10) -> list[SearchResult]:
        """Find the pictures whose embeddings are nearest to ``vector``, ``(E,)`` float32.

        Raises:
            InputError: ``k`` is below 1, or the vector does not fit the index.
        """
        similarities, rows = self.store.search(vector[None], k)
        return [
            SearchResult(
                image_id=record.image_id,
                score=float(score),
                path=record.path,
                metadata=record.metadata,
                box=record.box,
            )
            for score, record in zip(similarities[0], self.store.records(rows[0]), strict=True)
        ]


def read_query(image: Query) -> Image.Image:
    """Turn a query into an RGB picture, by the same rule as the pictures of a collection.

    Raises:
        DecodeError: The picture cannot be read or decoded; the message names a file.
    """
    if isinstance(image, Image.Image):
        try:
            return convert_to_rgb(image)
        except OSError as error:  # Pillow reads the pixels of an opened file only now
            raise DecodeError(f"the query picture: {error}.") from None
    if isinstance(image, bytes):
        return decode_image(image)
    try:
        return decode_image(read_image_bytes(Path(image)))
    except DecodeError as error:
        raise DecodeError(f"the query {image}: {error}.") from None


def _load_encoder(store: ExactStore, source: str | Path | None, num_threads: int | None) -> Encoder:
    """Load the encoder of an index at the input size that the index was made with."""
    given = store.encoder_source if source is None else source
    if source is None and Path(given).is_absolute() and not Path(given).exists():
        raise ArtifactError(
            f"the index was made with the encoder in {given}, which is no longer there; "
            "name where it is now with --encoder (in Python: Searcher.open(index, encoder))."
        )
    return load_encoder(given, image_size=store.image_size, num_threads=num_threads)
