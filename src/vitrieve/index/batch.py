"""What every store checks before it changes or searches anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitrieve.data.records import ImageRecord
from vitrieve.errors import DataError, InputError
from vitrieve.index.store import MAX_BATCH_ROWS
from vitrieve.similarity import FloatArray, as_embeddings

BLOCK_ROWS = 65_536
"""Vectors checked or copied at a time."""
NORM_TOLERANCE = 1e-3
"""How far from one the length of an L2-normalized float32 row may be."""


def check_batch(vectors: np.ndarray, records: Sequence[ImageRecord], embedding_dim: int) -> FloatArray:
    """Check the arguments of ``upsert``; return the vectors as float32.

    Raises:
        DataError: As ``VectorStore.upsert``.
    """
    given = np.asarray(vectors)
    if given.ndim != 2 or given.shape != (len(records), embedding_dim):
        raise DataError(
            f"vectors of shape {given.shape} do not belong to {len(records)} images in an index of {embedding_dim} "
            "dimensions."
        )
    check_size(len(records))
    check_vectors(given, records)
    return np.ascontiguousarray(given, dtype=np.float32)


def check_size(num_images: int) -> None:
    """Refuse a change of more images than one change may have."""
    if num_images > MAX_BATCH_ROWS:
        raise DataError(f"{num_images} images in one change; give at most {MAX_BATCH_ROWS}, one batch after another.")


def check_vectors(vectors: np.ndarray, records: Sequence[ImageRecord]) -> None:
    """Check any number of vectors and their images.

    Raises:
        DataError: Vectors that are not normalized or not finite, an ``image_id`` that occurs twice, or text that is
            not UTF-8.
    """
    for start in range(0, len(vectors), BLOCK_ROWS):
        norms, wrong = find_wrong_norms(vectors[start : start + BLOCK_ROWS])
        if wrong.size:
            image_id = records[start + int(wrong[0])].image_id
            raise DataError(
                f"the vector of {image_id} has the length {norms[wrong[0]]:.4g}; "
                "vectors must be finite and L2-normalized."
            )
    seen: set[str] = set()
    for record in records:
        if record.image_id in seen:
            raise DataError(f"the image_id {record.image_id!r} occurs twice; every image needs its own.")
        seen.add(record.image_id)
        _check_text(record)


def find_wrong_norms(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lengths of all rows, and the places of those that are neither one nor zero."""
    with np.errstate(over="ignore"):  # an infinite length is wrong, and counts so
        norms = np.linalg.norm(vectors, axis=1)
    # Written so that NaN counts as wrong. A length of zero is what normalizing zeros gives.
    return norms, np.flatnonzero(~((np.abs(norms - 1) <= NORM_TOLERANCE) | (norms == 0)))


def _check_text(record: ImageRecord) -> None:
    """Refuse lone surrogates and NUL, which no engine stores."""
    texts = [record.image_id, *record.metadata.keys(), *record.metadata.values()]
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"{text!r} of {record.image_id!r} is not UTF-8.") from None
        if "\0" in text:
            raise DataError(f"{text!r} of {record.image_id!r} holds the character NUL.")


def check_queries(queries: np.ndarray, k: int, embedding_dim: int) -> FloatArray:
    """Check the arguments of ``search``; return the queries as float32.

    Raises:
        InputError: ``k`` below 1, another width, or a number that is not finite.
    """
    if k < 1:
        raise InputError(f"k is {k}; expected at least 1.")
    checked = as_embeddings(queries, "query embeddings")
    if checked.shape[1] != embedding_dim:
        raise InputError(
            f"query embeddings have {checked.shape[1]} dimensions and the index {embedding_dim}; "
            "they must come from the same encoder."
        )
    return checked


def missing_message(image_ids: Sequence[str]) -> str:
    """Build the message for images that are not in an index."""
    others = f" (and {len(image_ids) - 1} more)" if len(image_ids) > 1 else ""
    return f"the image {image_ids[0]!r}{others} is not in the index."
