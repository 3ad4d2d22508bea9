from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.two_at_once import make_two_at_once
from vitrieve.data import decode
from vitrieve.data.decode import read_image
from vitrieve.data.records import ImageRecord
from vitrieve.embed.batches import NUM_BATCHES_AHEAD, encode_batches, encode_in_parallel
from vitrieve.runtime.encoder import Encoder, load_encoder


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def encoder(request: pytest.FixtureRequest, tiny_encoder_folder: Path) -> Encoder:
    """One that computes one batch after the other, and one that computes two at once (with two threads)."""
    return load_encoder(tiny_encoder_folder, engine=request.param, precision="fp32", num_threads=2)


def test_encode_batches_keeps_the_order_of_many_batches(encoder: Encoder, picture_folder: Path) -> None:
    records = make_records(picture_folder) * 3
    expected = encoder.encode([read_image(record) for record in records])
    for sizes in ([1] * 36, [7, 1, 20, 8], [36]):
        starts = np.cumsum([0, *sizes])
        batches = [records[start : start + size] for start, size in zip(starts, sizes, strict=False)]
        found = list(encode_batches(encoder, batches, num_threads=2))
        assert [len(batch.vectors) for batch in found] == sizes
        np.testing.assert_allclose(np.concatenate([batch.vectors for batch in found]), expected, atol=1e-5)


def make_records(folder: Path) -> list[ImageRecord]:
    return [ImageRecord(image_id=path.name, path=path, label=0, split="test") for path in sorted(folder.glob("*.png"))]


def test_encode_batches_equals_encode(encoder: Encoder, picture_folder: Path) -> None:
    records = make_records(picture_folder)
    (batch,) = encode_batches(encoder, [records])
    np.testing.assert_allclose(batch.vectors, encoder.encode([read_image(record) for record in records]), atol=1e-6)
    assert batch.reasons == (None,) * 12


def test_a_picture_that_the_memory_does_not_suffice_for_is_one_bad_picture(
    encoder: Encoder, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = make_records(picture_folder)
    data = records[2].path.read_bytes()
    load = decode._load

    def run_out(image: object, loaded: bytes) -> object:
        if loaded == data:
            raise MemoryError
        return load(image, loaded)

    monkeypatch.setattr(decode, "_load", run_out)
    (batch,) = encode_batches(encoder, [records])
    assert batch.vectors.shape == (11, encoder.embedding_dim)
    assert batch.reasons == (None, None, decode.MEMORY_REASON, *[None] * 9)


def test_encode_batches_reports_bad_pictures_in_place(encoder: Encoder, picture_folder: Path) -> None:
    (picture_folder / "03.png").write_bytes(b"")
    (picture_folder / "04.png").unlink()
    records = make_records(picture_folder)
    missing = ImageRecord(image_id="gone", path=picture_folder / "gone.png", label=0, split="test")
    first, second, third = encode_batches(encoder, [records[:4], [missing], []])
    assert first.vectors.shape == (3, encoder.embedding_dim)
    assert first.reasons[:3] == (None, None, None)
    assert "empty" in str(first.reasons[3])
    assert second.vectors.shape == third.vectors.shape == (0, encoder.embedding_dim)
    assert "No such file" in str(second.reasons[0])
    assert third.reasons == ()


def test_encode_batches_crops_to_the_box(encoder: Encoder, picture_folder: Path) -> None:
    whole = make_records(picture_folder)[0]
    box = (0.0, 0.0, 12.0, 10.0)
    part = ImageRecord(image_id="part", path=whole.path, label=0, split="test", box=box)
    (batch,) = encode_batches(encoder, [[whole, part]])
    np.testing.assert_allclose(batch.vectors[1:], encoder.encode([read_image(part)]), atol=1e-6)
    assert not np.allclose(batch.vectors[0], batch.vectors[1], atol=1e-3)


def test_encode_batches_reads_only_a_little_ahead(encoder: Encoder, picture_folder: Path) -> None:
    records = make_records(picture_folder)
    taken = 0

    def batches() -> Iterator[Sequence[ImageRecord]]:
        nonlocal taken
        for record in records:
            taken += 1
            yield [record]

    encoded = encode_batches(encoder, batches(), num_threads=1)
    next(encoded)
    num_taken = NUM_BATCHES_AHEAD + 1 + (encoder.num_parallel if encoder.num_parallel > 1 else 0)
    assert taken == num_taken
    encoded.close()
    assert taken == num_taken


@pytest.mark.parametrize("num_squares", [0, 1, 2, 5, 33])
def test_encode_in_parallel_equals_encode_squares(encoder: Encoder, num_squares: int) -> None:
    size = encoder.preprocessing.image_size
    squares = np.random.default_rng(0).integers(0, 256, (num_squares, size, size, 3), dtype=np.uint8)
    found = encode_in_parallel(encoder, squares)
    assert found.shape == (num_squares, encoder.embedding_dim)
    np.testing.assert_allclose(found, encoder.encode_squares(squares), atol=1e-6)


@pytest.mark.parametrize("way", ["squares", "pictures"])
def test_all_streams_of_an_engine_work_at_once(tiny_encoder_folder: Path, way: str) -> None:
    plain = load_encoder(tiny_encoder_folder, engine="onnx", precision="fp32")
    encoder = make_two_at_once(plain)
    size = plain.preprocessing.image_size
    squares = np.random.default_rng(0).integers(0, 256, (32, size, size, 3), dtype=np.uint8)
    if way == "squares":
        found, expected = encode_in_parallel(encoder, squares), plain.encode_squares(squares)
    else:
        pictures = [Image.fromarray(square) for square in squares]
        found, expected = encoder.encode(pictures), plain.encode(pictures)
    np.testing.assert_allclose(found, expected, atol=1e-5)
