"""Whether two pictures that fit each other agree in every region.

``registration.py`` finds where one picture lies in another, and how well gray thumbnails correlate there as a whole.
Most of that can come from a ground that both show: two sweaters on one table correlate by 0.98. So the two are laid on
each other to a fraction of a pixel, and compared tile by tile, in structure, lightness and color. Three quarters of all
tiles have to agree, and a quarter of those in every region of three tenths of the longer side: a line of text may
differ, a thing may not. Where both pictures are even, tiles agree that tell nothing: a corner of two birds before two
skies, or a flat drawing. So a third of the tiles that show something have to agree, too. And what is there in the one
picture alone and, elsewhere, in the other alone counts more: the hands of two clocks.

Source: the structure term of Wang, Bovik, Sheikh and Simoncelli, *Image Quality Assessment: From Error Visibility to
Structural Similarity*, 2004, equation 13. What differs is that the worst region counts, and not the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from vitrieve.curation.alignment import FloatImages, Frames, cover, find_moves, multiply, resample
from vitrieve.curation.registration import Place

PICTURE_PX = 96
"""Longest side of the color pictures that are compared in the end."""
BLURS = (0.02, 0.008)
"""Blurs under which a place is made more exact, one after the other, as shares of the whole's longer side."""
NUM_ROUNDS = 4
"""Steps of that under each blur."""
TILE = 0.07
"""Side of the tiles in which structure and color are compared, as a share of the longer side."""
REGION = 0.3
"""Side of the regions of which each has to agree, as a share of the longer side."""
AGREEING_SHARE = 0.25
"""Share of the tiles of a region that is enough: a line of text may cover the others."""
DIFFERING_SHARE = 0.25
"""Share of all tiles that may differ."""
GRAY_NOISE, COLOR_NOISE, LIGHT_NOISE = 4.0, 12.0, 40.0
"""Deviations in [0, 255] that tell nothing. Gray values and colors deviate so by compression and in even areas; the
lightness of a tile deviates so where the contrast of a picture was changed."""
STRUCTURE, EVEN_SHARE = 12.0, 0.4
"""A tile shows something where its gray values deviate by the first number. The other picture is even there where its
values deviate by less than the second number's share of that."""
SHOWN_SHARE = 1 / 3
"""Least share of the tiles that show something, in either picture, that has to agree: of few tiles more, both of two
and two of three. A caption may be all of the others."""
EXCHANGE_WEIGHT = 10.0
"""By how much each tile that is exchanged lowers the agreement, as a multiple of its share. A line of text is there in
one picture and covers little in the other; the hands of two clocks are in two places (``dev/LOG.md``)."""
LEAST_PX = 12
"""Pictures, or what they share, tell nothing where a side is shorter."""
NO_AGREEMENT = -1.0
EDGES = ("top", "bottom", "left", "right")

AnyPicture = npt.NDArray[np.uint8]
FloatImage = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.float64]
_TO_GRAY = np.array([0.299, 0.587, 0.114], dtype=np.float32)


class Agreement(NamedTuple):
    """How well two pictures agree, and where one lies in the other.

    Attributes:
        value: Agreement in [-1, 1]: near 1 for copies, whatever their brightness, contrast and saturation; low where
            much of the two, or a region, shows two different things or two colors; ``NO_AGREEMENT`` where too little is
            there.
        place: Where the one lies in the other, after it was made more exact.
    """

    value: float
    place: Place


def make_picture(image: Image.Image) -> AnyPicture:
    """Make the small color picture that is compared: ``(H, W, 3)``, at most ``PICTURE_PX`` long.

    Args:
        image: An RGB picture of any size.
    """
    scale = min(1.0, PICTURE_PX / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def measure_agreements(
    firsts: Sequence[AnyPicture],
    seconds: Sequence[AnyPicture],
    places: Sequence[Place],
    *,
    num_rounds: int = NUM_ROUNDS,
    blurs: tuple[float, ...] = BLURS,
) -> list[Agreement]:
    """Compute how well two pictures of each pair agree in their worst region, where one of them lies in the other.

    Args:
        firsts: ``(H, W)`` gray values or ``(H, W, 3)`` colors of each pair's one picture, in [0, 255].
        seconds: Those of the other, of any size. Pairs of equal sizes take less time together than one by one.
        places: Where one of the two lies in the other (``find_places``).
        num_rounds: Steps under each blur that make the place more exact; 0: it is taken as it is.
        blurs: Those blurs.
    """
    found = [Agreement(NO_AGREEMENT, place) for place in places]
    alike: dict[tuple[tuple[int, ...], ...], list[tuple[int, _Pair]]] = {}
    for number, (first, second, place) in enumerate(zip(firsts, seconds, places, strict=True)):
        if np.array_equal(first, second):  # also where nothing can be measured: a strip, or a single color
            found[number] = Agreement(1.0, place)
            continue
        pair = _prepare(first, second, place)
        alike.setdefault((pair.whole.shape, pair.part.shape), []).append((number, pair))
    for group in alike.values():
        numbers, pairs = zip(*group, strict=True)
        for number, pair, (value, shares) in zip(numbers, pairs, _measure(pairs, num_rounds, blurs), strict=True):
            place = pair.place._replace(**dict(zip(EDGES, shares.tolist(), strict=True)))
            found[number] = Agreement(value, place)
    return found


class _Pair(NamedTuple):
    """A whole, a part, and where it lies; the whole is not coarser than the part in its place."""

    whole: FloatImage
    part: FloatImage
    place: Place


def _prepare(first: AnyPicture, second: AnyPicture, place: Place) -> _Pair:
    whole, part = (side.astype(np.float32) for side in ((second, first) if place.is_swapped else (first, second)))
    sides = ((place.bottom - place.top) * whole.shape[0], (place.right - place.left) * whole.shape[1])
    scale = min(sides[0] / part.shape[0], sides[1] / part.shape[1])
    if scale > 1:  # the coarser of the two says in which pixels they are compared
        height, width = (max(1, round(side / scale)) for side in whole.shape[:2])
        whole = _lay(whole, np.array([0.0, height, 0.0, width]), (height, width))
    return _Pair(whole, part, place)


def _measure(pairs: Sequence[_Pair], num_rounds: int, blurs: tuple[float, ...]) -> list[tuple[float, Numbers]]:
    """Return of pairs of the same sizes the agreement, and the edges of the part as shares of the whole's sides."""
    grays = np.stack([_to_gray(pair.whole) for pair in pairs])
    gray_parts = np.stack([_to_gray(pair.part) for pair in pairs])
    shape = grays.shape[1:]
    sides = np.repeat(shape, 2)
    frames = np.array([[getattr(pair.place, edge) for edge in EDGES] for pair in pairs]) * sides
    is_mirrored = _fit(grays, gray_parts[:, :, ::-1], frames) > _fit(grays, gray_parts, frames)
    gray_parts[is_mirrored] = gray_parts[is_mirrored, :, ::-1]
    is_lost = np.zeros(len(pairs), dtype=bool)
    if num_rounds:
        frames, is_lost = _align(grays, gray_parts, frames, num_rounds, blurs)
    values = []
    for pair, frame, mirrored, lost in zip(pairs, frames, is_mirrored.tolist(), is_lost.tolist(), strict=True):
        part = pair.part[:, ::-1] if mirrored else pair.part
        values.append(NO_AGREEMENT if lost else _compare(pair.whole, part, frame))
    return list(zip(values, frames / sides, strict=True))


def _compare(whole: FloatImage, part: FloatImage, frame: Numbers) -> float:
    rows, columns = (
        slice(int(inside.argmax()), int(inside.argmax() + inside.sum()))
        for (inside,) in cover(frame[None], whole.shape[:2], 0.0)
    )
    longest = max(whole.shape[:2])
    tile = max(3, round(TILE * longest))
    if min(rows.stop - rows.start, columns.stop - columns.start) < max(LEAST_PX, 2 * tile):
        return NO_AGREEMENT
    laid = _lay(part, frame, whole.shape[:2])
    tiles, at_most = _compare_tiles(laid[rows, columns], whole[rows, columns], tile)
    reached = min(_find_reached(tiles, 1 - DIFFERING_SHARE), at_most)
    return max(NO_AGREEMENT, _find_worst(tiles, longest, reached))


def _to_gray(picture: FloatImage) -> FloatImage:
    gray: FloatImage = picture if picture.ndim == 2 else picture @ _TO_GRAY
    return gray


def _lay(part: FloatImage, frame: Numbers, shape: tuple[int, ...]) -> FloatImage:
    """Lay a gray or colored part into a frame, on the pixels of the whole."""
    if part.ndim == 2:
        gray: FloatImage = resample(part[None], frame[None], shape)[0]
        return gray
    return resample(np.ascontiguousarray(part.transpose(2, 0, 1)), frame[None], shape).transpose(1, 2, 0)


def _fit(wholes: FloatImages, parts: FloatImages, frames: Frames) -> Numbers:
    """Correlate parts with what they cover: ``(P,)``."""
    rows, columns = cover(frames, wholes.shape[1:], 0.0)
    is_covered = (rows[:, :, None] & columns[:, None, :]).astype(np.float32)
    num_covered = np.maximum(is_covered.sum(axis=(1, 2), keepdims=True), 1)
    one, other = (
        is_covered * (picture - (picture * is_covered).sum(axis=(1, 2), keepdims=True) / num_covered)
        for picture in (wholes, resample(parts, frames, wholes.shape[1:]))
    )
    norms = [np.sqrt(np.einsum("phw,phw->p", picture, picture)) for picture in (one, other)]
    return np.asarray(np.einsum("phw,phw->p", one, other) / np.maximum(norms[0] * norms[1], 1e-6), dtype=np.float64)


def _align(
    wholes: FloatImages, parts: FloatImages, frames: Frames, num_rounds: int, blurs: tuple[float, ...]
) -> tuple[Frames, npt.NDArray[np.bool_]]:
    """Move the edges of frames to where the part in each is most like the whole; say which have become too small.

    What the blur mixes with what lies beyond the part's own edges is left out, so that no frame around it pulls.
    """
    is_lost = np.zeros(len(frames), dtype=bool)
    for share in blurs:
        sigma = max(0.5, share * max(wholes.shape[1:]))
        scales = np.array(parts.shape[1:]) / (frames[:, 1::2] - frames[:, ::2])
        smooth, smooth_parts = _blur(wholes, np.full((1, 2), sigma)), _blur(parts, sigma * scales)
        for _ in range(num_rounds):
            inside = cover(frames, wholes.shape[1:], 2 * sigma)
            is_lost |= np.minimum(*(of_side.sum(axis=1) for of_side in inside)) < LEAST_PX
            moves = find_moves(smooth, smooth_parts, frames, 2 * sigma)
            frames = np.where(is_lost[:, None], frames, frames + moves)
    return frames, is_lost


def _blur(pictures: FloatImages, sigmas: Numbers) -> FloatImages:
    """Blur ``(P, H, W)`` pictures, each by its two deviations or all by the same: ``(P or 1, 2)``."""
    down, across = (_weigh_blur(side, sigmas[:, axis]) for axis, side in enumerate(pictures.shape[1:]))
    return multiply(multiply(down, pictures), across.transpose(0, 2, 1))


def _weigh_blur(num_pixels: int, sigmas: Numbers) -> FloatImages:
    places = np.arange(num_pixels)
    squares = ((places[:, None] - places) ** 2).astype(np.float32)
    weights = np.exp(squares / (-2 * np.maximum(sigmas, 0.1) ** 2).astype(np.float32)[:, None, None])
    weights /= weights.sum(axis=2, keepdims=True)
    return np.asarray(weights, dtype=np.float32)


def _compare_tiles(one: FloatImage, other: FloatImage, tile: int) -> tuple[FloatImage, float]:
    """Return the agreement of each tile of two pictures of one size, in structure, lightness and color.

    Beside it stands an upper bound of the agreement of the pictures: the smaller of two numbers, both from the tiles
    that show something. The one is what ``SHOWN_SHARE`` of these tiles reach. The other is 1, less ``EXCHANGE_WEIGHT``
    times the share of them in which the first picture shows something and the second is even, or of those in which it
    is the other way round; the smaller of these two shares counts.
    """
    first, second = _to_gray(one), _to_gray(other)
    first, second = first - first.mean(), second - second.mean()
    first = first * (float(np.linalg.norm(second)) / max(float(np.linalg.norm(first)), 1e-3))
    averages = _average(np.stack([first, second, first**2, second**2, first * second]), tile)
    spreads = np.maximum(averages[2:4] - averages[:2] ** 2, 0)
    shared = averages[4] - averages[0] * averages[1]
    structure = (2 * shared + GRAY_NOISE**2) / (spreads[0] + spreads[1] + GRAY_NOISE**2)
    lightness = LIGHT_NOISE**2 / (LIGHT_NOISE**2 + (averages[0] - averages[1]) ** 2)
    gray: FloatImage = np.minimum(structure, lightness)
    if one.ndim == 2:
        return gray, 1.0  # thumbnails are too small to tell: a line of text may cover what is there
    is_there, is_even = spreads >= STRUCTURE**2, spreads < EVEN_SHARE**2 * spreads[::-1]
    num_alone = (is_there & is_even[::-1]).sum(axis=(1, 2))
    is_shown = is_there.any(axis=0)
    exchanged = float(num_alone.min() / max(1, np.count_nonzero(is_shown)))
    colors = [picture[:, :, ::2] - _to_gray(picture)[:, :, None] for picture in (one, other)]
    colors.sort(key=lambda color: float((color**2).sum()))
    pale, vivid = colors
    share = float((pale * vivid).sum()) / max(float((vivid**2).sum()), 1e-3)
    vivid = vivid * min(1.0, max(0.0, share))  # at 0, a gray copy is one
    tones = _average(np.concatenate([pale, vivid], axis=2).transpose(2, 0, 1), tile)
    alike = 2 * (tones[:2] * tones[2:]).sum(axis=0) + COLOR_NOISE**2
    color: FloatImage = alike / ((tones**2).sum(axis=0) + COLOR_NOISE**2)
    least: FloatImage = np.minimum(gray, color)
    return least, min(1 - EXCHANGE_WEIGHT * exchanged, _find_reached(least[is_shown], SHOWN_SHARE))


def _find_reached(tiles: FloatImage, share: float) -> float:
    """Return the agreement that at least a share of some tiles reaches; of none it is 1.

    Of few tiles it is more than the share: with a third, two of three, and both of two.

    >>> _find_reached(np.float32([0.1, 0.5, 0.9]), 1 / 3), _find_reached(np.float32([0.25, 0.75]), 1 / 3)
    (0.5, 0.25)
    """
    if not tiles.size:
        return 1.0
    place = int((1 - share) * (tiles.size - 1))
    return float(np.partition(tiles, place, axis=None)[place])


def _average(pictures: FloatImages, size: int) -> FloatImages:
    """Return the mean of each square of so many pixels in ``(K, H, W)`` pictures."""
    for axis in (1, 2):
        pictures = _sum_neighbors(pictures, size, axis)
    return pictures / np.float32(size**2)


def _sum_neighbors(pictures: FloatImages, size: int, axis: int) -> FloatImages:
    """Return the sums of so many neighbors along an axis, from sums of 1, 2, 4, … of them."""
    num_places = pictures.shape[axis] - size + 1
    total: FloatImages = np.zeros(1, dtype=np.float32)
    start, length = 0, 1
    while True:
        if size & length:
            total = total + _cut(pictures, start, start + num_places, axis)
            start += length
        if start == size:
            return total
        num_left = pictures.shape[axis] - length
        pictures = _cut(pictures, 0, num_left, axis) + _cut(pictures, length, length + num_left, axis)
        length *= 2


def _cut(pictures: FloatImages, start: int, stop: int, axis: int) -> FloatImages:
    return pictures[:, start:stop] if axis == 1 else pictures[:, :, start:stop]


def _find_worst(tiles: FloatImage, longest_px: int, at_most: float) -> float:
    """Return the lowest, over all regions, of what their ``AGREEING_SHARE`` of best tiles reaches, or ``at_most``.

    The lower of the two counts.
    Instead of sorting each region, values are tried: one is reached where each region has enough tiles of it or more.
    """
    shape = [min(round(REGION * longest_px), side) for side in tiles.shape]
    step = max(1, round(TILE * longest_px / 3))
    num_tiles = shape[0] * shape[1]
    num_wanted = num_tiles - min(num_tiles - 1, int((1 - AGREEING_SHARE) * num_tiles))
    counts = np.zeros((tiles.shape[0] + 1, tiles.shape[1] + 1), dtype=np.int32)

    def is_reached(value: float) -> bool:
        np.cumsum(tiles >= value, axis=0, out=counts[1:, 1:])
        np.cumsum(counts[1:, 1:], axis=1, out=counts[1:, 1:])
        rows = counts[shape[0] :: step] - counts[: -shape[0] : step]
        return bool((rows[:, shape[1] :: step] - rows[:, : -shape[1] : step]).min() >= num_wanted)

    if is_reached(at_most):
        return at_most
    values = np.sort(tiles, axis=None)
    lowest, highest = 0, len(values) - 1  # every region reaches the lowest value
    while lowest < highest:
        middle = (lowest + highest + 1) // 2
        if is_reached(values[middle]):
            lowest = middle
        else:
            highest = middle - 1
    return float(values[lowest])
