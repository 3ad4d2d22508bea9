"""Which pairs of a block of results deserve a look: those in groups of columns whose largest result is large enough.

Next: ``symmetric.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vitrieve.similarity.definition import IntArray
from vitrieve.similarity.product import MAX_GROUP_SIZE, Bounds, Groups, Product, Results

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


class PairLists(NamedTuple):
    """Lists of rows, one a query.

    Attributes:
        starts: ``(Q + 1,)`` int64: the list of query q goes from ``starts[q]`` to before ``starts[q + 1]``.
        rows: int64 gallery rows, list after list.
    """

    starts: IntArray
    rows: IntArray

    @classmethod
    def of_lists(cls, lists: Sequence[IntArray]) -> PairLists:
        """Store lists one after the other."""
        starts = np.cumsum([0, *(len(one) for one in lists)], dtype=np.int64)
        return cls(starts, np.concatenate([np.empty(0, dtype=np.int64), *lists]))

    @classmethod
    def of_pairs(cls, places: IntArray, rows: IntArray, num_queries: int) -> PairLists:
        """Sort pairs into lists."""
        starts = np.concatenate([[0], np.cumsum(np.bincount(places, minlength=num_queries))]).astype(np.int64)
        return cls(starts, rows[np.argsort(places, kind="stable")])

    def take(self, places: IntArray) -> tuple[IntArray, IntArray]:
        """Return the pairs of some queries: where each query stands in ``places``, and the row."""
        lengths = self.starts[places + 1] - self.starts[places]
        owners = np.repeat(np.arange(len(places)), lengths)
        firsts = self.starts[places] - np.cumsum(lengths) + lengths
        return owners, self.rows[np.arange(len(owners)) + firsts[owners]]

    def lists(self) -> list[IntArray]:
        """Return the list of each query."""
        return np.split(self.rows, self.starts[1:-1])


class OpenPairs(NamedTuple):
    """Pairs that the product leaves open.

    Attributes:
        places: ``(P,)`` int64 places of the queries, rising; under one query the rows rise.
        rows: ``(P,)`` int64 gallery rows.
    """

    places: IntArray
    rows: IntArray


class Look(NamedTuple):
    """What a product tells of some queries.

    Attributes:
        places: ``(Q,)`` int64: which queries.
        product: What the results are of.
        bounds: Of the Q queries.
        kth_largest: Returns ``(Q,)`` the k-th largest of the maxima of groups of gallery rows.
        find_open_pairs: Given floors, ceilings and the most pairs of a query, returns what ``find_open_pairs`` does.
    """

    places: IntArray
    product: Product
    bounds: Bounds
    kth_largest: Callable[[int], Results]
    find_open_pairs: Callable[[Results, Results, int], tuple[OpenPairs, IntArray, npt.NDArray[np.bool_]]]


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
        As ``Tally.finish``.
    """
    tally = Tally(floors, ceilings, max_pairs)
    open_groups = np.flatnonzero(groups.maxima >= floors[:, None])  # of all queries
    for start in range(0, len(open_groups), OPEN_GROUPS):
        places, columns = np.divmod(open_groups[start : start + OPEN_GROUPS], groups.maxima.shape[1])
        tally.add(places, groups.members[places, columns], groups.rows[columns])
    return tally.finish()


class Tally:
    """Collects open pairs from the results of open groups."""

    def __init__(self, floors: Results, ceilings: Results, max_pairs: int) -> None:
        """Begin; the arguments are those of ``find_open_pairs``."""
        self._floors, self._ceilings, self._max_pairs = floors, ceilings, max_pairs
        self._num_above = np.zeros(len(floors), dtype=np.int64)
        self._num_open = np.zeros(len(floors), dtype=np.int64)
        self._parts = [np.empty(0, dtype=np.int64)]

    def add(self, places: IntArray, results: Results, rows: IntArray) -> None:
        """Look through open groups.

        Args:
            places: ``(B,)`` the query of each.
            results: ``(B, S)`` the results of its S members.
            rows: ``(B, S)`` or ``(1, S)`` gallery rows of the members.
        """
        is_above = results >= self._ceilings[places, None]
        is_open = (results >= self._floors[places, None]) & ~is_above
        np.add.at(self._num_above, places, np.count_nonzero(is_above, axis=1))
        np.add.at(self._num_open, places, np.count_nonzero(is_open, axis=1))
        is_open[self._num_open[places] > self._max_pairs] = False
        group, member = np.divmod(np.flatnonzero(is_open), is_open.shape[1])
        self._parts.append((places[group] << PLACE_BITS) | np.broadcast_to(rows, results.shape)[group, member])

    def finish(self) -> tuple[OpenPairs, IntArray, npt.NDArray[np.bool_]]:
        """Return the pairs, ``(Q,)`` how many results reach the ceiling, and ``(Q,)`` whether too many are open."""
        is_too_many = self._num_open > self._max_pairs
        pairs = np.sort(np.concatenate(self._parts))  # the rows of a group need not be neighbours
        found = OpenPairs(pairs >> PLACE_BITS, pairs & (2**PLACE_BITS - 1))
        is_kept = ~is_too_many[found.places]  # a query may be too many only after its first pairs were listed
        return OpenPairs(found.places[is_kept], found.rows[is_kept]), self._num_above, is_too_many
