"""From a picture to the input of an encoder, with Pillow and NumPy only, and the views of a picture in training.

In use, with torch or without, an RGB picture becomes a ``(3, S, S)`` float32 array: the short side resized with
Pillow's filter and a center crop, or the whole picture squeezed into the square; then the mean and standard deviation
of the backbone.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from vitrieve.choices import Framing
from vitrieve.errors import ConfigError

if TYPE_CHECKING:
    from vitrieve.config import LoaderConfig

RESIZE_RATIO = 256 / 224
"""Short side over crop side of the field's usual test transform."""
ENOUGH_RATIO = 2.0
"""Short side of a picture that is read at a part of its size, over the short side before the crop, at least. Above it
the cosine of DINOv2's embedding to that of the whole picture is 0.9999 in the mean and at least 0.999; at 1.2 it was
0.9997, and half a point of Recall@1 was lost on Grocery (``dev/LOG.md``)."""
MAX_RESIZED_PIXELS = 1 << 24
"""Some 50 MB as RGB; at 224 px only a picture more than 256 times as long as wide goes beyond."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Interpolation = Literal["bilinear", "bicubic"]
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture becomes the encoder's input; part of the encoder's fingerprint.

    Attributes:
        image_size: Side of the square input, in pixels.
        resize_size: Short side before the crop, in pixels; at least ``image_size``.
        interpolation: Pillow's filter, which looks at all pixels under an output pixel (antialiased).
        mean: Subtracted from each channel, after scaling to [0, 1].
        std: What each channel is then divided by.
        framing: ``crop``: the short side is resized, the center square cut out. ``square``: the whole picture is
            squeezed into the square, its proportions are lost; ``resize_size`` is then ``image_size``.

    Raises:
        ConfigError: A size below 1, or ``resize_size`` below ``image_size``.
    """

    image_size: int
    resize_size: int
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    framing: Framing = "crop"

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= self.resize_size:
            raise ConfigError(
                f"the image size is {self.image_size} px and the short side before the crop {self.resize_size} px; "
                "both must be positive, and the first at most the second."
            )


def build_preprocessing(
    image_size: int,
    *,
    interpolation: Interpolation = "bicubic",
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    framing: Framing = "crop",
) -> Preprocessing:
    """Build the field's usual test transform for a square input of ``image_size`` pixels, or the squeezing one.

    >>> build_preprocessing(112).resize_size
    128
    """
    resize_size = int(image_size * RESIZE_RATIO) if framing == "crop" else image_size
    return Preprocessing(
        image_size=image_size,
        resize_size=resize_size,
        interpolation=interpolation,
        mean=mean,
        std=std,
        framing=framing,
    )


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """Turn an RGB picture into the encoder's input.

    Args:
        image: An RGB picture of any size.
        preprocessing: Sizes, filter, mean and standard deviation.

    Returns:
        A ``(3, S, S)`` float32 array, normalized per channel.
    """
    return to_pixels(to_square(image, preprocessing), preprocessing)


def to_pixels(squares: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Normalize square pictures, one or many: ``(..., S, S, 3)`` uint8 to ``(..., 3, S, S)`` float32.

    Each channel looks its 256 results up in a table, which gives the same bits as the arithmetic, in a fifth of the
    time.
    """
    tables = _normalized_levels(preprocessing.mean, preprocessing.std)
    height, width, num_channels = squares.shape[-3:]
    pixels = np.empty((*squares.shape[:-3], num_channels, height, width), dtype=np.float32)
    flat = zip(squares.reshape(-1, height, width, num_channels), pixels.reshape(-1, *pixels.shape[-3:]), strict=True)
    for square, planes in flat:
        for channel, table in enumerate(tables):
            # No level lies outside the table: "clip" only spares the check.
            np.take(table, square[..., channel], out=planes[channel], mode="clip")
    return pixels


@functools.lru_cache(maxsize=16)
def _normalized_levels(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Return ``(3, 256)`` float32: what each level of each channel becomes."""
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    return (levels - np.asarray(mean, np.float32)[:, None]) / np.asarray(std, np.float32)[:, None]


def find_enough_px(preprocessing: Preprocessing) -> int:
    """Return the short side, in pixels, from which a larger picture gives next to the same square.

    >>> find_enough_px(build_preprocessing(112))
    256
    """
    return round(ENOUGH_RATIO * preprocessing.resize_size)


def to_square(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """Resize and crop an RGB picture to the ``(S, S, 3)`` uint8 array that an engine normalizes itself."""
    return np.asarray(resize_and_crop(image, preprocessing))


def resize_and_crop(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize the short side, then cut the center square (or squeeze); the picture that the encoder sees.

    Equal, pixel for pixel, to torchvision's ``Resize(resize_size)`` and ``CenterCrop(image_size)`` on a Pillow
    picture, roundings included. Only a picture so long that its resized form would exceed ``MAX_RESIZED_PIXELS``
    is resampled at its center alone, which takes no memory and differs slightly: Pillow may then work on
    columns before rows.

    Args:
        image: An RGB picture of any size.
        preprocessing: Sizes and filter.

    Returns:
        An RGB picture of ``image_size`` squared.
    """
    side = preprocessing.image_size
    if preprocessing.framing == "square":
        return image.resize((side, side), _FILTERS[preprocessing.interpolation])
    width, height = _resized_size(image.size, preprocessing.resize_size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    resampling = _FILTERS[preprocessing.interpolation]
    if width * height > MAX_RESIZED_PIXELS:
        scale_x, scale_y = image.width / width, image.height / height
        box = (left * scale_x, top * scale_y, (left + side) * scale_x, (top + side) * scale_y)
        return image.resize((side, side), resampling, box=box)
    return image.resize((width, height), resampling).crop((left, top, left + side, top + side))


def visible_box(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[float, float, float, float]:
    """Return which part ``(x_1, y_1, x_2, y_2)`` of a picture the encoder sees, in pixels of the picture.

    Args:
        size: Width and height of the picture.
        preprocessing: Sizes and framing.

    >>> visible_box((200, 100), build_preprocessing(112))
    (56.25, 6.25, 143.75, 93.75)
    """
    if preprocessing.framing == "square":
        return 0.0, 0.0, float(size[0]), float(size[1])
    side = preprocessing.image_size
    width, height = _resized_size(size, preprocessing.resize_size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    scale_x, scale_y = size[0] / width, size[1] / height
    return left * scale_x, top * scale_y, (left + side) * scale_x, (top + side) * scale_y


def _resized_size(size: tuple[int, int], resize_size: int) -> tuple[int, int]:
    """Scale so that the short side is ``resize_size``, with torchvision's rounding (down) of the long side."""
    width, height = size
    if width <= height:
        return resize_size, int(resize_size * height / width)
    return int(resize_size * width / height), resize_size


_ASPECT_RATIO_MAX = 4 / 3
_NUM_TRIES = 10


def augment(image: Image.Image, config: LoaderConfig, image_size: int, generator: np.random.Generator) -> np.ndarray:
    """Make one training view.

    Args:
        image: An RGB picture.
        config: Which view.
        image_size: Side S of the view in pixels.
        generator: All randomness comes from it.

    Returns:
        ``(S, S, 3)`` uint8.
    """
    if config.augmentation == "square":
        return np.asarray(image.resize((image_size, image_size), Image.Resampling.BICUBIC))
    if config.augmentation == "random_crop":
        view = _random_crop(image, image_size, generator)
    else:
        view = _random_resized_crop(image, image_size, config.crop_scale_min, generator)
    if config.flip and generator.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(view)


def _random_crop(image: Image.Image, image_size: int, generator: np.random.Generator) -> Image.Image:
    """Resize to a square of S · 256 / 224 pixels, then cut S × S (the paper's, arXiv:2102.05644)."""
    side = int(image_size * RESIZE_RATIO)
    square = image.resize((side, side), Image.Resampling.BICUBIC)
    left, top = generator.integers(0, side - image_size + 1, size=2).tolist()
    return square.crop((left, top, left + image_size, top + image_size))


def _random_resized_crop(
    image: Image.Image, image_size: int, scale_min: float, generator: np.random.Generator
) -> Image.Image:
    """Cut a part of random area and aspect ratio, resized to S × S (Szegedy et al., arXiv:1409.4842)."""
    width, height = image.size
    for _ in range(_NUM_TRIES):
        area = width * height * generator.uniform(scale_min, 1)
        ratio = math.exp(generator.uniform(-1, 1) * math.log(_ASPECT_RATIO_MAX))
        part_width, part_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < part_width <= width and 0 < part_height <= height:
            left = int(generator.integers(0, width - part_width + 1))
            top = int(generator.integers(0, height - part_height + 1))
            break
    else:
        # No part of this shape fits (a very long picture): the largest center part with an allowed shape.
        part_width = min(width, round(height * _ASPECT_RATIO_MAX))
        part_height = min(height, round(width * _ASPECT_RATIO_MAX))
        left, top = (width - part_width) // 2, (height - part_height) // 2
    box = (left, top, left + part_width, top + part_height)
    return image.resize((image_size, image_size), Image.Resampling.BICUBIC, box=box)
