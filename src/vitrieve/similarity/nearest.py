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
from vitrieve.similarity.definition import (
    FloatArray,
    GridRows,
    IntArray,
    check_pair,
    order_nearest,
    pair_similarities,
    similarity_chunks,
)
from vitrieve.similarity.product import BLOCK_HEIGHT, Product, Results, choose_products
from vitrieve.similarity.scan import (
    OpenPairs,
    choose_group_size,
    join_pairs,
    open_groups,
    scan_blocks,
    take_pairs,
)

MAX_CANDIDATES = 512
"""A query with more candidates than this, beside ten for each neighbour, is left to a more precise product."""
MIN_GALLERY = 2048
"""A smaller gallery is compared whole."""


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
        size of a smaller gallery. Ties are ordered by row. Memory: some hundred megabytes beside the result.

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
    group_size = choose_group_size(k, len(gallery))
    if group_size is not None and len(gallery) >= MIN_GALLERY and len(queries):
        query_grid = GridRows(queries)
        gallery_grid = query_grid if gallery is queries else GridRows(gallery)
        for product in choose_products(queries, gallery):
            still_left = []
            for places in _split(left, chunk_size or BLOCK_HEIGHT):
                candidates, is_open = _find_candidates(queries[places], k, product, group_size)
                is_done = ~is_open
                done = places[is_done]
                similarities[done], gallery_rows[done] = _compare(
                    query_grid, gallery_grid, places, candidates, is_done, k
                )
                still_left.append(places[is_open])
            left = np.concatenate(still_left)
            if not len(left):
                break
    for places in _split(left, chunk_size or BLOCK_HEIGHT):
        for rows, block in similarity_chunks(queries[places], gallery, chunk_size=chunk_size):
            similarities[places[rows]], gallery_rows[places[rows]] = order_nearest(block, k)
    return similarities, gallery_rows


def _split(places: IntArray, size: int) -> list[IntArray]:
    return [places[start : start + size] for start in range(0, len(places), size)]


def _find_candidates(
    queries: FloatArray, k: int, product: Product, group_size: int
) -> tuple[OpenPairs, npt.NDArray[np.bool_]]:
    """Find all pairs that may be among the k nearest, and say for which queries they are too many.

    Returns:
        The pairs of all other queries, and ``(Q,)`` whether the query is left open.
    """
    errors = product.start(queries).errors
    best: Results | None = None
    num_found = np.zeros(len(queries), dtype=np.int64)
    is_open = np.zeros(len(queries), dtype=bool)
    parts = []
    for columns, results in scan_blocks(product, group_size):
        maxima = product.maxima(results, group_size)
        best, floors = _raise_floors(best, maxima, k, product, errors)
        if not product.is_signed and (floors <= 0).any():
            product.order_negative(results)
            maxima = product.maxima(results, group_size)
            best, floors = _raise_floors(None, maxima, k, product, errors)
        floors[is_open] = product.top
        pairs, num_found = open_groups(results, maxima, floors, columns.start, num_found, MAX_CANDIDATES + 10 * k)
        parts.append(pairs)
        is_open |= num_found > MAX_CANDIDATES + 10 * k
    pairs = join_pairs(parts)
    return take_pairs(pairs, (pairs.results >= floors[pairs.places]) & ~is_open[pairs.places]), is_open


def _raise_floors(
    best: Results | None, maxima: Results, k: int, product: Product, errors: npt.NDArray[np.float64]
) -> tuple[Results, Results]:
    """Return the k largest of the maxima so far, ``(Q, k)``, and what a candidate's result must reach, ``(Q,)``."""
    known = maxima if best is None else np.concatenate([best, maxima], axis=1)
    best = np.partition(known, known.shape[1] - k, axis=1)[:, known.shape[1] - k :]
    return best, product.floor(product.lower(best[:, 0]) - 2 * errors)


def _compare(
    queries: GridRows,
    gallery: GridRows,
    places: IntArray,
    candidates: OpenPairs,
    is_done: npt.NDArray[np.bool_],
    k: int,
) -> tuple[FloatArray, IntArray]:
    """Order the candidates of the queries that are done by the definition."""
    values = pair_similarities(queries, gallery, places[candidates.places], candidates.rows)
    counts = np.bincount(candidates.places, minlength=len(places))
    starts = np.cumsum(counts) - counts
    ranks = np.arange(len(values)) - starts[candidates.places]
    width = max(k, int(counts.max(initial=0)))
    table = np.full((len(places), width), -np.inf, dtype=np.float32)
    rows = np.zeros((len(places), width), dtype=np.int64)
    table[candidates.places, ranks], rows[candidates.places, ranks] = values, candidates.rows
    nearest, columns = order_nearest(table[is_done], k)
    return nearest, np.take_along_axis(rows[is_done], columns, axis=1)
