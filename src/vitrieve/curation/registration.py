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
LEAST_COARSE_FIT = 0.7
"""A pair that fits less than this at ``COARSE_PX`` is not looked at more closely."""
COARSE_TILE_PX, COARSE_NOISE = 3, 10.0
"""Side of the tiles in which small copies are compared, and deviations of their gray values that tell nothing."""
LEAST_COARSE_AGREEMENT, COARSE_SHARE = 0.4, 0.75
"""Agreement that this share of the tiles must have, or the pair fits nowhere (``dev/LOG.md``)."""
BLOCK_PAIRS = 256
"""Pairs whose small copies are laid on each other at once: few enough for a processor's cache."""
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

    Each of the two is taken for the part in turn. A place is looked for in small copies, in the sizes of ``SCALES``.
    The best one is looked at more closely where most tiles of the small copies agree.

    Args:
        firsts: ``(H, W)`` gray values of each pair's one picture (``make_thumbnail``), of any sizes. What is computed
            of an array alone is shared by the pairs that hold the same object.
        seconds: Those of the other picture.

    Returns:
        P places. Their fit is Pearson's correlation of the gray values of the part with those that it covers; 0 where
        there is nothing to compare, or the small copies differ. It does not depend on brightness and contrast.

    Source:
        Lewis, Fast Normalized Cross-Correlation (1995), without the Fourier transform, because thumbnails are small.
    """
    best = [Place()] * len(firsts)
    for is_swapped, (wholes, parts) in enumerate([(firsts, seconds), (seconds, firsts)]):
        alike: dict[tuple[Shape, Shape], list[int]] = {}
        for number, (whole, part) in enumerate(zip(wholes, parts, strict=True)):
            alike.setdefault((whole.shape, part.shape), []).append(number)
        for numbers in alike.values():
            places: dict[int, int] = {}  # pairs of one picture stand together, in the order of the pictures
            numbers.sort(key=[places.setdefault(id(whole), number) for number, whole in enumerate(wholes)].__getitem__)
            for start in range(0, len(numbers), BLOCK_PAIRS):
                block = numbers[start : start + BLOCK_PAIRS]
                found = _find_places([wholes[number] for number in block], [parts[number] for number in block])
                for number, place in zip(block, found, strict=True):
                    if place.fit > best[number].fit:
                        best[number] = place._replace(is_swapped=bool(is_swapped))
    return [_look_closer(*pair) for pair in zip(firsts, seconds, best, strict=True)]


def _find_places(wholes: Sequence[GrayImage], parts: Sequence[GrayImage]) -> list[Place]:
    """Find the best place of each part in its whole, in small copies; all wholes have one size, and all parts.

    The same whole stands several times in a row.
    """
    starts = [row for row, whole in enumerate(wholes) if row == 0 or whole is not wholes[row - 1]]
    owners = np.repeat(np.arange(len(starts)), np.diff([*starts, len(wholes)]))
    room = _fit_into(wholes[0].shape, COARSE_PX)
    laid, small = _shrink(np.stack([wholes[start] for start in starts]), room), np.stack(parts)
    sizes = list(_list_sizes(small.shape[1:], room, SCALES))
    fits = np.zeros((len(sizes), len(parts)), dtype=np.float32)
    cells = np.zeros((len(sizes), len(parts)), dtype=np.int64)
    for size, (_, shape) in enumerate(sizes):
        found = _correlate(sliding_window_view(laid, shape, axis=(1, 2)), _shrink(small, shape), owners)
        found = found.reshape(len(parts), -1)
        cells[size], fits[size] = found.argmax(axis=1), found.max(axis=1)
    chosen = fits.argmax(axis=0)
    best = [Place()] * len(parts)
    for size, (scale, shape) in enumerate(sizes):
        numbers = np.flatnonzero((chosen == size) & (fits[size] > 0))
        rows, columns = np.divmod(cells[size, numbers], room[1] - shape[1] + 1)
        agree = fits[size, numbers] < LEAST_COARSE_FIT  # what fits less is not looked at anyway
        likely = np.flatnonzero(~agree)
        covered = sliding_window_view(laid, shape, axis=(1, 2))[owners[numbers[likely]], rows[likely], columns[likely]]
        agree[likely] = _agree_coarsely(covered, _shrink(small[numbers[likely]], shape))
        for number, row, column, does_agree in zip(numbers, rows, columns, agree, strict=True):
            if does_agree:
                top, left = float(row / room[0]), float(column / room[1])
                best[number] = Place(fit=float(fits[size, number]), scale=scale, top=top, left=left)
    return best


def _agree_coarsely(covered: FloatImage, parts: FloatImage) -> npt.NDArray[np.bool_]:
    """Say of ``(P, H, W)`` small copies whether most tiles of one, or of its mirror image, agree with the other's."""
    if not covered.size or min(covered.shape[1:]) < 2 * COARSE_TILE_PX:
        return np.ones(len(covered), dtype=bool)
    covered = covered - covered.mean(axis=(1, 2), keepdims=True)
    parts = parts - parts.mean(axis=(1, 2), keepdims=True)
    as_it_is, mirrored = (np.einsum("phw,phw->p", covered, one) for one in (parts, parts[:, :, ::-1]))
    parts = np.where((mirrored > as_it_is)[:, None, None], parts[:, :, ::-1], parts)
    norms = [np.linalg.norm(one.reshape(len(one), -1), axis=1) for one in (covered, parts)]
    parts = parts * (norms[0] / np.maximum(norms[1], 1e-3))[:, None, None]
    means = _average_tiles(covered), _average_tiles(parts)
    spreads = _average_tiles(covered**2 + parts**2) - means[0] ** 2 - means[1] ** 2
    shared = _average_tiles(covered * parts) - means[0] * means[1]
    structure = (2 * shared + COARSE_NOISE**2) / (np.maximum(spreads, 0) + COARSE_NOISE**2)
    agreeing: npt.NDArray[np.bool_] = (structure >= LEAST_COARSE_AGREEMENT).mean(axis=(1, 2)) >= COARSE_SHARE
    return agreeing


def _average_tiles(pictures: FloatImage) -> npt.NDArray[np.float32]:
    """Return the mean of each square of ``COARSE_TILE_PX`` in ``(P, H, W)`` pictures."""
    tiles = sliding_window_view(pictures, (COARSE_TILE_PX, COARSE_TILE_PX), axis=(1, 2))
    return np.asarray(tiles.mean(axis=(3, 4)), dtype=np.float32)


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
        fits = _correlate(windows[None, rows, columns], _shrink(part[None], shape), np.zeros(1, dtype=np.int64))[0]
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
    shrunk: FloatImage = rows @ (pictures.astype(np.float32) @ columns.T)
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


def _correlate(
    windows: npt.NDArray[np.float32], parts: npt.NDArray[np.float32], owners: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Correlate ``(P, H, W)`` parts or their mirror images with the windows ``(U, R, C, H, W)`` of their wholes.

    Args:
        windows: The windows of each whole.
        parts: The parts, those of the first whole first.
        owners: ``(P,)`` number of the whole of each part, rising.

    Returns:
        ``(P, R, C)`` correlations.
    """
    num_pixels = parts[0].size
    flat = windows.reshape(len(windows), -1, num_pixels)
    centered = parts - parts.mean(axis=(1, 2), keepdims=True)
    templates = np.stack([centered, centered[:, :, ::-1]], axis=1).reshape(-1, num_pixels)
    products = np.empty((len(templates), flat.shape[1]), dtype=np.float32)
    bounds = (2 * np.searchsorted(owners, np.arange(len(flat) + 1))).tolist()
    for whole, start, stop in zip(flat, bounds, bounds[1:], strict=False):
        np.matmul(templates[start:stop], whole.T, out=products[start:stop])
    squares = np.einsum("uwi,uwi->uw", flat, flat) - flat.sum(axis=2) ** 2 / num_pixels
    window_norms = np.sqrt(np.maximum(squares, 0))[owners]
    norms = np.linalg.norm(centered.reshape(len(parts), -1), axis=1)[:, None]
    least = LEAST_DEVIATION * num_pixels**0.5
    is_told = (window_norms >= least) & (norms >= least)
    correlations = products.reshape(len(parts), 2, -1).max(axis=1) / np.maximum(window_norms * norms, least**2)
    told = np.where(is_told, correlations, 0).astype(np.float32)
    return told.reshape(len(parts), *windows.shape[1:3])
