"""How many irrelevant images stand before each relevant one, by counting instead of sorting.

Recall@K, R-precision and MAP@R need no ranking, only these counts: ties count against the query, so an irrelevant
image stands before a relevant one when it is at least as similar. The relevant ones are few and compared exactly.
A bounded product (``product.py``) decides about nearly all others: an image that is surely nearer than the best of
them is counted, one that is surely below all that matter is left out, and one between is compared exactly.

Of R relevant images, one with R irrelevant ones before it is not among the first R, whatever else stands before it.
So the R-th largest product, estimated by the maxima of groups of columns as in ``nearest.py``, bounds what matters;
only for the best relevant image, whose rank is wanted, everything before it is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vitrieve.similarity.definition import (
    FloatArray,
    GridRows,
    IntArray,
    nearest_first_keys,
    pair_similarities,
    similarity_chunks,
)
from vitrieve.similarity.nearest import (
    MIN_GALLERY,
    Maxima,
    QuerySet,
    RowLists,
    compare_by_products,
    max_wanted,
    round_both,
)

MAX_OPEN = 1024
"""A query with more open pairs than this, beside ten for each relevant image, is left to a more precise product."""


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
        owners: ``(P,)`` int64, the query of each.
        num_before: ``(P,)`` int64 irrelevant images at least as similar. Exact for the nearest of a query, and where
            fewer than the query's R stand before; else some number from R on.
    """

    owners: IntArray
    num_before: IntArray


class _Relevant(NamedTuple):
    """Relevant images of a chunk of queries, as ``Counts`` orders them; every query has one.

    Attributes:
        owners: ``(P,)`` the position of each one's query in the chunk.
        similarities: ``(P,)`` float32.
        starts: ``(q,)`` the first of each query.
        counts: ``(q,)`` how many each query has.
    """

    owners: IntArray
    similarities: FloatArray
    starts: IntArray
    counts: IntArray


def count_before(queries: FloatArray, gallery: FloatArray, ranked: Sequence[RankedQuery]) -> Counts:
    """Count the irrelevant images before each relevant one.

    Args:
        queries: ``(Q, E)`` float32, finite.
        gallery: ``(G, E)`` float32, finite; it may be ``queries``.
        ranked: Relevant and hidden rows of each query.

    Raises:
        InputError: A row is too long.
    """
    num_relevant = np.array([len(one.relevant) for one in ranked], dtype=np.int64)
    with_any = np.flatnonzero(num_relevant)
    with_any = with_any[np.argsort(num_relevant[with_any], kind="stable")]  # one group size serves similar numbers
    num_few = np.count_nonzero(num_relevant[with_any] <= max_wanted(len(gallery)))
    few, many = with_any[:num_few], with_any[num_few:]
    parts = [Counts(few[:0], few[:0])]
    if len(gallery) >= MIN_GALLERY and len(few):
        grids = round_both(queries, gallery)
        known = RowLists.of_lists([np.concatenate(one) for one in ranked])

        def count(maxima: Maxima) -> npt.NDArray[np.bool_]:
            counts, is_left = _count_fast(maxima, ranked, grids)
            parts.append(counts)
            return is_left

        query_set = QuerySet(queries, gallery, num_relevant, known)
        few = compare_by_products(query_set, few, count, may_load_torch=True)
    parts.extend(_count_all(np.concatenate([few, many]), queries, gallery, ranked))
    owners, num_before = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(owners, kind="stable")
    return Counts(owners[order], num_before[order])


def _count_all(
    chosen: IntArray,
    queries: FloatArray,
    gallery: FloatArray,
    ranked: Sequence[RankedQuery],
) -> Iterator[Counts]:
    """Compare everything by the definition, which the fast path must equal."""
    if not len(chosen):
        return
    for chunk, block in similarity_chunks(queries[chosen], gallery):
        for query, similarities in zip(chosen[chunk], block, strict=True):
            relevant, hidden = ranked[query]
            found = np.sort(similarities[relevant])[::-1]
            similarities[relevant] = similarities[hidden] = -np.inf
            # Only the R nearest irrelevant images can stand before one that is among the first R.
            num_below = len(gallery) - len(relevant)
            nearest = np.sort(np.partition(similarities, num_below)[num_below:]) if num_below else np.sort(similarities)
            num_before = len(nearest) - np.searchsorted(nearest, found, side="left")
            num_before[0] = np.count_nonzero(similarities >= found[0])
            yield Counts(np.full(len(found), query), num_before)


def _count_fast(
    maxima: Maxima, ranked: Sequence[RankedQuery], grids: tuple[GridRows, GridRows]
) -> tuple[Counts, npt.NDArray[np.bool_]]:
    """Count for some queries, of which relevant and hidden rows are hidden, by a bounded product.

    Returns:
        The counts of the queries that are done, and ``(q,)`` whether a query is left open.
    """
    chosen = maxima.chosen
    relevant = _compare_relevant(chosen, [ranked[query].relevant for query in chosen], grids)
    num_wanted = int(relevant.counts.max())
    best = relevant.similarities[relevant.starts].astype(np.float64)
    worst = relevant.similarities[relevant.starts + relevant.counts - 1]
    # At least R irrelevant images reach this similarity: relevant ones below it are out of reach.
    reached = maxima.reach(num_wanted)
    pairs = maxima.find_pairs(np.minimum(best, np.maximum(worst, reached)), best, MAX_OPEN + 10 * num_wanted)
    similarities = pair_similarities(*grids, chosen[pairs.owners], pairs.rows)
    num_before = pairs.num_above[relevant.owners] + _count_pairs(pairs.owners, similarities, relevant)
    is_done = ~pairs.is_left[relevant.owners]
    return Counts(chosen[relevant.owners[is_done]], num_before[is_done]), pairs.is_left


def _compare_relevant(chosen: IntArray, rows: Sequence[IntArray], grids: tuple[GridRows, GridRows]) -> _Relevant:
    owners, pair_rows = RowLists.of_lists(rows).take(np.arange(len(rows)))
    similarities = pair_similarities(*grids, chosen[owners], pair_rows)
    similarities = similarities[np.argsort(nearest_first_keys(owners, similarities))]
    counts = np.bincount(owners, minlength=len(chosen))
    return _Relevant(owners, similarities, np.cumsum(counts) - counts, counts)


def _count_pairs(owners: IntArray, similarities: FloatArray, relevant: _Relevant) -> IntArray:
    """Count, for each relevant image, the listed pairs of its query that are at least as similar: ``(P,)``."""
    keys = np.sort(nearest_first_keys(owners, similarities))
    num_upto = np.searchsorted(keys, nearest_first_keys(relevant.owners, relevant.similarities), side="right")
    return num_upto - np.searchsorted(owners, relevant.owners, side="left")
