"""A picture however it is given: a path, the bytes of a file, or a Pillow picture of any mode; and small JPEGs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from vitrieve.data.convert import convert_to_rgb
from vitrieve.data.decode import Box, crop_to_box, open_picture, read_image_bytes
from vitrieve.errors import ConfigError, DecodeError
from vitrieve.quoting import quote_name

Picture = str | Path | bytes | Image.Image
"""A path, the bytes of an image file, or a Pillow picture."""
JPEG_QUALITY = 85


@contextmanager
def open_any_picture(picture: Picture, name: str, *, box: Box | None = None) -> Iterator[Image.Image]:
    """Turn a picture into RGB by the rule of ``decode.py``, and let it count in the budget of pixels in the block.

    Args:
        picture: A path, the bytes of an image file, or a Pillow picture of any mode, which is not changed.
        name: What a message calls it; the path is added to it.
        box: The region to cut out, in pixels of the upright picture; None for all of it.

    Yields:
        The RGB picture; the caller keeps no reference to it.

    Raises:
        DecodeError: The picture cannot be read or decoded, or the box holds no pixel of it.
        ConfigError: Something else than a picture.
    """
    if not isinstance(picture, (str, Path, bytes, Image.Image)):
        raise ConfigError(
            f"{name} is a {type(picture).__name__}; give a path, the bytes of a file, or a Pillow picture."
        )
    with _named(picture, name):
        if isinstance(picture, Image.Image):
            yield crop_to_box(_convert(picture), box)
            return
        data = picture if isinstance(picture, bytes) else read_image_bytes(Path(picture))
        with open_picture(data, box=box) as opened:
            yield opened


def _convert(image: Image.Image) -> Image.Image:
    try:
        return convert_to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow reads the pixels of an opened file only now, and a damaged one raises anything
        raise DecodeError(str(error) or type(error).__name__) from None


@contextmanager
def _named(picture: Picture, name: str) -> Iterator[None]:
    """Begin the message of a ``DecodeError`` with what the picture is; its class stays."""
    try:
        yield
    except DecodeError as error:
        where = f" {quote_name(picture)}" if isinstance(picture, (str, Path)) else ""
        raise type(error)(f"{name}{where}: {error}.") from None


def shrink(data: bytes, side_px: int, box: Box | None = None) -> bytes:
    """Make a small JPEG of an image file.

    Args:
        data: The file.
        side_px: Longest side of the copy; a smaller picture keeps its size.
        box: The region to show; None for all of it.

    Raises:
        DecodeError: No picture, or no pixel of it in the box.
    """
    with open_picture(data, box=box) as image:
        image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS, reducing_gap=3.0)
        return encode_jpeg(image)


def encode_jpeg(image: Image.Image, quality: int = JPEG_QUALITY) -> bytes:
    """Encode an RGB picture as JPEG, of a quality in [1, 95]."""
    jpeg = io.BytesIO()
    image.save(jpeg, format="JPEG", quality=quality, optimize=True)
    return jpeg.getvalue()


def to_data_uri(jpeg: bytes) -> str:
    """Return a JPEG as an address that holds the picture itself, for pages in one file."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
