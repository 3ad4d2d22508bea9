"""This file explains a match: which patches of two pictures are each other's nearest, as data and as a picture.

Patches are compared by the cosine of their tokens, and two match when each is the other's nearest. The mean token of
both pictures is not subtracted first: with that, shelf answered shelf before fruit answered fruit (looked at on
Grocery). The embedding is not made of these patches alone, so that this is evidence for a reader, not a proof.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from vitrieve.data.decode import get_scale, read_image
from vitrieve.data.preprocess import preprocess, visible_box
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ConfigError, DecodeError
from vitrieve.index.store import find_name
from vitrieve.runtime.encoder import Encoder
from vitrieve.search.query import read_example
from vitrieve.search.request import Box, Example
from vitrieve.search.searcher import Searcher
from vitrieve.similarity import FloatArray, normalize, similarity

HEIGHT_PX = 420
MAX_WIDTH_PX = 720
"""Largest width of one picture; a wider one is drawn lower than the other and stands in the middle."""
GAP_PX = 28
MARGIN_PX = 14
BACKGROUND = (24, 25, 28)
"""Near black: lines of every color are seen on it, and it lies quietly on light and dark pages."""
OUTSIDE_BRIGHTNESS = 0.28
"""Brightness of what the encoder does not see."""
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
        heats: Arrays ``(P, P)`` in [0, 1], one for each picture; parts of low value are darkened.
        points: Points of the matches of each picture, in its pixels, the best first; the n-th of one belongs to
            the n-th of the other.

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
    """Choose a color unlike the ones before: steps of the golden ratio around the circle of hues."""
    red, green, blue = colorsys.hsv_to_rgb((0.46 + 0.618034 * number) % 1, 0.72, 0.97)
    return round(255 * red), round(255 * green), round(255 * blue)


NUM_MATCHES = 12
"""Matches at most: more lines than that cannot be followed by eye."""


@dataclass(frozen=True, kw_only=True)
class PatchMatch:
    """Two patches, each the other's nearest.

    Attributes:
        query_point: Center ``(x, y)`` of the query's patch, in pixels of the query's whole picture.
        result_point: Center of the result's patch, in pixels of its whole picture.
        similarity: Cosine of the two tokens, in (0, 1].
    """

    query_point: tuple[float, float]
    result_point: tuple[float, float]
    similarity: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """The patches of two pictures that are each other's nearest.

    Attributes:
        matches: Best first, at most ``NUM_MATCHES``; empty where the pictures share nothing.
        query_heat: ``(P, P)`` float32 in [0, 1], for each patch how well the best patch of the result answers it.
        result_heat: The same for the result's patches.
        query_box: The part of the query's picture that was compared, in its pixels.
        result_box: The part of the result's picture that was compared.
        overlay: Both pictures side by side, patches without an answer darkened, matches joined by lines.
    """

    matches: tuple[PatchMatch, ...]
    query_heat: FloatArray
    result_heat: FloatArray
    query_box: Box
    result_box: Box
    overlay: Image.Image


def explain_result(searcher: Searcher, example: Example, image_id: str) -> Explanation:
    """Explain why an image of the index matches an example.

    Args:
        searcher: The index and its encoder.
        example: A picture (and box), or an image of the index. Of a vector or a text nothing can be shown.
        image_id: The image found; the file is read where it was when it was embedded.

    Raises:
        ConfigError: The example is a vector or a text.
        DecodeError: A picture cannot be read (any more).
        DataError: An ``image_id`` is not in the index.
    """
    if example.vector is not None or example.text is not None:
        raise ConfigError("a vector and a text have no patches to show; explain a picture or an image of the index.")
    query_box = example.box
    if example.image_id is not None:
        _, (record,) = searcher.store.get([find_name(searcher.store, example.image_id)])
        query, query_box = _read_record(record), record.box
    else:
        query = read_example(example)
    _, (found,) = searcher.store.get([find_name(searcher.store, image_id)])
    return explain_match(
        searcher.encoder, query, _read_record(found), query_origin=_origin(query_box), result_origin=_origin(found.box)
    )


def explain_match(
    encoder: Encoder,
    query: Image.Image,
    result: Image.Image,
    *,
    query_origin: tuple[float, float] = (0.0, 0.0),
    result_origin: tuple[float, float] = (0.0, 0.0),
) -> Explanation:
    """Match the patches of two pictures.

    Args:
        encoder: One whose patches form a square grid.
        query: An RGB picture of any size.
        result: Another.
        query_origin: Where ``query``, if it was cut out, lies in its whole picture; added to all coordinates.
        result_origin: The same for ``result``.

    Raises:
        ConfigError: The encoder's patches form no grid.
    """
    pixels = np.stack([preprocess(image, encoder.preprocessing) for image in (query, result)])
    query_tokens, result_tokens = encoder.patch_tokens(pixels)
    similarities = compare_patches(query_tokens, result_tokens)  # (N, N)
    side = math.isqrt(len(query_tokens))
    if side * side != len(query_tokens):
        raise ConfigError(f"{encoder.name} has {len(query_tokens)} patches, which form no square; it cannot explain.")
    boxes = [visible_box(image.size, encoder.preprocessing) for image in (query, result)]
    pairs = match_patches(similarities)[:NUM_MATCHES]
    points = [
        [_find_center(row, side, boxes[0]) for row, _ in pairs],
        [_find_center(column, side, boxes[1]) for _, column in pairs],
    ]
    heats = [_scale(similarities.max(axis=1), side), _scale(similarities.max(axis=0), side)]
    values = [float(similarities[pair]) for pair in pairs]
    return Explanation(
        matches=tuple(
            PatchMatch(
                query_point=_shift(query_point, query_origin, get_scale(query)),
                result_point=_shift(result_point, result_origin, get_scale(result)),
                similarity=value,
            )
            for query_point, result_point, value in zip(*points, values, strict=True)
        ),
        query_heat=heats[0],
        result_heat=heats[1],
        query_box=_shift_box(boxes[0], query_origin, get_scale(query)),
        result_box=_shift_box(boxes[1], result_origin, get_scale(result)),
        overlay=draw_overlay([query, result], boxes, heats, points),
    )


def compare_patches(query_tokens: np.ndarray, result_tokens: np.ndarray) -> FloatArray:
    """Compute the cosines of all patches of two pictures: ``(N, D)`` and ``(M, D)`` to ``(N, M)`` in [-1, 1].

    A token of zeros is like none (0).
    """
    return similarity(normalize(query_tokens), normalize(result_tokens))


def match_patches(similarities: FloatArray) -> list[tuple[int, int]]:
    """List the pairs that are each other's nearest and similar at all (above 0), best first; ties by row.

    >>> match_patches(np.float32([[0.9, 0.8], [0.7, 0.1]]))
    [(0, 0)]
    """
    columns, rows = similarities.argmax(axis=1), similarities.argmax(axis=0)
    pairs = [(row, int(column)) for row, column in enumerate(columns) if rows[column] == row]
    return sorted((pair for pair in pairs if similarities[pair] > 0), key=lambda pair: -float(similarities[pair]))


def _read_record(record: ImageRecord) -> Image.Image:
    try:
        return read_image(record)
    except DecodeError as error:
        raise DecodeError(f"{record.image_id}: {error}.") from None


def _scale(best: FloatArray, side: int) -> FloatArray:
    return np.asarray(np.clip(best, 0, 1).reshape(side, side), dtype=np.float32)


def _find_center(patch: int, side: int, box: Box) -> tuple[float, float]:
    row, column = divmod(patch, side)
    x_1, y_1, x_2, y_2 = box
    return x_1 + (column + 0.5) * (x_2 - x_1) / side, y_1 + (row + 0.5) * (y_2 - y_1) / side


def _origin(box: Box | None) -> tuple[float, float]:
    """Return where a cut-out begins: as ``crop_to_box`` rounds and limits it."""
    return (0.0, 0.0) if box is None else (float(max(round(box[0]), 0)), float(max(round(box[1]), 0)))


def _shift(point: tuple[float, float], origin: tuple[float, float], scale: float) -> tuple[float, float]:
    """Turn a point of a decoded picture into one of its file, which may have been read at half its size."""
    return scale * point[0] + origin[0], scale * point[1] + origin[1]


def _shift_box(box: Box, origin: tuple[float, float], scale: float) -> Box:
    return (*_shift(box[:2], origin, scale), *_shift(box[2:], origin, scale))
