from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.two_at_once import make_two_at_once
from vitrieve.data.records import ImageRecord
from vitrieve.data.sources import read_collection
from vitrieve.errors import DecodeError
from vitrieve.rerank.parts import (
    BATCH_SIZE,
    NUM_ROUNDS,
    NUM_TILES,
    PartKind,
    compute_parts,
    cut_tiles,
    from_bytes,
    has_patches,
    pool_tokens,
    stack_parts,
    to_bytes,
)
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.similarity import normalize


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder: Path) -> Encoder:
    return load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)


def pool_slowly(tokens: np.ndarray, num_tokens: int) -> np.ndarray:
    rows = [row / np.linalg.norm(row) for row in tokens.astype(np.float64)]
    mean = sum(rows) / len(rows)
    centers = [min(rows, key=lambda row: float(row @ mean))]
    while len(centers) < num_tokens:
        centers.append(min(rows, key=lambda row: max(float(row @ center) for center in centers)))
    for _ in range(NUM_ROUNDS):
        groups: list[list[np.ndarray]] = [[] for _ in centers]
        for row in rows:
            groups[max(range(num_tokens), key=lambda place: float(row @ centers[place]))].append(row)
        sums = [sum(group) if group else center for group, center in zip(groups, centers, strict=True)]
        centers = [one / np.linalg.norm(one) for one in sums]
    return np.stack(centers)


def test_pool_tokens_equals_a_slow_reference() -> None:
    tokens = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    np.testing.assert_allclose(pool_tokens(tokens, 6), pool_slowly(tokens, 6), atol=1e-5)


def test_pool_tokens_by_hand() -> None:
    # A large background and two small things: one token each, not three of the background.
    background, red, blue = [0.0, 0.0, 2.0], [3.0, 0.0, 0.0], [0.0, 1.0, 0.0]
    tokens = np.array([background] * 10 + [red, red, blue], dtype=np.float32)
    found = {tuple(row) for row in pool_tokens(tokens, 3).round(4).tolist()}
    assert found == {(0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)}


def test_pool_tokens_of_few_and_of_equal_ones() -> None:
    tokens = np.array([[3.0, 4.0], [0.0, 2.0]], dtype=np.float32)
    np.testing.assert_allclose(pool_tokens(tokens, 5), [[0.6, 0.8], [0.0, 1.0]], atol=1e-6)
    same = pool_tokens(np.ones((9, 4), np.float32), 3)
    np.testing.assert_allclose(same, np.full((3, 4), 0.5), atol=1e-6)


def test_bytes_keep_directions() -> None:
    rows = normalize(np.random.default_rng(0).normal(size=(2, 50, 64)).reshape(-1, 64)).reshape(2, 50, 64)
    found = from_bytes(to_bytes(rows))
    assert to_bytes(rows).nbytes == rows.size
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)
    assert ((found * rows).sum(axis=-1) > 0.9998).all()
    assert not from_bytes(to_bytes(np.zeros((1, 3), np.float32))).any()


@pytest.mark.parametrize(("size", "quarters"), [((4, 2), [(2, 1)] * 4), ((5, 3), [(2, 1), (3, 1), (2, 2), (3, 2)])])
def test_cut_tiles_gives_the_whole_and_its_quarters(size: tuple[int, int], quarters: list[tuple[int, int]]) -> None:
    width, height = size
    image = Image.fromarray(np.arange(width * height, dtype=np.uint8).reshape(height, width)).convert("RGB")
    whole, *tiles = cut_tiles(image)
    assert whole is image
    assert [tile.size for tile in tiles] == quarters
    seen = np.concatenate([np.asarray(tile)[..., 0].ravel() for tile in tiles])
    assert sorted(seen) == list(range(width * height))  # every pixel once


def test_cut_tiles_of_one_pixel() -> None:
    assert [tile.size for tile in cut_tiles(Image.new("RGB", (1, 1)))] == [(1, 1)] * NUM_TILES


def test_parts_are_those_of_the_encoder(encoder: Encoder, picture_folder: Path) -> None:
    records = read_collection(str(picture_folder)).records
    patches, tiles = (stack_parts(compute_parts(encoder, records, kind)) for kind in ("patches", "tiles"))
    assert (patches.shape, tiles.shape) == ((len(records), 4, 64), (len(records), NUM_TILES, 64))
    with Image.open(records[3].path) as file:
        pictures = cut_tiles(file.convert("RGB"))
    np.testing.assert_allclose((from_bytes(tiles[3]) * encoder.encode(pictures)).sum(axis=1), 1, atol=1e-3)


def test_patches_without_torch_equal_those_of_torch(
    encoder: Encoder, tiny_encoder_folder: Path, picture_folder: Path
) -> None:
    records = read_collection(str(picture_folder)).records[:3]
    with_torch = load_encoder(tiny_encoder_folder, engine="torch", precision="fp32", device="cpu")
    one, other = (stack_parts(compute_parts(some, records, "patches")).astype(int) for some in (encoder, with_torch))
    assert np.abs(one - other).max() <= 1
    assert has_patches(encoder)


@pytest.mark.parametrize("kind", ["patches", "tiles"])
def test_all_streams_of_an_engine_compute_parts_in_order(
    encoder: Encoder, picture_folder: Path, kind: PartKind
) -> None:
    records = (list(read_collection(str(picture_folder)).records) * 4)[: 4 * BATCH_SIZE]
    records[5] = dataclasses.replace(records[5], path=picture_folder / "gone.png")
    found = compute_parts(make_two_at_once(encoder), records, kind)
    assert [row for row, one in enumerate(found) if one is None] == [5]
    np.testing.assert_array_equal(stack_parts(found), stack_parts(compute_parts(encoder, records, kind)))


@pytest.mark.parametrize("kind", ["patches", "tiles"])
def test_parts_of_openvino_are_equal_however_many_streams_compute_them(
    tiny_encoder_folder: Path, picture_folder: Path, kind: PartKind
) -> None:
    pytest.importorskip("openvino", reason="needs vitrieve[fast]")
    encoder = load_encoder(tiny_encoder_folder, engine="openvino", precision="fp32", num_threads=2)
    records = (list(read_collection(str(picture_folder)).records) * 5)[: 5 * BATCH_SIZE]
    found = stack_parts(compute_parts(encoder, records, kind))
    batches = [records[start : start + BATCH_SIZE] for start in range(0, len(records), BATCH_SIZE)]
    alone = [stack_parts(compute_parts(encoder, batch, kind)) for batch in batches]
    np.testing.assert_array_equal(found, np.concatenate(alone))


def test_an_unreadable_picture_is_like_nothing(encoder: Encoder, picture_folder: Path) -> None:
    good = read_collection(str(picture_folder)).records[0]
    gone = ImageRecord(image_id="gone", path=picture_folder / "gone.png", label=0, split="test")
    parts = stack_parts(compute_parts(encoder, [good, gone, dataclasses.replace(good, image_id="again")], "patches"))
    assert not parts[1].any()
    np.testing.assert_array_equal(parts[0], parts[2])
    with pytest.raises(DecodeError, match="none of 1 pictures"):
        stack_parts(compute_parts(encoder, [gone], "patches"))
