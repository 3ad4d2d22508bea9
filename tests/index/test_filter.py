from __future__ import annotations

import pytest

from vitrieve.errors import ConfigError
from vitrieve.index.filter import Condition, parse_filter, passes

IMAGE = {"label": "apple", "price": "2.50", "date": "2026-11-23", "code": "007"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("label=apple", True),
        ("label=pear|apple", True),
        ("label=pear", False),
        ("label!=pear", True),
        ("label!=apple", False),
        ("label != pear|apple", False),
        ("price<2.6", True),
        ("price<=2.5", True),
        ("price>2.5", False),
        ("price>=1e0", True),
        ("price=2.5", False),  # after = everything is text
        ("code=007", True),
        ("code<8", True),
        ("date>=2026-01-01", True),
        ("date<2026-01-01", False),
        ("label<5", False),  # no number passes no comparison with one
        ("missing=x", False),
        ("missing!=x", True),
        ("missing<5", False),
    ],
)
def test_passes_follows_the_condition(text: str, expected: bool) -> None:
    assert passes(IMAGE, parse_filter([text])) is expected


def test_passes_needs_all_conditions() -> None:
    assert passes(IMAGE, parse_filter(["label=apple", "price<3"]))
    assert not passes(IMAGE, parse_filter(["label=apple", "price<2"]))
    assert passes({}, ())


def test_passes_compares_numbers_with_numbers() -> None:
    assert passes(IMAGE, (Condition(column="price", operator="=", values=(2.5,)),))
    assert not passes(IMAGE, (Condition(column="label", operator="=", values=(2.5,)),))


@pytest.mark.parametrize("text", ["", "label", "=x", "<5", "label~x"])
def test_parse_filter_refuses_what_is_no_condition(text: str) -> None:
    with pytest.raises(ConfigError, match="is no filter"):
        parse_filter([text])


@pytest.mark.parametrize(("operator", "values"), [("<", ("1", "2")), ("=", ()), ("<", (float("nan"),)), ("~", ("x",))])
def test_condition_refuses_what_cannot_be_compared(operator: str, values: tuple[str | float, ...]) -> None:
    with pytest.raises(ConfigError):
        Condition(column="label", operator=operator, values=values)  # type: ignore[arg-type]
