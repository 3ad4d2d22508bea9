"""Comparing pairs of a collection's pictures in three steps, each of which leaves few pairs to the next.

1. Small copies are laid on each other, many pairs at once (``registration.py``).
2. Thumbnails are compared region by region where the small copies lie (``agreement.py``).
3. So are color pictures, which are read again for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from PIL import Image

from vitrieve.curation.agreement import BLURS, PICTURE_PX, Agreement, AnyPicture, make_picture, measure_agreements
from vitrieve.curation.material import Material
from vitrieve.curation.placing import LEAST_COARSE_FIT
from vitrieve.curation.registration import (
    DESCRIPTION_PX,
    THUMBNAIL_PX,
    GrayImage,
    Place,
    describe_thumbnail,
    find_places,
    make_thumbnail,
)
from vitrieve.data.check import map_ahead
from vitrieve.data.decode import describe_failure, open_picture, read_image_bytes
from vitrieve.data.records import ImageRecord
from vitrieve.errors import DecodeError
from vitrieve.index.store import MAX_BATCH_ROWS
from vitrieve.machine import count_cores
from vitrieve.progress import track
from vitrieve.similarity import FloatArray, Pairs

BLOCK_PAIRS = 1 << 19
"""Pairs whose thumbnails are laid on each other in one call; their places take some 200 megabytes at most."""
BLOCK_PICTURES = 4096
"""Pairs whose color pictures are in memory at the same time, in some 220 megabytes at most: 28 kB each."""
THUMBNAIL_ROUNDS, PICTURE_ROUNDS = 2, 2
"""Steps under each blur by which the place of a thumbnail is made more exact, and then, under the last blur, that of a
picture."""
LEAST_THUMBNAIL_AGREEMENT = 0.7
"""Pairs whose thumbnails agree less are not looked at more closely (``dev/LOG.md``)."""
THUMBNAILS_TOGETHER, PICTURES_TOGETHER = 32, 8
"""Pairs that a thread compares at once: few enough for a processor's cache."""


class Thumbnails:
    """Thumbnails of a collection's pictures, each made when it is first asked for."""

    def __init__(self, material: Material) -> None:
        self._material = material
        self._made: dict[int, GrayImage | str] = {}
        self._described: FloatArray | None = None

    def make(self, rows: Iterable[int], *, show_progress: bool = False) -> None:
        """Read the pictures of some rows."""
        wanted = sorted(set(rows) - self._made.keys())
        made = map_ahead(_make_thumbnail, self._fetch(wanted), min(4, count_cores()))
        for row, thumbnail in zip(
            wanted, track(made, "read pictures", total=len(wanted), is_shown=show_progress), strict=True
        ):
            self._made[row] = thumbnail

    def describe(self) -> FloatArray:
        """Describe the whole collection in gray pixels, ``(N, D)``; zeros where a picture cannot be read."""
        self.make(range(len(self._material.image_ids)))
        if self._described is None:
            described = np.zeros((len(self._made), DESCRIPTION_PX**2), dtype=np.float32)
            for row, made in self._made.items():
                if not isinstance(made, str):
                    described[row] = describe_thumbnail(made)
            self._described = described
        return self._described

    def _fetch(self, rows: Sequence[int]) -> Iterator[ImageRecord]:
        """Yield records, few of which are in memory at a time."""
        for start in range(0, len(rows), MAX_BATCH_ROWS):
            yield from self._material.fetch(rows[start : start + MAX_BATCH_ROWS])

    @property
    def failures(self) -> dict[int, str]:
        """Row -> why a picture that was asked for cannot be read."""
        return {row: made for row, made in self._made.items() if isinstance(made, str)}

    def measure_agreements(self, pairs: Pairs, *, show_progress: bool = False) -> npt.NDArray[np.float32]:
        """Compute the agreement of each pair, ``(P,)``; 0 where one of the two pictures cannot be read."""
        self.make(np.unique(np.concatenate([pairs.first, pairs.second])).tolist(), show_progress=show_progress)
        agreements = np.zeros(len(pairs.first), dtype=np.float32)
        closer: list[tuple[int, Place]] = []
        for start in range(0, len(agreements), BLOCK_PAIRS):
            numbers = []
            sides: tuple[list[GrayImage], list[GrayImage]] = ([], [])
            for number in range(start, min(start + BLOCK_PAIRS, len(agreements))):
                one, other = self._made[int(pairs.first[number])], self._made[int(pairs.second[number])]
                if not isinstance(one, str) and not isinstance(other, str):
                    numbers.append(number)
                    sides[0].append(one)
                    sides[1].append(other)
            found = measure_thumbnails(*sides, show_progress=show_progress)
            agreements[numbers] = [rough.value for rough in found]
            closer += [
                (number, rough.place)
                for number, rough in zip(numbers, found, strict=True)
                if rough.value >= LEAST_THUMBNAIL_AGREEMENT
            ]
        starts = range(0, len(closer), BLOCK_PICTURES)
        for start in track(
            starts, "compare in color", total=len(closer), weight=BLOCK_PICTURES, is_shown=show_progress
        ):
            block = closer[start : start + BLOCK_PICTURES]
            rows = [(int(pairs.first[number]), int(pairs.second[number])) for number, _ in block]
            agreements[[number for number, _ in block]] = self._compare_pictures(rows, [place for _, place in block])
        return agreements

    def _compare_pictures(self, rows: Sequence[tuple[int, int]], places: Sequence[Place]) -> list[float]:
        """Read the pictures of some pairs again, in color, and compute their agreements."""
        wanted = sorted({row for pair in rows for row in pair})
        pictures = dict(zip(wanted, map_ahead(_make_picture, self._fetch(wanted), min(4, count_cores())), strict=True))

        agreements = [0.0] * len(rows)  # of pictures that were there a moment ago
        numbers = []
        sides: tuple[list[AnyPicture], list[AnyPicture]] = ([], [])
        for number, (first, second) in enumerate(rows):
            one, other = pictures[first], pictures[second]
            if not isinstance(one, str) and not isinstance(other, str):
                numbers.append(number)
                sides[0].append(one)
                sides[1].append(other)
        for number, value in zip(
            numbers, compare_pictures(*sides, [places[number] for number in numbers]), strict=True
        ):
            agreements[number] = value
        return agreements


def measure_thumbnails(
    firsts: Sequence[GrayImage], seconds: Sequence[GrayImage], *, show_progress: bool = False
) -> list[Agreement]:
    """Find where one of two thumbnails lies in the other, and how well they agree there.

    Args:
        firsts: ``(H, W)`` gray values of each pair's one picture.
        seconds: Those of the other.
        show_progress: Report progress on standard error.

    Returns:
        The agreement of each pair; that of pairs that fit nowhere is 0.
    """
    places = find_places(firsts, seconds, show_progress=show_progress)
    found = [Agreement(0.0, place) for place in places]
    likely = [
        number
        for number, place in enumerate(places)
        if place.fit >= LEAST_COARSE_FIT or np.array_equal(firsts[number], seconds[number])
    ]
    measured = _measure_all(
        [firsts[number] for number in likely],
        [seconds[number] for number in likely],
        [places[number] for number in likely],
        THUMBNAILS_TOGETHER,
        num_rounds=THUMBNAIL_ROUNDS,
        blurs=BLURS,
        show_progress=show_progress,
    )
    for number, agreement in zip(likely, measured, strict=True):
        found[number] = agreement
    return found


def compare_pictures(
    firsts: Sequence[AnyPicture], seconds: Sequence[AnyPicture], places: Sequence[Place]
) -> list[float]:
    """Compute the agreements of pairs of color pictures whose thumbnails lie so."""
    measured = _measure_all(firsts, seconds, places, PICTURES_TOGETHER, num_rounds=PICTURE_ROUNDS, blurs=BLURS[-1:])
    return [agreement.value for agreement in measured]


def measure_copies(original: Image.Image, copies: Sequence[Image.Image]) -> list[float]:
    """Compute the agreement of a picture with copies of it, as ``Thumbnails`` does for pairs of a collection."""
    thumbnails = [make_thumbnail(copy) for copy in copies]
    roughly = measure_thumbnails([make_thumbnail(original)] * len(copies), thumbnails)
    closer = [number for number, rough in enumerate(roughly) if rough.value >= LEAST_THUMBNAIL_AGREEMENT]
    pictures = [make_picture(copies[number]) for number in closer]
    compared = compare_pictures(
        [make_picture(original)] * len(closer), pictures, [roughly[number].place for number in closer]
    )
    agreements = [rough.value for rough in roughly]
    for number, value in zip(closer, compared, strict=True):
        agreements[number] = value
    return agreements


def _measure_all(
    firsts: Sequence[AnyPicture],
    seconds: Sequence[AnyPicture],
    places: Sequence[Place],
    num_together: int,
    *,
    num_rounds: int,
    blurs: tuple[float, ...],
    show_progress: bool = False,
) -> list[Agreement]:
    """Compute the agreements of many pairs in threads, those of equal sizes together."""
    order = sorted(range(len(places)), key=lambda number: (firsts[number].shape, seconds[number].shape))
    chunks = [order[start : start + num_together] for start in range(0, len(order), num_together)]

    def measure(chunk: Sequence[int]) -> list[Agreement]:
        some, others = ([side[number] for number in chunk] for side in (firsts, seconds))
        chosen = [places[number] for number in chunk]
        return measure_agreements(some, others, chosen, num_rounds=num_rounds, blurs=blurs)

    found: dict[int, Agreement] = {}
    with ThreadPoolExecutor(min(4, count_cores())) as pool:
        done = track(pool.map(measure, chunks), "compare in gray", total=len(chunks), is_shown=show_progress)
        for chunk, measured in zip(chunks, done, strict=True):
            found.update(zip(chunk, measured, strict=True))
    return [found[number] for number in range(len(places))]


def _make_picture(record: ImageRecord) -> AnyPicture | str:
    try:
        with open_picture(read_image_bytes(record.path), box=record.box, enough_px=PICTURE_PX) as picture:
            return make_picture(picture)
    except (DecodeError, MemoryError) as error:
        return describe_failure(error)


def _make_thumbnail(record: ImageRecord) -> GrayImage | str:
    try:
        with open_picture(read_image_bytes(record.path), box=record.box, enough_px=THUMBNAIL_PX) as picture:
            return make_thumbnail(picture)
    except (DecodeError, MemoryError) as error:
        return describe_failure(error)
