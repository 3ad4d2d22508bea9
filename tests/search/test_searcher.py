from __future__ import annotations

import dataclasses
import io
import json
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrieve.data.sources import read_collection
from vitrieve.embed.collection import embed_collection
from vitrieve.errors import ArtifactError, ConfigError, DecodeError, FingerprintError
from vitrieve.index.open import build_index, open_index
from vitrieve.index.store import VectorStore
from vitrieve.rerank.remember import KeptReranking, save_kept
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.search import searcher as searcher_module
from vitrieve.search.query import read_example
from vitrieve.search.remembered import RememberedFiles
from vitrieve.search.request import Example, SearchRequest
from vitrieve.search.searcher import Searcher
from vitrieve.search.threshold import THRESHOLD_NAME, Threshold, save_threshold


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder: Path) -> Encoder:
    return load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)


@pytest.fixture
def index_folder(encoder: Encoder, picture_folder: Path, tmp_path: Path) -> Path:
    embed_collection(encoder, read_collection(str(picture_folder)), tmp_path / "embeddings")
    build_index(tmp_path / "embeddings", tmp_path / "index", store="exact")
    return tmp_path / "index"


@pytest.fixture
def searcher(index_folder: Path, encoder: Encoder) -> Searcher:
    return Searcher.open(index_folder, encoder)


def test_opening_leaves_the_turns_of_threads_as_they_were(
    index_folder: Path, tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, found = sys.getswitchinterval(), []
    load = searcher_module.load_index_encoder

    def load_and_look(*given: Any, **options: Any) -> Encoder:
        found.append(sys.getswitchinterval())
        return load(*given, **options)

    monkeypatch.setattr(searcher_module, "load_index_encoder", load_and_look)
    Searcher.open(index_folder, tiny_encoder_folder, engine="onnx").store.close()
    with pytest.raises(ArtifactError):
        Searcher.open(index_folder, index_folder, engine="onnx")
    assert max(found) < usual == sys.getswitchinterval()


def test_search_finds_the_picture_itself_first(searcher: Searcher, picture_folder: Path) -> None:
    results = searcher.search(picture_folder / "07.png", k=3)
    assert [results[0].image_id, len(results)] == ["07.png", 3]
    assert results[0].score == pytest.approx(1, abs=1e-5)
    assert results[0].path == picture_folder / "07.png"
    scores = [result.score for result in results]
    assert scores == sorted(scores, reverse=True)


def test_a_searcher_notices_what_a_command_lets_the_index_remember(
    searcher: Searcher, index_folder: Path, picture_folder: Path
) -> None:
    """A service is not started again after ``vitrieve calibrate`` and ``evaluate --rerank auto --index``."""
    request = SearchRequest(plus=(Example(picture=picture_folder / "07.png"),))

    def ask() -> tuple[bool | None, float | None, str]:
        answer = searcher.answer(request)
        return answer.is_match, answer.threshold, answer.reranking

    own = searcher.encoder.fingerprint
    assert ask() == (None, None, "none")
    save_threshold(Threshold(score=0.5, fingerprint=own, method="by hand"), index_folder)
    assert ask() == (True, 0.5, "none")
    save_kept(KeptReranking(name="k_reciprocal", fingerprint=own, reason="by hand"), index_folder)
    assert ask() == (True, 0.5, "k_reciprocal")
    save_threshold(Threshold(score=1.5, fingerprint=own, method="by hand"), index_folder)
    assert ask() == (False, 1.5, "k_reciprocal")
    save_kept(KeptReranking(name="k_reciprocal", fingerprint="0" * 64, reason="another encoder"), index_folder)
    (index_folder / THRESHOLD_NAME).unlink()
    assert ask() == (None, None, "none")


def test_a_searcher_goes_on_when_what_the_index_remembers_is_damaged(
    searcher: Searcher, index_folder: Path, picture_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    request = SearchRequest(plus=(Example(picture=picture_folder / "07.png"),))
    own = searcher.encoder.fingerprint
    save_threshold(Threshold(score=0.5, fingerprint=own, method="by hand"), index_folder)
    assert searcher.answer(request).threshold == 0.5
    (index_folder / THRESHOLD_NAME).write_text("{")
    for _ in range(3):
        assert searcher.answer(request).threshold == 0.5
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "threshold.json is damaged" in record.getMessage()
    save_kept(KeptReranking(name="k_reciprocal", fingerprint=own, reason="by hand"), index_folder)
    answer = searcher.answer(request)
    assert (answer.threshold, answer.reranking) == (0.5, "k_reciprocal")
    with pytest.raises(ArtifactError, match="damaged"):
        Searcher.open(index_folder, searcher.encoder)
    save_threshold(Threshold(score=0.25, fingerprint=own, method="by hand"), index_folder)
    assert searcher.answer(request).threshold == 0.25
    assert len(caplog.records) == 1


def test_a_file_that_is_written_while_it_is_read_is_read_again(
    searcher: Searcher, index_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RememberedFiles(index_folder)
    whole = Threshold(score=0.5, fingerprint=searcher.encoder.fingerprint, method="by hand")
    (index_folder / THRESHOLD_NAME).write_text("{")
    load = json.loads

    def load_and_write(text: str) -> Any:
        monkeypatch.setattr("vitrieve.search.threshold.json.loads", load)
        save_threshold(whole, index_folder)
        return load(text)

    monkeypatch.setattr("vitrieve.search.threshold.json.loads", load_and_write)
    assert files.read().threshold == whole


def test_search_takes_paths_bytes_and_pictures_alike(searcher: Searcher, picture_folder: Path) -> None:
    path = picture_folder / "02.png"
    expected = searcher.search(path)
    assert searcher.search(str(path)) == expected
    assert searcher.search(path.read_bytes()) == expected
    with Image.open(path) as picture:
        assert searcher.search(picture) == expected


def test_search_equals_a_product_with_every_vector(searcher: Searcher, picture_folder: Path) -> None:
    query = searcher.encoder.encode([read_example(Example(picture=picture_folder / "05.png"))])
    similarities = (
        query.astype(np.float64) @ searcher.store.get(list(searcher.store.image_ids()))[0].astype(np.float64).T
    )[0]
    results = searcher.search(picture_folder / "05.png", k=12)
    np.testing.assert_allclose([result.score for result in results], np.sort(similarities)[::-1], atol=1e-6)


def test_search_gives_all_of_a_small_collection(searcher: Searcher, picture_folder: Path) -> None:
    assert len(searcher.search(picture_folder / "02.png", k=1000)) == 12


def test_saved_and_loaded_gives_the_same_answer(
    searcher: Searcher, index_folder: Path, encoder: Encoder, picture_folder: Path
) -> None:
    shutil.copytree(index_folder, index_folder.with_name("copy"))
    copy = Searcher.open(index_folder.with_name("copy"), encoder)
    assert copy.search(picture_folder / "03.png") == searcher.search(picture_folder / "03.png")


@pytest.mark.parametrize("k", [0, -3])
def test_search_refuses_k_below_one(searcher: Searcher, picture_folder: Path, k: int) -> None:
    with pytest.raises(ConfigError, match=f"k is {k}"):
        searcher.search(picture_folder / "02.png", k=k)


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_search_names_a_query_that_cannot_be_read(searcher: Searcher, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "query.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DecodeError, match=r"query\.png"):
        searcher.search(path)


def test_read_query_lays_transparency_on_white_like_a_file() -> None:
    picture = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    file = io.BytesIO()
    picture.save(file, format="PNG")
    assert read_example(Example(picture=picture)).getpixel((0, 0)) == (255, 255, 255)
    assert read_example(Example(picture=file.getvalue())).tobytes() == read_example(Example(picture=picture)).tobytes()


def test_read_query_refuses_a_truncated_picture(picture_folder: Path) -> None:
    data = (picture_folder / "02.png").read_bytes()
    with Image.open(io.BytesIO(data[: len(data) - 30])) as picture, pytest.raises(DecodeError, match="query picture"):
        read_example(Example(picture=picture))


def test_trap_another_encoder_is_refused(index_folder: Path, tiny_encoder_folder: Path, encoder: Encoder) -> None:
    other = dataclasses.replace(encoder, fingerprint="0" * 64)
    with pytest.raises(FingerprintError, match="not comparable"):
        Searcher.open(index_folder, other)
    resized = load_encoder(tiny_encoder_folder, image_size=48, engine="torch", num_threads=1)
    with pytest.raises(FingerprintError, match=r"at 32 px .* at 48 px"):
        Searcher.open(index_folder, resized)


def test_open_loads_the_recorded_encoder_from_anywhere(
    index_folder: Path, picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    searcher = Searcher.open("index", num_threads=1)
    assert searcher.search(picture_folder / "02.png", k=1)[0].image_id == "02.png"


def test_open_records_an_encoder_that_was_named_relatively(
    tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_encoder_folder.parent)
    relative = load_encoder("tiny", engine="onnx", num_threads=1)
    embed_collection(relative, read_collection(str(picture_folder)), tmp_path / "embeddings")
    store = build_index(tmp_path / "embeddings", tmp_path / "index")
    assert store.info.encoder_source == str(tiny_encoder_folder)


def test_open_loads_the_encoder_at_the_size_of_the_index(
    tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path
) -> None:
    larger = load_encoder(tiny_encoder_folder, image_size=48, engine="torch", num_threads=1)
    embed_collection(larger, read_collection(str(picture_folder)), tmp_path / "embeddings")
    build_index(tmp_path / "embeddings", tmp_path / "index")
    searcher = Searcher.open(tmp_path / "index", num_threads=1)
    assert searcher.encoder.preprocessing.image_size == 48


def test_open_says_what_to_do_when_the_encoder_is_gone(
    tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny_encoder_folder, tmp_path / "first")
    first = load_encoder(tmp_path / "first", engine="onnx", num_threads=1)
    embed_collection(first, read_collection(str(picture_folder)), tmp_path / "embeddings")
    build_index(tmp_path / "embeddings", tmp_path / "index")
    (tmp_path / "first").rename(moved)
    with pytest.raises(ArtifactError, match=r"no longer there.*--encoder"):
        Searcher.open(tmp_path / "index")
    assert Searcher.open(tmp_path / "index", moved, num_threads=1).encoder.fingerprint == first.fingerprint


def test_open_closes_the_index_when_the_encoder_is_wrong_and_speaks_of_the_index_first(
    index_folder: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[VectorStore] = []

    def open_and_watch(folder: Path) -> VectorStore:
        store = open_index(folder)
        monkeypatch.setattr(store, "close", lambda: closed.append(store))
        return store

    monkeypatch.setattr(searcher_module, "open_index", open_and_watch)
    with pytest.raises(ArtifactError):
        Searcher.open(index_folder, index_folder / "nothing")
    assert len(closed) == 1
    with pytest.raises(FingerprintError):
        Searcher.open(index_folder, dataclasses.replace(encoder, fingerprint="0" * 64))
    assert len(closed) == 2
    shutil.rmtree(index_folder / "segments")  # the manifest still tells which encoder to load
    with pytest.raises(ArtifactError, match="index"):
        Searcher.open(index_folder, index_folder / "nothing")
    assert len(closed) == 2


def test_engines_may_be_mixed_within_one_encoder(
    searcher: Searcher, index_folder: Path, tiny_encoder_folder: Path, picture_folder: Path
) -> None:
    with_torch = Searcher.open(index_folder, load_encoder(tiny_encoder_folder, engine="torch", num_threads=1))
    results = with_torch.search(picture_folder / "02.png", k=1)
    assert results[0].image_id == "02.png"
    assert results[0].score == pytest.approx(1, abs=1e-3)


def test_openings_that_overlap_restore_how_threads_take_turns() -> None:
    usual = sys.getswitchinterval()
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(searcher_module._QUICK_TURNS)
        second.enter_context(searcher_module._QUICK_TURNS)
        first.close()
        assert sys.getswitchinterval() == pytest.approx(searcher_module.TURN_SECONDS)
        second.close()
    assert sys.getswitchinterval() == usual


def test_a_searcher_closes_its_index_once_at_the_end_of_a_block(
    index_folder: Path, encoder: Encoder, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_closed = 0

    def count() -> None:
        nonlocal num_closed
        num_closed += 1

    with Searcher.open(index_folder, encoder) as searcher:
        monkeypatch.setattr(searcher.store, "close", count)
    searcher.close()
    assert num_closed == 1
    assert encoder.encode(picture_folder / "05.png").shape == (64,)  # others may use it
