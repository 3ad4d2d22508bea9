"""JPEGs that are read at a part of their size, where somebody makes them small anyway."""

from __future__ import annotations

import io
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrieve.data.decode import decode_image, get_scale, open_picture
from vitrieve.data.preprocess import find_enough_px, to_square
from vitrieve.data.records import ImageRecord
from vitrieve.embed.batches import encode_batches
from vitrieve.errors import DecodeError
from vitrieve.runtime.encoder import load_encoder
from vitrieve.search.query import prepare_example
from vitrieve.search.request import Example
from vitrieve.syncing.read import read_file

ORIENTATION = 0x0112


def draw(width: int, height: int) -> Image.Image:
    """Draw waves of several lengths in each channel, as smooth and as sharp as photographs are."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    waves = [np.sin(x / length + phase) + np.cos(y / (1.7 * length)) for length, phase in ((3, 0), (11, 1), (40, 2))]
    return Image.fromarray(np.stack([127.5 + 60 * wave for wave in waves], axis=-1).astype(np.uint8))


def encode(image: Image.Image, image_format: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **({"quality": 90} | options))
    return file.getvalue()


def average_blocks(image: Image.Image, side: int) -> np.ndarray:
    """Average squares of pixels; the definition of a picture at a part of its size."""
    pixels = np.asarray(image, dtype=np.float64)
    height, width = pixels.shape[0] // side, pixels.shape[1] // side
    return pixels[: height * side, : width * side].reshape(height, side, width, side, 3).mean(axis=(1, 3))


@pytest.mark.parametrize(
    ("enough_px", "scale"),
    [(None, 1), (30, 8), (60, 8), (61, 4), (120, 4), (121, 2), (240, 2), (241, 1), (480, 1), (5000, 1)],
)
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_scale_is_the_smallest_that_is_enough(enough_px: int | None, scale: int, options: dict[str, object]) -> None:
    picture = draw(640, 480)
    data = encode(picture, **options)
    with open_picture(data, enough_px=enough_px) as opened:
        assert opened.size == (640 // scale, 480 // scale)
        assert get_scale(opened) == scale
        error = np.abs(average_blocks(decode_image(data), scale) - np.asarray(opened))
    assert error.mean() < 3


@pytest.mark.parametrize("size", [(643, 481), (95, 641), (16, 16), (1, 900)])
def test_sides_that_no_scale_divides_are_rounded_up(size: tuple[int, int]) -> None:
    data = encode(draw(*size))
    for enough_px in (1, 2, 5, 20):
        with open_picture(data, enough_px=enough_px) as opened:
            scale = int(get_scale(opened))
            assert opened.size == tuple(-(-side // scale) for side in size)
            assert min(opened.size) >= min(enough_px, *size)


def test_other_formats_and_boxes_are_read_whole() -> None:
    picture = draw(640, 480)
    with open_picture(encode(picture, "PNG"), enough_px=10) as opened:
        assert opened.size == picture.size
    with open_picture(encode(picture), enough_px=10, box=(100.0, 50.0, 300.0, 450.0)) as opened:
        assert opened.size == (200, 400)


def test_orientation_is_applied_to_what_was_reduced() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encode(draw(640, 320), exif=exif)
    with open_picture(data, enough_px=80) as opened:
        assert opened.size == (80, 160)
        whole = decode_image(data).resize((80, 160), Image.Resampling.BOX)
        assert np.abs(np.asarray(opened, dtype=float) - np.asarray(whole)).mean() < 3


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_truncated_file_is_an_error_and_one_without_its_end_is_read(scale: int) -> None:
    data = encode(draw(640, 480))
    with open_picture(data, enough_px=480 // scale) as opened:
        expected = np.asarray(opened)
    with open_picture(data[:-2], enough_px=480 // scale) as opened:
        assert np.array_equal(np.asarray(opened), expected)
    for length in (len(data) // 2, len(data) - 200):
        with pytest.raises(DecodeError), open_picture(data[:length], enough_px=480 // scale):
            pass


def test_all_ways_to_an_embedding_read_a_file_at_the_same_scale(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    encoder = load_encoder(tiny_encoder_folder)
    enough_px = find_enough_px(encoder.preprocessing)
    path = tmp_path / "large.jpg"
    path.write_bytes(encode(draw(9 * enough_px, 8 * enough_px)))
    record = ImageRecord(image_id="large.jpg", path=path, label=0, split="test")
    with open_picture(path.read_bytes(), enough_px=enough_px) as opened:
        assert get_scale(opened) == 8
        square = to_square(opened, encoder.preprocessing)
    expected = encoder.encode_squares(square[None])[0]
    (batch,) = encode_batches(encoder, [[record]])
    np.testing.assert_array_equal(batch.vectors[0], expected)
    np.testing.assert_array_equal(encoder.encode(path), expected)
    np.testing.assert_array_equal(encoder.encode([path.read_bytes()])[0], expected)
    found = read_file(record, encoder.preprocessing, lambda _: None)
    assert found.square is not None
    np.testing.assert_array_equal(found.square, square)
    prepared = prepare_example(Example(picture=path), lambda one: to_square(one, encoder.preprocessing), enough_px)
    np.testing.assert_array_equal(prepared, square)


@pytest.mark.data
@pytest.mark.usefixtures("benchmark_scripts")
@pytest.mark.parametrize(
    ("image_size", "sides", "scale", "smallest", "mean"),
    [(56, None, 2, 0.998, 0.9997), (126, (2000, 1500), 4, 0.9999, 0.9999), (126, (4000, 3000), 8, 0.9999, 0.9999)],
)
def test_photographs_keep_their_embeddings(
    grocery_folder: Path,
    dinov2_weights: Path,
    image_size: int,
    sides: tuple[int, int] | None,
    scale: int,
    smallest: float,
    mean: float,
) -> None:
    reduced_jpegs = import_module("reduced_jpegs")
    encoder = load_encoder("dinov2-vits14", image_size=image_size, precision="fp32", num_threads=1)
    paths = sorted((grocery_folder / "train").rglob("*.jpg"))[::60][:30]
    contents = [path.read_bytes() if sides is None else reduced_jpegs.enlarge(path, sides) for path in paths]
    found = reduced_jpegs.compare(encoder, contents)
    assert found.scales == {scale}
    assert found.cosines.min() > smallest
    assert found.cosines.mean() > mean
