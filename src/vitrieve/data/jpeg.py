"""The markers of a JPEG file, walked without decoding: how often its pixels will be gone over, and whether it ends."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

END_MARKER = b"\xff\xd9"
NUM_COEFFICIENTS = 64
"""Of a block of 8 x 8 pixels."""

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
        precision: For each component of a progressive picture, the bit up to which each coefficient is known; 0 is
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
        layout.precision = {content[place]: {} for place in range(6, len(content), 3)}
    elif marker == _SCAN:
        layout.num_scans += 1
        num_components = content[0] if content else 0
        first, last, bits = (*content[1 + 2 * num_components :], 0, 0, 0)[:3]
        for component in content[1 : 1 + 2 * num_components : 2]:
            told = layout.precision.setdefault(component, {})
            told.update(dict.fromkeys(range(first, min(last + 1, NUM_COEFFICIENTS)), bits & 15))
