"""CUB-200-2011: 11,788 photographs of 200 species of birds. The retrieval split, without boxes.

Source: Wah, Branson, Welinder, Perona and Belongie, "The Caltech-UCSD Birds-200-2011 Dataset", 2011; the split by
class of Oh Song et al., CVPR 2016: the first hundred classes train, the others test. The file
``train_test_split.txt`` is the split for classification of known species, and is not read.
"""

from __future__ import annotations

from pathlib import Path

from vitrieve.data.layout import (
    check_relative,
    drop_repeated,
    find_root,
    name_some,
    note_counts,
    note_files,
    read_number,
    read_rows,
)
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.errors import DataError

PROTOCOLS = ("zero_shot",)
FOLDER_NAMES = ("cub200", "CUB_200_2011")
LICENSE = "images from Flickr, of their photographers; for non-commercial research and education (Caltech-UCSD Birds)"
KS = (1, 2, 4, 8)
NUM_TRAINING_CLASSES = 100
"""Class ids up to this one train."""
COUNTS = {"training images": 5_864, "training classes": 100, "test images": 5_924, "test classes": 100}

_IMAGES = "images.txt"
_LABELS = "image_class_labels.txt"
_PICTURES = "images"


def read_cub200(folder: Path, protocol: str = PROTOCOLS[0]) -> Dataset:
    """Read the data set with its retrieval split: every test image asks, all other test images are its gallery.

    Args:
        folder: The folder with ``images.txt``, ``image_class_labels.txt`` and ``images``, or its parent.
        protocol: Only ``zero_shot``.

    Returns:
        Records in the order of ``images.txt``; ``image_id`` is the path below the data set's folder, labels are
        numbered in the order of the class ids. Counts that differ from the published ones, missing images and
        images that are not listed are in the notes.

    Raises:
        DataError: Another folder, a malformed or contradictory row (the message names the line), or an image
            without a class.
    """
    root = find_root("cub200", folder, (_IMAGES, _LABELS, _PICTURES), FOLDER_NAMES[::-1])
    rows, repeated = drop_repeated(root / _IMAGES, read_rows(root / _IMAGES, 2), key=0)
    drop_repeated(root / _IMAGES, rows, key=1)
    class_ids, repeated_labels = _read_class_ids(root)
    _check_complete(root, {row.cells[0] for row in rows}, class_ids)
    labels = {number: label for label, number in enumerate(sorted(set(class_ids.values())))}
    records = []
    for row in rows:
        path = check_relative(row.cells[1], f"{root / _IMAGES}, line {row.number}")
        class_id = class_ids[row.cells[0]]
        records.append(
            ImageRecord(
                image_id=f"{_PICTURES}/{path}",
                path=root / _PICTURES / path,
                label=labels[class_id],
                split="train" if class_id <= NUM_TRAINING_CLASSES else "test",
            )
        )
    names = {record.label: record.path.parent.name for record in reversed(records)}
    return Dataset(
        name="cub200",
        protocol=protocol,
        records=tuple(records),
        label_names=tuple(names[label] for label in range(len(labels))),
        ks=KS,
        notes=(
            *note_counts(COUNTS, _count(records)),
            *repeated,
            *repeated_labels,
            *note_files([record.image_id for record in records], root, _PICTURES),
        ),
        license=LICENSE,
    )


def _read_class_ids(root: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    """Read the class id of each image number, and a note about repeated rows."""
    file = root / _LABELS
    rows, notes = drop_repeated(file, read_rows(file, 2), key=0)
    return {row.cells[0]: read_number(file, row, 1) for row in rows}, notes


def _check_complete(root: Path, listed: set[str], class_ids: dict[str, int]) -> None:
    if unlabeled := sorted(listed - class_ids.keys()):
        raise DataError(f"{root / _LABELS} has no class for {len(unlabeled)} images: {name_some(unlabeled)}.")
    if unlisted := sorted(class_ids.keys() - listed):
        raise DataError(f"{root / _IMAGES} does not list {len(unlisted)} labeled images: {name_some(unlisted)}.")
    if not listed:
        raise DataError(f"{root / _IMAGES} lists no image.")


def _count(records: list[ImageRecord]) -> dict[str, int]:
    train = [record.label for record in records if record.split == "train"]
    test = [record.label for record in records if record.split == "test"]
    return dict(zip(COUNTS, (len(train), len(set(train)), len(test), len(set(test))), strict=True))
