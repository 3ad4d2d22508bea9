"""Small AVIF and HEIC files, box by box, with streams that announce whatever a test wants."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Item:
    """A picture, or a part of one.

    Attributes:
        kind: Name of its coding, for example ``av01`` or ``grid``.
        size: Width and height that its property says.
        content: Its stream, or the description of a grid.
        is_shared: Its content is that of the first item.
        references: Numbers of the items that it refers to, from 1, by kind of reference.
    """

    kind: bytes
    size: tuple[int, int] = (16, 16)
    content: bytes = b""
    is_shared: bool = False
    references: Mapping[bytes, Sequence[int]] = field(default_factory=dict)


def build_box(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def build_full_box(kind: bytes, *parts: bytes, version: int = 0, flags: int = 0) -> bytes:
    return build_box(kind, struct.pack(">I", version << 24 | flags), *parts)


def build_file(items: Sequence[Item], brand: bytes = b"avif", *more: bytes) -> bytes:
    """Build a file whose first item is the picture.

    Args:
        items: Their numbers count from 1.
        brand: Major brand.
        more: Boxes behind the others.
    """
    head = build_box(b"ftyp", brand, bytes(4), b"mif1", brand)
    meta = _build_meta(items, 0)
    start = len(head) + len(meta) + 8
    return head + _build_meta(items, start) + build_box(b"mdat", *(item.content for item in items)) + b"".join(more)


def _build_meta(items: Sequence[Item], start: int) -> bytes:
    kinds = [
        build_full_box(b"infe", struct.pack(">HH4sB", number, 0, item.kind, 0), version=2)
        for number, item in enumerate(items, start=1)
    ]
    places, associations, references = [], [], []
    first = start
    for number, item in enumerate(items, start=1):
        at, num_bytes = (first, len(items[0].content)) if item.is_shared else (start, len(item.content))
        places.append(struct.pack(">HHHII", number, 0, 1, at, num_bytes))
        start += len(item.content)
        associations.append(struct.pack(">HBH", number, 1, number))
        for kind, targets in item.references.items():
            content = struct.pack(f">HH{len(targets)}H", number, len(targets), *targets)
            references.append(build_box(kind, content))
    sizes = [build_full_box(b"ispe", struct.pack(">II", *item.size)) for item in items]
    count = struct.pack(">H", len(items))
    return build_full_box(
        b"meta",
        build_full_box(b"hdlr", bytes(4), b"pict", bytes(13)),
        build_full_box(b"pitm", struct.pack(">H", 1)),
        build_full_box(b"iloc", b"\x44\x00", count, *places),
        build_full_box(b"iinf", count, *kinds),
        build_box(
            b"iprp",
            build_box(b"ipco", *sizes),
            build_full_box(b"ipma", struct.pack(">I", len(items)), *associations, flags=1),
        ),
        build_full_box(b"iref", *references),
    )


def build_track(num_samples: int) -> bytes:
    """Build a film of so many pictures of one byte."""
    table = build_box(
        b"stbl",
        build_full_box(b"stsd", struct.pack(">I", 1), build_box(b"av01", bytes(78))),
        build_full_box(b"stsz", struct.pack(">II", 1, num_samples)),
        build_full_box(b"stco", struct.pack(">II", 1, 0)),
    )
    return build_box(b"moov", build_box(b"trak", build_box(b"mdia", build_box(b"minf", table))))


def build_grid(num_rows: int, num_columns: int, size: tuple[int, int]) -> bytes:
    """Describe a grid of tiles."""
    return struct.pack(">BBBBII", 0, 1, num_rows - 1, num_columns - 1, *size)


def build_av1(size: tuple[int, int], num_frames: int = 1, *, is_still: bool = True) -> bytes:
    """Build a stream that announces frames of a size, and nothing that could be decoded."""
    bits = "000" + ("11" + "00000" if is_still else "00" + "0" + "0" + "00000" + 12 * "0" + "00000")
    for side in size:
        bits += f"{(side - 1).bit_length() - 1:04b}"
    bits += "".join(f"{side - 1:0{(side - 1).bit_length()}b}" for side in size)
    bits += "1" + "0" * (-(len(bits) + 1) % 8)
    header = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return b"\x12\0" + bytes([0x0A, len(header)]) + header + b"\x32\x01\x00" * num_frames


def build_hevc(num_pictures: int) -> bytes:
    """Build a stream of slices, each of which begins a picture."""
    return struct.pack(">IBBB", 3, 0x28, 1, 0x80) * num_pictures
