from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vitrieve.data import preprocess as preprocess_module
from vitrieve.data.preprocess import Preprocessing, build_preprocessing, preprocess, resize_and_crop
from vitrieve.errors import ConfigError

SHAPES = [(348, 464), (464, 348), (128, 128), (129, 128), (112, 300), (333, 97), (1, 1), (1, 40), (61, 3), (1023, 767)]


def draw_noise(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(width * 10_000 + height)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def reference_transform(preprocessing: Preprocessing) -> object:
    """Build torchvision's transform on Pillow pictures: the definition in the field."""
    transforms = pytest.importorskip("torchvision.transforms")
    interpolation = transforms.InterpolationMode(preprocessing.interpolation)
    return transforms.Compose(
        [
            transforms.Resize(preprocessing.resize_size, interpolation=interpolation),
            transforms.CenterCrop(preprocessing.image_size),
        ]
    )


@pytest.mark.parametrize(("image_size", "resize_size"), [(112, 128), (224, 256), (98, 112), (518, 592), (1, 1)])
def test_build_preprocessing_keeps_the_ratio_of_256_to_224(image_size: int, resize_size: int) -> None:
    assert build_preprocessing(image_size).resize_size == resize_size


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("image_size", [112, 98, 37])
def test_resize_and_crop_equals_torchvision_on_pillow(interpolation: str, image_size: int) -> None:
    preprocessing = build_preprocessing(image_size, interpolation=interpolation)
    reference = reference_transform(preprocessing)
    for shape in SHAPES:
        image = draw_noise(*shape)
        expected, found = reference(image), resize_and_crop(image, preprocessing)
        assert np.array_equal(np.asarray(found), np.asarray(expected)), shape


def test_resized_size_equals_torchvision_for_every_shape() -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    for resize_size in (112, 128, 256, 592):
        for width in range(1, 700, 3):
            height = (width * 7919) % 683 + 1
            expected = functional._compute_resized_output_size((height, width), [resize_size])
            assert list(preprocess_module._resized_size((width, height), resize_size)) == expected[::-1]


@pytest.mark.parametrize("shape", SHAPES)
def test_square_framing_squeezes_the_whole_picture(shape: tuple[int, int]) -> None:
    image, preprocessing = draw_noise(*shape), build_preprocessing(56, framing="square")
    assert preprocessing.resize_size == 56
    expected = np.asarray(image.resize((56, 56), Image.Resampling.BICUBIC))
    assert np.array_equal(np.asarray(resize_and_crop(image, preprocessing)), expected)


def test_preprocess_equals_torchvision_bit_for_bit() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    preprocessing = build_preprocessing(112)
    normalize = transforms.Normalize(preprocessing.mean, preprocessing.std)
    reference = transforms.Compose([reference_transform(preprocessing), transforms.ToTensor(), normalize])
    image = draw_noise(347, 215)
    found = preprocess(image, preprocessing)
    assert (found.shape, found.dtype, found.flags.c_contiguous) == ((3, 112, 112), np.float32, True)
    assert np.array_equal(found, reference(image).numpy())


def test_preprocess_normalizes_each_channel() -> None:
    preprocessing = Preprocessing(image_size=2, resize_size=2, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 2.0))
    pixels = preprocess(Image.new("RGB", (5, 3), (255, 0, 255)), preprocessing)
    assert pixels[:, 0, 0].tolist() == [1.0, -1.0, 0.0]


def test_resize_and_crop_of_a_very_long_picture_needs_no_memory() -> None:
    image = Image.new("RGB", (1_000_000, 1), (10, 200, 30))  # 128 x 128,000,000 when resized as a whole
    assert resize_and_crop(image, build_preprocessing(112)).getpixel((50, 50)) == (10, 200, 30)


@pytest.mark.parametrize("shape", [(700, 90), (90, 700), (131, 128)])
def test_resize_and_crop_at_the_center_alone_gives_nearly_the_same(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocessing = build_preprocessing(112)
    image = draw_noise(*shape)  # noise is the worst case: order of passes and clipping show
    whole = np.asarray(resize_and_crop(image, preprocessing)).astype(int)
    monkeypatch.setattr(preprocess_module, "MAX_RESIZED_PIXELS", 0)
    center = np.asarray(resize_and_crop(image, preprocessing)).astype(int)
    assert np.abs(whole - center).mean() < 1
    shifted = np.abs(whole[1:] - center[:-1]).mean()
    assert shifted > 10  # the comparison would notice a wrong position


@pytest.mark.parametrize(("image_size", "resize_size"), [(0, 0), (-14, 10), (112, 100)])
def test_preprocessing_refuses_impossible_sizes(image_size: int, resize_size: int) -> None:
    with pytest.raises(ConfigError, match="image size"):
        Preprocessing(image_size=image_size, resize_size=resize_size)
