"""Drawings of different sweaters on one ground, for tests of what a copy is."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = (240, 300)


def draw_ground(seed: int) -> Image.Image:
    """Draw a tiled floor in uneven light."""
    generator = np.random.default_rng(seed)
    light = generator.integers(120, 230, (3, 3, 3), dtype=np.uint8)
    ground = Image.fromarray(light).resize(SIZE, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(ground)
    for place in range(-300, 300, 70):
        pen.line([(place, 0), (place + 300, 300)], fill=(90, 80, 70), width=3)
        pen.line([(place + 300, 0), (place, 300)], fill=(90, 80, 70), width=3)
    return ground


def lay_sweater(ground: Image.Image, seed: int, color: tuple[int, int, int] = (40, 45, 60)) -> Image.Image:
    """Lay a sweater on a ground; its outline is that of every other one, but its pattern is its own."""
    picture, generator = ground.copy(), np.random.default_rng(seed)
    noise = generator.normal(0, 1, (SIZE[1] // 6, SIZE[0] // 6))
    pattern = np.asarray(Image.fromarray(noise.astype(np.float32)).resize(SIZE, Image.Resampling.BICUBIC))
    cloth = np.clip(np.array(color) + 14 * pattern[:, :, None], 0, 255).astype(np.uint8)
    outline = Image.new("L", SIZE, 0)
    shape = [
        (75, 60),
        (165, 60),
        (215, 200),
        (185, 215),
        (165, 140),
        (165, 250),
        (75, 250),
        (75, 140),
        (55, 215),
        (25, 200),
    ]
    ImageDraw.Draw(outline).polygon(shape, fill=255)
    picture.paste(Image.fromarray(cloth), mask=outline.filter(ImageFilter.GaussianBlur(1)))
    return picture
