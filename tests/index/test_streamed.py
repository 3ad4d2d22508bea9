"""Embeddings are indexed part by part: the memory for it does not grow with the collection as records would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vitrieve.embed.embeddings import load_embeddings
from vitrieve.embed.rows import GROUP_ROWS, SCHEMA, StoredRecords
from vitrieve.errors import DataError
from vitrieve.index.open import build_index

IS_LONG = os.environ.get("VITRIEVE_LONG_TESTS") == "1"
PEAK = """
import sys, threading, time
from vitrieve.index.open import build_index
from vitrieve.index.store import IndexSettings

def read_bytes():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

def watch():
    global peak
    while True:
        peak = max(peak, read_bytes())
        time.sleep(0.01)

peak = start = read_bytes()
threading.Thread(target=watch, daemon=True).start()
store = build_index(sys.argv[1], sys.argv[2], store=sys.argv[3], settings=IndexSettings(index_kind="flat"))
print(store.count(), peak - start)
"""
"""Prints how many images an index has, and by how much the memory grew that belongs to no file."""


def make_embeddings(
    folder: Path,
    num_images: int,
    embedding_dim: int,
    *,
    twice: int | None = None,
    num_classes: int = 97,
    group_rows: int = GROUP_ROWS,
) -> None:
    """Write embeddings as ``embed`` does: in row groups, with three columns of metadata."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    vectors = np.lib.format.open_memmap(
        folder / "vectors.npy", mode="w+", dtype=np.float32, shape=(num_images, embedding_dim)
    )
    with pq.ParquetWriter(folder / "rows.parquet", SCHEMA) as writer:
        for start in range(0, num_images, group_rows):
            rows = np.arange(start, min(start + group_rows, num_images))
            block = generator.standard_normal((len(rows), embedding_dim), dtype=np.float32)
            vectors[rows] = block / np.linalg.norm(block, axis=1, keepdims=True)
            names = [f"photographs/{row % 1000:03}/{row:09}.jpg" for row in rows]
            if twice is not None and start + len(rows) > twice:
                names[-1] = "photographs/000/000000000.jpg"
            pairs = [[("label", f"thing {row % 97}"), ("price", f"{row % 50}"), ("color", "red")] for row in rows]
            columns = {
                "image_id": names,
                "path": ["/" + name for name in names],
                "status": ["ok"] * len(rows),
                "reason": [None] * len(rows),
                "row": rows,
                "label": rows % num_classes,
                "split": ["test"] * len(rows),
                "is_query": [True] * len(rows),
                "is_gallery": [True] * len(rows),
                "box": [None] * len(rows),
                "metadata": pairs,
            }
            writer.write_table(pa.table(columns, schema=SCHEMA))
    fields = {"fingerprint": "f" * 64, "encoder_source": "none", "image_size": 32, "license": ""}
    manifest = {"kind": "embeddings", "format_version": 1, "embedding_dim": embedding_dim, **fields}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("store", ["exact", "lance"])
def test_an_index_of_streamed_records_is_that_of_held_ones(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_embeddings(tmp_path / "embeddings", 700, 8)
    held = load_embeddings(tmp_path / "embeddings")
    monkeypatch.setattr("vitrieve.embed.embeddings.MAX_HELD_RECORDS", 600)
    assert isinstance(load_embeddings(tmp_path / "embeddings").records, StoredRecords)
    first = build_index(tmp_path / "embeddings", tmp_path / "first", store=store)  # type: ignore[arg-type]
    second = build_index(held, tmp_path / "second", store=store)  # type: ignore[arg-type]
    assert first.search(held.vectors[[3, 650]], 5) == second.search(held.vectors[[3, 650]], 5)
    assert first.columns() == second.columns() == ("color", "label", "price")
    assert list(first.image_ids()) == sorted(record.image_id for record in held.records)
    first.close()
    second.close()


def test_a_name_that_occurs_twice_among_streamed_records_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_embeddings(tmp_path / "embeddings", 700, 8, twice=690)
    monkeypatch.setattr("vitrieve.embed.embeddings.MAX_HELD_RECORDS", 600)
    with pytest.raises(DataError, match=r"'photographs/000/000000000\.jpg' occurs twice"):
        build_index(tmp_path / "embeddings", tmp_path / "index")


@pytest.mark.slow
@pytest.mark.skipif(not IS_LONG, reason="indexes 400,000 images: VITRIEVE_LONG_TESTS=1 (make test-all)")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_indexing_takes_little_memory_above_the_store(tmp_path: Path) -> None:
    num_images = 400_000
    make_embeddings(tmp_path / "embeddings", num_images, 32)
    words = [sys.executable, "-c", PEAK, tmp_path / "embeddings", tmp_path / "index", "lance"]
    ended = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True)
    found, num_bytes = map(int, ended.stdout.split())
    assert found == num_images
    assert num_bytes < 350 * 2**20  # held records alone take more
