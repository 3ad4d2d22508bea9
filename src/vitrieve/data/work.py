"""What a file would make the decoder do, found before it begins; ``decode.py`` refuses what is too much.

A picture's size in bytes and in pixels does not bound the work. A JPEG of 400 KB may go over its pixels a thousand
times. A file may consist of millions of empty parts, each of which costs a step of an interpreter. An AVIF or HEIC
file announces the size of its canvas: the stream behind it may hold a larger picture, pictures that are never shown,
or a grid that asks for the same tile thousands of times. And many pictures may be decoded at once, for which there is
``BUDGET``.

Source:
    ITU-T T.81 (JPEG); ISO/IEC 14496-12 (boxes) and 23008-12 (items); the AV1 bitstream specification 5.3 to 5.5; ITU-T
    H.265 7.3.1.
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
from typing import Literal, NamedTuple

from vitrieve.errors import DecodeError, PictureTooLargeError

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


HEAD_BYTES = 256
"""Beginning of a file that tells what it is; a list of brands that goes on behind it is cut."""
MAX_ITEMS = 1000
"""Pictures, tiles and other items of a file, as libheif bounds them; other readers compare each with all others."""
MAX_SHARING = 4
"""How often the bytes of a file may be part of an item, on average: tiles that look alike may share theirs."""
MAX_DEPTH = 8
"""Pictures that are made of pictures that are made of pictures."""

_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_GENERAL_BRANDS = frozenset((b"mif1", b"msf1"))
_UNIQUE = frozenset((b"ftyp", b"meta", b"moov", b"pitm", b"iinf", b"iloc", b"iref", b"iprp", b"ipco", b"idat"))
"""Readers differ in which of two they take."""

Kind = Literal["avif", "heic"]


def find_kind(head: bytes) -> Kind | None:
    r"""Tell AVIF and HEIC apart by the brands that a file names; None where it is neither.

    The major brand may be a general one (``mif1``), which says only that there are pictures. The compatible brands then
    say how they are coded.

    Args:
        head: The first ``HEAD_BYTES`` of the file, or more.

    >>> find_kind(b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif"), find_kind(b"\0\0\0\x14ftypmif1\0\0\0\0mif1")
    ('avif', 'heic')
    """
    if head[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(head[:4], "big"), len(head), HEAD_BYTES)
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))]
    for brand in brands:
        if brand in _AVIF_BRANDS:
            return "avif"
        if brand in _HEIC_BRANDS:
            return "heic"
    return "heic" if brands[0] in _GENERAL_BRANDS else None


class CodedPictures(NamedTuple):
    """What a decoder will work on to show a file.

    Attributes:
        num_pixels: Pixels of all pictures together: tiles, canvases, transparency, and pictures that are not shown.
        largest: Width and height of the largest of them.
    """

    num_pixels: int
    largest: tuple[int, int]


def count_coded_pictures(data: bytes, max_parts: int) -> CodedPictures:
    """Count the pictures that the decoder works on for the first, or the primary, picture of a file.

    Args:
        data: The whole file, of a kind that ``find_kind`` names.
        max_parts: Most boxes, entries and units that are looked at.

    Raises:
        DecodeError: The boxes are damaged, or keep a picture in a way that is not read here.
        PictureTooLargeError: More parts or items than are looked at.
    """
    try:
        return _IsobmffFile(data, max_parts).count()
    except (struct.error, IndexError):
        raise DecodeError("the file is damaged: its boxes end early") from None


@dataclass
class _Item:
    """A picture, or a part of one, by its number in the file."""

    kind: bytes = b""
    extents: list[tuple[int, int]] = field(default_factory=list)
    method: int = 0
    properties: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    is_auxiliary: bool = False


class _Numbers:
    """Reads numbers of changing widths one after the other."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data, self._at, self._end = data, at, end

    def read(self, num_bytes: int) -> int:
        """Read an unsigned number of so many bytes; raise ``IndexError`` beyond the end."""
        start, self._at = self._at, self._at + num_bytes
        if self._at > self._end:
            raise IndexError
        return int.from_bytes(self._data[start : self._at], "big")


class _Bits:
    """Reads numbers of changing widths in bits."""

    def __init__(self, data: bytes) -> None:
        self._number, self._num_left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, num_bits: int) -> int:
        """Read an unsigned number of so many bits; raise ``IndexError`` beyond the end."""
        self._num_left -= num_bits
        if self._num_left < 0:
            raise IndexError
        return self._number >> self._num_left & (1 << num_bits) - 1


class _IsobmffFile:
    """The boxes of one AVIF or HEIC file, whose number is bounded."""

    def __init__(self, data: bytes, max_parts: int) -> None:
        self._data = data
        self._max_parts = self._num_left = max_parts
        self._items: dict[int, _Item] = {}
        self._properties: list[tuple[bytes, int, int]] = []
        self._meta_data = (0, 0)
        self._num_bytes_left = MAX_SHARING * len(data)
        self._pixels: dict[int, int] = {}
        self._largest = (0, 0)

    def count(self) -> CodedPictures:
        """Count the pixels of all items and of all tracks."""
        boxes = self._read_boxes(0, len(self._data))
        num_pixels = 0
        if b"meta" in boxes:
            num_pixels += self._count_items(*boxes[b"meta"])
        if b"moov" in boxes:
            num_pixels += self._count_tracks(*boxes[b"moov"])
        return CodedPictures(num_pixels, self._largest)

    def _pass_part(self, num_parts: int = 1) -> None:
        self._num_left -= num_parts
        if self._num_left < 0:
            raise PictureTooLargeError(f"the file has more than {self._max_parts:,} parts; save the picture again")

    def _list_boxes(self, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """Yield the name of each box, and where its content begins and ends."""
        while at + 8 <= end:
            self._pass_part()
            num_bytes, kind = struct.unpack_from(">I4s", self._data, at)
            start = at + 8
            if num_bytes == 1:
                (num_bytes,) = struct.unpack_from(">Q", self._data, start)
                start += 8
            stop = end if num_bytes == 0 else at + num_bytes
            if stop < start:
                raise DecodeError("the file is damaged: a box is smaller than its own head")
            yield kind, start, min(stop, end)
            at = stop

    def _read_boxes(self, at: int, end: int) -> dict[bytes, tuple[int, int]]:
        boxes: dict[bytes, tuple[int, int]] = {}
        for kind, start, stop in self._list_boxes(at, end):
            if kind in boxes and kind in _UNIQUE:
                raise DecodeError(f"the file is damaged: it has two boxes {kind.decode('latin-1')!r}")
            boxes.setdefault(kind, (start, stop))
        return boxes

    # --- items: pictures, tiles, transparency ---

    def _count_items(self, start: int, end: int) -> int:
        boxes = self._read_boxes(start + 4, end)
        self._meta_data = boxes.get(b"idat", (0, 0))
        for name, read in (
            (b"iinf", self._read_kinds),
            (b"iloc", self._read_locations),
            (b"iref", self._read_references),
            (b"iprp", self._read_properties),
        ):
            if name in boxes:
                read(*boxes[name])
        if b"pitm" not in boxes:
            return 0
        start, end = boxes[b"pitm"]
        primary = _Numbers(self._data, start + 4, end).read(4 if self._data[start] else 2)
        auxiliary = [number for number, item in self._items.items() if item.is_auxiliary and number != primary]
        return sum(self._count_item(number, MAX_DEPTH) for number in (primary, *auxiliary))

    def _get_item(self, number: int) -> _Item:
        self._pass_part()
        if number not in self._items and len(self._items) == MAX_ITEMS:
            raise PictureTooLargeError(f"the file has more than {MAX_ITEMS:,} items; save the picture again")
        return self._items.setdefault(number, _Item())

    def _read_kinds(self, start: int, end: int) -> None:
        start += 8 if self._data[start] else 6
        for kind, at, stop in self._list_boxes(start, end):
            if kind == b"infe" and self._data[at] >= 2:
                num_bytes = 2 if self._data[at] == 2 else 4
                number = _Numbers(self._data, at + 4, stop).read(num_bytes)
                self._get_item(number).kind = self._data[at + 6 + num_bytes : at + 10 + num_bytes]

    def _read_locations(self, start: int, end: int) -> None:
        version = self._data[start]
        numbers = _Numbers(self._data, start + 4, end)
        widths, more_widths = numbers.read(1), numbers.read(1)
        offset_width, length_width, base_width = widths >> 4, widths & 15, more_widths >> 4
        index_width = more_widths & 15 if version else 0
        number_width = 4 if version == 2 else 2
        for _ in range(numbers.read(number_width)):
            item = self._get_item(numbers.read(number_width))
            if item.extents:
                raise DecodeError("the file is damaged: an item has two locations")
            method = numbers.read(2) & 15 if version else 0
            item.method = method
            numbers.read(2)
            base = numbers.read(base_width)
            for _ in range(numbers.read(2)):
                self._pass_part()
                numbers.read(index_width)
                item.extents.append((base + numbers.read(offset_width), numbers.read(length_width)))

    def _read_references(self, start: int, end: int) -> None:
        width = 4 if self._data[start] else 2
        for kind, at, stop in self._list_boxes(start + 4, end):
            numbers = _Numbers(self._data, at, stop)
            item = self._get_item(numbers.read(width))
            item.is_auxiliary |= kind == b"auxl"
            for _ in range(numbers.read(2)):
                target = numbers.read(width)
                self._get_item(target)
                if kind == b"dimg":
                    item.parts.append(target)

    def _read_properties(self, start: int, end: int) -> None:
        for kind, at, stop in self._list_boxes(start, end):
            if kind == b"ipco":
                self._properties += self._list_boxes(at, stop)
            elif kind == b"ipma":
                self._read_associations(at, stop)

    def _read_associations(self, start: int, end: int) -> None:
        number_width = 4 if self._data[start] else 2
        property_width = 2 if self._data[start + 3] & 1 else 1
        numbers = _Numbers(self._data, start + 4, end)
        for _ in range(numbers.read(4)):
            item = self._get_item(numbers.read(number_width))
            for _ in range(numbers.read(1)):
                self._pass_part()
                item.properties.append(numbers.read(property_width) & (1 << 8 * property_width - 1) - 1)

    def _count_item(self, number: int, depth: int) -> int:
        """Count the pixels of a picture and of all that it is made of, as often as it asks for them."""
        if depth == 0:
            raise DecodeError("the file is damaged: its pictures are made of each other")
        if number not in self._pixels:
            item = self._items.get(number, _Item())
            own = self._measure_item(item)
            self._pixels[number] = own + sum(self._count_item(part, depth - 1) for part in item.parts)
        return self._pixels[number]

    def _measure_item(self, item: _Item) -> int:
        found = {}
        for position in item.properties:
            if 0 < position <= len(self._properties):
                kind, start, stop = self._properties[position - 1]
                found[kind] = self._data[start:stop]
        width_px, height_px = struct.unpack_from(">4xII", found.get(b"ispe", bytes(12)))
        canvas = self._note(width_px, height_px)
        content = self._read_content(item)
        if item.kind == b"av01":
            return max(canvas, self._count_av1(found.get(b"av1C", b"")[4:] + content))
        if item.kind == b"hvc1":
            # libheif refuses a picture in the stream that is larger than the item says.
            configuration = found.get(b"hvcC", b"")
            return canvas * self._count_hevc(content, (configuration[21] & 3) + 1 if len(configuration) > 21 else 4)
        if item.kind == b"grid":
            return max(canvas, self._measure_canvas(content, 4))
        if item.kind == b"iovl":
            return max(canvas, self._measure_canvas(content, 10))
        return canvas  # of other codings, too: no decoder here reads them

    def _read_content(self, item: _Item) -> bytes:
        if item.method > 1:
            raise DecodeError("a picture of the file is kept inside another item, which is not read here")
        start, end = self._meta_data if item.method == 1 else (0, len(self._data))
        pieces = []
        for offset, length in item.extents:
            pieces.append(self._data[start + offset : min(start + offset + length, end) if length else end])
            self._num_bytes_left -= len(pieces[-1])
            if self._num_bytes_left < 0:
                raise PictureTooLargeError("the pictures of the file share their bytes too often; save it again")
        return b"".join(pieces)

    def _measure_canvas(self, content: bytes, at: int) -> int:
        """Measure the canvas of a grid or an overlay, which says its size a second time."""
        return self._note(*struct.unpack_from(">II" if content[1] & 1 else ">HH", content, at))

    def _note(self, width_px: int, height_px: int) -> int:
        if width_px * height_px > self._largest[0] * self._largest[1]:
            self._largest = width_px, height_px
        return width_px * height_px

    # --- tracks: the first picture of each ---

    def _count_tracks(self, start: int, end: int) -> int:
        tracks = [(at, stop) for kind, at, stop in self._list_boxes(start, end) if kind == b"trak"]
        return sum(self._count_track(*track) for track in tracks)

    def _count_track(self, start: int, end: int) -> int:
        for name in (b"mdia", b"minf", b"stbl"):
            start, end = self._read_boxes(start, end).get(name, (0, 0))
        boxes = self._read_boxes(start, end)
        if not {b"stsd", b"stsz"} <= boxes.keys() or not {b"stco", b"co64"} & boxes.keys():
            return 0
        size, num_samples = struct.unpack_from(">4xII", self._data, boxes[b"stsz"][0])
        self._pass_part(num_samples)
        if not size:
            (size,) = struct.unpack_from(">I", self._data, boxes[b"stsz"][0] + 12)
        if b"stco" in boxes:
            (offset,) = struct.unpack_from(">8xI", self._data, boxes[b"stco"][0])
        else:
            (offset,) = struct.unpack_from(">8xQ", self._data, boxes[b"co64"][0])
        kinds = [kind for kind, _, _ in self._list_boxes(boxes[b"stsd"][0] + 8, boxes[b"stsd"][1])]
        return self._count_av1(self._data[offset : offset + size]) if kinds == [b"av01"] else 0

    # --- streams ---

    def _count_av1(self, stream: bytes) -> int:
        """Count the pixels of all frames of a stream, by the largest size that its headers allow."""
        at, num_frames, num_pixels = 0, 0, 0
        while at < len(stream):
            self._pass_part()
            kind, has_extension, has_size = stream[at] >> 3 & 15, stream[at] & 4, stream[at] & 2
            at += 2 if has_extension else 1
            num_bytes = len(stream) - at
            if has_size:
                num_bytes, at = _read_leb128(stream, at)
            if kind == 1:
                width_px, height_px, num_pixels_allowed = _read_sequence_header(stream[at : at + min(num_bytes, 1024)])
                self._note(width_px, height_px)
                num_pixels = max(num_pixels, num_pixels_allowed)
            num_frames += kind in (3, 6)
            at += num_bytes
        return num_pixels * max(num_frames, 1)

    def _count_hevc(self, stream: bytes, length_width: int) -> int:
        """Count the pictures of a stream, at least one: each begins with a slice that says so."""
        at, num_pictures = 0, 0
        while at + length_width + 3 <= len(stream):
            self._pass_part()
            num_bytes = int.from_bytes(stream[at : at + length_width], "big")
            at += length_width
            num_pictures += stream[at] >> 1 & 63 < 32 and stream[at + 2] >> 7
            at += num_bytes
        return max(num_pictures, 1)


def _read_leb128(stream: bytes, at: int) -> tuple[int, int]:
    """Read a number of seven bits a byte, the lowest first; return it and where it ends."""
    number = 0
    for position in range(8):
        number |= (stream[at + position] & 127) << 7 * position
        if not stream[at + position] & 128:
            return number, at + position + 1
    raise DecodeError("the file is damaged: a unit of its stream has no length")


def _read_sequence_header(header: bytes) -> tuple[int, int, int]:
    """Read the width and height that a stream announces, and the largest number of pixels that a frame of it may have.

    Only the header of a still picture binds its frame; other frames may choose any size that their bits can say.
    """
    bits = _Bits(header)
    bits.read(4)
    is_reduced = bits.read(1)
    if is_reduced:
        bits.read(5)
    else:
        _pass_operating_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    width_px, height_px = bits.read(width_bits) + 1, bits.read(height_bits) + 1
    return width_px, height_px, width_px * height_px if is_reduced else 1 << width_bits + height_bits


def _pass_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.read(1):  # timing_info_present_flag
        bits.read(64)
        if bits.read(1):  # equal_picture_interval
            num_zeros = 0
            while not bits.read(1):
                num_zeros += 1
            bits.read(min(num_zeros, 32))
        if bits.read(1):  # decoder_model_info_present_flag
            delay_bits = bits.read(5) + 1
            bits.read(42)
    has_display_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:
            bits.read(1)
        if delay_bits and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if has_display_delay and bits.read(1):
            bits.read(4)


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
