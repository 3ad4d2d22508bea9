"""Whether pictures agree in every region: copies do; two things on one ground, or in two colors, do not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.curation.sweaters import draw_ground, lay_sweater
from vitrieve.curation.agreement import NO_AGREEMENT, make_picture, measure_agreement
from vitrieve.curation.copies import COPIES
from vitrieve.curation.links import LEAST_AGREEMENT, measure_copies
from vitrieve.curation.registration import Place, find_places, make_thumbnail


def measure(one: Image.Image, other: Image.Image) -> float:
    return measure_copies(one, [other])[0]


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
    right = Place(fit=1.0, scale=235 / 300, top=23 / 300, left=31 / 240)
    wrong = right._replace(scale=0.8, top=26 / 300, left=27 / 240)
    exact = measure_agreement(whole, part, right, num_rounds=0)
    assert measure_agreement(whole, part, wrong, num_rounds=0) < 0.8
    assert measure_agreement(whole, part, wrong) > exact - 0.05


def test_what_is_too_small_or_plain_gives_no_wrong_answer() -> None:
    tiny = np.zeros((5, 5, 3), dtype=np.uint8)
    assert measure_agreement(tiny, tiny, Place()) == NO_AGREEMENT
    plain = np.full((40, 40), 7, dtype=np.uint8)
    assert measure_agreement(plain, plain, Place()) == pytest.approx(1)
    assert measure_agreement(plain, np.full((96, 2, 3), 9, dtype=np.uint8), Place()) == NO_AGREEMENT
    for side in (1, 2, 13, 14, 700):
        assert measure(Image.new("RGB", (side, side)), lay_sweater(draw_ground(0), 0)) < LEAST_AGREEMENT
