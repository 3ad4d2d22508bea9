"""What kind of value a text of the metadata is, and so what a column holds.

Metadata is kept as the text that its source wrote. The kind of a column follows from the values that it has, and is
found when it is needed: nothing else says it, so that nothing can contradict the values.
"""

from __future__ import annotations

import math
import re
from enum import Flag, auto
from typing import Literal

ColumnKind = Literal["text", "number", "boolean", "date"]


class Kinds(Flag):
    """Kinds of values; those of a column are united."""

    TEXT = auto()
    NUMBER = auto()
    YEAR = auto()
    """A number of four digits, which among dates is one, too."""
    BOOLEAN = auto()
    DATE = auto()
    """From the year and month on, in ISO 8601: ``2026-11``, ``2026-11-23``, ``2026-11-23T10:00:00``."""


NOTHING = Kinds(0)
BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}

# These three are read by Python and by the engine of LanceDB, so they hold neither backslashes nor what only one knows.
YEAR_PATTERN = "[1-9][0-9]{3}"
DATE_PATTERN = (
    "[0-9]{4}-(0[1-9]|1[0-2])(-(0[1-9]|[12][0-9]|3[01])"
    "([T ]([01][0-9]|2[0-3])(:[0-5][0-9](:[0-5][0-9]([.][0-9]+)?)?)?(Z|[+-][0-9]{2}(:?[0-9]{2})?)?)?)?"
)
CODE_PATTERN = "[+-]?(0[0-9].*|[0-9]{16,})"
"""Of what reads as a number: names made of digits, ``007`` or a barcode of twenty, of which a number loses some."""

_YEAR, _DATE, _CODE = (re.compile(pattern) for pattern in (YEAR_PATTERN, DATE_PATTERN, CODE_PATTERN))
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
"""No two parts that repeat begin with the same sign: long digits would take the square of their length."""


def read_kinds(text: str) -> Kinds:
    """Say what kind of value a text is; an empty one is of none, and a number that may be a name is a text, too.

    >>> [read_kinds(text).name for text in ("pear", "2.50", "2020", "True", "2020-03-01", "007")]
    ['TEXT', 'NUMBER', 'YEAR', 'BOOLEAN', 'DATE', 'TEXT|NUMBER']
    """
    if not text:
        return NOTHING
    if text in BOOLEANS:
        return Kinds.BOOLEAN
    if _YEAR.fullmatch(text):
        return Kinds.YEAR
    if read_number(text) is not None:
        return Kinds.NUMBER | (Kinds.TEXT if is_code(text) else NOTHING)
    return Kinds.DATE if _DATE.fullmatch(text) else Kinds.TEXT


def name_kind(kinds: Kinds) -> ColumnKind:
    """Name the kind of a column that has values of these kinds; of several that do not fit together it is text."""
    if kinds == Kinds.BOOLEAN:
        return "boolean"
    if kinds and kinds in Kinds.NUMBER | Kinds.YEAR:
        return "number"
    return "date" if kinds in (Kinds.DATE, Kinds.DATE | Kinds.YEAR) else "text"


def read_number(text: str) -> float | None:
    """Read a decimal number; None when the text is none (NaN and infinity are none).

    >>> read_number("2.50"), read_number("1e3"), read_number("0x1"), read_number("nan")
    (2.5, 1000.0, None, None)
    """
    number = float(text) if _NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None


def is_code(text: str) -> bool:
    """Say whether a text that reads as a number is rather a name made of digits."""
    return _CODE.fullmatch(text) is not None


def is_date(text: str) -> bool:
    """Say whether a text is a date from the year and month on."""
    return _DATE.fullmatch(text) is not None


def read_period(value: str | float) -> str | None:
    """Read a year, month, day or time as the beginning that all dates within it have; None when it is none.

    Times are compared as they stand, so an offset from UTC is left out.

    >>> [read_period(value) for value in (2020.0, "2020", "2020-03", "2020-03-01T12:00Z", 20.5, "pear")]
    ['2020', '2020', '2020-03', '2020-03-01T12:00', None, None]
    """
    if not isinstance(value, str):
        return f"{value:04.0f}" if value.is_integer() and 0 <= value <= 9999 else None
    if re.fullmatch("[0-9]{4}", value):
        return value
    if not is_date(value):
        return None
    day, time = value[:11], value[11:]
    return day + re.split("[Z+-]", time)[0]
