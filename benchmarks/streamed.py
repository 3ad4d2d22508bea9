"""The memory of evaluating and calibrating, by size: python benchmarks/streamed.py WORK --embeddings FOLDER --help.

Real embeddings (a folder of ``vitrieve embed``) are enlarged by noise, as in ``ten_million.py``. For each size and task
a process of its own works on the embeddings on disk: ``evaluate`` measures them with queries drawn at random that
search the whole collection, ``calibrate`` chooses a threshold with as many, and ``names`` lists the names of a LanceDB
index, as calibrating on an index does. Told are the seconds, the most memory that belongs to no file above what the
process had when it began, and the bytes that an image adds from the smallest to the largest size. The results are
written as JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from contest import processor_name
from ten_million import PeakMemory, write_embeddings

from vitrieve.data.records import Dataset
from vitrieve.embed.embeddings import load_embeddings
from vitrieve.evaluation.measure import measure
from vitrieve.index.open import build_index, open_index
from vitrieve.index.store import IndexSettings
from vitrieve.machine import count_cores
from vitrieve.search.threshold import calibrate_embeddings

TASKS = ("evaluate", "calibrate", "names")


def work(task: str, folder: Path, num_queries: int) -> dict[str, float]:
    """Do a task on embeddings; return its seconds and bytes."""
    if task == "names" and not (folder / "index").exists():
        build_index(folder, folder / "index", settings=IndexSettings(index_kind="flat")).close()
        return {}  # measured by a process that has not built it
    memory = PeakMemory()
    time.sleep(0.1)
    before, start = memory.ask(), time.perf_counter()
    if task == "names":
        store = open_index(folder / "index")
        assert sum(1 for _ in store.image_ids()) == store.count()
    else:
        embeddings = load_embeddings(folder)
        if task == "evaluate":
            dataset = Dataset(name="perturbed", protocol="own", records=embeddings.records, label_names=("a", "b"))
            measure(dataset, embeddings, "encoder", num_queries=num_queries)
        else:
            calibrate_embeddings(embeddings, name="perturbed", num_queries=num_queries)
    return {"seconds": time.perf_counter() - start, "peak_bytes": memory.ask() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for the vectors and indexes: 3.5 kB an image of 384 dimensions")
    parser.add_argument("--embeddings", type=Path, required=True, help="folder of real embeddings")
    parser.add_argument("--sizes", type=int, nargs="+", default=[200_000, 1_000_000])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--num-queries", type=int, default=1000)
    parser.add_argument("--results", type=Path, required=True, help="file to write")
    parser.add_argument("--one", choices=TASKS, help=argparse.SUPPRESS)  # do this task and print its figures
    given = parser.parse_args()
    rows = []
    for task in [given.one] if given.one else given.tasks:
        for size in given.sizes:
            folder = given.work / f"vectors-{size}"
            write_embeddings(folder, given.embeddings, size)
            if given.one:
                print(json.dumps(work(task, folder, given.num_queries)))
                return
            words = [sys.executable, __file__, *sys.argv[1:], "--one", task, "--sizes", str(size)]
            figures: dict[str, float] = {}
            while not figures:
                figures = json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])
            rows.append({"task": task, "num_images": size, **figures})
            print(f"{task:10}{size:>12,} images {figures['seconds']:8.1f} s {figures['peak_bytes'] / 2**20:8.0f} MiB")
    growth = {}
    for task in given.tasks:
        first, *others = [row for row in rows if row["task"] == task]
        if not others:
            continue
        last = others[-1]
        growth[task] = (last["peak_bytes"] - first["peak_bytes"]) / (last["num_images"] - first["num_images"])
        print(f"{task:10} {growth[task]:.0f} bytes for each further image")
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "system": platform.platform(),
        "processor": processor_name(),
        "cores": count_cores(),
        "num_queries": given.num_queries,
        "rows": rows,
        "bytes_an_image": growth,
    }
    given.results.parent.mkdir(parents=True, exist_ok=True)
    given.results.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
