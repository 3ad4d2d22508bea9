"""The map as it is kept: made once, read again, made anew when the index changed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vitrieve.data.records import ImageRecord
from vitrieve.embed.embeddings import Embeddings
from vitrieve.errors import ArtifactError, ConfigError, DataError, InputError
from vitrieve.index.open import build_index, open_index
from vitrieve.index.store import StoreKind
from vitrieve.mapping import collection_map
from vitrieve.mapping.collection_map import OWN_COLUMNS, find_map, map_collection, write_points
from vitrieve.similarity import normalize

pytest.importorskip("openTSNE", reason="needs vitrieve[map]")


def make_embeddings(num_images: int) -> Embeddings:
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(4, 16))
    labels = np.arange(num_images) % 4
    vectors = normalize((centers[labels] + 0.3 * generator.normal(size=(num_images, 16))).astype(np.float32))
    records = [
        ImageRecord(
            image_id=f"class{labels[row]}/{row:03}.png",
            path=Path(f"/nowhere/{row}.png"),
            label=int(labels[row]),
            split="test",
            metadata={"label": f"Class{labels[row]}", "x": "left", **({"price": f"{row}.5"} if row % 2 else {})},
        )
        for row in range(num_images)
    ]
    return Embeddings(
        vectors=vectors,
        records=tuple(records),
        failures=(),
        fingerprint="f" * 64,
        encoder_source="tiny",
        image_size=32,
        license="",
    )


def make_index(folder: Path, num_images: int, store: StoreKind = "exact") -> Path:
    build_index(make_embeddings(num_images), folder, store=store).close()
    return folder


def test_a_map_is_kept_and_computed_anew_only_when_the_index_changed(tmp_path: Path) -> None:
    folder = make_index(tmp_path / "index", 60, "lance")
    first = map_collection(folder)
    assert (first.num_images, first.num_clusters, first.is_reused) == (60, 4, False)
    labels = first.table["label"].to_pylist()
    assert len({*zip(first.clusters.tolist(), labels, strict=True)}) == 4  # the groups are the classes
    again = map_collection(folder)
    assert again.is_reused
    assert again.table.equals(first.table)
    assert again.figures == first.figures
    assert not map_collection(folder, seed=1).is_reused
    with_other_seed = find_map(folder)
    assert with_other_seed is not None
    assert not np.array_equal(with_other_seed.places, first.places)

    store = open_index(folder)
    store.delete([first.image_ids[5]])
    vectors, (record,) = store.get([first.image_ids[6]])
    store.upsert(vectors, [replace(record, metadata={"label": "renamed"})])
    store.close()
    changed = map_collection(folder, seed=1)
    assert (changed.num_images, changed.is_reused) == (59, False)
    assert "renamed" in changed.table["label"].to_pylist()
    store = open_index(folder)
    store.upsert(vectors, [replace(record, metadata={"label": "once more"})])
    store.close()
    metadata_only = map_collection(folder, seed=1)
    assert metadata_only.is_reused
    assert "once more" in metadata_only.table["label"].to_pylist()
    assert not open_index(folder).verify()


def test_one_seed_gives_one_map(tmp_path: Path) -> None:
    one, other = (map_collection(make_index(tmp_path / name, 40)) for name in ("one", "other"))
    assert one.table.equals(other.table)
    assert one.digest == other.digest


@pytest.mark.parametrize("num_images", [1, 2, 3])
def test_few_pictures_have_a_map(tmp_path: Path, num_images: int) -> None:
    made = map_collection(make_index(tmp_path / "index", num_images))
    assert made.places.shape == (num_images, 2)
    assert made.num_clusters == 1
    assert made.table["nearest"].null_count == made.table["nearest_similarity"].null_count == int(num_images == 1)
    assert (made.nearest >= 0).all() == (num_images > 1)
    assert map_collection(made.path.parent).table.equals(made.table)
    assert made.to_json()["num_images"] == num_images


def test_points_are_a_plain_table(tmp_path: Path) -> None:
    made = map_collection(make_index(tmp_path / "index", 12))
    write_points(made, tmp_path / "new" / "points.parquet")
    table = pq.read_table(tmp_path / "new" / "points.parquet")
    assert table.column_names == [*OWN_COLUMNS, "label", "price", "metadata_x"]
    assert table["metadata_x"].to_pylist() == ["left"] * 12
    assert table["price"].null_count == 6
    assert np.abs(np.stack([table["x"], table["y"]])).max() <= 1
    given = make_embeddings(12)
    rows = [[record.image_id for record in given.records].index(name) for name in made.image_ids]
    vectors = given.vectors[rows].astype(np.float64)
    similarities = vectors @ vectors.T - 2 * np.eye(12)
    assert table["nearest"].to_pylist() == [made.image_ids[row] for row in similarities.argmax(axis=1)]
    assert np.abs(table["nearest_similarity"].to_numpy() - similarities.max(axis=1)).max() < 1e-6


def read_atlas_command() -> list[str]:
    """Read the command for embedding-atlas that the guide gives."""
    guide = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "map.md").read_text()
    (command,) = re.findall(r"^embedding-atlas points\.parquet (.*)$", guide, re.MULTILINE)
    return str(command).split()


def test_the_columns_that_the_guide_names_to_embedding_atlas_are_what_it_asks_for(tmp_path: Path) -> None:
    """It asks for a number in x and y of every row, and for texts; all other columns become its charts."""
    write_points(map_collection(make_index(tmp_path / "index", 12)), tmp_path / "points.parquet")
    table = pq.read_table(tmp_path / "points.parquet")
    words = read_atlas_command()
    named = dict(zip(words[::2], words[1::2], strict=True))
    assert set(named) == {"--x", "--y", "--text"}
    for flag in ("--x", "--y"):
        column = table[named[flag]]
        assert pa.types.is_floating(column.type)
        assert np.isfinite(column.to_numpy()).all()
    assert pa.types.is_string(table[named["--text"]].type)
    assert len(set(table[named["--text"]].to_pylist())) == 12
    simple = (pa.types.is_floating, pa.types.is_integer, pa.types.is_string)
    assert all(any(is_kind(kind) for is_kind in simple) for kind in table.schema.types)


def test_embedding_atlas_opens_the_points_with_the_command_of_the_guide(tmp_path: Path) -> None:
    atlas = pytest.importorskip("embedding_atlas.cli", reason="needs embedding-atlas, which no extra installs")
    testing = pytest.importorskip("click.testing")
    made = map_collection(make_index(tmp_path / "index", 12))
    write_points(made, tmp_path / "points.parquet")
    out = tmp_path / "atlas"
    words = [str(tmp_path / "points.parquet"), *read_atlas_command(), "--export-application", str(out)]
    result = testing.CliRunner().invoke(atlas.main, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    props = json.loads((out / "data" / "metadata.json").read_text())["props"]
    assert props["data"]["projection"] == {"x": "x", "y": "y"}
    assert props["data"]["text"] == "image_id"
    kept = pq.read_table(out / "data" / "dataset.parquet")
    assert kept["image_id"].to_pylist() == made.image_ids


def test_splits_are_a_column_where_there_are_several(tmp_path: Path) -> None:
    embeddings = make_embeddings(12)
    records = tuple(
        replace(record, split="train" if row % 3 else "test") for row, record in enumerate(embeddings.records)
    )
    build_index(replace(embeddings, records=records), tmp_path / "index", store="lance").close()
    made = map_collection(tmp_path / "index")
    assert made.columns == ["label", "price", "split", "metadata_x"]
    splits = dict(zip(made.image_ids, made.table["split"].to_pylist(), strict=True))
    assert splits == {record.image_id: record.split for record in records}


def test_what_cannot_be_mapped_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactError, match="no finished index"):
        map_collection(tmp_path / "nothing")
    folder = make_index(tmp_path / "index", 3)
    monkeypatch.setattr(collection_map, "MAX_IMAGES", 2)
    with pytest.raises(ConfigError, match="holds 3 pictures; a map takes at most 2"):
        map_collection(folder)
    store = open_index(folder)
    store.delete(list(store.image_ids()))
    store.close()
    with pytest.raises(DataError, match="holds no picture"):
        map_collection(folder)


@pytest.mark.parametrize("fault", ["read-only", "no library"])
def test_what_would_fail_after_the_work_is_said_before(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse_writing: Callable[[Path], None]
) -> None:
    folder = make_index(tmp_path / "index", 10)
    if fault == "read-only":
        refuse_writing(folder)
    else:
        monkeypatch.setattr("vitrieve.mapping.layout.find_spec", lambda _: None)
    monkeypatch.setattr(collection_map, "find_neighbors", None)  # no work is begun
    with pytest.raises(InputError, match=r"make the folder writable|pip install 'vitrieve\[map\]'"):
        map_collection(folder)


def test_a_damaged_map_is_made_anew(tmp_path: Path) -> None:
    folder = make_index(tmp_path / "index", 10)
    assert find_map(folder) is None
    made = map_collection(folder)
    made.path.write_bytes(made.path.read_bytes()[:-20])
    assert find_map(folder) is None
    assert not map_collection(folder).is_reused
    pq.write_table(made.table.replace_schema_metadata(None), made.path)
    assert find_map(folder) is None
