"""A small DNG, as a camera writes it: a JPEG preview in the first directory, the sensor's values in a second."""

from __future__ import annotations

import struct


def build_dng(
    preview: bytes | None, *, orientation: int = 1, side: int = 64, pixels_size: tuple[int, int] | None = None
) -> bytes:
    """Build the file.

    Args:
        preview: Bytes of the JPEG in it, or of RGB pixels; None for a file without one.
        orientation: EXIF orientation of the photograph.
        side: Width and height of the sensor in pixels.
        pixels_size: Width and height of a preview that is not compressed; None for a JPEG.
    """
    sensor = struct.pack(f"<{side * side}H", *((x * 1000) % 16384 for x in range(side * side)))
    main = {
        254: (4, [0]),
        256: (4, [side]),
        257: (4, [side]),
        258: (3, [16]),
        259: (3, [1]),
        262: (3, [32803]),  # color filter array
        277: (3, [1]),
        278: (4, [side]),
        279: (4, [len(sensor)]),
        33421: (3, [2, 2]),
        33422: (1, [0, 1, 1, 2]),
        50717: (4, [16383]),
    }
    common = {
        271: (2, list(b"Tests\0")),
        272: (2, list(b"Camera\0")),
        274: (3, [orientation]),
        50706: (1, [1, 4, 0, 0]),
        50708: (2, list(b"Tests Camera\0")),
        50721: (5, [1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1]),
        50778: (3, [21]),
    }
    if preview is None:
        body = bytearray(b"II*\0" + struct.pack("<I", 8))
        _write_directory(body, main | common, {273: sensor})
        return bytes(body)
    first = common | {254: (4, [1]), 259: (3, [7]), 262: (3, [6]), 277: (3, [3]), 279: (4, [len(preview)])}
    width_px, height_px = pixels_size or (side, side)
    first |= {256: (4, [width_px]), 257: (4, [height_px]), 258: (3, [8, 8, 8]), 278: (4, [height_px])}
    if pixels_size:
        first |= {259: (3, [1]), 262: (3, [2])}
    body = bytearray(b"II*\0" + struct.pack("<I", 8))
    patch = _write_directory(body, first | {330: (4, [0])}, {273: preview})
    struct.pack_into("<I", body, patch[330], len(body))
    _write_directory(body, main, {273: sensor})
    return bytes(body)


def _write_directory(body: bytearray, tags: dict[int, tuple[int, list[int]]], data: dict[int, bytes]) -> dict[int, int]:
    """Append a directory and its data; return where the value of each tag stands."""
    tags = tags | {tag: (4, [0]) for tag in data}
    start = len(body)
    body += bytes(2 + 12 * len(tags) + 4)
    struct.pack_into("<H", body, start, len(tags))
    places = {}
    for number, (tag, (kind, values)) in enumerate(sorted(tags.items())):
        at = start + 2 + 12 * number
        values = [len(body)] if tag in data else values
        if tag in data:
            body += data[tag]
        code = {1: "B", 2: "B", 3: "H", 4: "I", 5: "I"}[kind]
        packed = struct.pack(f"<{len(values)}{code}", *values)
        count = len(values) // 2 if kind == 5 else len(values)
        struct.pack_into("<HHI", body, at, tag, kind, count)
        places[tag] = at + 8
        if len(packed) <= 4:
            body[at + 8 : at + 8 + len(packed)] = packed
        else:
            struct.pack_into("<I", body, at + 8, len(body))
            body += packed + b"\0" * (len(packed) % 2)
    return places
