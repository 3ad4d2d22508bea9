"""Texts in pictures: read by a real recognizer, kept as metadata, found by words, and read once."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from tests.search.memory_store import MemoryStore
from tests.syncing.helpers import Sync
from vitrieve.data import ocr
from vitrieve.data.decode import open_picture
from vitrieve.errors import ConfigError
from vitrieve.runtime.encoder import Encoder
from vitrieve.search.request import Example, SearchRequest
from vitrieve.search.searcher import Searcher
from vitrieve.syncing import sync as sync_module
from vitrieve.syncing.read import TEXT_COLUMN

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reader() -> ocr.PictureReader:
    pytest.importorskip("rapidocr_onnxruntime", reason="needs rapidocr-onnxruntime")
    return ocr.PictureReader()


def draw_carton(*lines: str, side_px: int = 480) -> Image.Image:
    picture = Image.new("RGB", (side_px, side_px), (190, 40, 50))
    for number, line in enumerate(lines):
        ImageDraw.Draw(picture).text((30, 30 + 90 * number), line, fill="white", font=ImageFont.load_default(60))
    return picture


def test_lines_are_read_from_top_to_bottom(reader: ocr.PictureReader) -> None:
    assert reader(draw_carton("Arla", "Fresh Milk", "1 liter")).split("\n") == ["Arla", "Fresh Milk", "1 liter"]


@pytest.mark.parametrize("size", [(1, 1), (11, 4000), (60, 60), (3000, 20)])
def test_pictures_without_text_have_none(size: tuple[int, int], reader: ocr.PictureReader) -> None:
    assert reader(Image.new("RGB", size, (10, 200, 30))) == ""


def test_a_recognizer_that_fails_is_not_taken_for_no_text(
    reader: ocr.PictureReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ocr.PictureReader, "_read", fail)
    with pytest.raises(MemoryError):
        reader(draw_carton("Arla"))


def test_lines_and_characters_are_bounded(reader: ocr.PictureReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "MAX_LINES", 2)
    carton = draw_carton("Arla", "Fresh Milk", "1 liter")
    assert len(reader(carton).split("\n")) == 2
    monkeypatch.setattr(ocr, "MAX_CHARACTERS", 3)
    assert len(reader(carton)) == 3


@pytest.mark.data
def test_a_photographed_package_is_read(reader: ocr.PictureReader, grocery_folder: Path) -> None:
    name = "Arla-Ecological-Sour-Cream"
    path = next(grocery_folder.glob(f"**/{name}_Iconic.jpg"))
    with open_picture(path.read_bytes()) as picture:
        lines = reader(picture).lower().split("\n")
    assert "arla" in lines


def test_words_in_pictures_are_found_and_read_once(
    encoder: Encoder,
    store: MemoryStore,
    sync: Sync,
    picture_folder: Path,
    reader: ocr.PictureReader,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_read = itertools.count()

    def read(picture: Image.Image) -> str:
        next(num_read)
        return reader(picture)

    monkeypatch.setattr(sync_module, "PictureReader", lambda: read)
    draw_carton("Oatly", "Barista").save(picture_folder / "carton.png")
    num_images = sync().num_images
    assert next(num_read) == 0
    again = sync(is_text_read=True)  # of an index that is there
    assert (again.num_embedded, again.num_reused, again.num_described) == (0, 0, num_images - len(again.failures))
    draw_carton("Kaffe").save(picture_folder / "coffee.png")
    assert sync().num_embedded == 1  # the index remembers it
    assert next(num_read) == again.num_described + 2
    assert not sync(is_text_read=True).is_changed
    assert not sync(is_text_read=False).is_changed  # what was read stays
    draw_carton("Filmjölk").save(picture_folder / "curd.png")
    assert sync().num_embedded == 1
    assert next(num_read) == again.num_described + 3
    assert TEXT_COLUMN not in store.images["curd.png"][1].metadata
    texts = {name: record.metadata.get(TEXT_COLUMN) for name, (_, record) in store.images.items()}
    assert texts["carton.png"] == "Oatly\nBarista"
    assert list(filter(None, texts.values())) == ["Oatly\nBarista", "Kaffe"]
    assert all(text is None or text for text in texts.values())  # a picture without text has no such column
    answer = Searcher(store, encoder).answer(SearchRequest(plus=(Example(text="oatly barsita"),)))  # type: ignore[arg-type]
    assert [result.image_id for result in answer.results] == ["carton.png"]


def test_reading_texts_without_the_package_says_what_to_install(
    sync: Sync, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ocr, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"vitrieve\[ocr\].*--no-ocr"):
        sync(is_text_read=True)
    assert sync().num_embedded > 0  # what failed is not remembered
