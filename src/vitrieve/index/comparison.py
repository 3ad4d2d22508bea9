"""What the conditions of a filter ask of the values of a column: spans of texts and numbers.

Every store asks the same of its engine: whether the text, or the number that it reads as, lies in one of a few spans.
Which spans these are depends on the kind of the column, and a condition that no value of it can meet is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vitrieve.errors import InputError, unknown_name_message
from vitrieve.index.filter import Condition, Exact, FilterLike, Value, format_condition, parse_filter, spell_number
from vitrieve.index.kinds import BOOLEANS, ColumnKind, Kinds, name_kind, read_kinds, read_number, read_period
from vitrieve.quoting import escape_text, quote_name

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
        if condition.column not in known:
            raise InputError(unknown_name_message("metadata column", condition.column, known))
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
