"""Copies of pictures as people make them, for calibrating and measuring the search for duplicates."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from vitrieve.data.decode import encode_jpeg

CopyMaker = Callable[[Image.Image, np.random.Generator], Image.Image]


def crop(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Cut out 75 to 90 % of the area, anywhere."""
    return _crop_to_share(image, generator.uniform(0.75, 0.9), generator)


def resize(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Make both sides 40 to 70 % as long."""
    share = generator.uniform(0.4, 0.7)
    size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    return image.resize(size, Image.Resampling.LANCZOS)


def compress(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Save as JPEG of a quality from 20 to 60."""
    with Image.open(io.BytesIO(encode_jpeg(image, int(generator.integers(20, 61))))) as copy:
        return copy.convert("RGB")


def flip(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Mirror left and right; nothing is drawn."""
    return ImageOps.mirror(image)


def change_color(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Change brightness, contrast and saturation by up to 30 % each."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(generator.uniform(0.7, 1.3))
    return image


def add_border(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Put a frame of one color around it, 4 to 12 % of the longer side wide."""
    width = max(1, round(max(image.size) * generator.uniform(0.04, 0.12)))
    color = (255, 255, 255) if generator.random() < 0.5 else (0, 0, 0)
    return ImageOps.expand(image, width, color)


def add_text(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Write a line across it, with letters 8 to 14 % of the height high."""
    copy = image.copy()
    height = max(8, round(image.height * generator.uniform(0.08, 0.14)))
    place = (image.width // 20, round((image.height - height) * generator.random()))
    letters = "".join(map(chr, generator.integers(ord("A"), ord("Z") + 1, 12).tolist()))
    draw = ImageDraw.Draw(copy)
    draw.text(place, letters, font=ImageFont.load_default(height), fill=(255, 255, 255), stroke_width=1, stroke_fill=0)
    return copy


def change_several(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Crop, change the color and save as JPEG, one after the other."""
    return compress(change_color(crop(image, generator), generator), generator)


COPIES: Mapping[str, CopyMaker] = {
    "crop": crop,
    "resize": resize,
    "jpeg": compress,
    "flip": flip,
    "color": change_color,
    "border": add_border,
    "text": add_text,
    "several": change_several,
}
"""Kind of a copy -> what makes one of an RGB picture; all draws come from the generator."""


def cut_half(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Cut out half of the area and change its colors: another picture of the same scene, as far as one can be made."""
    return change_color(_crop_to_share(image, 0.5, generator), generator)


def _crop_to_share(image: Image.Image, share: float, generator: np.random.Generator) -> Image.Image:
    width, height = (max(1, round(side * share**0.5)) for side in image.size)
    left, top = (int(generator.integers(0, room + 1)) for room in (image.width - width, image.height - height))
    return image.crop((left, top, left + width, top + height))
