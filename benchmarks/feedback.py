"""Replay simulated corrections: does a training without labels get better with what people say of results?

    python benchmarks/feedback.py OUT --data SOURCE [--counts 0 50 200 1000] [--steps 120] [--image-size 126] [--seed 0]

The labels of the training classes are hidden. A simulated user asks with images of them, drawn by the seed, looks at
the first five results of the frozen encoder, and marks each right or wrong by the true label, until so many
corrections are made; the first 50 are also the first of the 200. ``vitrieve train --classes none --pairs`` learns from
them, and its report measures the frozen start and what is kept on the test classes. ``OUT/feedback.json`` has all
figures; runs that are done are not repeated. The exit status is 1 where what is kept is below the frozen start.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from vitrieve.data.records import ImageRecord
from vitrieve.data.sources import read_source
from vitrieve.embed.collection import embed_images
from vitrieve.feedback.events import Correction
from vitrieve.feedback.pairs import write_pairs
from vitrieve.model.default import DEFAULT_WEIGHTS
from vitrieve.runtime.encoder import load_encoder
from vitrieve.similarity import top_k

NUM_LOOKED_AT = 5


def simulate(records: list[ImageRecord], vectors: np.ndarray, count: int, seed: int) -> list[Correction]:
    """Return what a user who knows the labels says of the first results of random queries."""
    order = np.random.default_rng(seed).permutation(len(records))
    said: list[Correction] = []
    for row in order:
        if len(said) >= count:
            break
        found = top_k(vectors[row : row + 1], vectors, NUM_LOOKED_AT + 1)[1][0]
        for other in [int(one) for one in found if one != row][:NUM_LOOKED_AT]:
            kind: Any = "right" if records[other].label == records[row].label else "wrong"
            said.append(Correction(kind=kind, image_id=records[other].image_id, query_id=records[row].image_id))
    return said[:count]


def read_vectors(records: list[ImageRecord], kept: Path) -> np.ndarray:
    """Embed the training images with the frozen encoder, once."""
    if not kept.is_file():
        np.save(kept, embed_images(load_encoder(DEFAULT_WEIGHTS), records).vectors)
    vectors: np.ndarray = np.load(kept)
    return vectors


def run_count(arguments: argparse.Namespace, records: list[ImageRecord], count: int) -> dict[str, Any]:
    """Train with so many corrections; return the figures before and after."""
    folder = Path(arguments.out) / f"{count}"
    noted = folder.with_suffix(".json")
    if noted.is_file():
        figures: dict[str, Any] = json.loads(noted.read_text())
        return figures
    words = ["--data", arguments.data, "--classes", "none", "--out", str(folder), "--overwrite", "--json"]
    words += ["--num-steps", str(arguments.steps), "--train.evaluate-every", str(max(1, arguments.steps // 3))]
    words += ["--image-size", str(arguments.image_size), "--seed", str(arguments.seed)]
    said = []
    if count:
        said = simulate(records, read_vectors(records, Path(arguments.out) / "vectors.npy"), count, arguments.seed)
        write_pairs(said, folder.with_suffix(".parquet"))
        words += ["--pairs", str(folder.with_suffix(".parquet"))]
    command = [sys.executable, "-m", "vitrieve", "train", "small", *words]
    printed = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    before, after = printed["results"]
    figures = {
        "num_corrections": count,
        "num_right": sum(one.kind == "right" for one in said),
        "kept_step": printed.get("kept_step"),
        **{
            f"{name}_{when}": values[name] for when, values in (("before", before), ("after", after)) for name in values
        },
    }
    noted.write_text(json.dumps(figures))
    return figures


def main() -> int:
    """Run all counts and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--counts", type=int, nargs="+", default=[0, 50, 200, 1000])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--image-size", type=int, default=126)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    records = [one for one in read_source(arguments.data).records if one.split != "test"]
    figures = [run_count(arguments, records, count) for count in arguments.counts]
    (arguments.out / "feedback.json").write_text(json.dumps(figures, indent=2))
    for one in figures:
        values = "  ".join(
            f"{name} {100 * one[f'{name}_before']:.1f} -> {100 * one[f'{name}_after']:.1f}"
            for name in ("recall_at_1", "map_at_r")
        )
        print(f"{one['num_corrections']:5} corrections, step {one['kept_step']}: {values}")
    return int(any(one["map_at_r_after"] < one["map_at_r_before"] for one in figures))


if __name__ == "__main__":
    raise SystemExit(main())
