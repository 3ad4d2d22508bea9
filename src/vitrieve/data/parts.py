"""A picture inside a shard: how its place is spelled as a path, and how its bytes are read.

``SHARDS/000003.tar/@1536+20480.jpg`` means the 20,480 bytes from the byte 1,536 of the file ``SHARDS/000003.tar``,
and ``FILE.parquet/@17+0`` the cell of row 17 in the first column. No such file exists, so that the spelling takes no
name from any: it is understood only where no file of that name can be opened. Embeddings, indexes and states store it
as they store every path, and ``--map-path`` moves it. The shard may be on a server, as ``remote.py`` spells it.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from vitrieve.data.tars import BLOCK_BYTES, is_header_of
from vitrieve.errors import DecodeError, UnreachableError
from vitrieve.quoting import quote_name
from vitrieve.systems import NO_WAIT, READ, read_at

if TYPE_CHECKING:
    from vitrieve.data.blocks import RemoteFile

SHARD_SUFFIX, PARQUET_SUFFIX = ".tar", ".parquet"
_NAME = re.compile(r"@(\d{1,15})\+(\d{1,15})(?:\.[a-z]{1,5})?")


class Part(NamedTuple):
    """Where the bytes of a picture are: from ``offset`` on, ``length`` of them.

    In a Parquet file they are a cell: ``offset`` is its row, and ``length`` the number of its column.
    """

    shard: Path
    offset: int
    length: int


def spell_part(shard: str, offset: int, length: int, suffix: str) -> Path:
    """Spell the place of a picture as a path.

    >>> parse_part(spell_part("/shards/000003.tar", 1536, 20480, ".jpg"))[1:]
    (1536, 20480)
    """
    return Path(f"{shard}/@{offset}+{length}{suffix}")


def parse_part(path: Path) -> Part | None:
    """Read a path that ``spell_part`` spelled; None for any other."""
    found = _NAME.fullmatch(path.name)
    if found is None or path.parent.suffix not in (SHARD_SUFFIX, PARQUET_SUFFIX):
        return None
    return Part(path.parent, int(found[1]), int(found[2]))


def stat_picture(path: Path) -> os.stat_result:
    """Ask for size and times of the file that holds a picture: the shard's, where it is in one.

    Raises:
        OSError: There is no such file.
        UnreachableError: It is on a server that does not answer.
    """
    try:
        return path.stat()
    except (NotADirectoryError, FileNotFoundError):
        part = parse_part(path)
        if part is None:
            raise
        from vitrieve.data.remote import parse_address

        address = parse_address(part.shard)
        if address is None:
            return part.shard.stat()
        from vitrieve.data.blocks import find_file

        return find_file(address).status


def stat_open(file: BinaryIO) -> os.stat_result:
    """Ask for size and times of the file that holds an open picture: the shard's, where it is in one."""
    return file.status if isinstance(file, PartFile) else os.fstat(file.fileno())


class PartFile(io.RawIOBase):
    """The bytes of one part, for reading from first to last.

    It has no descriptor: nothing of the shard may be sent from one.
    """

    def __init__(
        self,
        part: Part,
        read_range: Callable[[int, int], bytes],
        find_status: Callable[[], os.stat_result],
        close: Callable[[], None],
    ) -> None:
        """Take over an open shard.

        Args:
            part: What is read of it.
            read_range: Returns so many bytes (second) from an offset (first) on, fewer only at the end of the shard.
            find_status: Returns size and times of the shard.
            close: Closes the shard; called once.
        """
        self._part, self._read_range, self._find_status, self._close = part, read_range, find_status, close
        self._position = 0

    @property
    def status(self) -> os.stat_result:
        """Size and times of the shard."""
        return self._find_status()

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Read up to ``size`` bytes of the part; all that are left where it is negative."""
        left = self._part.length - self._position
        wanted = left if size is None or size < 0 else min(size, left)
        data = self._read_range(self._part.offset + self._position, wanted)
        self._position += len(data)
        return data

    def close(self) -> None:
        """Close the shard."""
        if not self.closed:
            self._close()
        super().close()


def open_part(part: Part) -> PartFile:
    """Open a picture in a shard, after a look at the header in front of it.

    Raises:
        DecodeError: The shard is gone or is no file, or no such picture is there any more.
        UnreachableError: It is on a server that does not answer.
    """
    from vitrieve.data.remote import parse_address  # pictures in files need neither asyncio nor Parquet

    address = parse_address(part.shard)
    return _open_local(part) if address is None else _open_remote(part, address)


def _open_local(part: Part) -> PartFile:
    try:
        descriptor = os.open(part.shard, READ | NO_WAIT)
    except OSError as error:
        raise DecodeError(f"the shard {_name(part)} cannot be read: {error.strerror or error}") from error
    try:
        return _check_descriptor(descriptor, part)
    except BaseException:
        os.close(descriptor)
        raise


def _check_descriptor(descriptor: int, part: Part) -> PartFile:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise DecodeError(f"the shard {_name(part)} is not a regular file")

    def read_range(offset: int, length: int) -> bytes:
        return _read_local(descriptor, part, offset, length)

    find_status, close = partial(os.fstat, descriptor), partial(os.close, descriptor)
    if part.shard.suffix == PARQUET_SUFFIX:
        from vitrieve.data.cells import read_cell

        cell = read_cell(part.shard, part.offset, part.length)
        whole = Part(part.shard, 0, len(cell))
        return PartFile(whole, lambda offset, length: cell[offset:][:length], find_status, close)
    if not _is_there(part, read_range):
        raise DecodeError(_describe_change(part))
    return PartFile(part, read_range, find_status, close)


def _is_there(part: Part, read_range: Callable[[int, int], bytes]) -> bool:
    header_at = part.offset - BLOCK_BYTES
    return header_at >= 0 and is_header_of(read_range(header_at, BLOCK_BYTES), part.length)


def _describe_change(part: Part) -> str:
    return f"the shard {_name(part)} has changed since it was indexed; index or pack it again"


def _open_remote(part: Part, address: str) -> PartFile:
    from vitrieve.data.blocks import find_file, find_file_anew

    try:
        file = find_file(address)
        if not _is_there_as_known(part, file):
            file = find_file_anew(address)
            if not _is_there(part, file.read):
                raise DecodeError(_describe_change(part))
    except FileNotFoundError as error:
        raise DecodeError(f"the shard {_name(part)} cannot be read: {error.strerror}") from error
    return PartFile(part, partial(_read_remote, file, part), lambda: file.status, lambda: None)


def _is_there_as_known(part: Part, file: RemoteFile) -> bool:
    """Look at the header; the shard may have changed since this process has asked what it is."""
    from vitrieve.data.blocks import find_file_anew

    try:
        return _is_there(part, file.read)
    except UnreachableError:
        if find_file_anew(file.address) is file:
            raise
        return False


def _read_remote(file: RemoteFile, part: Part, offset: int, length: int) -> bytes:
    try:
        return file.read(offset, length)
    except FileNotFoundError as error:
        raise DecodeError(f"the shard {_name(part)} cannot be read: {error.strerror}") from error


def _read_local(descriptor: int, part: Part, offset: int, length: int) -> bytes:
    """Read from an open shard; a disk that fails is one bad picture."""
    pieces = []
    try:
        while length > 0 and (piece := read_at(descriptor, length, offset)):
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
    except OSError as error:
        raise DecodeError(f"the shard {_name(part)} cannot be read: {error.strerror or error}") from error
    return b"".join(pieces)


def _name(part: Part) -> str:
    return quote_name(part.shard.name)
