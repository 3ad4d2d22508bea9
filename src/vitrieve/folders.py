"""Whole folders: locked by one writer, exchanged in one step, copied, and published in the cache."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vitrieve.errors import ArtifactError
from vitrieve.progress import print_message
from vitrieve.quoting import quote_name
from vitrieve.systems import CHANGE, NO_FOLLOW, remove_locked, try_lock
from vitrieve.writing import sync_folder

LOCK_NAME = ".lock"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Numbers of Linux."""
_RENAME_SWAP = 2
"""Number of macOS."""


@contextmanager
def locking_folder(folder: Path) -> Iterator[None]:
    """Let one process and one thread at a time write to a folder for as long as the block lasts.

    The lock is a file beside the folder, ``.NAME.lock``, or in it where it is a mount point, or the folder around it is
    read-only. A process that dies, however it dies, holds it no longer; on a network disk, the lock of a host without
    power may be held until the disk's server notices. On a disk without locks a message tells it.

    Args:
        folder: Folder that ``--out`` names, there or not.

    Raises:
        ArtifactError: Another process or thread writes to it; nothing was changed.
    """
    target = folder.resolve()
    made = [parent for parent in target.parents if not parent.exists()]
    with suppress(OSError):  # whoever writes the folder says what cannot be made
        target.parent.mkdir(parents=True, exist_ok=True)
    path = target.parent / f".{target.name}{LOCK_NAME}" if is_replaceable(target) else target / LOCK_NAME
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


def find_beside(target: Path) -> Path:
    """Return where the new artifact is built that replaces the one at ``target``."""
    return target.parent / f".{target.name}.new"


def find_aside(target: Path) -> Path:
    """Return where a replaced artifact stands for a moment, where two folders cannot change places in one step."""
    beside = find_beside(target)
    return beside.with_name(f"{beside.name}.old")


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
