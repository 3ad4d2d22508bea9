"""Whether two pictures that fit each other agree in every region.

``registration.py`` finds where one picture lies in another, and how well gray thumbnails correlate there as a whole.
Most of that can come from a ground that both show: two sweaters on one table correlate by 0.98. So the two are laid on
each other to a fraction of a pixel, and compared tile by tile, in structure, lightness and color. Three quarters of all
tiles have to agree, and a quarter of those in every region of three tenths of the longer side: a line of text may
differ, a thing may not.

Source: the structure term of Wang, Bovik, Sheikh and Simoncelli, *Image Quality Assessment: From Error Visibility to
Structural Similarity*, 2004, equation 13; the alignment is that of Lucas and Kanade, 1981, for four edges, brightness
and contrast, with Cauchy's weights. What differs is that the worst region counts, and not the mean.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from vitrieve.curation.registration import Place

PICTURE_PX = 96
"""Longest side of the color pictures that are compared in the end."""
BLURS = (0.02, 0.008)
"""Blurs under which a place is made more exact, one after the other, as shares of the whole's longer side."""
NUM_ROUNDS = 4
"""Steps of that under each blur."""
MAX_STEP = 0.02
"""The farthest that an edge moves in a step, as a share of the longer side."""
TILE = 0.07
"""Side of the tiles in which structure and color are compared, as a share of the longer side."""
REGION = 0.3
"""Side of the regions of which each has to agree, as a share of the longer side."""
AGREEING_SHARE = 0.25
"""Share of the tiles of a region that is enough: a line of text may cover the others."""
DIFFERING_SHARE = 0.25
"""Share of all tiles that may differ."""
GRAY_NOISE, COLOR_NOISE, LIGHT_NOISE = 4.0, 12.0, 40.0
"""Deviations in [0, 255] that tell nothing: of gray values and of colors those of compression and of even areas; of the
lightness of a tile that of a picture whose contrast was changed."""
LEAST_PX = 12
"""Pictures, or what they share, tell nothing where a side is shorter."""
NO_AGREEMENT = -1.0

AnyPicture = npt.NDArray[np.uint8]
FloatImage = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.float64]
Span = tuple[int, int]
_TO_GRAY = np.array([0.299, 0.587, 0.114], dtype=np.float32)


class Frame(NamedTuple):
    """Where the edges of a part lie in a whole, in pixels of the whole."""

    top: float
    bottom: float
    left: float
    right: float


def make_picture(image: Image.Image) -> AnyPicture:
    """Make the small color picture that is compared: ``(H, W, 3)``, at most ``PICTURE_PX`` long.

    Args:
        image: An RGB picture of any size.
    """
    scale = min(1.0, PICTURE_PX / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def measure_agreement(first: AnyPicture, second: AnyPicture, place: Place, *, num_rounds: int = NUM_ROUNDS) -> float:
    """Compute how well two pictures agree in their worst region, where one of them lies in the other.

    Args:
        first: ``(H, W)`` gray values or ``(H, W, 3)`` colors of one picture, in [0, 255].
        second: Those of the other, of any size.
        place: Where one of the two lies in the other (``find_places``).
        num_rounds: Steps under each blur that make the place more exact; 0: it is taken as it is.

    Returns:
        Agreement in [-1, 1]: near 1 for copies, whatever their brightness, contrast and saturation; low where much of
        the two, or a region, shows two different things or two colors; ``NO_AGREEMENT`` where too little is there.
    """
    whole, part = (second, first) if place.is_swapped else (first, second)
    return _measure(whole.astype(np.float32), part.astype(np.float32), place, num_rounds)


def _measure(whole: FloatImage, part: FloatImage, place: Place, num_rounds: int) -> float:
    scale = place.scale * min(whole.shape[0] / part.shape[0], whole.shape[1] / part.shape[1])
    if scale > 1:  # the coarser of the two says in which pixels they are compared
        height, width = (max(1, round(side / scale)) for side in whole.shape[:2])
        whole = _resample(whole, Frame(0, height, 0, width), (0, height), (0, width))
        scale = 1.0
    top, left = place.top * whole.shape[0], place.left * whole.shape[1]
    frame = Frame(top, top + scale * part.shape[0], left, left + scale * part.shape[1])
    gray = _to_gray(whole)
    part = max((part, part[:, ::-1]), key=lambda side: _correlate(gray, _to_gray(side), frame))
    found = _align(gray, _to_gray(part), frame, num_rounds) if num_rounds else frame
    if found is None:
        return NO_AGREEMENT
    (rows, columns), tile = _cover(found, gray.shape, 0.0), max(3, round(TILE * max(gray.shape)))
    if min(rows[1] - rows[0], columns[1] - columns[0]) < max(LEAST_PX, 2 * tile):
        return NO_AGREEMENT
    laid = _resample(part, found, rows, columns)
    tiles = _compare_tiles(laid, whole[slice(*rows), slice(*columns)], tile)
    return min(float(np.quantile(tiles, DIFFERING_SHARE)), _find_worst(tiles, max(gray.shape)))


def _to_gray(picture: FloatImage) -> FloatImage:
    return picture if picture.ndim == 2 else picture @ _TO_GRAY


def _cover(frame: Frame, shape: tuple[int, ...], margin: float) -> tuple[Span, Span]:
    """Return the rows and columns of the whole that lie in a frame, and at least so far away from its edges."""
    slack = 1e-3  # a whole pixel that rounding has cut by that much is one
    rows, columns = (
        (
            max(0, int(np.ceil(start + margin - slack))),
            min(side, int(np.floor(stop - margin + slack))),
        )
        for start, stop, side in zip(frame[::2], frame[1::2], shape, strict=False)
    )
    return rows, columns


def _resample(part: FloatImage, frame: Frame, rows: Span, columns: Span) -> FloatImage:
    """Lay a part into a frame; return those rows and columns of the whole, each pixel the mean of what it covers."""
    down = _weigh(part.shape[0], frame.top, frame.bottom, rows)
    across = _weigh(part.shape[1], frame.left, frame.right, columns)
    if part.ndim == 2:
        return np.asarray(down @ part @ across.T, dtype=np.float32)
    return np.stack([down @ part[:, :, channel] @ across.T for channel in range(part.shape[2])], axis=2)


def _weigh(num_old: int, start: float, stop: float, span: Span) -> FloatImage:
    """Compute shares of old pixels, which lie between two edges, in new ones: ``(number of new ones, num_old)``."""
    edges = (np.arange(span[0], span[1] + 1) - start) * (num_old / (stop - start))
    old = np.arange(num_old)
    covered = np.maximum(0, np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old))
    weights: FloatImage = (covered / np.maximum(covered.sum(axis=1, keepdims=True), 1e-6)).astype(np.float32)
    return weights


def _correlate(whole: FloatImage, part: FloatImage, frame: Frame) -> float:
    rows, columns = _cover(frame, whole.shape, 0.0)
    laid, covered = _resample(part, frame, rows, columns), whole[slice(*rows), slice(*columns)]
    if not laid.size:
        return 0.0
    laid, covered = laid - laid.mean(), covered - covered.mean()
    return float((laid * covered).sum() / max(1e-6, float(np.linalg.norm(laid) * np.linalg.norm(covered))))


def _align(whole: FloatImage, part: FloatImage, frame: Frame, num_rounds: int) -> Frame | None:
    """Move the edges of a frame to where the part in it is most like the whole; None where it becomes too small.

    What the blur mixes with what lies beyond the part's own edges is left out, so that no frame around it pulls.
    """
    longest = max(whole.shape)
    for share in BLURS:
        sigma = max(0.5, share * longest)
        smooth = _blur(whole, (sigma, sigma))
        scales = (part.shape[0] / (frame.bottom - frame.top), part.shape[1] / (frame.right - frame.left))
        smooth_part = _blur(part, (sigma * scales[0], sigma * scales[1]))
        for _ in range(num_rounds):
            rows, columns = _cover(frame, whole.shape, 2 * sigma)
            if min(rows[1] - rows[0], columns[1] - columns[0]) < LEAST_PX:
                return None
            moves = _find_moves(smooth[slice(*rows), slice(*columns)], smooth_part, frame, rows, columns)
            limit = MAX_STEP * longest
            frame = Frame(*(np.array(frame) + np.clip(moves, -limit, limit)).tolist())
    return frame


def _find_moves(covered: FloatImage, part: FloatImage, frame: Frame, rows: Span, columns: Span) -> Numbers:
    """Return how far the top, bottom, left and right edge have to move, to first order."""
    laid = _resample(part, frame, rows, columns)
    gain = float(covered.std()) / max(float(laid.std()), 1e-3)
    rest = covered - gain * laid
    rest -= rest.mean()
    weights = 1 / (1 + (rest / (2 * float(np.abs(rest).mean()) + 2)) ** 2)  # what differs has little say
    down, across = np.gradient(laid)
    below = ((np.arange(*rows) + 0.5 - frame.top) / (frame.bottom - frame.top)).astype(np.float32)[:, None]
    beside = ((np.arange(*columns) + 0.5 - frame.left) / (frame.right - frame.left)).astype(np.float32)
    down, across = -gain * down, -gain * across
    causes = np.stack(
        [down * (1 - below), down * below, across * (1 - beside), across * beside, laid, np.ones_like(laid)]
    ).reshape(6, -1)
    weighted = causes * weights.ravel()
    normal = (weighted @ causes.T).astype(np.float64)
    normal[np.arange(4), np.arange(4)] += 0.01 * laid.size  # where nothing has structure, nothing moves
    normal[np.arange(4, 6), np.arange(4, 6)] += 1e-6 * normal[4, 4] + 1e-6
    return np.asarray(np.linalg.solve(normal, (weighted @ rest.ravel()).astype(np.float64))[:4])


def _blur(picture: FloatImage, sigmas: tuple[float, float]) -> FloatImage:
    down, across = (_weigh_blur(side, round(sigma, 2)) for side, sigma in zip(picture.shape, sigmas, strict=True))
    return np.asarray(down @ picture @ across.T, dtype=np.float32)


@functools.lru_cache(maxsize=1024)
def _weigh_blur(num_pixels: int, sigma: float) -> FloatImage:
    places = np.arange(num_pixels)
    weights = np.exp(-((places[:, None] - places) ** 2) / (2 * max(sigma, 0.1) ** 2))
    blur: FloatImage = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return blur


def _compare_tiles(one: FloatImage, other: FloatImage, tile: int) -> Numbers:
    """Return the agreement of each tile of two pictures of one size, in structure, lightness and color."""
    first, second = _to_gray(one), _to_gray(other)
    first, second = first - first.mean(), second - second.mean()
    first = first * (float(np.linalg.norm(second)) / max(float(np.linalg.norm(first)), 1e-3))
    means = _average(first, tile), _average(second, tile)
    spreads = _average(first**2, tile) - means[0] ** 2 + _average(second**2, tile) - means[1] ** 2
    shared = _average(first * second, tile) - means[0] * means[1]
    structure = (2 * shared + GRAY_NOISE**2) / (np.maximum(spreads, 0) + GRAY_NOISE**2)
    lightness = LIGHT_NOISE**2 / (LIGHT_NOISE**2 + (means[0] - means[1]) ** 2)
    gray: Numbers = np.minimum(structure, lightness)
    if one.ndim == 2:
        return gray
    colors = [picture[:, :, ::2] - _to_gray(picture)[:, :, None] for picture in (one, other)]
    colors.sort(key=lambda color: float((color**2).sum()))
    pale, vivid = colors
    share = float((pale * vivid).sum()) / max(float((vivid**2).sum()), 1e-3)
    vivid = vivid * min(1.0, max(0.0, share))  # at 0, a gray copy is one
    tones = [np.stack([_average(color[:, :, channel], tile) for channel in range(2)]) for color in (pale, vivid)]
    alike = 2 * (tones[0] * tones[1]).sum(axis=0) + COLOR_NOISE**2
    color: Numbers = alike / ((tones[0] ** 2).sum(axis=0) + (tones[1] ** 2).sum(axis=0) + COLOR_NOISE**2)
    least: Numbers = np.minimum(gray, color)
    return least


def _average(picture: FloatImage, size: int) -> Numbers:
    """Return the mean of each square of so many pixels."""
    sums = np.pad(picture.astype(np.float64), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    return np.asarray((sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]) / size**2)


def _find_worst(tiles: Numbers, longest_px: int) -> float:
    """Return the lowest, over all regions, of what their ``AGREEING_SHARE`` of best tiles reaches."""
    shape = [min(round(REGION * longest_px), side) for side in tiles.shape]
    step = max(1, round(TILE * longest_px / 3))
    regions = sliding_window_view(tiles, shape)[::step, ::step, ::2, ::2]
    regions = regions.reshape(*regions.shape[:2], -1)
    place = min(regions.shape[2] - 1, int((1 - AGREEING_SHARE) * regions.shape[2]))
    return float(np.partition(regions, place, axis=2)[:, :, place].min())
