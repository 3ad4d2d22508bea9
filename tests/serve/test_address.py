from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from vitrieve.errors import ConfigError
from vitrieve.index.filter import ColumnKind
from vitrieve.search.facets import Facet
from vitrieve.serve.settings import Limits
from vitrieve.serve.views import Address, describe_facets, parse_address

texts = st.lists(st.text(min_size=1, max_size=8), max_size=3, unique=True).map(tuple)
sides = st.integers(0, 100).map(float)
boxes = st.none() | st.tuples(sides, sides, sides, sides).map(
    lambda box: (box[0], box[1], box[0] + 1 + box[2], box[1] + 1)
)
addresses = st.builds(
    Address,
    uploads=texts,
    plus=texts,
    minus=texts,
    box=boxes,
    filter=texts,
    group_by=st.text(max_size=5),
    is_near_duplicate_grouped=st.booleans(),
    k=st.integers(1, 999),
    page=st.integers(1, 999),
)


@given(addresses)
def test_spell_and_parse_are_each_others_inverse(address: Address) -> None:
    assert parse_address(QueryParams(address.spell().partition("?")[2]), Limits()) == address


def test_like_keeps_how_results_are_chosen_and_drops_the_rest() -> None:
    address = Address(uploads=("u",), minus=("m",), box=(0, 0, 1, 1), filter=("a=b",), group_by="g", k=12, page=3)
    assert address.like("x") == Address(plus=("x",), filter=("a=b",), group_by="g", k=12)


def test_adding_moves_an_image_to_the_other_side() -> None:
    address = Address(plus=("a", "b"), minus=("c",), page=4)
    assert address.adding(minus="a") == Address(plus=("b",), minus=("c", "a"))
    assert address.adding(plus="c") == Address(plus=("a", "b", "c"))
    assert address.adding(plus="a") == Address(plus=("a", "b"), minus=("c",))


def test_removing_keeps_the_box_only_with_its_picture() -> None:
    address = Address(plus=("a",), box=(0, 0, 5, 5), filter=("x=1", "y=2"))
    assert address.removing(condition="x=1") == Address(plus=("a",), box=(0, 0, 5, 5), filter=("y=2",))
    assert address.removing(plus="a").box is None


@pytest.mark.parametrize(
    ("span", "left"),
    [
        ("least=3&most=9", ["copy>=3", "copy<=9"]),
        ("least=3&most=", ["copy>=3"]),
        ("least=&most= 9 ", ["copy<=9"]),
        ("least=&most= ", []),
        ("", []),
    ],
)
def test_a_span_takes_the_place_of_the_columns_earlier_one(span: str, left: list[str]) -> None:
    beside = ["copy>1", 'copy<="7"', "copy=5", "copies>=2", "no condition"]
    given = [("filter", one) for one in ("copy>=2", *beside, "copy<=5", '"copy">=1')]
    query = QueryParams([*given, ("range", "copy"), *QueryParams(span).multi_items()])
    assert parse_address(query, Limits()).filter == (*beside, *left)


def test_spans_of_dates_and_of_odd_names_are_replaced() -> None:
    for column, before, after in (("taken", "2026-03-01", "2026-04"), ('a "b" >= c', "1.50", "-2e3")):
        first = parse_address(QueryParams({"range": column, "least": before, "most": before}), Limits())
        assert len(first.filter) == 2
        fields = [*first.fields(), ("range", column), ("least", after)]
        again = parse_address(QueryParams(fields), Limits())
        assert again == parse_address(QueryParams({"range": column, "least": after}), Limits())


@pytest.mark.parametrize(
    ("kind", "filter", "least", "most"),
    [
        ("number", ("copy>=2.0", "copy<=1e1", "other<=3"), "2", "10"),
        ("number", ("copy>=2", "copy>=10", "copy<9"), "10", ""),
        ("number", ("copy>=10", "copy>=2", "copy<=9", "copy<=10"), "10", "9"),
        ("number", ('copy>="2"', "copy=4"), "", ""),
        ("date", ("copy>=2020-05", "copy>=2020", "copy<=2021-05", "copy<=2021"), "2020-05", "2021-05"),
        ("date", ("copy>=2020-05-01 12:00", "copy>=2020-05-01T10:00", "copy>=2020-05-01"), "2020-05-01 12:00", ""),
    ],
)
def test_the_form_of_a_span_shows_the_ends_that_count(
    kind: ColumnKind, filter: tuple[str, ...], least: str, most: str
) -> None:
    facet = Facet(column="copy", kind=kind, values=(), num_values=9, num_without=0, least="0", most="9")
    for order in (filter, filter[::-1]):
        (described,) = describe_facets([facet], Address(filter=order))
        assert described["span"] == {"least": least, "most": most}


@pytest.mark.parametrize("query", ["page=0", "page=-1", "page=1e9", "k=", "k=x", "k=9999999", "box=a", "page=²"])
def test_parse_refuses_numbers_that_are_none(query: str) -> None:
    if query == "k=":
        assert parse_address(QueryParams(query), Limits()) == Address()
        return
    with pytest.raises(ConfigError):
        parse_address(QueryParams(query), Limits())
