from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from vitrieve.data.decode import read_image
from vitrieve.data.records import ImageRecord
from vitrieve.embed.batches import NUM_BATCHES_AHEAD, encode_batches
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
