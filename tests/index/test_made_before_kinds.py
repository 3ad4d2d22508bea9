"""Indexes that were made before columns had kinds, kept in ``made_before_kinds``: the files hold all that kinds need.

They were written by the commit before this file's first, with the images of ``ROWS``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.index.conformance import make_info, make_record, normalized
from vitrieve.errors import InputError
from vitrieve.index.filter import name_kind
from vitrieve.index.open import open_index
from vitrieve.index.store import VectorStore

FOLDER = Path(__file__).parent / "made_before_kinds"
ROWS = [
    {
        "label": "apple", "year": "2020", "price": "2.5", "flag": "true", "day": "2020-03-01", "code": "01",
        " size <= 5 ": "one|two ",
    },
    {"label": "pear", "year": "2021", "price": "10", "flag": "false", "day": "2020-03-01T12:00:00", "code": "1"},
    {"label": "it's", "year": "2020.0", "price": "", "flag": "", "day": "", "code": "A7"},
    {
        "label": "5", "year": "1999", "price": "2.50", "flag": "true", "day": "2021-01-31", "code": "007",
        "mixed": "12",
    },
    {"label": "apple", "mixed": "unknown", "day": "2019-12-31"},
    {"label": "Apple", "year": "", "mixed": "2020-05-01"},
]  # fmt: skip
SAME = {
    "label=apple": "04",
    "label=5": "3",
    "label!=apple": "1235",
    "label>=5": "3",
    "label=it's|pear": "12",
    "label>=b": "12",
    'label>="5"': "012345",
    "year=1999|2021": "13",
    "year>2000": "012",
    "year=": "5",
    "price<5": "03",
    "price=": "2",
    "flag=true": "03",
    "flag!=true": "1245",
    "flag=": "2",
    "day=2020-03-01T12:00:00": "1",
    "day>=2020-03-01": "013",
    "code=01": "0",
    "code=A7": "2",
    "code>0.5": "013",
    "mixed=unknown": "4",
    "mixed>5": "3",
    "mixed>=2020-01-01": "45",
    'price="2.5"': "0",
    'day="2020-03-01"': "0",
    '" size <= 5 "="one|two "': "0",
}
"""What was found before."""
NEW = {
    "year=2020": "02",
    "price=2.50": "03",
    "day=2020-03-01": "01",
    "day<=2020-03-01": "014",
    "day>2020-03-01": "3",
    "day>=2020": "013",
}
"""What the kinds of the columns find in addition, or no longer."""


@pytest.fixture(params=["exact", "lance"])
def old_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VectorStore]:
    shutil.copytree(FOLDER / request.param, tmp_path / "index")
    store = open_index(tmp_path / "index")
    assert store.info == make_info(request.param)
    yield store
    store.close()


def find(store: VectorStore, filter: str) -> str:
    hits = store.search(normalized([[1] * 8]), 10, filter)[0]
    return "".join(sorted(hit.record.image_id[0] for hit in hits))


def test_an_old_index_opens_and_answers(old_store: VectorStore) -> None:
    assert old_store.verify() == []
    _, records = old_store.get([f"{number}.png" for number in range(6)])
    assert [record.metadata for record in records] == ROWS
    expected = SAME | NEW
    assert {filter: find(old_store, filter) for filter in expected} == expected
    with pytest.raises(InputError, match="year is a number column"):
        find(old_store, "year>=abc")


def test_an_old_index_takes_new_images(old_store: VectorStore) -> None:
    old_store.upsert(normalized([[1] * 8]), [make_record("6.png", {"year": "2020", "new": "true"})])
    kinds = {column: name_kind(kinds) for column, kinds in old_store.kinds(old_store.columns()).items()}
    assert kinds == {
        " size <= 5 ": "text", "code": "text", "day": "date", "flag": "boolean", "label": "text", "mixed": "text",
        "new": "boolean", "price": "number", "year": "number",
    }  # fmt: skip
    assert (find(old_store, "year=2020"), find(old_store, "new=TRUE")) == ("026", "6")
