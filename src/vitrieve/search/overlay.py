"""Draw two pictures with their matching patches. Next file: ``explain.py``."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from vitrieve.search.request import Box
from vitrieve.similarity import FloatArray

HEIGHT_PX = 420
MAX_WIDTH_PX = 720
"""Of one picture; a wider one is lower than the other and stands in the middle."""
GAP_PX = 28
MARGIN_PX = 14
BACKGROUND = (24, 25, 28)
"""Near black: lines of every colour are seen on it, and it lies quietly on light and dark pages."""
OUTSIDE_BRIGHTNESS = 0.28
"""Of what the encoder does not see."""
LEAST_BRIGHTNESS = 0.42
SMOOTHING = 2
"""Everything is drawn this many times as large and then reduced: Pillow's lines are jagged."""
LINE_PX = 2.5
POINT_PX = 6.0

Point = tuple[float, float]


def draw_overlay(
    pictures: Sequence[Image.Image],
    boxes: Sequence[Box],
    heats: Sequence[FloatArray],
    points: Sequence[Sequence[Point]],
) -> Image.Image:
    """Draw two pictures side by side.

    Args:
        pictures: Two RGB pictures of any sizes.
        boxes: The part of each that the encoder sees, in its pixels.
        heats: For each ``(P, P)`` in [0, 1]; parts of low value are darkened.
        points: For each the places of its matches, in its pixels, the best first; the n-th of one belongs to the n-th
            of the other.

    Returns:
        An RGB picture, at most ``2 * MAX_WIDTH_PX + GAP_PX + 2 * MARGIN_PX`` wide.
    """
    scales = [SMOOTHING * min(HEIGHT_PX / picture.height, MAX_WIDTH_PX / picture.width) for picture in pictures]
    panels = [
        _darken(picture, box, heat, scale)
        for picture, box, heat, scale in zip(pictures, boxes, heats, scales, strict=True)
    ]
    margin, gap = SMOOTHING * MARGIN_PX, SMOOTHING * GAP_PX
    height = max(panel.height for panel in panels)
    size = (sum(panel.width for panel in panels) + gap + 2 * margin, height + 2 * margin)
    canvas = Image.new("RGB", size, BACKGROUND)
    corners = [
        (margin, margin + (height - panels[0].height) // 2),
        (margin + panels[0].width + gap, margin + (height - panels[1].height) // 2),
    ]
    for panel, corner in zip(panels, corners, strict=True):
        canvas.paste(panel, corner)
    ends = [
        [(corner[0] + x * scale, corner[1] + y * scale) for x, y in some]
        for some, corner, scale in zip(points, corners, scales, strict=True)
    ]
    _draw_matches(canvas, list(zip(*ends, strict=True)))
    return canvas.resize((size[0] // SMOOTHING, size[1] // SMOOTHING), Image.Resampling.LANCZOS)


def _darken(picture: Image.Image, box: Box, heat: FloatArray, scale: float) -> Image.Image:
    """Scale a picture, and darken what lies outside the box and what has little heat."""
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    x_1, y_1, x_2, y_2 = (round(value * scale) for value in box)
    inside = (max(1, x_2 - x_1), max(1, y_2 - y_1))
    span = float(heat.max() - heat.min())
    relative = (heat - heat.min()) / span if span > 0 else np.ones_like(heat)  # of this picture: the best is bright
    levels = np.rint(255 * (LEAST_BRIGHTNESS + (1 - LEAST_BRIGHTNESS) * relative)).astype(np.uint8)
    mask = Image.new("L", size, round(255 * OUTSIDE_BRIGHTNESS))
    mask.paste(Image.fromarray(levels).resize(inside, Image.Resampling.BICUBIC), (x_1, y_1))
    scaled = picture.resize(size, Image.Resampling.LANCZOS)
    return Image.composite(scaled, Image.new("RGB", size, BACKGROUND), mask)


def _draw_matches(canvas: Image.Image, ends: Sequence[tuple[Point, Point]]) -> None:
    draw = ImageDraw.Draw(canvas)
    radius = SMOOTHING * POINT_PX
    order = list(reversed(list(enumerate(ends))))  # the best on top
    for number, pair in order:
        for color, width in ((BACKGROUND, LINE_PX + 2), (_choose_color(number), LINE_PX)):
            draw.line([*pair], fill=color, width=round(SMOOTHING * width))
    for number, pair in order:
        for x, y in pair:
            for color, size in (((255, 255, 255), radius), (_choose_color(number), 0.68 * radius)):
                draw.ellipse((x - size, y - size, x + size, y + size), fill=color)


def _choose_color(number: int) -> tuple[int, int, int]:
    """Choose a colour unlike the ones before: steps of the golden ratio around the circle of hues."""
    red, green, blue = colorsys.hsv_to_rgb((0.46 + 0.618034 * number) % 1, 0.72, 0.97)
    return round(255 * red), round(255 * green), round(255 * blue)
