"""Make small collections for a contest of many methods: a sample of each collection that is here, as a manifest.

    python benchmarks/make_small_collections.py OUT

writes OUT/NAME/manifest.csv for emoji and for each of Grocery, cub200-subset, clothing-small and the clip art of
Debian's package openclipart-png that is here: at most 40 classes of each split, 960 training images and 480 test
images, shared evenly among the classes. `few` is Grocery with 6 training images a class; its test images are those of
Grocery. The classes and images are drawn by a fixed seed, so that every machine with the same files has the same ones.
A run on such a sample measures a few hundred images and not thousands, so that most of its time goes into training.
"""

from __future__ import annotations

import argparse
import os
import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from collections_here import CLIP_ART, find_collections, read_clip_art
from make_hard_collections import select_few, write_manifest

from vitrieve.data.records import ImageRecord
from vitrieve.data.sources import read_source

MAX_CLASSES = 40
MAX_IMAGES = {"train": 960, "test": 480}


def sample(records: Iterable[ImageRecord]) -> list[ImageRecord]:
    """Draw classes of each split, and images of each class that was drawn."""
    generator = random.Random(0)
    by_split: dict[str, dict[int, list[ImageRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        by_split[record.split][record.label].append(record)
    sampled = []
    for split in sorted(MAX_IMAGES):
        classes = by_split[split]
        labels = sorted(label for label, group in classes.items() if len(group) > 1)
        labels = sorted(generator.sample(labels, min(MAX_CLASSES, len(labels))))
        for label in labels:
            max_images = MAX_IMAGES[split] // len(labels)
            sampled += generator.sample(classes[label], min(max_images, len(classes[label])))
    return sampled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    datasets = {name: read_source(source) for name, source in find_collections().items()}
    if CLIP_ART.is_dir():
        datasets["clip-art"] = read_clip_art(CLIP_ART)
    for name, dataset in datasets.items():
        chosen = {name: list(dataset.records)}
        if name == "grocery":
            chosen["few"] = select_few(dataset.records)
        for sample_name, records in chosen.items():
            folder = arguments.out / sample_name
            rows = [(os.path.relpath(record.path, folder), record) for record in sample(records)]
            write_manifest(rows, dataset.label_names, folder)
            counts = {split: sum(record.split == split for _, record in rows) for split in MAX_IMAGES}
            print(f"{sample_name}: {counts['train']} training images, {counts['test']} test images, in {folder}")


if __name__ == "__main__":
    main()
