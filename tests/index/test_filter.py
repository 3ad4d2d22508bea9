from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrieve.errors import ConfigError
from vitrieve.index.filter import Condition, format_condition, parse_filter, passes, read_number
from vitrieve.index.milvus_rows import from_key, to_key

APPLE = {"label": "apple", "price": "2.5", "day": "2026-11-23", "empty": ""}


@pytest.mark.parametrize(
    ("text", "is_passed"),
    [
        ("label=apple", True),
        ("label=pear", False),
        ("label=pear|apple", True),
        ("label!=pear", True),
        ("label!=pear|apple", False),
        ("colour=red", False),
        ("colour!=red", True),
        ("colour<5", False),
        ("price<2.5", False),
        ("price<=2.5", True),
        ("price=2.50", False),  # after = everything is text
        ("price>10", False),  # compared as text, "2.5" would be more than "10"
        ("label>5", False),  # a text that is no number
        ("day>=2026-11-01", True),
        ("day<2026-11-23", False),
        ("empty=", True),
        ("label=", False),
    ],
)
def test_passes(text: str, is_passed: bool) -> None:
    assert passes(APPLE, parse_filter([text])) is is_passed


def test_passes_needs_every_condition() -> None:
    assert passes(APPLE, parse_filter(["label=apple", "price<3"]))
    assert not passes(APPLE, parse_filter(["label=apple", "price>3"]))
    assert passes({}, ())


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


def test_equality_with_a_number_compares_numbers() -> None:
    condition = (Condition(column="price", operator="=", values=(2.5,)),)
    assert passes({"price": "2.50"}, condition)
    assert not passes({"price": "cheap"}, condition)


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


@given(
    st.one_of(
        st.builds(
            lambda column, sign, values: Condition(column=column, operator=sign, values=tuple(values)),
            TEXTS,
            st.sampled_from(["=", "!="]),
            st.lists(TEXTS, min_size=1, max_size=4),
        ),
        st.builds(
            lambda column, sign, value: Condition(column=column, operator=sign, values=(value,)),
            TEXTS,
            st.sampled_from(["<", "<=", ">", ">="]),
            st.one_of(TEXTS, NUMBERS),
        ),
    )
)
def test_format_condition_is_the_inverse_of_parse_filter(condition: Condition) -> None:
    (parsed,) = parse_filter(format_condition(condition))
    assert parsed == condition
    assert [type(value) for value in parsed.values] == [type(value) for value in condition.values]


def test_a_filter_is_a_text_a_condition_or_both() -> None:
    condition = Condition(column="a", operator="=", values=(2.5,))
    assert parse_filter(condition) == (condition,)
    assert parse_filter([condition, "b=c"]) == (condition, *parse_filter("b=c"))
    with pytest.raises(ConfigError, match="no text form"):
        format_condition(condition)
