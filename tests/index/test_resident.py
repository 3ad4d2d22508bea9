"""The copy of an index in memory: what it finds, and that it is never older than what is on disk."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.index.conformance import make_info, make_many, make_record
from vitrieve.errors import ArtifactError, DataError, ReplacedError
from vitrieve.index import lance, resident
from vitrieve.index.filter import parse_filter
from vitrieve.index.lance import LanceStore
from vitrieve.index.open import create_index, open_index
from vitrieve.index.resident import ResidentRows

MANY_BYTES = 2**30
WIDTH = 64


@pytest.fixture
def few_are_indexed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance, "MIN_INDEXED_ROWS", 1_000)


def make_store(folder: Path, num_images: int, width: int = WIDTH) -> LanceStore:
    store = create_index(make_info("lance", embedding_dim=width), folder)
    assert isinstance(store, LanceStore)
    store.upsert(*make_many(num_images, width=width))
    store.optimize()
    return store


def answers_from_disk(store: LanceStore, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Search, and say whether LanceDB was asked."""
    asked: list[int] = []
    search = LanceStore._search_one
    with monkeypatch.context() as patch:
        patch.setattr(LanceStore, "_search_one", lambda *args, **rest: asked.append(1) or search(*args, **rest))
        store.search(make_many(1, width=store.info.embedding_dim)[0], 3)
    return bool(asked)


def test_few_images_are_found_exactly_as_on_disk(tmp_path: Path) -> None:
    store = make_store(tmp_path / "index", 700)
    store.upsert(*make_many(20, seed=5, width=WIDTH))  # replaces the first twenty
    queries = make_many(30, seed=1, width=WIDTH)[0]
    expected = store.search(queries, 12)
    assert store.hold(MANY_BYTES)
    assert store.search(queries, 12) == expected
    assert store.search(queries[:1], 1_000) == open_index(tmp_path / "index").search(queries[:1], 1_000)


@pytest.mark.usefixtures("few_are_indexed")
def test_many_images_are_found_by_codes_with_exact_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, records = make_many(4_000, width=WIDTH)
    store = make_store(tmp_path / "index", 4_000)
    assert store.hold(MANY_BYTES)
    assert not answers_from_disk(store, monkeypatch)
    queries = make_many(50, seed=4, width=WIDTH)[0]
    products = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    scores = {record.image_id: column for record, column in zip(records, products.T, strict=True)}
    num_right = 0
    for row, hits in enumerate(store.search(queries, 10)):
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert all(hit.score == pytest.approx(scores[hit.record.image_id][row], abs=1e-6) for hit in hits)
        right = {records[place].image_id for place in np.argsort(-products[row])[:10]}
        num_right += len(right & {hit.record.image_id for hit in hits})
    assert num_right >= 0.98 * 500


@pytest.mark.usefixtures("few_are_indexed")
def test_what_the_copy_cannot_answer_is_asked_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "index", 2_000)
    assert store.hold(MANY_BYTES)
    query = make_many(1, seed=2, width=WIDTH)[0]
    assert len(store.search(query, 1_900)[0]) == 1_900  # deeper than the candidates go
    hits = store.search(query, 10, parse_filter(["price>=498"]))[0]
    assert sorted(hit.record.image_id for hit in hits) == [f"{n:06}.png" for n in range(1992, 2000)]
    monkeypatch.setattr(resident, "NUM_PROBES", 1)
    assert store.hold(MANY_BYTES)
    assert len(store.search(query, 500)[0]) == 500  # one list holds fewer


@pytest.mark.parametrize("num_images", [0, 1])
def test_an_index_of_none_or_one_is_held(tmp_path: Path, num_images: int) -> None:
    store = make_store(tmp_path / "index", num_images)
    assert store.hold(MANY_BYTES)
    assert len(store.search(make_many(1, width=WIDTH)[0], 5)[0]) == num_images


def test_get_answers_in_the_order_asked_for(tmp_path: Path) -> None:
    store = make_store(tmp_path / "index", 50)
    names = ["000031.png", "000002.png", "000031.png"]
    expected = store.get(names)
    assert store.hold(MANY_BYTES)
    vectors, records = store.get(names)
    assert np.array_equal(vectors, expected[0])
    assert records == expected[1]
    with pytest.raises(DataError, match="not in the index"):
        store.get(["000031.png", "missing.png"])


def test_an_index_too_large_is_searched_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "index", 100)
    assert not store.hold(resident.count_bytes(99, WIDTH))
    assert answers_from_disk(store, monkeypatch)
    assert store.hold(resident.count_bytes(100, WIDTH))
    assert not answers_from_disk(store, monkeypatch)


def test_without_faiss_nothing_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance, "has_faiss", lambda: False)
    store = make_store(tmp_path / "index", 10)
    assert not store.hold(MANY_BYTES)
    assert answers_from_disk(store, monkeypatch)


def test_a_change_is_found_at_once_and_loaded_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "PAUSE_PER_LOADING_SECOND", 0)
    store = make_store(tmp_path / "index", 60)
    assert store.hold(MANY_BYTES)
    query = make_many(1, seed=9, width=WIDTH)[0]
    other = open_index(tmp_path / "index")  # as another process has it
    other.upsert(query, [make_record("new.png", {"fresh": "yes"})])
    assert store.search(query, 1)[0][0].record == make_record("new.png", {"fresh": "yes"})
    until = time.monotonic() + 60
    while answers_from_disk(store, monkeypatch) and time.monotonic() < until:
        time.sleep(0.01)
    assert not answers_from_disk(store, monkeypatch)
    assert store.search(query, 1)[0][0].record == make_record("new.png", {"fresh": "yes"})
    other.delete(["new.png"])
    assert store.search(query, 1)[0][0].record.image_id != "new.png"
    with pytest.raises(DataError):
        store.get(["new.png"])


def test_an_index_that_changes_all_the_time_is_not_loaded_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "PAUSE_PER_LOADING_SECOND", 1e6)
    store = make_store(tmp_path / "index", 10)
    num_loaded: list[int] = []
    build = ResidentRows.__init__
    monkeypatch.setattr(ResidentRows, "__init__", lambda *args, **rest: num_loaded.append(1) or build(*args, **rest))
    assert store.hold(MANY_BYTES)
    for number in range(5):
        store.upsert(*make_many(1, seed=number, width=WIDTH))
        assert answers_from_disk(store, monkeypatch)
    assert len(num_loaded) == 1


def test_an_index_made_anew_is_not_answered_from_the_old_copy(tmp_path: Path) -> None:
    store = make_store(tmp_path / "index", 40)
    assert store.hold(MANY_BYTES)
    shutil.rmtree(tmp_path / "index")
    fresh = create_index(make_info("lance", embedding_dim=WIDTH), tmp_path / "index")
    fresh.upsert(make_many(40, seed=7, width=WIDTH)[0], [make_record(f"new{n}.png", {}) for n in range(40)])
    fresh.optimize()
    with pytest.raises(ReplacedError):
        store.search(make_many(1, width=WIDTH)[0], 40)
    assert not store.hold(MANY_BYTES)


def test_a_closed_store_does_not_answer_from_its_copy(tmp_path: Path) -> None:
    store = make_store(tmp_path / "index", 10)
    assert store.hold(MANY_BYTES)
    store.close()
    with pytest.raises(ArtifactError, match="closed"):
        store.search(make_many(1, width=WIDTH)[0], 1)
    with pytest.raises(ArtifactError, match="closed"):
        store.get(["000001.png"])


def test_threads_share_a_copy(tmp_path: Path) -> None:
    store = make_store(tmp_path / "index", 300)
    queries = make_many(20, seed=3, width=WIDTH)[0]
    expected = store.search(queries, 5)
    assert store.hold(MANY_BYTES)
    found: list[bool] = []
    threads = [threading.Thread(target=lambda: found.append(store.search(queries, 5) == expected)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 6


def test_searching_one_picture_loads_no_faiss() -> None:
    code = "import sys, vitrieve.index.lance; assert 'faiss' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_learning_the_lists_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """FAISS complains on standard error, among the lines of a service's log, where a list has too few rows."""
    for num_rows in (lance.MIN_INDEXED_ROWS, 8_200):
        resident._build_lists(make_many(num_rows)[0])
    assert capfd.readouterr() == ("", "")


def test_an_index_that_cannot_be_read_is_not_held(tmp_path: Path) -> None:
    store = make_store(tmp_path / "index", 10)
    shutil.rmtree(tmp_path / "index")
    assert not store.hold(MANY_BYTES)


def test_without_memory_for_a_copy_the_disk_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ResidentRows, "__init__", run_out)
    store = make_store(tmp_path / "index", 10)
    assert not store.hold(MANY_BYTES)
    assert answers_from_disk(store, monkeypatch)


def test_without_a_thread_a_later_search_loads_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "PAUSE_PER_LOADING_SECOND", 0)
    store = make_store(tmp_path / "index", 10)
    assert store.hold(MANY_BYTES)
    store.upsert(*make_many(1, seed=9, width=WIDTH))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail_to_start)
        assert store.search(make_many(1, seed=9, width=WIDTH)[0], 1)[0]
    until = time.monotonic() + 60
    while answers_from_disk(store, monkeypatch) and time.monotonic() < until:
        time.sleep(0.01)
    assert not answers_from_disk(store, monkeypatch)


def fail_to_start(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")
