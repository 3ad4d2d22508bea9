from __future__ import annotations

import json
import multiprocessing
import os
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from tests.index.conformance import make_info, make_many, make_record
from vitrieve.errors import ArtifactError, ConfigError
from vitrieve.index import lance
from vitrieve.index.lance import LanceStore
from vitrieve.index.lance_files import CHECKSUMS_NAME, table_path
from vitrieve.index.open import create_index, open_index
from vitrieve.index.store import IndexKind, IndexSettings

SUFFIXES = (".lance", ".manifest", ".txn", ".arrow", ".bin", ".idx")


def make_store(
    folder: Path, index_kind: IndexKind = "ivf_hnsw_sq", code_bytes: int | None = None, width: int = 8
) -> LanceStore:
    settings = IndexSettings(index_kind=index_kind, code_bytes=code_bytes)
    store = create_index(make_info("lance", embedding_dim=width), folder, settings=settings)
    assert isinstance(store, LanceStore)
    return store


def list_versions(folder: Path) -> list[str]:
    return os.listdir(table_path(folder) / "_versions")


@pytest.mark.parametrize(
    ("index_kind", "code_bytes", "engine"),
    [("ivf_hnsw_sq", None, "HNSW"), ("ivf_pq", None, "PQ"), ("ivf_pq", 4, "PQ"), ("ivf_rq", None, "RQ")],
)
def test_every_kind_finds_what_a_product_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index_kind: IndexKind, code_bytes: int | None, engine: str
) -> None:
    monkeypatch.setattr(lance, "MIN_INDEXED_ROWS", 1_000)
    vectors, records = make_many(2_000, width=64)
    store = make_store(tmp_path / "index", index_kind, code_bytes, width=64)
    store.upsert(vectors, records)
    store.optimize()
    (index,) = [one for one in store._table.list_indices() if one.name == "vector_index"]
    assert engine in str(index.index_type).upper()
    queries = make_many(40, seed=4, width=64)[0]
    expected = [{records[row].image_id for row in rows} for rows in np.argsort(-(queries @ vectors.T))[:, :10]]
    answers = [{hit.record.image_id for hit in hits} for hits in store.search(queries, 10)]
    recall = np.mean([len(found & wanted) / 10 for found, wanted in zip(answers, expected, strict=True)])
    assert recall >= 0.9
    new = make_record("new.png", {"label": "new"})
    store.upsert(queries[:1], [new])  # found before the index knows it
    assert store.search(queries[:1], 1)[0][0].record == new


def test_more_candidates_are_compared_where_many_images_crowd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance, "MIN_INDEXED_ROWS", 1_000)
    monkeypatch.setitem(lance.CANDIDATES_PER_HIT, "ivf_rq", 1)
    vectors, records = make_many(4_000, width=64)
    store = make_store(tmp_path / "index", "ivf_rq", width=64)
    store.upsert(vectors, records)
    store.optimize()
    queries = make_many(40, seed=4, width=64)[0]
    expected = [{records[row].image_id for row in rows} for rows in np.argsort(-(queries @ vectors.T))[:, :10]]
    found = {}
    for crowded_rows in (4_000, 40):  # candidates: 32, and ten times as many
        monkeypatch.setattr(lance, "CROWDED_ROWS", crowded_rows)
        answers = [{hit.record.image_id for hit in hits} for hits in store.search(queries, 10)]
        found[crowded_rows] = sum(len(one & wanted) for one, wanted in zip(answers, expected, strict=True))
    assert found[4_000] < 0.9 * found[40]  # the codes are random: 262 to 288 of 400 in six indexes, and 400 of 400
    assert found[40] >= 0.95 * 400


def test_optimize_builds_no_index_for_few_images(tmp_path: Path) -> None:
    store = make_store(tmp_path / "index")
    store.upsert(*make_many(100))
    store.optimize()
    assert store._table.list_indices() == []


def test_versions_stay_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance, "MAX_VERSIONS", 10)
    monkeypatch.setattr(lance, "KEPT_VERSION_AGE", timedelta(milliseconds=1))
    store = make_store(tmp_path / "index")
    vectors, records = make_many(1)
    for _ in range(60):
        store.upsert(vectors, records)
    assert len(list_versions(tmp_path / "index")) <= 14
    assert len(list((table_path(tmp_path / "index") / "data").iterdir())) <= 28
    assert store.count() == 1


def test_search_with_a_filter_that_few_images_pass_finds_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitrieve.index.filter import parse_filter

    monkeypatch.setattr(lance, "MIN_INDEXED_ROWS", 1_000)
    vectors, records = make_many(2_000)
    store = make_store(tmp_path / "index")
    store.upsert(vectors, records)
    store.optimize()
    hits = store.search(vectors[:1], 10, parse_filter(["price>=498"]))[0]
    assert sorted(hit.record.image_id for hit in hits) == [f"{n:06}.png" for n in range(1992, 2000)]


def test_open_refuses_damage(tmp_path: Path) -> None:
    store = make_store(tmp_path / "index")
    store.upsert(*make_many(10))
    store.close()
    for path in (table_path(tmp_path / "index") / "_versions").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(ArtifactError):
        open_index(tmp_path / "index")


def test_verify_reports_data_that_cannot_be_read(tmp_path: Path) -> None:
    store = make_store(tmp_path / "index")
    store.upsert(*make_many(1000))
    store.close()
    for path in (table_path(tmp_path / "index") / "data").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    faults = open_index(tmp_path / "index").verify()
    assert f"{path.name} is damaged: its end is missing" in faults[0]


def test_checksums_of_an_index_of_before_there_were_any_come_with_the_next_change(tmp_path: Path) -> None:
    store = make_store(tmp_path / "index")
    vectors, records = make_many(50)
    store.upsert(vectors, records)
    (tmp_path / "index" / CHECKSUMS_NAME).unlink()
    assert store.verify() == []
    store.delete([records[0].image_id])
    files = json.loads((tmp_path / "index" / CHECKSUMS_NAME).read_text())["files"]
    table = table_path(tmp_path / "index")
    assert set(files) == {path.relative_to(table).as_posix() for path in table.rglob("*") if path.suffix in SUFFIXES}
    assert store.verify() == []


def test_verify_notices_that_the_newest_version_is_gone(tmp_path: Path) -> None:
    store = make_store(tmp_path / "index")
    vectors, records = make_many(50)
    store.upsert(vectors[:40], records[:40])
    before = set(list_versions(tmp_path / "index"))
    store.upsert(vectors[40:], records[40:])
    store.close()
    for name in set(list_versions(tmp_path / "index")) - before:
        (table_path(tmp_path / "index") / "_versions" / name).unlink()
    store = open_index(tmp_path / "index")
    assert store.count() == 40
    (fault,) = store.verify()
    assert "has lost version" in fault


def test_verify_notices_a_flipped_bit_in_the_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance, "MIN_INDEXED_ROWS", 100)
    store = make_store(tmp_path / "index")
    store.upsert(*make_many(500))
    store.optimize()
    assert store.verify() == []
    for path in (table_path(tmp_path / "index") / "_indices").rglob("*.*"):
        whole = path.read_bytes()
        path.write_bytes(bytes([*whole[:40], whole[40] ^ 1, *whole[41:]]))
        (fault,) = store.verify()
        assert path.name in fault
        path.write_bytes(whole)


def _count_after_fork(store: LanceStore, answers: multiprocessing.queues.Queue[str]) -> None:
    try:
        answers.put(str(store.count()))
    except ArtifactError as error:
        answers.put(str(error))


@pytest.mark.filterwarnings("ignore")  # Python 3.12 and lance warn of the fork, which is what is tested
def test_trap_a_forked_process_is_told_instead_of_hanging(tmp_path: Path) -> None:
    store = make_store(tmp_path / "index")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=_count_after_fork, args=(store, answers))
    process.start()
    answer = answers.get(timeout=60)
    process.join()
    assert "fork" in answer


@pytest.mark.parametrize("code_bytes", [0, 3, 16])
def test_create_refuses_codes_that_do_not_divide_the_dimensions(tmp_path: Path, code_bytes: int) -> None:
    with pytest.raises(ConfigError, match="divide"):
        make_store(tmp_path / "index", "ivf_pq", code_bytes)
    assert not (tmp_path / "index").exists()


def test_settings_refuse_what_does_not_belong_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ivf_pq"):
        create_index(make_info("lance"), tmp_path / "a", settings=IndexSettings(code_bytes=4))
    with pytest.raises(ConfigError, match="address"):
        create_index(make_info("lance"), tmp_path / "a", settings=IndexSettings(uri="http://localhost:19530"))
    with pytest.raises(ConfigError, match="exact"):
        create_index(make_info("exact"), tmp_path / "a", settings=IndexSettings(index_kind="ivf_rq"))
    with pytest.raises(ConfigError, match="address"):
        create_index(make_info("milvus"), tmp_path / "a")
