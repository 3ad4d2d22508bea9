"""Layouts of a map from the same exact neighbors: quality, time and memory, beside umap-learn and PaCMAP.

    python benchmarks/collection_map.py --embeddings FOLDER [--seeds 0 1] [--clustered 100000]

Measures on labeled embeddings (made by `vitrieve embed`): trustworthiness and the share of the 10 nearest by
similarity that are among the 10 nearest points, over 500 pictures; the share of pictures whose nearest point has
their label; and seconds of one thread, without the neighbors. umap-learn gets the same neighbors; PaCMAP finds its own.
Where one of them is not installed, the table says so. --clustered lays out so many generated vectors instead (200
clusters, 128 dimensions) with the whole of `vitrieve map`, and says how long each part takes.

It prints a table, and writes benchmarks/results/collection_map_DATE.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from vitrieve.artifacts import write_text_durably
from vitrieve.data.records import ImageRecord
from vitrieve.embed.collection import Embeddings, load_embeddings
from vitrieve.index.open import build_index
from vitrieve.mapping.collection_map import map_collection
from vitrieve.mapping.layout import NUM_NEIGHBORS, lay_out, measure_layout
from vitrieve.mapping.neighbors import Neighbors, find_neighbors
from vitrieve.similarity import FloatArray, IntArray, normalize

RESULTS = Path(__file__).parent / "results"
Layout = Callable[[FloatArray, Neighbors, int], FloatArray]


def lay_out_by_umap(vectors: FloatArray, neighbors: Neighbors, seed: int) -> FloatArray:
    import umap  # type: ignore[import-not-found, unused-ignore]

    itself = np.arange(len(vectors))[:, None]
    rows = np.concatenate([itself, neighbors.rows[:, :14]], axis=1)
    distances = np.sqrt(np.maximum(0, 2 - 2 * neighbors.similarities[:, :14]))
    distances = np.concatenate([np.zeros_like(distances[:, :1]), distances], axis=1)
    made = umap.UMAP(n_neighbors=15, random_state=seed, metric="cosine", precomputed_knn=(rows, distances, None))
    return np.asarray(made.fit_transform(vectors), dtype=np.float32)


def lay_out_by_pacmap(vectors: FloatArray, neighbors: Neighbors, seed: int) -> FloatArray:
    import pacmap  # type: ignore[import-not-found, unused-ignore]

    made = pacmap.PaCMAP(random_state=seed, apply_pca=False)
    return np.asarray(made.fit_transform(np.array(vectors), init="pca"), dtype=np.float32)


LAYOUTS: dict[str, tuple[str, Layout]] = {
    "vitrieve map (openTSNE)": ("openTSNE", lambda vectors, neighbors, seed: lay_out(vectors, neighbors, seed=seed)),
    "umap-learn": ("umap", lay_out_by_umap),
    "PaCMAP": ("pacmap", lay_out_by_pacmap),
}


def compare(embeddings: Embeddings, seed: int) -> list[dict[str, Any]]:
    vectors = np.asarray(embeddings.vectors)
    labels = np.array([record.label for record in embeddings.records])
    neighbors = find_neighbors(vectors, NUM_NEIGHBORS)
    found: list[dict[str, Any]] = [
        {
            "layout": "the vectors themselves",
            "seed": seed,
            "same_label": float(np.mean(labels[neighbors.rows[:, 0]] == labels)),
        }
    ]
    for name, (package, layout) in LAYOUTS.items():
        if find_spec(package) is None:
            found.append({"layout": name, "seed": seed, "missing": package})
            continue
        started = time.perf_counter()
        places = layout(vectors, neighbors, seed)
        seconds = time.perf_counter() - started
        same = float(np.mean(labels[find_nearest_places(places)] == labels))
        found.append(
            {"layout": name, "seed": seed, "seconds": seconds, "same_label": same} | measure_layout(vectors, places)
        )
    return found


def find_nearest_places(places: FloatArray) -> IntArray:
    nearest = np.empty(len(places), dtype=np.int64)
    for row, place in enumerate(places):
        distances = np.square(places - place, dtype=np.float64).sum(axis=1)
        distances[row] = np.inf
        nearest[row] = distances.argmin()
    return nearest


def map_clustered(num_images: int, folder: Path) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    centers, labels = generator.normal(size=(200, 128)), generator.integers(0, 200, num_images)
    vectors = normalize((centers[labels] + 0.7 * generator.normal(size=(num_images, 128))).astype(np.float32))
    records = tuple(
        ImageRecord(image_id=f"{row}.jpg", path=Path(f"/nowhere/{row}.jpg"), label=int(labels[row]), split="test")
        for row in range(num_images)
    )
    embeddings = Embeddings(
        vectors=vectors,
        records=records,
        failures=(),
        fingerprint="0" * 64,
        encoder_source="generated",
        image_size=32,
        license="",
    )
    build_index(embeddings, folder / "index", store="exact").close()
    made = map_collection(folder / "index", show_progress=True).to_json()
    del made["points"]
    return made | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--clustered", type=int, default=0)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    if arguments.embeddings is not None:
        embeddings = load_embeddings(arguments.embeddings)
        results["num_images"] = len(embeddings.records)
        results["layouts"] = [one for seed in arguments.seeds for one in compare(embeddings, seed)]
        for one in results["layouts"]:
            print(
                "  ".join(
                    f"{name} {value:.3f}" if isinstance(value, float) else str(value) for name, value in one.items()
                )
            )
    if arguments.clustered:
        with tempfile.TemporaryDirectory() as folder:
            results["clustered"] = map_clustered(arguments.clustered, Path(folder))
        print(json.dumps(results["clustered"], indent=2))
    RESULTS.mkdir(exist_ok=True)
    write_text_durably(RESULTS / f"collection_map_{date.today()}.json", json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
