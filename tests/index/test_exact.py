from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrieve.data.records import ImageRecord
from vitrieve.embed.collection import Embeddings
from vitrieve.errors import ArtifactError, DataError, InputError
from vitrieve.index import exact
from vitrieve.index.exact import ExactStore, build_index
from vitrieve.similarity import normalize, top_k


def make_embeddings(vectors: np.ndarray, image_ids: list[str] | None = None) -> Embeddings:
    names = image_ids or [f"picture-{row}.png" for row in range(len(vectors))]
    records = tuple(
        ImageRecord(image_id=name, path=Path("/photos") / name, label=0, split="test", metadata={"row": str(row)})
        for row, name in enumerate(names)
    )
    return Embeddings(
        vectors=vectors,
        records=records,
        failures=(),
        fingerprint="f" * 64,
        encoder_source="some-weights",
        image_size=32,
        license="CC BY, somebody",
    )


def random_vectors(num_rows: int, width: int = 8, seed: int = 0) -> np.ndarray:
    return normalize(np.random.default_rng(seed).standard_normal((num_rows, width)))


@pytest.fixture
def store(tmp_path: Path) -> ExactStore:
    return build_index(make_embeddings(random_vectors(50)), tmp_path / "index")


def test_build_index_round_trips(tmp_path: Path) -> None:
    embeddings = make_embeddings(random_vectors(5))
    build_index(embeddings, tmp_path / "index")
    store = ExactStore.open(tmp_path / "index")
    assert len(store) == 5
    assert np.array_equal(store.vectors, embeddings.vectors)
    assert store.records([4, 0]) == (embeddings.records[4], embeddings.records[0])
    assert (store.fingerprint, store.encoder_source, store.image_size) == ("f" * 64, "some-weights", 32)
    assert store.license == "CC BY, somebody"


def test_build_index_copies_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "BLOCK_ROWS", 3)
    vectors = random_vectors(10)
    assert np.array_equal(build_index(make_embeddings(vectors), tmp_path / "index").vectors, vectors)


@pytest.mark.parametrize("k", [1, 3, 49, 50, 51, 1000])
def test_search_equals_top_k(store: ExactStore, k: int) -> None:
    queries = random_vectors(7, seed=1)
    similarities, rows = store.search(queries, k)
    expected_similarities, expected_rows = top_k(queries, np.asarray(store.vectors), k)
    assert np.array_equal(similarities, expected_similarities)
    assert np.array_equal(rows, expected_rows)


def test_search_does_not_depend_on_the_block(store: ExactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = random_vectors(7, seed=1)
    expected = store.search(queries, 5)
    monkeypatch.setattr(exact, "BLOCK_BYTES", 1)
    assert all(np.array_equal(one, other) for one, other in zip(store.search(queries, 5), expected, strict=True))


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), num_distinct=st.integers(1, 6), k=st.integers(1, 30), spread=st.floats(0, 1e-6))
def test_search_orders_near_ties_like_top_k(
    tmp_path_factory: pytest.TempPathFactory, seed: int, num_distinct: int, k: int, spread: float
) -> None:
    generator = np.random.default_rng(seed)
    centers = random_vectors(num_distinct, width=16, seed=seed)
    vectors = centers[generator.integers(0, num_distinct, 30)] + spread * generator.standard_normal((30, 16))
    store = build_index(make_embeddings(normalize(vectors)), tmp_path_factory.mktemp("near") / "index")
    queries = centers[:1]
    expected = top_k(queries, np.asarray(store.vectors), k)
    assert all(np.array_equal(one, other) for one, other in zip(store.search(queries, k), expected, strict=True))


def test_search_of_duplicates_is_ordered_by_row(tmp_path: Path) -> None:
    store = build_index(make_embeddings(np.repeat(random_vectors(1), 20, axis=0)), tmp_path / "index")
    assert store.search(np.asarray(store.vectors[:1]), 4)[1].tolist() == [[0, 1, 2, 3]]


def test_search_finds_negative_similarities(tmp_path: Path) -> None:
    store = build_index(make_embeddings(np.array([[-1, 0], [0, -1]], dtype=np.float32)), tmp_path / "index")
    similarities, rows = store.search(np.array([[1, 0]], dtype=np.float32), 1)
    assert (similarities.tolist(), rows.tolist()) == ([[0.0]], [[1]])


def test_search_of_one_vector(tmp_path: Path) -> None:
    store = build_index(make_embeddings(random_vectors(1)), tmp_path / "index")
    assert store.search(np.asarray(store.vectors), 10)[1].tolist() == [[0]]


def test_search_of_no_query(store: ExactStore) -> None:
    similarities, rows = store.search(np.empty((0, 8), dtype=np.float32), 3)
    assert similarities.shape == rows.shape == (0, 3)


@pytest.mark.parametrize(
    ("queries", "k"),
    [(np.ones((1, 8)), 0), (np.ones((1, 7)), 1), (np.full((1, 8), np.nan), 1), (np.ones(8), 1)],
)
def test_search_refuses(store: ExactStore, queries: np.ndarray, k: int) -> None:
    with pytest.raises(InputError):
        store.search(queries.astype(np.float32), k)


def test_build_index_refuses_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no embedding"):
        build_index(make_embeddings(np.empty((0, 4), dtype=np.float32)), tmp_path / "index")


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.0, 0.5])
def test_build_index_refuses_vectors_that_are_not_normalised(tmp_path: Path, value: float) -> None:
    vectors = random_vectors(5)
    vectors[3] = vectors[3] * np.float32(value)
    with pytest.raises(DataError, match=r"picture-3\.png"):
        build_index(make_embeddings(vectors), tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_build_index_refuses_an_image_id_that_occurs_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'a.png' occurs twice"):
        build_index(make_embeddings(random_vectors(3), ["a.png", "b.png", "a.png"]), tmp_path / "index")


def test_build_index_refuses_a_finished_index_unless_overwritten(tmp_path: Path) -> None:
    build_index(make_embeddings(random_vectors(5)), tmp_path / "index")
    with pytest.raises(ArtifactError, match="--overwrite"):
        build_index(make_embeddings(random_vectors(6)), tmp_path / "index")
    assert len(build_index(make_embeddings(random_vectors(6)), tmp_path / "index", is_overwrite=True)) == 6


def test_build_index_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        build_index(tmp_path / "nothing", tmp_path / "index")


@pytest.mark.parametrize("name", ["vectors.npy", "rows.parquet"])
@pytest.mark.parametrize("content", [None, b"", b"damaged"])
def test_open_refuses_damage(tmp_path: Path, name: str, content: bytes | None) -> None:
    build_index(make_embeddings(random_vectors(5)), tmp_path / "index")
    (tmp_path / "index" / name).unlink()
    if content is not None:
        (tmp_path / "index" / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=name):
        ExactStore.open(tmp_path / "index")


def test_open_refuses_vectors_of_another_size(tmp_path: Path) -> None:
    build_index(make_embeddings(random_vectors(5)), tmp_path / "index")
    np.save(tmp_path / "index" / "vectors.npy", random_vectors(4))
    with pytest.raises(ArtifactError, match="promise"):
        ExactStore.open(tmp_path / "index")


def test_trap_open_never_unpickles(tmp_path: Path) -> None:
    build_index(make_embeddings(random_vectors(5)), tmp_path / "index")
    np.save(tmp_path / "index" / "vectors.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactError, match="pickle"):
        ExactStore.open(tmp_path / "index")
