"""Laying small copies of many pictures on each other: where does each part lie in its whole, mirrored or not?

Every size, place and side is tried at ``COARSE_PX``, which needs few large products. Where the part correlates well,
its edges are moved to a fraction of a pixel (``alignment.py``), and the tiles have to agree there.

Source: Lewis, Fast Normalized Cross-Correlation (1995), without the Fourier transform, because the pictures are small.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from vitrieve.curation.alignment import FloatImages, Frames, cover, find_moves, multiply, resample

COARSE_PX = 20
"""Longest side of the pictures in which a place is looked for."""
SCALES = tuple(np.round(np.linspace(1.0, 0.64, 9), 3).tolist())
"""Sizes of the part, as shares of the largest that fits into the whole; the last covers 40 % of its area."""
LEAST_COARSE_FIT = 0.7
"""A pair that fits less than this at ``COARSE_PX`` is not looked at more closely."""
COARSE_TILE_PX, COARSE_NOISE = 3, 10.0
"""Side of the tiles in which small copies are compared, and deviations of their gray values that tell nothing."""
LEAST_COARSE_AGREEMENT, COARSE_SHARE = 0.4, 0.75
"""Agreement that this share of the tiles must have where a part was laid on its whole, or the pair fits nowhere."""
NUM_COARSE_ROUNDS = 3
"""Steps by which a place is made more exact."""
LEAST_SETTLED_AGREEMENT = 0.7
"""Agreement that ``COARSE_SHARE`` of the tiles must have when the place is more exact (``dev/LOG.md``)."""
LEAST_DEVIATION = 2.0
"""Gray values, in [0, 255], that deviate less than this tell nothing."""

Shape = tuple[int, ...]
Sums = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


class Found(NamedTuple):
    """The best place of each of P parts.

    Attributes:
        fits: ``(P,)`` correlations, in [-1, 1]; 0 where there is nothing to compare, or the tiles differ.
        frames: ``(P, 4)``; top, bottom, left and right edge, as shares of the whole's sides.
    """

    fits: npt.NDArray[np.float32]
    frames: Frames


def place_parts(
    wholes: Sequence[npt.NDArray[np.uint8]],
    parts: Sequence[npt.NDArray[np.uint8]],
    owners: Numbers,
    tenants: Numbers,
) -> Found:
    """Find the best place of each part in its whole.

    Args:
        wholes: Gray pictures of one size.
        parts: Gray pictures of one size, which may be another.
        owners: ``(P,)`` number of each pair's whole, rising.
        tenants: ``(P,)`` number of its part.
    """
    room = fit_into(wholes[0].shape, COARSE_PX)
    laid, small = shrink(np.stack(wholes), room), np.stack(parts).astype(np.float32)
    sizes = [shape for _, shape in list_sizes(small.shape[1:], room, SCALES)]
    fits = np.zeros((len(sizes), len(owners)), dtype=np.float32)
    cells = np.zeros((len(sizes), len(owners)), dtype=np.int64)
    templates = [shrink(small, shape) for shape in sizes]
    integrals = [_integrate(laid.astype(np.float64) ** power) for power in (1, 2)]
    for number, template in enumerate(templates):
        correlations = _correlate(laid, integrals, template, owners, tenants).reshape(len(owners), -1)
        cells[number] = correlations.argmax(axis=1)
        fits[number] = np.take_along_axis(correlations, cells[number][:, None], axis=1)[:, 0]
    chosen, pairs = fits.argmax(axis=0), np.arange(len(owners))
    heights, widths = np.array(sizes).T[:, chosen]
    num_columns = room[1] - widths + 1
    is_mirrored, cell = np.divmod(cells[chosen, pairs], (room[0] - heights + 1) * num_columns)
    tops, lefts = np.divmod(cell, num_columns)
    best = fits[chosen, pairs]
    frames = np.stack([tops, tops + heights, lefts, lefts + widths], axis=1).astype(np.float64)
    likely = best >= LEAST_COARSE_FIT  # what fits less is not looked at anyway
    for number, template in enumerate(templates):
        rows = np.flatnonzero(likely & (chosen == number))
        windows = sliding_window_view(laid, template.shape[1:], axis=(1, 2))
        covered = windows[owners[rows], tops[rows], lefts[rows]]
        turned = _mirror(template[tenants[rows]], is_mirrored[rows])
        likely[rows] = measure_tiles(covered, turned) >= LEAST_COARSE_AGREEMENT
    best[(best >= LEAST_COARSE_FIT) & ~likely] = 0
    rows = np.flatnonzero(likely)
    if len(rows):
        turned = _mirror(small[tenants[rows]], is_mirrored[rows])
        frames[rows], agreements = settle(laid[owners[rows]], turned, frames[rows])
        best[rows[agreements < LEAST_SETTLED_AGREEMENT]] = 0
    return Found(best, frames / np.repeat(room, 2))


def settle(wholes: FloatImages, parts: FloatImages, frames: Frames) -> tuple[Frames, npt.NDArray[np.float32]]:
    """Move parts to a fraction of a pixel.

    Args:
        wholes: ``(P, H, W)`` small gray pictures.
        parts: ``(P, h, w)`` gray pictures, mirrored where they fit so; they may be larger.
        frames: Where the parts lie.

    Returns:
        Where they lie now, which is where they lay if they agree better there, and how well their tiles agree.
    """
    shape = wholes.shape[1:]
    best, least = frames, _measure_laid(wholes, parts, frames)
    for _ in range(NUM_COARSE_ROUNDS):
        frames = frames + find_moves(wholes, parts, frames, 1.0)
        shorter = (frames[:, 1::2] - frames[:, ::2]).min(axis=1, keepdims=True)
        frames = np.where(shorter > 2 * COARSE_TILE_PX, frames, best)
    moved = _measure_laid(wholes, parts, frames)
    is_better = (moved > least) & np.isfinite(frames).all(axis=1) & (np.abs(frames - best) < max(shape) / 4).all(axis=1)
    return np.where(is_better[:, None], frames, best), np.where(is_better, moved, least)


def _measure_laid(wholes: FloatImages, parts: FloatImages, frames: Frames) -> npt.NDArray[np.float32]:
    rows, columns = cover(frames, wholes.shape[1:], 0.0)
    return measure_tiles(wholes, resample(parts, frames, wholes.shape[1:]), rows[:, :, None] & columns[:, None, :])


def measure_tiles(
    wholes: FloatImages, parts: FloatImages, is_covered: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.float32]:
    """Return the agreement that ``COARSE_SHARE`` of the tiles of two pictures reach, ``(P,)``; 1 where they are tiny.

    Args:
        wholes: ``(P, H, W)`` small gray pictures.
        parts: Others of that size, not mirrored.
        is_covered: ``(P, H, W)``, the pixels that are compared, a rectangle; None: all.
    """
    if is_covered is None:
        is_covered = np.ones(wholes.shape, dtype=bool)
    if not wholes.size or min(wholes.shape[1:]) < 2 * COARSE_TILE_PX:
        return np.ones(len(wholes), dtype=np.float32)
    counts = np.maximum(is_covered.sum(axis=(1, 2)), 1).astype(np.float32)[:, None, None]
    one, other = (
        np.where(is_covered, picture - np.where(is_covered, picture, 0).sum(axis=(1, 2), keepdims=True) / counts, 0)
        for picture in (wholes, parts)
    )
    norms = [np.sqrt(np.einsum("phw,phw->p", picture, picture)) for picture in (one, other)]
    other = other * (norms[0] / np.maximum(norms[1], 1e-3))[:, None, None]
    means = _average_tiles(one), _average_tiles(other)
    spreads = _average_tiles(one * one + other * other) - means[0] ** 2 - means[1] ** 2
    shared = _average_tiles(one * other) - means[0] * means[1]
    structure = (2 * shared + COARSE_NOISE**2) / (np.maximum(spreads, 0) + COARSE_NOISE**2)
    # A tile is compared where its first and its last pixel are.
    last = COARSE_TILE_PX - 1
    is_compared = is_covered[:, :-last, :-last] & is_covered[:, last:, last:]
    values = np.where(is_compared, structure, np.inf).reshape(len(wholes), -1)
    num_tiles = is_compared.sum(axis=(1, 2))
    place = np.floor(num_tiles * (1 - COARSE_SHARE) + 1e-9).astype(np.int64)  # so many may agree less
    values.sort(axis=1)
    found = np.take_along_axis(values, np.minimum(place, values.shape[1] - 1)[:, None], axis=1)[:, 0]
    return np.where(num_tiles > 0, found, 1).astype(np.float32)


def _average_tiles(pictures: FloatImages) -> FloatImages:
    """Return the mean of each square of ``COARSE_TILE_PX`` in ``(P, H, W)`` pictures."""
    for axis in (1, 2):
        length = pictures.shape[axis] - COARSE_TILE_PX + 1
        shifted = [np.take(pictures, range(start, start + length), axis=axis) for start in range(COARSE_TILE_PX)]
        pictures = functools.reduce(np.add, shifted)
    return pictures / np.float32(COARSE_TILE_PX**2)


def _mirror(pictures: FloatImages, is_mirrored: Numbers) -> FloatImages:
    turned = pictures.copy()
    rows = np.flatnonzero(is_mirrored)
    turned[rows] = pictures[rows, :, ::-1]
    return turned


def _correlate(
    wholes: FloatImages, integrals: Sequence[Sums], templates: FloatImages, owners: Numbers, tenants: Numbers
) -> FloatImages:
    """Correlate templates ``(V, h, w)``, as they are and mirrored, with all windows of the wholes ``(U, H, W)``.

    Args:
        wholes: The wholes.
        integrals: Sums of their pixels and of the squares of these (``_integrate``).
        templates: The parts.
        owners: ``(P,)`` number of each pair's whole, rising.
        tenants: ``(P,)`` number of its part.

    Returns:
        ``(P, 2, windows)`` correlations.
    """
    shape = templates.shape[1:]
    num_pixels = shape[0] * shape[1]
    windows = sliding_window_view(wholes, shape, axis=(1, 2)).reshape(len(wholes), -1, num_pixels)
    centered = templates - templates.mean(axis=(1, 2), keepdims=True)
    sides = np.stack([centered, centered[:, :, ::-1]], axis=1).reshape(len(templates), 2, num_pixels)[tenants]
    products = np.empty((len(owners), 2, windows.shape[1]), dtype=np.float32)
    bounds = np.searchsorted(owners, np.arange(len(wholes) + 1)).tolist()
    for whole, start, stop in zip(windows, bounds, bounds[1:], strict=False):
        out = products[start:stop].reshape(-1, windows.shape[1])
        multiply(sides[start:stop].reshape(-1, num_pixels), whole.T, out)
    sums, squares = (_sum_windows(integral, shape) for integral in integrals)
    window_norms = np.sqrt(np.maximum(squares - sums**2 / num_pixels, 0)).astype(np.float32)[owners]
    norms = np.linalg.norm(centered.reshape(len(templates), -1), axis=1)[tenants, None]
    least = np.float32(LEAST_DEVIATION * num_pixels**0.5)
    inverse = np.where((window_norms >= least) & (norms >= least), 1 / np.maximum(window_norms * norms, least**2), 0)
    products *= inverse[:, None, :].astype(np.float32)
    return products


def _integrate(pictures: Sums) -> Sums:
    """Return the sums of all pixels above and left of each corner of ``(U, H, W)`` pictures."""
    sums = np.zeros((len(pictures), pictures.shape[1] + 1, pictures.shape[2] + 1))
    np.cumsum(pictures, axis=1, out=sums[:, 1:, 1:])
    np.cumsum(sums[:, 1:, 1:], axis=2, out=sums[:, 1:, 1:])
    return sums


def _sum_windows(integral: Sums, shape: Shape) -> Sums:
    """Return the sums of all windows of a shape: ``(U, windows)``."""
    height, width = shape
    rows = integral[:, height:] - integral[:, :-height]
    return np.asarray((rows[:, :, width:] - rows[:, :, :-width]).reshape(len(integral), -1))


def fit_into(shape: Sequence[int], longest_px: int) -> Shape:
    """Return height and width of a picture whose longest side is to have at most so many pixels."""
    scale = min(1.0, longest_px / max(shape))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def list_sizes(part: Sequence[int], room: Sequence[int], scales: Sequence[float]) -> Iterator[tuple[float, Shape]]:
    """Yield the sizes of a part, as shares of the largest that fits into a room, none of them twice."""
    largest = min(room[0] / part[0], room[1] / part[1])
    seen = set()
    for scale in scales:
        height, width = (max(1, round(side * largest * scale)) for side in part)
        shape = (min(height, room[0]), min(width, room[1]))
        if scale == 1 and fit_into(part, max(room)) == tuple(room):
            shape = (room[0], room[1])  # the ratio of the sides is that of the room, but for rounding
        if shape not in seen:
            seen.add(shape)
            yield scale, shape


def shrink(pictures: npt.NDArray[np.uint8] | FloatImages, shape: Shape) -> FloatImages:
    """Shrink ``(P, H, W)`` pictures to ``(P, h, w)``: each new pixel is the mean of the area that it covers."""
    rows, columns = _weigh_areas(pictures.shape[1], shape[0]), _weigh_areas(pictures.shape[2], shape[1])
    shrunk: FloatImages = rows @ (pictures.astype(np.float32, copy=False) @ columns.T)
    return shrunk


@functools.lru_cache(maxsize=1024)
def _weigh_areas(num_old: int, num_new: int) -> FloatImages:
    """Compute ``(num_new, num_old)`` shares of old pixels in the new ones, which divide the same length."""
    edges = np.linspace(0, num_old, num_new + 1)
    old = np.arange(num_old)
    covered = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    weights: FloatImages = (np.maximum(covered, 0) * num_new / num_old).astype(np.float32)
    return weights
