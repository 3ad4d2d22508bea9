"""The user's own images: a folder for each class, or any folder of images as a collection to embed.

Files are listed by their suffix and judged by their content only when decoded, so that one bad file is
reported and the work goes on. Next file: ``manifest.py``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vitrieve.data.decode import IMAGE_SUFFIXES
from vitrieve.data.records import HOLD_OUT_EVERY, Dataset, ImageRecord, hold_out_labels
from vitrieve.errors import DataError

PROTOCOLS = ("own_classes",)
_ARCHIVE_LEFTOVER = "__MACOSX"
_NUM_NAMED = 3
"""How many names a note spells out."""

_Identity = tuple[int, int]


@dataclass
class _Listing:
    """Image files found so far, and what was passed over."""

    paths: list[Path] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def read_folder(folder: Path, protocol: str = PROTOCOLS[0]) -> Dataset:
    """Read a folder of class folders; images may lie deeper inside their class.

    There is no split on disk, so the class names are sorted and every fifth, from the fifth, is for testing;
    the notes say so. Fewer than five classes leave none for testing.

    Args:
        folder: Its direct subfolders are the classes. Symbolic links are followed, but never in a circle.
        protocol: Only ``own_classes``.

    Returns:
        Records sorted by ``image_id``, the path below ``folder`` with ``/``. Hidden files (also ``._*``), files
        that are no images by their suffix, files outside class folders and empty classes are left out and counted
        in the notes.

    Raises:
        DataError: The folder is missing, unreadable, or holds no image in a class folder.
    """
    if protocol not in PROTOCOLS:
        raise DataError(f"unknown protocol {protocol!r} of a folder. Valid: {', '.join(PROTOCOLS)}.")
    listing = _list_images(folder)
    by_class: dict[str, list[Path]] = {entry.name: [] for entry in _scan(folder) if _is_class_folder(entry)}
    num_outside = 0
    for path in listing.paths:
        name, *rest = path.relative_to(folder).parts
        if rest:
            by_class[name].append(path)
        else:
            num_outside += 1
    label_names = tuple(sorted(name for name, paths in by_class.items() if paths))
    if not label_names:
        raise DataError(_no_class_message(folder, num_outside))
    empty = sorted(name for name, paths in by_class.items() if not paths)
    return Dataset(
        name=printable_name(folder.resolve().name) or "folder",
        protocol=protocol,
        records=_build_records(folder, label_names, by_class),
        label_names=tuple(map(printable_name, label_names)),
        notes=(*note_class_split(len(label_names)), *_note_skipped(listing.skipped, num_outside, empty)),
    )


def read_flat_folder(folder: Path, *, is_empty_allowed: bool = False) -> Dataset:
    """List every image below a folder, as a collection without classes.

    Args:
        folder: Searched at any depth; symbolic links are followed, but never in a circle.
        is_empty_allowed: A folder without an image is a collection of none.

    Returns:
        Records sorted by ``image_id``, the path below ``folder`` with ``/``; all have label 0 and are
        in the split ``test``, as queries and gallery.

    Raises:
        DataError: The folder is missing, unreadable or holds no image.
    """
    listing = _list_images(folder)
    if not listing.paths and not is_empty_allowed:
        raise DataError(f"{folder} holds no image at any depth; image files end in {_suffixes()}.")
    records = [
        ImageRecord(image_id=_image_id(path, folder), path=path, label=0, split="test") for path in listing.paths
    ]
    return Dataset(
        name=printable_name(folder.resolve().name) or "folder",
        protocol="collection",
        records=tuple(sorted(records, key=lambda record: record.image_id)),
        label_names=("image",),
        notes=_note_skipped(listing.skipped, 0, []),
    )


def note_class_split(num_classes: int) -> tuple[str, ...]:
    """Tell how own data without a split is split: by class, every fifth from the fifth."""
    num_test = num_classes // HOLD_OUT_EVERY
    if num_test == 0:
        return (
            f"no split is given, and every fifth class would be for testing, but there "
            f"{_plural(num_classes, 'is one class', f'are {num_classes} classes')}: all images are for training.",
        )
    return (
        f"no split is given: of {num_classes} classes in sorted order every fifth, from the fifth, is for testing "
        f"({num_test}); the others are for training ({num_classes - num_test}).",
    )


def _build_records(
    folder: Path, label_names: tuple[str, ...], by_class: dict[str, list[Path]]
) -> tuple[ImageRecord, ...]:
    held_out = hold_out_labels(range(len(label_names)))
    records = [
        ImageRecord(
            image_id=_image_id(path, folder), path=path, label=label, split="test" if label in held_out else "train"
        )
        for label, name in enumerate(label_names)
        for path in by_class[name]
    ]
    return tuple(sorted(records, key=lambda record: record.image_id))


def _list_images(folder: Path) -> _Listing:
    """Walk through a folder, each real folder once below each top-level entry.

    A class may be a link to a folder elsewhere, even to another class; a link up to the collection or to a
    folder that contains it would make every image part of every class, so these count as visited.
    """
    if not folder.is_dir():
        kind = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {kind}; give a folder with one subfolder of images for each class.")
    above = {_identity(parent) for parent in (folder.resolve(), *folder.resolve().parents)}
    listing = _Listing()
    for entry in _scan(folder):
        pending, visited = [entry], set(above)
        while pending:
            _visit(pending.pop(), listing, pending, visited)
    return listing


def _visit(
    entry: os.DirEntry[str], listing: _Listing, pending: list[os.DirEntry[str]], visited: set[_Identity]
) -> None:
    path = Path(entry.path)
    if _is_hidden(entry.name):
        listing.skipped["hidden"] += 1
    elif _is_folder(entry):
        identity = _identity(path)
        if identity in visited:
            listing.skipped["circular"] += 1
        else:
            visited.add(identity)
            pending.extend(_scan(path))
    elif path.suffix.lower() in IMAGE_SUFFIXES and (entry.is_symlink() or entry.is_file()):
        # Also a broken link: it is reported as an unreadable image rather than passed over.
        listing.paths.append(path)
    else:
        listing.skipped["other"] += 1


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be read: {error.strerror or error}.") from None


def _is_class_folder(entry: os.DirEntry[str]) -> bool:
    return _is_folder(entry) and not _is_hidden(entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # DirEntry.is_dir raises for a link to itself, Path.is_dir does not, but costs a system call for every file.
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == _ARCHIVE_LEFTOVER


def _identity(path: Path) -> _Identity:
    status = path.stat()
    return status.st_dev, status.st_ino


def _image_id(path: Path, folder: Path) -> str:
    return printable_name(path.relative_to(folder).as_posix())


def printable_name(name: str) -> str:
    r"""Spell bytes of a file name that are not UTF-8 as ``\xNN``, so that JSON and Parquet can hold the name."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _note_skipped(skipped: Counter[str], num_outside: int, empty: list[str]) -> tuple[str, ...]:
    reasons = (
        (skipped["hidden"], "hidden"),
        (skipped["other"], "no image by the suffix"),
        (skipped["circular"], "a link in a circle"),
        (num_outside, "outside the class folders"),
    )
    parts = [f"{count} {reason}" for count, reason in reasons if count]
    notes = [f"left out: {', '.join(parts)}."] if parts else []
    if empty:
        notes.append(f"{len(empty)} {_plural(len(empty), 'class', 'classes')} without an image: {_name_some(empty)}.")
    return tuple(notes)


def _name_some(names: Iterable[str]) -> str:
    first = [printable_name(name) for name in names]
    return ", ".join(first[:_NUM_NAMED]) + (", …" if len(first) > _NUM_NAMED else "")


def _no_class_message(folder: Path, num_outside: int) -> str:
    if num_outside:
        return (
            f"{folder} holds {num_outside} {_plural(num_outside, 'image', 'images')} but no folder of images; "
            "expected one subfolder for each class."
        )
    return f"{folder} holds no image; expected one subfolder for each class, with files that end in {_suffixes()}."


def _suffixes() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES))


def _plural(count: int, one: str, many: str) -> str:
    return one if count == 1 else many
