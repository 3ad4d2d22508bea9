"""Indexes from 100,000 to ten million vectors: python benchmarks/ten_million.py WORK --embeddings FOLDER --help.

Real embeddings (a folder of ``vitrieve embed``) are enlarged by noise, as in ``vector_stores.py``; a smaller size is
the beginning of a larger one. For each size and each way (store and index kind) a process of its own builds the index
from the embeddings on disk and searches it, query by query, with and without a filter that 1 % of the images pass.
Every figure counts against the exact result. One line of JSON for each is appended to the results; what is there is
not measured again, so that the same command goes on after it was stopped.

    python benchmarks/ten_million.py --chart RESULTS SVG     draws the curves of a file of results
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from contest import processor_name
from markupsafe import Markup

from vitrieve.embed.embeddings import load_embeddings
from vitrieve.embed.rows import GROUP_ROWS, SCHEMA
from vitrieve.evaluation.charts import Line, draw_lines, to_svg_file
from vitrieve.index.filter import Condition, Exact
from vitrieve.index.open import build_index, open_index
from vitrieve.index.store import IndexSettings, VectorStore, read_info
from vitrieve.machine import count_cores
from vitrieve.progress import track

K = 10
NUM_QUERIES = 200
NUM_GROUPS = 100
GROUP = 7
"""The filter: images of this group."""
BLOCK_ROWS = 65_536
NOISE_NORM = 0.35
"""Length of the noise that makes a new vector of a real one: a cosine near 0.94, as between two crops of a picture."""
SEED = 0
WAYS = ("lance/ivf_rq", "lance/ivf_pq")
FILTERED = (Condition(column="group", operator="=", values=(Exact(str(GROUP)),)),)


# --- the vectors ---


def draw_block(real: np.ndarray, number: int, num_rows: int) -> np.ndarray:
    """Draw the vectors of a block, ``(num_rows, E)``: real ones with noise, the same for every size of collection."""
    generator = np.random.default_rng([SEED, number])
    noise = generator.standard_normal((BLOCK_ROWS, real.shape[1]), dtype=np.float32)[:num_rows]
    noise *= NOISE_NORM / np.linalg.norm(noise, axis=1, keepdims=True)
    found = real[generator.integers(0, len(real), BLOCK_ROWS)[:num_rows]] + noise
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), dtype=np.float32)


def list_blocks(num_vectors: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number of each block, its first row and its number of rows."""
    for number, start in enumerate(range(0, num_vectors, BLOCK_ROWS)):
        yield number, start, min(BLOCK_ROWS, num_vectors - start)


def draw_queries(real: np.ndarray) -> np.ndarray:
    """Draw queries, ``(Q, E)``, which are not in the collection."""
    return draw_block(real, 2**31, NUM_QUERIES)


def write_embeddings(folder: Path, source: Path, num_vectors: int) -> None:
    """Write a collection of this size as ``vitrieve embed`` writes one, block by block."""
    if (folder / "manifest.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    real = np.array(load_embeddings(source).vectors)
    shape = (num_vectors, real.shape[1])
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", mode="w+", dtype=np.float32, shape=shape)
    with pq.ParquetWriter(folder / "rows.parquet", SCHEMA) as writer:
        blocks = track(list_blocks(num_vectors), "vectors", total=num_vectors, weight=BLOCK_ROWS)
        for number, start, num_rows in blocks:
            vectors[start : start + num_rows] = draw_block(real, number, num_rows)
            rows = np.arange(start, start + num_rows)
            writer.write_table(build_rows(rows), row_group_size=GROUP_ROWS)
    vectors.flush()
    manifest = json.loads((source / "manifest.json").read_text())
    manifest |= {"num_images": num_vectors, "num_embedded": num_vectors, "collection": "perturbed"}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def build_rows(rows: np.ndarray) -> pa.Table:
    """Build the records of some rows; one image in a hundred is of a group, and four are of a class."""
    names = [f"perturbed/{row % 1000:03}/{row:09}.jpg" for row in rows]
    same = {"status": "ok", "reason": None, "split": "test", "is_query": True, "is_gallery": True}
    columns: dict[str, Any] = {name: [value] * len(rows) for name, value in {**same, "box": None}.items()}
    columns |= {"image_id": names, "path": ["/" + name for name in names], "row": rows, "label": rows // 4}
    columns["metadata"] = [[("group", str(group_of(row)))] for row in rows.tolist()]
    return pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)


def group_of(row: int) -> int:
    """Return the group of an image, which has nothing to do with where its vector lies."""
    return row % NUM_GROUPS


def find_nearest(vectors: np.ndarray, queries: np.ndarray, *, is_filtered: bool) -> np.ndarray:
    """Find the rows of the exact K nearest, ``(Q, K)``, block by block, in float64."""
    best = np.full((len(queries), K), -np.inf)
    rows = np.full((len(queries), K), -1)
    for _, start, num_rows in list_blocks(len(vectors)):
        found = np.arange(start, start + num_rows)
        if is_filtered:
            found = found[found % NUM_GROUPS == GROUP]
        products = queries.astype(np.float64) @ np.asarray(vectors[found], dtype=np.float64).T
        all_products = np.hstack([best, products])
        all_rows = np.hstack([rows, np.broadcast_to(found, products.shape)])
        order = np.argsort(-all_products, axis=1, kind="stable")[:, :K]
        best, rows = np.take_along_axis(all_products, order, 1), np.take_along_axis(all_rows, order, 1)
    return rows


# --- the measurement, in a process of its own ---


class PeakMemory:
    """The most memory of this process that belongs to no file, in bytes, since the last question."""

    def __init__(self) -> None:
        self._peak = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            self._peak = max(self._peak, 1024 * int(next(one for one in lines if one.startswith("RssAnon")).split()[1]))
            time.sleep(0.02)

    def ask(self) -> int:
        """Return that peak."""
        peak, self._peak = self._peak, 0
        return peak


def time_searches(
    store: VectorStore, queries: np.ndarray, nearest: np.ndarray, conditions: tuple[Condition, ...]
) -> dict[str, float]:
    """Ask one query after the other; return recall@10 and the seconds of the median and of the 95th percentile."""
    seconds, num_right = [], 0
    for query in queries[: NUM_QUERIES // 10]:  # the first searches read the index
        store.search(query[None], K, conditions)
    for query, right in zip(queries, nearest, strict=True):
        start = time.perf_counter()
        (hits,) = store.search(query[None], K, conditions)
        seconds.append(time.perf_counter() - start)
        found = {int(hit.record.image_id.rpartition("/")[2].removesuffix(".jpg")) for hit in hits}
        num_right += len(found & set(right.tolist()))
    return {
        "recall_at_10": num_right / (len(queries) * K),
        "p50_seconds": float(np.quantile(seconds, 0.5)),
        "p95_seconds": float(np.quantile(seconds, 0.95)),
    }


def count_index_bytes(index: Path, uri: str | None) -> int:
    """Return the bytes of an index: of its folder, or of its table in PostgreSQL with the graph and all else it has."""
    if uri is None:
        return sum(path.stat().st_size for path in index.rglob("*") if path.is_file())
    import psycopg

    table = read_info(index)[1]["table"]
    with psycopg.connect(uri) as connection:
        row = connection.execute("SELECT pg_total_relation_size(to_regclass(%s))", [table]).fetchone()
    assert row is not None
    return int(row[0])


def measure(folder: Path, source: Path, index: Path, way: str, uri: str | None) -> dict[str, Any]:
    """Build an index of a collection on disk, and search it."""
    kind, _, index_kind = way.partition("/")
    embeddings, memory = load_embeddings(folder), PeakMemory()
    settings = IndexSettings(index_kind=index_kind, uri=uri if kind == "pgvector" else None)  # type: ignore[arg-type]
    start = time.perf_counter()
    build_index(folder, index, store=kind, settings=settings, overwrite=True).close()  # type: ignore[arg-type]
    row: dict[str, Any] = {"build_seconds": time.perf_counter() - start, "build_peak_bytes": memory.ask()}
    row["index_bytes"] = count_index_bytes(index, uri if kind == "pgvector" else None)
    queries = draw_queries(np.array(load_embeddings(source).vectors))
    store = open_index(index)
    for name, conditions in (("all", ()), ("filtered", FILTERED)):
        nearest = find_nearest(embeddings.vectors, queries, is_filtered=bool(conditions))
        memory.ask()
        row[name] = time_searches(store, queries, nearest, conditions)
        row[name]["peak_bytes"] = memory.ask()
    store.close()
    return row


# --- the chart ---

CHART_PX = 400
HEAD_PX = 26
PANELS: dict[str, Callable[[dict[str, Any]], float]] = {
    "recall@10, %": lambda row: 100 * row["all"]["recall_at_10"],
    "p50 of a search, ms": lambda row: 1000 * row["all"]["p50_seconds"],
    "build, minutes": lambda row: row["build_seconds"] / 60,
}


def draw_chart(rows: Sequence[dict[str, Any]]) -> str:
    """Draw recall, time of a search and time of building against the number of images, a line for each way."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    panels, heights = [], []
    for place, (title, read) in enumerate(PANELS.items()):
        lines = []
        for way in ways:
            found = sorted((row["num_vectors"] / 1e6, read(row)) for row in rows if row["way"] == way)
            lines.append(Line(name=way.replace("/", ", "), xs=[x for x, _ in found], ys=[y for _, y in found]))
        chart = str(draw_lines(lines, "million images", title, is_log_x=True, has_legend=True))
        heights.append(float(re.findall(r'viewBox="0 0 \d+ (\d+)"', chart)[0]))
        where = f'x="{place * CHART_PX}" y="{HEAD_PX}" width="{CHART_PX}" height="{heights[-1]:.0f}"'
        head = f'<text class="label" x="{place * CHART_PX + 44}" y="18">{title}</text>'
        panels.append(head + chart.replace("<svg ", f"<svg {where} ", 1))
    size = f"{len(panels) * CHART_PX} {HEAD_PX + max(heights):.0f}"
    label = ", ".join(PANELS) + " against the number of images; the table has the same figures."
    chart = f'<svg class="chart" viewBox="0 0 {size}" role="img" aria-label="{label}">{"".join(panels)}</svg>'
    return to_svg_file(Markup(chart))


# --- all of it ---


def read_rows(results: Path) -> list[dict[str, Any]]:
    """Read what has been measured."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []


def main() -> None:
    if sys.argv[1:2] == ["--chart"]:
        results, drawing = map(Path, sys.argv[2:])
        drawing.write_text(draw_chart(read_rows(results)))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for the vectors and the indexes: 2.5 times their bytes")
    parser.add_argument("--embeddings", type=Path, required=True, help="folder of real embeddings")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), help="lance/ivf_rq lance/ivf_pq pgvector/ivf_hnsw_sq")
    parser.add_argument("--uri", help="database for pgvector: postgresql://user@host/database")
    parser.add_argument("--results", type=Path, required=True, help="file of JSON lines, which is added to")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # measure this way and print it
    arguments = parser.parse_args()
    for size in arguments.sizes:
        folder = arguments.work / f"vectors-{size}"
        write_embeddings(folder, arguments.embeddings, size)
        if arguments.one:
            index = arguments.work / f"index-{size}-{arguments.one.replace('/', '-')}"
            print(json.dumps(measure(folder, arguments.embeddings, index, arguments.one, arguments.uri)))
            return
        for way in arguments.ways:
            if (size, way) in {(row["num_vectors"], row["way"]) for row in read_rows(arguments.results)}:
                continue
            words = [sys.executable, __file__, *sys.argv[1:], "--one", way, "--sizes", str(size)]
            ended = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            row = {"date": datetime.now(UTC).date().isoformat(), "num_vectors": size, "way": way}
            row |= json.loads(ended.stdout.splitlines()[-1])
            machine = {"processor": processor_name(), "cores": count_cores(), "system": platform.platform()}
            row |= {**machine, "seed": SEED, "source": "real, perturbed"}
            with arguments.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(size, way, json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
