"""Planted label errors: how many are among the first N of `vitrieve data audit`, and how many of its list are planted.

    python benchmarks/audit.py [--encoder dinov2-vits14] [--image-size 112] [--data grocery cub200-subset]
                               [--shares 0.02 0.05 0.1] [--seeds 0 1 2] [--max-images N]

On Grocery and cub200-subset, or those of them that are named and are here, as whole data sets (training and test). For
each share and seed, so many pictures get the label of another class: of a random one, or, with "similar", of the class
that the picture's nearest neighbor of another class has, as people err. N is the number of planted errors, so precision
and recall at N are equal; precision at N/2 and recall at 2 N stand beside them, and precision and recall of the list
that the report shows. cleanlab's `find_label_issues` ranks votes of the ten nearest pictures where it is installed (pip
install cleanlab, beside this environment). Labels that were wrong before count as not planted: the precision is a lower
bound.

Writes benchmarks/results/audit_DATE.json and prints a table.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
from collections_here import find_collections
from contest import RESULTS, write_result

from vitrieve.curation.labels import (
    MAX_NEIGHBORS,
    TEMPERATURE,
    LabelScores,
    Neighborhood,
    find_neighborhood,
    score_labels,
)
from vitrieve.curation.material import embed_material
from vitrieve.data.sources import read_source
from vitrieve.runtime.encoder import Encoder, load_encoder


def plant_errors(
    labels: np.ndarray, neighborhood: Neighborhood, share: float, seed: int, *, is_similar: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels of which some are wrong, and the rows of those."""
    generator = np.random.default_rng(seed)
    rows = np.sort(generator.choice(len(labels), max(1, round(share * len(labels))), replace=False))
    wrong = labels.copy()
    for row in rows.tolist():
        others = np.unique(labels[labels != labels[row]])
        near = [labels[other] for other in neighborhood.rows[row] if labels[other] != labels[row]]
        wrong[row] = near[0] if is_similar and near else generator.choice(others)
    return wrong, rows


def measure(scores: np.ndarray, is_listed: np.ndarray, planted: np.ndarray) -> dict[str, float]:
    """Compute precision and recall at N, N/2 and 2 N, and of the list."""
    order, count = np.argsort(-scores, kind="stable"), len(planted)
    hits = np.isin(order, planted)
    listed = np.flatnonzero(is_listed)
    right = np.isin(listed, planted).sum()
    return {
        "num_planted": count,
        "precision_at_n": float(hits[:count].mean()),
        "precision_at_half_n": float(hits[: max(1, count // 2)].mean()),
        "recall_at_2_n": float(hits[: 2 * count].sum() / count),
        "num_listed": len(listed),
        "list_precision": float(right / max(1, len(listed))),
        "list_recall": float(right / count),
    }


def measure_cleanlab(neighborhood: Neighborhood, labels: np.ndarray, planted: np.ndarray) -> dict[str, float] | None:
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        return None
    classes, numbers = np.unique(labels, return_inverse=True)
    weights = np.exp((neighborhood.similarities.astype(np.float64) - 1) / TEMPERATURE)
    weights /= weights.sum(axis=1, keepdims=True)
    shares = np.zeros((len(labels), len(classes)))
    np.add.at(shares, (np.arange(len(labels))[:, None], numbers[neighborhood.rows]), weights)
    is_listed = find_label_issues(numbers, shares, n_jobs=1)
    return measure(1 - get_label_quality_scores(numbers, shares, method="normalized_margin"), is_listed, planted)


def measure_collection(encoder: Encoder, name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    dataset = read_source(find_collections()[name])
    if arguments.max_images is not None:
        first = sorted(dataset.records, key=lambda record: record.label)[: arguments.max_images]  # whole classes
        dataset = replace(dataset, records=tuple(first))
    material = embed_material(encoder, dataset)
    labels = np.array([record.label for record in material.fetch(range(len(material.image_ids)))], dtype=np.int64)
    start = time.perf_counter()
    clean: LabelScores = score_labels(material.vectors, labels)
    seconds = time.perf_counter() - start
    neighborhood = find_neighborhood(material.vectors, MAX_NEIGHBORS)
    rows = []
    for share in arguments.shares:
        for seed in arguments.seeds:
            for is_similar in (False, True):
                wrong, planted = plant_errors(labels, neighborhood, share, seed, is_similar=is_similar)
                found = score_labels(material.vectors, wrong)
                rows.append(
                    {
                        "data": name,
                        "num_images": len(labels),
                        "share": share,
                        "seed": seed,
                        "errors": "similar" if is_similar else "random",
                        "num_listed_before": int(clean.is_error.sum()),
                        "seconds": seconds,
                        "vitrieve": measure(found.scores, found.is_error, planted),
                        "cleanlab": measure_cleanlab(neighborhood, wrong, planted),
                    }
                )
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    print("means over seeds, in percent: precision at N / at N/2 / recall at 2 N; precision, recall of the list")
    keys = dict.fromkeys((row["data"], row["share"], row["errors"]) for row in rows)
    for data, share, errors in keys:
        some = [row for row in rows if (row["data"], row["share"], row["errors"]) == (data, share, errors)]
        for method in ("vitrieve", "cleanlab"):
            values = [row[method] for row in some if row[method] is not None]
            if values:
                means = {key: 100 * float(np.mean([value[key] for value in values])) for key in values[0]}
                print(
                    f"{data:<16}{100 * share:>4.0f} % {errors:<8}{method:<10}{means['precision_at_n']:>6.1f} / "
                    f"{means['precision_at_half_n']:.1f} / {means['recall_at_2_n']:.1f}   list "
                    f"{means['list_precision']:.1f}, {means['list_recall']:.1f}"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="dinov2-vits14")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--data", nargs="+", default=["grocery", "cub200-subset"])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.02, 0.05, 0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max-images", type=int)
    arguments = parser.parse_args()
    encoder = load_encoder(arguments.encoder, image_size=arguments.image_size)
    here = find_collections()
    rows = [row for name in arguments.data if name in here for row in measure_collection(encoder, name, arguments)]
    settings = vars(arguments)
    result = {"settings": settings, "fingerprint": encoder.fingerprint, "engine": encoder.engine, "rows": rows}
    written = RESULTS / f"audit_{date.today()}.json"
    write_result(written, result)
    print_rows(rows)
    print(f"written: {written}")


if __name__ == "__main__":
    main()
