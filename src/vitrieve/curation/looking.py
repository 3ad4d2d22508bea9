"""What the pixels of one picture tell: its size, sharpness and darkness, and whether another one is the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from vitrieve.data.check import map_ahead
from vitrieve.data.decode import decode_image, describe_failure, get_scale, has_several_pictures, read_image_bytes
from vitrieve.data.records import ImageRecord
from vitrieve.errors import DecodeError
from vitrieve.machine import count_cores
from vitrieve.progress import track

LOOKED_AT_PX = 256
"""Longest side of the copy on which sharpness and lightness are measured, so that sizes compare."""
LIGHT_PERCENTILE = 99
"""The lightest hundredth of a picture tells whether anything in it is lit."""


class Look(NamedTuple):
    """What is kept of a picture that was looked at.

    Attributes:
        width_px: Width, after EXIF orientation and cropping to the box.
        height_px: Height.
        sharpness: Mean square of the Laplacian of the gray picture at ``LOOKED_AT_PX``, of gray values in [0, 255].
        lightness: Value that the strongest channel of 99 % of the pixels does not exceed, in [0, 1]; pure blue has 1.
        num_bytes: Size of the file.
        digest: SHA-256 of the size and the RGB pixels: equal for the same picture, whatever file it comes from. Of an
            animation or a file of pages, the bytes of the file count, too: only its first picture is decoded.
    """

    width_px: int
    height_px: int
    sharpness: float
    lightness: float
    num_bytes: int
    digest: bytes


def look_at_all(
    records: Sequence[ImageRecord], *, num_threads: int | None = None, show_progress: bool = False
) -> list[Look | str]:
    """Decode every picture once, in order; the reason stands where one cannot be decoded.

    Args:
        records: The pictures.
        num_threads: Decoding threads; None: one for each core, up to four.
        show_progress: Report progress on standard error.
    """
    looks = map_ahead(_look_at, records, num_threads or min(4, count_cores()))
    return list(track(looks, "look", total=len(records), is_shown=show_progress))


def _look_at(record: ImageRecord) -> Look | str:
    try:
        data = read_image_bytes(record.path)
        image = decode_image(data, box=record.box)
        is_first_of_several = has_several_pictures(data)
    except (DecodeError, MemoryError) as error:
        return describe_failure(error)
    digest = hashlib.sha256(f"{image.width} x {image.height} ".encode())
    digest.update(image.tobytes())
    if is_first_of_several:
        digest.update(data)
    scale = get_scale(image)
    sharpness, lightness = measure_pixels(image)
    return Look(
        width_px=round(image.width * scale),
        height_px=round(image.height * scale),
        sharpness=sharpness,
        lightness=lightness,
        num_bytes=len(data),
        digest=digest.digest(),
    )


def measure_pixels(image: Image.Image) -> tuple[float, float]:
    """Return sharpness and lightness of an RGB picture, as ``Look`` explains them.

    >>> measure_pixels(Image.new("RGB", (40, 30), (0, 0, 51)))
    (0.0, 0.2)
    """
    small = image.copy()
    small.thumbnail((LOOKED_AT_PX, LOOKED_AT_PX), Image.Resampling.BILINEAR)
    lightness = float(np.percentile(np.asarray(small).max(axis=2), LIGHT_PERCENTILE)) / 255
    gray = np.asarray(small.convert("L"), dtype=np.float64)
    if min(gray.shape) < 3:
        return 0.0, lightness
    laplacian = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:] - 4 * gray[1:-1, 1:-1]
    return float((laplacian**2).mean()), lightness
