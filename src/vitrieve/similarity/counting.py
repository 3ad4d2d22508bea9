"""How many irrelevant images stand before each relevant one, by counting instead of sorting.

Recall@K, R-precision and MAP@R need no ranking, only these counts: ties count against the query, so an irrelevant
image stands before a relevant one when it is at least as similar. The relevant ones are few and compared exactly.
Against their similarities a bounded product (``product.py``) settles nearly all of the rest: what is surely nearer
than the best of them is counted, what is surely below all that matter is left out, and what is between is compared
exactly.

Of R relevant images, one with R irrelevant ones before it is not among the first R, whatever else stands before it.
So the R-th largest product, estimated by the maxima of groups of columns as in ``nearest.py``, bounds what matters;
only for the best relevant image, whose rank is wanted, everything before it is counted.

Next: ``artifacts.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vitrieve.similarity.candidates import Look, PairLists, max_wanted
from vitrieve.similarity.definition import (
    FloatArray,
    GridRows,
    IntArray,
    nearest_first_keys,
    pair_similarities,
    similarity_chunks,
)
from vitrieve.similarity.nearest import round_both
from vitrieve.similarity.ways import MIN_GALLERY, Task, choose_ways

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
        places: ``(P,)`` int64, the query of each.
        num_before: ``(P,)`` int64 irrelevant images at least as similar. Exact for the nearest of a query, and where
            fewer than the query's R stand before; else some number from R on.
    """

    places: IntArray
    num_before: IntArray


class _Relevant(NamedTuple):
    """Relevant images of a chunk of queries, as ``Counts`` orders them; every query has one.

    Attributes:
        places: ``(P,)`` places in the chunk.
        similarities: ``(P,)`` float32.
        starts: ``(q,)`` the first of each query.
        counts: ``(q,)`` how many each query has.
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
    with_any = np.flatnonzero(num_relevant)
    with_any = with_any[np.argsort(num_relevant[with_any], kind="stable")]  # one group size serves similar numbers
    num_few = np.count_nonzero(num_relevant[with_any] <= max_wanted(len(gallery)))
    few = with_any[:num_few]
    parts = [Counts(few[:0], few[:0])]
    is_left = np.ones(len(queries), dtype=bool)
    if len(gallery) >= MIN_GALLERY and len(few):
        grids = round_both(queries, gallery)
        known = PairLists.of_lists([np.concatenate(one) for one in ranked])
        task = Task(queries, gallery, num_relevant, known)
        for way in choose_ways(task, few, chunk_size=chunk_size, may_load_torch=True):
            for look in way(few[is_left[few]]):
                counts, is_open = _count_fast(look, ranked, grids)
                parts.append(counts)
                is_left[look.places[~is_open]] = False
            if not is_left[few].any():
                break
    parts.extend(_count_all(with_any[is_left[with_any]], queries, gallery, ranked, chunk_size))
    places, num_before = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(places, kind="stable")
    return Counts(places[order], num_before[order])


def _count_all(
    places: IntArray,
    queries: FloatArray,
    gallery: FloatArray,
    ranked: Sequence[RankedQuery],
    chunk_size: int | None,
) -> Iterator[Counts]:
    """Compare everything: the definition, and what the fast way must equal."""
    if not len(places):
        return
    for chunk, block in similarity_chunks(queries[places], gallery, chunk_size=chunk_size):
        for place, similarities in zip(places[chunk], block, strict=True):
            relevant, hidden = ranked[place]
            found = np.sort(similarities[relevant])[::-1]
            similarities[relevant] = similarities[hidden] = -np.inf
            # Only the R nearest irrelevant images can stand before one that is among the first R.
            num_below = len(gallery) - len(relevant)
            nearest = np.sort(np.partition(similarities, num_below)[num_below:]) if num_below else np.sort(similarities)
            num_before = len(nearest) - np.searchsorted(nearest, found, side="left")
            num_before[0] = np.count_nonzero(similarities >= found[0])
            yield Counts(np.full(len(found), place), num_before)


def _count_fast(
    look: Look, ranked: Sequence[RankedQuery], grids: tuple[GridRows, GridRows]
) -> tuple[Counts, npt.NDArray[np.bool_]]:
    """Count for some queries, of which relevant and hidden rows are hidden, by a bounded product.

    Returns:
        The counts of those that are settled, and ``(q,)`` whether a query is left open.
    """
    places, product, bounds = look.places, look.product, look.bounds
    relevant = _compare_relevant(places, [ranked[place].relevant for place in places], grids)
    num_wanted = int(relevant.counts.max())
    # At least R irrelevant images reach this similarity: relevant ones below it are out of reach.
    reached = product.lower(look.kth_largest(num_wanted)) - bounds.errors
    best = relevant.similarities[relevant.starts] - bounds.offsets
    worst = relevant.similarities[relevant.starts + relevant.counts - 1] - bounds.offsets
    floors = product.floor(np.minimum(best, np.maximum(worst, reached)) - bounds.errors)
    is_unordered = floors < product.lowest
    floors[is_unordered] = product.top
    ceilings = product.ceiling(best + bounds.errors)
    pairs, num_above, is_too_many = look.find_open_pairs(floors, ceilings, MAX_OPEN + 10 * num_wanted)
    similarities = pair_similarities(*grids, places[pairs.places], pairs.rows)
    num_before = num_above[relevant.places] + _count_pairs(pairs.places, similarities, relevant)
    is_open = is_too_many | is_unordered
    is_settled = ~is_open[relevant.places]
    return Counts(places[relevant.places[is_settled]], num_before[is_settled]), is_open


def _compare_relevant(places: IntArray, rows: Sequence[IntArray], grids: tuple[GridRows, GridRows]) -> _Relevant:
    own_places, pair_rows = PairLists.of_lists(rows).take(np.arange(len(rows)))
    similarities = pair_similarities(*grids, places[own_places], pair_rows)
    similarities = similarities[np.argsort(nearest_first_keys(own_places, similarities))]
    counts = np.bincount(own_places, minlength=len(places))
    return _Relevant(own_places, similarities, np.cumsum(counts) - counts, counts)


def _count_pairs(places: IntArray, similarities: FloatArray, relevant: _Relevant) -> IntArray:
    """Count, for each relevant image, the listed pairs of its query that are at least as similar: ``(P,)``."""
    keys = np.sort(nearest_first_keys(places, similarities))
    num_upto = np.searchsorted(keys, nearest_first_keys(relevant.places, relevant.similarities), side="right")
    return num_upto - np.searchsorted(places, relevant.places, side="left")
