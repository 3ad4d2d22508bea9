"""Conditions on metadata: which images of an index may be found. Next: ``lock.py``.

Metadata is text. A condition with a number compares the values that read as numbers, and no other value passes it; a
condition with text compares text, so that dates written as 2026-11-23 compare as dates.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from vitrieve.errors import ConfigError

Operator = Literal["=", "!=", "<", "<=", ">", ">="]
_COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_SPELLING = re.compile(r"([^<>=!]+)(<=|>=|!=|=|<|>)(.*)", re.DOTALL)
"""Blanks are stripped afterwards: matched here, they made the time cubic in their number."""
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


def parse_filter(texts: Iterable[str]) -> Filter:
    """Read conditions as people write them.

    Args:
        texts: ``column=value``, ``column!=value``, ``column=one|another``, ``column<5``, ``column>=2026-01-01``.
            After ``<``, ``<=``, ``>`` and ``>=`` a value that reads as a number is one; after ``=`` and ``!=``
            everything is text.

    Raises:
        ConfigError: Not of this form.

    >>> parse_filter(["label=apple|pear", "price<2.5"])[1]
    Condition(column='price', operator='<', values=(2.5,))
    """
    return tuple(_parse_condition(text) for text in texts)


def _parse_condition(text: str) -> Condition:
    match = _SPELLING.fullmatch(text)
    column, sign, value = (part.strip() for part in match.groups()) if match else ("", "", "")
    if not column:
        raise ConfigError(
            f"{text!r} is no filter; write column=value, column!=value, column=one|another, column<5 or "
            "column>=2026-01-01."
        )
    if sign in ("=", "!="):
        return Condition(column=column, operator=sign, values=tuple(value.split("|")))  # type: ignore[arg-type]
    number = read_number(value)
    return Condition(column=column, operator=sign, values=(value if number is None else number,))  # type: ignore[arg-type]


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
