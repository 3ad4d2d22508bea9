"""Decoded pictures of any mode as RGB, turned as their EXIF orientation says.

- Grey of 16 bits: divided by 257, so that 65535 is white. Grey of 32 bits or floating point carries no range
  of its own: its smallest finite value becomes black, its largest white, what is not finite black.
- Transparency (an alpha channel, a palette with alpha, a transparent color): laid on white.
- Palette, bilevel, CMYK, YCbCr, Lab and grey become RGB by Pillow's conversion. Color profiles are ignored.
- EXIF orientation is applied; an unreadable EXIF block counts as none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import ExifTags, Image

NUM_ROWS_AT_ONCE = 1 << 10
"""Rows of a picture that are computed with together, to bound the memory."""

_UNORIENT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """Turn a Pillow picture of any mode into RGB, by the rule of this module, EXIF orientation included.

    Args:
        image: Pixels of an opened file are read now, and stay in it; it is not changed otherwise.

    Returns:
        A new RGB picture. It carries no EXIF or other information, so converting it again changes nothing.

    Raises:
        OSError: The picture was opened from a file and its pixels cannot be decoded (a damaged file may raise
            any other exception too), or cannot become RGB.
    """
    image.load()
    # After load: TIFF and HEIF turn the picture themselves and then report no orientation.
    method = _UNORIENT.get(read_orientation(image))
    rgb = _convert_mode(image)
    turned = rgb if method is None else rgb.transpose(method)
    turned.info.clear()  # the orientation among it would turn the picture a second time
    return turned


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened picture, 1 to 8; 1 where it says none."""
    try:
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
        return orientation if orientation in _UNORIENT else 1
    except MemoryError:
        raise
    except Exception:  # a damaged EXIF block raises anything; the picture itself is still good
        return 1


def _convert_mode(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _grey_16_bits_to_rgb(image)
    if image.mode in ("I", "F"):
        return _unranged_grey_to_rgb(image)
    try:
        return _convert_by_pillow(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow asserts what a damaged file may lack, for example a palette
        raise OSError(f"its pixels of layout {image.mode} cannot become RGB ({type(error).__name__})") from error


def _convert_by_pillow(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # Pillow converts premultiplied grey to LA only
        image = image.convert("LA")
    if image.has_transparency_data:
        colored = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(colored, mask=colored.getchannel("A"))
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
