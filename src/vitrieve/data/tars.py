"""Tar archives as shards: the same content gives the same bytes, and a walk extracts nothing.

A member's name is only ever compared and shown; it never becomes a path on this machine. The module ``tarfile`` parses
the header blocks; the walk is ours, because ``tarfile`` believes the sizes in them.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from vitrieve.errors import DataError
from vitrieve.quoting import quote_name

BLOCK_BYTES = 512
END_OF_ARCHIVE = bytes(2 * BLOCK_BYTES)
MAX_LONG_NAME_BYTES = 1 << 16
MAX_EXTENDED_HEADER_BYTES = 1 << 20
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_GNU_SPARSE = "GNU.sparse."


class Member(NamedTuple):
    """One entry of an archive.

    Attributes:
        name: Its name, tidied: no ``./`` in front.
        offset: First byte of its content in the archive.
        length: Bytes of its content; 0 for what is no file.
        is_file: Whether it is a plain file; links, folders and devices are not.
    """

    name: str
    offset: int
    length: int
    is_file: bool


def build_member(name: str, data: bytes) -> bytes:
    """Build header, content and padding of one file.

    Args:
        name: ASCII, at most 100 characters.
        data: The content.

    Returns:
        A multiple of ``BLOCK_BYTES``; the content begins after the first block.
    """
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK_BYTES)


def is_header_of(block: bytes, length: int) -> bool:
    """Say whether a block is the header of a file with so many bytes."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return info.type in _FILES and info.size == length


def walk_members(read: Callable[[int, int], bytes], num_bytes: int, where: str) -> Iterator[Member]:
    """Yield the members of an archive, in order, from its headers alone.

    Args:
        read: Returns so many bytes (second) from an offset (first) on.
        num_bytes: Size of the archive.
        where: How a message names the archive.

    Raises:
        DataError: No archive, one that is cut short or whose sizes lie, or a name that leads out of a folder.
    """
    offset, long_name = 0, None
    while offset < num_bytes:
        block = read(offset, BLOCK_BYTES)
        if not any(block):
            return
        info = _parse_header(block, offset, where)
        start, end = offset + BLOCK_BYTES, offset + BLOCK_BYTES + info.size
        if info.size < 0 or end > num_bytes:
            raise DataError(
                f"{where}: the member at byte {offset:,} should have {info.size:,} bytes, and {num_bytes - start:,} "
                "are left: the archive is cut short or damaged; copy it here again."
            )
        offset = end + -info.size % BLOCK_BYTES
        if info.type == tarfile.GNUTYPE_LONGNAME:
            long_name = _read_long_name(read, start, info.size, where)
        elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            long_name = _read_extended_name(read, start, info.size, where) or long_name
        elif info.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            is_file = info.type in _FILES
            yield Member(_tidy(long_name or info.name, where), start, info.size if is_file else 0, is_file)
            long_name = None


def _parse_header(block: bytes, offset: int, where: str) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError, OverflowError) as error:
        what = "is not a tar archive" if offset == 0 else f"is damaged at byte {offset:,}"
        raise DataError(
            f"{where} {what} ({error}); shards are plain .tar files, neither compressed nor cut short."
        ) from None
    if info.type == tarfile.GNUTYPE_SPARSE:
        raise DataError(f"{where}: {quote_name(info.name)} is a sparse file, which no shard needs; pack it as it is.")
    if info.type in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.size = 0  # such a member has no content, whatever its header says
    return info


def _read_long_name(read: Callable[[int, int], bytes], start: int, length: int, where: str) -> str:
    if length > MAX_LONG_NAME_BYTES:
        raise DataError(f"{where}: a name has {length:,} bytes; at most {MAX_LONG_NAME_BYTES:,} are read.")
    return read(start, length).partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _read_extended_name(read: Callable[[int, int], bytes], start: int, length: int, where: str) -> str | None:
    """Read the name from a header of pax, ``LENGTH KEYWORD=VALUE`` a line; None where it gives none."""
    if length > MAX_EXTENDED_HEADER_BYTES:
        raise DataError(
            f"{where}: an extended header has {length:,} bytes; at most {MAX_EXTENDED_HEADER_BYTES:,} are read."
        )
    data, name = read(start, length), None
    while data:
        digits = data.partition(b" ")[0]
        size = int(digits) if digits.isdigit() and len(digits) <= 7 else 0
        record = data[len(digits) + 1 : size]
        if size <= len(digits) + 1 or size > len(data) or not record.endswith(b"\n"):
            raise DataError(f"{where} has a damaged extended header at byte {start:,}; copy it here again.")
        keyword, _, value = record[:-1].partition(b"=")
        if keyword == b"size" or keyword.startswith(_GNU_SPARSE.encode()):
            raise DataError(
                f"{where} says sizes in an extended header (sparse files, or files of 8 GiB), which no shard needs."
            )
        name = value.decode("utf-8", "surrogateescape") if keyword == b"path" else name
        data = data[size:]
    return name


def _tidy(name: str, where: str) -> str:
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise DataError(
            f"{where} names a member {quote_name(name)}, which leads out of any folder; nothing of this archive is "
            "read. Make it anew with relative names."
        )
    return posixpath.normpath(name)
