"""Laying one picture on another: where, and how well, does one of them fit into the other, mirrored or not?

An encoder tells what a picture shows. Whether two pictures *are* the same one, of which a part was cut away, a frame
was added or left and right were exchanged, their pixels tell better. Thumbnails that do not fit each other anywhere are
no copies; what fits is compared region by region (``agreement.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

THUMBNAIL_PX = 48
"""Longest side of the gray pictures that are compared in the end."""
COARSE_PX = 20
"""Longest side of those in which a place is looked for."""
SCALES = tuple(np.round(np.linspace(1.0, 0.64, 9), 3).tolist())
"""Sizes of the part, as shares of the largest that fits into the whole; the last covers 40 % of its area."""
LEAST_COARSE_FIT = 0.6
"""A pair that fits less than this at ``COARSE_PX`` is not looked at more closely."""
FINE_SCALES = (0.96, 0.975, 0.99, 1.0, 1.01, 1.025, 1.04)
"""Sizes that are tried around the one found, as shares of it."""
FINE_REACH_PX = 2
"""How far around the place found the part is laid, in pixels of ``THUMBNAIL_PX``."""
DESCRIPTION_PX = 12
"""Both sides of the picture that describes a thumbnail."""
EVEN_DEVIATION = 6.0
"""Rows and columns at the edges whose gray values deviate less belong to a frame."""
LEAST_DEVIATION = 2.0
"""Gray values, in [0, 255], that deviate less than this tell nothing."""

GrayImage = npt.NDArray[np.uint8]
FloatImage = npt.NDArray[np.float32]
Shape = tuple[int, ...]


class Place(NamedTuple):
    """Where a part lies in a whole.

    Attributes:
        fit: Correlation there, in [-1, 1].
        is_swapped: Whether the first picture of the pair is the part.
        scale: Size of the part, as a share of the largest that fits.
        top: First row that it covers, as a share of the whole's height.
        left: First column that it covers, as a share of the whole's width.
    """

    fit: float = 0.0
    is_swapped: bool = False
    scale: float = 1.0
    top: float = 0.0
    left: float = 0.0


def make_thumbnail(image: Image.Image) -> GrayImage:
    """Make the small gray picture that ``find_places`` compares.

    Args:
        image: An RGB picture of any size.

    Returns:
        ``(H, W)`` gray values; the longest side has at most ``THUMBNAIL_PX``.
    """
    height, width = _fit_into(image.size[::-1], THUMBNAIL_PX)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0).convert("L"))


def describe_thumbnail(thumbnail: GrayImage) -> FloatImage:
    """Describe a thumbnail, without an even frame around it, by few gray values: copies have similar ones.

    Args:
        thumbnail: ``(H, W)`` gray values in [0, 255].

    Returns:
        ``(DESCRIPTION_PX**2,)``, of mean 0 and length 1; zeros where all values are equal.
    """
    rows, columns = (np.flatnonzero(thumbnail.std(axis=axis) > EVEN_DEVIATION) for axis in (1, 0))
    if min(len(rows), len(columns)) >= DESCRIPTION_PX:
        thumbnail = thumbnail[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    values = _shrink(thumbnail[None], (DESCRIPTION_PX, DESCRIPTION_PX)).ravel()
    values -= values.mean()
    length = float(np.linalg.norm(values))
    return values / length if length > LEAST_DEVIATION else np.zeros_like(values)


def find_places(firsts: Sequence[GrayImage], seconds: Sequence[GrayImage]) -> list[Place]:
    """Find for each pair where one picture, or its mirror image, lies within the other with the highest correlation.

    Each of the two is taken for the part in turn. A place is looked for in small copies, in the sizes of ``SCALES``,
    and the best one is looked at more closely.

    Args:
        firsts: ``(H, W)`` gray values of each pair's one picture (``make_thumbnail``), of any sizes.
        seconds: Those of the other picture.

    Returns:
        P places. Their fit is Pearson's correlation of the gray values of the part with those that it covers; 0 where
        there is nothing to compare. It does not depend on brightness and contrast.

    Source:
        Lewis, Fast Normalized Cross-Correlation (1995), without the Fourier transform, because thumbnails are small.
    """
    best = [Place()] * len(firsts)
    for is_swapped, (wholes, parts) in enumerate([(firsts, seconds), (seconds, firsts)]):
        alike: dict[tuple[Shape, Shape], list[int]] = {}
        for number, (whole, part) in enumerate(zip(wholes, parts, strict=True)):
            alike.setdefault((whole.shape, part.shape), []).append(number)
        for numbers in alike.values():
            found = _find_places([wholes[number] for number in numbers], [parts[number] for number in numbers])
            for number, place in zip(numbers, found, strict=True):
                if place.fit > best[number].fit:
                    best[number] = place._replace(is_swapped=bool(is_swapped))
    return [_look_closer(*pair) for pair in zip(firsts, seconds, best, strict=True)]


def _find_places(wholes: Sequence[GrayImage], parts: Sequence[GrayImage]) -> list[Place]:
    """Find the best place of each part in its whole, in small copies; all wholes have one size, and all parts."""
    room = _fit_into(wholes[0].shape, COARSE_PX)
    laid, small = _shrink(np.stack(wholes), room), np.stack(parts)
    best = [Place()] * len(parts)
    for scale, shape in _list_sizes(small.shape[1:], room, SCALES):
        fits = _correlate(sliding_window_view(laid, shape, axis=(1, 2)), _shrink(small, shape))
        places = fits.reshape(len(parts), -1).argmax(axis=1)
        highest = fits.reshape(len(parts), -1).max(axis=1)
        for number, (place, fit) in enumerate(zip(places.tolist(), highest.tolist(), strict=True)):
            if fit > best[number].fit:
                row, column = divmod(place, fits.shape[2])
                best[number] = Place(fit=fit, scale=scale, top=row / room[0], left=column / room[1])
    return best


def _look_closer(first: GrayImage, second: GrayImage, found: Place) -> Place:
    """Return the best place of the pictures as large as they are, around one that was found."""
    if found.fit < LEAST_COARSE_FIT:
        return found
    whole, part = (second, first) if found.is_swapped else (first, second)
    scales = [min(1.0, found.scale * scale) for scale in FINE_SCALES]
    best = found
    for scale, shape in _list_sizes(part.shape, whole.shape, scales):
        windows = sliding_window_view(whole.astype(np.float32), shape)
        rows = _reach(found.top * whole.shape[0], windows.shape[0])
        columns = _reach(found.left * whole.shape[1], windows.shape[1])
        fits = _correlate(windows[None, rows, columns], _shrink(part[None], shape))[0]
        row, column = np.unravel_index(fits.argmax(), fits.shape)
        if fits[row, column] > best.fit:
            top, left = rows.start + row, columns.start + column
            best = Place(
                fit=float(fits[row, column]),
                is_swapped=found.is_swapped,
                scale=scale,
                top=float(top / whole.shape[0]),
                left=float(left / whole.shape[1]),
            )
    return best


def _reach(center: float, num_places: int) -> slice:
    first = min(max(0, round(center) - FINE_REACH_PX), num_places - 1)
    return slice(first, max(first + 1, round(center) + FINE_REACH_PX + 1))


def _fit_into(shape: Sequence[int], longest_px: int) -> Shape:
    scale = min(1.0, longest_px / max(shape))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _shrink(pictures: GrayImage, shape: Shape) -> FloatImage:
    """Shrink ``(P, H, W)`` pictures to ``(P, h, w)``: each new pixel is the mean of the area that it covers."""
    rows, columns = _weigh_areas(pictures.shape[1], shape[0]), _weigh_areas(pictures.shape[2], shape[1])
    half = np.tensordot(pictures.astype(np.float32), columns, axes=(2, 1))  # (P, H, w)
    shrunk: FloatImage = np.ascontiguousarray(np.tensordot(half, rows, axes=(1, 1)).transpose(0, 2, 1))
    return shrunk


@functools.lru_cache(maxsize=1024)
def _weigh_areas(num_old: int, num_new: int) -> FloatImage:
    """Compute ``(num_new, num_old)`` shares of old pixels in the new ones, which divide the same length."""
    edges = np.linspace(0, num_old, num_new + 1)
    old = np.arange(num_old)
    covered = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    weights: FloatImage = (np.maximum(covered, 0) * num_new / num_old).astype(np.float32)
    return weights


def _list_sizes(part: Sequence[int], room: Sequence[int], scales: Sequence[float]) -> Iterator[tuple[float, Shape]]:
    """Yield the sizes of a part, as shares of the largest that fits into a room, none of them twice."""
    largest = min(room[0] / part[0], room[1] / part[1])
    seen = set()
    for scale in scales:
        height, width = (max(1, round(side * largest * scale)) for side in part)
        shape = (min(height, room[0]), min(width, room[1]))
        if shape not in seen:
            seen.add(shape)
            yield scale, shape


def _correlate(windows: npt.NDArray[np.float32], parts: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Correlate windows ``(P, R, C, H, W)`` with ``(P, H, W)`` parts or their mirror images; ``(P, R, C)``."""
    num_pairs, num_pixels = len(parts), parts[0].size
    flat = windows.reshape(num_pairs, -1, num_pixels)
    centered = parts - parts.mean(axis=(1, 2), keepdims=True)
    templates = np.stack([centered, centered[:, :, ::-1]], axis=3).reshape(num_pairs, num_pixels, 2)
    squares = np.einsum("pwi,pwi->pw", flat, flat) - flat.sum(axis=2) ** 2 / num_pixels
    window_norms = np.sqrt(np.maximum(squares, 0))
    norms = np.linalg.norm(centered.reshape(num_pairs, -1), axis=1)[:, None]
    least = LEAST_DEVIATION * num_pixels**0.5
    is_told = (window_norms >= least) & (norms >= least)
    correlations = (flat @ templates).max(axis=2) / np.maximum(window_norms * norms, least**2)
    return np.where(is_told, correlations, 0).astype(np.float32).reshape(windows.shape[:3])
