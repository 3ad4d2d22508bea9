"""How well, how fast and in how many bytes does each vector store find the ten nearest images?

    python benchmarks/vector_stores.py --work WORK --source grocery=FOLDER --source emoji
    python benchmarks/vector_stores.py --work WORK --source grocery=FOLDER --source emoji --perturbed 1000000

Real embeddings (DINOv2 ViT-S/14, 112 px) of photographs and drawings, enlarged by crops to --num-vectors; --perturbed
enlarges them further by noise. The queries are crops that are not in the collection. Ours, FAISS, LanceDB alone and
milvus-lite run one after the other on the same vectors; every figure counts against the exact result. Writes
results/vector_stores_N_DATE.json, .md and two plots after each of them (``vector_stores_report.py``). On two cores
about 5 minutes of embedding for 100,000 crops (kept in WORK), then 15 for the stores; over an hour for 1,000,000.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import faiss
import lancedb
import numpy as np
import pyarrow as pa
from contest import processor_name
from lancedb.index import HnswSq, IvfPq
from PIL import Image, ImageOps
from vector_stores_report import Result, ShortVectors, to_markdown, write_report

from vitrieve.data.records import ImageRecord
from vitrieve.data.sources import read_source
from vitrieve.embed.collection import embed_collection
from vitrieve.embed.embeddings import Embeddings
from vitrieve.index.open import build_index, open_index
from vitrieve.index.resident import count_bytes as count_resident_bytes
from vitrieve.index.store import IndexSettings, StoreKind
from vitrieve.runtime.encoder import load_encoder
from vitrieve.similarity import normalize, top_k

K = 10
NUM_QUERIES = 1_000
NUM_TIMED = 300
IMAGE_SIZE = 112
CROP_AREA = (0.3, 1.0)
"""Share of a picture that a crop shows: as much as training views show."""
NOISE_NORM = 0.35
"""Length of the noise that makes a new vector of a real one: a cosine near 0.94, as between two crops of a picture."""


class Collection(NamedTuple):
    """What is searched, and with what: ``(N, E)`` and ``(Q, E)`` float32, and the rows that are right, ``(Q, K)``."""

    embeddings: Embeddings
    queries: np.ndarray
    nearest: np.ndarray


Search = Callable[[np.ndarray], list[int]]
"""From one query ``(E,)`` to the rows of the ten nearest."""
Built = tuple[Search, float, float]
"""How to search, and bytes of index and of everything."""


# --- the vectors ---


def read_crops(sources: list[str], num_vectors: int, num_queries: int) -> list[ImageRecord]:
    """Return crops of the pictures of some sources, whole pictures first; the last ones are queries."""
    records = [record for source in sources for record in read_records(source)]
    generator = np.random.default_rng(0)
    total = num_vectors + num_queries
    chosen = generator.permutation(len(records))
    sizes: dict[Path, tuple[int, int]] = {}
    crops = []
    for number in range(total):
        record = records[chosen[number % len(records)]]
        is_whole = number < len(records) and number < num_vectors
        box = None if is_whole else draw_box(record.path, sizes, generator)
        crops.append(replace(record, image_id=f"{number // len(records)}/{record.image_id}", label=0, box=box))
    return crops


def read_records(source: str) -> list[ImageRecord]:
    name, _, folder = source.partition("=")
    dataset = read_source(f"{name}:{folder}" if folder else name)
    return [
        replace(record, image_id=f"{name}/{record.image_id}", metadata={"source": name}) for record in dataset.records
    ]


def draw_box(
    path: Path, sizes: dict[Path, tuple[int, int]], generator: np.random.Generator
) -> tuple[float, float, float, float]:
    if path not in sizes:
        with Image.open(path) as image:
            sizes[path] = ImageOps.exif_transpose(image).size
    width, height = sizes[path]
    scale = np.sqrt(generator.uniform(*CROP_AREA))
    crop_width, crop_height = scale * width, scale * height
    left, top = generator.uniform(0, width - crop_width), generator.uniform(0, height - crop_height)
    return float(left), float(top), float(left + crop_width), float(top + crop_height)


def embed_crops(work: Path, sources: list[str], num_vectors: int) -> tuple[Embeddings, np.ndarray]:
    """Embed the crops, or read what an earlier run embedded; return the collection and the queries."""
    from vitrieve.data.records import Dataset
    from vitrieve.embed.collection import EmbedSettings
    from vitrieve.embed.embeddings import load_embeddings

    folder = work / f"embeddings-{num_vectors}"
    if not (folder / "manifest.json").exists():
        crops = read_crops(sources, num_vectors, NUM_QUERIES)
        dataset = Dataset(name="crops", protocol="", records=tuple(crops), label_names=("any",))
        encoder = load_encoder("dinov2-vits14", image_size=IMAGE_SIZE)
        embed_collection(encoder, dataset, folder, settings=EmbedSettings(show_progress=True), is_resume=True)
    loaded = load_embeddings(folder)
    num_kept = len(loaded.vectors) - NUM_QUERIES
    vectors = np.array(loaded.vectors)
    return replace(loaded, vectors=vectors[:num_kept], records=loaded.records[:num_kept]), vectors[num_kept:]


def perturb(embeddings: Embeddings, num_vectors: int) -> Embeddings:
    """Enlarge a collection by copies with noise."""
    generator = np.random.default_rng(1)
    vectors = np.empty((num_vectors, embeddings.vectors.shape[1]), dtype=np.float32)
    num_real = len(embeddings.vectors)
    vectors[:num_real] = embeddings.vectors
    for start in range(num_real, num_vectors, 65_536):
        stop = min(start + 65_536, num_vectors)
        noise = generator.standard_normal((stop - start, vectors.shape[1]))
        noise *= NOISE_NORM / np.linalg.norm(noise, axis=1, keepdims=True)
        vectors[start:stop] = normalize(embeddings.vectors[generator.integers(0, num_real, stop - start)] + noise)
    records = [
        *embeddings.records,
        *(
            replace(embeddings.records[row % num_real], image_id=f"noise/{row}", box=None)
            for row in range(num_real, num_vectors)
        ),
    ]
    return replace(embeddings, vectors=vectors, records=tuple(records))


# --- the contestants ---


def build_ours(
    collection: Collection, work: Path, store: StoreKind, settings: IndexSettings, data_folder: Path | None = None
) -> Built:
    rows = {record.image_id: row for row, record in enumerate(collection.embeddings.records)}
    opened = build_index(collection.embeddings, work, store=store, settings=settings, overwrite=True)
    opened.optimize()

    def search(query: np.ndarray) -> list[int]:
        return [rows[hit.record.image_id] for hit in opened.search(query[None], K)[0]]

    if store == "exact":
        return search, count_bytes(work, "segments/*.npy"), count_bytes(work)
    if store == "lance":
        return search, count_bytes(work, "images.lance/_indices/**/*"), count_bytes(work)
    return search, float("nan"), count_bytes(data_folder or work)


def build_held(collection: Collection, work: Path) -> Built:
    """The default index as a service holds it: answered from memory; its index bytes are those of the copy."""
    build_ours(collection, work, "lance", IndexSettings())
    opened = open_index(work)
    num_bytes = count_resident_bytes(*collection.embeddings.vectors.shape)
    if not opened.hold(num_bytes):
        raise RuntimeError("the index cannot be held in memory; is FAISS installed?")
    rows = {record.image_id: row for row, record in enumerate(collection.embeddings.records)}

    def search(query: np.ndarray) -> list[int]:
        return [rows[hit.record.image_id] for hit in opened.search(query[None], K)[0]]

    return search, num_bytes, count_bytes(work) + num_bytes


def build_faiss(collection: Collection, work: Path, factory: str) -> Built:
    vectors = np.ascontiguousarray(collection.embeddings.vectors)
    num_lists = max(1, int(np.sqrt(len(vectors))))
    index = faiss.index_factory(vectors.shape[1], factory.format(lists=num_lists), faiss.METRIC_INNER_PRODUCT)
    index.train(vectors[:: max(1, len(vectors) // 100_000)])
    index.add(vectors)
    is_refined = isinstance(index, faiss.IndexRefine)
    inner = faiss.downcast_index(index.base_index) if is_refined else index
    if is_refined:
        index.k_factor = 40
    if hasattr(inner, "nprobe"):
        inner.nprobe = max(1, num_lists // 10)
    if hasattr(inner, "hnsw"):
        inner.hnsw.efSearch = 100
    work.mkdir(parents=True)
    faiss.write_index(inner, str(work / "index"))
    index_bytes = count_bytes(work)

    def search(query: np.ndarray) -> list[int]:
        return index.search(query[None], K)[1][0].tolist()

    return search, index_bytes, index_bytes + (vectors.nbytes if is_refined else 0)


def build_lancedb(collection: Collection, work: Path, config: HnswSq | IvfPq | None, refine: int | None) -> Built:
    """LanceDB as its documentation uses it: its own distances, without our re-ranking and records."""
    vectors = collection.embeddings.vectors
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    table = lancedb.connect(work).create_table("t", pa.table({"row": np.arange(len(vectors)), "vector": flat}))
    if config is not None:
        table.create_index("vector", config=config)

    def search(query: np.ndarray) -> list[int]:
        found = table.search(query).distance_type("cosine").limit(K).select(["row", "_distance"])
        found = found.refine_factor(refine) if refine else found
        return found.to_arrow()["row"].to_pylist()

    return search, count_bytes(work, "t.lance/_indices/**/*"), count_bytes(work)


def build_milvus_lite(collection: Collection, work: Path, uri: str, data_folder: Path) -> Built:
    from pymilvus import MilvusClient

    client = MilvusClient(uri)
    vectors = collection.embeddings.vectors
    schema = client.create_schema(auto_id=False)
    schema.add_field("row", 5, is_primary=True)  # INT64
    schema.add_field("vector", 101, dim=vectors.shape[1])  # FLOAT_VECTOR
    index = client.prepare_index_params()
    graph = {"M": 20, "efConstruction": 200, "sq_type": "SQ8"}
    index.add_index("vector", index_type="HNSW_SQ", metric_type="IP", params=graph)
    client.create_collection("alone", schema=schema, index_params=index)
    for start in range(0, len(vectors), 4096):
        block = vectors[start : start + 4096]
        client.upsert("alone", [{"row": start + n, "vector": vector} for n, vector in enumerate(block)])
    client.flush("alone")

    def search(query: np.ndarray) -> list[int]:
        parameters = {"metric_type": "IP", "params": {"ef": 100}}
        return [hit["row"] for hit in client.search("alone", [query.tolist()], limit=K, search_params=parameters)[0]]

    return search, float("nan"), count_bytes(data_folder)


def list_contestants(collection: Collection, work: Path) -> Iterator[tuple[str, str, Callable[[Path], Built]]]:
    """Yield engine, kind and how to build it into a folder."""
    small = ("ivf_pq", 16)
    yield "vitrieve", "exact", lambda folder: build_ours(collection, folder, "exact", IndexSettings())
    for kind, code_bytes in (("flat", None), ("ivf_hnsw_sq", None), ("ivf_pq", None), small, ("ivf_rq", None)):
        settings = IndexSettings(index_kind=kind, code_bytes=code_bytes)  # type: ignore[arg-type]
        name = f"lance {kind}" + (f", {code_bytes} bytes" if code_bytes else "")
        yield "vitrieve", name, lambda folder, s=settings: build_ours(collection, folder, "lance", s)
    yield "vitrieve", "lance ivf_hnsw_sq, held in memory", lambda folder: build_held(collection, folder)
    factories = ["Flat", "HNSW20_SQ8", "IVF{lists},PQ48x8,RFlat", "IVF{lists},PQ16x8,RFlat", "IVF{lists},RaBitQ,RFlat"]
    for factory in factories:
        yield "FAISS", factory, lambda folder, f=factory: build_faiss(collection, folder, f)
    hnsw, codes = HnswSq(distance_type="cosine"), IvfPq(distance_type="cosine", num_sub_vectors=48)
    yield "LanceDB alone", "no index", lambda folder: build_lancedb(collection, folder, None, None)
    yield "LanceDB alone", "IVF_HNSW_SQ", lambda folder: build_lancedb(collection, folder, hnsw, None)
    yield "LanceDB alone", "IVF_PQ, refine 10", lambda folder: build_lancedb(collection, folder, codes, 10)
    for engine in ("vitrieve", "milvus-lite alone"):
        yield engine, "milvus-lite HNSW_SQ", lambda folder, e=engine: build_on_server(collection, folder, e)


_SERVERS: list[subprocess.Popen[bytes]] = []


def build_on_server(collection: Collection, folder: Path, engine: str) -> Built:
    data_folder = folder.with_name("milvus-data")
    uri = start_milvus_lite(data_folder)
    if engine == "vitrieve":
        return build_ours(collection, folder, "milvus", IndexSettings(uri=uri), data_folder)
    return build_milvus_lite(collection, folder, uri, data_folder)


def start_milvus_lite(data_folder: Path) -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "milvus_lite.cmdline", "server", "--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, *words, "--data-dir", str(data_folder)]
    _SERVERS.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return f"http://127.0.0.1:{port}"
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("milvus-lite does not start")


@contextmanager
def scratch(work: Path) -> Iterator[Path]:
    """Give an empty folder, and remove it and the servers afterwards."""
    folder = work / "scratch"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder / "index"
    finally:
        while _SERVERS:
            process = _SERVERS.pop()
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


# --- measuring ---


def measure(engine: str, kind: str, build: Callable[[Path], Built], collection: Collection, work: Path) -> Result:
    num_images = len(collection.embeddings.vectors)
    with scratch(work) as folder:
        begun = time.perf_counter()
        search, index_bytes, all_bytes = build(folder)
        build_seconds = time.perf_counter() - begun
        for query in collection.queries[-5:]:
            search(query)
        seconds, num_right = [], 0
        for query, nearest in zip(collection.queries[:NUM_TIMED], collection.nearest, strict=False):
            begun = time.perf_counter()
            found = search(query)
            seconds.append(time.perf_counter() - begun)
            num_right += len(set(found) & set(nearest.tolist()))
    return Result(
        engine=engine,
        kind=kind,
        recall_at_10=num_right / (K * len(seconds)),
        p50_ms=1e3 * float(np.percentile(seconds, 50)),
        p95_ms=1e3 * float(np.percentile(seconds, 95)),
        index_bytes=index_bytes / num_images,
        all_bytes=all_bytes / num_images,
        build_seconds=build_seconds,
    )


def measure_short_vectors(collection: Collection) -> list[ShortVectors]:
    """Recall@10 of codes of some sizes, found by comparing all codes; alone, and as candidates for full vectors."""
    vectors, queries = np.ascontiguousarray(collection.embeddings.vectors), collection.queries
    factories = ["SQfp16", "SQ8", "PCA192,SQ8", "PCA128,SQ8", "PCA64,SQ8", "PCA32,SQ8", "PCA16,SQ8"]
    factories += [f"PCA128,OPQ{m}_{max(64, m)},PQ{m}x8" for m in (16, 32)] + ["PCA128,RaBitQ", "RaBitQ"]
    lines: list[ShortVectors] = [{"codes": "float32", "bytes": 4 * vectors.shape[1], "recall": 1.0, "refined": 1.0}]
    for factory in factories:
        # Distances, because PCA centers: of centered vectors the inner product orders otherwise than the cosine did.
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_L2)
        index.train(vectors[:: max(1, len(vectors) // 50_000)])
        index.add(vectors)
        candidates = index.search(queries, 100)[1]
        right = refined = 0
        for query, rows, nearest in zip(queries, candidates, collection.nearest, strict=True):
            best = rows[top_k(query[None], vectors[rows], K)[1][0]]
            right += len(set(rows[:K].tolist()) & set(nearest.tolist()))
            refined += len(set(best.tolist()) & set(nearest.tolist()))
        total = K * len(queries)
        size = index.sa_code_size()
        lines.append({"codes": factory, "bytes": size, "recall": right / total, "refined": refined / total})
        print(lines[-1], file=sys.stderr)
    return lines


def count_bytes(folder: Path, pattern: str = "**/*") -> float:
    return float(sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for embeddings and scratch files")
    parser.add_argument("--source", action="append", default=[], help="a source, as grocery=FOLDER or emoji")
    parser.add_argument("--num-vectors", type=int, default=100_000, help="crops to embed")
    parser.add_argument("--perturbed", type=int, help="enlarge by noise to this many vectors")
    parser.add_argument("--only", nargs="+", default=[""], help="only contestants whose engine and kind contain a text")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    embeddings, queries = embed_crops(arguments.work, arguments.source or ["emoji"], arguments.num_vectors)
    if arguments.perturbed:
        embeddings = perturb(embeddings, arguments.perturbed)
    collection = Collection(embeddings, queries, top_k(queries, embeddings.vectors, K)[1])
    description: dict[str, object] = {
        "num_vectors": len(embeddings.vectors),
        "embedding_dim": embeddings.vectors.shape[1],
        "num_real": arguments.num_vectors,
        "cores": os.cpu_count(),
        "machine": processor_name(),
        "load_before": round(os.getloadavg()[0], 1),
        "versions": {"faiss": faiss.__version__, "lancedb": lancedb.__version__},
    }
    stem = arguments.out / f"vector_stores_{len(embeddings.vectors)}_{time.strftime('%Y-%m-%d')}"
    results: list[Result] = []
    short = measure_short_vectors(collection) if arguments.only == [""] else []
    for engine, kind, build in list_contestants(collection, arguments.work):
        if any(text in f"{engine} {kind}" for text in arguments.only):
            results.append(measure(engine, kind, build, collection, arguments.work))
            print(results[-1], file=sys.stderr, flush=True)
            write_report(stem, description, results, short)  # after each: a table of many hours may be stopped
    print(to_markdown(description, results, short))


if __name__ == "__main__":
    main()
