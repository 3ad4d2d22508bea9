"""Revisited Oxford and Paris, and the million distractors for either.

Source: Radenović, Iscen, Tolias, Avrithis and Chum, "Revisiting Oxford and Paris: Large-Scale Image Retrieval
Benchmarking", CVPR 2018, arXiv:1803.11285; layout as in github.com/filipradenovic/revisitop. The ground truth is
``gnd_NAME.pkl``, of which nothing is run (``layout.py``). What an image shows is known per query only, so all images
have label 0, and ``Dataset.ground_truth`` says what each query should find.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitrieve.data.layout import check_relative, find_root, name_some, note_counts, note_files, read_restricted_pickle
from vitrieve.data.records import Dataset, GroundTruth, ImageRecord
from vitrieve.data.walk import walk_pictures
from vitrieve.errors import DataError
from vitrieve.quoting import count_nouns

PROTOCOLS = ("medium", "hard", "easy")
"""Which answers count; published tables show the first two."""
DISTRACTOR_PROTOCOLS = ("distractors",)
DISTRACTORS = "revisitop1m"
KS = (1, 5, 10)
LICENSE = "images from Flickr, of their photographers; annotation by Radenović et al., for research"
COUNTS = {
    "roxford5k": {"gallery images": 4_993, "queries": 70},
    "rparis6k": {"gallery images": 6_322, "queries": 70},
    DISTRACTORS: {"distractors": 1_001_001},
}

_PICTURES = "jpg"
_LABEL_NAMES = ("image",)
_KEYS = ("gnd", "imlist", "qimlist")


def read_revisited(name: str, folder: Path, protocol: str = PROTOCOLS[0]) -> Dataset:
    """Read one of the two benchmarks.

    Args:
        name: ``roxford5k`` or ``rparis6k``.
        folder: The folder with ``gnd_NAME.pkl`` and ``jpg``, or its parent.
        protocol: ``medium``, ``hard`` or ``easy``; the records are the same. Queries are cropped to their box
            (``use_whole_queries`` undoes it).

    Returns:
        The gallery in the order of ``imlist``, then the queries in the order of ``qimlist``, all in the test split.
        ``image_id`` is ``jpg/NAME.jpg`` in the gallery and ``query/NAME.jpg`` for a query, so that they differ
        even for one file. ``ground_truth`` has an entry for every query, also for one that nothing answers. Counts
        that differ from the published ones and missing images are in the notes.

    Raises:
        DataError: Another folder, or a pickle that is refused or has another structure.
    """
    pickle_name = f"gnd_{name}.pkl"
    root = find_root(name, folder, (pickle_name, _PICTURES), (name, f"test/{name}", f"datasets/{name}"))
    file = root / pickle_name
    content = _read_ground_truth_file(file)
    gallery_ids, repeated = _read_gallery(file, content["imlist"])
    gallery = [_build_record(root, image_id) for image_id in dict.fromkeys(gallery_ids)]
    queries, truths = [], {}
    for number, (image, answers) in enumerate(zip(content["qimlist"], content["gnd"], strict=True)):
        where = f"{file}, gnd, entry {number}"
        query = _build_query(root, _read_name(image, f"{file}, qimlist, entry {number}"), answers, where)
        if query.image_id in truths:
            query = dataclasses.replace(query, image_id=f"{query.image_id}#{number}")
        queries.append(query)
        truths[query.image_id] = _read_answers(answers, gallery_ids, where)
    found = {"gallery images": len(gallery), "queries": len(queries)}
    listed = [record.path.relative_to(root).as_posix() for record in (*gallery, *queries)]
    return Dataset(
        name=name,
        protocol=protocol,
        records=(*gallery, *queries),
        label_names=_LABEL_NAMES,
        ks=KS,
        notes=(*note_counts(COUNTS[name], found), *repeated, *note_files(listed, root, _PICTURES)),
        license=LICENSE,
        ground_truth=truths,
    )


def use_whole_queries(dataset: Dataset) -> Dataset:
    """Take the queries as whole images instead of cropping them to their box.

    The benchmark's protocol crops them; figures without are not comparable, and a note says so.
    """
    records = tuple(dataclasses.replace(one, box=None) if one.is_query else one for one in dataset.records)
    note = "queries are whole images, not cropped to their box: figures are not comparable."
    return dataclasses.replace(dataset, records=records, notes=(*dataset.notes, note))


def read_distractors(folder: Path, protocol: str = DISTRACTOR_PROTOCOLS[0]) -> Dataset:
    """List the distractors: a gallery that answers no query.

    Args:
        folder: The folder with ``jpg``, or its parent with the folder ``revisitop1m``.
        protocol: Only ``distractors``.

    Returns:
        Every image below ``jpg``, sorted by path, without hidden files (``._*``); ``image_id`` is the path below
        the data set's folder.

    Raises:
        DataError: Another folder, or no image.
    """
    root = find_root(DISTRACTORS, folder, (_PICTURES,), (DISTRACTORS, f"datasets/{DISTRACTORS}"))
    if benchmark := next((name for name in COUNTS if (root / f"gnd_{name}.pkl").exists()), None):
        raise DataError(f"{root} is {benchmark}, whose images are no distractors; give the folder of {DISTRACTORS}.")
    walk = walk_pictures(root / _PICTURES)
    if not walk.paths:
        raise DataError(f"{root / _PICTURES} holds no image at any depth.")
    records = tuple(
        ImageRecord(image_id=f"{_PICTURES}/{name}", path=root / _PICTURES / name, label=0, split="test", is_query=False)
        for name in walk.paths
    )
    return Dataset(
        name=DISTRACTORS,
        protocol=protocol,
        records=records,
        label_names=_LABEL_NAMES,
        ks=KS,
        notes=(*note_counts(COUNTS[DISTRACTORS], {"distractors": len(records)}), *walk.describe_left_out()),
        unreadable_folders=walk.list_unreadable(),
        license=LICENSE,
    )


def _read_ground_truth_file(file: Path) -> dict[str, list[Any]]:
    content = read_restricted_pickle(file)
    if not isinstance(content, dict):
        raise DataError(f"{file} holds {type(content).__name__}; expected a dictionary with {', '.join(_KEYS)}.")
    lists = {}
    for key in _KEYS:
        value = content.get(key)
        if isinstance(value, np.ndarray):
            value = value.ravel().tolist()
        if not isinstance(value, list | tuple) or not value:
            raise DataError(f"{file}: {key} is {'missing' if value is None else 'empty or no list'}.")
        lists[key] = list(value)
    if len(lists["gnd"]) != len(lists["qimlist"]):
        raise DataError(f"{file}: {len(lists['qimlist'])} queries in qimlist, but {len(lists['gnd'])} in gnd.")
    return lists


def _read_gallery(file: Path, names: Sequence[object]) -> tuple[list[str], tuple[str, ...]]:
    """Return the image_id at every position of ``imlist``, which the ground truth counts, and a note about repeats."""
    image_ids = [
        f"{_PICTURES}/{_read_name(name, f'{file}, imlist, entry {number}')}" for number, name in enumerate(names)
    ]
    repeated = [image_id for image_id, count in Counter(image_ids).items() if count > 1]
    if not repeated:
        return image_ids, ()
    images_count = count_nouns(len(repeated), "repeated image counts", "repeated images count")
    return image_ids, (f"imlist: {images_count} once: {name_some(repeated)}.",)


def _read_name(name: object, where: str) -> str:
    if not isinstance(name, str):
        raise DataError(f"{where}: {name!r} is not the name of an image.")
    return f"{check_relative(name, where)}.jpg"


def _build_record(root: Path, image_id: str) -> ImageRecord:
    return ImageRecord(image_id=image_id, path=root / image_id, label=0, split="test", is_query=False)


def _build_query(root: Path, name: str, answers: object, where: str) -> ImageRecord:
    box = answers.get("bbx") if isinstance(answers, Mapping) else None
    sides = [] if box is None else [float(side) for side in np.asarray(box, dtype=np.float64).ravel()]
    if len(sides) != 4 or not all(map(math.isfinite, sides)) or sides[0] >= sides[2] or sides[1] >= sides[3]:
        raise DataError(f"{where}: bbx is {box!r}; expected x_1, y_1, x_2, y_2 with x_1 < x_2 and y_1 < y_2.")
    return ImageRecord(
        image_id=f"query/{name}",
        path=root / _PICTURES / name,
        label=0,
        split="test",
        is_gallery=False,
        box=(sides[0], sides[1], sides[2], sides[3]),
    )


def _read_answers(answers: Mapping[str, object], gallery_ids: Sequence[str], where: str) -> GroundTruth:
    """Turn positions in ``imlist`` into image ids; each once, in order."""
    ids: dict[str, tuple[str, ...]] = {}
    for key in ("easy", "hard", "junk"):
        if key not in answers:
            raise DataError(f"{where} has no {key!r}.")
        positions = np.asarray(answers[key]).ravel().tolist()
        for position in positions:
            # Old files hold whole numbers as floats, empty arrays as float64.
            is_whole = isinstance(position, int | float) and float(position).is_integer()
            if not is_whole or not 0 <= position < len(gallery_ids):
                raise DataError(
                    f"{where}: {key} holds {position!r}; expected a position below {len(gallery_ids)} in imlist."
                )
        ids[key] = tuple(dict.fromkeys(gallery_ids[int(position)] for position in positions))
    if shared := (set(ids["easy"]) & set(ids["hard"])) | (set(ids["junk"]) & {*ids["easy"], *ids["hard"]}):
        raise DataError(f"{where}: {name_some(sorted(shared))} is in two of easy, hard and junk.")
    return GroundTruth(easy=ids["easy"], hard=ids["hard"], junk=ids["junk"])
