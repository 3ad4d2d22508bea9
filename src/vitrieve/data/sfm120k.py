"""retrieval-SfM-120k: photographs of buildings, matched by 3D reconstruction; for training only.

Source: Radenović, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019,
arXiv:1711.02512; layout and paths as in github.com/filipradenovic/cnnimageretrieval-pytorch (``traindataset.py``,
``datahelpers.py``). What differs: ``label`` is the 3D model within its part, because the numbers of the two parts
may overlap. The boxes ``bbxs`` are kept as metadata and not cut out, as the authors train on whole images. Next
file: ``revisited.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitrieve.data.layout import check_relative, find_root, name_some, note_counts, note_files, read_restricted_pickle
from vitrieve.data.records import Dataset, ImageRecord, Split
from vitrieve.errors import DataError
from vitrieve.quoting import count_nouns

PROTOCOLS = ("standard",)
PICKLE = "retrieval-SfM-120k.pkl"
FOLDER_NAMES = ("sfm120k", "retrieval-SfM-120k")
LICENSE = "images from Flickr, of their photographers; for research (retrieval-SfM-120k)"
COUNTS = {"training 3D models": 551, "validation 3D models": 162}

_PICTURES = "ims"
_NESTED = ("retrieval-SfM-120k", "train/retrieval-SfM-120k", "sfm120k")
_PARTS: tuple[tuple[str, Split], ...] = (("train", "train"), ("val", "validation"))
_LISTS = ("cids", "cluster", "qidxs", "pidxs")
_CID_LENGTH_MIN = 6
"""The last six characters of a name are its three folders."""


def read_sfm120k(folder: Path, protocol: str = PROTOCOLS[0]) -> Dataset:
    """Read the training and validation parts and their query–positive pairs.

    Args:
        folder: The folder with ``retrieval-SfM-120k.pkl`` and ``ims``, or its parent.
        protocol: Only ``standard``.

    Returns:
        Records in the order of the pickle, training first, none for testing; ``image_id`` is the path below the data
        set's folder (with ``#`` and the 3D model where a picture belongs to several). ``positive_pairs`` holds the
        pairs of both parts in order. Counts that differ from the published ones, repeated names, missing and
        unlisted images are in the notes.

    Raises:
        DataError: Another folder, or a pickle that is refused or has another structure.
    """
    root = find_root("sfm120k", folder, (PICKLE, _PICTURES), _NESTED)
    parts = _read_parts(root / PICKLE)
    builder = _Builder(root)
    pairs: list[tuple[str, str]] = []
    for name, split in _PARTS:
        pairs += builder.add_part(parts[name], name, split)
    records = tuple(builder.records.values())
    if not records:
        raise DataError(f"{root / PICKLE} lists no image.")
    num_models = [len({record.label for record in records if record.split == split}) for _, split in _PARTS]
    return Dataset(
        name="sfm120k",
        protocol=protocol,
        records=records,
        label_names=tuple(builder.labels),
        ks=(1, 5, 10),
        notes=(
            *note_counts(COUNTS, dict(zip(COUNTS, num_models, strict=True))),
            *builder.note_repeated(),
            *note_files([record.path.relative_to(root).as_posix() for record in records], root, _PICTURES),
        ),
        license=LICENSE,
        positive_pairs=tuple(pairs),
    )


def build_cid_path(cid: str) -> str:
    """Build the path of an image from its name, below the folder of images.

    >>> build_cid_path("0a1b2c3d4e5f")
    '5f/4e/3d/0a1b2c3d4e5f'
    """
    return f"{cid[-2:]}/{cid[-4:-2]}/{cid[-6:-4]}/{cid}"


class _Builder:
    """Collects records and numbers 3D models over both parts."""

    def __init__(self, root: Path) -> None:
        self.records: dict[str, ImageRecord] = {}
        self.labels: dict[str, int] = {}
        self._root = root
        self._repeated: list[str] = []

    def add_part(self, part: dict[str, Any], name: str, split: Split) -> list[tuple[str, str]]:
        """Add the images of a part, and return its pairs as image ids."""
        where = f"{self._root / PICKLE}, {name}"
        image_ids = [
            self._add_image(where, position, part, split) for position in range(len(part["cids"]))
        ]  # by position: the pairs count on it, also where a name is repeated
        query_rows = _read_rows(part["qidxs"], len(image_ids), f"{where}, qidxs")
        positive_rows = _read_rows(part["pidxs"], len(image_ids), f"{where}, pidxs")
        if len(query_rows) != len(positive_rows):
            raise DataError(f"{where}: {len(query_rows)} qidxs do not belong to {len(positive_rows)} pidxs.")
        return [(image_ids[q], image_ids[p]) for q, p in zip(query_rows, positive_rows, strict=True)]

    def note_repeated(self) -> tuple[str, ...]:
        """Tell which names a 3D model lists twice; their records are one."""
        if not self._repeated:
            return ()
        return (
            f"{count_nouns(len(self._repeated), 'repeated image counts', 'repeated images count')} once: "
            f"{name_some(self._repeated)}.",
        )

    def _add_image(self, where: str, position: int, part: dict[str, Any], split: Split) -> str:
        cid = part["cids"][position]
        here = f"{where}, cids, entry {position}"
        if not isinstance(cid, str) or len(cid) < _CID_LENGTH_MIN or "/" in cid:
            raise DataError(f"{here}: {cid!r} is not a name of at least {_CID_LENGTH_MIN} characters without '/'.")
        path = check_relative(f"{_PICTURES}/{build_cid_path(cid)}", here)
        model = f"{split} 3D model {part['cluster'][position]}"
        label = self.labels.setdefault(model, len(self.labels))
        image_id = path
        if path in self.records and self.records[path].label != label:
            image_id = f"{path}#{model}"
        if image_id in self.records:
            self._repeated.append(cid)
            return image_id
        metadata = {"cid": cid, **_read_box(part["bbxs"], position)}
        self.records[image_id] = ImageRecord(
            image_id=image_id, path=self._root / path, label=label, split=split, metadata=metadata
        )
        return image_id


def _read_parts(file: Path) -> dict[str, dict[str, Any]]:
    """Read the pickle, and check that both parts have their lists, as long as each other."""
    content = read_restricted_pickle(file)
    if not isinstance(content, dict) or not all(isinstance(content.get(name), dict) for name, _ in _PARTS):
        raise DataError(f"{file} is not a dictionary with the parts {' and '.join(name for name, _ in _PARTS)}.")
    parts = {}
    for name, _ in _PARTS:
        part = {**content[name], "bbxs": content[name].get("bbxs")}
        for key in _LISTS:
            part[key] = _read_list(part.get(key), f"{file}, {name}: {key}")
        part["bbxs"] = [] if part["bbxs"] is None else list(part["bbxs"])
        for key in ("cluster", "bbxs") if part["bbxs"] else ("cluster",):
            if len(part[key]) != len(part["cids"]):
                raise DataError(f"{file}, {name}: {len(part['cids'])} cids, but {len(part[key])} {key}.")
        if not all(isinstance(number, int) for number in part["cluster"]):
            raise DataError(f"{file}, {name}: cluster holds something that is no whole number.")
        parts[name] = part
    return parts


def _read_list(value: object, where: str) -> list[Any]:
    """Read a list, or an array with one column, as Matlab's converters write them."""
    if isinstance(value, np.ndarray):
        return list(value.ravel().tolist())
    if isinstance(value, list | tuple):
        return list(value)
    raise DataError(f"{where} is {'missing' if value is None else type(value).__name__}; expected a list.")


def _read_rows(rows: Sequence[Any], num_images: int, where: str) -> Sequence[int]:
    for row in rows:
        if not isinstance(row, int) or not 0 <= row < num_images:
            raise DataError(f"{where} holds {row!r}; expected a position below {num_images} in cids.")
    return rows


def _read_box(boxes: Sequence[Any], position: int) -> dict[str, str]:
    """Spell a box ``x_1,y_1,x_2,y_2`` as metadata; nothing where there is none."""
    box = boxes[position] if boxes else None
    if box is None or len(box) != 4:
        return {}
    return {"bbx": ",".join(f"{float(side):g}" for side in box)}
