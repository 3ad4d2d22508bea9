"""How often each value of a metadata column occurs, among all images or those that pass a filter."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from vitrieve.errors import InputError, unknown_name_message
from vitrieve.index.filter import ColumnTest, FilterLike, resolve_filter
from vitrieve.index.store import TextBlock, VectorStore


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


def count_values(store: VectorStore, column: str, *, filter: FilterLike = (), num_values: int = 50) -> ValueCounts:
    """Count the values of a column; the one function behind every list of facets (service, page, MCP).

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
    if not columns:
        raise InputError("the images of this index have no metadata, so there is nothing to count.")
    if column not in columns:
        raise InputError(unknown_name_message("metadata column", column, columns))
    tests = resolve_filter(filter, columns, store.kinds)
    counts: Counter[str] = Counter()
    num_images = 0
    for block in store.read_texts():
        passing = _find_passing(block, tests)
        num_images += int(np.count_nonzero(passing))
        texts = block.columns.get(column)
        if texts is None:
            continue
        for one in texts.filter(pa.array(passing)).value_counts():
            if (value := one["values"].as_py()) is not None:
                counts[value] += one["counts"].as_py()
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ValueCounts(
        values=tuple(ranked[:num_values]),
        num_values=len(ranked),
        num_images=num_images,
        num_without=num_images - counts.total(),
    )


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
