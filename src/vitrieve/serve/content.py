"""What bytes are, by their beginning: the header and the file's name are only claims. Next file: ``body.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Content = Literal["image", "json", "unknown"]

NUM_BYTES = 32
"""Enough to tell."""

_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_BEGINNINGS: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    ("image/jpeg", lambda head: head.startswith(b"\xff\xd8\xff")),
    ("image/png", lambda head: head.startswith(b"\x89PNG\r\n\x1a\n")),
    ("image/gif", lambda head: head.startswith((b"GIF87a", b"GIF89a"))),
    ("image/webp", lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP"),
    ("image/tiff", lambda head: head.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"))),
    ("image/avif", lambda head: head[4:8] == b"ftyp" and head[8:12] in _AVIF_BRANDS),
    ("image/heic", lambda head: head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS),
    ("image/bmp", lambda head: head.startswith(b"BM")),
)
"""Media type and its test, for the formats of ``data/decode.py``."""


def find_image_type(head: bytes) -> str | None:
    """Name the media type of an image by its first bytes; None when they begin no accepted format.

    >>> find_image_type(b"GIF89a..."), find_image_type(b"<svg xmlns=")
    ('image/gif', None)
    """
    return next((media_type for media_type, begins in _BEGINNINGS if begins(head)), None)


def recognise(data: bytes) -> Content:
    """Tell an image and a JSON object apart, whatever the request's header says.

    >>> recognise(b' {"id": "a.jpg"}')
    'json'
    """
    if find_image_type(data[:NUM_BYTES]):
        return "image"
    return "json" if data[:NUM_BYTES].lstrip()[:1] == b"{" else "unknown"
