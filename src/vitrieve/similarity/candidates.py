"""Which pairs of a block of results deserve a look: those in groups of columns whose largest result is large enough.

Next: ``nearest.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vitrieve.similarity.definition import IntArray
from vitrieve.similarity.product import MAX_GROUP_SIZE, Product, Results

RESULT_BYTES = 320 * 2**20
"""Memory for the results of the queries that are multiplied at a time."""
MAX_QUERIES = 1024
"""Queries multiplied at a time at most: larger products are no faster."""
GROUP_SIZES = (MAX_GROUP_SIZE, 32, 16, 8, 4)
"""Neighbouring columns of which only the largest result is looked at, unless it is large enough to open the group."""
GROUPS_PER_NEIGHBOUR = 8
"""So many groups at least for each neighbour that is wanted: then few groups hold two, and the estimate is close."""
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


def choose_group_size(num_wanted: int, num_gallery: int) -> int | None:
    """Return the columns of a group for ``num_wanted`` neighbours of a query; None: too many to gain by groups.

    Args:
        num_wanted: Neighbours.
        num_gallery: Gallery rows.
    """
    fitting = [size for size in GROUP_SIZES if num_gallery >= GROUPS_PER_NEIGHBOUR * num_wanted * size]
    return fitting[0] if fitting else None


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
    results: Results, maxima: Results, floors: Results, ceilings: Results, max_pairs: int
) -> tuple[OpenPairs, IntArray, npt.NDArray[np.bool_]]:
    """List the pairs from the floor of their query to below its ceiling, and count those from the ceiling on.

    Args:
        results: ``(Q, C)``.
        maxima: ``(Q, C / group size)`` of the same.
        floors: ``(Q,)``.
        ceilings: ``(Q,)``.
        max_pairs: Of a query with more open pairs than this, nothing is listed.

    Returns:
        The pairs, ``(Q,)`` how many results reach the ceiling, and ``(Q,)`` whether there are too many open pairs.
    """
    num_queries, num_groups = maxima.shape
    group_size = results.shape[1] // num_groups
    groups = np.flatnonzero(maxima >= floors[:, None])  # of all queries
    num_above = np.zeros(num_queries, dtype=np.int64)
    num_open = np.zeros(num_queries, dtype=np.int64)
    parts = []
    for start in range(0, len(groups), OPEN_GROUPS):
        places, columns = np.divmod(groups[start : start + OPEN_GROUPS], num_groups)
        members = results.reshape(-1, group_size)[groups[start : start + OPEN_GROUPS]]
        is_above = members >= ceilings[places, None]
        is_open = (members >= floors[places, None]) & ~is_above
        num_above += _sum_by_place(places, is_above, num_queries)
        num_open += _sum_by_place(places, is_open, num_queries)
        is_open[num_open[places] > max_pairs] = False
        found = np.flatnonzero(is_open)
        group, member = np.divmod(found, group_size)
        parts.append(OpenPairs(places[group], columns[group] * group_size + member))
    is_too_many = num_open > max_pairs
    pairs = (
        OpenPairs(*(np.concatenate(one) for one in zip(*parts, strict=True))) if parts else OpenPairs(groups, groups)
    )
    is_kept = ~is_too_many[pairs.places]  # a query may be too many only after its first pairs were listed
    return OpenPairs(pairs.places[is_kept], pairs.rows[is_kept]), num_above, is_too_many


def _sum_by_place(places: IntArray, chosen: npt.NDArray[np.bool_], num_queries: int) -> IntArray:
    return np.bincount(places, np.count_nonzero(chosen, axis=1), num_queries).astype(np.int64)
