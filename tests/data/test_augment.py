from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitrieve.config import LoaderConfig
from vitrieve.data.preprocess import augment


def gradient_picture(width: int = 60, height: int = 40) -> Image.Image:
    """A picture in which color tells the place: red grows to the right, green downwards."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(0, 10),
    st.sampled_from(["random_crop", "random_resized_crop", "square"]),
)
def test_augment_gives_a_square_of_any_picture(width: int, height: int, seed: int, name: str) -> None:
    config = LoaderConfig(augmentation=name)  # type: ignore[arg-type]
    view = augment(Image.new("RGB", (width, height), (9, 8, 7)), config, 16, np.random.default_rng(seed))
    assert view.shape == (16, 16, 3)
    assert view.dtype == np.uint8
    assert (view == (9, 8, 7)).all()


def test_square_is_the_whole_picture_squeezed_never_flipped() -> None:
    image = gradient_picture()
    views = [augment(image, LoaderConfig(augmentation="square"), 28, np.random.default_rng(seed)) for seed in range(8)]
    expected = np.asarray(image.resize((28, 28), Image.Resampling.BICUBIC))
    assert all(np.array_equal(view, expected) for view in views)


def test_random_crop_shows_a_fixed_share_of_the_squeezed_picture() -> None:
    config = LoaderConfig(augmentation="random_crop", flip=False)
    for seed in range(20):
        view = augment(gradient_picture(), config, 28, np.random.default_rng(seed)).astype(int)
        # 28 of 32 pixels of the square: seven eighths of the range in both directions.
        assert np.ptp(view[..., 0]) == pytest.approx(255 * 27 / 32, abs=14)
        assert np.ptp(view[..., 1]) == pytest.approx(255 * 27 / 32, abs=14)


def test_random_resized_crop_takes_parts_within_the_stated_area_and_shape() -> None:
    config = LoaderConfig(augmentation="random_resized_crop", crop_scale_min=0.3, flip=False)
    areas = []
    for seed in range(200):
        view = augment(gradient_picture(300, 300), config, 32, np.random.default_rng(seed)).astype(float)
        width, height = np.ptp(view[..., 0]) / 255, np.ptp(view[..., 1]) / 255
        areas.append(width * height)
        assert 0.7 < width / height < 1.45
    assert 0.2 < min(areas) < 0.4
    assert max(areas) > 0.85


def test_augment_flips_half_of_the_views() -> None:
    config = LoaderConfig(augmentation="random_crop")
    views = [augment(gradient_picture(), config, 16, np.random.default_rng(seed)) for seed in range(200)]
    flipped = sum(int(view[0, 0, 0]) > int(view[0, -1, 0]) for view in views)
    assert 70 < flipped < 130


def test_augment_draws_only_from_its_generator() -> None:
    config = LoaderConfig()
    views = [augment(gradient_picture(), config, 16, np.random.default_rng(5)) for _ in range(2)]
    assert (views[0] == views[1]).all()


def test_random_resized_crop_of_the_whole_equals_a_plain_resize() -> None:
    config = LoaderConfig(crop_scale_min=1.0, flip=False)
    picture = gradient_picture(400, 20)  # no part of an allowed shape has the whole area: the center is taken
    view = augment(picture, config, 16, np.random.default_rng(0))
    left = (400 - round(20 * 4 / 3)) // 2
    center = picture.resize((16, 16), Image.Resampling.BICUBIC, box=(left, 0, left + round(20 * 4 / 3), 20))
    assert (view == np.asarray(center)).all()
