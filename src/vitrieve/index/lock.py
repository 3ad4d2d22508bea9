"""One writer at a time: the lock that every change of a store on disk holds. Next: ``batch.py``."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitrieve.errors import ArtifactError

LOCK_NAME = "writer.lock"
WAIT_SECONDS = 60.0
"""How long a change waits for another one; compacting 100,000 images takes a few seconds."""
POLL_SECONDS = 0.02


@contextmanager
def writing(folder: Path, *, wait_seconds: float | None = None) -> Iterator[None]:
    """Hold the writer's lock of an index.

    The lock belongs to an open file, so that the system releases it when its process dies, however it dies. Threads
    exclude each other too.

    Args:
        folder: The index.
        wait_seconds: How long to wait for another writer; None: ``WAIT_SECONDS``.

    Raises:
        ArtifactError: Another writer did not finish in time, or the folder cannot be written.
    """
    until = time.monotonic() + (WAIT_SECONDS if wait_seconds is None else wait_seconds)
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be changed ({error}).") from None
    try:
        while not _is_locked(descriptor):
            if time.monotonic() >= until:
                raise ArtifactError(f"{folder} is being written by another process; wait until it has finished.")
            time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
