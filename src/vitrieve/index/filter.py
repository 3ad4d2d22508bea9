"""Conditions on metadata: which images of an index may be found.

Here is how a condition is written. What it means depends on the kind of the column (``comparison.py``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, cast, get_args

from vitrieve.errors import ConfigError
from vitrieve.index.kinds import BOOLEANS, is_code, is_date, read_number

Operator = Literal["=", "!=", "<", "<=", ">", ">="]
_ORDERS = ("<", "<=", ">", ">=")
_QUOTED = r'"((?:[^"\\]|""|\\.)*)"'
_HEAD = re.compile(rf'(?:{_QUOTED}\s*|((?!")[^<>=!]+))(<=|>=|!=|=|<|>)', re.DOTALL)
"""The column and the sign; blanks are stripped before and afterwards: matched here, they made the time cubic."""
_PIECE = re.compile(rf"\s*{_QUOTED}\s*", re.DOTALL)
_ESCAPED = re.compile(r'""|\\(.)', re.DOTALL)
_SPECIAL = re.compile(r'[<>=!|"]')
LARGEST_DIGITS = 15
"""A whole number of so many digits is written out; a longer one could be a name."""


@dataclass(frozen=True)
class Exact:
    """A text that is compared letter by letter, also where a value as it stands would be a date or a truth value.

    Attributes:
        text: The text.
    """

    text: str


Value = str | float | Exact


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One condition on one metadata column.

    Attributes:
        column: Name of the column; an image without it passes no condition but ``!=``.
        operator: How to compare.
        values: For ``=`` and ``!=`` any number of values, of which one (none) must be met; for the others one value.
            A number compares numbers. A text compares texts, but in columns of dates and of truth values it is one of
            them, unless it is ``Exact``; in columns of numbers it is a number after ``<``, ``<=``, ``>`` and ``>=``.
            A ``bool`` is the text ``true`` or ``false``.
    """

    column: str
    operator: Operator
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be compared, and give values that mean the same one form."""
        if self.operator not in get_args(Operator):
            raise ConfigError(f"{self.operator!r} is no comparison; use one of {' '.join(get_args(Operator))}.")
        if not self.values or (self.operator in _ORDERS and len(self.values) != 1):
            raise ConfigError(f"{self.column} {self.operator} takes one value, not {len(self.values)}.")
        values = tuple(_normalize(self, value) for value in self.values)
        object.__setattr__(self, "values", values)


def _normalize(condition: Condition, value: Any) -> Value:
    if isinstance(value, Exact):
        is_special = condition.operator not in _ORDERS and (value.text in BOOLEANS or is_date(value.text))
        return value if is_special else value.text
    if isinstance(value, (bool, str)):
        return value if isinstance(value, str) else str(value).lower()
    try:
        number = float(value) if isinstance(value, Real) else None
    except OverflowError:
        number = math.inf
    if number is None or not math.isfinite(number):
        raise ConfigError(
            f"{condition.column} {condition.operator} compares with {str(value)[:40]}; "
            "expected a text or a number that is finite."
        )
    return number


Filter = tuple[Condition, ...]
"""Conditions that must all hold; an empty one lets everything pass."""
FilterLike = str | Condition | Iterable[str | Condition]
"""A filter as people write it: what ``parse_filter`` reads."""


def parse_filter(filter: FilterLike) -> Filter:
    """Read conditions as people write them; a ``Condition`` stands for itself.

    Args:
        filter: One or several of ``column=value``, ``column!=value``, ``column=one|another``, ``column<5``,
            ``column>=2026-01-01``. A column or value in double quotes is taken as it stands: ``"a=b"="one|two "``;
            a quote in it is doubled or has a backslash before it, and a backslash has another one.
            A value without quotes that reads as a number is one; after ``=`` and ``!=`` not where it may be a
            name made of digits (``007``, or sixteen and more of them).

    Raises:
        ConfigError: Not of this form.

    >>> parse_filter(["label=apple|pear", "price<2.5"])[1]
    Condition(column='price', operator='<', values=(2.5,))
    >>> parse_filter('" blank "="a|b"|c')[0]
    Condition(column=' blank ', operator='=', values=('a|b', 'c'))
    """
    parts = [filter] if isinstance(filter, (str, Condition)) else filter
    return tuple(part if isinstance(part, Condition) else _parse_condition(part) for part in parts)


def build_condition(column: str, operator: str, value: str) -> Condition:
    """Build a condition from the three fields of a form; the value is one, whatever signs it has.

    Raises:
        ConfigError: The operator is none.

    >>> build_condition("size <= 5", "=", "one|two")
    Condition(column='size <= 5', operator='=', values=('one|two',))
    """
    comparison = cast(Operator, operator)  # the condition refuses any other
    return Condition(column=column, operator=comparison, values=(_read_value(value, comparison),))


def format_condition(condition: Condition) -> str:
    """Write a condition so that ``parse_filter`` reads the same one.

    >>> format_condition(Condition(column="a=b", operator="=", values=("pear", " x|y", "2020", 2020)))
    '"a=b"=pear|" x|y"|"2020"|2020'
    """
    values = "|".join(_spell_value(value, condition.operator) for value in condition.values)
    return f"{_quote(condition.column, is_forced=not condition.column)}{condition.operator}{values}"


def _spell_value(value: Value, sign: Operator) -> str:
    if isinstance(value, Exact):
        return _quote(value.text, is_forced=True)
    if isinstance(value, str):
        return _quote(value, is_forced=not isinstance(_read_value(value, sign), str))
    return spell_number(value)


def spell_number(number: float) -> str:
    """Spell a number so that it reads as the same one, a whole one without a point.

    >>> spell_number(2020.0), spell_number(0.5), spell_number(1e16)
    ('2020', '0.5', '1e+16')
    """
    return f"{number:.0f}" if number.is_integer() and abs(number) < 10**LARGEST_DIGITS else repr(number)


def _read_value(text: str, sign: Operator) -> str | float:
    """Read one value that stands without quotes."""
    number = read_number(text)
    return text if number is None or (sign not in _ORDERS and is_code(text)) else number


def _quote(text: str, *, is_forced: bool) -> str:
    if not is_forced and text == text.strip() and not _SPECIAL.search(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '""')
    return f'"{escaped}"'


def _parse_condition(text: str) -> Condition:
    stripped = text.strip()
    match = _HEAD.match(stripped)
    quoted, plain, sign = match.groups() if match else (None, "", "")
    column = plain.strip() if quoted is None else _unescape(quoted)
    if match is None or (quoted is None and not column):
        raise ConfigError(
            f"{text!r} is no filter; write column=value, column!=value, column=one|another, column<5 or "
            'column>=2026-01-01, and in double quotes what has blanks around it or one of < > = ! |: "a=b"="one|two".'
        )
    value = stripped[match.end() :].strip()
    comparison = cast(Operator, sign)
    if comparison in _ORDERS and not value.startswith('"'):
        return Condition(column=column, operator=comparison, values=(_read_value(value, comparison),))
    return Condition(column=column, operator=comparison, values=tuple(_split_values(value, comparison, text)))


def _split_values(value: str, sign: Operator, text: str) -> Iterator[Value]:
    """Yield the values between bars; a bar in quotes belongs to its value."""
    start = 0
    while start <= len(value):
        match = _PIECE.match(value, start)
        bar = value.find("|", start)
        end = match.end() if match else bar if bar >= 0 else len(value)
        piece = value[start:end]
        if (match and value[end : end + 1] not in ("", "|")) or (not match and piece.lstrip().startswith('"')):
            raise ConfigError(
                f'{text!r} is no filter: a value that starts with a quote ends with one; write a quote in it twice: "".'
            )
        yield Exact(_unescape(match[1])) if match else _read_value(piece, sign)
        start = end + 1


def _unescape(quoted: str) -> str:
    return _ESCAPED.sub(lambda match: match[1] or '"', quoted)
