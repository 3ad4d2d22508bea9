"""Blocks of the files on servers: fetched when they are needed or soon will be, and kept on disk up to a limit.

A file is read at any place in blocks of 256 KiB. Who reads it in order finds the next 8 MiB on their way. The cache
folder keeps the blocks that were used last, each with a checksum, under a name made of the file's address, size and
ETag: of a file that has changed none is found. Several processes may share the folder.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import stat
import threading
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from vitrieve.data.remote import FileInfo, fetch, find_infos, start
from vitrieve.errors import ConfigError
from vitrieve.machine import cache_folder
from vitrieve.progress import print_message

BLOCK_BYTES = 1 << 18
NUM_BLOCKS_AHEAD = 32
NUM_BLOCKS_NEAR = 8
"""Threads that read a file in order are at most so many blocks apart."""
NUM_BLOCKS_IN_MEMORY = 128
CACHE_VARIABLE = "VITRIEVE_SHARD_CACHE_GIB"
DEFAULT_CACHE_GIB = 10.0
_CHECKSUM_BYTES = 4
_LOOK_SHARE, _KEPT_SHARE = 0.05, 0.9
"""A process that has written the first share of the limit measures what is there; what is removed leaves the second."""


def blocks_folder() -> Path:
    """Return the folder of the blocks."""
    return cache_folder() / "shard-blocks"


def read_limit() -> int:
    """Return the bytes of blocks that the cache may hold.

    Raises:
        ConfigError: ``VITRIEVE_SHARD_CACHE_GIB`` is no number above zero.
    """
    text = os.environ.get(CACHE_VARIABLE, "") or str(DEFAULT_CACHE_GIB)
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0 < limit < 1 << 30:
        raise ConfigError(f"{CACHE_VARIABLE} is {text!r}; it must be a number of GiB above 0.")
    return int(limit * 2**30)


class _Cache:
    """Blocks by name, the last ones in memory and many on disk; a forked process has its own memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._memory: OrderedDict[str, bytes] = OrderedDict()
        self._num_written: int | None = None
        """Bytes since the folder was measured; None before that."""
        self._is_told = False

    def is_kept(self, name: str) -> bool:
        """Say whether a block need not be fetched."""
        with self._lock:
            return name in self._memory or _find_path(name).exists()

    def read(self, name: str) -> bytes | None:
        """Return a block; None where it is not there whole."""
        with self._lock:
            if name in self._memory:
                self._memory.move_to_end(name)
                return self._memory[name]
        path = _find_path(name)
        try:
            data = path.read_bytes()
            os.utime(path)  # those that were not used for longest go first
        except OSError:
            return None
        block = data[:-_CHECKSUM_BYTES]
        if len(data) < _CHECKSUM_BYTES or _sum(block) != data[-_CHECKSUM_BYTES:]:
            return None
        self._remember(name, block)
        return block

    def keep(self, name: str, block: bytes) -> None:
        """Keep a block; where nothing can be written, that is told once, and reading goes on."""
        self._remember(name, block)
        path = _find_path(name)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(block + _sum(block))
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if not self._is_told:
                print_message(f"{blocks_folder()} keeps no more of the shards ({error.strerror or error}).")
            self._is_told = True
            return
        self._bound(len(block))

    def _remember(self, name: str, block: bytes) -> None:
        with self._lock:
            self._memory[name] = block
            while len(self._memory) > NUM_BLOCKS_IN_MEMORY:
                self._memory.popitem(last=False)

    def _bound(self, num_bytes: int) -> None:
        """Remove the oldest blocks where there are more than the limit; other processes write too."""
        limit = read_limit()
        with self._lock:
            self._num_written = None if self._num_written is None else self._num_written + num_bytes
            if self._num_written is not None and self._num_written <= _LOOK_SHARE * limit:
                return
            self._num_written = 0
        listed = sorted(_list_blocks())
        left = sum(size for _, size, _ in listed)
        if left <= limit:
            return
        for _, size, path in listed:
            if left <= _KEPT_SHARE * limit:
                return
            with suppress(OSError):
                path.unlink(missing_ok=True)
                left -= size


def _list_blocks() -> Iterator[tuple[int, int, Path]]:
    """Yield time of the last use, size and path of each block."""
    for path in blocks_folder().rglob("*"):
        with suppress(OSError):  # another process may have removed it
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                yield status.st_mtime_ns, status.st_size, path


def _find_path(name: str) -> Path:
    return blocks_folder() / name[:2] / name


def _sum(block: bytes) -> bytes:
    return zlib.crc32(block).to_bytes(_CHECKSUM_BYTES, "big")


class RemoteFile:
    """A file on a server, read at any place, by several threads at a time."""

    def __init__(self, address: str, info: FileInfo) -> None:
        """Take what the server says of it; nothing is asked.

        Args:
            address: Where it is.
            info: Size and stamp; without a stamp, the blocks are found by this object alone.
        """
        self.address, self.info = address, info
        said = [address, info.num_bytes, info.stamp or uuid.uuid4().hex]
        self._digest = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]
        self._num_blocks = -(-info.num_bytes // BLOCK_BYTES)
        self._lock = threading.Lock()
        self._coming: dict[int, Future[dict[int, bytes]]] = {}
        self._last, self._ahead = -NUM_BLOCKS_NEAR - 1, 0

    @property
    def status(self) -> os.stat_result:
        """Size and times, as of a file on disk."""
        seconds = self.info.modified_ns // 10**9
        numbers = (stat.S_IFREG, int(self._digest[:12], 16), 0, 1, 0, 0, self.info.num_bytes, seconds, seconds, seconds)
        exact = {"st_atime": seconds, "st_mtime": seconds, "st_ctime": seconds}
        exact |= {f"{name}_ns": self.info.modified_ns for name in exact}
        return os.stat_result(numbers, exact)

    def read(self, offset: int, length: int) -> bytes:
        """Read ``length`` bytes from ``offset`` on, fewer at the end of the file.

        Raises:
            FileNotFoundError: The file is gone.
            UnreachableError: The server does not send it.
            DataError: It sends whole files only.
        """
        stop = min(offset + length, self.info.num_bytes)
        if offset >= stop:
            return b""
        first, last = offset // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES
        data = b"".join(self._take(first, last))
        return data[offset - first * BLOCK_BYTES : stop - first * BLOCK_BYTES]

    def _take(self, first: int, last: int) -> list[bytes]:
        numbers = range(first, last + 1)
        blocks = {number: block for number in numbers if (block := _cache.read(self._name(number))) is not None}
        with self._lock:
            # What came in the meantime stands in the cache, and is kept no longer here.
            again = [number for number in numbers if number not in blocks and number not in self._coming]
            blocks |= {number: block for number in again if (block := _cache.read(self._name(number))) is not None}
            self._fetch([number for number in again if number not in blocks])
            self._fetch_ahead(first, last)
            coming = {number: self._coming[number] for number in numbers if number not in blocks}
        for number, future in coming.items():
            blocks[number] = future.result()[number]
        return [blocks[number] for number in numbers]

    def _fetch_ahead(self, first: int, last: int) -> None:
        """Fetch the next blocks for who reads in order."""
        is_in_order = abs(first - self._last) <= NUM_BLOCKS_NEAR
        self._last, self._ahead = last, max(self._ahead, last + 1) if is_in_order else last + 1
        if is_in_order and self._ahead <= min(last + NUM_BLOCKS_AHEAD // 2, self._num_blocks - 1):
            numbers = range(self._ahead, min(last + 1 + NUM_BLOCKS_AHEAD, self._num_blocks))
            self._ahead = numbers.stop
            self._fetch([one for one in numbers if one not in self._coming and not _cache.is_kept(self._name(one))])

    def _fetch(self, numbers: list[int]) -> None:
        """Begin to fetch blocks, those that follow each other together."""
        runs: list[list[int]] = []
        for number in numbers:
            if runs and runs[-1][-1] + 1 == number:
                runs[-1].append(number)
            else:
                runs.append([number])
        for run in runs:
            self._coming |= dict.fromkeys(run, start(self.address, partial(self._fetch_run, run)))

    async def _fetch_run(self, run: list[int], system: Any) -> dict[int, bytes]:
        first = run[0] * BLOCK_BYTES
        try:
            data = await fetch(system, self.address, first, min((run[-1] + 1) * BLOCK_BYTES, self.info.num_bytes))
            starts = {number: number * BLOCK_BYTES - first for number in run}
            blocks = {number: data[begin : begin + BLOCK_BYTES] for number, begin in starts.items()}
            await asyncio.to_thread(self._keep, blocks)
            return blocks
        finally:
            with self._lock:  # held by who asked until all of the run is noted
                for number in run:
                    del self._coming[number]

    def _keep(self, blocks: dict[int, bytes]) -> None:
        for number, block in blocks.items():
            _cache.keep(self._name(number), block)

    def _name(self, number: int) -> str:
        return f"{self._digest}.{number}"


class RemoteReader(io.RawIOBase):
    """A file on a server as Python's libraries read files."""

    def __init__(self, file: RemoteFile) -> None:
        """Begin at the first byte."""
        self._file, self._position = file, 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it can be read at any place."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.info.num_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """Tell the place."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read as much as the buffer holds, less at the end."""
        data = self._file.read(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class _Files:
    """The files that this process knows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, RemoteFile] = {}

    def note(self, address: str, info: FileInfo) -> RemoteFile:
        """Return the file of an address, a new one where what the server says of it has changed."""
        with self._lock:
            known = self._known.get(address)
            if known is None or known.info != info:
                self._known[address] = known = RemoteFile(address, info)
            return known

    def find(self, address: str) -> RemoteFile | None:
        """Find the file of an address; None where nothing was noted of it."""
        with self._lock:
            return self._known.get(address)


_cache, _files = _Cache(), _Files()


def _forget_in_fork() -> None:
    """Begin anew: a lock may have been held, and what was coming goes to the other process."""
    global _cache, _files
    _cache, _files = _Cache(), _Files()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_fork)


def note_file(address: str, info: FileInfo) -> RemoteFile:
    """Take what a server has said of a file as what holds from now on."""
    return _files.note(address, info)


def find_file(address: str) -> RemoteFile:
    """Find a file that this process knows, or else ask the server.

    Raises:
        FileNotFoundError: It is missing.
        UnreachableError: The server does not answer.
        DataError: It does not say how many bytes the file has.
    """
    return _files.find(address) or find_file_anew(address)


def find_file_anew(address: str) -> RemoteFile:
    """Ask the server what a file is now; the object is the known one where it has not changed.

    Raises:
        FileNotFoundError: As ``find_file``, and so are the others.
        UnreachableError: ...
        DataError: ...
    """
    return note_file(address, *find_infos([address]))
