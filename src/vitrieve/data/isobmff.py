"""AVIF and HEIC files (ISO base media): which of the two a file is, and the pictures that it makes the decoder work on.

A file announces the size of its canvas: the stream behind it may hold a larger picture, pictures that are never shown,
or a grid that asks for the same tile thousands of times. So the boxes, the items and the headers of the streams are
read; ``work.py`` refuses what is too much.

Source:
    ISO/IEC 14496-12 (boxes) and 23008-12 (items); the AV1 bitstream specification 5.3 to 5.5; ITU-T H.265 7.3.1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from vitrieve.errors import DecodeError, PictureTooLargeError

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
