"""What a file would make the decoder do, found before it begins; ``decode.py`` refuses what is too much.

A picture's size in bytes and in pixels does not bound the work. A JPEG of 400 KB may go over its pixels a thousand
times. A file may consist of millions of empty parts, each of which costs a step of an interpreter. An AVIF or HEIC
file may hold more than it shows (``isobmff.py``). And many pictures may be decoded at once, for which there is
``BUDGET``.

Source:
    ITU-T T.81 (JPEG).
"""

from __future__ import annotations

import ctypes
import re
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vitrieve.data.isobmff import HEAD_BYTES, count_coded_pictures, find_kind
from vitrieve.errors import PictureTooLargeError

END_MARKER = b"\xff\xd9"
NUM_COEFFICIENTS = 64
"""Coefficients of a block of 8 x 8 pixels."""

_MARKER = re.compile(rb"\xff([\x01-\xfe])")
"""The decoder passes over anything else: between two segments, and in the data of a scan, where 00 follows FF."""
_BARE = frozenset((0x01, *range(0xD0, 0xD8)))
"""TEM and the restart markers have no content."""
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Start of frame; the three left out are tables."""
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))


@dataclass(kw_only=True)
class JpegLayout:
    """What the markers of a JPEG file say.

    Attributes:
        width_px: Stored width; 0 without a frame.
        height_px: Stored height.
        num_scans: Passes over the picture, up to the end marker; each takes time for every pixel.
        num_header_parts: Segments and fill bytes before the first scan.
        is_progressive: The picture becomes finer from scan to scan.
        has_end: The end marker is there.
        precision: Bit up to which each coefficient is known, for each component of a progressive picture; 0 is
            all of it. A coefficient that no scan has told is missing.
    """

    width_px: int = 0
    height_px: int = 0
    num_scans: int = 0
    num_header_parts: int = 0
    is_progressive: bool = False
    has_end: bool = False
    precision: dict[int, dict[int, int]] = field(default_factory=dict)

    @property
    def is_told_completely(self) -> bool:
        """Whether the scans that have begun tell every coefficient of every component to its last bit."""
        if not self.is_progressive:
            return self.num_scans > 0
        told = self.precision.values()
        return bool(told) and all(len(one) == NUM_COEFFICIENTS and not any(one.values()) for one in told)


def read_jpeg_layout(data: bytes, *, max_scans: int, max_header_parts: int) -> JpegLayout:
    """Walk over the markers of a JPEG file as libjpeg does, at the speed of a search for bytes.

    Args:
        data: The whole file; what follows its end marker (a second picture, a film) is not looked at.
        max_scans: The walk ends when it has found one more.
        max_header_parts: The same for ``num_header_parts``.

    Returns:
        The layout, as far as it can be read.
    """
    layout = JpegLayout()
    at = len(b"\xff\xd8")
    while layout.num_scans <= max_scans and layout.num_header_parts <= max_header_parts:
        found = _MARKER.search(data, at)
        if found is None:
            layout.num_header_parts += 0 if layout.num_scans else len(data) - at
            break
        marker, content = found[1][0], found.end()
        if not layout.num_scans:
            layout.num_header_parts += content - at - 1  # the bytes passed over, and the marker itself
        at = content
        if marker in _BARE:
            continue
        if marker == _END:
            layout.has_end = True
            break
        if marker == _START or content + 2 > len(data):
            break
        (num_bytes,) = struct.unpack_from(">H", data, content)
        if num_bytes < 2:
            break
        at = content + num_bytes
        _note_segment(layout, marker, data[content + 2 : at])
    return layout


def _note_segment(layout: JpegLayout, marker: int, content: bytes) -> None:
    if marker in _FRAMES and len(content) >= 6 and not layout.width_px:
        layout.height_px, layout.width_px = struct.unpack_from(">HH", content, 1)
        layout.is_progressive = marker in _PROGRESSIVE
        layout.precision = {content[position]: {} for position in range(6, len(content), 3)}
    elif marker == _SCAN:
        layout.num_scans += 1
        num_components = content[0] if content else 0
        first, last, bits = (*content[1 + 2 * num_components :], 0, 0, 0)[:3]
        for component in content[1 : 1 + 2 * num_components : 2]:
            told = layout.precision.setdefault(component, {})
            told.update(dict.fromkeys(range(first, min(last + 1, NUM_COEFFICIENTS)), bits & 15))


MAX_PIXELS = 89_478_485
"""A quarter of a GiB as RGB: the size from which Pillow itself suspects a decompression bomb."""
MAX_REDUCED_PIXELS = 4 * MAX_PIXELS
"""A JPEG up to here is read at half its width and height, which the format allows without decoding all pixels."""
MAX_CODED_PIXELS = 4 * MAX_PIXELS
"""Pixels of all pictures that an AVIF or HEIC file is put together from: tiles and canvases, transparency too."""
MAX_SCANNED_PIXELS = 1 << 30
"""Pixels times scans of a JPEG: twelve scans of the largest picture, where a progressive one has about ten. A scan
that says nothing takes 1 ns a pixel (measured)."""
MAX_SCANS = 1000
"""Scans of a JPEG of any size."""
MAX_PARTS = 1 << 16
"""Parts (chunks, segments, blocks) of a file; more only where they are ``PART_BYTES`` large on average."""
PART_BYTES = 1 << 12
MAX_COMPRESSED_PARTS = 256
"""Compressed texts and profiles of a PNG, each of which may unpack to a MiB."""
MAX_GIF_BLOCKS = 1 << 14
"""Blocks of at most 255 bytes before the first picture of a GIF."""
MAX_RUN_LENGTH_BYTES = 1 << 23
"""Size of a run-length encoded BMP, which Pillow decodes in Python, two bytes at a time."""
MAX_STRIPS = 1 << 19
"""Strips or tiles of a TIFF: more than tiles of 16 x 16 in the largest picture."""

_PNG_COMPRESSED = frozenset((b"iCCP", b"zTXt", b"iTXt"))
_TIFF_STRIPS = frozenset((273, 279, 324, 325))
_TIFF_JPEG = 7


def check_work(data: bytes) -> int:
    """Refuse a file that would make the decoder work too much, by its own parts; other formats are not looked at.

    Args:
        data: The whole file.

    Returns:
        The number of pixels of all pictures that an AVIF or HEIC file is put together from; 0 for other formats, where
        the size of the picture says it.

    Raises:
        PictureTooLargeError: Too many pixels in all scans or pictures, or too many parts; the message is the reason.
        DecodeError: The parts of an AVIF or HEIC file are damaged, or coded in a way that is not read.
    """
    if find_kind(data[:HEAD_BYTES]) is not None:
        return _count_isobmff(data)
    if data[:2] == b"\xff\xd8":
        _check_jpeg(data)
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        _check_png(data)
    elif data[:3] == b"GIF":
        _check_gif(data)
    elif data[:2] == b"BM":
        _check_bmp(data)
    elif data[:2] in (b"II", b"MM"):
        _check_tiff(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        _check_webp(data)
    return 0


def check_pixels(width_px: int, height_px: int, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse a picture by its size.

    Raises:
        PictureTooLargeError: More than ``max_pixels``.
    """
    if width_px * height_px > max_pixels:
        raise PictureTooLargeError(
            f"the picture has {width_px} x {height_px} pixels; at most {max_pixels:,} are decoded"
            + (f" (of a JPEG with one scan {MAX_REDUCED_PIXELS:,})" if max_pixels == MAX_PIXELS else "")
        )


def _check_jpeg(data: bytes) -> None:
    layout = read_jpeg_layout(data, max_scans=0, max_header_parts=_count_allowed(data))
    _check_parts(data, layout.num_header_parts)
    num_pixels = layout.width_px * layout.height_px
    num_scans_allowed = 1 if num_pixels > MAX_PIXELS else MAX_SCANNED_PIXELS // max(num_pixels, 1)
    num_scans_allowed = min(num_scans_allowed, MAX_SCANS)
    # Counting the marker anywhere is fast and never too low; a thumbnail or a film in the file may make it too high.
    if data.count(b"\xff\xda") <= num_scans_allowed:
        return
    layout = read_jpeg_layout(data, max_scans=num_scans_allowed, max_header_parts=_count_allowed(data))
    if layout.num_scans > num_scans_allowed:
        raise PictureTooLargeError(
            f"the picture has {layout.width_px} x {layout.height_px} pixels in more than {num_scans_allowed:,} scans; "
            f"save it again with fewer scans, or smaller"
        )


def _check_png(data: bytes) -> None:
    at, num_parts, num_compressed = 8, 0, 0
    num_allowed = _count_allowed(data)
    while at + 8 <= len(data) and num_parts <= num_allowed and num_compressed <= MAX_COMPRESSED_PARTS:
        num_bytes, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            break
        num_parts += 1
        num_compressed += kind in _PNG_COMPRESSED
        at += num_bytes + 12
    _check_parts(data, num_parts)
    if num_compressed > MAX_COMPRESSED_PARTS:
        raise PictureTooLargeError(
            f"the PNG has more than {MAX_COMPRESSED_PARTS} compressed texts and profiles; save it without them"
        )


def _check_gif(data: bytes) -> None:
    """Count the blocks before the first picture; those of the picture itself are the decoder's, and fast."""
    at, num_blocks = 13, 0
    if len(data) > 10 and data[10] & 0x80:
        at += 3 << ((data[10] & 7) + 1)
    while at + 1 < len(data) and num_blocks <= MAX_GIF_BLOCKS:
        if data[at] != 0x21:  # of an extension; anything but a picture is passed over byte by byte
            if data[at] in (0x2C, 0x3B):
                break
            num_blocks, at = num_blocks + 1, at + 1
            continue
        at += 2
        while at < len(data) and data[at] and num_blocks <= MAX_GIF_BLOCKS:
            num_blocks, at = num_blocks + 1, at + 1 + data[at]
        num_blocks, at = num_blocks + 1, at + 1
    if num_blocks > MAX_GIF_BLOCKS:
        raise PictureTooLargeError(f"the GIF has more than {MAX_GIF_BLOCKS:,} blocks before its first picture")


def _check_bmp(data: bytes) -> None:
    if len(data) < 34 or len(data) <= MAX_RUN_LENGTH_BYTES:
        return
    (compression,) = struct.unpack_from("<I", data, 30)
    if compression in (1, 2):
        raise PictureTooLargeError(
            f"the BMP is run-length encoded and has {len(data):,} bytes; at most {MAX_RUN_LENGTH_BYTES:,} are decoded"
        )


def _check_webp(data: bytes) -> None:
    """Look at the size and the chunks: when a WebP is opened, Pillow lays out two canvases and a list of the frames."""
    at, num_parts, num_allowed = 12, 0, _count_allowed(data)
    while at + 8 <= len(data) and num_parts <= num_allowed:
        num_parts += 1
        at += 8 + (int.from_bytes(data[at + 4 : at + 8], "little") + 1 & ~1)
    _check_parts(data, num_parts)
    kind, start = data[12:16], 20
    if kind == b"VP8X" and len(data) >= start + 10:
        width_px, height_px = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (start + 4, start + 7))
    elif kind == b"VP8L" and len(data) >= start + 5:
        both = int.from_bytes(data[start + 1 : start + 5], "little")
        width_px, height_px = (both & 0x3FFF) + 1, (both >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 " and len(data) >= start + 10:
        width_px, height_px = (side & 0x3FFF for side in struct.unpack_from("<HH", data, start + 6))
    else:
        return
    check_pixels(width_px, height_px)


def _count_isobmff(data: bytes) -> int:
    pictures = count_coded_pictures(data, _count_allowed(data))
    check_pixels(*pictures.largest, MAX_PIXELS)
    if pictures.num_pixels > MAX_CODED_PIXELS:
        raise PictureTooLargeError(
            f"the file is put together from pictures of {pictures.num_pixels:,} pixels (tiles, transparency, frames "
            f"that are not shown); at most {MAX_CODED_PIXELS:,} are decoded"
        )
    return pictures.num_pixels


def _check_tiff(data: bytes) -> None:
    """Look at the first directory: the number of strips, and the scans of those that are JPEG."""
    found = read_tiff_directory(data)
    for tag in _TIFF_STRIPS & found.keys():
        if found[tag][1] > MAX_STRIPS:
            raise PictureTooLargeError(
                f"the TIFF has {found[tag][1]:,} strips or tiles; at most {MAX_STRIPS:,} are read"
            )
    if found.get(259, (0, 0, 0))[2] != _TIFF_JPEG:
        return
    # Strips may share their bytes, so that each may have every scan of the file.
    num_pixels = found.get(256, (0, 0, 0))[2] * found.get(257, (0, 0, 0))[2]
    num_strips = max((found[tag][1] for tag in _TIFF_STRIPS & found.keys()), default=1)
    num_scans = max(1, data.count(b"\xff\xda") - num_strips + 1)
    if num_scans > 1 and num_pixels * num_scans > MAX_SCANNED_PIXELS:
        raise PictureTooLargeError(f"the TIFF holds JPEG of {num_pixels:,} pixels in up to {num_scans:,} scans")


def read_tiff_directory(data: bytes) -> dict[int, tuple[int, int, int]]:
    """Return type, number of values, and value or address of each tag of the first directory."""
    order = "<" if data[:2] == b"II" else ">"
    is_big = data[2:4] in (b"\x2b\0", b"\0\x2b")
    address, count, entry = ("Q", "Q", "HHQ8s") if is_big else ("I", "H", "HHI4s")
    found: dict[int, tuple[int, int, int]] = {}
    try:
        (at,) = struct.unpack_from(order + address, data, 8 if is_big else 4)
        (num_tags,) = struct.unpack_from(order + count, data, at)
        at += struct.calcsize(order + count)
        if num_tags > MAX_PARTS:
            raise PictureTooLargeError(f"the TIFF has {num_tags:,} tags; at most {MAX_PARTS:,} are read")
        for _ in range(num_tags):
            tag, kind, num_values, value = struct.unpack_from(order + entry, data, at)
            short = kind == 3 and num_values == 1
            (number,) = struct.unpack_from(order + ("H" if short else address), value)
            found.setdefault(tag, (kind, num_values, number))
            at += struct.calcsize(order + entry)
    except struct.error:  # the file ends early; Pillow says so
        pass
    return found


def _count_allowed(data: bytes) -> int:
    return MAX_PARTS + len(data) // PART_BYTES


def _check_parts(data: bytes, num_parts: int) -> None:
    if num_parts > _count_allowed(data):
        raise PictureTooLargeError(f"the file has more than {_count_allowed(data):,} parts; save the picture again")


LARGE_PIXELS = 4_000_000
"""From here on the C library is asked to give freed memory back: it keeps blocks of up to 32 MiB for itself."""


class PixelBudget:
    """Lets work on pictures begin as long as all of it together stays below a number of pixels, in order of arrival.

    A thread that holds a part of the budget must not ask for another part: two such threads could wait for each other
    for ever.

    Attributes:
        num_pixels: The budget.
        num_held: Pixels of the pictures in work now.
    """

    def __init__(self, num_pixels: int) -> None:
        self.num_pixels = num_pixels
        self.num_held = 0
        self._turns: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, num_pixels: int) -> Iterator[None]:
        """Wait until a picture fits, and count it until the block is left.

        Args:
            num_pixels: Size of the picture; one that is larger than the budget takes all of it.
        """
        taken = min(num_pixels, self.num_pixels)
        turn = object()
        with self._changed:
            self._turns.append(turn)
            try:
                self._changed.wait_for(lambda: self._turns[0] is turn and self.num_held + taken <= self.num_pixels)
                self.num_held += taken
            finally:
                self._turns.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self.num_held -= taken
                self._changed.notify_all()
            if taken >= LARGE_PIXELS:
                _give_memory_back()


BUDGET = PixelBudget(MAX_PIXELS)
"""The budget of this process, over all its pools of threads."""


def _find_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not the GNU C library, or not Linux
        return None


_TRIM = _find_trim()


def _give_memory_back() -> None:
    if _TRIM is not None:
        _TRIM(0)
