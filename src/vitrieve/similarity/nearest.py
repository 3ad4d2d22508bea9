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
from vitrieve.similarity.candidates import (
    OpenPairs,
    choose_group_size,
    find_open_pairs,
    kth_largest,
    max_wanted,
    split_queries,
)
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
from vitrieve.similarity.product import Product, choose_products

MAX_CANDIDATES = 512
"""A query with more candidates than this, beside ten for each neighbour, is left to a more precise product."""
MIN_GALLERY = 2048
"""A smaller gallery is compared whole."""
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
    left = np.arange(len(queries))
    if k <= max_wanted(len(gallery)) and len(gallery) >= MIN_GALLERY and len(queries):
        group_size = choose_group_size(k, len(gallery))
        grids = round_both(queries, gallery)
        for product in choose_products(len(queries), gallery):
            still_left = [left[:0]]
            for places in split_queries(left, product, len(gallery), chunk_size):
                candidates, is_open = _find_candidates(queries[places], k, product, group_size)
                done = places[~is_open]
                similarities[done], gallery_rows[done] = _order(grids, places, candidates, k)
                still_left.append(places[is_open])
            left = np.concatenate(still_left)
            if not len(left):
                break
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


def _find_candidates(
    queries: FloatArray, k: int, product: Product, group_size: int
) -> tuple[OpenPairs, npt.NDArray[np.bool_]]:
    """Find all pairs that may be among the k nearest, at least k a query, and say for which queries they are too many.

    Returns:
        The pairs of all other queries, and ``(Q,)`` whether the query is left open.
    """
    results, bounds = product.multiply(queries)
    groups = product.group(results, group_size)
    floors = product.floor(product.lower(kth_largest(groups.maxima, k)) - 2 * bounds.errors)
    is_unordered = floors < product.lowest
    floors[is_unordered] = product.top
    ceilings = np.full_like(floors, product.top)
    pairs, _, is_too_many = find_open_pairs(groups, floors, ceilings, MAX_CANDIDATES + 10 * k)
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
