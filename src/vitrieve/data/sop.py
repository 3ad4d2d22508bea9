"""Stanford Online Products: 120,053 photographs of 22,634 products sold online.

Source: Oh Song, Xiang, Jegelka and Savarese, "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR
2016; the split is that of its two lists.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vitrieve.data.folder import note_shared_classes
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
from vitrieve.data.records import Dataset, ImageRecord, Split
from vitrieve.errors import DataError
from vitrieve.quoting import count_nouns

PROTOCOLS = ("zero_shot",)
FOLDER_NAMES = ("sop", "Stanford_Online_Products")
LICENSE = "images from listings on eBay, of their sellers; for research (Stanford Online Products)"
KS = (1, 10, 100, 1000)
HEADER = ("image_id", "class_id", "super_class_id", "path")
COUNTS = {"training images": 59_551, "training classes": 11_318, "test images": 60_502, "test classes": 11_316}

_LISTS: dict[Split, str] = {"train": "Ebay_train.txt", "test": "Ebay_test.txt"}


def read_sop(folder: Path, protocol: str = PROTOCOLS[0]) -> Dataset:
    """Read the data set: every test image asks, all other test images are its gallery.

    Args:
        folder: The folder with ``Ebay_train.txt`` and ``Ebay_test.txt``, or its parent.
        protocol: Only ``zero_shot``.

    Returns:
        Records in the order of the lists, training first; ``image_id`` is the path below the data set's folder,
        labels are numbered in the order of the class ids, and named by category and class id. Counts that differ
        from the published ones, classes in both lists, missing and unlisted images are in the notes.

    Raises:
        DataError: Another folder, a malformed or contradictory row (the message names the line), or an image in
            both lists.
    """
    root = find_root("sop", folder, tuple(_LISTS.values()), FOLDER_NAMES[::-1])
    class_ids: dict[Split, list[int]] = {}
    parts: dict[Split, list[ImageRecord]] = {}
    notes: tuple[str, ...] = ()
    for split, name in _LISTS.items():
        class_ids[split], parts[split], repeated = _read_list(root / name, split)
        notes += repeated
    all_ids = [*class_ids["train"], *class_ids["test"]]
    labels = {class_id: label for label, class_id in enumerate(sorted(set(all_ids)))}
    records = tuple(
        replace(record, label=labels[class_id])
        for record, class_id in zip([*parts["train"], *parts["test"]], all_ids, strict=True)
    )
    _check_lists(root, parts)
    names = {
        class_id: f"{record.metadata['super_class']} {class_id}"
        for record, class_id in zip(reversed(records), reversed(all_ids), strict=True)
    }
    found = [count for ids in class_ids.values() for count in (len(ids), len(set(ids)))]
    return Dataset(
        name="sop",
        protocol=protocol,
        records=records,
        label_names=tuple(names[class_id] for class_id in labels),
        ks=KS,
        notes=(
            *note_counts(COUNTS, dict(zip(COUNTS, found, strict=True))),
            *notes,
            *note_shared_classes(records),
            *note_files([record.image_id for record in records], root, ""),
        ),
        license=LICENSE,
    )


def _read_list(file: Path, split: Split) -> tuple[list[int], list[ImageRecord], tuple[str, ...]]:
    """Read one list: the class id of every image, the images (labels yet to be numbered), and a note on repeats."""
    rows, notes = drop_repeated(file, read_rows(file, len(HEADER), header=HEADER), key=0)
    drop_repeated(file, rows, key=3)
    records = []
    for row in rows:
        path = check_relative(row.cells[3], f"{file}, line {row.number}")
        read_number(file, row, 2)
        super_class = Path(path).parent.name.removesuffix("_final") or f"category {row.cells[2]}"
        records.append(
            ImageRecord(
                image_id=path, path=file.parent / path, label=0, split=split, metadata={"super_class": super_class}
            )
        )
    return [read_number(file, row, 1) for row in rows], records, notes


def _check_lists(root: Path, parts: dict[Split, list[ImageRecord]]) -> None:
    train, test = ({record.image_id for record in parts[split]} for split in _LISTS)
    if both := sorted(train & test):
        images_are = count_nouns(len(both), "image is", "images are")
        raise DataError(f"{root}: {images_are} in both {' and '.join(_LISTS.values())}: {name_some(both)}.")
    if not train and not test:
        raise DataError(f"{root}: {' and '.join(_LISTS.values())} list no image.")
