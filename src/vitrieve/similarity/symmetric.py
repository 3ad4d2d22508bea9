"""A collection against itself in float32: each product once, for both of its rows.

Where float32 is the fastest that can be had, the product is nearly all of the time, and half of it is computed twice:
x . y and y . x. Here a tile of results serves its rows and its columns. It is not kept; only the largest result of
every group of rows is, for every query, which is enough to know which groups a query opens. Their few results are
computed once more, those of a group for all queries that open it. Each of the two is within the bound of
``product.py``, whatever the order of their sums, and more is not asked of them.

The groups are the same for every query: the rows of a panel that are equal modulo ``PANEL_GROUPS``, so that whole rows
of a tile, and whole stretches of them, are compared with each other.

Next: ``ways.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrieve.similarity.candidates import (
    GROUP_SIZES,
    GROUPS_PER_NEIGHBOUR,
    Look,
    OpenPairs,
    PairLists,
    Tally,
    kth_largest,
)
from vitrieve.similarity.definition import FloatArray, IntArray
from vitrieve.similarity.product import Float32Product

PANEL_GROUPS = 64
"""Groups of a panel; a power of two, as the sizes of groups, strips and tiles are."""
STRIP_ROWS = 1024
"""Rows of a tile at most."""
TILE_COLUMNS = 4096
"""Columns of a tile: 16 MiB with as many rows."""
COMPARED_ROWS = 128
"""Rows of a tile that are compared at a time: few enough to stay in the cache."""
MAXIMA_BYTES = 256 * 2**20
"""Memory for the maxima: of larger collections the groups are larger."""
MAX_GROUP_SIZE = 1024
"""A query computes some ten groups again: larger ones would cost more than is saved."""
LOOKED_QUERIES = 2**14
"""Queries looked at at a time: so many that each group is opened by hundreds of them."""
ORDERED_QUERIES = 256
"""Queries whose maxima are copied at a time."""


class SymmetricProduct:
    """The products of a collection with itself, by groups."""

    def __init__(self, rows: FloatArray, product: Float32Product, group_size: int, hidden: PairLists) -> None:
        """Multiply: half of all pairs.

        Args:
            rows: ``(N, E)`` float32.
            product: Of ``rows``: what its results are worth.
            group_size: As ``choose_symmetric_size`` says.
            hidden: Pairs that are not to be found.
        """
        self._rows, self._product, self._group_size, self._hidden = rows, product, group_size, hidden
        self._panel_rows = PANEL_GROUPS * group_size
        num_columns = -(-len(rows) // TILE_COLUMNS) * TILE_COLUMNS  # of whole tiles
        num_groups = PANEL_GROUPS * -(-num_columns // self._panel_rows)
        self._maxima = np.full((num_groups, len(rows)), product.hidden, dtype=np.float32)
        self._multiply()

    def looks(self, places: IntArray) -> Iterator[Look]:
        """Look at some queries.

        Raises:
            InputError: A query that is too long.
        """
        for start in range(0, len(places), LOOKED_QUERIES):
            chosen = places[start : start + LOOKED_QUERIES]
            bounds = self._product.measure(self._rows[chosen])
            yield Look(
                chosen,
                self._product,
                bounds,
                partial(self._kth_largest, chosen),
                partial(self._find_open_pairs, chosen),
            )

    def _multiply(self) -> None:
        """Compute the maxima, tile by tile: a strip of rows with all columns from its own first on."""
        num_rows, strip_rows = len(self._rows), min(STRIP_ROWS, self._panel_rows)
        buffer = np.empty((strip_rows, TILE_COLUMNS), dtype=np.float32)
        places, rows = self._hidden.take(np.arange(num_rows))
        is_mirrored = rows // strip_rows < places // strip_rows  # then the result stands in the column of the query
        mirrored = PairLists.of_pairs(rows[is_mirrored], places[is_mirrored], num_rows)
        for start in range(0, num_rows, strip_rows):
            strip = slice(start, min(start + strip_rows, num_rows))
            numbers = np.arange(strip.start, strip.stop)
            hidden_in_rows, hidden_in_columns = self._hidden.take(numbers), mirrored.take(numbers)
            for first in range(start // TILE_COLUMNS * TILE_COLUMNS, num_rows, TILE_COLUMNS):
                columns = slice(max(first, start), min(first + TILE_COLUMNS, num_rows))
                results = buffer[: strip.stop - start]
                results[:, : columns.start - first] = self._product.hidden
                results[:, columns.stop - first :] = self._product.hidden
                tile = results[:, columns.start - first : columns.stop - first]
                np.matmul(self._rows[strip], self._rows[columns].T, out=tile)
                with _hiding(tile, hidden_in_columns, columns, self._product.hidden):
                    self._keep_largest_of_columns(tile, strip, columns)
                with _hiding(tile, hidden_in_rows, columns, self._product.hidden):
                    self._keep_largest_of_rows(results, strip, first)

    def _keep_largest_of_columns(self, tile: FloatArray, strip: slice, columns: slice) -> None:
        """Compare the rows of a tile that are in one group, for the queries behind the strip."""
        behind = slice(max(columns.start, strip.stop), columns.stop)
        if behind.start < behind.stop:  # then the strip is whole
            members = tile[:, behind.start - columns.start :].reshape(-1, PANEL_GROUPS, behind.stop - behind.start)
            first = self._group_of(strip.start)
            kept = self._maxima[first : first + PANEL_GROUPS, behind]
            np.maximum(kept, members.max(axis=0), out=kept)

    def _keep_largest_of_rows(self, results: FloatArray, strip: slice, first: int) -> None:
        """Compare the columns of a tile that are in one group, for the queries of the strip."""
        first_group = self._group_of(first)
        for start in range(0, len(results), COMPARED_ROWS):
            some = results[start : start + COMPARED_ROWS]
            num_members = min(self._panel_rows, TILE_COLUMNS) // PANEL_GROUPS
            members = some.reshape(len(some), -1, num_members, PANEL_GROUPS)
            largest = members.max(axis=2).reshape(len(some), -1).T
            queries = slice(strip.start + start, strip.start + start + len(some))
            kept = self._maxima[first_group : first_group + len(largest), queries]
            np.maximum(kept, largest, out=kept)

    def _kth_largest(self, places: IntArray, k: int) -> FloatArray:
        parts = [places[start : start + ORDERED_QUERIES] for start in range(0, len(places), ORDERED_QUERIES)]
        return np.concatenate([kth_largest(np.ascontiguousarray(self._maxima[:, part].T), k) for part in parts])

    def _find_open_pairs(
        self, places: IntArray, floors: FloatArray, ceilings: FloatArray, max_pairs: int
    ) -> tuple[OpenPairs, IntArray, npt.NDArray[np.bool_]]:
        """List open pairs, as ``candidates.find_open_pairs``: multiply each group with all queries that open it."""
        tally = Tally(floors, ceilings, max_pairs)
        owners, hidden = self._hidden.take(places)
        hidden_by_group = PairLists.of_pairs(self._group_of(hidden), np.arange(len(hidden)), len(self._maxima)).lists()
        for group, maxima in enumerate(self._maxima):
            openers = np.flatnonzero(maxima[places] >= floors)
            if not len(openers):
                continue
            members = self._members(group)
            results = self._rows[places[openers]] @ self._rows[members].T
            pairs = hidden_by_group[group]
            if len(pairs):
                lines = np.minimum(np.searchsorted(openers, owners[pairs]), len(openers) - 1)
                is_here = openers[lines] == owners[pairs]
                columns = np.searchsorted(members, hidden[pairs])
                results[lines[is_here], columns[is_here]] = self._product.hidden
            tally.add(openers, results, members[None])
        return tally.finish()

    def _group_of(self, rows: Any) -> Any:
        """Return the group of each row, or of one."""
        return rows // self._panel_rows * PANEL_GROUPS + rows % PANEL_GROUPS

    def _members(self, group: int) -> IntArray:
        """Return the rows of a group."""
        panel, number = divmod(group, PANEL_GROUPS)
        first = panel * self._panel_rows
        return np.arange(first + number, min(first + self._panel_rows, len(self._rows)), PANEL_GROUPS)


def max_symmetric(num_rows: int) -> int:
    """Return the most neighbours that groups help to find in a collection of this size; 0: its maxima are too many."""
    size = _min_group_size(num_rows)
    return num_rows // (GROUPS_PER_NEIGHBOUR * size) if size <= MAX_GROUP_SIZE else 0


def choose_symmetric_size(num_wanted: int, num_rows: int) -> int:
    """Return the rows of a group for ``num_wanted`` neighbours of an image, at most ``max_symmetric``.

    Large groups cost where they are opened, and many groups where their maxima are kept and looked through: the former
    grows with the size, the latter with the rows divided by it.
    """
    size = _min_group_size(num_rows)
    while (4 * size) ** 2 < num_rows and num_rows >= GROUPS_PER_NEIGHBOUR * num_wanted * 2 * size:
        size *= 2
    return size


def _min_group_size(num_rows: int) -> int:
    size = GROUP_SIZES[-1]
    while MAXIMA_BYTES * size < 4 * num_rows * num_rows:
        size *= 2
    return size


@contextmanager
def _hiding(tile: FloatArray, pairs: tuple[IntArray, IntArray], columns: slice, hidden: float) -> Iterator[None]:
    """Hide pairs, lines of a tile and columns of the whole, for a while."""
    lines, rows = pairs
    is_here = (rows >= columns.start) & (rows < columns.stop)
    here = lines[is_here], rows[is_here] - columns.start
    kept = tile[here]
    tile[here] = hidden
    yield
    tile[here] = kept
