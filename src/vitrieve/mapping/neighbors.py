"""The exact nearest neighbors of every picture of a collection; ``layout.py`` and ``clusters.py`` are made of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vitrieve.similarity import FloatArray, IntArray, as_embeddings, top_k


class Neighbors(NamedTuple):
    """The nearest other rows of each row, nearest first.

    Attributes:
        rows: ``(N, K)`` int64 rows.
        similarities: ``(N, K)`` float32, falling.
    """

    rows: IntArray
    similarities: FloatArray


def find_neighbors(vectors: npt.ArrayLike, k: int, *, shown_as: str | None = None) -> Neighbors:
    """Find the nearest other rows of each row, exactly.

    Args:
        vectors: ``(N, E)`` embeddings, at least two.
        k: Neighbors of each row, at least 1; N - 1 where there are fewer rows.
        shown_as: As ``top_k`` takes it.

    Returns:
        The neighbors, without the row itself, ties ordered by row. Memory beside the result: as ``top_k``.

    Raises:
        InputError: The vectors are no finite matrix.

    >>> find_neighbors([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]], 1).rows.tolist()
    [[2], [2], [0]]
    """
    rows = as_embeddings(vectors)
    similarities, nearest = top_k(rows, rows, min(k, len(rows) - 1) + 1, shown_as=shown_as)
    is_itself = nearest == np.arange(len(rows))[:, None]
    # Among more copies than neighbors, a row may not be in its own list: then the last of the list goes.
    is_itself[~is_itself.any(axis=1), -1] = True
    shape = (len(rows), nearest.shape[1] - 1)
    return Neighbors(nearest[~is_itself].reshape(shape), similarities[~is_itself].reshape(shape))
