"""Exact ranking at SOP's size, and how it grows: ours against FAISS flat and pytorch-metric-learning's calculator.

    python benchmarks/ranking.py [--quick] [--json FILE]

The vectors are 60,502 of 384 dimensions in 11,316 classes, as many as the test set of SOP: embeddings of Grocery and
emoji (dinov2-vits14, 112 px) and copies with noise, a real vector a class. The sides alternate, each in a process of
its own; memory is the largest that the process held beyond vectors and imports. All sides of a task must agree: the
mean similarity of the neighbors, or MAP@R. Small collections, 1,000 to 10,000 vectors, against themselves. Growth:
galleries to 1,000,000 against 70 queries (the shape of R1M) and 10,000, and widths from 128 to 768. torchmetrics wants
every pair at once, so it is compared at a small size. Where the processor has no bf16, a million against 10,000, the
widths and open-metric-learning are left out, which would take a quarter of an hour, and so is our side without torch,
because only bf16 needs torch.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_metric_learning
from collections_here import ensure_real_vectors, make_vectors
from contest import FP32, alternate_processes, best_product, has_avx512, has_bf16, main, max_seconds
from lines import Line, time_lines

from vitrieve.machine import cache_folder

Others = Mapping[str, tuple[list[str], dict[str, Any]]]
SECTION = "exact ranking"
NUM_IMAGES, NUM_CLASSES, NUM_DIMS, K = 60_502, 11_316, 384, 10
OURS, FAISS, METRICS = "vitrieve", "FAISS flat", "pytorch-metric-learning"
TORCHMETRICS = "torchmetrics"
WITHOUT_TORCH = "vitrieve, torch not loaded"
TOP_K, SCORES, R_PRECISION = "top 10", "Recall@1 and MAP@R", "R-precision"
WIDTHS = "growth with the width, top 10, 30,000 against itself"
NUM_PAIRED = 3_000
"""Images of which torchmetrics gets all pairs: 9 million."""
TOP_K_SIDES = (OURS, *([WITHOUT_TORCH] if has_bf16() else []), FAISS)
SMALL_SIZES, NUM_SMALL_ROUNDS = (1_000, 3_000, 10_000), 9
"""A round of so few vectors takes less than a second, so that there may be many."""
IMAGES_PER_CLASS = 5
MAX_DIFFERENCE = 1e-5


def build_side(side: str, task: str, num_rows: int, num_queries: int, num_dims: int) -> Callable[[], float]:
    """Return what is timed; it returns a number that all sides of the task share."""
    num_classes = count_classes(num_rows)
    gallery, labels = make_vectors(num_rows, num_dims, num_classes, seed=0)
    queries = make_vectors(num_queries, num_dims, num_classes, seed=1)[0] if num_queries else gallery
    if side.startswith(METRICS):
        return build_calculator(gallery, labels)
    if side == TORCHMETRICS:
        return build_torchmetrics(gallery, labels)
    if side.startswith(FAISS):
        import faiss

        faiss.omp_set_num_threads(os.cpu_count() or 1)
        index = faiss.IndexFlatIP(num_dims)
        index.add(gallery)
        return lambda: mean(index.search(queries, K + 1)[0])
    if side == OURS:
        importlib.import_module("torch")
    if task == TOP_K:
        from vitrieve.similarity import top_k

        return lambda: mean(top_k(queries, gallery, K + 1)[0])
    from vitrieve.evaluation.metrics import score_queries

    if task == R_PRECISION:
        return lambda: mean(score_queries(gallery, labels).r_precision)
    return lambda: mean(score_queries(gallery, labels).map_at_r)


def count_classes(num_rows: int) -> int:
    return min(NUM_CLASSES, num_rows // IMAGES_PER_CLASS)


def build_torchmetrics(gallery: np.ndarray, labels: np.ndarray) -> Callable[[], float]:
    import torch
    from torchmetrics.retrieval import RetrievalRPrecision

    rows, classes = torch.from_numpy(gallery), torch.from_numpy(labels)
    others = ~torch.eye(len(rows), dtype=torch.bool)  # nothing finds itself
    queries = torch.arange(len(rows))[:, None].expand(-1, len(rows))[others]

    def run() -> float:
        metric = RetrievalRPrecision()
        is_relevant = classes[:, None] == classes
        metric.update((rows @ rows.T)[others], is_relevant[others], indexes=queries)
        return float(metric.compute())

    return run


def build_calculator(gallery: np.ndarray, labels: np.ndarray) -> Callable[[], float]:
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu"))
    rows, classes = torch.from_numpy(gallery), torch.from_numpy(labels)
    return lambda: float(calculator.get_accuracy(rows, classes)["mean_average_precision_at_r"])


def mean(values: Any) -> float:
    return float(np.asarray(values, dtype=np.float64).mean())


def compare(
    task: str,
    name: str,
    sides: Sequence[str],
    num_rounds: int,
    others: Others | None = None,
    *,
    is_quick: bool = False,
    **shape: int,
) -> list[Line]:
    """Measure the sides of one task, and others with scripts of their own; ``shape`` as ``build_side`` takes it.

    Raises:
        RuntimeError: The sides do not find the same.
    """
    found = alternate_processes(__file__, sides, num_rounds, max_seconds(is_quick), others=others, task=task, **shape)
    checks = {side: rounds.check for side, rounds in found.items()}
    values = [value for value in checks.values() if value is not None]
    if max(values) - min(values) > MAX_DIFFERENCE:
        raise RuntimeError(f"the sides of {name} do not find the same: {checks}.")
    lines = []
    for side, rounds in found.items():
        lines += time_lines(
            SECTION,
            name,
            {side: rounds.seconds},
            size=shape["num_dims"] if name == WIDTHS else shape["num_rows"],
            gflop=2 * (shape["num_queries"] or shape["num_rows"]) * shape["num_rows"] * shape["num_dims"] / 1e9,
            ceiling=best_product() if side == OURS else FP32,
            peak_mib=rounds.extra_mib,
            note=f"check {rounds.check:.7f}",
        )
    return lines


def find_tuned(side: str, given: dict[str, Any]) -> Others:
    """Return a FAISS side once more where its OpenBLAS, years older than NumPy's, may not know the processor."""
    if not has_avx512():
        return {}
    command = ["env", "OPENBLAS_CORETYPE=SkylakeX", sys.executable, __file__]
    return {f"{side}, OPENBLAS_CORETYPE=SkylakeX": (command, given)}


def find_open_metric_learning(folder: Path, num_rows: int) -> Others:
    """Prepare the peer that needs an environment of its own, and the vectors for it; none where it is not available."""
    command = open_metric_learning.ensure_environment(cache_folder() / "benchmarks" / "open-metric-learning")
    if command is None:
        return {}
    path = folder / "vectors.npy"
    np.save(path, make_vectors(num_rows, NUM_DIMS, count_classes(num_rows), seed=0)[0])
    return {open_metric_learning.SIDE: (command, {"vectors": str(path), "k": K + 1})}


def measure(is_quick: bool) -> list[Line]:
    rows = NUM_IMAGES // 6 if is_quick else NUM_IMAGES
    ensure_real_vectors(count_classes(rows) if is_quick else None)  # once, not in each side's process
    shape = {"num_rows": rows, "num_queries": 0, "num_dims": NUM_DIMS}
    itself = f"{rows:,} x {NUM_DIMS} against itself"
    num_rounds = 2 if is_quick else 3
    with tempfile.TemporaryDirectory() as folder:
        tuned = {} if is_quick else find_tuned(FAISS, {"task": TOP_K, **shape})
        has_time = has_bf16() and not is_quick
        others = {**tuned, **(find_open_metric_learning(Path(folder), rows) if has_time else {})}
        lines = compare(TOP_K, f"{TOP_K}, {itself}", TOP_K_SIDES, num_rounds, others, is_quick=is_quick, **shape)
    paired = {"num_rows": NUM_PAIRED, "num_queries": 0, "num_dims": NUM_DIMS}
    name = f"{R_PRECISION}, {NUM_PAIRED:,} x {NUM_DIMS} against itself"
    lines += compare(R_PRECISION, name, (OURS, TORCHMETRICS), num_rounds, is_quick=is_quick, **paired)
    others = None if is_quick else find_tuned(METRICS, {"task": SCORES, **shape})
    lines += compare(SCORES, f"{SCORES}, {itself}", (OURS, METRICS), num_rounds, others, is_quick=is_quick, **shape)
    return lines if is_quick else lines + measure_small() + measure_growth(num_rounds)


def measure_small() -> list[Line]:
    lines = []
    for size in SMALL_SIZES:
        name = f"{TOP_K}, {size:,} x {NUM_DIMS} against itself"
        shape = {"num_rows": size, "num_queries": 0, "num_dims": NUM_DIMS}
        lines += compare(TOP_K, name, (OURS, FAISS), NUM_SMALL_ROUNDS, **shape)
    return lines


def measure_growth(num_rounds: int) -> list[Line]:
    lines = []
    for num_queries in (70, 10_000):
        is_long = num_queries > 70 and not has_bf16()  # a million for 10,000 queries: more than a minute a side
        for size in (10_000, 100_000) if is_long else (10_000, 100_000, 1_000_000):
            name = f"growth with the gallery, top 10 for {num_queries:,} queries"
            grown = {"num_rows": size, "num_queries": num_queries, "num_dims": NUM_DIMS}
            lines += compare(TOP_K, name, TOP_K_SIDES, num_rounds, **grown)
    for num_dims in (128, 384, 768) if has_bf16() else ():
        lines += compare(TOP_K, WIDTHS, TOP_K_SIDES, num_rounds, num_rows=30_000, num_queries=0, num_dims=num_dims)
    return lines


if __name__ == "__main__":
    main(measure, __doc__, build_side)
