"""Replay simulated corrections: does a training without labels get better with what people say of results?

    python benchmarks/feedback.py OUT [--collections grocery emoji] [--seeds 0 1 2] [--counts 0 50 200 1000]

The labels of the training classes are hidden. A simulated user asks with images of them, drawn by the seed, looks at
the first five results of the frozen encoder, and marks each right or wrong by the true label, until so many
corrections are made; the first 50 are also the first of the 200. A training without labels learns from them, and the
frozen start and what is kept are measured on the test classes. Beside it: a user who says anything about anything
(``nonsense``), a training with the labels, and on Grocery one with coarse classes as further labels of each image.

With ``--again`` the start is an encoder that was trained already, as a user's is who corrects its results: for each
seed one is trained without labels and corrections. The simulated user looks at its results; "before" is its figures.

So that it ends within an hour on one core, it takes whole classes of about ``--num-images`` images to train and as
many to test, at ``--image-size``, for ``--steps``. Runs that are done are not repeated: ``OUT/runs`` has a file for
each, by collection, what it learns from, and seed; a stopped replay goes on, and other settings need another ``OUT``.
It prints a table, and writes benchmarks/results/feedback_DATE.json (with ``--again`` feedback_again_DATE.json). The
exit status is 1 where what is kept is below the start.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from collections_here import find_collections
from contest import RESULTS, write_result

from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.data.several import forget_labels
from vitrieve.data.sources import read_source
from vitrieve.embed.collection import embed_images
from vitrieve.evaluation.run import measure_protocols
from vitrieve.feedback.events import Correction, Kind
from vitrieve.feedback.learning import apply_pairs
from vitrieve.recipes import find_recipe
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.similarity import top_k
from vitrieve.training.run import TrainedRun, train
from vitrieve.writing import write_text_durably

NUM_LOOKED_AT = 5
NONSENSE, LABELS, MORE_LABELS = "nonsense", "labels", "labels and coarse classes"
RECIPE = "small"
COARSE = "coarse_class"
SETTINGS = ("steps", "batch_size", "image_size", "num_images", "again")
"""What all runs of a folder have in common."""
METRICS = ("recall_at_1", "map_at_r")


@dataclass(frozen=True, kw_only=True)
class Collection:
    """A collection cut down to what is affordable.

    Attributes:
        name: Its name.
        dataset: Training and test images, with their labels.
        vectors: Embeddings of the training images by the encoder that training starts from.
        before: Figures of that encoder on the test images.
        start: Its folder; None: the frozen encoder of the recipe.
    """

    name: str
    dataset: Dataset
    vectors: np.ndarray
    before: dict[str, float]
    start: Path | None = None


def take_classes(records: Sequence[ImageRecord], num_images: int) -> list[ImageRecord]:
    """Take whole classes, drawn by chance, until there are so many images; in the order of the records."""
    sizes: dict[int, int] = {}
    for record in records:
        sizes[record.label] = sizes.get(record.label, 0) + 1
    chosen, count = set(), 0
    for label in np.random.default_rng(0).permutation(sorted(sizes)).tolist():
        if count >= num_images:
            break
        chosen.add(label)
        count += sizes[label]
    return [record for record in records if record.label in chosen]


def read_cut(name: str, num_images: int) -> Dataset:
    """Read a collection, and take classes for training and for testing."""
    dataset = read_source(find_collections()[name])
    records = [
        record
        for part in (dataset.split("train", "validation"), dataset.split("test"))
        for record in take_classes(part, num_images)
    ]
    return replace(dataset, records=tuple(records))


def prepare(name: str, arguments: argparse.Namespace) -> Collection:
    """Read a collection, embed its training images with the frozen encoder, and measure that."""
    dataset = read_cut(name, arguments.num_images)
    kept = arguments.out / f"{name}.npy"
    noted = arguments.out / f"{name}.json"
    if not (kept.is_file() and noted.is_file()):
        frozen = load_encoder(find_recipe(RECIPE)().model.backbone, image_size=arguments.image_size)
        np.save(kept, embed_images(frozen, dataset.split("train", "validation")).vectors)
        write_text_durably(noted, json.dumps(measure_on_tests(frozen, dataset)))
    return Collection(name=name, dataset=dataset, vectors=np.load(kept), before=json.loads(noted.read_text()))


def train_start(collection: Collection, seed: int, arguments: argparse.Namespace) -> Collection:
    """Train an encoder without labels and corrections, and let everything else start from it."""
    folder = arguments.out / f"start-{collection.name}-{seed}"
    if not (folder / "encoder").is_dir():
        train_arm(replace(collection, dataset=forget_labels(collection.dataset)), folder, seed, arguments)
    encoder = load_encoder(folder / "encoder")
    vectors = embed_images(encoder, collection.dataset.split("train", "validation")).vectors
    before = measure_on_tests(encoder, collection.dataset)
    return replace(collection, vectors=vectors, before=before, start=folder / "encoder")


def train_arm(collection: Collection, folder: Path, seed: int, arguments: argparse.Namespace) -> TrainedRun:
    """Train on a collection as it stands."""
    settings: dict[str, Any] = {
        "train.evaluate_every": max(1, arguments.steps // 2),
        "train.try_larger_image": False,  # both arms keep one image size
    }
    if collection.start is not None:
        settings["model.weights"] = str(collection.start)
    return train(
        collection.dataset,
        RECIPE,
        folder,
        overwrite=True,
        report=False,
        logger="none",
        num_steps=arguments.steps,
        image_size=arguments.image_size,
        batch_size=arguments.batch_size,
        seed=seed,
        **settings,
    )


def measure_on_tests(encoder: Encoder, dataset: Dataset) -> dict[str, float]:
    """Measure on the test classes."""
    figures = measure_protocols(encoder, [dataset], "measured")[0].result.metrics
    return {name: figures[name] for name in METRICS}


def simulate(records: Sequence[ImageRecord], vectors: np.ndarray, count: int, seed: int) -> list[Correction]:
    """Return what a user who knows the labels says of the first results of random queries."""
    order = np.random.default_rng(seed).permutation(len(records))
    said: list[Correction] = []
    for row in order:
        if len(said) >= count:
            break
        found = top_k(vectors[row : row + 1], vectors, NUM_LOOKED_AT + 1)[1][0]
        for other in [int(one) for one in found if one != row][:NUM_LOOKED_AT]:
            kind: Kind = "right" if records[other].label == records[row].label else "wrong"
            said.append(Correction(kind=kind, image_id=records[other].image_id, query_id=records[row].image_id))
    return said[:count]


def say_nonsense(records: Sequence[ImageRecord], count: int, seed: int) -> list[Correction]:
    """Return what a user says who looks at nothing: right or wrong of any two images."""
    generator = np.random.default_rng(seed)
    said = []
    for _ in range(count):
        one, other = generator.choice(len(records), 2, replace=False).tolist()
        kind: Kind = "right" if generator.random() < 0.5 else "wrong"
        said.append(Correction(kind=kind, image_id=records[other].image_id, query_id=records[one].image_id))
    return said


def has_shared_coarse_classes(dataset: Dataset) -> bool:
    """Tell whether classes that train share a coarse class: else those say nothing more."""
    records = dataset.split("train", "validation")
    if COARSE not in records[0].metadata:
        return False
    return len({record.metadata[COARSE] for record in records}) < len({record.label for record in records})


def build_data(collection: Collection, arm: str, seed: int) -> tuple[Dataset, list[Correction]]:
    """Build what one arm trains on, and what its user said."""
    dataset, records = collection.dataset, collection.dataset.split("train", "validation")
    if arm == LABELS:
        return dataset, []
    if arm == MORE_LABELS:
        names = sorted({record.metadata[COARSE] for record in records})
        first = len(dataset.label_names)
        more = {record.image_id: (first + names.index(record.metadata[COARSE]),) for record in records}
        return replace(dataset, more_labels=more), []
    if arm == NONSENSE:
        said = say_nonsense(records, 1000, seed)
    else:
        said = simulate(records, collection.vectors, int(arm), seed)
    unlabeled = forget_labels(dataset)
    return (apply_pairs(unlabeled, said) if said else unlabeled), said


def run_arm(collection: Collection, arm: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and measure, unless an earlier run did."""
    noted = arguments.out / "runs" / f"{collection.name}-{arm.replace(' ', '-')}-{seed}.json"
    if noted.is_file():
        figures: dict[str, Any] = json.loads(noted.read_text())
        return figures
    dataset, said = build_data(collection, arm, seed)
    folder = arguments.out / "run"
    started = time.perf_counter()
    made = train_arm(replace(collection, dataset=dataset), folder, seed, arguments)
    kept = int(made.summary["kept_step"])
    # Where no state was better, the weights of the start are what is kept.
    after = measure_on_tests(made.encoder, collection.dataset) if kept else collection.before
    figures = {
        "collection": collection.name,
        "arm": arm,
        "seed": seed,
        "num_right": sum(one.kind == "right" for one in said),
        "num_wrong": sum(one.kind == "wrong" for one in said),
        "kept_step": kept,
        "held_out_map_at_r": made.summary["holdout_map_at_r"],
        "before": collection.before,
        "after": after,
        "seconds": time.perf_counter() - started,
    }
    write_text_durably(noted, json.dumps(figures, indent=2) + "\n")
    shutil.rmtree(folder)
    return figures


def require_same_settings(out: Path, settings: dict[str, int]) -> None:
    """Refuse a folder whose runs have other settings.

    Raises:
        SystemExit: As it says.
    """
    noted = out / "settings.json"
    if not noted.is_file():
        write_text_durably(noted, json.dumps(settings) + "\n")
    elif (found := json.loads(noted.read_text())) != settings:
        raise SystemExit(f"the runs of {out} have the settings {found}, not {settings}: give another folder.")


def print_table(figures: Sequence[dict[str, Any]]) -> None:
    """Print a row for each collection and arm: the mean over the seeds, and its spread."""
    print("| collection | learns from | seeds | Recall@1 | MAP@R | kept steps |\n|---|---|---|---|---|---|")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in figures:
        groups.setdefault((one["collection"], one["arm"]), []).append(one)
    for name in dict.fromkeys(one["collection"] for one in figures):
        starts = {one["seed"]: one["before"] for one in figures if one["collection"] == name}
        values = " | ".join(spell(list({100 * one[metric] for one in starts.values()})) for metric in METRICS)
        print(f"| {name} | nothing: the start | {len(starts)} | {values} | |")
        for (collection, arm), runs in groups.items():
            if collection == name:
                values = " | ".join(spell([100 * one["after"][metric] for one in runs]) for metric in METRICS)
                steps = ", ".join(str(one["kept_step"]) for one in runs)
                print(
                    f"| {name} | {f'{arm} corrections' if arm.isdigit() else arm} | {len(runs)} | {values} | {steps} |"
                )


def spell(values: Sequence[float]) -> str:
    """Spell a mean and its spread."""
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def main() -> int:
    """Run all arms, one seed after the other, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--collections", nargs="+", default=["grocery", "emoji"])
    parser.add_argument("--counts", type=int, nargs="+", default=[0, 50, 200, 1000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=126)
    parser.add_argument("--num-images", type=int, default=3000)
    parser.add_argument("--again", action="store_true", help="start from an encoder that was trained already")
    parser.add_argument("--only", nargs="+", default=[], help="names of what it learns from, as in the table")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so many minutes")
    arguments = parser.parse_args()
    (arguments.out / "runs").mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    require_same_settings(arguments.out, settings)
    started = time.monotonic()
    figures: list[dict[str, Any]] = []
    collections = [prepare(name, arguments) for name in arguments.collections]
    for seed in arguments.seeds:
        for collection in collections:
            if arguments.again:
                collection = train_start(collection, seed, arguments)
            more = [MORE_LABELS] if has_shared_coarse_classes(collection.dataset) else []
            for arm in [*map(str, arguments.counts), NONSENSE, LABELS, *more]:
                if arguments.only and arm not in arguments.only:
                    continue
                if time.monotonic() - started < 60 * arguments.minutes:
                    figures.append(run_arm(collection, arm, seed, arguments))
                    print(f"seed {seed}, {collection.name}, {arm}: {figures[-1]['seconds']:.0f} s", file=sys.stderr)
    name = f"feedback_again_{date.today()}.json" if arguments.again else f"feedback_{date.today()}.json"
    write_result(RESULTS / name, {"settings": settings, "runs": figures})
    print_table(figures)
    return int(any(one["after"]["map_at_r"] < one["before"]["map_at_r"] for one in figures))


if __name__ == "__main__":
    raise SystemExit(main())
