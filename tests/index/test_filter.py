from __future__ import annotations

import functools
from datetime import date, datetime
from operator import or_
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrieve.data.table import read_table
from vitrieve.errors import ConfigError, InputError
from vitrieve.index.filter import (
    Condition,
    Exact,
    FilterLike,
    Kinds,
    build_condition,
    format_condition,
    name_kind,
    parse_filter,
    passes,
    read_kinds,
    read_number,
    resolve_filter,
)
from vitrieve.index.milvus_rows import from_key, to_key

ANY = Kinds.TEXT | Kinds.NUMBER
"""Of a column that has both, where everything can be compared."""
APPLE = {"label": "apple", "price": "2.5", "day": "2026-11-23", "empty": ""}


@pytest.mark.parametrize(
    ("text", "is_passed"),
    [
        ("label=apple", True),
        ("label=pear", False),
        ("label=pear|apple", True),
        ("label!=pear", True),
        ("label!=pear|apple", False),
        ("color=red", False),
        ("color!=red", True),
        ("color<5", False),
        ("price<2.5", False),
        ("price<=2.5", True),
        ("price=2.50", True),  # a number
        ('price="2.50"', False),  # in quotes everything is text
        ("price>10", False),  # compared as text, "2.5" would be more than "10"
        ("label>5", False),  # a text that is no number
        ("day>=2026-11-01", True),
        ("day<2026-11-23", False),
        ("empty=", True),
        ("label=", False),
    ],
)
def test_passes(text: str, is_passed: bool) -> None:
    assert judge(APPLE, text) is is_passed


def judge(metadata: dict[str, str], filter: FilterLike, kinds: Kinds = ANY) -> bool:
    """Say whether an image passes, where all columns have values of some kinds."""
    conditions = parse_filter(filter)
    columns = [condition.column for condition in conditions]
    return passes(metadata, resolve_filter(conditions, columns, lambda names: dict.fromkeys(names, kinds)))


def test_passes_needs_every_condition() -> None:
    assert judge(APPLE, ["label=apple", "price<3"])
    assert not judge(APPLE, ["label=apple", "price>3"])
    assert judge({}, ())


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        ((), "text"),
        (("", ""), "text"),
        (("1", "2.5", "-3e5", ""), "number"),
        (("2020", "1999"), "number"),
        (("2020.0", ""), "number"),
        (("true", "False", ""), "boolean"),
        (("2020-03", "2020-03-01", "2020-03-01T12:00:00.5+01:00", "2020-03-01 12:00Z", "1890", ""), "date"),
        (("2020-03-01", "7"), "text"),
        (("2020-13-01",), "text"),
        (("01234", "98765"), "text"),  # names made of digits
        (("1234567890123456", "1"), "text"),
        (("true", "1"), "text"),
        (("nan",), "text"),
        (("1", " 2"), "text"),
    ],
)
def test_the_kind_of_a_column(texts: tuple[str, ...], kind: str) -> None:
    assert name_kind(functools.reduce(or_, map(read_kinds, texts), Kinds(0))) == kind


@pytest.mark.parametrize("text", ["", "label", "=apple", "label apple", "<5"])
def test_parse_filter_refuses(text: str) -> None:
    with pytest.raises(ConfigError, match="no filter"):
        parse_filter([text])


def test_condition_refuses() -> None:
    for operator, values in [
        ("~", ("a",)),
        ("=", ()),
        ("<", (1.0, 2.0)),
        ("<", (float("nan"),)),
        ("=", (float("inf"),)),
    ]:
        with pytest.raises(ConfigError):
            Condition(column="a", operator=operator, values=values)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "nan", "inf", "1e999", "-1e999", "0x1", "1_0", " 1", "1\n", "٣", "1e", "."])
def test_read_number_refuses(text: str) -> None:
    assert read_number(text) is None


def test_a_number_is_read_in_linear_time() -> None:
    """The pattern once tried every way to cut the digits: 30,000 of them took some 10^9 steps, now 10^5."""
    for text in ("1" * 30_000 + "x", "1." + "1" * 30_000 + "x", "9" * 30_000):
        assert read_number(text) is None


def test_a_year_among_dates() -> None:
    condition = Condition(column="day", operator="=", values=("2020",))
    assert judge({"day": "2020-03-01"}, condition, Kinds.DATE)
    assert not judge({"day": "2020-03-01"}, condition, Kinds.DATE | Kinds.YEAR)  # a text that is a value of the column
    assert judge({"day": "2020"}, condition, Kinds.DATE | Kinds.YEAR)
    for text in ("2020", "2020-03-01"):
        assert judge({"day": text}, "day=2020", Kinds.DATE | Kinds.YEAR)


def test_equality_with_a_number_compares_numbers() -> None:
    condition = (Condition(column="price", operator="=", values=(2.5,)),)
    assert judge({"price": "2.50"}, condition)
    assert not judge({"price": "cheap"}, condition)


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_keys_keep_order_and_come_back(one: str, other: str) -> None:
    assert from_key(to_key(one)) == one
    assert (to_key(one) < to_key(other)) == (one < other)


@pytest.mark.parametrize(
    ("text", "column", "values"),
    [
        ('"outer blank "=" a|b "', "outer blank ", (" a|b ",)),
        ('"a=b"!="c"|d| "e" ', "a=b", ("c", "d", "e")),
        (r'"x\"y""z"="\\"', 'x"y"z', ("\\",)),
        ('price>"10"', "price", ("10",)),  # in quotes it is text
        ("a=b | c", "a", ("b ", " c")),  # without quotes as ever
        ('size=12"|5"', "size", ('12"', '5"')),
        ("a=", "a", ("",)),
        ("a=2020|2.50", "a", (2020.0, 2.5)),
        ("a=007|12345678901234567890", "a", ("007", "12345678901234567890")),  # names made of digits
        ('a="2020"|true|"true"|"2020-03"', "a", ("2020", "true", Exact("true"), Exact("2020-03"))),
        ('""=x', "", ("x",)),
    ],
)
def test_quotes_say_any_text(text: str, column: str, values: tuple[str, ...]) -> None:
    (condition,) = parse_filter(text)
    assert (condition.column, condition.values) == (column, values)


@pytest.mark.parametrize("text", ['a="b', 'a="b"c', 'a=b|"c', '"a=b', '"a"b=c', 'a<"1"|"2"'])
def test_quotes_that_do_not_match_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_filter([text])


TEXTS = st.one_of(st.text(st.characters(codec="utf-8")), st.text(' "\\|<>=!a1\n'))
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


READABLE = st.sampled_from(["true", "False", "2020", "2020-03", "2020-03-01 12:00Z", "007", "1e5", "1" * 20])
VALUES = st.one_of(TEXTS, READABLE, NUMBERS, st.builds(Exact, TEXTS | READABLE))


@given(
    st.one_of(
        st.builds(
            lambda column, sign, values: Condition(column=column, operator=sign, values=tuple(values)),
            TEXTS,
            st.sampled_from(["=", "!="]),
            st.lists(VALUES, min_size=1, max_size=4),
        ),
        st.builds(
            lambda column, sign, value: Condition(column=column, operator=sign, values=(value,)),
            TEXTS,
            st.sampled_from(["<", "<=", ">", ">="]),
            VALUES,
        ),
    )
)
def test_format_condition_is_the_inverse_of_parse_filter(condition: Condition) -> None:
    (parsed,) = parse_filter(format_condition(condition))
    assert parsed == condition
    assert [type(value) for value in parsed.values] == [type(value) for value in condition.values]


@given(TEXTS | READABLE, TEXTS | READABLE)
def test_an_exact_text_is_compared_letter_by_letter(text: str, other: str) -> None:
    condition = Condition(column="a", operator="=", values=(Exact(text),))
    kinds = read_kinds(text) | read_kinds(other)
    assert judge({"a": text}, condition, kinds)
    assert judge({"a": other}, condition, kinds) is (text == other)


def test_a_filter_is_a_text_a_condition_or_both() -> None:
    condition = Condition(column="a", operator="=", values=(2.5,))
    assert parse_filter(condition) == (condition,)
    assert parse_filter([condition, "b=c"]) == (condition, *parse_filter("b=c"))


def test_values_of_python_that_mean_the_same_are_the_same() -> None:
    def build(*values: object) -> Condition:
        return Condition(column="a", operator="=", values=values)  # type: ignore[arg-type]

    assert build(True, 2020, np.int64(5), np.float32(0.5)) == build("true", 2020.0, 5.0, 0.5)
    assert build(Exact("pear"), Exact("true")).values == ("pear", Exact("true"))
    for wrong in (None, 10**400, b"a", float("nan")):
        with pytest.raises(ConfigError, match="expected a text or a number"):
            build(wrong)


@given(TEXTS | READABLE, TEXTS)
def test_a_form_gives_one_value_whatever_its_signs(value: str, column: str) -> None:
    for sign in ("=", "!=", ">="):
        condition = build_condition(column, sign, value)
        assert len(condition.values) == 1
        assert parse_filter(format_condition(condition)) == parse_filter(condition)
    assert judge({column: value}, build_condition(column, "=", value))
    with pytest.raises(ConfigError):
        build_condition("a", "~", "b")


def test_a_refusal_is_short_and_on_one_line() -> None:
    with pytest.raises(InputError) as caught:
        judge({}, Condition(column="c\n" * 2000, operator=">", values=("v\n" * 2000,)), Kinds.NUMBER)
    assert len(str(caught.value)) < 1500
    assert "\n" not in str(caught.value)


def test_typed_columns_of_a_table_keep_their_kind(tmp_path: Path) -> None:
    """A table of pandas, where a whole number with a gap is a floating-point number."""
    (tmp_path / "a.png").write_bytes(b"")
    moments = [datetime(2020, 3, 1, 12, 30), None]
    columns = {
        "path": ["a.png", "b.png"],
        "year": pyarrow.array([2020.0, float("nan")]),
        "count": pyarrow.array([3, None]),
        "price": pyarrow.array([2.5, 3.0]),
        "flag": pyarrow.array([True, None]),
        "day": pyarrow.array([date(2020, 3, 1), None]),
        "moment": pyarrow.array(moments, pyarrow.timestamp("us")),
        "text": ["pear", None],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "table.parquet")
    first, second = (record.metadata for record in read_table(tmp_path / "table.parquet").records)
    assert first == {
        "year": "2020", "count": "3", "price": "2.5", "flag": "true", "day": "2020-03-01",
        "moment": "2020-03-01T12:30:00", "text": "pear",
    }  # fmt: skip
    assert second == {**dict.fromkeys(first, ""), "price": "3.0"}
    kinds = {column: name_kind(read_kinds(first[column]) | read_kinds(second[column])) for column in first}
    assert kinds == {
        "year": "number", "count": "number", "price": "number", "flag": "boolean", "day": "date", "moment": "date",
        "text": "text",
    }  # fmt: skip
