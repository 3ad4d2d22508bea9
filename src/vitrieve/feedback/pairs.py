"""The manifest of pairs: corrections as a Parquet file, which ``vitrieve train --pairs`` reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from vitrieve.data.table import is_name_type, mend_gaps, spell_cell
from vitrieve.errors import DataError, first_line
from vitrieve.feedback.events import Correction, check_correction
from vitrieve.writing import write_bytes_durably

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("kind", "image_id", "query_id", "query")),
        ("tags", pa.list_(pa.string())),
        *((name, pa.string()) for name in ("label", "who", "at", "fingerprint")),
    ]
)
NEEDED = ("kind", "image_id")
assert set(SCHEMA.names) == set(get_type_hints(Correction)), "a column for each field"


def write_pairs(corrections: Sequence[Correction], path: Path) -> None:
    """Write corrections as a Parquet file, which is whole or as it was.

    Raises:
        DiskFullError: There is no room for it.
    """
    columns = {name: [getattr(one, name) for one in corrections] for name in SCHEMA.names}
    columns["tags"] = [list(tags) for tags in columns["tags"]]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=SCHEMA), sink)
    write_bytes_durably(path, sink.getvalue().to_pybytes())


def read_pairs(path: Path | str) -> list[Correction]:
    """Read a manifest of pairs: of ``vitrieve feedback``, or made by hand with the columns kind and image_id at least.

    Whole numbers, as pandas writes names and labels that consist of digits, are read as text, also where gaps between
    them have made floating-point numbers of them.

    Raises:
        DataError: The file is missing or no Parquet, lacks a column or has one of another type, has none of the rows,
            or a row says nothing.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"the pairs {path} cannot be read ({first_line(error)}); vitrieve feedback writes such a file."
        ) from None
    missing = [name for name in NEEDED if name not in table.column_names]
    if missing:
        raise DataError(f"the pairs {path} lack the column {missing[0]}; it needs {', '.join(NEEDED)} and query_id.")
    unknown = [name for name in table.column_names if name not in SCHEMA.names]
    if unknown:
        raise DataError(f"the pairs {path} have the unknown column {unknown[0]!r}; valid: {', '.join(SCHEMA.names)}.")
    columns: dict[str, list[Any]] = {name: mend_gaps(table[name].to_pylist()) for name in table.column_names}
    for name, cells in columns.items():
        _check_type(path, name, table.schema.field(name).type, cells)
    rows = (dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True))
    corrections = []
    for number, row in enumerate(rows, start=1):
        values: dict[str, Any] = {name: spell_cell(value) for name, value in row.items() if value is not None}
        values["tags"] = tuple(map(spell_cell, row.get("tags") or ()))
        try:
            correction = Correction(**values)
            check_correction(correction)
        except (TypeError, DataError) as error:
            raise DataError(f"row {number} of the pairs {path}: {error}") from None
        corrections.append(correction)
    if not corrections:
        raise DataError(f"the pairs {path} have no row: there is nothing to learn from them.")
    return corrections


def _check_type(path: Path | str, name: str, kind: pa.DataType, cells: Sequence[object]) -> None:
    """Refuse a column of which the values are no text and no whole numbers; those of ``tags`` are lists of them."""
    has_gaps = pa.types.is_floating(kind) and not any(isinstance(cell, float) for cell in cells)
    is_right = is_name_type(kind) or has_gaps
    if name == "tags":
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        is_right = pa.types.is_null(kind) or (is_list and is_name_type(kind.value_type))
    if not is_right:
        accepted = "lists of text" if name == "tags" else "text or whole numbers"
        raise DataError(f"the pairs {path}: the column {name!r} is of the type {kind}; accepted: {accepted}.")
