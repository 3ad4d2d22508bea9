"""The collection as it is now, and what differs from what was indexed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitrieve.data.folder import read_flat_folder
from vitrieve.data.ignore import Rules
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.data.sources import find_source_path, is_folder_source, read_collection
from vitrieve.embed.collection import name_labels
from vitrieve.errors import DataError
from vitrieve.syncing.content import find_status, hash_record, spell_box
from vitrieve.syncing.exclusion import choose_exclude
from vitrieve.syncing.stamps import Stamp, sign_file

CLASH_REASON = "another file of the collection has the same image_id"


@dataclass(frozen=True, kw_only=True)
class Collection:
    """The images of a collection.

    Attributes:
        records: By ``image_id``.
        failures: ``(image_id, reason)`` of files that cannot be images of it.
        notes: What a user must be told about the collection.
        license: License and attribution of the images; empty when unknown.
        root: Folder below which the names of the images are paths; None where there is none.
        source: How the collection was named, as ``read_collection`` takes it.
        exclude: Patterns of what was left out of a folder.
        is_empty_allowed: A folder that is missing, or holds no image, is a collection of none.
        rules: What is left out of that folder; None where the collection is no folder.
    """

    records: Mapping[str, ImageRecord]
    failures: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    license: str = ""
    root: Path | None = None
    source: str = ""
    exclude: tuple[str, ...] = ()
    is_empty_allowed: bool = False
    rules: Rules | None = None


@dataclass(frozen=True, kw_only=True)
class Differences:
    """What a sync has to do.

    Attributes:
        unread: Images whose file is new, changed, or not known well enough: to be read.
        undescribed: Images whose content is known and whose description has changed.
        away: Images of known content whose file is not there now, although the collection names it: links to a drive
            that is off.
    """

    unread: tuple[ImageRecord, ...]
    undescribed: tuple[ImageRecord, ...]
    away: tuple[ImageRecord, ...] = ()


def scan_collection(
    source: str, index: Path, *, exclude: Sequence[str] = (), is_empty_allowed: bool = False
) -> Collection:
    """List the images of a collection.

    Args:
        source: As ``read_collection`` takes it.
        index: Folder of the index; files in it are none of the collection's.
        exclude: Patterns of what to leave out of a folder, with the rules of gitignore; none given: those of the
            index's last sync (``exclusion.py``).
        is_empty_allowed: A folder that is missing, or holds no image, is a collection of none.

    Raises:
        DataError: The source cannot be read.
        ConfigError: A pattern is none.
        ArtifactError: Another sync works on the index, or what it remembers is damaged.
    """
    exclude, exclusion = choose_exclude(source, index, exclude)
    records: dict[str, ImageRecord] = {}
    failures = []
    dataset = _read_dataset(source, exclude, is_empty_allowed=is_empty_allowed)
    for record in name_labels(dataset):
        if _is_inside(record.path, index):
            continue
        if record.image_id in records:  # names that differ in bytes that are not UTF-8 may be spelled alike
            failures.append((record.image_id, CLASH_REASON))
        else:
            records[record.image_id] = record
    if not records and not is_empty_allowed:
        raise DataError(f"{source} holds no image but those of the index itself.")
    root = _find_root(source)
    return Collection(
        records=records,
        failures=tuple(failures),
        notes=(*([exclusion] if exclusion else []), *dataset.notes),
        license=dataset.license,
        root=root,
        source=source,
        exclude=exclude,
        is_empty_allowed=is_empty_allowed,
        rules=Rules(root, exclude) if root is not None and is_folder_source(source) else None,
    )


def _find_root(source: str) -> Path | None:
    path = find_source_path(source)
    return path if path is None or path.is_dir() else path.parent


def _read_dataset(source: str, exclude: Sequence[str], *, is_empty_allowed: bool) -> Dataset:
    path = find_source_path(source)
    if not is_empty_allowed or path is None or path != find_source_path(f"folder:{source}"):
        return read_collection(source, exclude=exclude)
    if path.exists():
        return read_flat_folder(path, exclude=exclude, is_empty_allowed=True)
    return Dataset(name=path.name, protocol="collection", records=(), label_names=("image",))


def _is_inside(path: Path, folder: Path) -> bool:
    return path.absolute().is_relative_to(folder.absolute())


def find_differences(
    records: Iterable[ImageRecord],
    stamps: Mapping[str, Stamp],
    *,
    is_checksum: bool = False,
    is_bad_retried: bool = True,
) -> Differences:
    """Compare the images of a collection with their stamps.

    Args:
        records: The collection's.
        stamps: By ``image_id``.
        is_checksum: Read every file, whatever its size and times say.
        is_bad_retried: Read also the bad files that have not changed; what reads them may have.
    """
    unread, undescribed, away = [], [], []
    for record in records:
        stamp = stamps.get(record.image_id)
        status = None if stamp is None else find_status(record)
        if stamp is not None and stamp.reason is None and status is None:
            away.append(record)
        elif stamp is None or is_checksum or not _is_same_content(record, stamp, status):
            unread.append(record)
        elif stamp.reason is not None:
            unread += [record] if is_bad_retried else []
        elif stamp.record_hash != hash_record(record):
            undescribed.append(record)
    return Differences(unread=tuple(unread), undescribed=tuple(undescribed), away=tuple(away))


def _is_same_content(record: ImageRecord, stamp: Stamp, status: os.stat_result | None) -> bool:
    return status is not None and sign_file(status) == stamp.signature and spell_box(record) == stamp.box
