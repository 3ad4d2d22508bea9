"""Exact ranking at SOP's size, and how it grows: ours against FAISS flat and pytorch-metric-learning's calculator.

    python benchmarks/ranking.py WORK GROCERY_FOLDER [--rounds 3] [--quick]

The vectors are 60,502 of 384 dimensions in 11,316 classes, as many as the test set of SOP: embeddings of Grocery and
emoji (dinov2-vits14, 112 px) and copies with noise, a real vector a class. Each side runs in a process of its own, the
sides alternating; the seconds leave out imports and making the vectors, the memory is the largest that the process
held beyond what it held before. Growth: galleries to 1,000,000 against 70 queries (the shape of R1M) and 10,000, and
widths from 128 to 1,024. Writes results/ranking_DATE.json and prints a table.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NUM_IMAGES, NUM_CLASSES, NUM_DIMS = 60_502, 11_316, 384
NOISE_NORM = 0.35
"""Length of the noise of a copy: a cosine near 0.94."""
K = 10
RESULTS = Path(__file__).parent / "results"
TOP_K_SIDES = ("vitrieve", "vitrieve, torch loaded", "faiss flat")
METRIC_SIDES = ("vitrieve", "pytorch-metric-learning")
Work = Callable[[], object]


def ensure_vectors(work: Path, folder: Path) -> Path:
    """Embed Grocery and emoji, unless an earlier run did."""
    path = work / "real.npy"
    if not path.exists():
        from vitrieve.data.sources import read_source
        from vitrieve.embed.batches import encode_batches
        from vitrieve.runtime.encoder import load_encoder

        encoder = load_encoder("dinov2-vits14", image_size=112)
        records = [record for source in (f"grocery:{folder}", "emoji") for record in read_source(source).records]
        batches = [records[start : start + 32] for start in range(0, len(records), 32)]
        work.mkdir(parents=True, exist_ok=True)
        np.save(path, np.concatenate([batch.vectors for batch in encode_batches(encoder, batches)]))
    return path


def make_vectors(
    path: Path, num_rows: int, num_dims: int, num_classes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(N, E)`` unit vectors, real ones with noise, and their labels."""
    generator = np.random.default_rng(seed)
    real = np.load(path)
    real = np.pad(real, ((0, 0), (0, max(0, num_dims - real.shape[1]))))[:, :num_dims]
    labels = np.arange(num_rows) % num_classes
    vectors = np.empty((num_rows, num_dims), dtype=np.float32)
    for start in range(0, num_rows, 65_536):
        stop = min(start + 65_536, num_rows)
        noise = generator.standard_normal((stop - start, num_dims), dtype=np.float32)
        noise *= NOISE_NORM / np.linalg.norm(noise, axis=1, keepdims=True)
        vectors[start:stop] = real[labels[start:stop] % len(real)] + noise
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), labels


def choose_work(task: str, side: str, queries: np.ndarray, gallery: np.ndarray, labels: np.ndarray) -> Work:
    """Import what a side needs, and return what is timed."""
    if side == "faiss flat":
        import faiss

        faiss.omp_set_num_threads(os.cpu_count() or 1)

        def search() -> object:
            index = faiss.IndexFlatIP(gallery.shape[1])
            index.add(gallery)
            return index.search(queries, K + 1)

        return search
    if side == "pytorch-metric-learning":
        import torch
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

        names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
        calculator = AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu"))
        rows, classes = torch.from_numpy(gallery), torch.from_numpy(labels)
        return lambda: calculator.get_accuracy(rows, classes)
    if task == "top_k":
        if "torch" in side:
            importlib.import_module("torch")
        from vitrieve.similarity import top_k

        return lambda: top_k(queries, gallery, K + 1)
    importlib.import_module("torch")
    from vitrieve.evaluate.metrics import score_queries

    return lambda: score_queries(gallery, labels)


def run_one(words: dict[str, Any]) -> dict[str, float]:
    """Measure one side once, in this process."""
    gallery, labels = make_vectors(
        Path(words["path"]), words["num_rows"], words["num_dims"], words["num_classes"], seed=0
    )
    queries = gallery
    if words["num_queries"]:
        queries = make_vectors(
            Path(words["path"]), words["num_queries"], words["num_dims"], words["num_classes"], seed=1
        )[0]
    work = choose_work(words["task"], words["side"], queries, gallery, labels)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - begun
    extra_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": seconds, "extra_mib": extra_mib, "check": checksum(result)}


def checksum(result: Any) -> float:
    """Reduce a result to one number that all sides of a task share: neighbours' sum, or MAP@R."""
    if isinstance(result, tuple):
        return float(np.asarray(result[0], dtype=np.float64).mean())
    if isinstance(result, dict):
        return float(result["mean_average_precision_at_r"])
    return float(result.map_at_r.mean())


def measure(task: str, sides: tuple[str, ...], rounds: int, **words: Any) -> list[dict[str, Any]]:
    """Measure some sides alternating; return a line a side."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            given = json.dumps({"task": task, "side": side, **words})
            done = subprocess.run([sys.executable, __file__, "--one", given], stdout=subprocess.PIPE, check=True)
            found[side].append(json.loads(done.stdout))
            print(task, side, words["num_rows"], words["num_dims"], found[side][-1], file=sys.stderr)
    return [
        {
            "task": task,
            "side": side,
            **{name: value for name, value in words.items() if name != "path"},
            "seconds": statistics.median(one["seconds"] for one in ones),
            "seconds_min": min(one["seconds"] for one in ones),
            "seconds_max": max(one["seconds"] for one in ones),
            "extra_mib": max(one["extra_mib"] for one in ones),
            "check": ones[0]["check"],
        }
        for side, ones in found.items()
    ]


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(run_one(json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a sixth of the images, and no growth")
    arguments = parser.parse_args()
    path = str(ensure_vectors(arguments.work, arguments.folder))
    rows = NUM_IMAGES // 6 if arguments.quick else NUM_IMAGES
    shape = {"path": path, "num_rows": rows, "num_dims": NUM_DIMS, "num_classes": NUM_CLASSES, "num_queries": 0}
    lines = measure("top_k", TOP_K_SIDES, arguments.rounds, **shape)
    lines += measure("metrics", METRIC_SIDES, arguments.rounds, **shape)
    if not arguments.quick:
        for num_queries, sizes in ((70, (10_000, 100_000, 1_000_000)), (10_000, (10_000, 100_000, 1_000_000))):
            for size in sizes:
                lines += measure("top_k", TOP_K_SIDES, 1, **{**shape, "num_rows": size, "num_queries": num_queries})
        for num_dims in (128, 768):
            lines += measure("top_k", TOP_K_SIDES, 1, **{**shape, "num_rows": 30_000, "num_dims": num_dims})
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
        "num_cores": os.cpu_count(),
        "lines": lines,
    }
    (RESULTS / f"ranking_{result['date']}{'_quick' if arguments.quick else ''}.json").write_text(
        json.dumps(result, indent=2) + "\n"
    )
    print("| task | rows | queries | dims | side | seconds (least, most) | extra MiB | check |")
    print("|---|---:|---:|---:|---|---:|---:|---:|")
    for one in lines:
        print(
            f"| {one['task']} | {one['num_rows']:,} | {one['num_queries'] or one['num_rows']:,} | {one['num_dims']} "
            f"| {one['side']} | {one['seconds']:.2f} ({one['seconds_min']:.2f}, {one['seconds_max']:.2f}) "
            f"| {one['extra_mib']:,.0f} | {one['check']:.7f} |"
        )


if __name__ == "__main__":
    main()
