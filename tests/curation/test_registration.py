"""How well one picture fits into another: against slow windows and NumPy's correlation, and on copies and strangers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from PIL import Image, ImageOps

from vitrieve.curation import placing, registration
from vitrieve.curation.copies import COPIES
from vitrieve.curation.placing import COARSE_PX, SCALES, fit_into, list_sizes
from vitrieve.curation.registration import THUMBNAIL_PX, describe_thumbnail, find_places, make_thumbnail


def draw(seed: int, size: tuple[int, int] = (240, 180)) -> Image.Image:
    """Draw smooth random colors."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


def measure_fits(firsts: Sequence[np.ndarray], seconds: Sequence[np.ndarray]) -> list[float]:
    return [place.fit for place in find_places(firsts, seconds)]


def measure(first: Image.Image, second: Image.Image) -> float:
    return measure_fits([make_thumbnail(first)], [make_thumbnail(second)])[0]


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_copies_of_every_kind_fit_whichever_comes_first(make: Callable[..., Image.Image]) -> None:
    for seed in range(5):
        picture = draw(seed)
        copy = make(picture, np.random.default_rng(seed))
        assert measure(picture, copy) > 0.8
        assert measure(picture, copy) == measure(copy, picture)


def test_strangers_do_not_fit() -> None:
    fits = [measure(draw(seed), draw(seed + 100)) for seed in range(20)]
    assert max(fits) < 0.85
    assert min(fits) > 0


def test_brightness_contrast_and_mirrors_do_not_matter() -> None:
    picture = draw(0)
    darker = picture.point(lambda value: 40 + value // 2)
    assert measure(picture, darker) > 0.999
    assert measure(picture, ImageOps.mirror(darker)) > 0.999
    assert measure(picture, ImageOps.flip(picture)) < 0.9
    assert measure(picture, ImageOps.invert(picture)) < 0.9


@pytest.mark.parametrize("sizes", [((30, 20), (30, 20)), ((20, 30), (30, 20)), ((31, 17), (12, 12)), ((9, 9), (40, 3))])
def test_coarse_fits_equal_a_slow_search(sizes: tuple[tuple[int, int], ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "LEAST_COARSE_FIT", 2.0)
    thumbnails = [make_thumbnail(draw(number, size)) for number, size in enumerate(sizes)]
    expected = max(search_slowly(*thumbnails), search_slowly(*thumbnails[::-1]))
    assert measure_fits(thumbnails[:1], thumbnails[1:])[0] == pytest.approx(expected, abs=1e-4)


def search_slowly(whole: np.ndarray, part: np.ndarray) -> float:
    """Lay every size of a part, and of its mirror image, everywhere on the whole."""
    share = min(1.0, COARSE_PX / max(whole.shape))
    room = [max(1, round(side * share)) for side in whole.shape]
    laid = average(whole, room[0], room[1])
    largest = min(room[0] / part.shape[0], room[1] / part.shape[1])
    best = 0.0
    for scale in SCALES:
        sizes = zip(part.shape, room, strict=True)
        height, width = (min(most, max(1, round(side * largest * scale))) for side, most in sizes)
        template = average(part, height, width)
        for top in range(room[0] - height + 1):
            for left in range(room[1] - width + 1):
                window = laid[top : top + height, left : left + width]
                for one in (template, template[:, ::-1]):
                    if min(window.std(), one.std()) >= placing.LEAST_DEVIATION:
                        best = max(best, float(np.corrcoef(window.ravel(), one.ravel())[0, 1]))
    return best


def average(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Shrink by repeating each pixel, so that every new one is the mean of whole ones."""
    large = np.repeat(np.repeat(picture.astype(float), height, axis=0), width, axis=1)
    return large.reshape(height, picture.shape[0], width, picture.shape[1]).mean(axis=(1, 3))


def test_many_pairs_of_several_sizes_equal_each_alone() -> None:
    pictures = [make_thumbnail(draw(seed, (100 + 40 * (seed % 3), 90))) for seed in range(12)]
    firsts, seconds = pictures, pictures[5:] + pictures[:5]
    alone = [measure_fits([one], [other])[0] for one, other in zip(firsts, seconds, strict=True)]
    assert measure_fits(firsts, seconds) == pytest.approx(alone, abs=1e-5)
    assert measure_fits([], []) == []


def test_what_pairs_share_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "BLOCK_PAIRS", 7)
    generator = np.random.default_rng(0)
    pictures = [draw(seed, (100 + 40 * (seed % 2), 90)) for seed in range(4)]
    thumbnails = [make_thumbnail(make(one, generator)) for one in pictures for make in COPIES.values()]
    rows = generator.integers(0, len(thumbnails), (60, 2))
    firsts, seconds = ([thumbnails[row] for row in side] for side in rows.T)
    alone = [find_places([one.copy()], [other.copy()])[0] for one, other in zip(firsts, seconds, strict=True)]
    together = find_places(firsts, seconds)
    assert [place.fit for place in together] == pytest.approx([place.fit for place in alone], abs=1e-5)
    assert [place.fit > 0.7 for place in together].count(True) > 5


def test_one_color_one_pixel_and_long_strips_fit_nothing() -> None:
    plain = Image.new("RGB", (50, 40), (10, 200, 30))
    for other in (draw(0), plain, Image.new("RGB", (1, 1)), draw(1, (900, 2))):
        assert measure(plain, other) == 0
    assert np.isfinite(measure(draw(0), draw(1, (900, 2))))
    assert max(make_thumbnail(draw(1, (900, 2))).shape) == THUMBNAIL_PX
    assert make_thumbnail(Image.new("RGB", (1, 1))).shape == (1, 1)


@pytest.mark.parametrize("kind", [kind for kind in COPIES if kind != "flip"])
def test_few_gray_values_describe_copies_alike_with_a_frame_too(kind: str) -> None:
    for seed in range(5):
        picture = draw(seed)
        described = [
            describe_thumbnail(make_thumbnail(one))
            for one in (picture, COPIES[kind](picture, np.random.default_rng(seed)), draw(seed + 100))
        ]
        assert np.linalg.norm(described, axis=1) == pytest.approx(1, abs=1e-5)
        assert described[0] @ described[1] > described[0] @ described[2]
    assert not describe_thumbnail(np.full((30, 40), 9, dtype=np.uint8)).any()
    assert not describe_thumbnail(np.full((1, 1), 9, dtype=np.uint8)).any()


def test_a_picture_fills_the_room_of_its_own_ratio() -> None:
    for shape in ((20, 48), (36, 48), (48, 27), (48, 13)):
        assert next(list_sizes(shape, fit_into(shape, 20), (1.0, 0.9)))[1] == fit_into(shape, 20)
