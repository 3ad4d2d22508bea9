"""The collection as it is now, what differs from what was indexed, and whether what has vanished may be removed.

A folder whose drive is off looks like a folder that was emptied. One file is deleted by a person; a tenth of all, or
all that a top folder held, is more likely a drive. So that much is removed only where somebody says so, and until
then it stays in the index, and nothing is embedded again when the drive is back.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Collection as Names
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitrieve.data.folder import read_flat_folder
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.data.sources import find_source_path, is_folder_source, read_collection
from vitrieve.data.walk import Rules, list_entries
from vitrieve.embed.collection import name_labels
from vitrieve.errors import DataError
from vitrieve.quoting import quote_name
from vitrieve.settings import list_texts
from vitrieve.syncing.read import TEXT_COLUMN, find_status, hash_record, spell_box
from vitrieve.syncing.state import STATE_NAME, FileState, StateFile, sign_file

CLASH_REASON = "another file of the collection has the same image_id"
MASS_FRACTION = 0.1
"""From this share of the index on, a removal is a mass removal."""
MIN_MASS_IMAGES = 3
"""Fewer images than this are no tenth worth asking about: small collections change by hand."""
NUM_FOLDERS_NAMED = 3
_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL)
"""With these errors the system says that there is no such folder. Others say nothing of it: a share may be away."""


@dataclass(frozen=True, kw_only=True)
class Collection:
    """The images of a collection.

    Attributes:
        records: The images by ``image_id``.
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
    source: str, index: Path, *, exclude: str | Sequence[str] = (), is_empty_allowed: bool = False
) -> Collection:
    """List the images of a collection.

    Args:
        source: The collection, as ``read_collection`` takes it.
        index: Folder of the index; files in it are none of the collection's.
        exclude: One pattern, or several, of what to leave out of a folder, with the rules of gitignore; none given:
            those of the index's last sync.
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
        raise DataError(f"{source} holds no image but those of the index itself; give another --index or folder.")
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
    states: Mapping[str, FileState],
    *,
    is_checksum: bool = False,
    is_bad_retried: bool = True,
    is_text_read: bool = False,
) -> Differences:
    """Compare the images of a collection with their states.

    Args:
        records: The images of the collection.
        states: States of the files by ``image_id``.
        is_checksum: Read every file, whatever its size and times say.
        is_bad_retried: Read also the bad files that have not changed; what reads them may have.
        is_text_read: Read also the files whose text in the picture is not known yet.
    """
    unread, undescribed, away = [], [], []
    for record in records:
        state = states.get(record.image_id)
        try:
            status = None if state is None else find_status(record)
        except OSError:  # nobody can say that it is gone: who reads it tells the reason, and the index keeps it
            unread.append(record)
            continue
        if state is not None and state.reason is None and status is None:
            away.append(record)
        elif state is None or is_checksum or not _is_same_content(record, state, status):
            unread.append(record)
        elif state.reason is not None:
            unread += [record] if is_bad_retried else []
        elif is_text_read and TEXT_COLUMN not in state.metadata:
            unread.append(record)
        elif state.record_hash != hash_record(record):
            undescribed.append(record)
    return Differences(unread=tuple(unread), undescribed=tuple(undescribed), away=tuple(away))


def _is_same_content(record: ImageRecord, state: FileState, status: os.stat_result | None) -> bool:
    return status is not None and sign_file(status) == state.signature and spell_box(record) == state.box


def choose_exclude(source: str, index: Path, given: str | Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """Choose which files of a folder a sync leaves out.

    An index is true to its collection without what was excluded. A later sync that forgets the flag, or a service that
    syncs every night, must not put it back: so the patterns of the last sync stay until others are given.

    Args:
        source: The collection, as ``read_collection`` takes it.
        index: Folder of the index, there or not.
        given: One pattern, or several; no pattern: those of the last sync; one that is blank: none from now on.

    Returns:
        The patterns, and what a person must be told about them, if anything.

    Raises:
        ArtifactError: As ``StateFile``.
    """
    given = list_texts(given)
    patterns = tuple(pattern for pattern in given if pattern.strip())
    before = (recall_exclude(index) if is_folder_source(source) else None) or ()
    if not given:
        note = f"left out as before: {_spell(before)}; --exclude '' takes it in again." if before else None
        return before, note
    if patterns == before or not before:
        return patterns, None
    return patterns, f"left out from now on: {_spell(patterns) or 'nothing'}; before it was {_spell(before)}."


def recall_exclude(index: Path) -> tuple[str, ...] | None:
    """Read the patterns of the last sync; None where none has made this index.

    Raises:
        ArtifactError: As ``StateFile``.
    """
    if not (index / STATE_NAME).is_file():
        return None
    state_file = StateFile(index)
    try:
        return state_file.read_exclude()
    finally:
        state_file.close()


def _spell(patterns: Sequence[str]) -> str:
    return ", ".join(map(quote_name, patterns))


@dataclass(frozen=True, kw_only=True)
class MassRemoval:
    """A removal that somebody has to allow.

    Attributes:
        num_images: That have vanished from the collection, contents that are still there under another name aside.
        num_indexed: In the index.
        folders: Top folders that have vanished whole, sorted.
    """

    num_images: int
    num_indexed: int
    folders: tuple[str, ...]

    def describe(self) -> str:
        """Say in a clause what has vanished."""
        named = ", ".join(map(quote_name, self.folders[:NUM_FOLDERS_NAMED]))
        more = f" and {len(self.folders) - NUM_FOLDERS_NAMED} more" if len(self.folders) > NUM_FOLDERS_NAMED else ""
        what = "folder" if len(self.folders) == 1 else "folders"
        whole = f", among them all of the {what} {named}{more}" if self.folders else ""
        return f"{self.num_images} of {self.num_indexed} images of the index have vanished from the collection{whole}"


def find_mass_removal(lost: Sequence[str], indexed: Names[str], wanted: Iterable[str]) -> MassRemoval | None:
    """Say whether a removal is one that somebody has to allow; None where it is not.

    Args:
        lost: Names of the images whose content the collection no longer has.
        indexed: Names of all images of the index, the lost ones included.
        wanted: Names of the images of the collection as it is now: a top folder that still has one is not gone.
    """
    if not lost:
        return None
    lost_by_folder = Counter(map(_top_folder, lost))
    kept = set(map(_top_folder, wanted))
    folders = tuple(sorted(folder for folder in lost_by_folder if folder and folder not in kept))
    is_large = len(lost) >= max(MIN_MASS_IMAGES, MASS_FRACTION * len(indexed))
    if not is_large and not folders:
        return None
    return MassRemoval(num_images=len(lost), num_indexed=len(indexed), folders=folders)


def find_unreachable(root: Path | None, lost: Iterable[str]) -> dict[str, str]:
    """Find the images that have vanished because a folder above them cannot be looked into.

    Args:
        root: Folder below which the names are paths; None where they are none.
        lost: Names of images that the collection no longer has.

    Returns:
        For each such image the folder: a link that leads nowhere, or one that cannot be read now.
    """
    verdicts: dict[str, bool] = {}
    found = {}
    for image_id in lost if root is not None else ():
        parts = image_id.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            folder = "/".join(parts[:depth])
            if folder not in verdicts:
                verdicts[folder] = _is_unreachable(Path(str(root), folder))
            if verdicts[folder]:
                found[image_id] = folder
                break
    return found


def is_left_out(rules: Rules | None, image_id: str) -> bool:
    """Say whether a name that the collection no longer has is one that somebody excluded: no drive is off."""
    try:
        return rules is not None and rules.is_passed_over(image_id)
    except DataError:  # patterns behind a folder that cannot be looked into
        return False


def _is_unreachable(folder: Path) -> bool:
    try:
        os.lstat(folder)
    except ValueError:  # a NUL character in a manifest's name
        return False
    except OSError as error:
        return error.errno not in _NO_FOLDER  # what is not there at all, somebody may have removed
    try:
        list_entries(folder)
        return False
    except NotADirectoryError:
        return False
    except OSError:
        return True


def _top_folder(image_id: str) -> str:
    """Return the first folder of a name; empty for an image directly in the collection."""
    head, slash, _ = image_id.partition("/")
    return head if slash else ""
