"""One record type for every image source, and the data set that holds records.

A reader of a source (``grocery.py``, ``emoji.py``, ``folder.py``, ``table.py``) returns a
``Dataset``; training, evaluation and embedding know nothing else.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote_to_bytes

from vitrieve.errors import DataError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

HOLD_OUT_EVERY = 5
"""One class of every five is held out: to choose a model, and to test own data without a split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRecord:
    """One image of a source.

    Attributes:
        image_id: Stable name, unique within its data set (for files: the path below the source's folder).
        path: File that holds the bytes, or their place in a shard, as ``parts.py`` spells it.
        label: Class or instance id, an index into ``Dataset.label_names``.
        split: Which part of the data set the image belongs to.
        is_query: The image asks, in evaluation (ignored in training).
        is_gallery: The image can be found, in evaluation.
        box: ``(x_1, y_1, x_2, y_2)`` in pixels after EXIF orientation, or None for the whole image.
        metadata: Further columns of the source, as text.
        source: Name of the image's source where several train together (``several.py``); else empty.
    """

    image_id: str
    path: Path
    label: int
    split: Split
    is_query: bool = True
    is_gallery: bool = True
    box: tuple[float, float, float, float] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroundTruth:
    """What one query of the revisited benchmarks should find; images in none of the three lists are wrong.

    Attributes:
        easy: ``image_id`` of the gallery images that show the query's object clearly.
        hard: ... that show it under difficult conditions.
        junk: ... that show too little of it to count either way.
    """

    easy: tuple[str, ...] = ()
    hard: tuple[str, ...] = ()
    junk: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Records of a source under one protocol.

    Attributes:
        name: The source's name, for example ``grocery``.
        protocol: Which of the source's protocols the roles follow.
        records: All images, in a stable order: a tuple, or a table that makes them when they are asked for
            (``shards.py``).
        label_names: Names of the labels; ``label_names[record.label]``.
        ks: The cut-offs at which the field reports Recall@K on this data set.
        junk_key: Metadata key; gallery images that share the query's value are neither right nor
            wrong for it (left out of its ranking). None: no junk.
        notes: What a user must be told about the data, for example how it was split.
        license: License and attribution of the images, empty when unknown.
        positive_pairs: ``(image_id of the query, image_id of its positive)``, where a benchmark lists which
            images match, in its order; training and validation pairs together, told apart by the records'
            splits. Empty where the labels alone say it.
        ground_truth: Easy, hard and junk images of each query, by its ``image_id``, where a benchmark lists them
            query by query (revisited Oxford and Paris); the labels then say nothing about relevance. None
            where the labels decide.
        source: How the source was spelled (``folder:photos``); empty for a data set that was made in memory.
        unreadable_folders: Folders of the source that cannot be listed, spelled as ``image_id`` is, and why: nobody
            can tell which images they hold.
        more_labels: Further labels of training images, by ``image_id``, beside ``record.label``; two images are
            positives where they share one of any kind. They are numbers of their own from ``len(label_names)`` on, or
            labels of the data set.
        negative_pairs: Pairs of ``image_id`` that are negatives whatever their labels say.
        is_unlabeled: Whether the training images have no classes: each is one of its own, and two views of it are a
            positive pair.
    """

    name: str
    protocol: str
    records: Sequence[ImageRecord]
    label_names: tuple[str, ...]
    ks: tuple[int, ...] = (1, 2, 4, 8)
    junk_key: str | None = None
    notes: tuple[str, ...] = ()
    license: str = ""
    positive_pairs: tuple[tuple[str, str], ...] = ()
    ground_truth: Mapping[str, GroundTruth] | None = None
    unreadable_folders: tuple[tuple[str, str], ...] = ()
    more_labels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    negative_pairs: tuple[tuple[str, str], ...] = ()
    is_unlabeled: bool = False
    source: str = field(default="", compare=False)

    def split(self, *splits: Split) -> tuple[ImageRecord, ...]:
        """Select the records of the given splits, in order."""
        return tuple(record for record in self.records if record.split in splits)


def printable_name(name: str) -> str:
    r"""Spell bytes of a file name that are not UTF-8 as ``\xNN``, so that JSON and Parquet can hold the name."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


PATH_BYTES_PREFIX = "file://"
"""Marks a stored path that is no UTF-8 text: its bytes follow, percent-encoded. An absolute path begins otherwise."""


def spell_path(path: str | os.PathLike[str]) -> str:
    r"""Spell an absolute path as text that Parquet, LanceDB and JSON can hold, and that ``parse_path`` reads back.

    >>> spell_path("/photos/caf\udce9.jpg"), parse_path("file:///photos/caf%E9.jpg").name
    ('file:///photos/caf%E9.jpg', 'caf\udce9.jpg')
    """
    text = os.fspath(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        return PATH_BYTES_PREFIX + quote(os.fsencode(text))
    return text


def parse_path(text: str) -> Path:
    """Read a path that ``spell_path`` spelled."""
    if text.startswith(PATH_BYTES_PREFIX):
        return Path(os.fsdecode(unquote_to_bytes(text.removeprefix(PATH_BYTES_PREFIX))))
    return Path(text)


def hold_out_labels(labels: Iterable[int], measurable: Collection[int] | None = None) -> frozenset[int]:
    """Choose the classes to hold out: labels sorted, of every five the last that can be measured.

    That is every fifth class from the fifth, where all can be measured.

    Args:
        labels: Labels that occur (duplicates allowed). Sources number their labels in the sorted
            order of the names (Grocery: of the class ids), so sorting labels sorts names.
        measurable: Labels of ``find_measurable``; None: all of them.

    Returns:
        The held-out labels; empty for fewer than five classes.

    >>> sorted(hold_out_labels(range(10))), sorted(hold_out_labels(range(10), measurable={1, 3, 9}))
    ([4, 9], [3, 9])
    """
    ordered = sorted(set(labels))
    can_be_measured = set(ordered if measurable is None else measurable)
    num_groups = len(ordered) // HOLD_OUT_EVERY
    groups = (ordered[number * HOLD_OUT_EVERY : (number + 1) * HOLD_OUT_EVERY] for number in range(num_groups))
    return frozenset(
        next(label for label in reversed(group) if label in can_be_measured)
        for group in groups
        if not can_be_measured.isdisjoint(group)
    )


def find_measurable(records: Iterable[ImageRecord], junk_key: str | None = None) -> frozenset[int]:
    """Find the classes that retrieval can be measured on.

    Args:
        records: Images that ask or can be found, as their roles say; readable ones, where that is known.
        junk_key: Metadata key; images that share a query's value are not looked for by it. None: no junk.

    Returns:
        Labels of which a query has another image in the gallery that is no junk for it.
    """
    of_label: dict[int, list[ImageRecord]] = {}
    for record in records:
        of_label.setdefault(record.label, []).append(record)
    return frozenset(label for label, group in of_label.items() if _is_measurable(group, junk_key))


def _is_measurable(records: Sequence[ImageRecord], junk_key: str | None) -> bool:
    """Say whether a query among the images of one class has another one to find."""
    groups = [None if junk_key is None else record.metadata.get(junk_key) for record in records]
    num_gallery = sum(record.is_gallery for record in records)
    num_junk = Counter(group for record, group in zip(records, groups, strict=True) if record.is_gallery)
    return any(
        num_gallery > (record.is_gallery if group is None else num_junk[group])
        for record, group in zip(records, groups, strict=True)
        if record.is_query
    )


def require_trainable(dataset: Dataset) -> None:
    """Refuse a data set that nothing can be learnt from; sources accept it, for ``embed`` and ``data check``.

    Raises:
        DataError: Fewer than two training classes, or no training class with two images.
    """
    num_images = Counter(record.label for record in dataset.split("train"))
    if dataset.is_unlabeled and len(num_images) > 1:
        return
    if len(num_images) < 2:
        raise DataError(
            f"{dataset.name} has {_name_classes(dataset, num_images)} for training; training needs at least two."
        )
    if max(num_images.values()) < 2:
        raise DataError(
            f"{dataset.name}: none of the {len(num_images)} training classes has two images; training needs pairs of "
            "the same class."
        )


def _name_classes(dataset: Dataset, num_images: Mapping[int, int]) -> str:
    if len(num_images) == 1:
        return f"one class only ({dataset.label_names[next(iter(num_images))]!r})"
    return f"{len(num_images) or 'no'} classes"
