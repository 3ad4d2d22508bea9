"""The libraries ``webdataset`` and ``datasets`` read our shards, and we what they write; each where it is there."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrieve.data.decode import read_image_bytes
from vitrieve.data.pack import PackSettings, pack_dataset
from vitrieve.data.records import Dataset
from vitrieve.data.sources import read_source


@pytest.fixture
def source(class_folder: Path) -> Dataset:
    """Twenty small pictures of five classes."""
    return read_source(f"folder:{class_folder}")


@pytest.fixture
def shards(source: Dataset, tmp_path: Path) -> list[str]:
    """The same, packed."""
    pack_dataset(source, tmp_path / "packed", settings=PackSettings(num_processes=1, shard_mib=1))
    return sorted(map(str, (tmp_path / "packed").glob("*.tar")))


def assert_same(source: Dataset, samples: Sequence[Any]) -> None:
    """Compare what a library has read with what was packed."""
    assert len(samples) == len(source.records) > 0
    for record, sample in zip(source.records, samples, strict=True):
        assert sample["cls"] == record.label
        assert sample["json"]["image_id"] == record.image_id
        with Image.open(record.path) as picture:
            assert np.array_equal(np.asarray(sample["png"].convert("RGB")), np.asarray(picture.convert("RGB")))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the library leaves them to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_packed_shards(source: Dataset, shards: list[str]) -> None:
    webdataset = pytest.importorskip("webdataset", reason="needs the package webdataset")
    assert_same(source, list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil")))
    gc.collect()


def test_shards_that_webdataset_writes_are_read(source: Dataset, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="needs the package webdataset")
    (tmp_path / "written").mkdir()
    with webdataset.ShardWriter(str(tmp_path / "written" / "train-%06d.tar"), maxcount=6, verbose=0) as writer:
        for number, record in enumerate(source.records):
            picture = record.path.read_bytes()
            writer.write({"__key__": f"{number:06}", "png": picture, "cls": record.label, "json": {"shop": number}})

    read = read_source(f"shards:{tmp_path / 'written'}")

    assert len({record.path.parent for record in read.records}) == 4
    for number, (record, written) in enumerate(zip(read.records, source.records, strict=True)):
        assert read_image_bytes(record.path) == written.path.read_bytes()
        assert read.label_names[record.label] == str(written.label)
        assert record.metadata == {"shop": str(number)}


def test_datasets_reads_packed_shards(source: Dataset, shards: list[str], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    files = {"data_files": {"train": shards}, "cache_dir": str(tmp_path / "cache")}
    assert_same(source, list(datasets.load_dataset("webdataset", split="train", **files)))


def test_parquet_that_datasets_writes_is_read(source: Dataset, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(source.label_names))}
    features = datasets.Features({**kinds, "price": datasets.Value("float32")})
    columns = {
        "image": [{"bytes": record.path.read_bytes(), "path": record.path.name} for record in source.records],
        "label": [record.label for record in source.records],
        "price": [number / 2 for number in range(len(source.records))],
    }
    (tmp_path / "set" / "data").mkdir(parents=True)
    table = datasets.Dataset.from_dict(columns, features=features)
    table.to_parquet(str(tmp_path / "set" / "data" / "train-00000-of-00001.parquet"))

    read = read_source(f"hf:{tmp_path / 'set'}")

    assert read.label_names == source.label_names
    for number, (record, written) in enumerate(zip(read.records, source.records, strict=True)):
        assert read_image_bytes(record.path) == written.path.read_bytes()
        assert record.label == written.label
        assert record.metadata == {"price": str(number / 2), "file_name": written.path.name}
