"""Whether pictures agree in every region: copies do; two things on one ground, or in two colors, do not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.curation.drawings import draw_clock, draw_corner, draw_ring
from tests.curation.sweaters import draw_ground, lay_sweater
from vitrieve.curation import agreement
from vitrieve.curation.agreement import NO_AGREEMENT, AnyPicture, make_picture, measure_agreements
from vitrieve.curation.comparing import measure_copies
from vitrieve.curation.copies import COPIES
from vitrieve.curation.links import LEAST_AGREEMENT
from vitrieve.curation.registration import Place, find_places, make_thumbnail


def measure(one: Image.Image, other: Image.Image) -> float:
    return measure_copies(one, [other])[0]


def measure_laid(one: AnyPicture, other: AnyPicture, place: Place, **settings: int) -> float:
    return measure_agreements([one], [other], [place], **settings)[0].value


@pytest.mark.parametrize("seed", range(4))
def test_two_sweaters_on_one_ground_are_no_copies_however_well_they_correlate(seed: int) -> None:
    ground = draw_ground(seed)
    one, other = lay_sweater(ground, seed), lay_sweater(ground, seed + 100)
    (place,) = find_places([make_thumbnail(one)], [make_thumbnail(other)])
    assert place.fit > 0.97  # a copy by this alone
    assert measure(one, other) < 0.6
    assert measure(one, ground) < 0.6


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_copies_of_every_kind_agree_whichever_comes_first(make: Callable[..., Image.Image]) -> None:
    for seed in range(5):
        picture = lay_sweater(draw_ground(seed), seed)
        copy = make(picture, np.random.default_rng(seed))
        assert min(measure(picture, copy), measure(copy, picture)) > LEAST_AGREEMENT


def test_one_cut_in_two_colors_is_no_copy_but_a_gray_copy_is() -> None:
    ground = draw_ground(3)
    red, blue = lay_sweater(ground, 7, (150, 50, 50)), lay_sweater(ground, 7, (45, 65, 150))
    assert measure(red, blue) < 0.6
    assert measure(red, red.convert("L").convert("RGB")) > 0.95
    assert measure(red, ImageOps.mirror(red)) > 0.95


def test_clocks_that_tell_different_times_are_no_copies_but_a_clock_with_a_line_of_text_is_one() -> None:
    times = [(2, 0), (4, 30), (7, 0), (9, 30), (12, 0)]
    clocks = [draw_clock(*time) for time in times]
    assert max(measure(one, other) for one, other in pairwise(clocks)) < LEAST_AGREEMENT
    assert measure(draw_ring(0.8), draw_ring(0.6)) < LEAST_AGREEMENT
    for picture in (clocks[0], draw_ring(0.8)):
        for seed, make in enumerate(COPIES.values()):
            assert measure(picture, make(picture, np.random.default_rng(seed))) > 0.9


def test_two_things_in_a_corner_before_an_even_ground_are_no_copies() -> None:
    whole = Place(fit=1.0, top=0, bottom=1, left=0, right=1)
    pictures = [make_picture(draw_corner(seed)) for seed in (3, 4, 6, 7)]
    for one, other in itertools.combinations(pictures, 2):
        assert measure_laid(one, other, whole, num_rounds=0) < LEAST_AGREEMENT
    for make in COPIES.values():
        assert measure(draw_corner(3), make(draw_corner(3), np.random.default_rng(3))) > 0.9


def test_a_small_difference_is_a_caption_and_a_large_one_a_thing() -> None:
    ground = lay_sweater(draw_ground(1), 1)
    values = []
    for side in (20, 150):
        picture = ground.copy()
        noise = np.random.default_rng(0).integers(0, 256, (side // 5, side // 5, 3), dtype=np.uint8)
        picture.paste(Image.fromarray(noise).resize((side, side)), (40, 60))
        values.append(measure(ground, picture))
    assert values[0] > 0.95
    assert values[1] < 0.5


def test_the_place_is_made_exact_to_a_fraction_of_a_pixel() -> None:
    picture = lay_sweater(draw_ground(2), 2)
    part = make_picture(picture.crop((31, 23, 31 + 188, 23 + 235)))
    whole = make_picture(picture)
    right = Place(fit=1.0, top=23 / 300, bottom=258 / 300, left=31 / 240, right=219 / 240)
    wrong = right._replace(top=26 / 300, bottom=266 / 300, left=27 / 240, right=219 / 240)
    exact = measure_laid(whole, part, right, num_rounds=0)
    assert measure_laid(whole, part, wrong, num_rounds=0) < 0.8
    (found,) = measure_agreements([whole], [part], [wrong])
    assert found.value > exact - 0.05
    assert found.place[2:] == pytest.approx(right[2:], abs=0.005)


def test_what_is_too_small_or_plain_gives_no_wrong_answer() -> None:
    tiny = np.zeros((5, 5, 3), dtype=np.uint8)
    assert measure_laid(tiny, tiny + 1, Place()) == NO_AGREEMENT
    plain = np.full((40, 40), 7, dtype=np.uint8)
    assert measure_laid(plain, plain, Place()) == pytest.approx(1)
    assert measure_laid(plain, np.full((96, 2), 9, dtype=np.uint8), Place(right=0.1)) == NO_AGREEMENT
    for side in (1, 2, 13, 14, 700):
        assert measure(Image.new("RGB", (side, side)), lay_sweater(draw_ground(0), 0)) < LEAST_AGREEMENT


def test_many_pairs_of_several_sizes_agree_as_each_alone_does() -> None:
    pictures = [lay_sweater(draw_ground(seed % 3), seed).resize((240 - 20 * (seed % 4), 300)) for seed in range(6)]
    copies = [make(one, np.random.default_rng(seed)) for seed, one in enumerate(pictures) for make in COPIES.values()]
    firsts = [make_picture(picture) for picture in pictures for _ in COPIES]
    seconds = [make_picture(copy) for copy in copies]
    places = find_places(*([make_thumbnail(Image.fromarray(one)) for one in side] for side in (firsts, seconds)))
    together = measure_agreements(firsts, seconds, places)
    alone = [
        measure_agreements([one], [other], [place])[0]
        for one, other, place in zip(firsts, seconds, places, strict=True)
    ]
    assert [one.value for one in together] == pytest.approx([one.value for one in alone], abs=1e-4)
    assert [one.place for one in together] == [pytest.approx(one.place, abs=1e-4) for one in alone]
    assert np.mean([one.value > LEAST_AGREEMENT for one in together]) > 0.9
    assert measure_agreements([], [], []) == []


def test_the_worst_region_is_that_of_a_slow_search() -> None:
    generator = np.random.default_rng(0)
    for shape in ((61, 83), (30, 90), (20, 20)):
        tiles = generator.uniform(-1, 1, shape)
        tiles[: shape[0] // 2, : shape[1] // 2] -= 0.5
        worst = search_worst(tiles, 90)
        assert agreement._find_worst(tiles, 90, 1.0) == worst
        assert agreement._find_worst(tiles, 90, worst - 0.01) == worst - 0.01


def test_means_of_squares_are_those_of_a_slow_loop() -> None:
    pictures = np.random.default_rng(0).uniform(0, 255, (2, 13, 17)).astype(np.float32)
    for size in (1, 3, 4, 7, 13):
        found = agreement._average(pictures, size)
        assert found.shape == (2, 14 - size, 18 - size)
        for row, column in itertools.product(range(14 - size), range(18 - size)):
            means = pictures[:, row : row + size, column : column + size].mean(axis=(1, 2))
            assert found[:, row, column] == pytest.approx(means, rel=1e-5)


def search_worst(tiles: np.ndarray, longest_px: int) -> float:
    """Sort the tiles of each region."""
    height, width = (min(round(agreement.REGION * longest_px), side) for side in tiles.shape)
    step = max(1, round(agreement.TILE * longest_px / 3))
    worst = np.inf
    for top in range(0, tiles.shape[0] - height + 1, step):
        for left in range(0, tiles.shape[1] - width + 1, step):
            values = np.sort(tiles[top : top + height, left : left + width], axis=None)
            worst = min(worst, values[min(len(values) - 1, int((1 - agreement.AGREEING_SHARE) * len(values)))])
    return worst


@pytest.mark.parametrize(
    "size", [(1, 1), (2, 1), (3, 1), (20, 1), (12, 12), (970, 70), (1400, 100), (100, 7), (900, 2)]
)
def test_strips_and_tiny_pictures_are_copies_of_themselves_alone(size: tuple[int, int]) -> None:
    pictures = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        for seed in range(2)
    ]
    itself, other = measure_copies(pictures[0], pictures)
    assert itself == 1.0
    assert other < 0.8
