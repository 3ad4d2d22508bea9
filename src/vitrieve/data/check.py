"""What is in a data set, and what is wrong with it: ``vitrieve data check``, and the look before a training.

Every image is decoded once, by the rule of ``decode.py``.
"""

from __future__ import annotations

import hashlib
import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

from vitrieve.data.decode import (
    decode_image,
    describe_failure,
    find_note,
    get_scale,
    read_header,
    read_image_bytes,
)
from vitrieve.data.records import SPLITS, Dataset, ImageRecord
from vitrieve.errors import ConfigError, DataError, DecodeError
from vitrieve.machine import count_cores
from vitrieve.progress import track
from vitrieve.quoting import count_nouns, escape_text, spell_reasons

NUM_THREADS = max(2, min(32, count_cores()))
"""Pictures decoded at a time."""
BLOCK_SIZE = 1024
"""Images handed to the threads at once: a million waiting tasks would take a gigabyte."""
Found = TypeVar("Found")


class Readable(NamedTuple):
    """Images that can be decoded, and those that cannot.

    Attributes:
        records: The readable ones, in order.
        failures: ``(image_id, reason)`` of the others.
        digests: SHA-256 of the file of each readable one, in order.
    """

    records: tuple[ImageRecord, ...]
    failures: tuple[tuple[str, str], ...]
    digests: tuple[bytes, ...]


def find_readable(records: Sequence[ImageRecord], *, max_bad_fraction: float, show_progress: bool = False) -> Readable:
    """Decode every image once.

    Args:
        records: All images of a source, whatever their split: the share of unreadable ones is one of the whole.
        max_bad_fraction: Largest share of undecodable images that is put up with, in [0, 1].
        show_progress: Report progress on standard error.

    Raises:
        DataError: More images than that are undecodable; the message names the first reasons.
    """
    outcomes = list(
        track(map_ahead(_read, records, NUM_THREADS), "read images", total=len(records), is_shown=show_progress)
    )
    pairs = list(zip(records, outcomes, strict=True))
    failures = tuple((record.image_id, outcome) for record, outcome in pairs if isinstance(outcome, str))
    if len(failures) > max_bad_fraction * len(records):
        raise DataError(
            f"{len(failures)} of {len(records)} images are unreadable, more than the {max_bad_fraction:.0%} "
            f"that --train.max-bad-fraction allows ({spell_reasons(failures)}). `vitrieve data check` lists them all."
        )
    return Readable(
        records=tuple(record for record, outcome in pairs if isinstance(outcome, bytes)),
        failures=failures,
        digests=tuple(outcome for outcome in outcomes if isinstance(outcome, bytes)),
    )


def map_ahead(
    function: Callable[[ImageRecord], Found], records: Iterable[ImageRecord], num_threads: int
) -> Iterator[Found]:
    """Apply a function to records in threads, in order."""
    remaining = iter(records)
    with ThreadPoolExecutor(num_threads) as pool:
        while block := list(itertools.islice(remaining, BLOCK_SIZE)):
            yield from pool.map(function, block)


def _read(record: ImageRecord) -> bytes | str:
    try:
        data = read_image_bytes(record.path)
        decode_image(data, box=record.box)
        return hashlib.sha256(data).digest()
    except (DecodeError, MemoryError) as error:
        return describe_failure(error)


NUM_CHECK_THREADS_MAX = 4
"""Pillow decodes without the interpreter lock, but hashing and small files do not gain from many threads."""
NUM_LISTED = 10
"""Entries of one kind that the text names; the JSON has them all."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Smallest, median and largest of some numbers."""

    min: float
    median: float
    max: float


@dataclass(frozen=True, kw_only=True)
class RoleCount:
    """Images and classes of one role: a split, or the queries or gallery of the test split."""

    num_images: int
    num_classes: int


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """Images of one class, over all splits."""

    name: str
    num_images: int


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """An image that cannot be decoded, and why."""

    image_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Images with the same pixels.

    Attributes:
        image_ids: Names of the images, in the order of the data set.
        splits: The splits they are in, in the order train, validation, test.
        class_names: Their classes, sorted; several mean contradictory labels.
        is_across_train_and_test: One of them is seen in training or used to choose a model, and another tested.
    """

    image_ids: tuple[str, ...]
    splits: tuple[str, ...]
    class_names: tuple[str, ...]
    is_across_train_and_test: bool


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """All that the check found.

    Attributes:
        name: Name of the data set.
        protocol: The protocol that the roles follow.
        num_images: Images in all.
        roles: Counts of each role: train, validation, test, query, gallery.
        images_per_class: Over all splits.
        classes: Every class in the order of the labels, also those without an image.
        single_image_classes: Names of the classes with exactly one image: no positive for it, anywhere.
        width_px: Widths of the readable images as they are used: turned, and cropped to their box.
        height_px: Heights of the same images.
        formats: Readable images by file format.
        modes: Readable images by the pixel layout in the file.
        unreadable: Images that cannot be decoded, in the order of the data set.
        duplicates: Groups of at least two images.
        notes: What the source says about itself, for example how it was split.
        license: License and attribution of the images, empty when unknown.
        unreadable_folders: Folders whose images nobody can list, and why.
    """

    name: str
    protocol: str
    num_images: int
    roles: dict[str, RoleCount]
    images_per_class: Range | None
    classes: tuple[ClassCount, ...]
    single_image_classes: tuple[str, ...]
    width_px: Range | None
    height_px: Range | None
    formats: dict[str, int]
    modes: dict[str, int]
    unreadable: tuple[Unreadable, ...]
    duplicates: tuple[Duplicates, ...]
    notes: tuple[str, ...]
    license: str
    unreadable_folders: tuple[tuple[str, str], ...] = ()

    @property
    def is_fine(self) -> bool:
        """Whether all is readable, no picture is in training and test at once, and none has two labels."""
        is_wrong = any(group.is_across_train_and_test or len(group.class_names) > 1 for group in self.duplicates)
        return not (self.unreadable or self.unreadable_folders or is_wrong)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """What is kept of an image once it was decoded."""

    format: str
    mode: str
    width_px: int
    height_px: int
    content_hash: bytes
    note: str | None


def check_dataset(dataset: Dataset, *, num_threads: int | None = None, show_progress: bool = False) -> DataReport:
    """Decode every image of a data set, and report counts, sizes, unreadable files and duplicates.

    Duplicates are images with the same size and the same RGB pixels, after turning and cropping, whatever file
    they come from: copies, and copies saved anew without loss.

    Args:
        dataset: Any data set.
        num_threads: Decoding threads; None: one for each core, up to four.
        show_progress: Report on standard error.

    Raises:
        ConfigError: ``num_threads`` is below 1.
    """
    if num_threads is not None and num_threads < 1:
        raise ConfigError(f"num_threads is {num_threads}; it must be 1 or more.")
    looked_at = map_ahead(_look_at, dataset.records, num_threads or min(NUM_CHECK_THREADS_MAX, count_cores()))
    tracked = track(looked_at, "check", total=len(dataset.records), is_shown=show_progress)
    outcomes = list(zip(dataset.records, tracked, strict=True))
    seen = [outcome for _, outcome in outcomes if isinstance(outcome, _Seen)]
    num_images = Counter(record.label for record in dataset.records)
    classes = tuple(
        ClassCount(name=name, num_images=num_images[label]) for label, name in enumerate(dataset.label_names)
    )
    return DataReport(
        name=dataset.name,
        protocol=dataset.protocol,
        num_images=len(dataset.records),
        roles=_count_roles(dataset),
        images_per_class=_measure(num_images.values()),
        classes=classes,
        single_image_classes=tuple(one.name for one in classes if one.num_images == 1),
        width_px=_measure([one.width_px for one in seen]),
        height_px=_measure([one.height_px for one in seen]),
        formats=dict(Counter(one.format for one in seen).most_common()),
        modes=dict(Counter(one.mode for one in seen).most_common()),
        unreadable=tuple(
            Unreadable(image_id=record.image_id, reason=outcome)
            for record, outcome in outcomes
            if isinstance(outcome, str)
        ),
        duplicates=_find_duplicates(dataset, outcomes),
        notes=(*dataset.notes, *_count_notes(seen)),
        license=dataset.license,
        unreadable_folders=dataset.unreadable_folders,
    )


def report_to_json(report: DataReport) -> dict[str, Any]:
    """Convert a report to plain JSON values; ``is_fine`` comes first."""
    return {"is_fine": report.is_fine, **asdict(report)}


def format_report(report: DataReport) -> str:
    """Write a report as text for a terminal; long lists are cut, and say so."""
    size = f"{_count(report.num_images, 'image', 'images')}, {_count(len(report.classes), 'class', 'classes')}"
    lines = [f"{report.name} ({report.protocol}): {size}"]
    lines += [f"  note: {note}" for note in report.notes]
    lines += [f"  license: {report.license}"] if report.license else []
    lines += ["", f"  {'role':<12}{'images':>8}{'classes':>9}"]
    lines += [f"  {role:<12}{count.num_images:>8,}{count.num_classes:>9,}" for role, count in report.roles.items()]
    lines += [
        "",
        f"  images per class  {_format_range(report.images_per_class)}",
        f"  width in px       {_format_range(report.width_px)}",
        f"  height in px      {_format_range(report.height_px)}",
        f"  formats           {_format_counts(report.formats)}",
        f"  pixel layouts     {_format_counts(report.modes)}",
        "",
        *_format_findings("classes with one image", report.single_image_classes),
        *_format_findings("unreadable images", [f"{one.image_id}: {one.reason}" for one in report.unreadable]),
        *_format_findings("groups of exact duplicates", [_format_group(group) for group in report.duplicates]),
        "",
        _format_verdict(report),
    ]
    return "\n".join(map(escape_text, lines))


def _look_at(record: ImageRecord) -> _Seen | str:
    try:
        data = read_image_bytes(record.path)
        header = read_header(data)
        image = decode_image(data, box=record.box)
        pixels = hashlib.sha256(f"{image.width} x {image.height} ".encode())
        pixels.update(image.tobytes())
    except (DecodeError, MemoryError) as error:
        return describe_failure(error)
    return _Seen(
        format=header.format,
        mode=header.mode,
        width_px=round(image.width * get_scale(image)),
        height_px=round(image.height * get_scale(image)),
        content_hash=pixels.digest(),
        note=find_note(data),
    )


def _count_notes(seen: Sequence[_Seen]) -> list[str]:
    counts = Counter(one.note for one in seen if one.note)
    return [f"{note}: {count_nouns(count, 'image', 'images')}" for note, count in counts.items()]


def _count_roles(dataset: Dataset) -> dict[str, RoleCount]:
    roles: dict[str, Collection[ImageRecord]] = {split: dataset.split(split) for split in SPLITS}
    roles["query"] = [record for record in dataset.split("test") if record.is_query]
    roles["gallery"] = [record for record in dataset.split("test") if record.is_gallery]
    return {
        role: RoleCount(num_images=len(records), num_classes=len({record.label for record in records}))
        for role, records in roles.items()
    }


def _find_duplicates(dataset: Dataset, outcomes: Sequence[tuple[ImageRecord, _Seen | str]]) -> tuple[Duplicates, ...]:
    by_content: dict[bytes, list[ImageRecord]] = defaultdict(list)
    for record, outcome in outcomes:
        if isinstance(outcome, _Seen):
            by_content[outcome.content_hash].append(record)
    return tuple(_describe_group(dataset, group) for group in by_content.values() if len(group) > 1)


def _describe_group(dataset: Dataset, group: Sequence[ImageRecord]) -> Duplicates:
    found = {record.split for record in group}
    return Duplicates(
        image_ids=tuple(record.image_id for record in group),
        splits=tuple(split for split in SPLITS if split in found),
        class_names=tuple(sorted({dataset.label_names[record.label] for record in group})),
        is_across_train_and_test="test" in found and len(found) > 1,
    )


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _measure(numbers: Collection[int]) -> Range | None:
    if not numbers:
        return None
    return Range(min=min(numbers), median=statistics.median(numbers), max=max(numbers))


def _format_range(numbers: Range | None) -> str:
    if numbers is None:
        return "none"
    return f"{numbers.min:g} to {numbers.max:g}, median {numbers.median:g}"


def _format_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def _format_findings(what: str, findings: Sequence[str]) -> list[str]:
    lines = [f"  {what}: {len(findings) or 'none'}"]
    lines += [f"    {finding}" for finding in findings[:NUM_LISTED]]
    if len(findings) > NUM_LISTED:
        lines.append(f"    … and {len(findings) - NUM_LISTED} more (all of them with --json)")
    return lines


def _format_group(group: Duplicates) -> str:
    notes = ["across train and test"] if group.is_across_train_and_test else []
    notes += [f"labeled {' and '.join(group.class_names)}"] if len(group.class_names) > 1 else []
    return " = ".join(group.image_ids) + (f" ({'; '.join(notes)})" if notes else "")


def _format_verdict(report: DataReport) -> str:
    num_across = sum(group.is_across_train_and_test for group in report.duplicates)
    problems = [f"{len(report.unreadable)} unreadable"] if report.unreadable else []
    num_folders = len(report.unreadable_folders)
    num_contradictory = sum(len(group.class_names) > 1 for group in report.duplicates)
    problems += [f"{num_folders} unreadable {'folder' if num_folders == 1 else 'folders'}"] if num_folders else []
    problems += [f"{num_contradictory} under several labels"] if num_contradictory else []
    problems += [f"{num_across} duplicated across train and test"] if num_across else []
    return f"not fine: {', '.join(problems)}." if problems else "fine."
