from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vitrieve.data.records import ImageRecord
from vitrieve.errors import InputError
from vitrieve.index.open import create_index
from vitrieve.index.store import StoreInfo, StoreKind, VectorStore
from vitrieve.search.facets import count_values, find_facets

KINDS: tuple[StoreKind, ...] = ("exact", "lance")


def build(folder: Path, kind: StoreKind, records: list[ImageRecord]) -> VectorStore:
    info = StoreInfo(kind=kind, fingerprint="f" * 64, encoder_source="e", image_size=32, embedding_dim=4)
    store = create_index(info, folder)
    vectors = np.eye(4, dtype=np.float32)[np.arange(len(records)) % 4]
    for start in range(0, len(records), 50):
        store.upsert(vectors[start : start + 50], records[start : start + 50])
    return store


def make_record(number: int, metadata: dict[str, str]) -> ImageRecord:
    return ImageRecord(
        image_id=f"{number:03}.png", path=Path(f"/p/{number}.png"), label=0, split="test", metadata=metadata
    )


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_a_loop_over_all_images(kind: StoreKind, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    records = []
    for number in range(130):
        metadata = {
            "fruit": str(draw.choice(["apple", "pear", "kiwi", "Äpfel | x"])),
            "year": str(draw.integers(2000, 2010)),
        }
        records.append(make_record(number, {key: value for key, value in metadata.items() if draw.random() < 0.8}))
    with_store = build(tmp_path / "index", kind, records)
    for conditions in ([], ["year>=2005"], ["fruit!=apple", "year<2004"]):

        def passes(metadata: dict[str, str], conditions: list[str] = conditions) -> bool:
            year = metadata.get("year")
            if conditions == ["year>=2005"]:
                return year is not None and int(year) >= 2005
            return not conditions or (metadata.get("fruit") != "apple" and year is not None and int(year) < 2004)

        passing = [record.metadata for record in records if passes(dict(record.metadata))]
        for column in ("fruit", "year"):
            expected = Counter(metadata[column] for metadata in passing if column in metadata)
            found = count_values(with_store, column, filter=conditions, num_values=3)
            ranked = sorted(expected.items(), key=lambda item: (-item[1], item[0]))
            assert found.values == tuple(ranked[:3])
            assert (found.num_values, found.num_images) == (len(expected), len(passing))
            assert found.num_without == sum(column not in metadata for metadata in passing)
            assert found.num_images == with_store.count(conditions)
    with_store.close()


def test_a_wrong_column_is_told(tmp_path: Path) -> None:
    store = build(tmp_path / "one", "exact", [make_record(0, {"fruit": "apple"})])
    with pytest.raises(InputError, match="Did you mean 'fruit'"):
        count_values(store, "fruits")
    bare = build(tmp_path / "two", "exact", [make_record(0, {})])
    with pytest.raises(InputError, match="no metadata"):
        count_values(bare, "fruit")


@pytest.mark.parametrize("kind", KINDS)
def test_facets_are_those_of_a_loop_over_all_images(kind: StoreKind, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    records = []
    for number in range(700):
        metadata = {
            "fruit": str(draw.choice(["apple", "pear", "kiwi"])),
            "grams": str(draw.integers(5, 900)),
            "day": f"2026-{draw.integers(1, 13):02}-0{draw.integers(1, 10)}",
            "name": f"picture {number}",
        }
        if number % 7 == 0:
            del metadata["fruit"]
        records.append(make_record(number, metadata))
    store = build(tmp_path / "index", kind, records)

    facets = {facet.column: facet for facet in find_facets(store, filter=("grams<100",), num_values=2)}

    passing = [record.metadata for record in records if int(record.metadata["grams"]) < 100]
    fruit = Counter(metadata["fruit"] for metadata in passing if "fruit" in metadata)
    assert list(facets) == ["day", "fruit", "grams", "name"]  # few pass, so that even names are few
    assert facets["fruit"].values == tuple(sorted(fruit.items(), key=lambda item: (-item[1], item[0]))[:2])
    assert facets["fruit"].num_values == 3
    assert facets["fruit"].num_without == len(passing) - fruit.total()
    assert (facets["fruit"].least, facets["fruit"].most) == (None, None)
    grams = [int(metadata["grams"]) for metadata in passing]
    assert (facets["grams"].kind, facets["grams"].least, facets["grams"].most) == (
        "number",
        str(min(grams)),
        str(max(grams)),
    )
    days = [metadata["day"] for metadata in passing]
    assert (facets["day"].kind, facets["day"].least, facets["day"].most) == ("date", min(days), max(days))
    everything = {facet.column: facet for facet in find_facets(store)}
    assert "name" not in everything  # 700 different texts
    assert everything["grams"].num_without == 0
    store.close()


def test_an_index_without_metadata_has_no_facets(tmp_path: Path) -> None:
    store = build(tmp_path / "index", "exact", [make_record(0, {})])
    assert find_facets(store) == ()
    with pytest.raises(InputError, match="unknown metadata column"):
        find_facets(store, filter=("fruit=apple",))
    store.close()
