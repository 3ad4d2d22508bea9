"""What the typed cells of a Parquet table are as text."""

from __future__ import annotations

import math
from datetime import date
from pathlib import Path
from typing import Any

from vitrieve.errors import DataError


def check_type(file: Path, name: str, kind: Any) -> None:
    """Refuse a type whose spelling is no name: a list as a label would become the class ``['a', 'b']``."""
    from pyarrow import types

    value = kind.value_type if types.is_dictionary(kind) else kind
    is_text = types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)
    if is_text or types.is_null(value) or (name == "label" and (types.is_integer(value) or types.is_boolean(value))):
        return
    accepted = "text" if name == "path" else "text or whole numbers, one label a row"
    raise DataError(f"{file}: the column {name!r} is of the type {kind}; accepted: {accepted}.")


def mend_gaps(cells: list[object]) -> list[object]:
    """Make whole numbers with gaps, which pandas keeps as floating-point numbers (``2020.0``), whole again."""
    given = [cell for cell in cells if not _is_missing(cell)]
    if len(given) == len(cells) or not all(isinstance(cell, float) and cell.is_integer() for cell in given):
        return cells
    return [int(cell) if isinstance(cell, float) and cell.is_integer() else None for cell in cells]


def _is_missing(cell: object) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def spell_cell(cell: object) -> str:
    """Spell a typed cell: ``true``, dates and times in ISO 8601; a missing one (null, NaN) is empty."""
    if _is_missing(cell):
        return ""
    if isinstance(cell, bool):
        return str(cell).lower()
    return cell.isoformat() if isinstance(cell, date) else str(cell)
