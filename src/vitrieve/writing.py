"""Writing files: durable, so that a crash leaves the old or the new content, and refused before long work.

A full disk, whichever library runs into it, becomes one message that names the file.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vitrieve.errors import ArtifactError, ConfigError, DiskFullError
from vitrieve.quoting import quote_name
from vitrieve.systems import replace_file

if TYPE_CHECKING:
    import numpy as np

_FULL_DISK_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
_FULL_DISK_TEXTS = ("no space left on device", "disk is full", "disk quota exceeded", "os error 28", "os error 122")
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")


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


def check_files(*files: Path | None, is_folder_made: bool = False, read: Path | None = None) -> None:
    """Refuse files that cannot be written, before the work that they are to hold.

    Args:
        files: Files to write; None: nothing is checked.
        is_folder_made: Whether those who write them make their folders.
        read: What the work reads, such as a table; None: nothing that a file could take the place of.

    Raises:
        ConfigError: One is a folder, or its folder is not there, and is not made; or it is what is read, or another of
            the files.
        ArtifactError: This user may not write in its folder, or a file has the name of that.
    """
    places: set[Path] = set()
    for file in files:
        if file is not None and file.is_dir():
            raise ConfigError(f"{quote_name(file)} is a folder; name a file in it.")
        if file is not None and (file.is_file() or not file.exists()):  # /dev/null holds everything
            place = file.resolve()
            if read is not None and read.resolve() == place:
                raise ConfigError(f"{quote_name(read)} is read, and would be lost: give what is written another name.")
            if place in places:
                raise ConfigError(f"two files would be {quote_name(place)}: give each a name of its own.")
            places.add(place)
        if file is not None and not is_folder_made and not file.parent.is_dir():
            folder = quote_name(file.parent)
            raise ConfigError(f"{quote_name(file)} cannot be written: there is no folder {folder}; make it first.")
        if file is not None:
            check_writable(file.parent)


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
        num_bytes: Size that the file needs in all; None where that is not known.
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
        num_bytes: Size that it needs in all; None where that is not known.
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
    """Make a file durable that was written without ``write_text_durably``."""
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
