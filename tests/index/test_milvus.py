"""What is particular to Milvus: addresses, servers that are away, and what milvus-lite lacks."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.index.conformance import make_info, make_many, make_record
from tests.index.milvus_lite import Server
from vitrieve.errors import ArtifactError, ConfigError, InputError
from vitrieve.index import milvus_rows
from vitrieve.index.milvus import MAX_CANDIDATES, MilvusStore
from vitrieve.index.open import create_index, open_index
from vitrieve.index.store import IndexKind, IndexSettings, read_info


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("milvus_lite", reason="needs milvus-lite")
    server = Server(tmp_path_factory.mktemp("milvus") / "data")
    yield server
    server.kill()


def make_store(server: Server, folder: Path, index_kind: IndexKind = "flat") -> MilvusStore:
    settings = IndexSettings(index_kind=index_kind, uri=server.uri)
    store = create_index(make_info("milvus"), folder, settings=settings)
    assert isinstance(store, MilvusStore)
    return store


def test_graph_index_finds_what_was_written(server: Server, tmp_path: Path) -> None:
    store = make_store(server, tmp_path / "index", "ivf_hnsw_sq")
    vectors, records = make_many(3_000)
    store.upsert(vectors, records)
    store.optimize()
    hits = store.search(vectors[:20], 1)
    assert sum(found[0].record == record for found, record in zip(hits, records, strict=False)) >= 19
    store.close()


@pytest.mark.parametrize("index_kind", ["ivf_pq", "ivf_rq"])
def test_short_codes(index_kind: IndexKind) -> None:
    pytest.skip(f"milvus-lite has no {index_kind}: it takes the name, and compares the full vectors")


def wait_for(call: Callable[[], int]) -> int:
    """Repeat a call while the client waits before it connects again."""
    until = time.monotonic() + 60
    while True:
        try:
            return call()
        except ArtifactError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def test_a_server_that_is_away_is_named_and_found_again(server: Server, tmp_path: Path) -> None:
    store = make_store(server, tmp_path / "index")
    server.kill()
    try:
        with pytest.raises(ArtifactError, match=server.uri):
            store.count()
        with pytest.raises(ArtifactError, match=server.uri):
            open_index(tmp_path / "index")
    finally:
        server.start()
    assert wait_for(lambda: open_index(tmp_path / "index").count()) == 0
    assert wait_for(store.count) == 0


def test_trap_a_server_killed_at_the_end_of_a_flush_leaves_no_image_twice(server: Server, tmp_path: Path) -> None:
    """milvus-lite reads its log again when it was killed before it could remove the log of a flush."""
    store = make_store(server, tmp_path / "index")
    vectors, records = make_many(40)
    store.upsert(vectors, records)
    logs = dict(enumerate(server.folder.rglob("wal/*")))
    for number, path in logs.items():
        shutil.copy(path, tmp_path / str(number))
    store.optimize()
    store.close()
    server.kill()
    for number, path in logs.items():  # as they stood when the flush had ended
        shutil.copy(tmp_path / str(number), path)
    server.start()
    store = open_index(tmp_path / "index")
    assert any("occur twice" in fault for fault in store.verify())
    assert len(list(store.image_ids())) == 40
    assert store.search(vectors[:1], 1)[0][0].record == records[0]
    assert len({hit.record.image_id for hit in store.search(vectors[:1], 40)[0]}) == 40
    store.optimize()
    assert store.verify() == []
    assert store.count() == 40
    assert store.get([record.image_id for record in records])[1] == records


def test_trap_a_server_killed_between_two_logs_shows_the_newest_images_once_optimized(
    server: Server, tmp_path: Path
) -> None:
    """milvus-lite removes its logs one by one at the end of a flush; an older one that is left hides newer images."""
    store = make_store(server, tmp_path / "index")
    vectors, records = make_many(40)
    store.upsert(vectors, records)
    store.close()
    server.kill()
    server.start()  # which begins a second log
    store = open_index(tmp_path / "index")
    newer = [replace(record, metadata={"state": "newer"}) for record in records]
    store.upsert(vectors, newer)
    (first,) = [path for path in server.folder.rglob(f"{store._name}/wal/*") if "000001" in path.name]
    shutil.copy(first, tmp_path / "log")
    store.optimize()
    store.close()
    server.kill()
    assert not first.exists()
    shutil.copy(tmp_path / "log", first)
    server.start()
    store = open_index(tmp_path / "index")
    assert store.get([records[0].image_id])[1] != newer[:1], "milvus-lite is mended: remove the workaround"
    store.optimize()
    assert store.verify() == []
    assert store.count() == 40
    assert store.get([record.image_id for record in records])[1] == newer
    assert [hits[0].record for hits in store.search(vectors, 1)] == newer


def test_a_collection_that_is_gone_is_named(server: Server, tmp_path: Path) -> None:
    store = make_store(server, tmp_path / "index")
    MilvusStore.release(server.uri, store._name)
    with pytest.raises(ArtifactError, match="has no collection"):
        open_index(tmp_path / "index")


def test_two_indexes_share_a_server(server: Server, tmp_path: Path) -> None:
    one, other = (make_store(server, tmp_path / name) for name in ("one", "other"))
    one.upsert(*make_many(3))
    assert (one.count(), other.count()) == (3, 0)


def test_an_index_that_is_replaced_leaves_no_collection_behind(server: Server, tmp_path: Path) -> None:
    make_store(server, tmp_path / "index").close()
    first = read_info(tmp_path / "index")[1]["collection"]
    create_index(make_info("exact"), tmp_path / "index", overwrite=True).close()
    again = make_store(server, tmp_path / "other")
    with pytest.raises(ArtifactError, match="holds a finished result"):
        make_store(server, tmp_path / "other")
    assert not again._client.has_collection(first)
    settings = IndexSettings(index_kind="flat", uri=server.uri)
    second = create_index(make_info("milvus"), tmp_path / "other", settings=settings, overwrite=True)
    assert isinstance(second, MilvusStore)
    assert second._client.has_collection(second._name)
    assert not second._client.has_collection(again._name)
    again.close()
    second.close()


def test_search_refuses_more_than_milvus_returns(server: Server, tmp_path: Path) -> None:
    store = make_store(server, tmp_path / "index")
    with pytest.raises(ConfigError, match=str(MAX_CANDIDATES)):
        store.search(make_many(1)[0], MAX_CANDIDATES + 1)


def test_authentication(server: Server) -> None:
    pytest.skip("milvus-lite has no authentication: it takes any token")


def test_images_of_before_there_were_kinds_take_every_comparison(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection that was made by an older version has no kinds written down, and answers as it did."""
    build = milvus_rows._build_terms

    def build_old(metadata: Mapping[str, str]) -> dict[str, str | float]:
        return {name: term for name, term in build(metadata).items() if not name.startswith("kinds_")}

    store = make_store(server, tmp_path / "index")
    vectors = make_many(4)[0]
    monkeypatch.setattr(milvus_rows, "_build_terms", build_old)
    store.upsert(vectors[:2], [make_record("a", {"year": "2020", "day": "2020-03-01"}), make_record("b", {"year": ""})])
    monkeypatch.undo()
    store.upsert(vectors[2:], [make_record("c", {"year": "2021"}), make_record("d", {"day": "2020-04-01", "new": "1"})])
    counts = {"year>2000": 2, "year<abc": 3, "year=2020": 1, "day>=2020-03-01": 2, "day<2020-03-02": 1}
    assert {filter: store.count(filter) for filter in counts} == counts
    with pytest.raises(InputError, match="new is a number column"):
        store.count("new>=abc")
    store.close()
