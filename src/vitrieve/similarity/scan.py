"""Look through the results of a product, a block of the gallery at a time, opening only groups that matter.

Next: ``nearest.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from vitrieve.similarity.definition import IntArray
from vitrieve.similarity.product import BLOCK_WIDTH, Product, Results

GROUP_SIZES = (64, 32, 16, 8)
"""Neighbouring columns of which only the largest result is looked at, unless it is large enough to open the group."""
GROUPS_PER_NEIGHBOUR = 4
"""So many groups at least for each neighbour that is wanted of a block."""


class OpenPairs(NamedTuple):
    """Pairs whose result reaches the floor of their query.

    Attributes:
        places: ``(P,)`` int64 places of the queries, rising; under one query the rows rise.
        rows: ``(P,)`` int64 gallery rows.
        results: ``(P,)`` of the product.
    """

    places: IntArray
    rows: IntArray
    results: Results


def choose_group_size(num_wanted: int, num_gallery: int) -> int | None:
    """Return the columns of a group for ``num_wanted`` neighbours of a query; None: too many to gain by groups.

    Args:
        num_wanted: Neighbours.
        num_gallery: Gallery rows.
    """
    width = min(BLOCK_WIDTH, num_gallery)
    fitting = [size for size in GROUP_SIZES if width >= GROUPS_PER_NEIGHBOUR * num_wanted * size]
    return fitting[0] if fitting else None


def scan_blocks(product: Product, group_size: int) -> Iterator[tuple[slice, Results]]:
    """Multiply the queries that the product has been given with one block of the gallery after another.

    Args:
        product: After ``start``.
        group_size: Columns of a group.

    Yields:
        The gallery rows, and their results, padded with hidden columns to whole groups. The user may change them.
    """
    for start in range(0, product.num_gallery, BLOCK_WIDTH):
        columns = slice(start, min(start + BLOCK_WIDTH, product.num_gallery))
        results = product.multiply(columns)
        num_missing = -results.shape[1] % group_size
        if num_missing:
            results = np.pad(results, ((0, 0), (0, num_missing)), constant_values=product.hidden)
        yield columns, results


def open_groups(
    results: Results, maxima: Results, floors: Results, first_row: int, num_found: IntArray, max_found: int
) -> tuple[OpenPairs, IntArray]:
    """Find the results that are not below the floor of their query.

    Args:
        results: ``(Q, C)``.
        maxima: ``(Q, C / group size)`` of the same.
        floors: ``(Q,)`` of the same type.
        first_row: The gallery row of the first column.
        num_found: ``(Q,)`` pairs of each query in the blocks before.
        max_found: A query with more pairs than this is counted, but not listed.

    Returns:
        The pairs, and ``num_found`` with them.
    """
    num_queries, num_groups = maxima.shape
    group_size = results.shape[1] // num_groups
    groups = np.flatnonzero(maxima >= floors[:, None])  # of all queries
    members = results.reshape(-1, group_size)[groups]  # (open groups, group size)
    is_found = members >= floors[groups // num_groups, None]
    num_in_group = np.count_nonzero(is_found, axis=1)
    num_found = num_found + np.bincount(groups // num_groups, num_in_group, num_queries).astype(np.int64)
    is_found[num_found[groups // num_groups] > max_found] = False
    found = np.flatnonzero(is_found)
    places, groups_of_query = np.divmod(groups[found // group_size], num_groups)
    rows = first_row + groups_of_query * group_size + found % group_size
    return OpenPairs(places, rows, members.reshape(-1)[found]), num_found


def join_pairs(parts: list[OpenPairs]) -> OpenPairs:
    """Join the pairs of successive blocks, ordered by query, then by row."""
    joined = OpenPairs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    return take_pairs(joined, np.argsort(joined.places, kind="stable"))


def take_pairs(pairs: OpenPairs, chosen: np.ndarray) -> OpenPairs:
    """Take some of the pairs, by a mask or by places."""
    return OpenPairs(pairs.places[chosen], pairs.rows[chosen], pairs.results[chosen])
