"""Training views of a picture: the paper's two, and the random resized crop."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from vitrieve.config import LoaderConfig
from vitrieve.data.preprocess import RESIZE_RATIO

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
