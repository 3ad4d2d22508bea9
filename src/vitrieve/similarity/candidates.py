"""Which pairs of a block of results deserve a look: those in groups of columns whose largest result is large enough.

Next: ``nearest.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vitrieve.similarity.definition import IntArray
from vitrieve.similarity.product import MAX_GROUP_SIZE, Groups, Product, Results

RESULT_BYTES = 320 * 2**20
"""Memory for the results of the queries that are multiplied at a time."""
MAX_QUERIES = 1024
"""Queries multiplied at a time at most: larger products are no faster."""
GROUP_SIZES = (MAX_GROUP_SIZE, 32, 16, 8, 4)
"""Columns of which only the largest result is looked at, unless it is large enough to open the group."""
GROUPS_PER_NEIGHBOUR = 8
"""So many groups at least for each neighbour that is wanted: then few groups hold two, and the estimate is close."""
PLACE_BITS = 32
"""A pair is one integer, to be sorted: the query's place above so many bits for the gallery row."""
OPEN_GROUPS = 2**16
"""Open groups looked through at a time."""


class OpenPairs(NamedTuple):
    """Pairs that the product leaves open.

    Attributes:
        places: ``(P,)`` int64 places of the queries, rising; under one query the rows rise.
        rows: ``(P,)`` int64 gallery rows.
    """

    places: IntArray
    rows: IntArray


def max_wanted(num_gallery: int) -> int:
    """Return the most neighbours of a query that groups help to find: for more, comparing everything costs no more."""
    return num_gallery // (GROUPS_PER_NEIGHBOUR * GROUP_SIZES[-1])


def choose_group_size(num_wanted: int, num_gallery: int) -> int:
    """Return the columns of a group for ``num_wanted`` neighbours of a query, at most ``max_wanted``."""
    return next(size for size in GROUP_SIZES if num_gallery >= GROUPS_PER_NEIGHBOUR * num_wanted * size)


def split_queries(places: IntArray, product: Product, num_gallery: int, chunk_size: int | None) -> Iterator[IntArray]:
    """Yield as many places of queries at a time as memory allows, or ``chunk_size``."""
    size = chunk_size or max(1, min(MAX_QUERIES, RESULT_BYTES // (product.result_bytes * max(1, num_gallery))))
    for start in range(0, len(places), size):
        yield places[start : start + size]


def kth_largest(values: Results, k: int) -> Results:
    """Return the ``k``-th largest of each row."""
    place = values.shape[1] - k
    found: Results = np.partition(values, place, axis=1)[:, place]
    return found


def find_open_pairs(
    groups: Groups, floors: Results, ceilings: Results, max_pairs: int
) -> tuple[OpenPairs, IntArray, npt.NDArray[np.bool_]]:
    """List the pairs from the floor of their query to below its ceiling, and count those from the ceiling on.

    Args:
        groups: Of a block of results, of Q queries.
        floors: ``(Q,)``.
        ceilings: ``(Q,)``.
        max_pairs: Of a query with more open pairs than this, nothing is listed.

    Returns:
        The pairs, ``(Q,)`` how many results reach the ceiling, and ``(Q,)`` whether there are too many open pairs.
    """
    num_queries, num_groups = groups.maxima.shape
    open_groups = np.flatnonzero(groups.maxima >= floors[:, None])  # of all queries
    num_above = np.zeros(num_queries, dtype=np.int64)
    num_open = np.zeros(num_queries, dtype=np.int64)
    parts = [np.empty(0, dtype=np.int64)]
    for start in range(0, len(open_groups), OPEN_GROUPS):
        places, columns = np.divmod(open_groups[start : start + OPEN_GROUPS], num_groups)
        members = groups.members[places, columns]
        is_above = members >= ceilings[places, None]
        is_open = (members >= floors[places, None]) & ~is_above
        num_above += _sum_by_place(places, is_above, num_queries)
        num_open += _sum_by_place(places, is_open, num_queries)
        is_open[num_open[places] > max_pairs] = False
        group, member = np.divmod(np.flatnonzero(is_open), is_open.shape[1])
        parts.append((places[group] << PLACE_BITS) | groups.rows[columns[group], member])
    is_too_many = num_open > max_pairs
    pairs = np.sort(np.concatenate(parts))  # the rows of a group need not be neighbours
    found = OpenPairs(pairs >> PLACE_BITS, pairs & (2**PLACE_BITS - 1))
    is_kept = ~is_too_many[found.places]  # a query may be too many only after its first pairs were listed
    return OpenPairs(found.places[is_kept], found.rows[is_kept]), num_above, is_too_many


def _sum_by_place(places: IntArray, chosen: npt.NDArray[np.bool_], num_queries: int) -> IntArray:
    return np.bincount(places, np.count_nonzero(chosen, axis=1), num_queries).astype(np.int64)
