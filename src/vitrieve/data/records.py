"""One record type for every image source, and the data set that holds records.

A reader of a source (``grocery.py``, ``emoji.py``, ``folder.py``, ``table.py``) returns a
``Dataset``; training, evaluation and embedding know nothing else.
"""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, overload
from urllib.parse import quote, unquote_to_bytes

import numpy as np
import numpy.typing as npt

from vitrieve.errors import DataError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

NO_GROUP = -1
"""Junk group of an image that is junk for nobody."""
WALKED_ROWS = 65_536
"""Rows of a table that are turned into Python numbers at a time."""

T = TypeVar("T")
Box = tuple[float, float, float, float]

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
    box: Box | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    source: str = ""


class RecordColumns(NamedTuple):
    """What an evaluation asks of all records at once, a row a record.

    Attributes:
        labels: ``(N,)`` int64.
        splits: ``(N,)`` int8 positions in ``SPLITS``.
        is_query: ``(N,)`` bool.
        is_gallery: ``(N,)`` bool.
    """

    labels: npt.NDArray[np.int64]
    splits: npt.NDArray[np.int8]
    is_query: npt.NDArray[np.bool_]
    is_gallery: npt.NDArray[np.bool_]

    def take(self, rows: npt.NDArray[np.int64]) -> RecordColumns:
        """Return the columns of some records."""
        return RecordColumns(self.labels[rows], self.splits[rows], self.is_query[rows], self.is_gallery[rows])


class RecordTable(Sequence[ImageRecord]):
    """Records that are made when they are asked for, from a table that takes some ten bytes for each.

    A record takes a kilobyte: who walks along a table, or asks it for columns, never holds all of them.
    """

    @abstractmethod
    def read_columns(self) -> RecordColumns:
        """Return the columns of all records, without making them."""

    @abstractmethod
    def read_ids(self) -> Iterator[str]:
        """Yield the name of every record, in order, without making it."""

    def read_boxes(self) -> Iterator[Box | None]:
        """Yield the box of every record, in order."""
        return (record.box for record in self)

    @abstractmethod
    def _make(self, row: int) -> ImageRecord:
        """Make the record of a row, counted from the first."""

    def _make_several(self, rows: range) -> Iterator[ImageRecord]:
        """Make the records of some rows, which a table may do faster than one by one."""
        return map(self._make, rows)

    @overload
    def __getitem__(self, place: int) -> ImageRecord: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[ImageRecord, ...]: ...

    def __getitem__(self, place: int | slice) -> ImageRecord | tuple[ImageRecord, ...]:
        """Make one record, or those of a slice."""
        rows = range(len(self))
        return tuple(self._make_several(rows[place])) if isinstance(place, slice) else self._make(rows[place])

    def __eq__(self, other: object) -> bool:
        """Compare with any sequence of records."""
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class ChosenRecords(RecordTable):
    """Some records of a table, in their order there."""

    def __init__(self, records: RecordTable, rows: npt.NDArray[np.int64], *, split: Split | None = None) -> None:
        """Choose rows of ``records``, ``(N,)``, rising; ``split`` is the one that they are moved to."""
        self._records, self._rows, self._split = records, rows, split

    def __len__(self) -> int:
        """Count the records."""
        return len(self._rows)

    def _make(self, row: int) -> ImageRecord:
        return self._move(self._records[int(self._rows[row])])

    def __iter__(self) -> Iterator[ImageRecord]:
        """Make the records one after the other."""
        return map(self._move, self._walk(iter(self._records)))

    def read_columns(self) -> RecordColumns:
        """Return the columns of the chosen records."""
        columns = self._records.read_columns().take(self._rows)
        if self._split is None:
            return columns
        return columns._replace(splits=np.full(len(self), SPLITS.index(self._split), np.int8))

    def read_ids(self) -> Iterator[str]:
        """Yield the names of the chosen records."""
        return self._walk(self._records.read_ids())

    def read_boxes(self) -> Iterator[Box | None]:
        """Yield the boxes of the chosen records."""
        return self._walk(self._records.read_boxes())

    def _move(self, record: ImageRecord) -> ImageRecord:
        return record if self._split is None else replace(record, split=self._split)

    def _walk(self, all_of_them: Iterator[T]) -> Iterator[T]:
        passed = 0
        for start in range(0, len(self._rows), WALKED_ROWS):
            for row in self._rows[start : start + WALKED_ROWS].tolist():
                yield next(islice(all_of_them, row - passed, None))
                passed = row + 1


def read_columns(records: Sequence[ImageRecord]) -> RecordColumns:
    """Return the columns of any records, which a table has and others are asked for one by one."""
    if isinstance(records, RecordTable):
        return records.read_columns()
    return RecordColumns(
        labels=np.fromiter((record.label for record in records), np.int64, len(records)),
        splits=np.fromiter((SPLITS.index(record.split) for record in records), np.int8, len(records)),
        is_query=np.fromiter((record.is_query for record in records), np.bool_, len(records)),
        is_gallery=np.fromiter((record.is_gallery for record in records), np.bool_, len(records)),
    )


def read_ids(records: Sequence[ImageRecord]) -> Iterator[str]:
    """Yield the name of every record, in order."""
    return records.read_ids() if isinstance(records, RecordTable) else (record.image_id for record in records)


def read_boxes(records: Sequence[ImageRecord]) -> Iterator[Box | None]:
    """Yield the box of every record, in order; of a table without making them, where it can."""
    return records.read_boxes() if isinstance(records, RecordTable) else (record.box for record in records)


def choose_records(records: Sequence[ImageRecord], rows: npt.NDArray[np.int64]) -> Sequence[ImageRecord]:
    """Choose some records by their rows, ``(N,)``, rising: of a table without making them."""
    if len(rows) == len(records):
        return records
    if isinstance(records, RecordTable):
        return ChosenRecords(records, rows)
    return tuple(records[row] for row in rows.tolist())


def move_records(records: Sequence[ImageRecord], split: Split) -> Sequence[ImageRecord]:
    """Move all records to a split: those of a table without making them."""
    if isinstance(records, RecordTable):
        return ChosenRecords(records, np.arange(len(records)), split=split)
    return tuple(replace(record, split=split) for record in records)


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


_HALVES = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Halves of a character such as an emoji. U+DC80 to U+DCFF are left out: they stand for bytes that are not UTF-8."""


def printable_name(name: str) -> str:
    r"""Spell bytes of a file name that are not UTF-8 as ``\xNN``, so that JSON and Parquet can hold the name.

    JSON may hold half of an emoji, where another program has cut a text: it becomes a replacement character.

    >>> print(printable_name("caf\udce9"), printable_name("fish \ud83d") == "fish \N{REPLACEMENT CHARACTER}")
    caf\xe9 True
    """
    whole = _HALVES.sub("\N{REPLACEMENT CHARACTER}", name)
    return whole.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


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


def find_absolute(path: str | os.PathLike[str]) -> str:
    """Spell an absolute path without ``..`` that leads where the system is led by the path.

    After a symbolic link, ``..`` leads out of where the link leads to. Links stay as they are where the text alone
    gives the same file, and where there is none.
    """
    plain = os.path.abspath(path)
    if os.pardir not in Path(path).parts or os.path.realpath(path) == os.path.realpath(plain):
        return plain
    folder, name = os.path.split(path)
    real = os.path.normpath(os.path.join(os.path.realpath(folder), name))
    return real if os.path.lexists(real) else plain


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


def number_groups(records: Iterable[ImageRecord], key: str) -> npt.NDArray[np.int64]:
    """Number the values of a metadata key in their order, ``(N,)``; a record without it has ``NO_GROUP``."""
    numbers: dict[str | None, int] = {None: 0}
    found = np.fromiter(
        (numbers.setdefault(record.metadata.get(key), len(numbers)) for record in records), dtype=np.int64
    )
    names = [name for name in numbers if name is not None]
    in_order = np.full(len(numbers), NO_GROUP, dtype=np.int64)
    in_order[[numbers[name] for name in sorted(names)]] = np.arange(len(names))
    return in_order[found]


def find_measurable(records: Iterable[ImageRecord], junk_key: str | None = None) -> frozenset[int]:
    """Find the classes that retrieval can be measured on.

    Args:
        records: Images that ask or can be found, as their roles say; readable ones, where that is known.
        junk_key: Metadata key; images that share a query's value are not looked for by it. None: no junk.

    Returns:
        Labels of which a query has another image in the gallery that is no junk for it.
    """
    return frozenset(list_measurable(records if isinstance(records, Sequence) else tuple(records), junk_key).tolist())


def list_measurable(records: Sequence[ImageRecord], junk_key: str | None = None) -> npt.NDArray[np.int64]:
    """List the classes of ``find_measurable``, rising."""
    labels, _, is_query, is_gallery = read_columns(records)
    if junk_key is not None:
        groups = number_groups(records, junk_key)
        _, classes = np.unique(labels, return_inverse=True)
        num_gallery = _count_alike(classes, is_gallery)
        num_junk = _count_alike(classes * (groups.max(initial=NO_GROUP) + 2) + groups, is_gallery)
        num_left_out = np.where(groups == NO_GROUP, is_gallery, num_junk)  # without a group only the image itself
        return np.unique(labels[is_query & (num_gallery > num_left_out)])
    found, counts = np.unique(labels[is_gallery], return_counts=True)
    outside = np.intersect1d(np.unique(labels[is_query & ~is_gallery]), found)
    inside = np.intersect1d(np.unique(labels[is_query & is_gallery]), found[counts > 1])  # an image finds another one
    return np.union1d(outside, inside)


def _count_alike(values: npt.NDArray[np.int64], is_counted: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Count for every value how many that are equal are to be counted."""
    _, places = np.unique(values, return_inverse=True)
    return np.bincount(places[is_counted], minlength=len(values))[places]


def require_trainable(dataset: Dataset) -> None:
    """Refuse a data set that nothing can be learned from; sources accept it, for ``embed`` and ``data check``.

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
