"""Conditions on metadata: which images of an index may be found. Next: ``lock.py``.

Metadata is text. A condition with a number compares the values that read as numbers, and no other value passes it; a
condition with text compares text, so that dates written as 2026-11-23 compare as dates.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from vitrieve.errors import ConfigError

Operator = Literal["=", "!=", "<", "<=", ">", ">="]
_COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_QUOTED = r'"((?:[^"\\]|""|\\.)*)"'
_HEAD = re.compile(rf'(?:{_QUOTED}\s*|((?!")[^<>=!]+))(<=|>=|!=|=|<|>)', re.DOTALL)
"""The column and the sign; blanks are stripped before and afterwards: matched here, they made the time cubic."""
_PIECE = re.compile(rf"\s*{_QUOTED}\s*", re.DOTALL)
_ESCAPED = re.compile(r'""|\\(.)', re.DOTALL)
_SPECIAL = re.compile(r'[<>=!|"]')
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One condition on one metadata column.

    Attributes:
        column: Name of the column; an image without it passes no condition but ``!=``.
        operator: How to compare.
        values: For ``=`` and ``!=`` any number of values, of which one (none) must be met; for the others one value.
    """

    column: str
    operator: Operator
    values: tuple[str | float, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be compared."""
        if self.operator not in get_args(Operator):
            raise ConfigError(f"{self.operator!r} is no comparison; use one of {' '.join(get_args(Operator))}.")
        if any(isinstance(value, float) and not math.isfinite(value) for value in self.values):
            raise ConfigError(f"{self.column} {self.operator} {self.values} compares with a number that is not finite.")
        if not self.values or (self.operator not in ("=", "!=") and len(self.values) != 1):
            raise ConfigError(f"{self.column} {self.operator} takes one value, not {len(self.values)}.")


Filter = tuple[Condition, ...]
"""Conditions that must all hold; an empty one lets everything pass."""


def parse_filter(filter: str | Condition | Iterable[str | Condition]) -> Filter:
    """Read conditions as people write them; a ``Condition`` stands for itself.

    Args:
        filter: One or several of ``column=value``, ``column!=value``, ``column=one|another``, ``column<5``,
            ``column>=2026-01-01``. A column or value in double quotes is taken as it stands: ``"a=b"="one|two "``;
            a quote in it is doubled or has a backslash before it, and a backslash has another one.
            After ``<``, ``<=``, ``>`` and ``>=`` a value without quotes that reads as a number is one; after ``=``
            and ``!=`` everything is text.

    Raises:
        ConfigError: Not of this form.

    >>> parse_filter(["label=apple|pear", "price<2.5"])[1]
    Condition(column='price', operator='<', values=(2.5,))
    >>> parse_filter('" blank "="a|b"|c')[0]
    Condition(column=' blank ', operator='=', values=('a|b', 'c'))
    """
    parts = [filter] if isinstance(filter, (str, Condition)) else filter
    return tuple(part if isinstance(part, Condition) else _parse_condition(part) for part in parts)


def format_condition(condition: Condition) -> str:
    """Write a condition so that ``parse_filter`` reads the same one.

    Raises:
        ConfigError: ``=`` or ``!=`` with a number, which the text form cannot say: after them everything is text.

    >>> format_condition(Condition(column="a=b", operator="=", values=("pear", " x|y")))
    '"a=b"=pear|" x|y"'
    """
    is_order = condition.operator in _COMPARISONS
    if not is_order and any(not isinstance(value, str) for value in condition.values):
        raise ConfigError(
            f"{condition.column} {condition.operator} {condition.values} has no text form; compare texts."
        )
    values = [
        _quote(value, is_forced=is_order and read_number(value) is not None) if isinstance(value, str) else repr(value)
        for value in condition.values
    ]
    return f"{_quote(condition.column, is_forced=not condition.column)}{condition.operator}{'|'.join(values)}"


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
    if comparison not in _COMPARISONS or value.startswith('"'):
        return Condition(column=column, operator=comparison, values=tuple(_split_values(value, text)))
    number = read_number(value)
    return Condition(column=column, operator=comparison, values=(value if number is None else number,))


def _split_values(value: str, text: str) -> Iterator[str]:
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
        yield _unescape(match[1]) if match else piece
        start = end + 1


def _unescape(quoted: str) -> str:
    return _ESCAPED.sub(lambda match: match[1] or '"', quoted)


def read_number(text: str) -> float | None:
    """Read a decimal number; None when the text is none (NaN and infinity are none).

    >>> read_number("2.50"), read_number("1e3"), read_number("0x1"), read_number("nan")
    (2.5, 1000.0, None, None)
    """
    number = float(text) if _NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None


def passes(metadata: Mapping[str, str], filter: Filter) -> bool:
    """Say whether an image's metadata passes a filter: the definition that every store follows."""
    return all(holds(metadata.get(condition.column), condition) for condition in filter)


def holds(text: str | None, condition: Condition) -> bool:
    """Say whether one value of the condition's column meets it; None is an image without the column."""
    if condition.operator == "!=":
        return text is None or not any(_equals(text, value) for value in condition.values)
    if text is None:
        return False
    if condition.operator == "=":
        return any(_equals(text, value) for value in condition.values)
    (bound,) = condition.values
    if isinstance(bound, str):
        return bool(_COMPARISONS[condition.operator](text, bound))
    number = read_number(text)
    return number is not None and bool(_COMPARISONS[condition.operator](number, bound))


def _equals(text: str, value: str | float) -> bool:
    return text == value if isinstance(value, str) else read_number(text) == value
