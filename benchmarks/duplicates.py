"""Planted copies of eight kinds: precision, recall and time of `vitrieve duplicates`, beside imagededup.

    python benchmarks/duplicates.py OUT --data SOURCE [--data SOURCE …] [--num-images 60000] [--copies 250] [--quarters]
                                        [--encoder dinov2-vits14] [--image-size 112] [--seeds 0 1] [--no-peers]

Takes pictures of the sources until there are --num-images with the copies, writes copies of --copies pictures of each
kind (curation/copies.py) beside them, and looks for duplicates in the whole. Pictures are written with at most
MAX_SIDE_PX on a side. Originals of which two have the same pixels are left out before. --quarters: where the sources
hold too few pictures, as many JPEGs of at least LEAST_SIDE_PX on each side as are needed, drawn by chance, give their
four quarters (which share no pixel) instead of themselves.

A pair is right where both are one original or copies of the same one. Sources may hold near-duplicates of their own,
which count as wrong here: the precision is a lower bound, and the pages OUT/seed-N/wrong.html show which pairs those
are. Photographs and drawings are told apart by their files: pairs of two JPEGs are those of photographs. What copies
need is calibrated as by `vitrieve duplicates`: on copies that are drawn anew. --threshold compares vectors alone.
`imagededup` (pip install imagededup; beside this environment) has a perceptual hash and a CNN (MobileNetV3, whose
weights it fetches). Its comparison is also run on the vectors of --encoder, of at most PEER_MAX_IMAGES pictures. Its
thresholds are its defaults. Where the package or the weights are missing, the result says so.

Times are seconds of the clock, and of the processor in all threads and processes; embedding apart from finding.
Whatever is done is kept in OUT: a second start goes on. (It cannot tell the time of embeddings that it found.) OUT
belongs to one choice of settings; a start with others is refused. To measure a seed again with other code, remove
OUT/seed-N.json. The end writes benchmarks/results/duplicates_DATE_NUM.json and prints a table.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from contest import RESULTS, write_result
from PIL import Image

from vitrieve.artifacts import has_artifact
from vitrieve.curation.copies import COPIES
from vitrieve.curation.duplicates import DuplicateGroup, DuplicateReport, find_near
from vitrieve.curation.looking import Look, look_at_all
from vitrieve.curation.material import Material, take_embeddings
from vitrieve.curation.pages import write_duplicates_page
from vitrieve.data.check import map_ahead
from vitrieve.data.decode import measure_image, read_image, read_image_bytes
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.data.sources import read_collection
from vitrieve.embed.collection import EmbedSettings, embed_collection
from vitrieve.errors import DecodeError
from vitrieve.machine import count_cores
from vitrieve.progress import track
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.writing import write_text_durably

JPEG_QUALITY = 95
MAX_SIDE_PX = 384
LEAST_SIDE_PX = 200
"""Shorter pictures are not cut into quarters."""
SPARE_FRACTION = 0.05
"""Pictures that are drawn beyond those wanted: some are the same, and some cannot be read."""
JPEG_SUFFIXES = (".jpg", ".jpeg")
PEER_MAX_IMAGES = 20_000
"""imagededup holds the similarities of all pairs in memory."""
Pair = tuple[str, str]
Found = tuple[dict[str, float], dict[str, list[str]]]
"""Times, and the duplicates of each picture."""


class Original(NamedTuple):
    """A picture, or the box of a picture, that is written as it is and of which copies are made."""

    path: str
    box: tuple[float, float, float, float] | None

    def read(self) -> Image.Image:
        """Read it, with at most ``MAX_SIDE_PX`` on a side."""
        record = ImageRecord(image_id=self.path, path=Path(self.path), label=0, split="train", box=self.box)
        image = read_image(record)
        image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.LANCZOS)
        return image


def choose_originals(
    sources: Sequence[str], num_wanted: int, seed: int, *, has_quarters: bool, path: Path
) -> list[Original]:
    """Choose pictures of the sources at random, without those whose pixels are there already, and note them."""
    if not path.exists():
        records = [record for source in sources for record in read_collection(source).records]
        order = np.random.default_rng(seed).permutation(len(records)).tolist()
        num_drawn = round(num_wanted * (1 + SPARE_FRACTION))
        num_missing = max(0, num_drawn - len(records)) if has_quarters else 0
        drawn = list(itertools.islice(cut_some([records[row] for row in order], num_missing), num_drawn))
        unique = {
            look.digest: Original(str(record.path), record.box)
            for record, look in zip(drawn, look_at_all(drawn, show_progress=True), strict=True)
            if isinstance(look, Look)
        }
        write_text_durably(path, json.dumps(list(unique.values())[:num_wanted]))
    return [Original(name, box and tuple(box)) for name, box in json.loads(path.read_text())]


def cut_some(records: Iterable[ImageRecord], num_missing: int) -> Iterator[ImageRecord]:
    """Yield the four quarters of the first JPEGs instead of themselves, until these make up for what is missing."""
    for record in records:
        width, height = (0, 0)
        if num_missing > 0 and record.path.suffix.lower() in JPEG_SUFFIXES:
            with contextlib.suppress(DecodeError):  # whoever looks at the picture finds out why
                width, height = measure_image(read_image_bytes(record.path))
        if min(width, height) < LEAST_SIDE_PX:
            yield record
            continue
        num_missing -= 3
        for left, top in itertools.product((0, width // 2), (0, height // 2)):
            yield replace(record, box=(left, top, left + width // 2, top + height // 2))


def plant(originals: Sequence[Original], folder: Path, num_copies: int, seed: int) -> dict[str, str]:
    """Write all pictures into one folder, and copies of some beside them; those that are there stay.

    Returns:
        Name of each copy -> name of its original. The names of copies begin with their kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    wanted = [("", number) for number in range(len(originals))] + [
        (kind, number)
        for kind in COPIES
        for number in generator.choice(len(originals), num_copies, replace=False).tolist()
    ]

    def write(what: tuple[str, int]) -> str:
        kind, number = what
        path = folder / (f"{kind}-{name_original(number)}" if kind else name_original(number))
        if not path.exists():
            image = originals[number].read()
            if kind:
                image = COPIES[kind](image, np.random.default_rng([seed, list(COPIES).index(kind), number]))
            image.save(path.with_suffix(".part"), format="JPEG", quality=JPEG_QUALITY)
            path.with_suffix(".part").replace(path)
        return path.name

    written = track(map_ahead(write, wanted, count_cores()), "write pictures", total=len(wanted), is_shown=True)
    return {name: name_original(number) for name, (kind, number) in zip(written, wanted, strict=True) if kind}


def list_true_pairs(planted: dict[str, str]) -> set[Pair]:
    families: dict[str, list[str]] = {}
    for copy, original in planted.items():
        families.setdefault(original, [original]).append(copy)
    return {order(one, other) for family in families.values() for one in family for other in family if one < other}


def order(one: str, other: str) -> Pair:
    return (one, other) if one < other else (other, one)


def list_drawings(originals: Sequence[Original], planted: dict[str, str]) -> set[str]:
    """List the names of pictures that are drawings, copies too: what is no JPEG in its source."""
    numbers = enumerate(originals)
    drawn = {name_original(number) for number, one in numbers if Path(one.path).suffix.lower() not in JPEG_SUFFIXES}
    return drawn | {copy for copy, original in planted.items() if original in drawn}


def name_original(number: int) -> str:
    return f"{number:06}.jpg"


def measure(found: Iterable[Pair], planted: dict[str, str], drawings: set[str]) -> dict[str, Any]:
    """Compute precision of the pairs, recall of the planted copies with their originals, by kind too.

    Args:
        found: The pairs.
        planted: Name of each copy -> name of its original.
        drawings: Names of the pictures that are no photographs; a pair with one of them is one of drawings.
    """
    pairs, true = {order(*pair) for pair in found}, list_true_pairs(planted)
    of_drawings = {pair for pair in pairs if drawings & set(pair)}
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
        "photographs": measure_part(pairs - of_drawings, true, set(planted) - drawings, planted),
        "drawings": measure_part(of_drawings, true, set(planted) & drawings, planted),
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "recall_by_kind": {kind: float(np.mean(values)) for kind, values in of_kind.items() if values},
    }


def measure_part(pairs: set[Pair], true: set[Pair], copies: set[str], planted: dict[str, str]) -> dict[str, Any]:
    """Compute precision of some of the pairs, and recall of some of the copies; None where there are none."""
    return {
        "num_pairs": len(pairs),
        "precision": len(pairs & true) / len(pairs) if pairs else None,
        "num_copies": len(copies),
        "recall": sum(order(copy, planted[copy]) in pairs for copy in copies) / len(copies) if copies else None,
    }


def list_group_pairs(report: DuplicateReport) -> list[Pair]:
    """List the pairs of each group."""
    return [pair for group in report.groups for pair in itertools.combinations(group.image_ids, 2)]


class Clock:
    """Seconds since it was made, of the clock and of the processor."""

    def __init__(self) -> None:
        self._start = self._read()

    def tell(self, name: str) -> dict[str, float]:
        """Return both, as fields of a result."""
        seconds, cpu_seconds = (now - then for now, then in zip(self._read(), self._start, strict=True))
        return {f"{name}_seconds": seconds, f"{name}_cpu_seconds": cpu_seconds}

    @staticmethod
    def _read() -> tuple[float, float]:
        return time.perf_counter(), sum(os.times()[:4])  # of processes that have ended, too


def embed(encoder: Encoder, dataset: Dataset, folder: Path) -> tuple[Material, dict[str, float]]:
    """Embed the pictures, or take what an earlier start left; the time is told where this start did all of it."""
    is_new, clock = not folder.exists(), Clock()
    if not has_artifact(folder):
        embed_collection(encoder, dataset, folder, settings=EmbedSettings(show_progress=True), is_resume=True)
    return take_embeddings(folder, dataset, encoder), clock.tell("embed") if is_new else {}


def measure_ours(
    encoder: Encoder,
    dataset: Dataset,
    planted: dict[str, str],
    drawings: set[str],
    threshold: float | None,
    folder: Path,
) -> tuple[dict[str, Any], Material]:
    material, embed_times = embed(encoder, dataset, folder / "embeddings")
    clock = Clock()
    report = find_near(material, "near", threshold)
    times = {**embed_times, **clock.tell("find")}
    true = list_true_pairs(planted)
    wrong = tuple(
        group for group in report.groups if any(order(group.keep, name) not in true for name in group.image_ids[1:])
    )
    write_wrong(report, wrong, folder / "wrong.html")
    return {
        "method": "vitrieve duplicates",
        "threshold": report.threshold,
        **times,
        **measure(list_group_pairs(report), planted, drawings),
        "num_wrong_groups": len(wrong),
        "calibration": report.to_json()["calibration"],
    }, material


def write_wrong(report: DuplicateReport, wrong: tuple[DuplicateGroup, ...], path: Path) -> None:
    """Write the page of the groups that have a wrong pair: what they show is to be looked at."""
    write_duplicates_page(replace(report, groups=wrong), path)


def measure_peers(
    pictures: Path, planted: dict[str, str], drawings: set[str], material: Material
) -> list[dict[str, Any]]:
    """Run imagededup's hash and CNN with their defaults, and its comparison on our vectors."""
    try:
        from imagededup.methods import CNN, PHash
    except ImportError as error:
        return [{"method": "imagededup", "missing": str(error)}]

    def run_hash() -> Found:
        hasher = PHash(verbose=False)
        return time_two(
            lambda: hasher.encode_images(str(pictures)), lambda codes: hasher.find_duplicates(encoding_map=codes)
        )

    def run_network() -> Found:
        network = CNN(verbose=False)
        return time_two(
            lambda: network.encode_images(str(pictures)), lambda codes: network.find_duplicates(encoding_map=codes)
        )

    def run_on_ours() -> Found:
        if len(material.image_ids) > PEER_MAX_IMAGES:
            raise MemoryError(f"the similarities of all pairs of {len(material.image_ids)} pictures are not held")
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
            times, found = run()
        except Exception as error:  # what a peer raises without its weights is not known beforehand
            rows.append({"method": name, "missing": f"{type(error).__name__}: {error}"[:300]})
            continue
        pairs = [(one, other) for one, others in found.items() for other in others]
        rows.append({"method": name, **times, **measure(pairs, planted, drawings)})
    return rows


def time_two(encode: Callable[[], Any], find: Callable[[Any], dict[str, list[str]]]) -> Found:
    clock = Clock()
    codes = encode()
    embed_times, clock = clock.tell("embed"), Clock()
    found = find(codes)
    return {**embed_times, **clock.tell("find")}, found


def measure_seed(arguments: argparse.Namespace, encoder: Encoder, seed: int) -> list[dict[str, Any]]:
    folder = arguments.out / f"seed-{seed}"
    num_originals = arguments.num_images - arguments.copies * len(COPIES)
    folder.mkdir(parents=True, exist_ok=True)
    originals = choose_originals(
        arguments.data, num_originals, seed, has_quarters=arguments.quarters, path=folder / "originals.json"
    )
    if len(originals) < num_originals:
        raise SystemExit(f"the sources hold {len(originals):,} different pictures, {num_originals:,} are wanted.")
    planted = plant(originals, folder / "pictures", arguments.copies, seed)
    dataset = read_collection(str(folder / "pictures"))
    drawings = list_drawings(originals, planted)
    ours, material = measure_ours(encoder, dataset, planted, drawings, arguments.threshold, folder)
    write_text_durably(folder / "ours.json", json.dumps(ours, indent=1))  # the peers may take hours
    peers = [] if arguments.no_peers else measure_peers(folder / "pictures", planted, drawings, material)
    return [{"seed": seed, "num_images": len(dataset.records), **row} for row in (ours, *peers)]


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    times = ("embed_seconds", "embed_cpu_seconds", "find_seconds", "find_cpu_seconds")
    print(
        f"{'method':<34}{'seed':>5}{'images':>9}{'precision':>10}{'(photos)':>9}{'recall':>8}{'(photos)':>9}"
        f"{'embed s':>9}{'(cpu)':>8}{'find s':>8}{'(cpu)':>8}"
    )
    for row in rows:
        if "missing" in row:
            print(f"{row['method']:<34}{row['seed']:>5}  missing: {row['missing']}")
            continue
        print(
            f"{row['method']:<34}{row['seed']:>5}{row['num_images']:>9,}{100 * row['precision']:>10.1f}"
            f"{format_share(row['photographs']['precision']):>9}{100 * row['recall']:>8.1f}"
            f"{format_share(row['photographs']['recall']):>9} "
            + "".join(f"{row[name]:>8.1f}" if name in row else f"{'-':>8}" for name in times)
            + "   "
            + ", ".join(f"{kind} {100 * share:.0f}" for kind, share in row["recall_by_kind"].items())
        )


def format_share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def hold_to_settings(folder: Path, settings: dict[str, str]) -> None:
    """Note what a folder's pictures and embeddings are made by.

    Raises:
        SystemExit: The folder belongs to other settings.
    """
    path = folder / "settings.json"
    kept = json.loads(path.read_text()) if path.exists() else settings
    other = [
        f"{key} {kept.get(key)} instead of {settings.get(key)}" for key in settings if kept.get(key) != settings[key]
    ]
    if other:
        raise SystemExit(f"{folder} belongs to other settings: {', '.join(other)}. Name another folder, or remove it.")
    folder.mkdir(parents=True, exist_ok=True)
    write_text_durably(path, json.dumps(settings, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--num-images", type=int, default=60_000)
    parser.add_argument("--copies", type=int, default=250)
    parser.add_argument("--quarters", action="store_true")
    parser.add_argument("--encoder", default="dinov2-vits14")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--no-peers", action="store_true")
    arguments = parser.parse_args()
    settings = {key: str(value) for key, value in vars(arguments).items() if key not in ("out", "data", "seeds")}
    settings["data"] = " ".join(source.rpartition("/")[2] for source in arguments.data)
    hold_to_settings(arguments.out, settings)
    encoder = load_encoder(arguments.encoder, image_size=arguments.image_size)
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        path = arguments.out / f"seed-{seed}.json"
        if not path.exists():
            measured = {"settings": settings, "rows": measure_seed(arguments, encoder, seed)}
            write_text_durably(path, json.dumps(measured, indent=1))
        rows += json.loads(path.read_text())["rows"]
    result = {"settings": settings, "fingerprint": encoder.fingerprint, "engine": encoder.engine, "rows": rows}
    written = RESULTS / f"duplicates_{date.today()}_{arguments.num_images}.json"
    write_result(written, result)
    print_rows(rows)
    print(f"written: {written}")


if __name__ == "__main__":
    main()
