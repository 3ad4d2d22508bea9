"""Artifacts: folders on disk whose manifest is written last, and the durable writing of their files.

A run, an encoder, embeddings, an index, an evaluation, a reproduction, a comparison and packed shards are artifacts.
A folder without ``manifest.json`` is partial: it can be resumed, not used. Every reader goes through ``read_manifest``
and so refuses what does not fit. To overwrite a finished artifact, the new one is built beside it and takes its place
when it is complete: a failure or a kill at any moment leaves the old artifact.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from vitrieve.errors import ArtifactError, ConfigError, DiskFullError
from vitrieve.progress import print_message
from vitrieve.quoting import quote_name
from vitrieve.systems import CHANGE, NO_FOLLOW, remove_locked, replace_file, try_lock

if TYPE_CHECKING:
    import numpy as np

Kind = Literal[
    "run",
    "encoder",
    "text",
    "embeddings",
    "index",
    "evaluation",
    "reproduction",
    "comparison",
    "shards",
    "export",
]
_MADE_BY: Mapping[Kind, str] = {
    "run": "vitrieve train",
    "encoder": "vitrieve train, export, adapt, reduce, align or pull",
    "text": "vitrieve align",
    "embeddings": "vitrieve embed, or vitrieve adapt with --embeddings-out",
    "index": "vitrieve index, sync or up",
    "evaluation": "vitrieve evaluate",
    "reproduction": "vitrieve reproduce",
    "comparison": "vitrieve compare",
    "shards": "vitrieve data pack",
    "export": "vitrieve export",
}
"""What makes an artifact of each kind, for messages."""
_RESUMED_KINDS: Collection[Kind] = ("run", "embeddings", "evaluation", "comparison", "shards")
"""What a command goes on with when it is given again with ``--resume``."""
MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
_PARTIAL_NAME = ".partial"
_LOCK_NAME = ".lock"
_FULL_DISK_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
_FULL_DISK_TEXTS = ("no space left on device", "disk is full", "disk quota exceeded", "os error 28", "os error 122")
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")


def prepare_folder(
    folder: Path,
    *,
    kind: Kind | None = None,
    is_overwrite: bool = False,
    is_resume: bool = False,
    is_resumable: bool = True,
) -> None:
    """Make ``folder`` ready to be written.

    A finished artifact is refused unless ``is_overwrite``; a partial one unless ``is_resume`` (kept) or
    ``is_overwrite`` (emptied). A folder that is not ours, or holds another kind of artifact, is never emptied.

    Args:
        folder: What ``--out`` names.
        kind: What will be written there; None: whatever is there may be replaced.
        is_overwrite: Replace what is there.
        is_resume: Go on with a partial artifact.
        is_resumable: Whether the caller can go on at all, and may advise it.

    Raises:
        ArtifactError: As above, with what to do.
    """
    check_folder(folder, kind=kind, is_overwrite=is_overwrite, is_resume=is_resume, is_resumable=is_resumable)
    is_there = _is_ours(folder / MANIFEST_NAME) or (folder / _PARTIAL_NAME).exists()
    if is_there and is_overwrite:
        _empty_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _mark_partial(folder, kind)


def check_folder(
    folder: Path,
    *,
    kind: Kind | None = None,
    is_overwrite: bool = False,
    is_resume: bool = False,
    is_resumable: bool = True,
) -> None:
    """Refuse a folder that ``prepare_folder`` would refuse, and change nothing: before long work, for example.

    Raises:
        ArtifactError: As ``prepare_folder``.
    """
    try:
        str(folder.absolute()).encode()  # LanceDB makes a name whole, and other libraries may
    except UnicodeEncodeError:  # pyarrow, LanceDB and ONNX Runtime take text, and would fail after the work
        raise ArtifactError(
            f"the whole name {quote_name(folder.absolute())} is not UTF-8, and libraries that write there take text "
            "alone; give a folder elsewhere."
        ) from None
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file; give the name of a new folder with --out.")
    # Looked at first: another process may begin it just now.
    has_files = folder.exists() and any(path.name != _LOCK_NAME for path in folder.iterdir())
    is_finished = _is_ours(folder / MANIFEST_NAME)
    is_partial = (folder / _PARTIAL_NAME).exists()
    if (is_finished or is_partial) and (is_overwrite or is_resume):
        _refuse_another_kind(folder, kind)
    if (is_finished or is_partial) and is_overwrite:
        return
    if is_finished:
        raise ArtifactError(f"{folder} holds a finished result; pass --overwrite to replace it, or another --out.")
    if is_partial and not is_resume:
        advice = "--resume to go on, --overwrite to start again" if is_resumable else "--overwrite to start again"
        raise ArtifactError(f"{folder} holds an unfinished result; pass {advice}, or another --out.")
    if has_files and not is_partial:
        raise ArtifactError(f"{folder} holds other files; give the name of a new or empty folder with --out.")


def _refuse_another_kind(folder: Path, kind: Kind | None) -> None:
    """Refuse what another command has made: a wrong ``--out`` must not cost a training, for example."""
    found = find_kind(folder)
    if None not in (kind, found) and found != kind:
        raise ArtifactError(
            f"{folder} holds an artifact of kind {found!r}, which one of kind {kind!r} does not replace; give another "
            "--out, or remove the folder first."
        )


def find_kind(folder: Path) -> str | None:
    """Tell what an artifact is, finished or not; None where that is not written."""
    try:
        if _is_ours(folder / MANIFEST_NAME):
            return str(json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))["kind"])
        noted = (folder / _PARTIAL_NAME).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return noted if noted in get_args(Kind) else None


def _mark_partial(folder: Path, kind: str | None) -> None:
    mark = folder / _PARTIAL_NAME
    is_new = not mark.exists()
    mark.touch()
    if kind is not None and is_new:
        try:
            mark.write_text(kind, encoding="utf-8")
        except OSError as error:  # an empty mark needs no free block, and what is deleted next may make room
            if not is_full_disk(error):
                raise


def has_artifact(folder: Path) -> bool:
    """Say whether a folder holds a finished artifact."""
    return _is_ours(folder / MANIFEST_NAME)


def is_partial(folder: Path) -> bool:
    """Say whether a folder holds an artifact that was begun and not finished."""
    return (folder / _PARTIAL_NAME).exists() and not has_artifact(folder)


def reopen_folder(folder: Path) -> None:
    """Make an artifact partial, whether it is finished or not: what it holds stays."""
    _mark_partial(folder, find_kind(folder))
    (folder / MANIFEST_NAME).unlink(missing_ok=True)


def _is_ours(path: Path) -> bool:
    """Tell our manifest from the ``manifest.json`` of a web page or another program."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["kind"] in get_args(Kind)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _empty_folder(folder: Path) -> None:
    """Delete what an artifact holds; killed in between, it is partial, not a finished one with files missing.

    The folder stays, which may be a mount point, and so does the lock that ``locking_folder`` holds in it.
    """
    reopen_folder(folder)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _LOCK_NAME:
            path.unlink()


def check_writable(folder: Path) -> None:
    """Refuse a folder in which no file can be made, before the work whose result it is to hold.

    Args:
        folder: The folder; of one that is not there yet, the nearest above it counts.

    Raises:
        ArtifactError: The folder is on a disk that is read-only, this user may not write there, or a file has its name.
    """
    nearest = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    if not nearest.is_dir():
        raise ArtifactError(f"{quote_name(nearest)} is a file; name a folder.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ArtifactError(
            f"nothing can be written in {quote_name(nearest)}, which is read-only for this user; make the folder "
            "writable, or name another one."
        )


def check_files(*files: Path | None, is_folder_made: bool = False) -> None:
    """Refuse files that cannot be written, before the work that they are to hold.

    Args:
        files: Files to write; None: nothing is checked.
        is_folder_made: Whoever writes them makes their folders.

    Raises:
        ConfigError: One is a folder, or its folder is not there, and is not made.
        ArtifactError: This user may not write in its folder, or a file has the name of that.
    """
    for file in files:
        if file is not None and file.is_dir():
            raise ConfigError(f"{quote_name(file)} is a folder; name a file in it.")
        if file is not None and not is_folder_made and not file.parent.is_dir():
            folder = quote_name(file.parent)
            raise ConfigError(f"{quote_name(file)} cannot be written: there is no folder {folder}; make it first.")
        if file is not None:
            check_writable(file.parent)


def write_manifest(folder: Path, kind: Kind, contents: Mapping[str, Any]) -> None:
    """Finish an artifact: write its manifest, which marks the folder as complete.

    Args:
        folder: Folder whose other files are already written.
        kind: Which of the artifacts it is.
        contents: Plain JSON values that readers depend on; kind, format and package version are added.
    """
    from vitrieve import __version__

    manifest = {"kind": kind, "format_version": FORMAT_VERSION, "vitrieve_version": __version__, **contents}
    write_text_durably(folder / MANIFEST_NAME, json.dumps(manifest, indent=2) + "\n")
    (folder / _PARTIAL_NAME).unlink(missing_ok=True)


def read_manifest(folder: Path, kind: Kind) -> dict[str, Any]:
    """Read and check the manifest of a finished artifact.

    Raises:
        ArtifactError: Missing folder, unfinished artifact, another kind, or a newer format.
    """
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise ArtifactError(f"{folder} does not exist; expected {_describe_kind(kind)}.")
    if not path.is_file():
        again = "run its command again with --resume" if kind in _RESUMED_KINDS else "make it again"
        state = f"is unfinished ({again})" if (folder / _PARTIAL_NAME).exists() else "is not one"
        raise ArtifactError(f"expected {_describe_kind(kind)}, but {folder} {state}.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found, version = manifest["kind"], int(manifest["format_version"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); make the artifact again.") from None
    if found != kind:
        raise ArtifactError(f"{folder} is an artifact of kind {found!r}; expected {_describe_kind(kind)}.")
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"{folder} has format version {version}, written by a newer vitrieve; "
            f"this one reads up to {FORMAT_VERSION}."
        )
    return dict(manifest)


def _describe_kind(kind: Kind) -> str:
    return f"an artifact of kind {kind!r} (made by {_MADE_BY[kind]})"


def write_text_durably(path: Path, text: str) -> None:
    """Write a file so that a crash leaves either the old or the new content, never a part.

    Raises:
        DiskFullError: There is no room; the old content stays.
    """
    write_bytes_durably(path, text.encode())


def write_bytes_durably(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves either the old or the new content, never a part.

    Raises:
        DiskFullError: There is no room; the old content stays.
    """
    with replacing_durably(path, num_bytes=len(data)) as temporary, temporary.open("wb") as file:
        file.write(data)


@contextmanager
def replacing_durably(
    path: Path, *, num_bytes: int | None = None, advice: str = "", suffix: str = ".tmp"
) -> Iterator[Path]:
    """Give the block a temporary name to write to; afterwards make the file durable and move it to its own name.

    An exception in the block removes the temporary file and leaves what stood at ``path``.

    Args:
        path: The file's own name.
        num_bytes: What the file needs in all; None where that is not known.
        advice: A sentence on what to do once there is room.
        suffix: End of the temporary name; where several processes may write the same file, each needs its own.

    Raises:
        ArtifactError: A folder has that name.
        DiskFullError: There is no room; the old content stays.
    """
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder; give the name of a file.")
    temporary = path.with_name(path.name + suffix)
    with explaining_full_disk(path, num_bytes=num_bytes, advice=advice), removing_unfinished(temporary):
        yield temporary
        sync_file(temporary)
        replace_file(temporary, path)
        sync_folder(path.parent)


@contextmanager
def explaining_full_disk(path: Path, *, num_bytes: int | None = None, advice: str = "") -> Iterator[None]:
    """Turn a full disk, whichever library ran into it, into one message about the file.

    Args:
        path: The file or folder that is written in the block.
        num_bytes: What it needs in all; None where that is not known.
        advice: A sentence on what to do once there is room.

    Raises:
        DiskFullError: The disk, or what this user may have of it, is full.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or not is_full_disk(error):
            raise
        raise DiskFullError(describe_full_disk(path, num_bytes=num_bytes, advice=advice)) from error


def describe_full_disk(path: Path, *, num_bytes: int | None = None, advice: str = "") -> str:
    """Say which file has no room, how many bytes it needs, and how many are free."""
    needed = "" if num_bytes is None else f" {num_bytes:,} bytes are needed,"
    found = next((folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists()), Path("/"))
    free = f" {shutil.disk_usage(found).free:,} bytes are free."
    return f"{path} cannot be written: the disk is full;{needed}{free}" + (f" {advice}" if advice else "")


def is_full_disk(error: BaseException | None) -> bool:
    """Say whether a full disk is behind an error.

    Engines written in other languages raise errors of their own, of which only the text tells.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = str(error).lower()
        if getattr(error, "errno", None) in _FULL_DISK_NUMBERS or any(part in text for part in _FULL_DISK_TEXTS):
            return True
        if isinstance(error, OSError) and error.errno is None and _SHORT_WRITE.fullmatch(text):
            return True  # numpy's spelling of it, without a number
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def removing_unfinished(path: Path) -> Iterator[None]:
    """Remove a file that the block failed to finish, so that it takes no room from the next attempt."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def write_vectors_durably(path: Path, shape: tuple[int, int], blocks: Iterable[np.ndarray]) -> None:
    """Write vectors as a ``.npy`` file, a block at a time.

    Not through a memory map: that is a sparse file, whose pages find out that the disk is full when it is too late
    for an exception, and the process dies of SIGBUS.

    Args:
        path: The file.
        shape: ``(N, E)`` of all blocks together.
        blocks: ``(n, E)``, stored as float32.

    Raises:
        DiskFullError: There is no room; what stood at ``path`` stays.
    """
    import numpy as np

    num_bytes = 4 * shape[0] * shape[1]
    with replacing_durably(path, num_bytes=num_bytes) as temporary, temporary.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype="<f4").data)


def sync_file(path: Path) -> None:
    """Make the content of a file durable that was written without ``write_text_durably``."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable; Windows opens no folders, and its file system keeps a record of them."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Of Linux."""
_RENAME_SWAP = 2
"""Of macOS."""
_NEW_NAME = ".new"
"""A file in the folder that is to take the place of another: it tells the new artifact from the old one, which stands
beside it once they have changed places."""


@contextmanager
def replacing_folder(
    folder: Path,
    *,
    kind: Kind | None = None,
    is_overwrite: bool = False,
    is_resume: bool = False,
    is_resumable: bool = True,
    locked: AbstractContextManager[None] | None = None,
) -> Iterator[Path]:
    """Give the block a folder to write an artifact to, its manifest last; afterwards the artifact is at ``folder``.

    Where ``folder`` holds a finished artifact, the block gets another folder beside it, which changes places with it at
    the end. What a stopped block leaves there, ``is_resume`` goes on with.

    Args:
        folder: What ``--out`` names.
        kind: What will be written there; None: whatever is there may be replaced.
        is_overwrite: Replace what is there.
        is_resume: Go on with a partial artifact.
        is_resumable: Whether the caller can go on at all. If not, what a failed block has written is removed.
        locked: Held while the folders change places.

    Raises:
        ArtifactError: As ``prepare_folder``.
    """
    target = folder.resolve()  # of a link, what it leads to
    beside = _find_beside(target)
    _put_back(target)
    is_going_on = is_resume and _is_begun(target)
    if not is_going_on and not (is_overwrite and has_artifact(target) and _can_be_replaced(target)):
        is_new = not folder.exists()
        prepare_folder(folder, kind=kind, is_overwrite=is_overwrite, is_resume=is_resume, is_resumable=is_resumable)
        try:
            yield folder
        except BaseException:
            if not is_resumable:
                shutil.rmtree(target, ignore_errors=True)
                if not is_new:
                    target.mkdir(exist_ok=True)
            raise
        return
    _refuse_another_kind(target, kind)
    (target / _NEW_NAME).unlink(missing_ok=True)
    if is_going_on:
        reopen_folder(beside)  # killed before the exchange, it is complete; the block finishes it again
    else:
        shutil.rmtree(beside, ignore_errors=True)  # of a block that was killed
        prepare_folder(beside, kind=kind)
        (beside / _NEW_NAME).touch()
    try:
        yield beside
        with locked or nullcontext():
            exchange_folders(beside, target)
    except BaseException:
        if not is_resumable:
            shutil.rmtree(beside, ignore_errors=True)
        raise
    (target / _NEW_NAME).unlink(missing_ok=True)
    shutil.rmtree(beside, ignore_errors=True)  # the old artifact


def check_replacing(
    folder: Path,
    *,
    kind: Kind | None = None,
    is_overwrite: bool = False,
    is_resume: bool = False,
    is_resumable: bool = False,
) -> None:
    """Refuse a folder that ``replacing_folder`` would refuse, and change nothing: before long work, for example.

    ``is_resumable`` says whether the caller can go on with a partial artifact, so that the message may advise it.

    Raises:
        ArtifactError: As ``prepare_folder`` and ``check_writable``.
    """
    if not (is_resume and _is_begun(folder.resolve())):
        check_folder(folder, kind=kind, is_overwrite=is_overwrite, is_resume=is_resume, is_resumable=is_resumable)
    check_writable(folder)


@contextmanager
def locking_folder(folder: Path) -> Iterator[None]:
    """Let one process and one thread at a time write to a folder for as long as the block lasts.

    The lock is a file beside the folder, ``.NAME.lock``, or in it where it is a mount point, or the folder around it is
    read-only. A process that dies, however it dies, holds it no longer; on a network disk, the lock of a host without
    power may be held until the disk's server notices. On a disk without locks a message tells it.

    Args:
        folder: What ``--out`` names, there or not.

    Raises:
        ArtifactError: Another process or thread writes to it; nothing was changed.
    """
    target = folder.resolve()
    made = [parent for parent in target.parents if not parent.exists()]
    with suppress(OSError):  # whoever writes the folder says what cannot be made
        target.parent.mkdir(parents=True, exist_ok=True)
    path = target.parent / f".{target.name}{_LOCK_NAME}" if is_replaceable(target) else target / _LOCK_NAME
    descriptor = _lock_file(path, folder)
    try:
        yield
    finally:
        if descriptor is not None:
            remove_locked(path, descriptor)
        with suppress(OSError):
            for parent in made:
                parent.rmdir()


def _lock_file(path: Path, folder: Path) -> int | None:
    """Make and lock a file, and write into it who has locked it; None where the disk has no locks, or no such file.

    Raises:
        ArtifactError: Another process has locked it.
    """
    while True:
        try:
            descriptor = os.open(path, CHANGE | os.O_CREAT | NO_FOLLOW, 0o666)
        except OSError as error:  # whoever writes the folder says that it cannot be written
            if os.path.lexists(path):  # another user's
                print_message(f"{path} cannot be locked ({error}): start no second process that writes {folder}.")
            return None
        try:
            if not try_lock(descriptor):
                owner = os.read(descriptor, 200).decode("utf-8", "replace")
                raise ArtifactError(
                    f"{folder} is being written by another process ({quote_name(owner or 'unknown')}); nothing was "
                    "changed. Wait until it has ended, or give another --out."
                )
            if _is_at(descriptor, path):  # else the one before removed it just now
                with suppress(OSError):  # a full disk
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        except ArtifactError:
            os.close(descriptor)
            raise
        except OSError as error:
            os.close(descriptor)
            print_message(f"{path} cannot be locked ({error}): start no second process that writes {folder}.")
            return None
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Say whether an open file is the one that has a name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _find_beside(target: Path) -> Path:
    return target.parent / f".{target.name}.new"


def find_aside(target: Path) -> Path:
    """Return where a replaced artifact stands for a moment, where two folders cannot change places in one step."""
    beside = _find_beside(target)
    return beside.with_name(f"{beside.name}.old")


def _put_back(target: Path) -> None:
    """Bring back an artifact that was left aside, where a process was killed between two renames.

    A process that is between them looks the same; it renames again (``_exchange_in_steps``).
    """
    aside = find_aside(target)
    if has_artifact(aside) and not target.exists():
        try:
            aside.rename(target)
        except OSError:
            if not target.exists():
                raise  # else that process has made its second rename


def _is_begun(target: Path) -> bool:
    """Tell whether a block was stopped that replaces the finished artifact at ``target``."""
    beside = _find_beside(target)
    return has_artifact(target) and ((beside / _NEW_NAME).exists() or is_partial(beside))


def exchange_folders(one: Path, other: Path) -> None:
    """Let two folders of one parent change places: in one step on Linux and macOS, elsewhere in three renames.

    Raises:
        ArtifactError: A file in one of them is open, and Windows renames no such folder; both are where they were.
    """
    if not _exchange_at_once(one, other):
        _exchange_in_steps(one, other)
    sync_folder(one.parent)


def _exchange_at_once(one: Path, other: Path) -> bool:
    if sys.platform == "win32":
        return False
    library, names = ctypes.CDLL(None, use_errno=True), (os.fsencode(one), os.fsencode(other))
    if hasattr(library, "renameat2"):
        status = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_EXCHANGE))
    elif hasattr(library, "renamex_np"):
        status = library.renamex_np(*names, ctypes.c_uint(_RENAME_SWAP))
    else:
        return False
    return int(status) == 0


def _exchange_in_steps(one: Path, other: Path) -> None:
    aside = find_aside(other)
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed before its third renaming
    try:
        while not _take_place(one, other, aside):
            pass
    except PermissionError as error:
        if sys.platform != "win32":
            raise
        raise ArtifactError(
            f"{other} cannot be replaced, because a program has one of its files open ({error}). Stop the services and "
            "commands that use it, and run the same command again."
        ) from None
    aside.rename(one)


def _take_place(one: Path, other: Path, aside: Path) -> bool:
    """Move ``other`` aside and ``one`` to its place; False where another process put ``other`` back in between."""
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        if not aside.exists():
            return False
        aside.rename(other)
        raise
    return True


def is_replaceable(target: Path) -> bool:
    """Say whether a folder can be renamed, and something made beside it."""
    return not os.path.ismount(target) and os.access(target.parent, os.W_OK | os.X_OK)


def _can_be_replaced(target: Path) -> bool:
    """Say whether a folder can be renamed; tell it where it cannot."""
    if is_replaceable(target):
        return True
    print_message(
        f"{target} cannot be renamed (it is a mount point, or the folder around it is read-only): what it holds is "
        "deleted before the new content is complete."
    )
    return False


def copy_folder(source: Path, target: Path, *, left_out: Collection[str] = ()) -> None:
    """Copy what a folder holds, but not its modes: those of a store of models forbid writing, which the copy allows.

    Args:
        source: Folder to copy; of links, what they lead to.
        target: Folder to copy into; made when it is missing. Where it lies in ``source``, it is not copied itself.
        left_out: Names in ``source`` itself that are not copied; further down they are.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.name in left_out or target.resolve().is_relative_to(path.resolve()):
            continue
        if path.is_dir():
            copy_folder(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def publish_folder(complete: Path, folder: Path, is_complete: Callable[[], bool]) -> None:
    """Give a complete folder its name in the cache; another process that was quicker wins.

    Args:
        complete: Folder beside ``folder``.
        folder: Name that it gets; what a crash has left there is removed.
        is_complete: Function that says whether the folder of that name is whole.
    """
    if folder.exists() and not is_complete():
        shutil.rmtree(folder)
    try:
        os.rename(complete, folder)
    except OSError:
        if not is_complete():
            raise
