"""Make hard collections out of the Grocery photographs, as manifests that `vitrieve` reads.

    python benchmarks/make_hard_collections.py GROCERY_DIR OUT

writes OUT/low (24 px on the short side), OUT/grey, OUT/few (6 training images a class) and OUT/packages (juice, milk,
yoghurt and the like: classes that differ in small print), each with a manifest.csv. The split is Grocery's zero-shot
one: even class ids train, odd ones test.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image

from vitrieve.data.decode import read_image
from vitrieve.data.records import ImageRecord
from vitrieve.data.sources import read_source

LOW_SIDE_PX = 24
NUM_FEW = 6
NAMES = ("low", "grey", "few", "packages")


def make_low(image: Image.Image) -> Image.Image:
    scale = LOW_SIDE_PX / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def make_grey(image: Image.Image) -> Image.Image:
    return image.convert("L")


def write_pictures(
    records: Iterable[ImageRecord], folder: Path, change: Callable[[Image.Image], Image.Image]
) -> list[tuple[str, ImageRecord]]:
    rows = []
    for record in records:
        path = folder / Path(record.image_id).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            change(read_image(record)).save(path)
        rows.append((path.relative_to(folder).as_posix(), record))
    return rows


def select_few(records: Iterable[ImageRecord]) -> list[ImageRecord]:
    by_label: dict[int, list[ImageRecord]] = defaultdict(list)
    for record in records:
        by_label[record.label].append(record)
    generator = random.Random(0)
    selected = []
    for _, group in sorted(by_label.items()):
        is_train = group[0].split == "train"
        selected += generator.sample(group, min(NUM_FEW, len(group))) if is_train else group
    return selected


def write_manifest(rows: Iterable[tuple[str, ImageRecord]], label_names: tuple[str, ...], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        # The class id stands first, so that sorting labels sorts ids, as in the original (of up to 100 classes).
        writer.writerows(
            (path, f"{record.label:02} {label_names[record.label]}", record.split) for path, record in rows
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grocery", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    dataset = read_source(f"grocery:{arguments.grocery}")
    for name, change in (("low", make_low), ("grey", make_grey)):
        folder = arguments.out / name
        write_manifest(write_pictures(dataset.records, folder, change), dataset.label_names, folder)
    packages = [record for record in dataset.records if "Packages" in Path(record.image_id).parts]
    for name, records in (("few", select_few(dataset.records)), ("packages", packages)):
        folder = arguments.out / name
        rows = [(os.path.relpath(record.path, folder), record) for record in records]
        write_manifest(rows, dataset.label_names, folder)


if __name__ == "__main__":
    main()
