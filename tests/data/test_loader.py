from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitrieve.config import LoaderConfig
from vitrieve.data import decode
from vitrieve.data.check import find_readable
from vitrieve.data.loader import EpochTuples, TrainingLoader
from vitrieve.data.preprocess import augment, build_preprocessing, preprocess
from vitrieve.data.records import ImageRecord
from vitrieve.errors import DataError, DecodeError

LABELS = (40, 7, 7, 19, 40, 19)


@pytest.fixture
def records(tmp_path: Path) -> list[ImageRecord]:
    generator = np.random.default_rng(0)
    made = []
    for number, label in enumerate(LABELS):
        path = tmp_path / f"{number}.png"
        Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
        made.append(ImageRecord(image_id=path.name, path=path, label=label, split="train"))
    return made


def build_loader(
    records: list[ImageRecord], cache_bytes: int = 2**20, seed: int = 0, is_pinned: bool = False
) -> TrainingLoader:
    config = LoaderConfig(cache_bytes=cache_bytes)
    return TrainingLoader(records, config, build_preprocessing(16), batch_size=4, seed=seed, is_pinned=is_pinned)


def test_batches_have_pixels_labels_and_rows_that_belong_together(records: list[ImageRecord]) -> None:
    loader = build_loader(records)
    assert loader.num_classes == 3
    for batch in loader.batches(0, 5):
        assert batch.pixels.shape == (4, 3, 16, 16)
        assert batch.pixels.dtype == torch.float32
        expected = [sorted(set(LABELS)).index(LABELS[row]) for row in batch.rows.tolist()]
        assert batch.labels.tolist() == expected


def test_batches_normalize_the_augmented_view(records: list[ImageRecord]) -> None:
    batch = next(build_loader(records).batches(0, 1))
    row = int(batch.rows[2])
    with Image.open(records[row].path) as image:
        view = augment(image.convert("RGB"), LoaderConfig(), 16, np.random.default_rng([0, 3, 0, 2]))
    preprocessing = build_preprocessing(16)
    expected = (view / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    np.testing.assert_allclose(batch.pixels[2].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_trap_batches_from_the_middle_equal_those_of_a_whole_run(records: list[ImageRecord]) -> None:
    whole = list(build_loader(records).batches(0, 6))
    resumed = list(build_loader(records).batches(4, 6))
    for a, b in zip(whole[4:], resumed, strict=True):
        assert torch.equal(a.pixels, b.pixels)
        assert torch.equal(a.rows, b.rows)


def test_batches_for_a_gpu_are_the_same_pinned_before_the_step_asks(
    records: list[ImageRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = list(build_loader(records).batches(0, 2))
    pinned_in: list[str] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:  # no GPU is needed to see that it is called
        pinned_in.append(threading.current_thread().name)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    for one, expected in zip(build_loader(records, is_pinned=True).batches(0, 2), plain, strict=True):
        assert torch.equal(one.pixels, expected.pixels)
        assert torch.equal(one.labels, expected.labels)
        assert one.anchors is None
    assert len(pinned_in) == 6
    assert threading.current_thread().name not in pinned_in


def test_the_cache_changes_no_batch(records: list[ImageRecord]) -> None:
    cached = list(build_loader(records).batches(0, 4))
    decoded = list(build_loader(records, cache_bytes=0).batches(0, 4))
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(cached, decoded, strict=True))


def test_seeds_give_different_batches(records: list[ImageRecord]) -> None:
    first, second = (next(build_loader(records, seed=seed).batches(0, 1)) for seed in (0, 1))
    assert not torch.equal(first.pixels, second.pixels)


def test_batches_can_be_left_early(records: list[ImageRecord]) -> None:
    batches = build_loader(records).batches(0, 1000)
    next(batches)
    batches.close()


def test_batches_report_an_unreadable_image(records: list[ImageRecord]) -> None:
    records[0].path.write_bytes(b"no picture")
    with pytest.raises(DecodeError):
        list(build_loader(records).batches(0, 6))


def test_large_pictures_are_reduced_whether_kept_or_not(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    pixels = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    large = [ImageRecord(image_id=path.name, path=path, label=0, split="train")] * 2
    loader = build_loader(large, cache_bytes=3 * 64 * 96)
    kept, decoded = (next(build.batches(0, 1)) for build in (loader, build_loader(large, cache_bytes=0)))
    assert torch.equal(kept.pixels, decoded.pixels)
    assert loader._read(0).size == (64, 96)


def test_find_readable_leaves_bad_images_out_up_to_a_share(records: list[ImageRecord]) -> None:
    records[3].path.write_bytes(b"")
    readable = find_readable(records, max_bad_fraction=0.2)
    assert [record.image_id for record in readable.records] == ["0.png", "1.png", "2.png", "4.png", "5.png"]
    assert [image_id for image_id, _ in readable.failures] == ["3.png"]
    with pytest.raises(DataError, match=r"1 of 6 images are unreadable.*3\.png"):
        find_readable(records, max_bad_fraction=0.1)


def test_find_readable_leaves_out_what_the_memory_does_not_suffice_for(
    records: list[ImageRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, load = records[3].path.read_bytes(), decode._load

    def run_out(image: object, loaded: bytes) -> object:
        if loaded == data:
            raise MemoryError
        return load(image, loaded)

    monkeypatch.setattr(decode, "_load", run_out)
    readable = find_readable(records, max_bad_fraction=0.2)
    assert readable.failures == (("3.png", decode.MEMORY_REASON),)
    assert len(readable.records) == len(readable.digests) == 5


def test_batches_of_tuples_hold_their_images_and_the_places_of_their_anchors(records: list[ImageRecord]) -> None:
    tuples = EpochTuples(epoch=0, rows=np.array([[1, 2, 0, 3], [5, 3, 4, -1]]), tuples_per_batch=2)
    (batch,) = build_loader(records).batches(0, 1, tuples)
    assert batch.rows.tolist() == [1, 2, 0, 3, 5, 3, 4]
    assert batch.anchors is not None
    assert batch.anchors.tolist() == [0, 0, 0, 0, 4, 4, 4]
    assert batch.labels.tolist() == [0, 0, 2, 1, 1, 1, 2]
    assert next(build_loader(records).batches(0, 1)).anchors is None


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9])
def test_plain_batches_show_what_a_measurement_sees(records: list[ImageRecord], batch_size: int) -> None:
    loader = build_loader(records)
    found = torch.cat(list(loader.plain_batches([4, 0, 4, 1, 2], batch_size)))
    for row, pixels in zip([4, 0, 4, 1, 2], found, strict=True):
        with Image.open(records[row].path) as image:
            assert np.array_equal(pixels.numpy(), preprocess(image.convert("RGB"), build_preprocessing(16)))
    assert list(loader.plain_batches([], batch_size)) == []
