from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vitrieve.data.records import ImageRecord
from vitrieve.embed.rows import build_table, read_rows, to_records
from vitrieve.errors import ArtifactError

RECORDS = (
    ImageRecord(image_id="a.png", path=Path("/photos/a.png"), label=3, split="train", metadata={"name": "ä <b>"}),
    ImageRecord(image_id="b.png", path=Path("/photos/b.png"), label=0, split="test", box=(1.5, 2.0, 30.0, 40.0)),
    ImageRecord(image_id="c.png", path=Path("/photos/c.png"), label=1, split="test", is_query=False),
)


def test_table_round_trips_through_parquet(tmp_path: Path) -> None:
    pq.write_table(build_table(RECORDS, [None] * 3, 0), tmp_path / "rows.parquet")
    assert to_records(read_rows(tmp_path / "rows.parquet")) == RECORDS


def test_build_table_numbers_the_good_rows_only() -> None:
    table = build_table(RECORDS, [None, "the file is empty", None], 7)
    assert table["row"].to_pylist() == [7, None, 8]
    assert table["status"].to_pylist() == ["ok", "bad", "ok"]
    assert table["reason"].to_pylist() == [None, "the file is empty", None]


def test_build_table_makes_paths_absolute() -> None:
    record = ImageRecord(image_id="a", path=Path("a.png"), label=0, split="test")
    assert build_table([record], [None], 0)["path"].to_pylist() == [os.path.join(os.getcwd(), "a.png")]


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
