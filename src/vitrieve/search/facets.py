"""How often each value of a metadata column occurs, among all images or those that pass a filter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from vitrieve.index.filter import (
    ColumnKind,
    ColumnTest,
    FilterLike,
    name_kind,
    read_number,
    require_column,
    resolve_filter,
    spell_number,
)
from vitrieve.index.store import TextBlock, VectorStore

MAX_DIFFERENT = 500
"""A column of texts with more different values, such as one of names, is no facet."""


@dataclass(frozen=True, kw_only=True)
class ValueCounts:
    """The values of a metadata column.

    Attributes:
        values: Value and number of images, the most frequent first, equal ones by the value.
        num_values: Number of different values, of which ``values`` may hold the first only.
        num_images: Number of images that pass the filter.
        num_without: Number of those that have no value in the column.
    """

    values: tuple[tuple[str, int], ...]
    num_values: int
    num_images: int
    num_without: int


@dataclass(frozen=True, kw_only=True)
class Facet:
    """A metadata column by which the images can be narrowed down.

    Attributes:
        column: Its name.
        kind: Its kind, by the values of the whole index.
        values: Value and number of images, the most frequent first, equal ones by the value; at most as many as were
            asked for.
        num_values: Number of different values; of a column of numbers or dates with more than ``MAX_DIFFERENT``, 0.
        num_without: Number of images without a value.
        least: The least number or date; None in other columns, and where no image has a value.
        most: The greatest number or date; likewise.
    """

    column: str
    kind: ColumnKind
    values: tuple[tuple[str, int], ...]
    num_values: int
    num_without: int
    least: str | None
    most: str | None


def count_values(store: VectorStore, column: str, *, filter: FilterLike = (), num_values: int = 50) -> ValueCounts:
    """Count the values of a column.

    It reads the texts of all images once, block by block, so it belongs into a worker.

    Args:
        store: The index.
        column: Metadata column.
        filter: Conditions that the counted images meet.
        num_values: Most values to return.

    Raises:
        InputError: An unknown column, or a condition that does not fit its column.
    """
    columns = store.columns()
    require_column(column, columns)
    counted = _Counted(column)
    num_images = _read(store, [counted], resolve_filter(filter, columns, store.kinds))
    return ValueCounts(
        values=counted.rank(num_values),
        num_values=len(counted.counts),
        num_images=num_images,
        num_without=num_images - counted.num_with,
    )


def find_facets(store: VectorStore, *, filter: FilterLike = (), num_values: int = 50) -> tuple[Facet, ...]:
    """Find the columns by which images can be narrowed down, with their values; in a worker, as ``count_values``.

    Args:
        store: The index.
        filter: Conditions that the counted images meet.
        num_values: Most values of a column to return.

    Returns:
        Facets by the names of their columns. Columns of texts with more than ``MAX_DIFFERENT`` values are left out, and
        so are columns in which no image that passes has a value.

    Raises:
        InputError: A condition on an unknown column, or one that does not fit its column.
    """
    columns = store.columns()
    tests = resolve_filter(filter, columns, store.kinds)
    if not columns:
        return ()
    kinds = {column: name_kind(found) for column, found in store.kinds(columns).items()}
    counted = [_Counted(column, kind=kinds[column], max_different=MAX_DIFFERENT) for column in columns]
    num_images = _read(store, counted, tests)
    return tuple(
        Facet(
            column=one.column,
            kind=kinds[one.column],
            values=one.rank(num_values),
            num_values=len(one.counts),
            num_without=num_images - one.num_with,
            least=one.least,
            most=one.most,
        )
        for one in counted
        if one.num_with and (one.counts or one.least is not None)
    )


class _Counted:
    """The values of one column, as they are read.

    Args:
        column: Its name.
        kind: Its kind; of numbers and dates the least and the greatest are found, too.
        max_different: Different values after which none is counted any longer; None: any number.
    """

    def __init__(self, column: str, *, kind: ColumnKind = "text", max_different: int | None = None) -> None:
        self.column = column
        self.counts: Counter[str] = Counter()
        self.num_with = 0
        self.least: str | None = None
        self.most: str | None = None
        self._kind = kind
        self._max_different = max_different
        self._has_too_many = False

    def add(self, texts: pa.Array) -> None:
        """Count the values of some images; null where an image has none."""
        found = {one["values"].as_py(): one["counts"].as_py() for one in texts.value_counts()}
        found.pop(None, None)
        self.num_with += sum(found.values())
        if found and self._kind in ("number", "date"):
            self._widen(found)
        if not self._has_too_many:
            self.counts.update(found)
        if self._max_different is not None and len(self.counts) > self._max_different:
            self._has_too_many = True
            self.counts.clear()

    def _widen(self, values: Iterable[str]) -> None:
        """Widen the span of numbers or dates."""
        known = [value for value in (*values, self.least, self.most) if value]
        if self._kind == "date":
            self.least, self.most = min(known), max(known)
            return
        numbers = [number for number in map(read_number, known) if number is not None]
        if numbers:
            self.least, self.most = spell_number(min(numbers)), spell_number(max(numbers))

    def rank(self, num_values: int) -> tuple[tuple[str, int], ...]:
        """Rank the values: the most frequent first, equal ones by the value."""
        return tuple(sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:num_values])


def _read(store: VectorStore, columns: Sequence[_Counted], tests: tuple[ColumnTest, ...]) -> int:
    """Count in one reading of the texts; return the number of images that pass."""
    num_images = 0
    for block in store.read_texts():
        passing = _find_passing(block, tests)
        num_images += int(np.count_nonzero(passing))
        for counted in columns:
            texts = block.columns.get(counted.column)
            if texts is not None:
                counted.add(texts.filter(pa.array(passing)))
    return num_images


def _find_passing(block: TextBlock, tests: tuple[ColumnTest, ...]) -> np.ndarray:
    """Say which images of a block pass: ``(n,)`` bool. Each different value is looked at once."""
    passing = np.ones(len(block.image_ids), bool)
    for test in tests:
        texts = block.columns.get(test.column)
        if texts is None:
            passing &= test.holds(None)
            continue
        if isinstance(texts, pa.ChunkedArray):
            texts = texts.combine_chunks()
        encoded = texts.dictionary_encode() if not pa.types.is_dictionary(texts.type) else texts
        holds = np.array([*map(test.holds, encoded.dictionary.to_pylist()), test.holds(None)], bool)
        passing &= holds[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
    return passing
