"""The k nearest gallery rows of every query, exactly: a bounded product chooses candidates, the definition decides.

If k products of a query are at least t, then k similarities are at least t less the error bound b, and a row among
the k nearest has a product of at least t - 2 b. t is the k-th largest of the maxima of groups of columns: a lower
estimate of the k-th largest product that costs a look at every product, but no sorting.

Next: ``counting.py``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vitrieve.errors import InputError
from vitrieve.similarity.candidates import Look, OpenPairs, PairLists, max_wanted
from vitrieve.similarity.definition import (
    FloatArray,
    GridRows,
    IntArray,
    check_pair,
    nearest_first_keys,
    order_nearest,
    pair_similarities,
    similarity_chunks,
)
from vitrieve.similarity.ways import MIN_GALLERY, Task, choose_ways

MAX_CANDIDATES = 512
"""A query with more candidates than this, beside ten for each neighbour, is left to a more precise product."""
MIN_COPIED_QUERIES = 256
"""From so many queries on, so many pairs are compared that the embeddings are copied on their grid."""


def top_k(
    queries: npt.ArrayLike, gallery: npt.ArrayLike, k: int, *, chunk_size: int | None = None
) -> tuple[FloatArray, IntArray]:
    """Find the nearest gallery rows of every query, exactly.

    Args:
        queries: ``(Q, E)`` embeddings.
        gallery: ``(G, E)`` embeddings.
        k: Neighbours to return, at least 1.
        chunk_size: Queries at a time. Changes no value.

    Returns:
        Similarities ``(Q, K)`` float32, falling, and gallery rows ``(Q, K)`` int64, where K is ``k`` or the
        size of a smaller gallery. Ties are ordered by row. Memory beside the result: some hundred megabytes, a copy of
        embeddings of up to 256 MiB and, for many queries where torch is loaded, one of the gallery in bfloat16.

    Raises:
        InputError: ``k`` below 1, or as in ``similarity``.

    >>> top_k([[1.0, 0.0]], [[0.0, 1.0], [0.5, 0.5], [0.5, 0.5]], 2)[1].tolist()
    [[1, 2]]
    """
    if k < 1:
        raise InputError(f"k is {k}; expected at least 1.")
    queries, gallery = check_pair(queries, gallery)
    shape = (len(queries), min(k, len(gallery)))
    similarities, gallery_rows = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.int64)
    is_left = np.ones(len(queries), dtype=bool)
    if k <= max_wanted(len(gallery)) and len(gallery) >= MIN_GALLERY and len(queries):
        grids = round_both(queries, gallery)
        nothing = np.empty(0, dtype=np.int64)
        hidden = PairLists.of_pairs(nothing, nothing, len(queries))
        task = Task(queries, gallery, np.full(len(queries), k), hidden)
        for way in choose_ways(task, np.arange(len(queries)), chunk_size=chunk_size):
            for look in way(np.flatnonzero(is_left)):
                candidates, is_open = _find_candidates(look, k)
                done = look.places[~is_open]
                similarities[done], gallery_rows[done] = _order(grids, look.places, candidates, k)
                is_left[done] = False
            if not is_left.any():
                break
    left = np.flatnonzero(is_left)
    for chunk, block in similarity_chunks(queries[left], gallery, chunk_size=chunk_size) if len(left) else ():
        similarities[left[chunk]], gallery_rows[left[chunk]] = order_nearest(block, k)
    return similarities, gallery_rows


def round_both(queries: FloatArray, gallery: FloatArray) -> tuple[GridRows, GridRows]:
    """Return queries and gallery on their grids; one copy serves both where they are the same.

    Raises:
        InputError: A row that is too long.
    """
    is_copied = len(queries) >= MIN_COPIED_QUERIES
    query_grid = GridRows(queries, is_copied=is_copied)
    return query_grid, query_grid if gallery is queries else GridRows(gallery, is_copied=is_copied)


def _find_candidates(look: Look, k: int) -> tuple[OpenPairs, npt.NDArray[np.bool_]]:
    """Find all pairs that may be among the k nearest, at least k a query, and say for which queries they are too many.

    Returns:
        The pairs of all other queries, and ``(Q,)`` whether the query is left open.
    """
    product = look.product
    floors = product.floor(product.lower(look.kth_largest(k)) - 2 * look.bounds.errors)
    is_unordered = floors < product.lowest
    floors[is_unordered] = product.top
    ceilings = np.full_like(floors, product.top)
    pairs, _, is_too_many = look.find_open_pairs(floors, ceilings, MAX_CANDIDATES + 10 * k)
    return pairs, is_too_many | is_unordered


def _order(
    grids: tuple[GridRows, GridRows], places: IntArray, candidates: OpenPairs, k: int
) -> tuple[FloatArray, IntArray]:
    """Return the similarities and rows of the k nearest of every query that has candidates, by the definition."""
    similarities = pair_similarities(*grids, places[candidates.places], candidates.rows)
    order = np.argsort(nearest_first_keys(candidates.places, similarities), kind="stable")  # ties stay ordered by row
    is_first = np.ones(len(order), dtype=bool)
    np.not_equal(candidates.places[1:], candidates.places[:-1], out=is_first[1:])
    nearest = order[np.flatnonzero(is_first)[:, None] + np.arange(k)]  # (queries with candidates, k)
    return similarities[nearest], candidates.rows[nearest]
