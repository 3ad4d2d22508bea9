from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.forked import ForkedVitrieve
from vitrieve.cli.main import main
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.data.sources import read_collection
from vitrieve.embed.collection import EmbedSettings, embed_collection, embed_images
from vitrieve.embed.embeddings import Embeddings, load_embeddings
from vitrieve.embed.rows import StoredRecords
from vitrieve.errors import ArtifactError, ConfigError, DataError, FingerprintError
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.runtime.engine import Engine

ALL_ALLOWED = EmbedSettings(max_bad_fraction=1.0)


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder: Path) -> Encoder:
    return load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrieve.embed.unfinished.PART_SIZE", 5)


class CountingEngine:
    """An engine that counts the pictures it sees and can be interrupted after some."""

    def __init__(self, engine: Engine, num_until_interrupt: int | None = None) -> None:
        self.engine = engine
        self.name = engine.name
        self.precision = engine.precision
        self.num_parallel = 1
        self.device, self.batch_size = engine.device, engine.batch_size
        self.num_seen = 0
        self.num_until_interrupt = num_until_interrupt

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def encode_squares(self, squares: np.ndarray) -> np.ndarray:
        if self.num_until_interrupt is not None and self.num_seen >= self.num_until_interrupt:
            raise KeyboardInterrupt
        self.num_seen += len(squares)
        return self.engine.encode_squares(squares)

    def patch_tokens(self, pixels: np.ndarray) -> np.ndarray:
        return self.engine.patch_tokens(pixels)


def assert_equal(one: Embeddings, other: Embeddings) -> None:
    assert np.array_equal(one.vectors, other.vectors)
    for field in dataclasses.fields(Embeddings):
        if field.name != "vectors":
            assert getattr(one, field.name) == getattr(other, field.name)


def test_embed_images_keeps_order_and_unit_length(encoder: Encoder, picture_folder: Path) -> None:
    records = read_collection(str(picture_folder)).records
    embeddings = embed_images(encoder, records)
    assert embeddings.records == records
    assert embeddings.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings.vectors, axis=1), 1, atol=1e-5)
    backwards = embed_images(encoder, records[::-1])
    np.testing.assert_allclose(backwards.vectors[::-1], embeddings.vectors, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_batch_size_does_not_change_embeddings(encoder: Encoder, picture_folder: Path, batch_size: int) -> None:
    records = read_collection(str(picture_folder)).records
    expected = embed_images(encoder, records).vectors
    np.testing.assert_allclose(embed_images(encoder, records, batch_size=batch_size).vectors, expected, atol=1e-6)


def test_embed_images_gives_duplicates_the_same_vector(encoder: Encoder, picture_folder: Path) -> None:
    record = read_collection(str(picture_folder)).records[0]
    vectors = embed_images(encoder, [record, record, record]).vectors
    assert np.array_equal(vectors[0], vectors[1])


def test_embed_images_refuses_nothing(encoder: Encoder) -> None:
    with pytest.raises(DataError, match="no image"):
        embed_images(encoder, [])


def test_embed_collection_equals_embed_images(encoder: Encoder, picture_folder: Path, tmp_path: Path) -> None:
    dataset = read_collection(str(picture_folder))
    on_disk = embed_collection(encoder, dataset, tmp_path / "out")
    in_memory = embed_images(encoder, dataset.records)
    np.testing.assert_allclose(on_disk.vectors, in_memory.vectors, atol=1e-6)
    assert on_disk.records == in_memory.records
    assert on_disk.fingerprint == encoder.fingerprint
    assert on_disk.image_size == 32
    assert_equal(load_embeddings(tmp_path / "out"), on_disk)


def test_embed_collection_leaves_only_the_artifact(encoder: Encoder, picture_folder: Path, tmp_path: Path) -> None:
    embed_collection(encoder, read_collection(str(picture_folder)), tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["manifest.json", "rows.parquet", "vectors.npy"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["engine"], manifest["num_images"], manifest["num_embedded"]) == ("onnx", 12, 12)


def test_embed_collection_names_classes(encoder: Encoder, picture_folder: Path, tmp_path: Path) -> None:
    records = tuple(
        dataclasses.replace(record, label=row % 2)
        for row, record in enumerate(read_collection(str(picture_folder)).records)
    )
    dataset = Dataset(name="own", protocol="own", records=records, label_names=("even", "odd"), license="CC0")
    embeddings = embed_collection(encoder, dataset, tmp_path / "out")
    assert [record.metadata["label"] for record in embeddings.records[:3]] == ["even", "odd", "even"]
    assert embeddings.license == "CC0"


def test_embed_collection_notes_bad_files_and_goes_on(encoder: Encoder, picture_folder: Path, tmp_path: Path) -> None:
    (picture_folder / "04.png").write_bytes((picture_folder / "04.png").read_bytes()[:60])
    (picture_folder / "05.png").write_text("no picture")
    dataset = read_collection(str(picture_folder))
    embeddings = embed_collection(encoder, dataset, tmp_path / "out", settings=ALL_ALLOWED)
    assert [image_id for image_id, _ in embeddings.failures] == ["04.png", "05.png"]
    assert [record.image_id for record in embeddings.records] == [f"{n:02}.png" for n in range(12) if n not in (4, 5)]
    good = [record for record in dataset.records if record.image_id not in ("04.png", "05.png")]
    np.testing.assert_allclose(embeddings.vectors, embed_images(encoder, good).vectors, atol=1e-6)
    table = pq.read_table(tmp_path / "out" / "rows.parquet")
    assert table["status"].to_pylist().count("bad") == 2
    assert table["row"].to_pylist()[3:7] == [3, None, None, 4]


def test_embed_collection_stops_above_the_allowed_share_and_goes_on_when_told(
    encoder: Encoder, picture_folder: Path, tmp_path: Path
) -> None:
    (picture_folder / "00.png").write_bytes(b"")
    dataset = read_collection(str(picture_folder))
    with pytest.raises(DataError, match=r"1 of 12 images .* 0\.05 .*00\.png: the file is empty.*--resume"):
        embed_collection(encoder, dataset, tmp_path / "out")
    engine = CountingEngine(encoder.runner)
    counted = dataclasses.replace(encoder, runner=engine)
    settings = EmbedSettings(max_bad_fraction=0.1)
    embeddings = embed_collection(counted, dataset, tmp_path / "out", settings=settings, is_resume=True)
    assert len(embeddings.vectors) == 11
    assert engine.num_seen == 7  # the first part, with the bad file, was kept


def test_embed_collection_refuses_a_collection_without_a_readable_image(
    encoder: Encoder, picture_folder: Path, tmp_path: Path
) -> None:
    for path in picture_folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 12 images"):
        embed_collection(encoder, read_collection(str(picture_folder)), tmp_path / "out", settings=ALL_ALLOWED)


@pytest.mark.parametrize("num_until_interrupt", [0, 1, 5, 7, 11])
def test_embed_collection_goes_on_after_an_interruption(
    encoder: Encoder, picture_folder: Path, tmp_path: Path, num_until_interrupt: int
) -> None:
    dataset = read_collection(str(picture_folder))
    settings = EmbedSettings(batch_size=1)
    expected = embed_collection(encoder, dataset, tmp_path / "whole", settings=settings)
    stopping = CountingEngine(encoder.runner, num_until_interrupt)
    with pytest.raises(KeyboardInterrupt):
        embed_collection(dataclasses.replace(encoder, runner=stopping), dataset, tmp_path / "out", settings=settings)
    with pytest.raises(ArtifactError, match="--resume"):
        embed_collection(encoder, dataset, tmp_path / "out", settings=settings)
    with pytest.raises(ArtifactError, match="unfinished"):
        load_embeddings(tmp_path / "out")
    engine = CountingEngine(encoder.runner)
    resumed = embed_collection(
        dataclasses.replace(encoder, runner=engine), dataset, tmp_path / "out", settings=settings, is_resume=True
    )
    assert_equal(resumed, expected)
    assert engine.num_seen == 12 - num_until_interrupt // 5 * 5


SMALL_PARTS = "from vitrieve.embed import unfinished\nunfinished.PART_SIZE = 2\n"


@pytest.mark.parametrize("num_syncs", [0, 1, 2, 3, 8, 14, 15, 16])
def test_a_killed_process_resumes_to_the_same_embeddings(
    forked_vitrieve: ForkedVitrieve,
    tiny_encoder_folder: Path,
    picture_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_syncs: int,
) -> None:
    words = ("--encoder", tiny_encoder_folder, "--data", picture_folder, "--out")
    killed = forked_vitrieve(["embed", *words, tmp_path / "out"], num_syncs=num_syncs, prelude=SMALL_PARTS)
    assert killed.status == -signal.SIGKILL
    with pytest.raises(ArtifactError, match="unfinished"):
        load_embeddings(tmp_path / "out")
    monkeypatch.setattr("vitrieve.embed.unfinished.PART_SIZE", 2)
    assert main(["embed", *map(str, words), str(tmp_path / "out"), "--resume"]) == 0
    assert main(["embed", *map(str, words), str(tmp_path / "whole")]) == 0
    assert_equal(load_embeddings(tmp_path / "out"), load_embeddings(tmp_path / "whole"))


def test_trap_another_encoder_does_not_resume(
    encoder: Encoder, tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path
) -> None:
    dataset = read_collection(str(picture_folder))
    stopping = dataclasses.replace(encoder, runner=CountingEngine(encoder.runner, 0))
    with pytest.raises(KeyboardInterrupt):
        embed_collection(stopping, dataset, tmp_path / "out")
    other = load_encoder(tiny_encoder_folder, image_size=48, engine="torch", num_threads=1)
    with pytest.raises(FingerprintError, match="another encoder"):
        embed_collection(other, dataset, tmp_path / "out", is_resume=True)


def test_another_collection_does_not_resume(encoder: Encoder, picture_folder: Path, tmp_path: Path) -> None:
    stopping = dataclasses.replace(encoder, runner=CountingEngine(encoder.runner, 0))
    with pytest.raises(KeyboardInterrupt):
        embed_collection(stopping, read_collection(str(picture_folder)), tmp_path / "out")
    (picture_folder / "11.png").rename(picture_folder / "99.png")
    with pytest.raises(ArtifactError, match="another collection"):
        embed_collection(encoder, read_collection(str(picture_folder)), tmp_path / "out", is_resume=True)


def test_embed_collection_replaces_a_finished_folder_only_when_told(
    encoder: Encoder, picture_folder: Path, tmp_path: Path
) -> None:
    dataset = read_collection(str(picture_folder))
    embed_collection(encoder, dataset, tmp_path / "out")
    for is_resume in (False, True):
        with pytest.raises(ArtifactError, match="--overwrite"):
            embed_collection(encoder, dataset, tmp_path / "out", is_resume=is_resume)
    (picture_folder / "00.png").unlink()
    dataset = read_collection(str(picture_folder))
    assert len(embed_collection(encoder, dataset, tmp_path / "out", is_overwrite=True).vectors) == 11


@pytest.mark.parametrize(
    "values", [{"batch_size": 0}, {"num_threads": 0}, {"max_bad_fraction": -0.1}, {"max_bad_fraction": float("nan")}]
)
def test_settings_refuse_values_out_of_range(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        EmbedSettings(**values)


@pytest.mark.parametrize("vectors", [np.zeros(3, np.float32), np.zeros((1, 3)), np.zeros((2, 3), np.float32)])
def test_embeddings_refuse_what_does_not_fit(vectors: np.ndarray) -> None:
    record = ImageRecord(image_id="a", path=Path("a"), label=0, split="test")
    with pytest.raises(DataError):
        Embeddings(vectors=vectors, records=(record,), failures=(), fingerprint="f", encoder_source="e", image_size=32)


def test_load_embeddings_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        load_embeddings(tmp_path / "nothing")


# Embeddings that are reused


def count(encoder: Encoder) -> tuple[Encoder, CountingEngine]:
    engine = CountingEngine(encoder.runner)
    return dataclasses.replace(encoder, runner=engine), engine


def wait_for_the_clock_of_files(folder: Path) -> None:
    """Let what is written next be younger than all files so far, whatever the resolution of the times of files."""
    for path in folder.iterdir():
        os.utime(path, (1, 1))


@pytest.fixture
def aged(picture_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures that were written long before anything else; the change time of a file cannot be set, so it is 1970."""
    wait_for_the_clock_of_files(picture_folder)
    stat = os.stat

    def stat_in_the_past(path: Any, **given: Any) -> Any:
        status = stat(path, **given)
        return (
            SimpleNamespace(st_mtime=status.st_mtime, st_ctime=status.st_mtime)
            if str(path).endswith(".png")
            else status
        )

    monkeypatch.setattr("os.stat", stat_in_the_past)
    return picture_folder


def test_reuse_encodes_only_what_is_new_and_gives_the_same(encoder: Encoder, aged: Path, tmp_path: Path) -> None:
    dataset = read_collection(str(aged))
    some = dataclasses.replace(dataset, records=dataset.records[1:11:2])
    embed_collection(encoder, some, tmp_path / "some")
    expected = embed_collection(encoder, dataset, tmp_path / "all")
    counted, engine = count(encoder)
    found = embed_collection(counted, dataset, tmp_path / "out", reuse=tmp_path / "some")
    assert engine.num_seen == len(dataset.records) - 5
    assert found.records == expected.records
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-6)
    again, engine = count(encoder)
    assert_equal(embed_collection(again, dataset, tmp_path / "again", reuse=tmp_path / "out"), found)
    assert engine.num_seen == 0


def test_a_table_in_a_linked_folder_gives_paths_that_are_there_and_is_reused(
    encoder: Encoder, aged: Path, tmp_path: Path
) -> None:
    (tmp_path / "other" / "tables").mkdir(parents=True)
    (tmp_path / "tables").symlink_to("other/tables")
    names = sorted(path.name for path in aged.iterdir())
    rows = "".join(f"../../{aged.name}/{name},x\n" for name in names)
    (tmp_path / "tables" / "images.csv").write_text(f"path,label\n{rows}")
    dataset = read_collection(f"table:{tmp_path / 'tables' / 'images.csv'}")
    found = embed_collection(encoder, dataset, tmp_path / "embeddings")
    assert [record.path for record in found.records] == [aged / name for name in names]
    counted, engine = count(encoder)
    embed_collection(counted, dataset, tmp_path / "again", reuse=tmp_path / "embeddings")
    assert engine.num_seen == 0


def test_an_encoder_is_named_by_where_a_path_through_a_link_leads_to(
    tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/deep")
    shutil.copytree(tiny_encoder_folder, tmp_path / "far" / "encoder")
    encoder = load_encoder(tmp_path / "link" / ".." / "encoder", engine="onnx", num_threads=1)
    found = embed_images(encoder, read_collection(str(picture_folder)).records[:1])
    assert found.encoder_source == str(tmp_path / "far" / "encoder")


def test_trap_reuse_encodes_what_has_changed_or_is_unreadable(encoder: Encoder, aged: Path, tmp_path: Path) -> None:
    dataset = read_collection(str(aged))
    embed_collection(encoder, dataset, tmp_path / "before")
    first, second, third, *_ = dataset.records
    first.path.write_bytes(second.path.read_bytes())
    third.path.unlink()
    counted, engine = count(encoder)
    found = embed_collection(counted, dataset, tmp_path / "out", reuse=tmp_path / "before", settings=ALL_ALLOWED)
    assert engine.num_seen == 1
    np.testing.assert_allclose(found.vectors[0], found.vectors[1], atol=1e-6)
    assert [image_id for image_id, _ in found.failures] == [third.image_id]
    cropped = tuple(dataclasses.replace(record, box=(0.0, 0.0, 9.0, 9.0)) for record in dataset.records[3:])
    embed_collection(
        counted, dataclasses.replace(dataset, records=cropped), tmp_path / "cropped", reuse=tmp_path / "before"
    )
    assert engine.num_seen == 1 + len(cropped)


def test_reuse_refuses_another_encoder_and_embeddings_without_a_time(
    encoder: Encoder, aged: Path, tmp_path: Path
) -> None:
    dataset = read_collection(str(aged))
    embed_collection(encoder, dataset, tmp_path / "before")
    other = dataclasses.replace(encoder, fingerprint="0" * 64)
    with pytest.raises(FingerprintError, match="Leave --reuse out"):
        embed_collection(other, dataset, tmp_path / "out", reuse=tmp_path / "before")
    manifest = json.loads((tmp_path / "before" / "manifest.json").read_text())
    del manifest["begun"]
    (tmp_path / "before" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="does not say when it was begun"):
        embed_collection(encoder, dataset, tmp_path / "out", reuse=tmp_path / "before")
    assert not (tmp_path / "out").exists()


def test_many_records_are_read_when_they_are_asked_for(
    encoder: Encoder, picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (picture_folder / "04.png").write_bytes(b"")
    dataset = read_collection(str(picture_folder))
    held = embed_collection(encoder, dataset, tmp_path / "out", settings=ALL_ALLOWED)
    monkeypatch.setattr("vitrieve.embed.embeddings.MAX_HELD_RECORDS", 11)
    read = load_embeddings(tmp_path / "out")
    assert isinstance(held.records, tuple)
    assert isinstance(read.records, StoredRecords)
    assert_equal(read, held)
    assert_equal(held, read)
