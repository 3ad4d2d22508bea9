"""How many irrelevant images stand before each relevant one, by counting instead of sorting.

Recall@K, R-precision and MAP@R need no ranking, only these counts: ties count against the query, so an irrelevant
image stands before a relevant one when it is at least as similar. The relevant ones are few and compared exactly.
Against their similarities a bounded product (``product.py``) settles nearly all of the rest: it counts what is surely
above the best of them and leaves out what is surely below all that matter. Pairs within the bound of a relevant
image's similarity are compared exactly.

Of R relevant images, one with R irrelevant ones before it is not among the first R, whatever else stands before it.
So R group maxima above a relevant image settle it, and only the best one is counted to the end, for its rank.

Next: ``artifacts.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vitrieve.similarity.definition import FloatArray, GridRows, IntArray, pair_similarities, similarity_chunks
from vitrieve.similarity.product import BLOCK_HEIGHT, Bounds, Product, Results, choose_products
from vitrieve.similarity.scan import OpenPairs, choose_group_size, join_pairs, open_groups, scan_blocks, take_pairs

MAX_OPEN = 1024
"""A query with more open pairs than this, beside ten for each relevant image, is left to a more precise product."""
MIN_GALLERY = 2048
"""In a smaller gallery everything is compared."""


class RankedQuery(NamedTuple):
    """Rows of a query's ranking that are known beforehand.

    Attributes:
        relevant: ``(R,)`` int64 gallery rows to be found, none of them hidden, none twice.
        hidden: int64 gallery rows that the ranking leaves out.
    """

    relevant: IntArray
    hidden: IntArray


class Counts(NamedTuple):
    """Relevant images of all queries, query by query, under one query from near to far.

    Attributes:
        places: ``(P,)`` int64, the query of each.
        num_before: ``(P,)`` int64 irrelevant images at least as similar. Exact for the nearest of a query, and where
            fewer than the query's R stand before; else some number from R on.
    """

    places: IntArray
    num_before: IntArray


class _Relevant(NamedTuple):
    """Relevant images of some queries, as ``Counts`` orders them.

    Attributes:
        places: ``(P,)`` queries.
        similarities: ``(P,)`` float32.
        starts: ``(Q,)`` first of each query.
        counts: ``(Q,)`` how many each query has.
    """

    places: IntArray
    similarities: FloatArray
    starts: IntArray
    counts: IntArray


def count_before(
    queries: FloatArray, gallery: FloatArray, ranked: Sequence[RankedQuery], *, chunk_size: int | None = None
) -> Counts:
    """Count the irrelevant images before each relevant one.

    Args:
        queries: ``(Q, E)`` float32, finite.
        gallery: ``(G, E)`` float32, finite; it may be ``queries``.
        ranked: What is relevant and what is hidden, ``Q`` of them.
        chunk_size: Queries at a time. Changes nothing that is promised.

    Raises:
        InputError: Rows that are too long.
    """
    num_relevant = np.array([len(one.relevant) for one in ranked], dtype=np.int64)
    left = np.flatnonzero(num_relevant)
    left = left[np.argsort(num_relevant[left], kind="stable")]  # similar numbers together: one group size serves them
    parts: list[Counts] = []
    if len(gallery) >= MIN_GALLERY and len(left):
        grids = _round_both(queries, gallery)
        for product in choose_products(queries, gallery):
            still_left = []
            for places in _split(left, chunk_size or BLOCK_HEIGHT):
                group_size = choose_group_size(int(num_relevant[places[-1]]), len(gallery))
                if group_size is None:  # so many are relevant that comparing everything costs no more
                    still_left.append(places)
                    continue
                counts, is_open = _count_fast(places, queries, ranked, product, grids, group_size)
                parts.append(counts)
                still_left.append(places[is_open])
            left = np.concatenate(still_left)
    for places in _split(left, chunk_size or BLOCK_HEIGHT):
        parts.extend(_count_all(places, queries, gallery, ranked, chunk_size))
    if not parts:
        return Counts(left, left)
    joined = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    order = np.argsort(joined[0], kind="stable")
    return Counts(joined[0][order], joined[1][order])


def _round_both(queries: FloatArray, gallery: FloatArray) -> tuple[GridRows, GridRows]:
    query_grid = GridRows(queries)
    return query_grid, query_grid if gallery is queries else GridRows(gallery)


def _split(places: IntArray, size: int) -> list[IntArray]:
    return [places[start : start + size] for start in range(0, len(places), size)]


def _count_all(
    places: IntArray,
    queries: FloatArray,
    gallery: FloatArray,
    ranked: Sequence[RankedQuery],
    chunk_size: int | None,
) -> list[Counts]:
    """Compare everything: the definition, and what the fast way must equal."""
    parts = []
    for chunk, block in similarity_chunks(queries[places], gallery, chunk_size=chunk_size):
        for place, similarities in zip(places[chunk], block, strict=True):
            relevant, hidden = ranked[place]
            found = np.sort(similarities[relevant])[::-1]
            similarities[relevant] = similarities[hidden] = -np.inf
            # Only the R nearest irrelevant images can stand before one that is among the first R.
            num_below = len(gallery) - len(relevant)
            nearest = np.sort(np.partition(similarities, num_below)[num_below:] if num_below else similarities)
            num_before = len(nearest) - np.searchsorted(nearest, found, side="left")
            num_before[0] = np.count_nonzero(similarities >= found[0])
            parts.append(Counts(np.full(len(found), place), num_before))
    return parts


def _count_fast(
    places: IntArray,
    queries: FloatArray,
    ranked: Sequence[RankedQuery],
    product: Product,
    grids: tuple[GridRows, GridRows],
    group_size: int,
) -> tuple[Counts, npt.NDArray[np.bool_]]:
    """Count for some queries by a bounded product.

    Returns:
        The counts of those that are settled, and for each of ``places`` whether it is left open.
    """
    known = [ranked[place] for place in places]
    bounds = product.start(queries[places])
    relevant = _compare_relevant(places, known, grids)
    known_pairs = _list_pairs([np.concatenate(one) for one in known])
    max_open = MAX_OPEN + 10 * int(relevant.counts.max())
    pairs, num_above, is_open = _scan(relevant, known_pairs, product, bounds, group_size, max_open)
    values = product.middle(pairs.results) + bounds.offsets[pairs.places]
    is_close = _find_close(pairs, relevant, product, bounds)
    close = take_pairs(pairs, is_close)
    values[is_close] = pair_similarities(grids[0], grids[1], places[close.places], close.rows)
    num_before = _merge(pairs.places, values, relevant) + num_above[relevant.places]
    is_settled = ~is_open[relevant.places]
    return Counts(places[relevant.places[is_settled]], num_before[is_settled]), is_open


def _list_pairs(lists: list[IntArray]) -> tuple[IntArray, IntArray]:
    """Turn lists of rows, one a query, into places and rows of pairs."""
    counts = np.array([len(one) for one in lists])
    return np.repeat(np.arange(len(lists)), counts), np.concatenate(lists)


def _compare_relevant(places: IntArray, known: list[RankedQuery], grids: tuple[GridRows, GridRows]) -> _Relevant:
    local, rows = _list_pairs([one.relevant for one in known])
    similarities = pair_similarities(grids[0], grids[1], places[local], rows)
    similarities = similarities[np.lexsort((-similarities, local))]
    counts = np.bincount(local, minlength=len(places))
    return _Relevant(local, similarities, np.cumsum(counts) - counts, counts)


def _scan(
    relevant: _Relevant,
    known_pairs: tuple[IntArray, IntArray],
    product: Product,
    bounds: Bounds,
    group_size: int,
    max_open: int,
) -> tuple[OpenPairs, IntArray, npt.NDArray[np.bool_]]:
    """List the irrelevant images that are not settled by their product alone, and count those surely above all."""
    best_relevant = relevant.similarities[relevant.starts] - bounds.offsets
    worst_relevant = relevant.similarities[relevant.starts + relevant.counts - 1] - bounds.offsets
    ceilings = product.ceiling(best_relevant + bounds.errors)
    num_known = int(relevant.counts.max())
    hide = _Hider(known_pairs, product)
    nearest: Results | None = None
    num_above = np.zeros(len(best_relevant), dtype=np.int64)
    num_open, is_open, parts = num_above.copy(), num_above > 0, []
    for columns, results in scan_blocks(product, group_size):
        hide(results, columns)
        maxima = product.maxima(results, group_size)
        if not product.is_signed and _needs_order(product.floor(best_relevant - bounds.errors)):
            product.order_negative(results)
            hide(results, columns)
            maxima = product.maxima(results, group_size)
        known = maxima if nearest is None else np.concatenate([nearest, maxima], axis=1)
        nearest = np.partition(known, known.shape[1] - num_known, axis=1)[:, known.shape[1] - num_known :]
        # At least R irrelevant images reach this similarity: relevant ones below are out of reach.
        reached = product.lower(nearest[:, 0]) - bounds.errors
        floors = product.floor(np.minimum(best_relevant, np.maximum(worst_relevant, reached)) - bounds.errors)
        if not product.is_signed:
            is_open |= floors <= 0  # among negative results there is no order; these few queries go on elsewhere
        floors[is_open] = product.top
        pairs, num_above_here, num_open = open_groups(
            results, maxima, floors, columns.start, num_open, max_open, ceilings=ceilings
        )
        num_above += num_above_here
        parts.append(pairs)
        is_open |= num_open > max_open
    pairs = join_pairs(parts)
    return take_pairs(pairs, (pairs.results >= floors[pairs.places]) & ~is_open[pairs.places]), num_above, is_open
