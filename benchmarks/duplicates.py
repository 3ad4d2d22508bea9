"""Planted copies of eight kinds: precision, recall and time of `vitrieve duplicates`, beside imagededup.

    python benchmarks/duplicates.py OUT --data SOURCE [--data SOURCE …] [--num-images 60000] [--copies 250]
                                        [--encoder dinov2-vits14] [--image-size 112] [--seeds 0 1] [--no-peers]

Takes pictures of the sources until there are --num-images with the copies, writes copies of --copies pictures of each
kind (curation/copies.py) beside them, and looks for duplicates in the whole. Originals of which two have the same
pixels are left out before. A pair is right where both are one original or copies of the same one. Sources may hold
near-duplicates of their own, which count as wrong here: the precision is a lower bound, and the pages
OUT/seed-N/wrong.html show which pairs those are.

What copies need is calibrated as by `vitrieve duplicates`: on copies that are drawn anew. --threshold compares vectors
alone.
`imagededup` (pip install imagededup; beside this environment) has a perceptual hash and a CNN (MobileNetV3, whose
weights it fetches). Its comparison is also run on the vectors of --encoder. Its thresholds are its defaults. Where
the package or the weights are missing, the result says so. Times are of one process, embedding apart from searching.

A seed that is done is kept in OUT. The end writes benchmarks/results/duplicates_DATE.json and prints a table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from vitrieve.artifacts import write_text_durably
from vitrieve.curation.copies import COPIES
from vitrieve.curation.duplicates import DuplicateGroup, DuplicateReport, find_near
from vitrieve.curation.looking import Look, look_at_all
from vitrieve.curation.material import Material, embed_material
from vitrieve.curation.pages import write_duplicates_page
from vitrieve.data.decode import read_image
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.data.sources import read_collection, read_source
from vitrieve.runtime.encoder import Encoder, load_encoder

JPEG_QUALITY = 95
Pair = tuple[str, str]


def choose_originals(sources: Sequence[str], num_wanted: int, seed: int) -> list[ImageRecord]:
    """Choose pictures of the sources at random, without those whose pixels are there already."""
    records = [record for source in sources for record in read_source(source).records]
    order = np.random.default_rng(seed).permutation(len(records))[: num_wanted + num_wanted // 10]
    chosen = [records[row] for row in order]
    digests: set[bytes] = set()
    kept = []
    for record, look in zip(chosen, look_at_all(chosen, show_progress=True), strict=True):
        if isinstance(look, Look) and look.digest not in digests:
            digests.add(look.digest)
            kept.append(record)
    return kept[:num_wanted]


def plant(originals: Sequence[ImageRecord], folder: Path, num_copies: int, seed: int) -> dict[str, str]:
    """Write all pictures into one folder, and copies of some beside them.

    Returns:
        Name of each copy -> name of its original. The names of copies begin with their kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for number, record in enumerate(originals):
        if not (folder / f"{number:06}.jpg").exists():
            read_image(record).save(folder / f"{number:06}.jpg", quality=JPEG_QUALITY)
    planted = {}
    for kind, make in COPIES.items():
        for number in generator.choice(len(originals), num_copies, replace=False).tolist():
            name = f"{kind}-{number:06}.jpg"
            make(read_image(originals[number]), generator).save(folder / name, quality=JPEG_QUALITY)
            planted[name] = f"{number:06}.jpg"
    return planted


def list_true_pairs(planted: dict[str, str]) -> set[Pair]:
    families: dict[str, list[str]] = {}
    for copy, original in planted.items():
        families.setdefault(original, [original]).append(copy)
    return {order(one, other) for family in families.values() for one in family for other in family if one < other}


def order(one: str, other: str) -> Pair:
    return (one, other) if one < other else (other, one)


def measure(found: Iterable[Pair], planted: dict[str, str]) -> dict[str, Any]:
    """Compute precision of the pairs, recall of the planted copies with their originals, by kind too."""
    pairs, true = {order(*pair) for pair in found}, list_true_pairs(planted)
    of_kind = {
        kind: [order(copy, original) in pairs for copy, original in planted.items() if copy.startswith(f"{kind}-")]
        for kind in COPIES
    }
    recall = float(np.mean([is_found for values in of_kind.values() for is_found in values]))
    precision = len(pairs & true) / len(pairs) if pairs else 1.0
    return {
        "num_pairs": len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "recall_by_kind": {kind: float(np.mean(values)) for kind, values in of_kind.items()},
    }


def list_group_pairs(report: DuplicateReport) -> list[Pair]:
    """List the pairs of each group."""
    return [pair for group in report.groups for pair in itertools.combinations(group.image_ids, 2)]


def measure_ours(
    encoder: Encoder, dataset: Dataset, planted: dict[str, str], threshold: float | None, folder: Path
) -> tuple[dict[str, Any], Material]:
    start = time.perf_counter()
    material = embed_material(encoder, dataset)
    embedded = time.perf_counter()
    report = find_near(material, "near", threshold)
    seconds = time.perf_counter() - embedded
    true = list_true_pairs(planted)
    wrong = tuple(
        group for group in report.groups if any(order(group.keep, name) not in true for name in group.image_ids[1:])
    )
    write_wrong(report, wrong, folder / "wrong.html")
    return {
        "method": "vitrieve duplicates",
        "threshold": report.threshold,
        "embed_seconds": embedded - start,
        "find_seconds": seconds,
        **measure(list_group_pairs(report), planted),
        "calibration": report.to_json()["calibration"],
    }, material


def write_wrong(report: DuplicateReport, wrong: tuple[DuplicateGroup, ...], path: Path) -> None:
    """Write the page of the groups that have a wrong pair: what they show is to be looked at."""
    write_duplicates_page(replace(report, groups=wrong), path)


def measure_peers(pictures: Path, planted: dict[str, str], material: Material) -> list[dict[str, Any]]:
    """Run imagededup's hash and CNN with their defaults, and its comparison on our vectors."""
    try:
        from imagededup.methods import CNN, PHash
    except ImportError as error:
        return [{"method": "imagededup", "missing": str(error)}]

    def run_hash() -> tuple[float, float, dict[str, list[str]]]:
        hasher = PHash(verbose=False)
        return time_two(
            lambda: hasher.encode_images(str(pictures)), lambda codes: hasher.find_duplicates(encoding_map=codes)
        )

    def run_network() -> tuple[float, float, dict[str, list[str]]]:
        network = CNN(verbose=False)
        return time_two(
            lambda: network.encode_images(str(pictures)), lambda codes: network.find_duplicates(encoding_map=codes)
        )

    def run_on_ours() -> tuple[float, float, dict[str, list[str]]]:
        network = CNN.__new__(CNN)  # its comparison alone: the constructor fetches weights
        network.verbose = False
        network.logger = logging.getLogger("imagededup")
        codes = dict(zip(material.image_ids, material.vectors, strict=True))
        return time_two(lambda: codes, lambda given: network.find_duplicates(encoding_map=given))

    rows = []
    for name, run in (
        ("imagededup PHash", run_hash),
        ("imagededup CNN", run_network),
        ("imagededup CNN, our vectors", run_on_ours),
    ):
        try:
            embed_seconds, find_seconds, found = run()
        except Exception as error:  # what a peer raises without its weights is not known beforehand
            rows.append({"method": name, "missing": f"{type(error).__name__}: {error}"[:300]})
            continue
        pairs = [(one, other) for one, others in found.items() for other in others]
        times = {"embed_seconds": embed_seconds, "find_seconds": find_seconds}
        rows.append({"method": name, **times, **measure(pairs, planted)})
    return rows


def time_two(
    encode: Callable[[], Any], find: Callable[[Any], dict[str, list[str]]]
) -> tuple[float, float, dict[str, list[str]]]:
    start = time.perf_counter()
    codes = encode()
    middle = time.perf_counter()
    found = find(codes)
    return middle - start, time.perf_counter() - middle, found


def measure_seed(arguments: argparse.Namespace, encoder: Encoder, seed: int) -> list[dict[str, Any]]:
    folder = arguments.out / f"seed-{seed}"
    num_originals = arguments.num_images - arguments.copies * len(COPIES)
    originals = choose_originals(arguments.data, num_originals, seed)
    if len(originals) < arguments.copies:
        raise SystemExit(f"{len(originals)} originals are too few for {arguments.copies} copies of each kind.")
    planted = plant(originals, folder / "pictures", arguments.copies, seed)
    dataset = read_collection(str(folder / "pictures"))
    ours, material = measure_ours(encoder, dataset, planted, arguments.threshold, folder)
    peers = [] if arguments.no_peers else measure_peers(folder / "pictures", planted, material)
    return [{"seed": seed, "num_images": len(dataset.records), **row} for row in (ours, *peers)]


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    print(f"{'method':<34}{'seed':>5}{'images':>9}{'precision':>10}{'recall':>8}{'embed s':>9}{'find s':>8}")
    for row in rows:
        if "missing" in row:
            print(f"{row['method']:<34}{row['seed']:>5}  missing: {row['missing']}")
            continue
        print(
            f"{row['method']:<34}{row['seed']:>5}{row['num_images']:>9,}{100 * row['precision']:>10.1f}"
            f"{100 * row['recall']:>8.1f}{row['embed_seconds']:>9.1f}{row['find_seconds']:>8.1f}   "
            + ", ".join(f"{kind} {100 * share:.0f}" for kind, share in row["recall_by_kind"].items())
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--num-images", type=int, default=60_000)
    parser.add_argument("--copies", type=int, default=250)
    parser.add_argument("--encoder", default="dinov2-vits14")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--no-peers", action="store_true")
    arguments = parser.parse_args()
    encoder = load_encoder(arguments.encoder, image_size=arguments.image_size)
    settings = {key: str(value) for key, value in vars(arguments).items() if key not in ("out", "seeds")}
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        path = arguments.out / f"seed-{seed}.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        if kept.get("settings") != settings:
            kept = {"settings": settings, "rows": measure_seed(arguments, encoder, seed)}
            write_text_durably(path, json.dumps(kept, indent=1))
        rows += kept["rows"]
    result = {"settings": settings, "fingerprint": encoder.fingerprint, "engine": encoder.engine, "rows": rows}
    written = Path(__file__).parent / "results" / f"duplicates_{date.today()}.json"
    write_text_durably(written, json.dumps(result, indent=1) + "\n")
    print_rows(rows)
    print(f"written: {written}")


if __name__ == "__main__":
    main()
