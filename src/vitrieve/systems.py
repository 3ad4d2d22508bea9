"""What Linux, macOS and Windows do differently with files: flags, locks, reading at a place, replacing, removing.

A lock belongs to an open file. It excludes other processes and other threads alike, and the system releases it when its
process dies, however it dies. Windows locks bytes and not files, and refuses to read what is locked; so one byte is
locked there that lies far behind the end.

On Windows a file that somebody has open can neither be removed nor replaced, and a folder with such a file cannot be
renamed.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

READ = os.O_RDONLY | getattr(os, "O_BINARY", 0)
"""Flags to read bytes as they are: Windows would translate the ends of lines, and stop at Ctrl-Z."""
WRITE = os.O_WRONLY | getattr(os, "O_BINARY", 0)
CHANGE = os.O_RDWR | getattr(os, "O_BINARY", 0)
NO_WAIT = getattr(os, "O_NONBLOCK", 0)
"""Flag to open a pipe without waiting for whoever writes to it; Windows has no pipes among its files."""
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
"""Flag to refuse a link. Windows lets only administrators make links, and has no such flag."""
DRIVE = re.compile(r"[A-Za-z]:[\\/]")
"""Begin of a path that names a drive; no source has a name of one letter."""
LOCK_AT = 2**30
"""Place of the byte that is locked on Windows; no file that is locked has so many."""
POLL_SECONDS = 0.02
REPLACE_SECONDS = 2.0
"""How long a file is waited for on Windows that another program reads just now."""

if sys.platform == "win32":
    import msvcrt

    def try_lock(descriptor: int) -> bool:
        """Lock an open file; return False where somebody else has locked it."""
        os.lseek(descriptor, LOCK_AT, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True

    def wait_for_lock(descriptor: int) -> None:
        """Lock an open file, and wait for as long as somebody else has locked it."""
        while not try_lock(descriptor):
            time.sleep(POLL_SECONDS)

    _SEEKING = threading.Lock()

    def read_at(descriptor: int, num_bytes: int, offset: int) -> bytes:
        """Read up to ``num_bytes`` from a place of an open file, whose own position stays."""
        with _SEEKING:
            before = os.lseek(descriptor, 0, os.SEEK_CUR)
            os.lseek(descriptor, offset, os.SEEK_SET)
            try:
                return os.read(descriptor, num_bytes)
            finally:
                os.lseek(descriptor, before, os.SEEK_SET)

    def read_into(descriptor: int, buffer: memoryview, offset: int) -> int:
        """Fill a buffer from a place of an open file, as far as one reading does; return the number of bytes."""
        data = read_at(descriptor, min(len(buffer), 2**24), offset)
        buffer[: len(data)] = data
        return len(data)

else:
    import fcntl

    def try_lock(descriptor: int) -> bool:
        """Lock an open file; return False where somebody else has locked it."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def wait_for_lock(descriptor: int) -> None:
        """Lock an open file, and wait for as long as somebody else has locked it."""
        fcntl.flock(descriptor, fcntl.LOCK_EX)

    def read_at(descriptor: int, num_bytes: int, offset: int) -> bytes:
        """Read up to ``num_bytes`` from a place of an open file, whose own position stays."""
        return os.pread(descriptor, num_bytes, offset)

    def read_into(descriptor: int, buffer: memoryview, offset: int) -> int:
        """Fill a buffer from a place of an open file, as far as one reading does; return the number of bytes."""
        return os.preadv(descriptor, [buffer], offset)


def remove_locked(path: Path, descriptor: int) -> None:
    """Remove a file that this process has locked, and close it: nobody else gets the lock of a file that has a name.

    On Windows it is closed first. Somebody else may then lock it, and it stays.
    """
    if sys.platform == "win32":
        os.close(descriptor)
        with suppress(PermissionError):
            path.unlink(missing_ok=True)
        return
    try:
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def remove_file(path: Path) -> bool:
    """Remove a file, if it is there; return False where Windows keeps it, because somebody has it open."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        if sys.platform != "win32":
            raise
        return False
    return True


def replace_file(source: Path, target: Path) -> None:
    """Move a file to where another one may be; on Windows, once nobody reads that one.

    Raises:
        OSError: It cannot be moved; on Windows also where somebody has the other one open for long.
    """
    until = time.monotonic() + REPLACE_SECONDS
    while True:
        try:
            return os.replace(source, target)
        except PermissionError:
            if sys.platform != "win32" or time.monotonic() >= until:
                raise
        time.sleep(POLL_SECONDS)
