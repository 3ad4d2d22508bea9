"""Shards beside files, and a set of a million rows: python benchmarks/shards.py OUT [--data SOURCE] [--num-rows N].

Two measurements, written to OUT/shards.json with the machine:

- The images of a source, packed at their own size (a warm cache of the system for both sides): milliseconds an image to
  read its bytes, to decode it, and to make training batches of 64 with nothing kept in memory. Files and shards take
  turns, and the median of the turns is told.
- An index of a million rows, whose pictures repeat: seconds and peak memory of a process that opens it, and that then
  reads pictures at random.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from contest import processor_name

from vitrieve.data.decode import read_image, read_image_bytes
from vitrieve.data.pack import PackSettings, pack_dataset
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.data.shards import INDEX_NAME, SCHEMA, Shard, ShardSet, add_set, read_index
from vitrieve.data.sources import read_source

NUM_READ, NUM_STEPS, BATCH_SIZE = 1500, 6, 64
NUM_RANDOM = 1000

OPEN = """
import random, sys, time
before = time.perf_counter()
from vitrieve.data.sources import read_source
from vitrieve.data.decode import read_image
from vitrieve.machine import read_peak_memory
imported, at_start = time.perf_counter(), read_peak_memory()
dataset = read_source(sys.argv[1])
opened, after_opening = time.perf_counter(), read_peak_memory()
rows = random.Random(0).sample(range(len(dataset.records)), int(sys.argv[2]))
for row in rows:
    read_image(dataset.records[row])
read = time.perf_counter()
print(len(dataset.records), opened - imported, opened - before, after_opening, (read - opened) / len(rows), at_start)
"""


def time_reading(records: Sequence[ImageRecord], read: Callable[[ImageRecord], object]) -> float:
    """Return milliseconds an image."""
    start = time.perf_counter()
    for record in records:
        read(record)
    return 1000 * (time.perf_counter() - start) / len(records)


def time_training(dataset: Dataset) -> float:
    """Return milliseconds an image of training batches; every picture is read and decoded each time."""
    from vitrieve.config import LoaderConfig
    from vitrieve.data.loader import TrainingLoader
    from vitrieve.data.preprocess import build_preprocessing

    config = LoaderConfig(cache_bytes=0)
    loader = TrainingLoader(dataset.split("train"), config, build_preprocessing(112), batch_size=BATCH_SIZE, seed=0)
    start = time.perf_counter()
    num_images = sum(len(batch.rows) for batch in loader.batches(0, NUM_STEPS))
    return 1000 * (time.perf_counter() - start) / num_images


def compare_with_files(source: str, out: Path, num_turns: int) -> dict[str, object]:
    files = read_source(source)
    pack_dataset(files, out, settings=PackSettings(max_side_px=None, show_progress=True), overwrite=True)
    sides = {"files": files, "shards": read_source(f"shards:{out}")}
    rows = random.Random(0).sample(range(len(files.records)), min(NUM_READ, len(files.records)))
    times: dict[str, dict[str, list[float]]] = {}
    for turn in range(num_turns + 1):
        for side, dataset in list(sides.items())[:: 1 if turn % 2 else -1]:
            records = [dataset.records[row] for row in rows]
            measured = {
                "read bytes": time_reading(records, lambda record: read_image_bytes(record.path)),
                "decode": time_reading(records, read_image),
                "training batches": time_training(dataset),
            }
            for what, milliseconds in measured.items() if turn else ():  # the first turn fills the system's cache
                times.setdefault(what, {}).setdefault(side, []).append(milliseconds)
    return {
        what: {
            **{f"{side}_ms": statistics.median(values) for side, values in of_sides.items()},
            "files_by_shards": statistics.median(of_sides["files"]) / statistics.median(of_sides["shards"]),
            "turns": of_sides,
        }
        for what, of_sides in times.items()
    }


def write_rows(packed: Path, out: Path, num_rows: int) -> None:
    """Write an index of many rows whose pictures are those of a packed set, again and again."""
    table, said = read_index(packed / INDEX_NAME, INDEX_NAME)
    out.mkdir(parents=True)
    names = []
    for shard in said.shards:
        (out / shard.name).hardlink_to((packed / shard.name).resolve())
        names.append(Shard(name=shard.name, num_bytes=shard.num_bytes))
    schema = add_set(SCHEMA, ShardSet(**{**vars(said), "name": "rows", "shards": tuple(names)}))
    with pq.ParquetWriter(out / INDEX_NAME, schema) as writer:
        for first in range(0, num_rows, table.num_rows):
            part = table.slice(0, num_rows - first)
            ids = [f"{number:07}/{image_id}" for number, image_id in enumerate(part["image_id"].to_pylist(), first)]
            part = part.set_column(part.schema.get_field_index("image_id"), "image_id", pa.array(ids))
            keys = pa.array([f"{number:09}" for number in range(first, first + part.num_rows)])
            part = part.append_column("key", keys).select(SCHEMA.names).cast(SCHEMA)
            writer.write_table(part.replace_schema_metadata(schema.metadata))


def open_rows(folder: Path, num_turns: int) -> dict[str, float]:
    command = [sys.executable, "-c", OPEN, f"shards:{folder}", str(NUM_RANDOM)]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(num_turns)]
    figures = [list(map(float, run.stdout.split())) for run in runs]
    rows, seconds, with_imports, peak, per_picture, at_start = (
        statistics.median(one) for one in zip(*figures, strict=True)
    )
    return {
        "num_rows": rows,
        "open_seconds": seconds,
        "with_imports_seconds": with_imports,
        "peak_mb": peak / 1e6,
        "peak_before_mb": at_start / 1e6,
        "random_read_ms": 1000 * per_picture,
        "index_mb": (folder / INDEX_NAME).stat().st_size / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="grocery")
    parser.add_argument("--num-rows", type=int, default=1_000_000)
    parser.add_argument("--num-turns", type=int, default=5)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, object] = {"machine": processor_name(), "data": arguments.data}
    result["beside_files"] = compare_with_files(arguments.data, arguments.out / "packed", arguments.num_turns)
    shutil.rmtree(arguments.out / "rows", ignore_errors=True)
    write_rows(arguments.out / "packed", arguments.out / "rows", arguments.num_rows)
    result["rows"] = open_rows(arguments.out / "rows", arguments.num_turns)
    (arguments.out / "shards.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
