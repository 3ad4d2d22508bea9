"""What re-ranking does to Recall@1 and MAP@R: query expansion, database augmentation, k-reciprocal.

    python benchmarks/reranking_settings.py OUT [--data grocery emoji] [--seeds 0 1]

Frozen dinov2-vits14 at 112 px, two settings for each collection:

- leave_one_out: every image of the split asks among the others, as `vitrieve evaluate` measures. No database
  augmentation: a gallery image would be averaged with the query, which is one of its neighbors.
- halves: a random half of each class asks, the other half is the gallery (a seed is another half), so that nothing in
  the gallery has seen a query.

Numbers of neighbors and exponents are chosen on the training split; the test split is measured beside it. Embeddings
are kept in OUT. Writes benchmarks/results/reranking_settings_DATE.jsonl, one line a method, and prints the table of the
test split.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitrieve.artifacts import MANIFEST_NAME
from vitrieve.data.sources import read_source
from vitrieve.embed.collection import embed_collection
from vitrieve.embed.embeddings import load_embeddings
from vitrieve.evaluation.metrics import score_queries
from vitrieve.rerank.neighbors import augment_database, expand_queries, k_reciprocal_distances
from vitrieve.rerank.reranker import RERANK_DEPTH
from vitrieve.runtime.encoder import load_encoder
from vitrieve.similarity import order_nearest, similarity

ENCODER, IMAGE_SIZE = "dinov2-vits14", 112
EXPANSIONS = [(1, 0.0), (1, 3.0), (2, 0.0), (2, 3.0), (3, 0.0), (3, 3.0), (5, 0.0), (5, 3.0), (10, 0.0), (10, 3.0)]
RECIPROCALS = [(20, 6, 0.3), (20, 6, 0.0), (10, 3, 0.3), (40, 6, 0.3)]
MAX_WHOLE = 3_000
"""Images for which k-reciprocal re-ranking of the whole collection fits in the memory of a small machine."""


class Setting(NamedTuple):
    """Who asks whom. ``own`` is the gallery row of each query itself, None where no query is in the gallery."""

    queries: np.ndarray
    query_labels: np.ndarray
    gallery: np.ndarray
    gallery_labels: np.ndarray
    own: np.ndarray | None


def score(order: np.ndarray, setting: Setting) -> tuple[float, float]:
    """Recall@1 and MAP@R of an order of all gallery rows, queries without anything relevant left out."""
    recalls, precisions = [], []
    for query, label in enumerate(setting.query_labels):
        ranked = order[query] if setting.own is None else order[query][order[query] != setting.own[query]]
        is_relevant = setting.gallery_labels[ranked] == label
        num_relevant = int(is_relevant.sum())
        if num_relevant:
            hits = is_relevant[:num_relevant]
            precision = np.cumsum(hits) / np.arange(1, num_relevant + 1)
            recalls.append(hits[0])
            precisions.append((precision * hits).sum() / num_relevant)
    return float(np.mean(recalls)), float(np.mean(precisions))


def rank(setting: Setting, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    similarities = similarity(queries, gallery)
    if setting.own is not None:
        similarities[np.arange(len(queries)), setting.own] = -np.inf  # last, and left out by score
    return order_nearest(similarities, len(gallery))[1]


def expand(setting: Setting, gallery: np.ndarray, num_neighbors: int, alpha: float) -> np.ndarray:
    nearest = rank(setting, setting.queries, gallery)[:, :num_neighbors]
    return expand_queries(setting.queries, gallery[nearest], alpha=alpha)


def reorder_first(setting: Setting, k1: int, k2: int, weight: float) -> np.ndarray:
    """Re-rank as the searcher does: the first images of each query among themselves."""
    order = rank(setting, setting.queries, setting.gallery)
    for row, query in enumerate(setting.queries):
        first = order[row, : min(RERANK_DEPTH, order.shape[1] - (setting.own is not None))]
        vectors = np.concatenate([query[None], setting.gallery[first]])
        distances = k_reciprocal_distances(similarity(vectors, vectors), 1, k1=k1, k2=k2, distance_weight=weight)
        order[row, : len(first)] = first[np.argsort(distances[0], kind="stable")]
    return order


def reorder_all(setting: Setting, k1: int, k2: int, weight: float) -> np.ndarray:
    """Re-rank as the paper does: all queries and the whole gallery at once."""
    vectors = np.concatenate([setting.queries, setting.gallery])
    distances = k_reciprocal_distances(
        similarity(vectors, vectors), len(setting.queries), k1=k1, k2=k2, distance_weight=weight
    )
    return np.argsort(distances, axis=1, kind="stable")


def list_methods(setting: Setting) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    queries, gallery = setting.queries, setting.gallery
    yield "none", lambda: rank(setting, queries, gallery)
    for n, alpha in EXPANSIONS:
        name = f"alpha {alpha:g}, {n} neighbors" if alpha else f"average, {n} neighbors"
        yield (
            f"query expansion: {name}",
            lambda n=n, alpha=alpha: rank(setting, expand(setting, gallery, n, alpha), gallery),
        )
    for k1, k2, weight in RECIPROCALS:
        name = f"k1 {k1}, k2 {k2}, distance {weight:g}"
        yield f"k-reciprocal, first {RERANK_DEPTH}: {name}", lambda k=(k1, k2, weight): reorder_first(setting, *k)
    if setting.own is not None:
        return
    for n, alpha in EXPANSIONS:
        name = f"alpha {alpha:g}, {n} neighbors" if alpha else f"average, {n} neighbors"
        augmented = augment_database(gallery, num_neighbors=n, alpha=alpha)
        yield f"database augmentation: {name}", lambda a=augmented: rank(setting, queries, a)
        if n in (3, 5):
            yield (
                f"augmentation and expansion: {name}",
                lambda a=augmented, n=n, alpha=alpha: rank(setting, expand(setting, a, n, alpha), a),
            )
    if len(queries) + len(gallery) <= MAX_WHOLE:
        yield "k-reciprocal, all: k1 20, k2 6, distance 0.3", lambda: reorder_all(setting, 20, 6, 0.3)


def build_settings(vectors: np.ndarray, labels: np.ndarray, seeds: list[int]) -> Iterator[tuple[str, int, Setting]]:
    yield "leave_one_out", 0, Setting(vectors, labels, vectors, labels, np.arange(len(vectors)))
    for seed in seeds:
        generator = np.random.default_rng(seed)
        is_query = np.zeros(len(labels), dtype=bool)
        for label in np.unique(labels):
            rows = generator.permutation(np.flatnonzero(labels == label))
            is_query[rows[: len(rows) // 2]] = True
        yield "halves", seed, Setting(vectors[is_query], labels[is_query], vectors[~is_query], labels[~is_query], None)


def measure_source(source: str, folder: Path, seeds: list[int]) -> Iterator[dict[str, object]]:
    if not (folder / MANIFEST_NAME).is_file():
        encoder = load_encoder(ENCODER, image_size=IMAGE_SIZE)
        embed_collection(encoder, read_source(source), folder, is_resume=True)
    embeddings = load_embeddings(folder)
    for split in ("train", "test"):
        rows = [row for row, record in enumerate(embeddings.records) if record.split == split]
        labels = np.array([embeddings.records[row].label for row in rows])
        vectors = np.asarray(embeddings.vectors[rows])
        for name, seed, setting in build_settings(vectors, labels, seeds):
            for method, order in list_methods(setting):
                started = time.perf_counter()
                recall, map_at_r = score(order(), setting)
                if method == "none" and name == "leave_one_out":
                    expected = score_queries(vectors, labels).means((1,))
                    assert abs(recall - expected["recall_at_1"]) < 2e-3, expected
                yield {
                    "data": source, "split": split, "setting": name, "seed": seed, "method": method,
                    "num_queries": len(setting.queries), "recall_at_1": round(recall, 4),
                    "map_at_r": round(map_at_r, 4), "seconds": round(time.perf_counter() - started, 2),
                }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", nargs="+", default=["grocery", "emoji"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    arguments = parser.parse_args()
    path = Path(__file__).parent / "results" / f"reranking_settings_{time.strftime('%Y-%m-%d')}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for source in arguments.data:
            for result in measure_source(source, arguments.out / source.partition(":")[0], arguments.seeds):
                file.write(json.dumps(result) + "\n")
                file.flush()
                if result["split"] == "test":
                    figures = (
                        f"{100 * float(str(result['recall_at_1'])):.1f} / {100 * float(str(result['map_at_r'])):.1f}"
                    )
                    print(
                        f"| {source} | {result['setting']} {result['seed']} | {result['method']} | {figures} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
