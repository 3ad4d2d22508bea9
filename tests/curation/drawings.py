"""Drawings that differ in a detail: clocks that tell different times, and rings of several sizes."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

SIDE_PX, FINE = 256, 4


def draw_clock(hour: int, minute: int) -> Image.Image:
    """Draw a clock with twelve strokes and two hands."""
    center = SIDE_PX * FINE / 2
    image = Image.new("RGB", (SIDE_PX * FINE, SIDE_PX * FINE), (255, 255, 255))
    pen = ImageDraw.Draw(image)

    def draw_stroke(turn: float, start: float, stop: float, width: int) -> None:
        way = np.array([np.sin(2 * np.pi * turn), -np.cos(2 * np.pi * turn)])
        pen.line([*(center + 0.9 * start * center * way), *(center + 0.9 * stop * center * way)], "#303030", width)

    pen.ellipse([0.1 * center, 0.1 * center, 1.9 * center, 1.9 * center], outline="#3c3c3c", width=10 * FINE)
    for number in range(12):
        draw_stroke(number / 12, 0.72, 0.82, 4 * FINE)
    draw_stroke((hour + minute / 60) / 12, 0, 0.42, 9 * FINE)
    draw_stroke(minute / 60, 0, 0.62, 6 * FINE)
    return image.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)


def draw_ring(radius: float) -> Image.Image:
    """Draw a red ring, of a radius given as a share of half the picture."""
    center = SIDE_PX * FINE / 2
    image = Image.new("RGB", (SIDE_PX * FINE, SIDE_PX * FINE), (255, 255, 255))
    edges = [center * (1 - radius), center * (1 - radius), center * (1 + radius), center * (1 + radius)]
    ImageDraw.Draw(image).ellipse(edges, outline="#c82828", width=20 * FINE)
    return image.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)


def draw_corner(seed: int) -> Image.Image:
    """Draw an even sky; in its corner something small is seen, dappled in the color of the sky."""
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), (128, 128, 128))
    noise = np.random.default_rng(seed).integers(64, 192, (6, 6, 1), dtype=np.uint8).repeat(3, axis=2)
    image.paste(Image.fromarray(noise).resize((60, 60), Image.Resampling.BICUBIC), (0, SIDE_PX - 60))
    return image
