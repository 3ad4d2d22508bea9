"""This file makes the one vector of a search from its examples."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from vitrieve.data.decode import Picture, open_any_picture
from vitrieve.data.preprocess import find_enough_px, to_square
from vitrieve.errors import ConfigError
from vitrieve.index.store import VectorStore
from vitrieve.runtime.encoder import Encoder
from vitrieve.search.request import Example, SearchRequest
from vitrieve.similarity import FloatArray, normalize

MINUS_WEIGHT = 0.5
"""Weight of what is not wanted beside what is; below 1, so that the difference is never nothing. Measured on the
training splits of Grocery and emoji (benchmarks/search_settings.py): of 0 to 0.7, 0.3 and 0.5 bring most of what is
wanted forward, and 0.5 cuts the unwanted by two thirds."""
MIN_NORM = 1e-6
"""Examples whose mean is shorter point in opposite directions: what is left is rounding."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """The vector of a search.

    Attributes:
        vector: ``(E,)`` float32, of unit length (zeros where the one example's embedding is zeros).
        own_ids: Images of the index among the examples; they are not results.
        timings_seconds: Time for ``decode`` (reading stored vectors included) and ``encode``.
    """

    vector: FloatArray
    own_ids: frozenset[str]
    timings_seconds: dict[str, float]


def build_query(request: SearchRequest, store: VectorStore, encoder: Encoder) -> Query:
    """Turn the examples of a request into one vector, by ``combine_examples``.

    Raises:
        DecodeError: A picture cannot be decoded, or its box holds none of it.
        DataError: An ``image_id`` is not in the index.
        ConfigError: A vector of another shape or not finite, a text that the encoder does not read, or examples that
            cancel out.
    """
    examples = (*request.plus, *request.minus)
    started = time.perf_counter()
    picture_rows = [row for row, example in enumerate(examples) if example.picture is not None]
    prepare = partial(to_square, preprocessing=encoder.preprocessing)
    enough_px = find_enough_px(encoder.preprocessing)
    squares = [prepare_example(examples[row], prepare, enough_px) for row in picture_rows]
    vectors = _read_vectors(examples, store, encoder)
    decoded = time.perf_counter()
    if squares:
        vectors[picture_rows] = encoder.encode_squares(np.stack(squares))
    text_rows = [row for row, example in enumerate(examples) if example.text is not None]
    if text_rows:
        vectors[text_rows] = encoder.encode_text([example.text for example in examples if example.text is not None])
    num_plus = len(request.plus)
    return Query(
        vector=combine_examples(vectors[:num_plus], vectors[num_plus:]),
        own_ids=frozenset(_list_ids(examples)),
        timings_seconds={"decode": decoded - started, "encode": time.perf_counter() - decoded},
    )


def combine_examples(plus: np.ndarray, minus: np.ndarray) -> FloatArray:
    """Make one vector of examples: the mean of the plus, less a part of the mean of the minus.

    Both means are scaled to unit length, so that many examples weigh no more than few:
    ``normalize(normalize(mean(plus)) - MINUS_WEIGHT * normalize(mean(minus)))``. One plus alone is itself.

    Args:
        plus: ``(P, E)`` float32, L2-normalized; at least one row.
        minus: ``(M, E)`` float32, L2-normalized; may have no row. Minus examples that cancel out have no effect.

    Returns:
        ``(E,)`` float32 of unit length.

    Raises:
        ConfigError: The plus examples cancel out.

    Source:
        Rocchio, "Relevance feedback in information retrieval", 1971. There the means are not normalized and stand
        beside the first query, which here is a plus example like the others.

    >>> combine_examples(np.float32([[1, 0], [0, 1]]), np.empty((0, 2), np.float32)).tolist()
    [0.7071067690849304, 0.7071067690849304]
    """
    if len(plus) == 1 and not len(minus):
        return np.asarray(plus[0], dtype=np.float32)
    center = plus.mean(axis=0, dtype=np.float64)
    if np.linalg.norm(center) < MIN_NORM:
        raise ConfigError(
            "the plus examples cancel out (they point in opposite directions); search for them one at a time."
        )
    direction = center / np.linalg.norm(center)
    if len(minus):
        unwanted = minus.mean(axis=0, dtype=np.float64)
        direction = direction - MINUS_WEIGHT * unwanted / max(float(np.linalg.norm(unwanted)), MIN_NORM)
    return _normalize_one(direction)


def read_example(example: Example) -> Image.Image:
    """Read the picture of an example, by the same rule as the pictures of a collection, and cut out its box.

    Raises:
        DecodeError: The picture cannot be read or decoded, or the box holds no pixel of it; the message names a file.
    """
    assert example.picture is not None
    with open_any_picture(example.picture, _name(example.picture), box=example.box) as picture:
        return picture


def prepare_example(
    example: Example, prepare: Callable[[Image.Image], np.ndarray], enough_px: int | None = None
) -> np.ndarray:
    """Read the picture of an example, cut out its box, and turn it into an array while it counts in the budget.

    Args:
        example: Example with a picture.
        prepare: Function of the RGB picture, which it does not keep.
        enough_px: Short side that ``prepare`` makes do with; None: that of the file.

    Raises:
        DecodeError: As ``read_example``.
    """
    assert example.picture is not None
    name = _name(example.picture)
    with open_any_picture(example.picture, name, box=example.box, enough_px=enough_px) as picture:
        return prepare(picture)


def _name(picture: Picture) -> str:
    return "the query" if isinstance(picture, (str, Path)) else "the query picture"


def _list_ids(examples: Sequence[Example]) -> list[str]:
    return list(dict.fromkeys(example.image_id for example in examples if example.image_id is not None))


def _read_vectors(examples: Sequence[Example], store: VectorStore, encoder: Encoder) -> FloatArray:
    """Return one row an example; those of pictures and texts are zeros, to be filled."""
    image_ids = _list_ids(examples)
    stored = dict(zip(image_ids, store.get(image_ids)[0] if image_ids else (), strict=True))
    vectors = np.zeros((len(examples), encoder.embedding_dim), np.float32)
    for row, example in enumerate(examples):
        if example.image_id is not None:
            vectors[row] = stored[example.image_id]
        elif example.vector is not None:
            vectors[row] = _check_vector(example.vector, encoder)
    return vectors


def _normalize_one(vector: np.ndarray) -> FloatArray:
    rows = normalize(vector[None])
    return rows.reshape(-1)


def _check_vector(vector: np.ndarray, encoder: Encoder) -> FloatArray:
    values = np.asarray(vector)
    if values.shape != (encoder.embedding_dim,) or values.dtype.kind not in "fiu":
        raise ConfigError(
            f"the vector has shape {values.shape} and type {values.dtype}; this index holds vectors of "
            f"{encoder.embedding_dim} numbers."
        )
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all() or not values.any():
        raise ConfigError("the vector holds NaN, infinity or only zeros; give an embedding of the index's encoder.")
    return _normalize_one(values)
