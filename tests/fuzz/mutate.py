"""Mutations of good inputs: bytes, numbers, pieces, the chunks of PNG and JPEG, and words of the text formats."""

from __future__ import annotations

import random
import re
import struct
import zlib
from collections.abc import Sequence

MAX_BYTES = 1 << 20
"""Of one input."""
_EDGES = (0, 1, 2, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
_WORDS = (
    b"", b"\0", b"\xff", b"\xff\xda", b"\xff\xd8", b"\xff\xd9", b"nan", b"inf", b"-1", b"1e999", b"null", b"true",
    b"{", b"}", b"[", b"]", b'"', b"'", b",", b"=", b"!=", b"<=", b">", b"|", b"&", b"%00", b"%ff", b"+", b"\n",
    b"\r", b"\\ud800", b"\xed\xa0\x80", b"\xc3", b"../", b"1,2,3,4", b"IDAT", b"IEND", b"eXIf", b"9" * 400,
)  # fmt: skip


def mutate(seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """Change one of the seeds in one to six places; a few stay nearly as they are, so that all of a reader runs."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        rng.choice(_CHANGES)(data, seeds, rng)
    data = data[:MAX_BYTES]
    return _repair_png(bytes(data)) if rng.random() < 0.8 else bytes(data)


def _set_byte(data: bytearray, seeds: Sequence[bytes], rng: random.Random) -> None:
    if data:
        data[_choose_place(data, rng)] = rng.randrange(256)


def _flip_bit(data: bytearray, seeds: Sequence[bytes], rng: random.Random) -> None:
    if data:
        data[_choose_place(data, rng)] ^= 1 << rng.randrange(8)


def _set_number(data: bytearray, seeds: Sequence[bytes], rng: random.Random) -> None:
    kind = rng.choice(("B", "<H", ">H", "<I", ">I", "<Q"))
    size = struct.calcsize(kind)
    if len(data) >= size:
        place = min(_choose_place(data, rng), len(data) - size)
        data[place : place + size] = struct.pack(kind, rng.choice(_EDGES) % (1 << 8 * size))


def _delete(data: bytearray, seeds: Sequence[bytes], rng: random.Random) -> None:
    start = _choose_place(data, rng)
    del data[start : start + _choose_length(rng)]


def _repeat(data: bytearray, seeds: Sequence[bytes], rng: random.Random) -> None:
    start = _choose_place(data, rng)
    piece = bytes(data[start : start + _choose_length(rng)])
    data[start:start] = piece * min(rng.choice((1, 2, 50, 2000)), MAX_BYTES // (len(piece) + 1))


def _splice(data: bytearray, seeds: Sequence[bytes], rng: random.Random) -> None:
    other = rng.choice(seeds)
    start, place = _choose_place(other, rng), _choose_place(data, rng)
    length = _choose_length(rng)
    data[place : place + rng.choice((0, length))] = other[start : start + length]


def _insert_word(data: bytearray, seeds: Sequence[bytes], rng: random.Random) -> None:
    place = _choose_place(data, rng)
    data[place : place + rng.choice((0, 0, 1, 4))] = rng.choice(_WORDS)


def _replace_number_in_text(data: bytearray, seeds: Sequence[bytes], rng: random.Random) -> None:
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", bytes(data[:4096])))
    if numbers:
        found = rng.choice(numbers)
        data[found.start() : found.end()] = rng.choice((str(rng.choice(_EDGES)).encode(), *_WORDS[6:12]))


def _cut(data: bytearray, seeds: Sequence[bytes], rng: random.Random) -> None:
    del data[_choose_place(data, rng) :]


_CHANGES = (
    _set_byte, _set_byte, _flip_bit, _set_number, _set_number, _delete, _repeat, _splice, _insert_word,
    _replace_number_in_text, _cut,
)  # fmt: skip


def _choose_place(data: Sequence[int], rng: random.Random) -> int:
    """Choose a place, half of the time near the beginning, where formats keep their headers."""
    if not data:
        return 0
    return rng.randrange(min(len(data), 200) if rng.random() < 0.5 else len(data))


def _choose_length(rng: random.Random) -> int:
    return rng.choice((1, 2, 4, 12, 64, 1000))


def _repair_png(data: bytes) -> bytes:
    """Correct the checksums of a PNG's chunks, without which nothing behind them would be read."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    repaired, place = bytearray(data), 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", repaired, end, zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(repaired)
