"""Where the pictures lie that a service was sent to keep, and the record of its changes; both beside the index.

``INDEX.pictures`` and ``INDEX.audit.jsonl`` are not inside of the folder, so that ``--overwrite`` leaves them. They are
beside what a link leads to, so that a service and a sync that name an index in different ways mean the same files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitrieve.systems import CHANGE, NO_FOLLOW, try_lock

_LOCK_NAME = ".lock"
_LOCK_PAUSE_SECONDS = 0.02


def get_pictures_folder(index: Path) -> Path:
    """Return the folder of the pictures that a service keeps for an index."""
    index = index.resolve()
    return index.parent / f"{index.name}.pictures"


def get_audit_file(index: Path) -> Path:
    """Return the file with a line for each change that a service made."""
    index = index.resolve()
    return index.parent / f"{index.name}.audit.jsonl"


@contextmanager
def locking_writes(index: Path, *, seconds: float) -> Iterator[None]:
    """Let one process and one thread of this machine at a time change images: a service, or a sync.

    Args:
        index: Folder of the index.
        seconds: How long the others are waited for.

    Raises:
        OSError: The folder beside the index cannot be written.
        TimeoutError: Another one has not ended.
    """
    until = time.monotonic() + seconds
    folder = get_pictures_folder(index)
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


def is_written(path: Path, index: Path) -> bool:
    """Say whether an image's file is one that a service keeps: then the service changes it, and no sync does."""
    folder = get_pictures_folder(index)
    return path.parent == folder or (path.parent.name == folder.name and path.parent.resolve() == folder)
