"""Bytes to an RGB picture: safely, by one rule for every kind of file, or an error with the reason.

The content decides the format, never the file's name. The rule:

- Formats: JPEG, PNG, WebP, GIF, BMP, TIFF; AVIF where this Pillow was built with it; HEIC where the package
  ``pillow-heif`` is installed. Nothing else is tried.
- Size: more than ``MAX_PIXELS`` pixels in the header is refused before any pixel is decoded.
- Several pictures in one file (animated GIF, WebP, PNG; multi-page TIFF; MPO): the first.
- Grey of 16 bits: divided by 257, so that 65535 is white. Grey of 32 bits or floating point carries no range
  of its own: its smallest finite value becomes black, its largest white, what is not finite black.
- Transparency (an alpha channel, a palette with alpha, a transparent colour): laid on white.
- Palette, bilevel, CMYK, YCbCr, Lab and grey become RGB by Pillow's conversion. Colour profiles are ignored.
- EXIF orientation is applied; an unreadable EXIF block counts as none.
- A damaged or truncated file is an error, never a half-grey picture.

No state of Pillow is changed, so threads may decode at the same time. Next file: ``preprocess.py``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError, features

from vitrieve.data.records import ImageRecord
from vitrieve.errors import DecodeError

MAX_PIXELS = 89_478_485
"""A quarter of a GiB as RGB: the size from which Pillow itself suspects a decompression bomb."""
MAX_FILE_BYTES = 1 << 29
"""More than an uncompressed RGBA picture of MAX_PIXELS; a larger file is not worth reading into memory."""
NUM_ROWS_AT_ONCE = 1 << 10
"""Rows of a floating-point picture that are converted together, to bound the memory."""

_ALWAYS_ACCEPTED = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_SUFFIXES = ("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif")
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES)
"""Files that a reader lists as images. Whether they are, their content decides."""

_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_UNORIENT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageHeader:
    """What a file says about itself before its pixels are decoded.

    Attributes:
        format: Pillow's name of the format, for example ``JPEG``.
        mode: Pillow's name of the pixel layout, for example ``RGB`` or ``I;16``.
        width_px: Stored width, before EXIF orientation.
        height_px: Stored height, before EXIF orientation.
    """

    format: str
    mode: str
    width_px: int
    height_px: int


def read_image(record: ImageRecord) -> Image.Image:
    """Read, decode and crop the image of a record.

    Args:
        record: Its ``path`` is read; its ``box``, if any, is cut out after EXIF orientation.

    Returns:
        An RGB picture of its own, at least 1 x 1 pixels.

    Raises:
        DecodeError: The file cannot be read or decoded, or the box lies outside the picture. The message is
            the reason alone; who reports it adds the ``image_id``.
    """
    return crop_to_box(decode_image(read_image_bytes(record.path)), record.box)


def read_image_bytes(path: Path) -> bytes:
    """Read a whole image file.

    Raises:
        DecodeError: No such file, not a regular file (a pipe would block), too large, or unreadable.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DecodeError("not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise DecodeError(f"the file has {status.st_size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
        return path.read_bytes()
    except OSError as error:
        raise DecodeError(f"the file cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, DecodeError):
            raise
        raise DecodeError(f"the path is not valid: {error}") from error  # a NUL character in it


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Turn the bytes of an image file into an RGB picture, by the rule of this module.

    Args:
        data: The whole file.
        max_pixels: Largest accepted width times height. Pillow's own limit (twice ``MAX_PIXELS``) holds as well.

    Returns:
        A new RGB picture with EXIF orientation applied, at least 1 x 1 pixels.

    Raises:
        DecodeError: Empty, of another format, too large, truncated or damaged; the message is the reason.
    """
    with _open_image(data, max_pixels) as image:
        return convert_to_rgb(image)


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """Turn a Pillow picture of any mode into RGB, by the rule of this module, EXIF orientation included.

    Args:
        image: Pixels of an opened file are read now, and stay in it; it is not changed otherwise.

    Returns:
        A new RGB picture. It carries no EXIF or other information, so converting it again changes nothing.

    Raises:
        OSError: The picture was opened from a file and its pixels cannot be decoded (a damaged file may raise
            any other exception too; ``decode_image`` catches them all).
    """
    image.load()
    # After load: TIFF and HEIF turn the picture themselves and then report no orientation.
    method = _UNORIENT.get(_read_orientation(image))
    rgb = _convert_mode(image)
    turned = rgb if method is None else rgb.transpose(method)
    turned.info.clear()  # the orientation among it would turn the picture a second time
    return turned


def read_header(data: bytes) -> ImageHeader:
    """Read format, mode and stored size without decoding pixels.

    Raises:
        DecodeError: As ``decode_image``, as far as the header shows it.
    """
    with _open_image(data, MAX_PIXELS) as image:
        width_px, height_px = image.size
        return ImageHeader(format=image.format or "unknown", mode=image.mode, width_px=width_px, height_px=height_px)


def read_date_taken(data: bytes) -> str | None:
    """Read from its EXIF block when a picture was taken, by the camera's clock, as text that sorts by time.

    Args:
        data: The whole file.

    Returns:
        For example ``2026-11-23T10:00:00``; None where the file does not say it, or says nonsense.
    """
    try:
        with _open_image(data, MAX_PIXELS) as image:
            exif = image.getexif()
            details = exif.get_ifd(ExifTags.IFD.Exif)
            texts = (details.get(ExifTags.Base.DateTimeOriginal), details.get(ExifTags.Base.DateTimeDigitized))
            text = next((one for one in (*texts, exif.get(ExifTags.Base.DateTime)) if one), "")
            return datetime.strptime(str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S").isoformat()
    except ValueError:  # no such date, or the DecodeError of a damaged file, whose pixels may be good nevertheless
        return None


def crop_to_box(image: Image.Image, box: tuple[float, float, float, float] | None) -> Image.Image:
    """Cut ``(x_1, y_1, x_2, y_2)``, rounded to whole pixels and limited to the picture; None is the whole picture.

    Raises:
        DecodeError: No pixel of the picture lies inside the box.
    """
    if box is None:
        return image
    x_1, y_1, x_2, y_2 = (round(side) for side in box)
    inside = (max(x_1, 0), max(y_1, 0), min(x_2, image.width), min(y_2, image.height))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise DecodeError(f"the box {box} holds no pixel of the picture ({image.width} x {image.height})")
    return image.crop(inside)


@contextlib.contextmanager
def _open_image(data: bytes, max_pixels: int) -> Iterator[ImageFile.ImageFile]:
    """Open the header, and turn whatever Pillow raises in the block into a ``DecodeError``.

    Malformed files raise far more than ``OSError`` inside Pillow (SyntaxError, KeyError, struct.error,
    OverflowError, MemoryError, ...), so every exception is taken as a statement about the file.
    """
    if not data:
        raise DecodeError("the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=_accepted_formats(_is_heif(data))) as image:
            if min(image.size) < 1:
                raise DecodeError(f"the picture has no pixels ({image.width} x {image.height})")
            if image.width * image.height > max_pixels:
                raise DecodeError(_too_large_reason(f"{image.width} x {image.height}", max_pixels))
            yield image
    except DecodeError:
        raise
    except UnidentifiedImageError:
        raise DecodeError(_unidentified_reason(data)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DecodeError(_too_large_reason("suspiciously many", max_pixels)) from None
    except Exception as error:
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        raise DecodeError(f"the file is damaged: {kind}{error}") from error


@functools.cache
def _accepted_formats(is_heif: bool) -> tuple[str, ...]:
    """List Pillow's names of the accepted formats; HEIF registers its reader with Pillow once, when first met."""
    avif = ("AVIF",) if features.check("avif") else ()
    if not is_heif:
        return _ALWAYS_ACCEPTED + avif
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return _ALWAYS_ACCEPTED + avif
    return (*_ALWAYS_ACCEPTED, *avif, "HEIF")


def _is_heif(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS


def _unidentified_reason(data: bytes) -> str:
    if _is_heif(data) and "HEIF" not in _accepted_formats(True):
        return "HEIC pictures need the package pillow-heif (pip install pillow-heif)"
    accepted = ", ".join(_accepted_formats(_is_heif(data)))
    return f"no readable picture of an accepted format ({accepted}); the content decides, not the file's name"


def _too_large_reason(size: str, max_pixels: int) -> str:
    return f"the picture has {size} pixels; at most {max_pixels:,} are decoded"


def _read_orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block raises anything; the picture itself is still good
        return 1


def _convert_mode(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _grey_16_bits_to_rgb(image)
    if image.mode in ("I", "F"):
        return _unranged_grey_to_rgb(image)
    if image.mode == "La":  # Pillow converts premultiplied grey to LA only
        image = image.convert("LA")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(coloured, mask=coloured.getchannel("A"))
        return white
    return image.convert("RGB")


def _grey_16_bits_to_rgb(image: Image.Image) -> Image.Image:
    """Scale by 1/257; Pillow's own conversion clips every value above 255 to white."""
    values = np.asarray(image)  # (H, W), 0 to 65535
    to_grey = ((np.arange(1 << 16) + 128) // 257).astype(np.uint8)
    transparent: Any = image.info.get("transparency")
    if isinstance(transparent, int):
        to_grey[transparent] = 255
    return Image.fromarray(to_grey[values]).convert("RGB")


def _unranged_grey_to_rgb(image: Image.Image) -> Image.Image:
    """Stretch the finite values from black to white; all equal or none finite gives black."""
    values = np.asarray(image)  # (H, W) int32 or float32
    grey = np.zeros(values.shape, dtype=np.uint8)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if high > low:
        for first in range(0, len(values), NUM_ROWS_AT_ONCE):  # float64 for all at once takes a gigabyte
            rows = values[first : first + NUM_ROWS_AT_ONCE].astype(np.float64)
            stretched = np.rint((rows - low) * (255 / (high - low)))
            grey[first : first + NUM_ROWS_AT_ONCE] = np.where(np.isfinite(rows), stretched, 0)
    return Image.fromarray(grey).convert("RGB")
