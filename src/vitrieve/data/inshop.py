"""In-Shop Clothes Retrieval (DeepFashion): 52,712 photographs of 7,982 garments in a shop.

Source: Liu, Luo, Qiu, Wang and Tang, "DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich
Annotations", CVPR 2016. Queries and gallery are separate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitrieve.data.folder import note_shared_classes
from vitrieve.data.layout import Row, check_relative, drop_repeated, find_root, note_counts, note_files, split_lines
from vitrieve.data.records import Dataset, ImageRecord, Split
from vitrieve.errors import DataError

PROTOCOLS = ("standard", "high_resolution")
"""The picture folders ``img`` (fitted into 256 x 256) and ``img_highres``."""
FOLDER_NAMES = ("inshop", "In-shop Clothes Retrieval Benchmark", "In-Shop", "In_shop")
LICENSE = "for non-commercial research, by agreement with The Chinese University of Hong Kong (DeepFashion)"
KS = (1, 10, 20, 30)
HEADER = ("image_name", "item_id", "evaluation_status")
COUNTS = {
    "training images": 25_882,
    "training classes": 3_997,
    "queries": 14_218,
    "gallery images": 12_612,
    "test classes": 3_985,
}

_LIST = "list_eval_partition.txt"
_LIST_PATHS = (f"Eval/{_LIST}", _LIST)
_LISTED_FOLDER = "img"
_PICTURES = {"standard": ("img", "Img/img"), "high_resolution": ("img_highres", "Img/img_highres")}
_STATUSES = ("train", "query", "gallery")


def read_inshop(folder: Path, protocol: str = PROTOCOLS[0]) -> Dataset:
    """Read the data set: queries ask, the separate gallery is found.

    Args:
        folder: The folder with ``list_eval_partition.txt`` (or ``Eval/list_eval_partition.txt``) and ``img`` (or
            ``Img/img``), or its parent.
        protocol: ``standard`` (pictures of the folder ``img``) or ``high_resolution`` (``img_highres``).

    Returns:
        Records in the order of the list; ``image_id`` is the listed path, for ``high_resolution`` with its
        ``img/`` replaced by ``img_highres/``. Counts that differ from the published ones, missing and unlisted
        images are in the notes.

    Raises:
        DataError: Another folder, no pictures of the protocol, or a malformed or contradictory row (the message names
            the line).
    """
    root, file = _find_list(folder)
    pictures = _find_pictures(root, protocol)
    rows, notes = _read_partition(file)
    label_names = tuple(sorted({row.cells[1] for row in rows}))
    labels = {name: label for label, name in enumerate(label_names)}
    records = [_build_record(file, row, pictures, labels[row.cells[1]]) for row in rows]
    on_disk = [f"{pictures.relative_to(root).as_posix()}/{_below_pictures(record)}" for record in records]
    return Dataset(
        name="inshop",
        protocol=protocol,
        records=tuple(records),
        label_names=label_names,
        ks=KS,
        notes=(
            *note_counts(COUNTS, _count(rows)),
            *notes,
            *note_shared_classes(records),
            *note_files(on_disk, root, pictures.relative_to(root).as_posix()),
        ),
        license=LICENSE,
    )


def _find_list(folder: Path) -> tuple[Path, Path]:
    """Find the data set's root and its list."""
    for candidate in (folder, *(folder / name for name in FOLDER_NAMES)):
        for name in _LIST_PATHS:
            if (candidate / name).is_file():
                return candidate, candidate / name
    return find_root("inshop", folder, _LIST_PATHS[:1], FOLDER_NAMES), folder  # never returns: the list is nowhere


def _find_pictures(root: Path, protocol: str) -> Path:
    """Find the folder of pictures of a protocol; the first that exists."""
    for name in _PICTURES[protocol]:
        if (root / name).is_dir():
            return root / name
    other = next(name for name in PROTOCOLS if name != protocol)
    is_other_here = any((root / name).is_dir() for name in _PICTURES[other])
    hint = f" The pictures of the protocol {other} are there: choose it with --protocol {other}." * is_other_here
    raise DataError(
        f"inshop:{root}: looked for the pictures of the protocol {protocol} in {' and '.join(_PICTURES[protocol])}; "
        f"neither is a folder.{hint} `vitrieve data describe inshop` tells how the data is laid out."
    )


def _read_partition(file: Path) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """Read and check the rows below the count and the header."""
    count, header, *rows = *split_lines(file), *([Row(number=1, cells=())] * 2)
    rows = [row for row in rows if row.cells]
    if len(count.cells) != 1 or not count.cells[0].isdecimal() or header.cells != HEADER:
        raise DataError(f"{file}: the first two lines must be the number of images and {' '.join(HEADER)!r}.")
    for row in rows:
        if len(row.cells) != len(HEADER) or row.cells[2] not in _STATUSES:
            raise DataError(
                f"{file}, line {row.number}: {' '.join(row.cells)!r} is not '{' '.join(HEADER)}' with a status of "
                f"{', '.join(_STATUSES)}."
            )
        if not row.cells[0].startswith(f"{_LISTED_FOLDER}/"):
            raise DataError(f"{file}, line {row.number}: {row.cells[0]!r} does not begin with '{_LISTED_FOLDER}/'.")
    if not rows:
        raise DataError(f"{file} lists no image.")
    kept, notes = drop_repeated(file, rows, key=0)
    if int(count.cells[0]) != len(rows):
        notes += (f"{file.name}: its first line announces {count.cells[0]} images, but it lists {len(rows):,}.",)
    return kept, notes


def _build_record(file: Path, row: Row, pictures: Path, label: int) -> ImageRecord:
    name, _, status = row.cells
    below = check_relative(name, f"{file}, line {row.number}").removeprefix(f"{_LISTED_FOLDER}/")
    split: Split = "train" if status == "train" else "test"
    return ImageRecord(
        image_id=f"{pictures.name}/{below}",
        path=pictures / below,
        label=label,
        split=split,
        is_query=status != "gallery",
        is_gallery=status != "query",
    )


def _below_pictures(record: ImageRecord) -> str:
    return record.image_id.partition("/")[2]


def _count(rows: Sequence[Row]) -> dict[str, int]:
    ids = {status: [row.cells[1] for row in rows if row.cells[2] == status] for status in _STATUSES}
    train, query, gallery = (ids[status] for status in _STATUSES)
    found = (len(train), len(set(train)), len(query), len(gallery), len({*query, *gallery}))
    return dict(zip(COUNTS, found, strict=True))
