"""Embeddings on disk are measured and calibrated on part by part, with the figures of records that are held."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.evaluation.conftest import MakeEncoder
from tests.evaluation.test_run import engine_of
from tests.index.test_streamed import make_embeddings
from vitrieve.data.records import (
    SPLITS,
    ChosenRecords,
    Dataset,
    ImageRecord,
    RecordColumns,
    RecordTable,
    read_boxes,
    read_columns,
    read_ids,
)
from vitrieve.embed.collection import EmbedSettings, embed_collection
from vitrieve.embed.embeddings import Embeddings, load_embeddings
from vitrieve.embed.rows import StoredRecords
from vitrieve.errors import ConfigError, DataError, DiskFullError, FingerprintError
from vitrieve.evaluation import measure as measuring
from vitrieve.evaluation.measure import measure
from vitrieve.evaluation.protocols import select_records, take_all_classes
from vitrieve.evaluation.run import evaluate
from vitrieve.index.store import sort_names
from vitrieve.search.threshold import calibrate_embeddings, measure_nearest
from vitrieve.similarity import similarity

NUM_IMAGES, NUM_CLASSES = 700, 40

PEAK = """
import sys, threading, time
from vitrieve.data.records import Dataset
from vitrieve.embed.embeddings import load_embeddings
from vitrieve.evaluation.measure import measure
from vitrieve.search.threshold import calibrate_embeddings

def read_bytes():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

def watch():
    global peak
    while True:
        peak = max(peak, read_bytes())
        time.sleep(0.005)

folder, task = sys.argv[1:]
peak = start = read_bytes()
threading.Thread(target=watch, daemon=True).start()
embeddings = load_embeddings(folder)
if task == "measure":
    dataset = Dataset(name="d", protocol="p", records=embeddings.records, label_names=("a", "b"))
    measure(dataset, embeddings, "e", num_queries=2, has_intervals=False)
else:
    calibrate_embeddings(embeddings, name="d", num_queries=30)
print(peak - start)
"""
"""Prints by how much the memory grew that belongs to no file."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_embeddings(tmp_path / "embeddings", NUM_IMAGES, 8, num_classes=NUM_CLASSES, group_rows=256)
    monkeypatch.setattr("vitrieve.embed.embeddings.MAX_HELD_RECORDS", 600)
    return tmp_path / "embeddings"


def make_dataset(records: Sequence[ImageRecord]) -> Dataset:
    names = tuple(f"class {number}" for number in range(NUM_CLASSES))
    return Dataset(name="stored", protocol="own_classes", records=records, label_names=names)


def hold(embeddings: Embeddings) -> Embeddings:
    return dataclasses.replace(embeddings, records=tuple(embeddings.records))


def give_roles(record: ImageRecord, row: int) -> ImageRecord:
    split = SPLITS[2] if row % 5 else SPLITS[0]
    return dataclasses.replace(record, split=split, is_query=row % 3 == 0, is_gallery=row % 7 != 0)


class HeldTable(RecordTable):
    """Records that are held, as a table: what a lazy one has to equal."""

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        self._records = tuple(records)

    def __len__(self) -> int:
        return len(self._records)

    def _make(self, row: int) -> ImageRecord:
        return self._records[row]

    def read_columns(self) -> RecordColumns:
        return read_columns(self._records)

    def read_ids(self) -> Iterator[str]:
        return read_ids(self._records)


def test_stored_records_have_the_columns_and_names_of_held_ones(folder: Path) -> None:
    stored = load_embeddings(folder).records
    assert isinstance(stored, StoredRecords)
    held = tuple(stored)
    for one, other in zip(read_columns(stored), read_columns(held), strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    assert list(read_ids(stored)) == [record.image_id for record in held]
    assert list(read_boxes(stored)) == [record.box for record in held]


def test_chosen_records_are_those_of_the_rows(folder: Path) -> None:
    stored = load_embeddings(folder).records
    assert isinstance(stored, StoredRecords)
    held, rows = tuple(stored), np.array([0, 1, 255, 256, 300, 699])
    chosen = ChosenRecords(ChosenRecords(stored, np.arange(NUM_IMAGES)), rows, split="train")
    wanted = tuple(dataclasses.replace(held[row], split="train") for row in rows)
    assert tuple(chosen) == wanted
    assert chosen[1:3] == wanted[1:3]
    assert chosen[-1] == wanted[-1]
    assert list(chosen.read_ids()) == [record.image_id for record in wanted]
    assert list(chosen.read_boxes()) == [record.box for record in wanted]
    assert set(chosen.read_columns().splits.tolist()) == {SPLITS.index("train")}


@pytest.mark.parametrize("num_queries", [None, 50])
def test_streamed_records_give_the_figures_of_held_ones(folder: Path, num_queries: int | None) -> None:
    stored = load_embeddings(folder)
    roles = [give_roles(record, row) for row, record in enumerate(stored.records)]
    one = measure(make_dataset(HeldTable(roles)), stored, "e", num_queries=num_queries)
    other = measure(make_dataset(tuple(roles)), hold(stored), "e", num_queries=num_queries)
    assert one.result == other.result
    assert list(one.task.records) == list(other.task.records)
    assert np.array_equal(one.vectors, other.vectors)
    assert (one.result.num_drawn_from is None) == (num_queries is None)


def test_all_classes_of_a_table_are_those_of_held_records(folder: Path) -> None:
    roles = [give_roles(record, row) for row, record in enumerate(load_embeddings(folder).records)]
    one, other = take_all_classes(make_dataset(HeldTable(roles))), take_all_classes(make_dataset(tuple(roles)))
    assert tuple(one.records) == tuple(other.records)
    assert one.notes == other.notes
    assert tuple(select_records(one)) == tuple(select_records(other))


def test_embeddings_in_another_order_are_found_by_name(folder: Path) -> None:
    stored = load_embeddings(folder)
    order = np.random.default_rng(0).permutation(NUM_IMAGES)
    records = tuple(stored.records[row] for row in order.tolist())
    shuffled = dataclasses.replace(stored, vectors=stored.vectors[order], records=records)
    dataset = make_dataset(tuple(stored.records))
    assert measure(dataset, shuffled, "e").result == measure(dataset, stored, "e").result


def test_unreadable_images_are_left_out_and_counted(folder: Path) -> None:
    stored = hold(load_embeddings(folder))
    left = np.setdiff1d(np.arange(NUM_IMAGES), [3, 300, 699])
    bad = tuple((stored.records[row].image_id, "cut short") for row in (699, 3, 300))
    partial = dataclasses.replace(
        stored,
        vectors=stored.vectors[left],
        records=tuple(stored.records[row] for row in left.tolist()),
        failures=(*bad, ("of another collection", "cut short")),
    )
    found = measure(make_dataset(stored.records), partial, "e")
    assert found.failures == bad
    assert [record.image_id for record in found.task.records] == [record.image_id for record in partial.records]
    assert np.array_equal(found.vectors, partial.vectors)


def test_many_scattered_vectors_are_copied_on_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = load_embeddings(folder)
    dataset = make_dataset(tuple(record for row, record in enumerate(stored.records) if row % 3))
    wanted = measure(dataset, stored, "e")
    monkeypatch.setattr(measuring, "HELD_BYTES", 100)
    found = measure(dataset, stored, "e")
    assert isinstance(found.vectors, np.memmap)
    assert not isinstance(wanted.vectors, np.memmap)
    assert np.array_equal(found.vectors, wanted.vectors)
    assert found.result == wanted.result


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no room is set aside")
def test_a_disk_without_room_for_the_copy_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    stored = load_embeddings(folder)
    dataset = make_dataset(tuple(record for row, record in enumerate(stored.records) if row % 3))
    monkeypatch.setattr(measuring, "HELD_BYTES", 100)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(DiskFullError, match="set TMPDIR"):
        measure(dataset, stored, "e")


def test_drawn_queries_are_the_same_ones_each_time_and_search_all_images(folder: Path) -> None:
    stored = load_embeddings(folder)
    dataset = make_dataset(stored.records)
    one, other = (measure(dataset, stored, "e", num_queries=60) for _ in range(2))
    assert np.array_equal(one.task.query_rows, other.task.query_rows)
    assert (one.result.num_queries, one.result.num_gallery, one.result.num_drawn_from) == (60, NUM_IMAGES, NUM_IMAGES)
    everything = measure(dataset, stored, "e")
    assert np.array_equal(one.scores.first_rank, everything.scores.first_rank[one.task.query_rows])  # type: ignore[attr-defined]


def test_a_threshold_of_embeddings_is_that_of_comparing_everything(folder: Path) -> None:
    stored = load_embeddings(folder)
    labels = read_columns(stored.records).labels.copy()
    labels[:100] = 0  # more than the neighbors that are looked at
    vectors = stored.vectors.copy()
    vectors[:100] = vectors[0]
    similarities = similarity(vectors, vectors)
    np.fill_diagonal(similarities, -np.inf)
    is_same = labels[:, None] == labels
    known = similarities.max(axis=1)[is_same.sum(axis=1) > 1]
    found = measure_nearest(vectors, labels)
    assert np.array_equal(found.known, known)
    assert np.array_equal(found.unknown, np.where(is_same, -np.inf, similarities).max(axis=1))
    assert len(measure_nearest(vectors, labels, num_queries=30).unknown) == 30
    assert len(measure_nearest(vectors, np.zeros_like(labels)).unknown) == 0


def test_names_are_sorted_without_a_list_of_them() -> None:
    names = [f"photographs/{number:08}.jpg" for number in np.random.default_rng(0).permutation(200_000).tolist()]
    blocks = [pa.array(names[start : start + 7_000]) for start in range(0, len(names), 7_000)]
    wanted = sorted(names)
    tracemalloc.start()
    is_right = all(one == other for one, other in zip(sort_names(blocks), wanted, strict=True))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert is_right
    assert peak < 2_000_000  # the names alone are twelve times that
    assert list(sort_names([])) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("task", ["measure", "calibrate"])
def test_memory_grows_by_some_ten_bytes_an_image(task: str, tmp_path: Path) -> None:
    peaks, sizes = [], (120_000, 420_000)
    for size in sizes:
        make_embeddings(tmp_path / str(size), size, 8, num_classes=size // 8)
        words = [sys.executable, "-c", PEAK, str(tmp_path / str(size)), task]
        peaks.append(int(subprocess.run(words, capture_output=True, text=True, check=True).stdout))
    assert (peaks[1] - peaks[0]) / (sizes[1] - sizes[0]) < 250  # a record alone takes more than 800


def test_an_evaluation_reads_embeddings_that_are_there(
    make_encoder: MakeEncoder, dataset: Dataset, tmp_path: Path
) -> None:
    encoder, tested = make_encoder("grid"), dataclasses.replace(dataset, records=dataset.split("test"))
    embed_collection(encoder, tested, tmp_path / "embeddings")
    num_seen = engine_of(encoder).num_seen
    found = evaluate(encoder, dataset, tmp_path / "out", embeddings=tmp_path / "embeddings")
    assert found.results == evaluate(make_encoder("grid"), dataset).results
    assert engine_of(encoder).num_seen == num_seen
    assert (tmp_path / "embeddings" / "manifest.json").is_file()


def test_an_evaluation_refuses_embeddings_of_something_else(
    make_encoder: MakeEncoder, dataset: Dataset, tmp_path: Path
) -> None:
    encoder, other = make_encoder("grid"), make_encoder("fine", side=4)
    part = dataclasses.replace(dataset, records=dataset.split("test")[:-2])
    embed_collection(encoder, part, tmp_path / "part")
    with pytest.raises(DataError, match="has no embeddings of 2 of the 16 images"):
        evaluate(encoder, dataset, tmp_path / "out", embeddings=tmp_path / "part")
    with pytest.raises(FingerprintError, match="was made by another encoder"):
        evaluate(other, dataset, tmp_path / "out", embeddings=tmp_path / "part")
    with pytest.raises(ConfigError, match="embeddings are of one encoder, and 2 are to be measured"):
        evaluate([encoder, other], dataset, tmp_path / "out", embeddings=tmp_path / "part")
    with pytest.raises(ConfigError, match="num_queries is 0"):
        evaluate(encoder, dataset, tmp_path / "out", num_queries=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("num_held", [0, 100_000])
def test_trap_an_evaluation_refuses_embeddings_of_other_regions(
    make_encoder: MakeEncoder, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_held: int
) -> None:
    """As those of cropped queries are, where whole ones are asked for."""
    monkeypatch.setattr("vitrieve.embed.embeddings.MAX_HELD_RECORDS", num_held)
    encoder, whole = make_encoder("grid"), dataclasses.replace(dataset, records=dataset.split("test"))
    first, *others = whole.records
    cropped = dataclasses.replace(whole, records=(dataclasses.replace(first, box=(1.0, 2.0, 9.0, 12.0)), *others))
    for number, (embedded, measured) in enumerate(((cropped, whole), (whole, cropped))):
        folder = tmp_path / str(number)
        embed_collection(encoder, embedded, folder)
        with pytest.raises(DataError, match=r"look at different regions of .*0/<b>0</b>\.png"):
            evaluate(encoder, measured, embeddings=folder)
        assert evaluate(encoder, embedded, embeddings=folder).results == evaluate(encoder, embedded).results
        moved = tuple(
            dataclasses.replace(record, path=Path("shards.tar") / f"@{row}+9.png")
            for row, record in enumerate(measured.records)
        )
        packed = dataclasses.replace(measured, records=moved)  # a shard has what was in the box
        assert evaluate(encoder, packed, embeddings=folder).results == evaluate(encoder, embedded).results


def test_a_threshold_needs_embeddings_of_many_images(folder: Path) -> None:
    stored = load_embeddings(folder)
    assert calibrate_embeddings(stored, name="stored").num_known == NUM_IMAGES
    assert calibrate_embeddings(stored, name="stored", num_queries=50).num_known == 50


def test_embeddings_are_written_in_groups_of_several_parts(
    make_encoder: MakeEncoder, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrieve.embed.unfinished.PART_SIZE", 4)
    monkeypatch.setattr("vitrieve.embed.unfinished.GROUP_ROWS", 8)
    tested = dataclasses.replace(dataset, records=dataset.split("test")[:15])
    held = embed_collection(make_encoder("grid"), tested, tmp_path / "embeddings")
    metadata = pq.read_metadata(tmp_path / "embeddings" / "rows.parquet")
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [8, 7]
    monkeypatch.setattr("vitrieve.embed.embeddings.MAX_HELD_RECORDS", 4)
    assert tuple(load_embeddings(tmp_path / "embeddings").records) == held.records


def test_failures_of_stored_rows_are_those_of_held_ones(
    make_encoder: MakeEncoder, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = dataclasses.replace(dataset, records=dataset.split("test"))
    for row in (0, 9):
        tested.records[row].path.write_bytes(b"no picture")
    settings = EmbedSettings(max_bad_fraction=0.5)
    held = embed_collection(make_encoder("grid"), tested, tmp_path / "embeddings", settings=settings)
    monkeypatch.setattr("vitrieve.embed.embeddings.MAX_HELD_RECORDS", 4)
    stored = load_embeddings(tmp_path / "embeddings")
    assert isinstance(stored.records, StoredRecords)
    assert stored.failures == held.failures
    assert tuple(stored.records) == held.records
    assert [image_id for image_id, _ in stored.failures] == [tested.records[row].image_id for row in (0, 9)]
