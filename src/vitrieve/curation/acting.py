"""Moving or linking the pictures that are there twice, and undoing it.

The undo file is written first, whole and durably, with everything that is about to be done. So a command that is killed
at any moment can be undone, and undoing twice does no harm. A file that is there already is never written over: an
undo file belongs to one command, and of two commands that write the same one, the second is refused.
"""

from __future__ import annotations

import errno
import filecmp
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from vitrieve.curation.duplicates import DuplicateReport
from vitrieve.curation.material import find_picture_folders
from vitrieve.data.decode import has_several_pictures, read_image_bytes
from vitrieve.data.parts import parse_part
from vitrieve.data.records import ImageRecord, parse_path, spell_path
from vitrieve.errors import ArtifactError, DataError, DecodeError, DiskFullError
from vitrieve.progress import print_message
from vitrieve.quoting import quote_name
from vitrieve.writing import check_writable, explaining_full_disk, removing_unfinished, sync_file, sync_folder

UNDO_NAME = "undo.json"
_FORMAT = "vitrieve duplicates undo"


@dataclass(frozen=True, kw_only=True)
class Acted:
    """What became of the pictures that could go, or of what is undone.

    Attributes:
        undo_file: File from which all of it can be undone; it is not written where there is nothing to do.
        done: Names, or when something is undone the paths, of what was moved, linked or put back.
        skipped: The others, each with the reason.
    """

    undo_file: Path
    done: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        skipped = [{"image_id": name, "reason": reason} for name, reason in self.skipped]
        return {"undo_file": str(self.undo_file), "done": list(self.done), "skipped": skipped}


def move_duplicates(report: DuplicateReport, folder: Path | str) -> Acted:
    """Move all but the best picture of every group into a folder, each under its name in the collection.

    An animation or a file of pages is moved only where the kept file has the same bytes: of such files the first
    pictures alone are compared.

    Args:
        report: What ``duplicates`` found.
        folder: Where to; it is made, and may begin with ``~``. Its ``undo.json`` puts everything back.

    Raises:
        ArtifactError: The folder has an undo file already, or is read-only.
    """
    folder = Path(os.path.expanduser(folder)).absolute()
    skipped, plan = [], []
    targets: set[Path] = set()
    for extra, keep in _list_extras(report):
        reason = _find_obstacle(extra, keep) or _find_loss(extra.path, keep.path)
        target = folder.joinpath(*spell_below(Path(extra.image_id)))
        if reason is None and (os.path.lexists(target) or target in targets):
            reason = f"{target} is there already"
        if reason is not None:
            skipped.append((extra.image_id, reason))
            continue
        targets.add(target)
        plan.append((extra.image_id, {"from": spell_path(extra.path.absolute()), "to": spell_path(target)}))
    undo_file = folder / UNDO_NAME
    check_move_folder(folder)
    if plan:
        folder.mkdir(parents=True, exist_ok=True)
        _write_plan(undo_file, "move", [step for _, step in plan])
    done = []
    for image_id, step in plan:
        try:
            _move(parse_path(step["from"]), parse_path(step["to"]))
            done.append(image_id)
        except (OSError, DiskFullError) as error:
            skipped.append((image_id, getattr(error, "strerror", None) or str(error)))
    return Acted(undo_file=undo_file, done=tuple(done), skipped=tuple(skipped))


def check_move_folder(folder: Path, collection: str | None = None) -> None:
    """Refuse a folder into which pictures cannot be moved, before they are looked for.

    Args:
        folder: Where to move pictures.
        collection: What is searched for duplicates, as it was spelled. Where it is a folder of pictures, or an index
            or embeddings of one, nothing is moved into that folder, because what lies there may be found again. None:
            nothing is known of it.

    Raises:
        ArtifactError: It is a file, is read-only, has an undo file already, or lies in the folder that is searched.
        InputError: The index or the embeddings cannot be opened.
    """
    folder = Path(os.path.expanduser(folder))  # shells leave --move-to=~/extra as it is
    for searched in find_picture_folders(collection) if collection is not None else ():
        if folder.resolve().is_relative_to(searched):
            raise ArtifactError(
                f"{quote_name(folder)} lies inside of {quote_name(searched)}, where the moved pictures may be "
                "found again; name a folder outside of it for --move-to."
            )
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{quote_name(folder)} is no folder; name one for --move-to.")
    check_undo_file(folder / UNDO_NAME, has_folder=folder.is_dir())


def check_undo_file(undo_file: Path, *, has_folder: bool = True) -> None:
    """Refuse an undo file that cannot be written.

    Args:
        undo_file: The file that would be written.
        has_folder: Whether its folder must be there.

    Raises:
        ArtifactError: It is there already, or its folder is not, or is read-only.
    """
    if os.path.lexists(undo_file):
        raise ArtifactError(
            f"{quote_name(undo_file)} is there already, and belongs to another command; undo that (vitrieve duplicates "
            "--undo FILE), or name another place."
        )
    if has_folder and not undo_file.absolute().parent.is_dir():
        raise ArtifactError(f"{quote_name(undo_file.parent)} is no folder that is there; make it first.")
    check_writable(undo_file.parent)


def link_duplicates(report: DuplicateReport, undo_file: Path | str) -> Acted:
    """Replace files by hard links to the best picture of their group, where both files have the same bytes.

    All names stay, and the bytes are kept once. Pictures that only look alike are left as they are.

    Args:
        report: What ``duplicates`` found.
        undo_file: File to write, from which every link becomes a file of its own again.

    Raises:
        ArtifactError: The undo file is there already, or cannot be written.
    """
    skipped: list[tuple[str, str]] = []
    plan: list[tuple[str, dict[str, Any]]] = []
    for extra, keep in _list_extras(report):
        reason = _find_obstacle(extra, keep) or _find_difference(extra.path, keep.path)
        if reason is not None:
            skipped.append((extra.image_id, reason))
            continue
        plan.append((extra.image_id, _plan_link(extra.path, keep.path)))
    undo_file = Path(undo_file).absolute()
    check_undo_file(undo_file)
    if plan:
        _write_plan(undo_file, "link", [step for _, step in plan])
    done = []
    for image_id, step in plan:
        try:
            _link(parse_path(step["from"]), parse_path(step["to"]))
            done.append(image_id)
        except OSError as error:
            skipped.append((image_id, error.strerror or str(error)))
    return Acted(undo_file=undo_file, done=tuple(done), skipped=tuple(skipped))


def undo_duplicates(undo_file: Path | str) -> Acted:
    """Put back what ``move_duplicates`` moved, or make files of their own of what ``link_duplicates`` linked.

    The undo file is removed when everything is back; with anything left it stays, and can be used again.

    Args:
        undo_file: What the two wrote.

    Raises:
        DataError: It is missing, or no undo file.
    """
    undo_file = Path(undo_file).absolute()
    kind, steps = _read_plan(undo_file)
    put_back = _move_back if kind == "move" else _unlink
    done, skipped = [], []
    for step in steps:
        path = parse_path(step["from"])
        try:
            reason = put_back(step)
        except (OSError, DiskFullError) as error:
            reason = getattr(error, "strerror", None) or str(error)
        if reason is None:
            done.append(str(path))
        elif reason:
            skipped.append((str(path), reason))
    if not skipped:
        undo_file.unlink()
    return Acted(undo_file=undo_file, done=tuple(done), skipped=tuple(skipped))


def _list_extras(report: DuplicateReport) -> Iterator[tuple[ImageRecord, ImageRecord]]:
    """Yield each picture that could go, with the one that is kept."""
    for group in report.groups:
        for image_id in group.image_ids[1:]:
            yield report.records[image_id], report.records[group.keep]


def _find_obstacle(extra: ImageRecord, keep: ImageRecord) -> str | None:
    """Say why a file must stay where it is; None where it may go."""
    if parse_part(extra.path) is not None or parse_part(keep.path) is not None:
        return "it is part of a shard, not a file of its own"
    if extra.box is not None:
        return "it is a region of a picture, not a file of its own"
    if not extra.path.is_file():
        return "there is no such file"
    if not keep.path.is_file():
        return f"the picture that is kept, {quote_name(keep.image_id)}, is no file that is there"
    if extra.path.samefile(keep.path):
        return "it is the same file as the one that is kept"
    return None


def _find_loss(extra: Path, keep: Path) -> str | None:
    """Say what would be lost with a file that is moved; None where nothing is."""
    if not filecmp.cmp(extra, keep, shallow=False) and _has_several_pictures(extra):
        return "it holds several pictures, of which only the first was compared"
    return None


def _has_several_pictures(path: Path) -> bool:
    try:
        return has_several_pictures(read_image_bytes(path))
    except DecodeError:
        return False


def _find_difference(extra: Path, keep: Path) -> str | None:
    """Say why a file cannot be a link to another one; None where it can."""
    if extra.is_symlink():
        return "it is a symbolic link"
    if extra.stat().st_dev != keep.stat().st_dev:
        return "it is on another file system than the one that is kept"
    return None if filecmp.cmp(extra, keep, shallow=False) else "its bytes are not those of the one that is kept"


def spell_below(name: PurePath) -> tuple[str, ...]:
    r"""Return the parts of a name without what would lead out of a folder: root, drive, and ``..``.

    >>> from pathlib import PurePosixPath, PureWindowsPath
    >>> spell_below(PurePosixPath("/a/../b.jpg")), spell_below(PureWindowsPath(r"C:\a\..\b.jpg"))
    (('a', 'b.jpg'), ('a', 'b.jpg'))
    """
    return tuple(part for part in name.parts[bool(name.anchor) :] if part not in ("..", "."))


def _move(source: Path, target: Path) -> None:
    """Move a file, to another file system too; a kill leaves no half file under the new name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(target):
        raise FileExistsError(0, f"{target} is there already")
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _move_across(source, target)


def _move_across(source: Path, target: Path) -> None:
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with explaining_full_disk(target):
            shutil.copyfile(source, beside, follow_symlinks=False)
            if not beside.is_symlink():
                sync_file(beside)  # before its mode, which may forbid to open it for that
            shutil.copystat(source, beside, follow_symlinks=False)
        os.replace(beside, target)
        sync_folder(target.parent)
    finally:
        beside.unlink(missing_ok=True)
    source.unlink()


def _plan_link(path: Path, keep: Path) -> dict[str, Any]:
    """Say what is about to be linked, and how both files are now: the kept one may be gone when it is undone."""
    own, kept = path.stat(), keep.stat()
    return {
        "from": spell_path(path.absolute()),
        "to": spell_path(keep.absolute()),
        "mode": own.st_mode & 0o7777,
        "mtime_ns": own.st_mtime_ns,
        "kept_inode": kept.st_ino,
        "kept_mtime_ns": kept.st_mtime_ns,
    }


def _link(path: Path, keep: Path) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if not filecmp.cmp(path, keep, shallow=False):
        raise OSError(0, "it has changed meanwhile")
    try:
        # Of a symbolic link, os.link makes on Linux another name of the link itself (python/cpython#81793).
        os.link(keep.resolve(), beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)  # it is still there where both were one file already


def _move_back(step: dict[str, Any]) -> str | None:
    """Move a file back; return the reason where it cannot be, and nothing where it never was moved."""
    source, target = parse_path(step["to"]), parse_path(step["from"])
    if not os.path.lexists(source):
        return "" if os.path.lexists(target) else f"it is no longer in {source}"
    if os.path.lexists(target):
        if not _is_same_file(source, target):
            return "another file stands in its place"
        source.unlink()  # a move to another file system was killed before its end
        return None
    _move(source, target)
    return None


def _is_same_file(one: Path, other: Path) -> bool:
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and os.readlink(one) == os.readlink(other)
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def _unlink(step: dict[str, Any]) -> str | None:
    """Make a file of its own of a link; return the reason where it cannot be, and nothing where it was none."""
    path, keep = parse_path(step["from"]), parse_path(step["to"])
    if not path.is_file():
        return "it is no longer there"
    if not (keep.is_file() and path.samefile(keep)) and not _was_linked(path.stat(), step):
        return ""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explaining_full_disk(path), removing_unfinished(beside):
        shutil.copyfile(path, beside)
        sync_file(beside)
        os.chmod(beside, step["mode"])
        os.utime(beside, ns=(step["mtime_ns"], step["mtime_ns"]))
        os.replace(beside, path)
    return None


def _was_linked(status: os.stat_result, step: dict[str, Any]) -> bool:
    """Say whether a file is the one that was kept, though that has another name now or none.

    A number alone does not tell: file systems give that of a deleted file to a new one.
    """
    is_kept = status.st_nlink > 1 or status.st_mtime_ns == step["kept_mtime_ns"]
    return is_kept and bool(status.st_ino == step["kept_inode"])


def _write_plan(undo_file: Path, kind: str, steps: Sequence[dict[str, Any]]) -> None:
    text = json.dumps({"format": _FORMAT, "kind": kind, "steps": list(steps)}, indent=1)
    with explaining_full_disk(undo_file):
        try:
            undo_file.touch(exist_ok=False)
        except FileExistsError:
            check_undo_file(undo_file)
            raise
        with removing_unfinished(undo_file):
            undo_file.write_text(text, encoding="utf-8")
            sync_file(undo_file)
            sync_folder(undo_file.parent)
    print_message(f"to undo: vitrieve duplicates --undo {quote_name(undo_file)}")


def _read_plan(undo_file: Path) -> tuple[str, list[dict[str, Any]]]:
    try:
        plan = json.loads(undo_file.read_text(encoding="utf-8"))
        if plan["format"] != _FORMAT or plan["kind"] not in ("move", "link"):
            raise ValueError("another format")
        unknown = {"mode": 0o644, "mtime_ns": 0, "kept_inode": None, "kept_mtime_ns": None}
        steps = [{**unknown, **step} for step in plan["steps"]]
        for step in steps:
            parse_path(step["from"]), parse_path(step["to"])
    except OSError as error:
        raise DataError(f"{undo_file} cannot be read ({error.strerror}); name the undo file of a command.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{undo_file} is no undo file of vitrieve duplicates ({error}).") from None
    return plan["kind"], steps
