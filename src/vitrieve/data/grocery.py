"""Grocery Store Dataset: 5,421 phone photographs of 81 products, and one catalogue picture of each.

Source: Klasson, Zhang and Kjellström, "A Hierarchical Grocery Store Image Dataset with Visual and Semantic
Labels", WACV 2019, arXiv:1901.00711; github.com/marcusklasson/GroceryStoreDataset (its folder ``dataset``), MIT.
What differs: the data set was made for classification of known products. Here, as CUB-200 is used for
retrieval, its three parts are pooled and split by class: even class ids train, odd ones test, so that no
tested product was seen in training.
"""

from __future__ import annotations

import csv
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from vitrieve.data.records import Dataset, ImageRecord, Split
from vitrieve.errors import DataError

PROTOCOLS = ("zero_shot", "phone_to_catalogue")
FOLDER_NAMES = ("grocery-store", "grocery")
LICENSE = "MIT (Klasson, Zhang and Kjellström, Grocery Store Dataset)"
NUM_PHOTOGRAPHS = 5_421
NUM_CLASSES = 81

_LISTS = ("train.txt", "val.txt", "test.txt")
_PUBLISHED_ICONIC = "iconic-images-and-descriptions"
_ICONIC_FOLDERS = ("iconic", _PUBLISHED_ICONIC)
_COLUMNS = ("Class Name (str)", "Class ID (int)", "Coarse Class Name (str)", "Iconic Image Path (str)")


@dataclass(frozen=True, kw_only=True)
class _Product:
    """A class of products, as ``classes.csv`` lists it."""

    name: str
    coarse_name: str
    iconic_path: str

    @property
    def metadata(self) -> dict[str, str]:
        """Return what every photograph of the product has as metadata."""
        return {"class_name": self.name, "coarse_class": self.coarse_name}


def read_grocery(folder: Path, protocol: str = PROTOCOLS[0]) -> Dataset:
    """Read the data set under one of its retrieval protocols.

    Both train on the photographs of even class ids. ``zero_shot``: every photograph of an odd class is a query,
    all others of them are its gallery. ``phone_to_catalogue``: the same photographs ask, the catalogue pictures
    of all 81 classes are the gallery.

    Args:
        folder: The folder with ``train.txt``, ``val.txt``, ``test.txt`` and ``classes.csv``.
        protocol: One of ``PROTOCOLS``.

    Returns:
        Records in the order of the lists; labels are class ids. A count that differs from the published one
        is in the notes.

    Raises:
        DataError: A missing or malformed file.
    """
    products = _read_products(folder)
    photographs = [record for name in _LISTS for record in _read_list(folder, name, products)]
    records = tuple(photographs)
    if protocol == "phone_to_catalogue":
        queries = (dataclasses.replace(record, is_gallery=record.split != "test") for record in photographs)
        records = (*queries, *_list_iconic(folder, products))
    return Dataset(
        name="grocery",
        protocol=protocol,
        records=records,
        label_names=tuple(product.name for product in products),
        ks=(1, 2, 4, 8) if protocol == "zero_shot" else (1, 5),
        notes=_note_counts(len(photographs), len(products)),
        license=LICENSE,
    )


def _read_products(folder: Path) -> list[_Product]:
    """Read ``classes.csv``; the position in the list is the class id."""
    rows = list(csv.DictReader(_read_text(folder, "classes.csv").splitlines()))
    missing = [column for column in _COLUMNS if not rows or column not in rows[0]]
    if missing:
        raise DataError(f"{folder / 'classes.csv'} has no column {missing[0]!r}; expected {', '.join(_COLUMNS)}.")
    name, class_id, coarse, iconic = _COLUMNS
    if [row[class_id] for row in rows] != [str(number) for number in range(len(rows))]:
        raise DataError(f"{folder / 'classes.csv'}: the class ids are not 0, 1, 2, … in order.")
    return [_Product(name=row[name], coarse_name=row[coarse], iconic_path=row[iconic]) for row in rows]


def _read_list(folder: Path, name: str, products: list[_Product]) -> list[ImageRecord]:
    records = []
    for number, line in enumerate(_read_text(folder, name).splitlines(), start=1):
        if not line.strip():
            continue
        image_id, *ids = (part.strip() for part in line.split(","))
        if len(ids) != 2 or not ids[0].isdecimal() or int(ids[0]) >= len(products):
            raise DataError(
                f"{folder / name}, line {number}: {line!r} is not 'path, class id, coarse class id' "
                f"with a class id below {len(products)}."
            )
        label = int(ids[0])
        split: Split = "train" if label % 2 == 0 else "test"
        metadata = products[label].metadata
        path = folder / image_id
        records.append(ImageRecord(image_id=image_id, path=path, label=label, split=split, metadata=metadata))
    return records


def _list_iconic(folder: Path, products: list[_Product]) -> tuple[ImageRecord, ...]:
    """List the catalogue pictures: in the gallery only, and never queries."""
    present = [name for name in _ICONIC_FOLDERS if (folder / name).is_dir()]
    if not present:
        raise DataError(
            f"{folder} has no folder {_ICONIC_FOLDERS[0]!r}, which phone_to_catalogue needs as its gallery."
        )
    records = []
    for label, product in enumerate(products):
        image_id = f"{present[0]}/{product.iconic_path.removeprefix(f'/{_PUBLISHED_ICONIC}/')}"
        records.append(
            ImageRecord(
                image_id=image_id,
                path=folder / image_id,
                label=label,
                split="test",
                is_query=False,
                metadata=product.metadata,
            )
        )
    return tuple(records)


def _note_counts(num_photographs: int, num_classes: int) -> tuple[str, ...]:
    if (num_photographs, num_classes) == (NUM_PHOTOGRAPHS, NUM_CLASSES):
        return ()
    return (
        f"{num_photographs:,} photographs of {num_classes} classes, where {NUM_PHOTOGRAPHS:,} of {NUM_CLASSES} were "
        "published: figures are not comparable with others.",
    )


def _read_text(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(
            f"grocery:{folder}: {name} cannot be read ({error.strerror}). Give the folder that holds "
            f"{', '.join(_LISTS)} and classes.csv; github.com/marcusklasson/GroceryStoreDataset has it as 'dataset'."
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{folder / name} is not UTF-8 text ({error}).") from None
