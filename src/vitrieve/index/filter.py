"""Conditions on metadata: which images of an index may be found.

Metadata is kept as the text that its source wrote. The kind of a column (text, number, truth value or date) follows
from the values that it has, and is found when it is needed: nothing else says it, so that nothing can contradict the
values. What a condition means depends on the kind of its column. Every store asks the same of its engine: whether the
text, or the number that it reads as, lies in one of a few spans. A condition that no value of the column can meet is
refused.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from functools import cached_property
from numbers import Real
from typing import Any, Literal, cast, get_args

from vitrieve.errors import ConfigError, InputError, unknown_name_message
from vitrieve.quoting import escape_text, quote_name

# The kinds of values

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
"""Names made of digits, which read as numbers: ``007``, or a barcode of twenty digits, of which a number loses some."""

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


# How a condition is written

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


# What a condition asks of the values of a column

_COMPARISONS = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_FIRST, _LAST = "0", ":"
"""All texts that begin with a digit lie from the one to before the other."""
_END = "~"
"""Behind a beginning: after every text that goes on as dates do."""
MAX_SHOWN = 100
"""Characters of a condition in a message."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Texts in the order of their characters, or numbers.

    Attributes:
        low: The least one, a text or a number; None: there is no least one.
        high: The greatest one, of the same type.
        has_low: Whether ``low`` belongs to the span.
        has_high: Whether ``high`` belongs to the span.
    """

    low: str | float | None = None
    high: str | float | None = None
    has_low: bool = True
    has_high: bool = True

    @property
    def is_text(self) -> bool:
        """Say whether it is a span of texts."""
        return isinstance(self.low, str) or isinstance(self.high, str)

    @cached_property
    def limits(self) -> list[tuple[str, str | float]]:
        """List the comparisons that hold for what is in it: one for a single value, else one for each end."""
        if self.low is not None and self.low == self.high:
            return [("=", self.low)]
        ends = [(">=" if self.has_low else ">", self.low), ("<=" if self.has_high else "<", self.high)]
        return [(sign, end) for sign, end in ends if end is not None]

    @cached_property
    def _comparisons(self) -> list[tuple[Callable[[Any, Any], bool], str | float]]:
        return [(_COMPARISONS[sign], end) for sign, end in self.limits]

    def holds(self, value: str | float) -> bool:
        """Say whether a text (or number) lies in a span of texts (numbers)."""
        return all(compare(value, end) for compare, end in self._comparisons)


@dataclass(frozen=True, kw_only=True)
class ColumnTest:
    """What a condition asks of an image's value in its column.

    Attributes:
        column: The column.
        spans: The value must lie in one of them.
        is_negated: It must lie in none of them, which an image without the column meets, too.
    """

    column: str
    spans: tuple[Span, ...]
    is_negated: bool = False

    def holds(self, text: str | None) -> bool:
        """Say whether a value meets it; None is an image without the column."""
        return self.is_negated != (text is not None and self._is_met(text))

    @cached_property
    def _texts(self) -> tuple[frozenset[str | float], list[Span]]:
        return _split([span for span in self.spans if span.is_text])

    @cached_property
    def _numbers(self) -> tuple[frozenset[str | float], list[Span]]:
        return _split([span for span in self.spans if not span.is_text])

    def _is_met(self, text: str) -> bool:
        singles, spans = self._texts
        if text in singles or any(span.holds(text) for span in spans):
            return True
        singles, spans = self._numbers
        number = read_number(text) if singles or spans else None
        return number is not None and (number in singles or any(span.holds(number) for span in spans))


def _split(spans: Sequence[Span]) -> tuple[frozenset[str | float], list[Span]]:
    """Return the single values, so that a thousand of them take one look, and the longer spans."""
    singles = frozenset(end for span in spans for sign, end in span.limits if sign == "=")
    return singles, [span for span in spans if span.limits[0][0] != "="]


def passes(metadata: Mapping[str, str], tests: Iterable[ColumnTest]) -> bool:
    """Say whether an image's metadata passes a filter: the definition that every store follows."""
    return all(test.holds(metadata.get(test.column)) for test in tests)


def require_column(column: str, columns: Collection[str]) -> None:
    """Refuse a column that is not among the metadata columns of an index.

    Raises:
        InputError: It names the nearest ones, and all.
    """
    if not columns:
        raise InputError(
            f"unknown metadata column {column!r}: the images of this index have no metadata. An index of folder:DIR "
            "has the column label, and one of table:FILE the columns of the table."
        )
    if column not in columns:
        raise InputError(unknown_name_message("metadata column", column, columns))


def resolve_filter(
    filter: FilterLike, columns: Iterable[str], find_kinds: Callable[[Sequence[str]], Mapping[str, Kinds]]
) -> tuple[ColumnTest, ...]:
    """Turn a filter into what it asks of the values of an index.

    Args:
        filter: Conditions, as ``parse_filter`` takes them.
        columns: The metadata columns of the index.
        find_kinds: Finds the kinds of the values of some of them.

    Raises:
        InputError: An unknown column, or a condition that no value of the column's kind can meet.
    """
    conditions = parse_filter(filter)
    if not conditions:
        return ()
    known = set(columns)
    for condition in conditions:
        require_column(condition.column, known)
    kinds = find_kinds(sorted({condition.column for condition in conditions}))
    return tuple(find_test(condition, kinds[condition.column]) for condition in conditions)


def find_test(condition: Condition, kinds: Kinds) -> ColumnTest:
    """Turn one condition on a column whose values are of ``kinds`` into a test; errors as ``resolve_filter``."""
    spans = tuple(span for value in condition.values for span in _find_spans(condition, value, kinds))
    return ColumnTest(column=condition.column, spans=spans, is_negated=condition.operator == "!=")


def _find_spans(condition: Condition, value: Value, kinds: Kinds) -> list[Span]:
    sign = "=" if condition.operator == "!=" else condition.operator
    kind = name_kind(kinds)
    if isinstance(value, Exact):
        if kind != "text" and not read_kinds(value.text) & kinds:
            raise _refuse(condition, value, kind)
        return [_compare("=", value.text)]
    if value == "" and sign == "=":  # an empty cell is of no kind, and every column may have some
        return [_compare("=", value)]
    spans = list(_SPANS[kind](sign, value, kinds))
    if not spans:
        raise _refuse(condition, value, kind)
    return spans


def _compare(sign: str, bound: str | float) -> Span:
    if sign == "=":
        return Span(low=bound, high=bound)
    return Span(low=bound, has_low=sign == ">=") if sign[0] == ">" else Span(high=bound, has_high=sign == "<=")


def _find_texts(sign: str, value: str | float, kinds: Kinds) -> Iterator[Span]:
    """Compare texts as texts, and numbers with those among the texts that read as numbers."""
    if isinstance(value, str) or sign == "=" or not kinds or kinds & (Kinds.NUMBER | Kinds.YEAR):
        yield _compare(sign, value)


def _find_numbers(sign: str, value: str | float, kinds: Kinds) -> Iterator[Span]:
    number = read_number(value) if isinstance(value, str) else value
    if number is not None:
        yield _compare(sign, value if sign == "=" else number)


def _find_booleans(sign: str, value: str | float, kinds: Kinds) -> Iterator[Span]:
    if isinstance(value, str) and value in BOOLEANS and sign == "=":
        yield from (_compare("=", text) for text, meaning in BOOLEANS.items() if meaning == BOOLEANS[value])


def _find_dates(sign: str, value: str | float, kinds: Kinds) -> Iterator[Span]:
    """Compare with a year, month, day or time as with the period that it is."""
    period = read_period(value)
    if period is None:
        return
    if sign == "=" and value == period and Kinds.YEAR in kinds and len(period) == 4:
        yield _compare("=", period)  # a text that is a value of the column
    elif len(period) <= 10:
        yield _cut(sign, _FIRST, period, _LAST)
    else:  # the day's values may have a T before the time, or a blank; those without a time begin with the day
        day, time = period[:10], period[11:]
        yield from (_cut(sign, day + mark, day + mark + time, day + mark + _END) for mark in "T ")
        if sign[0] == "<":
            yield Span(low=_FIRST, high=f"{day} ", has_high=False)
        if sign[0] == ">":
            yield Span(low=day + _END, high=_LAST, has_high=False)


def _cut(sign: str, first: str, period: str, last: str) -> Span:
    """Cut the texts from ``first`` to before ``last`` at the beginning or end of a period."""
    low = {">=": period, "=": period, ">": period + _END}.get(sign, first)
    high = {"<": period, "<=": period + _END, "=": period + _END}.get(sign, last)
    return Span(low=low, high=high, has_high=False)


_SPANS: Mapping[ColumnKind, Callable[[str, str | float, Kinds], Iterator[Span]]] = {
    "text": _find_texts,
    "number": _find_numbers,
    "boolean": _find_booleans,
    "date": _find_dates,
}


def _refuse(condition: Condition, value: Value, kind: ColumnKind) -> InputError:
    sign = "=" if kind == "boolean" and condition.operator != "!=" else condition.operator
    text = value.text if isinstance(value, Exact) else value if isinstance(value, str) else spell_number(value)
    examples: Mapping[ColumnKind, Value] = {"number": 2020.0, "boolean": "true", "date": "2020-03-01", "text": text}
    refused = Condition(column=condition.column, operator=condition.operator, values=(value,))
    example = Condition(column=condition.column, operator=sign, values=(examples[kind],))
    column = quote_name(_shorten(condition.column))
    return InputError(
        f"{_show(refused)} does not fit: {column} is a {kind} column; write for example {_show(example)}."
    )


def _show(condition: Condition) -> str:
    return escape_text(_shorten(format_condition(condition)))


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
