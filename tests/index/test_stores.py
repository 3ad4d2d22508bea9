"""Every store against the same rules: operations compared with a dictionary, durability, refusals."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.index.conformance import build_machine, make_embeddings, make_records, random_vectors, summarize
from vitrieve.artifacts import read_manifest, write_manifest
from vitrieve.errors import ArtifactError, ConfigError, DataError, FingerprintError, InputError
from vitrieve.index.filter import parse_filter
from vitrieve.index.lock import writing
from vitrieve.index.open import build_index, open_index
from vitrieve.index.store import MAX_BATCH_ROWS, StoreKind, VectorStore
from vitrieve.similarity import top_k

TestExactOperations = build_machine("exact").TestCase
TestLanceOperations = build_machine("lance").TestCase

NUM_KILLS = 3
WRITER = """
import sys, numpy as np
from tests.index.conformance import make_records, random_vectors
from vitrieve.index.open import open_index
store = open_index(sys.argv[1])
for batch in range(1000):
    names = [f"{batch:04}-{row}.png" for row in range(20)]
    store.upsert(random_vectors(20, seed=batch), make_records(names, [{"batch": str(batch)}] * 20))
    store.delete([f"{batch:04}-0.png"])
    print(batch, flush=True)
"""


@pytest.fixture(params=["exact", "lance"])
def kind(request: pytest.FixtureRequest) -> StoreKind:
    return request.param


@pytest.fixture
def store(kind: StoreKind, tmp_path: Path) -> VectorStore:
    return build_index(make_embeddings(random_vectors(50)), tmp_path / "index", store=kind)


@pytest.mark.parametrize("k", [1, 3, 49, 50, 51, 1000])
def test_search_equals_top_k(store: VectorStore, k: int) -> None:
    queries = random_vectors(7, seed=1)
    similarities, rows = top_k(queries, random_vectors(50), k)
    expected = [
        [(f"picture-{row:04}.png", float(score)) for row, score in zip(*one, strict=True)]
        for one in zip(rows, similarities, strict=True)
    ]
    assert summarize(store.search(queries, k)) == expected


def test_search_orders_duplicates_by_name(kind: StoreKind, tmp_path: Path) -> None:
    names = [f"{row:02}.png" for row in reversed(range(60))]
    embeddings = make_embeddings(np.repeat(random_vectors(1), 60, axis=0), names)
    (hits,) = build_index(embeddings, tmp_path / "index", store=kind).search(random_vectors(1), 4)
    assert [hit.record.image_id for hit in hits] == ["00.png", "01.png", "02.png", "03.png"]


def test_search_finds_negative_similarities(kind: StoreKind, tmp_path: Path) -> None:
    embeddings = make_embeddings(np.array([[-1, 0], [0, -1]], dtype=np.float32), ["west", "south"])
    store = build_index(embeddings, tmp_path / "index", store=kind)
    assert summarize(store.search(np.array([[1, 0]], dtype=np.float32), 5)) == [[("south", 0.0), ("west", -1.0)]]


def test_search_of_no_query(store: VectorStore) -> None:
    assert store.search(np.empty((0, 8), dtype=np.float32), 3) == []


@pytest.mark.parametrize(
    ("queries", "k"),
    [(np.ones((1, 8)), 0), (np.ones((1, 7)), 1), (np.full((1, 8), np.nan), 1), (np.ones(8), 1)],
)
def test_search_refuses(store: VectorStore, queries: np.ndarray, k: int) -> None:
    with pytest.raises(InputError):
        store.search(queries.astype(np.float32), k)


def test_an_unknown_column_is_refused_with_the_known_ones(store: VectorStore) -> None:
    for ask in (lambda filter: store.search(random_vectors(1), 1, filter), store.count):
        with pytest.raises(InputError, match=r"'rows'.*'row'"):
            ask(parse_filter(["rows=3"]))


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.0, 0.5])
def test_upsert_refuses_what_is_not_normalised(store: VectorStore, value: float) -> None:
    vectors = random_vectors(2)
    vectors[1] *= np.float32(value)
    with pytest.raises(DataError, match=r"new-1\.png"):
        store.upsert(vectors, make_records(["new-0.png", "new-1.png"], [{}, {}]))
    assert store.count() == 50


def test_upsert_refuses_other_shapes_names_twice_and_too_many(store: VectorStore) -> None:
    with pytest.raises(DataError, match="shape"):
        store.upsert(random_vectors(2), make_records(["a"], [{}]))
    with pytest.raises(DataError, match="twice"):
        store.upsert(random_vectors(2), make_records(["a", "a"], [{}, {}]))
    names = [f"{row}" for row in range(MAX_BATCH_ROWS + 1)]
    with pytest.raises(DataError, match="at most"):
        store.upsert(random_vectors(len(names)), make_records(names, [{}] * len(names)))
    with pytest.raises(DataError, match="at most"):
        store.delete(names)
    assert store.count() == 50


def test_get_refuses_an_image_that_is_not_there(store: VectorStore) -> None:
    with pytest.raises(DataError, match=r"'absent\.png'"):
        store.get(["picture-0001.png", "absent.png"])


def test_close_twice_and_use_afterwards(store: VectorStore) -> None:
    store.close()
    store.close()
    with pytest.raises(ArtifactError, match="closed"):
        store.search(random_vectors(1), 1)


def test_readers_see_what_another_store_object_has_written(store: VectorStore, tmp_path: Path) -> None:
    reader = open_index(tmp_path / "index")
    store.upsert(random_vectors(1, seed=9), make_records(["new.png"], [{"label": "new"}]))
    assert reader.count(parse_filter(["label=new"])) == 1
    assert summarize(reader.search(random_vectors(1, seed=9), 1))[0][0][0] == "new.png"


def test_a_second_writer_waits_and_then_says_so(
    store: VectorStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrieve.index.lock.WAIT_SECONDS", 0.05)
    with writing(tmp_path / "index"), pytest.raises(ArtifactError, match="being written by another process"):
        store.delete(["picture-0001.png"])


def test_open_refuses_vectors_of_another_encoder(store: VectorStore, tmp_path: Path) -> None:
    store.close()
    manifest = read_manifest(tmp_path / "index", "index")
    write_manifest(tmp_path / "index", "index", {**manifest, "fingerprint": "0" * 64})
    with pytest.raises(FingerprintError, match="another encoder"):
        open_index(tmp_path / "index")


def test_build_index_refuses_a_finished_index_unless_overwritten(store: VectorStore, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="--overwrite"):
        build_index(make_embeddings(random_vectors(6)), tmp_path / "index", store=store.info.kind)
    again = build_index(
        make_embeddings(random_vectors(6)), tmp_path / "index", store=store.info.kind, is_overwrite=True
    )
    assert again.count() == 6


def test_build_index_refuses_bad_input_before_it_writes(kind: StoreKind, tmp_path: Path) -> None:
    for embeddings, message in (
        (make_embeddings(np.empty((0, 4), dtype=np.float32)), "no embedding"),
        (make_embeddings(2 * random_vectors(5)), r"picture-0000\.png"),
        (make_embeddings(random_vectors(3), ["a.png", "b.png", "a.png"]), r"'a.png' occurs twice"),
    ):
        with pytest.raises(DataError, match=message):
            build_index(embeddings, tmp_path / "index", store=kind)
    with pytest.raises(ArtifactError, match="does not exist"):
        build_index(tmp_path / "nothing", tmp_path / "index", store=kind)
    with pytest.raises(ConfigError, match="code_bytes"):
        build_index(make_embeddings(random_vectors(5)), tmp_path / "index", store=kind, code_bytes=4)
    assert not (tmp_path / "index").exists()


@pytest.mark.slow
def test_a_killed_writer_loses_no_acknowledged_batch_and_leaves_none_in_part(
    store: VectorStore, tmp_path: Path
) -> None:
    folder = tmp_path / "index"
    store.close()
    for number in range(NUM_KILLS):
        words = [sys.executable, "-c", WRITER, str(folder)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(0.01 + 0.07 * number)
            writer.send_signal(signal.SIGKILL)
            acknowledged = 1 + len(writer.stdout.read().splitlines())
        opened = open_index(folder)
        assert opened.verify() == []
        names = set(opened.image_ids())
        for batch in range(acknowledged):
            assert {f"{batch:04}-{row}.png" for row in range(1, 20)} <= names
            assert f"{batch:04}-0.png" not in names
        begun = {name for name in names if name[:4] == f"{acknowledged:04}"}
        assert len(begun) in (0, 19, 20)
        opened.delete([name for name in names if not name.startswith("picture")][:MAX_BATCH_ROWS])
        opened.close()


def test_lance_store_opens_again_in_another_process(tmp_path: Path) -> None:
    store = build_index(make_embeddings(random_vectors(5)), tmp_path / "index", store="lance")
    assert pickle.loads(pickle.dumps(store)).count() == 5


@pytest.mark.slow
@pytest.mark.parametrize("index_kind", ["flat", "ivf_hnsw_sq", "ivf_pq", "ivf_rq"])
def test_lance_finds_nearly_all_and_scores_by_full_vectors(index_kind: str, tmp_path: Path) -> None:
    # Clustered like photographs of products, not spread evenly: short codes are made for such.
    generator = np.random.default_rng(0)
    centers = random_vectors(300, 32)
    vectors = centers[generator.integers(0, 300, 6000)] + 0.1 * generator.standard_normal((6000, 32))
    embeddings = make_embeddings((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))
    store = build_index(embeddings, tmp_path / "index", index_kind=index_kind)  # type: ignore[arg-type]
    queries = embeddings.vectors[::100]
    similarities, rows = top_k(queries, embeddings.vectors, 10)
    found = summarize(store.search(queries, 10))
    names = [[f"picture-{row:04}.png" for row in some] for some in rows]
    exact = [dict(zip(some, map(float, scores), strict=True)) for some, scores in zip(names, similarities, strict=True)]
    hits = [(name, score) for one, scores in zip(found, exact, strict=True) for name, score in one if name in scores]
    assert len(hits) >= 0.95 * similarities.size
    assert all(
        score == scores[name] for one, scores in zip(found, exact, strict=True) for name, score in one if name in scores
    )
    assert store.verify() == []
