"""What every store does with the folder of an index: who may write it, and whether it still is the same index.

One writer at a time holds the lock of the folder. An index is checked when it is opened: its store, format, encoder and
embedding size. A process that keeps it open for days must know that what it reads is still that index. The manifest
tells it: an index that is made anew is another folder with another manifest, which takes the place of the old one when
it is complete. Whoever finds the same manifest after reading has read one index. That costs one ``stat`` a call.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from vitrieve.artifacts import MANIFEST_NAME
from vitrieve.errors import ArtifactError, DiskFullError, InputError, ReplacedError, VitrieveError, first_line
from vitrieve.systems import CHANGE, try_lock
from vitrieve.writing import describe_full_disk, is_full_disk

P = ParamSpec("P")
R = TypeVar("R")

FileStamp = tuple[int, int, int]
"""Inode, modification time and size of a file: two files of one name differ in one of them."""
LOCK_NAME = "writer.lock"
WAIT_SECONDS = 60.0
"""How long a change waits for another one; compacting 100,000 images takes a few seconds."""
POLL_SECONDS = 0.02
_READ_BYTES = 2**24


@contextmanager
def writing(folder: Path, *, wait_seconds: float | None = None) -> Iterator[None]:
    """Hold the writer's lock of an index.

    The lock belongs to an open file, so that the system releases it when its process dies, however it dies. Threads
    exclude each other too. An index may be made anew while somebody waits, which deletes the file: then the lock of the
    new file counts.

    Args:
        folder: The index.
        wait_seconds: How long to wait for another writer; None: ``WAIT_SECONDS``.

    Raises:
        ArtifactError: Another writer did not finish in time, or the folder cannot be written.
    """
    until = time.monotonic() + (WAIT_SECONDS if wait_seconds is None else wait_seconds)
    while (descriptor := _lock(folder)) is None:
        if time.monotonic() >= until:
            raise ArtifactError(f"{folder} is being written by another process; wait until it has finished.")
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """Lock the file and return it, open; None while another writer has it, or has just deleted it."""
    path = _find_lock(folder)
    try:
        descriptor = os.open(path, CHANGE | os.O_CREAT, 0o644)
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be changed ({error}).") from None
    try:
        if try_lock(descriptor) and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _find_lock(folder: Path) -> Path:
    """Name the file that is locked; beside the index on Windows, where no folder is replaced that has an open file."""
    if sys.platform == "win32":
        whole = folder.resolve()
        return whole.with_name(f".{whole.name}.{LOCK_NAME}")
    return folder / LOCK_NAME


def read_stamp(path: Path) -> FileStamp | None:
    """Return what tells a file from the one that replaces it; None while there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_mtime_ns, status.st_size)


class Identity:
    """The index that a folder held when it was opened.

    Args:
        folder: The index. Without a manifest it is being made, by this process, and everything is allowed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamp = read_stamp(folder / MANIFEST_NAME)

    def require(self) -> None:
        """Refuse to go on where the folder no longer holds the index that was opened.

        Raises:
            ArtifactError: It holds none, for now or for good.
            ReplacedError: It holds another one.
        """
        stamp = read_stamp(self._folder / MANIFEST_NAME)
        if self._stamp in (None, stamp):
            return
        if stamp is None:
            raise ArtifactError(
                f"the index {self._folder} is gone: it was moved or deleted, or is being made anew. Once it is back, "
                "it is read again."
            )
        raise ReplacedError(f"the index {self._folder} was replaced by another one while it was open; open it again.")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the writer's lock on the index that was opened; raises as ``writing``, ``require``, ``translating``."""
        with writing(self._folder):
            self.require()
            with translating(self._folder):
                yield


@contextmanager
def translating(folder: Path) -> Iterator[None]:
    """Turn what an engine raises in the block into an error about the index: LanceDB raises RuntimeError for anything.

    Args:
        folder: The index.

    Raises:
        DiskFullError: Its disk is full; what was finished before is kept.
        ArtifactError: Its files are gone, damaged, or may not be changed.
    """
    try:
        yield
    except VitrieveError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        if is_full_disk(error):
            advice = "What the index held before is kept; make room and run the same command again."
            raise DiskFullError(describe_full_disk(folder, advice=advice)) from error
        if not folder.exists():
            raise ArtifactError(f"the index {folder} is gone; make it again.") from error
        raise ArtifactError(
            f"the index {folder} cannot be used ({first_line(error)}). vitrieve index --verify --index {folder} says "
            "what is damaged; make the index again, or put a copy of it back."
        ) from error


class Identified(Protocol):
    """A store that knows which index it opened."""

    _identity: Identity
    _folder: Path


S = TypeVar("S", bound=Identified)


def guarded(read: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Let a method of a store return only what it has read from the index that was opened.

    Whatever an engine raises over files that have vanished or are damaged becomes an ``ArtifactError`` of one line.
    """

    @functools.wraps(read)
    def call(store: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with translating(store._folder):
                answer = read(store, *args, **kwargs)
        except InputError:
            store._identity.require()  # the reason may be that it is another index by now
            raise
        store._identity.require()
        return answer

    return call


def compute_checksum(path: Path) -> int:
    """Compute the CRC-32 of a file."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum


def link_or_copy(source: Path | str, target: Path | str) -> None:
    """Link a file that never changes; copy it where the disk has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
