from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrieve.data.preprocess import build_preprocessing, resize_and_crop, visible_box
from vitrieve.data.sources import read_collection
from vitrieve.embed.collection import embed_collection
from vitrieve.errors import ConfigError, DataError, DecodeError
from vitrieve.index.open import build_index
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.search.explain import (
    HEIGHT_PX,
    MARGIN_PX,
    MAX_WIDTH_PX,
    NUM_MATCHES,
    compare_patches,
    draw_overlay,
    explain_match,
    explain_result,
    match_patches,
)
from vitrieve.search.request import Example
from vitrieve.search.searcher import Searcher


@pytest.fixture(scope="module", params=["onnx", "torch"])
def encoder(request: pytest.FixtureRequest, tiny_encoder_folder: Path) -> Encoder:
    return load_encoder(tiny_encoder_folder, engine=request.param, num_threads=1)


@pytest.fixture
def searcher(encoder: Encoder, picture_folder: Path, tmp_path: Path) -> Searcher:
    embed_collection(encoder, read_collection(str(picture_folder)), tmp_path / "embeddings")
    build_index(tmp_path / "embeddings", tmp_path / "index", store="exact")
    return Searcher.open(tmp_path / "index", encoder)


def test_match_patches_equals_a_slow_reference() -> None:
    similarities = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)
    expected = [
        (row, column)
        for row in range(20)
        for column in range(30)
        if similarities[row, column] == similarities[row].max() == similarities[:, column].max()
        and similarities[row, column] > 0
    ]
    expected.sort(key=lambda pair: -similarities[pair])
    assert match_patches(similarities) == expected


def test_match_patches_of_pictures_that_share_nothing() -> None:
    assert match_patches(np.full((3, 3), -0.5, np.float32)) == []


def test_compare_patches_takes_tokens_of_any_length_and_zeros() -> None:
    found = compare_patches(np.float32([[3, 0], [0, 0]]), np.float32([[0, 2], [5, 0], [-1, 0]]))
    np.testing.assert_allclose(found, [[0, 1, -1], [0, 0, 0]], atol=1e-6)


def test_explain_match_of_a_picture_with_itself_joins_equal_places(encoder: Encoder, picture_folder: Path) -> None:
    with Image.open(picture_folder / "02.png") as image:
        picture = image.convert("RGB")
    explanation = explain_match(encoder, picture, picture)
    assert 1 <= len(explanation.matches) <= NUM_MATCHES
    for match in explanation.matches:
        assert match.query_point == match.result_point
        assert match.similarity == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(explanation.query_heat, 1, atol=1e-3)


def test_explain_match_gives_pixels_of_the_whole_pictures(encoder: Encoder) -> None:
    generator = np.random.default_rng(0)
    wide = Image.fromarray(generator.integers(0, 256, (80, 200, 3), dtype=np.uint8))
    tall = Image.fromarray(generator.integers(0, 256, (300, 90, 3), dtype=np.uint8))
    explanation = explain_match(encoder, wide, tall, query_origin=(1000.0, 0.0))
    x_1, y_1, x_2, y_2 = explanation.query_box
    assert 1000 < x_1 < x_2 < 1200
    assert 0 <= y_1 < y_2 <= 80
    for match in explanation.matches:
        assert x_1 < match.query_point[0] < x_2
        assert y_1 < match.query_point[1] < y_2
        assert explanation.result_box[1] < match.result_point[1] < explanation.result_box[3]


def test_visible_box_is_what_the_encoder_sees() -> None:
    preprocessing = build_preprocessing(32)
    for size in ((200, 80), (80, 200), (37, 37), (41, 90)):
        x_1, y_1, x_2, y_2 = visible_box(size, preprocessing)
        image = Image.new("RGB", size)
        image.paste("white", (round(x_1), round(y_1), round(x_2), round(y_2)))
        seen = np.asarray(resize_and_crop(image, preprocessing))
        assert seen[1:-1, 1:-1].min() > 200
        around = Image.new("RGB", size, "white")
        around.paste("black", (round(x_1), round(y_1), round(x_2), round(y_2)))
        assert np.asarray(resize_and_crop(around, preprocessing))[1:-1, 1:-1].max() < 55
    assert visible_box((200, 80), build_preprocessing(32, framing="square")) == (0, 0, 200, 80)


def test_explain_result_takes_a_box_and_an_image_of_the_index(searcher: Searcher, picture_folder: Path) -> None:
    by_file = explain_result(searcher, Example(picture=picture_folder / "03.png"), "05.png")
    by_id = explain_result(searcher, Example(image_id="03.png"), "05.png")
    assert by_file.matches == by_id.matches
    boxed = explain_result(searcher, Example(picture=picture_folder / "03.png", box=(10, 5, 40, 35)), "05.png")
    assert boxed.query_box[0] >= 10
    assert boxed.query_box[3] <= 35


def test_explain_result_refuses(searcher: Searcher, picture_folder: Path) -> None:
    query = Example(picture=picture_folder / "03.png")
    with pytest.raises(ConfigError, match="vector"):
        explain_result(searcher, Example(vector=np.ones(searcher.encoder.embedding_dim)), "05.png")
    with pytest.raises(DataError, match="nobody"):
        explain_result(searcher, query, "nobody.png")
    (picture_folder / "05.png").unlink()
    with pytest.raises(DecodeError, match=r"05\.png"):
        explain_result(searcher, query, "05.png")


@pytest.mark.parametrize("size", [(1, 1), (3000, 20), (20, 3000), (640, 480)])
def test_draw_overlay_takes_pictures_of_any_size(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, "white")
    box = (0.0, 0.0, float(size[0]), float(size[1]))
    heat = np.ones((2, 2), np.float32)
    overlay = draw_overlay([picture, picture], [box, box], [heat, heat], [[], []])
    assert overlay.mode == "RGB"
    assert overlay.height <= HEIGHT_PX + 2 * MARGIN_PX
    assert overlay.width <= 2 * MAX_WIDTH_PX + 100


def test_draw_overlay_darkens_what_does_not_match_and_draws_the_matches() -> None:
    picture = Image.new("RGB", (400, 400), "white")
    box = (50.0, 50.0, 350.0, 350.0)
    heat = np.float32([[1, 0], [1, 0]])
    plain = np.asarray(draw_overlay([picture] * 2, [box] * 2, [heat] * 2, [[], []])).astype(int).sum(axis=2)
    scale = HEIGHT_PX / 400
    bright, dark, outside = (plain[MARGIN_PX + round(200 * scale), MARGIN_PX + round(x * scale)] for x in (80, 320, 20))
    assert outside < dark < bright
    joined = np.asarray(draw_overlay([picture] * 2, [box] * 2, [heat] * 2, [[(100.0, 200.0)], [(300.0, 200.0)]]))
    changed = np.abs(joined.astype(int).sum(axis=2) - plain) > 30
    assert changed[MARGIN_PX + round(200 * scale), MARGIN_PX + round(100 * scale)]
    assert changed[MARGIN_PX + round(200 * scale), MARGIN_PX + round(405 * scale)]  # in the gap between the two
    assert not changed[: MARGIN_PX + round(150 * scale)].any()
