"""Laying one picture on another: where, and how well, does one of them fit into the other, mirrored or not?

An encoder tells what a picture shows. Whether two pictures *are* the same one, of which a part was cut away, a frame
was added or left and right were exchanged, their pixels tell better. Thumbnails that do not fit each other anywhere are
no copies (``placing.py``); what fits is compared region by region (``agreement.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from vitrieve.curation.placing import LEAST_DEVIATION, Found, fit_into, place_parts, shrink
from vitrieve.machine import count_cores
from vitrieve.progress import track

THUMBNAIL_PX = 48
"""Longest side of the gray pictures that are compared; they are laid on each other at ``COARSE_PX``."""
BLOCK_PAIRS = 256
"""Pairs that are laid on each other at once: few enough for a processor's cache."""
DESCRIPTION_PX = 12
"""Both sides of the picture that describes a thumbnail."""
EVEN_DEVIATION = 6.0
"""Rows and columns at the edges whose gray values deviate less belong to a frame."""

GrayImage = npt.NDArray[np.uint8]
FloatImage = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]


class Place(NamedTuple):
    """Where a part lies in a whole.

    Attributes:
        fit: Correlation there, in [-1, 1].
        is_swapped: Whether the first picture of the pair is the part.
        top: Where its upper edge lies, as a share of the whole's height.
        bottom: Where its lower edge lies.
        left: Where its left edge lies, as a share of the whole's width.
        right: Where its right edge lies.
    """

    fit: float = 0.0
    is_swapped: bool = False
    top: float = 0.0
    bottom: float = 1.0
    left: float = 0.0
    right: float = 1.0


def make_thumbnail(image: Image.Image) -> GrayImage:
    """Make the small gray picture that ``find_places`` compares.

    Args:
        image: An RGB picture of any size.

    Returns:
        ``(H, W)`` gray values; the longest side has at most ``THUMBNAIL_PX``.
    """
    height, width = fit_into(image.size[::-1], THUMBNAIL_PX)
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
    values = shrink(thumbnail[None], (DESCRIPTION_PX, DESCRIPTION_PX)).ravel()
    values -= values.mean()
    length = float(np.linalg.norm(values))
    return values / length if length > LEAST_DEVIATION else np.zeros_like(values)


def find_places(
    firsts: Sequence[GrayImage], seconds: Sequence[GrayImage], *, show_progress: bool = False
) -> list[Place]:
    """Find for each pair where one picture, or its mirror image, lies within the other with the highest correlation.

    Each of the two is taken for the part in turn.

    Args:
        firsts: ``(H, W)`` gray values of each pair's one picture (``make_thumbnail``), of any sizes. What is computed
            of an array alone is shared by pairs of a block that hold the same object.
        seconds: Those of the other picture.
        show_progress: Report progress on standard error.

    Returns:
        P places. Their fit is Pearson's correlation of the gray values of the part with those that it covers, where it
        was first laid on them in small copies; 0 where there is nothing to compare, or the small copies differ. It does
        not depend on brightness and contrast.
    """
    if not firsts:
        return []
    pictures = list({id(picture): picture for picture in (*firsts, *seconds)}.values())
    numbers = {id(picture): number for number, picture in enumerate(pictures)}
    one, other = (np.array([numbers[id(picture)] for picture in side]) for side in (firsts, seconds))
    wholes, parts = np.concatenate([one, other]), np.concatenate([other, one])
    blocks = list(_list_blocks(np.array([picture.shape for picture in pictures]), wholes, parts))

    def place_block(block: Numbers) -> Found:
        whole_numbers, owners = np.unique(wholes[block], return_inverse=True)
        part_numbers, tenants = np.unique(parts[block], return_inverse=True)
        return place_parts(
            [pictures[number] for number in whole_numbers],
            [pictures[number] for number in part_numbers],
            owners,
            tenants,
        )

    fits, frames = np.zeros(len(wholes), dtype=np.float32), np.zeros((len(wholes), 4))
    with ThreadPoolExecutor(min(4, count_cores())) as pool:
        placed = track(
            pool.map(place_block, blocks), "lay pictures on each other", total=len(blocks), is_shown=show_progress
        )
        for block, found in zip(blocks, placed, strict=True):
            fits[block], frames[block] = found.fits, found.frames
    is_swapped = fits[len(one) :] > fits[: len(one)]
    chosen = np.arange(len(one)) + np.where(is_swapped, len(one), 0)
    return [
        Place(fit, swapped, *frame) if fit > 0 else Place()
        for fit, swapped, frame in zip(fits[chosen].tolist(), is_swapped.tolist(), frames[chosen].tolist(), strict=True)
    ]


def _list_blocks(shapes: Numbers, wholes: Numbers, parts: Numbers) -> Iterator[Numbers]:
    """Divide pairs, so that all wholes of a block have one size, and all parts, and that pairs of a whole are together.

    Args:
        shapes: ``(N, 2)``; height and width of each picture.
        wholes: ``(P,)`` number of each pair's whole.
        parts: ``(P,)`` number of its part.

    Yields:
        Numbers of pairs, ordered by their wholes.
    """
    _, kinds = np.unique(shapes @ [shapes.max() + 1, 1], return_inverse=True)
    both = kinds[wholes] * (kinds.max() + 1) + kinds[parts]
    order = np.lexsort((parts, wholes, both))
    for group in np.split(order, np.flatnonzero(np.diff(both[order])) + 1):
        for start in range(0, len(group), BLOCK_PAIRS):
            yield group[start : start + BLOCK_PAIRS]
