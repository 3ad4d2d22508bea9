from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vitrieve.data.records import ImageRecord
from vitrieve.embed.rows import SCHEMA, StoredRecords, build_table, read_rows, take_rows, to_records
from vitrieve.errors import ArtifactError

RECORDS = (
    ImageRecord(image_id="a.png", path=Path("/photos/a.png"), label=3, split="train", metadata={"name": "ä <b>"}),
    ImageRecord(image_id="b.png", path=Path("/photos/b.png"), label=0, split="test", box=(1.5, 2.0, 30.0, 40.0)),
    ImageRecord(image_id="c.png", path=Path("/photos/c.png"), label=1, split="test", is_query=False),
)


def test_table_round_trips_through_parquet(tmp_path: Path) -> None:
    pq.write_table(build_table(RECORDS, [None] * 3, 0), tmp_path / "rows.parquet")
    assert to_records(read_rows(tmp_path / "rows.parquet")) == RECORDS


def test_read_rows_reads_a_file_with_other_columns_as_one_of_the_schema(tmp_path: Path) -> None:
    table = build_table(RECORDS, [None] * 3, 0)
    pq.write_table(table.append_column("more", table["label"]).drop_columns(["reason"]), tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet").equals(table)


@pytest.mark.parametrize("rows", [[2, 0, 0], [], [1]])
def test_take_rows_takes_what_arrow_takes(rows: list[int]) -> None:
    table = build_table(RECORDS, [None] * 3, 0)
    for places in (np.array(rows, dtype=np.int32), np.array(rows, dtype=np.int64)[::-1]):
        assert take_rows(table, places).equals(table.take(pa.array(places, pa.int64())))


def test_build_table_numbers_the_good_rows_only() -> None:
    table = build_table(RECORDS, [None, "the file is empty", None], 7)
    assert table["row"].to_pylist() == [7, None, 8]
    assert table["status"].to_pylist() == ["ok", "bad", "ok"]
    assert table["reason"].to_pylist() == [None, "the file is empty", None]


def test_build_table_makes_paths_absolute() -> None:
    record = ImageRecord(image_id="a", path=Path("a.png"), label=0, split="test")
    assert build_table([record], [None], 0)["path"].to_pylist() == [os.path.join(os.getcwd(), "a.png")]


def test_build_table_goes_up_from_where_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "far" / "a.png").touch()
    (tmp_path / "link").symlink_to("far/deep")
    (tmp_path / "photos").symlink_to("far")
    expected = {
        "link/../a.png": "far/a.png",
        "far/../photos/a.png": "photos/a.png",  # as earlier embeddings have it
        "photos/a.png": "photos/a.png",
        "link/../gone.png": "gone.png",
    }
    records = [ImageRecord(image_id=name, path=tmp_path / name, label=0, split="test") for name in expected]
    paths = build_table(records, [None] * 4, 0)["path"].to_pylist()
    assert paths == [str(tmp_path / name) for name in expected.values()]


def test_build_table_spells_a_path_that_is_no_text() -> None:
    record = ImageRecord(image_id="a", path=Path(os.fsdecode(b"/photos/caf\xe9.png")), label=0, split="test")
    table = build_table([record], [None], 0)
    assert table["path"].to_pylist() == ["file:///photos/caf%E9.png"]
    assert to_records(table) == (record,)


def test_build_table_of_nothing() -> None:
    assert to_records(build_table([], [], 0)) == ()


def test_read_rows_refuses_another_table(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_text("image_id,path")
    with pytest.raises(ArtifactError, match=r"rows\.parquet"):
        read_rows(tmp_path / "rows.parquet")


def write_groups(path: Path, num_groups: int, bad: set[int]) -> list[ImageRecord]:
    """Write row groups of three rows, some rows bad, and return the good records."""
    good: list[ImageRecord] = []
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for start in range(0, 3 * num_groups, 3):
            records = [
                ImageRecord(
                    image_id=f"{row:03}", path=Path(f"/{row}"), label=row, split="test", metadata={"a": str(row)}
                )
                for row in range(start, start + 3)
            ]
            reasons = ["empty" if record.label in bad else None for record in records]
            writer.write_table(build_table(records, reasons, len(good)))
            good += [record for record in records if record.label not in bad]
    return good


@pytest.mark.parametrize("bad", [set(), {0}, {3, 4, 5}, {2, 9, 10, 11, 297, 298, 299}, set(range(300))])
def test_stored_records_are_the_good_rows(tmp_path: Path, bad: set[int]) -> None:
    path = tmp_path / "rows.parquet"
    good = write_groups(path, 100, bad)
    stored = StoredRecords(path)
    assert stored == tuple(good)
    assert list(stored) == good
    assert [stored[place] for place in range(-len(good), len(good))] == good + good
    for cut in (slice(None), slice(5, 20), slice(None, None, -7), slice(290, 400), slice(7, 3)):
        assert stored[cut] == tuple(good[cut])
    assert stored != good[:-1] or not good
    assert stored.read_failures() == tuple((f"{row:03}", "empty") for row in sorted(bad))
    with pytest.raises(IndexError):
        stored[len(good)]
    assert pickle.loads(pickle.dumps(stored)) == tuple(good)


def test_stored_records_are_those_of_the_file_that_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    good = write_groups(path, 5, set())
    stored = StoredRecords(path)
    write_groups(tmp_path / "other", 4, {1})
    (tmp_path / "other").replace(path)
    assert stored == good


def test_stored_records_are_read_by_several_threads(tmp_path: Path) -> None:
    good = write_groups(tmp_path / "rows.parquet", 100, {7})
    stored = StoredRecords(tmp_path / "rows.parquet")
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda place: stored[place], range(len(good)))) == good


def test_stored_records_refuse_what_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    with pytest.raises(ArtifactError, match="make the artifact again"):
        StoredRecords(path)
    write_groups(path, 100, set())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    for read in (StoredRecords, read_rows):
        with pytest.raises(ArtifactError, match="make the artifact again"):
            read(path)
    path.write_bytes(data[:2000] + bytes(3000) + data[5000:])
    with pytest.raises(ArtifactError, match="make the artifact again"):
        list(StoredRecords(path))
