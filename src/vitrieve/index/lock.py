"""One writer at a time: the lock that every change of a store on disk holds."""

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
    path = folder / LOCK_NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be changed ({error}).") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
