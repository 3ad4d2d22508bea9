"""Where the pictures lie that a service was sent to keep, and the record of its changes; both beside the index.

``INDEX.pictures`` and ``INDEX.audit.jsonl`` are not inside of the folder, so that ``--overwrite`` leaves them. They are
beside what a link leads to, so that a service and a sync that name an index in different ways mean the same files.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

from vitrieve.data.records import ImageRecord
from vitrieve.index.store import VectorStore
from vitrieve.systems import CHANGE, NO_FOLLOW, try_lock

_LOCK_NAME = ".lock"
_LOCK_PAUSE_SECONDS = 0.02
_NAME_DIGITS = 24
_SENT_PATH = re.compile(rf".*\.pictures[\\/]([0-9a-f]{{{_NAME_DIGITS}}})-[0-9a-f]{{{_NAME_DIGITS}}}", re.DOTALL)


@runtime_checkable
class Shared(Protocol):
    """A store on a server, which has one lock for the writers of all machines."""

    def locking(self, seconds: float) -> AbstractContextManager[None]:
        """Hold the lock of those who change the index, on whichever machine they run.

        Args:
            seconds: How long another one is waited for.

        Raises:
            TimeoutError: Another one has not ended.
            ArtifactError: The server refused or did not answer.
        """
        ...


def get_pictures_folder(index: Path) -> Path:
    """Return the folder of the pictures that a service keeps for an index."""
    index = index.resolve()
    return index.parent / f"{index.name}.pictures"


def get_audit_file(index: Path) -> Path:
    """Return the file with a line for each change that a service made."""
    index = index.resolve()
    return index.parent / f"{index.name}.audit.jsonl"


def name_picture(image_id: str, image: bytes) -> str:
    """Name the file of a picture that a service was sent: by hashes, so that nothing of a client's is in a path."""
    return f"{_digest(image_id.encode())}-{_digest(image)}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_NAME_DIGITS]


@contextmanager
def locking_writes(index: Path, store: VectorStore, *, seconds: float, is_sync: bool = False) -> Iterator[None]:
    """Let one process and one thread at a time read images and then change them: a service, or a sync.

    The lock is a file beside the index. A store that several machines change has one on its server as well. It is
    taken second, so that on each machine the threads queue at the file and at most one waits at the server.

    Args:
        index: Folder of the index.
        store: The index.
        seconds: How long the others are waited for.
        is_sync: Skip the file lock where the folder does not exist: no service here has changed the index.

    Raises:
        OSError: The folder beside the index cannot be written.
        TimeoutError: Another one has not ended.
        ArtifactError: The server of the index refused or did not answer.
    """
    until = time.monotonic() + seconds
    folder = get_pictures_folder(index)
    with ExitStack() as stack:
        if not is_sync or folder.exists():
            stack.enter_context(_locking_file(folder, until))
        if isinstance(store, Shared):
            stack.enter_context(store.locking(max(0.0, until - time.monotonic())))
        yield


@contextmanager
def _locking_file(folder: Path, until: float) -> Iterator[None]:
    folder.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(folder / _LOCK_NAME, CHANGE | os.O_CREAT | NO_FOLLOW, 0o600)
    try:
        while not try_lock(descriptor):
            if time.monotonic() >= until:
                raise TimeoutError
            time.sleep(_LOCK_PAUSE_SECONDS)
        yield
    finally:
        os.close(descriptor)


def is_kept(path: Path, pictures: Path) -> bool:
    """Say whether a file lies in the folder that ``get_pictures_folder`` returned."""
    return path.parent == pictures or (path.parent.name == pictures.name and path.parent.resolve() == pictures)


def is_sent(record: ImageRecord, pictures: Path) -> bool:
    """Say whether an image is one that a service was sent: then services change it, and no sync does.

    The machine and the folder of that service may be others: its files have names that no other file has.

    Args:
        record: The image.
        pictures: Folder of the pictures that services keep here, from ``get_pictures_folder``.
    """
    found = _SENT_PATH.fullmatch(str(record.path))
    is_named = found is not None and found[1] == _digest(record.image_id.encode())
    return is_named or is_kept(record.path, pictures)
