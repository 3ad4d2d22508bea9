from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.index.conformance import make_embeddings, make_records, random_vectors, summarize
from vitrieve.errors import ArtifactError
from vitrieve.index import exact, segments
from vitrieve.index.exact import ExactStore
from vitrieve.index.open import build_index
from vitrieve.similarity import normalize, top_k


def build_exact(vectors: np.ndarray, folder: Path) -> ExactStore:
    store = build_index(make_embeddings(vectors), folder, store="exact")
    assert isinstance(store, ExactStore)
    return store


def test_build_index_copies_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "BLOCK_ROWS", 3)
    store = build_exact(random_vectors(10), tmp_path / "index")
    assert np.array_equal(store.get(list(store.image_ids()))[0], random_vectors(10))


def test_search_does_not_depend_on_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, queries = build_exact(random_vectors(50), tmp_path / "index"), random_vectors(7, seed=1)
    expected = store.search(queries, 5)
    monkeypatch.setattr(exact, "BLOCK_BYTES", 1)
    assert store.search(queries, 5) == expected


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), num_distinct=st.integers(1, 6), k=st.integers(1, 30), spread=st.floats(0, 1e-6))
def test_search_orders_near_ties_like_top_k(
    tmp_path_factory: pytest.TempPathFactory, seed: int, num_distinct: int, k: int, spread: float
) -> None:
    generator = np.random.default_rng(seed)
    centers = random_vectors(num_distinct, width=16, seed=seed)
    near = centers[generator.integers(0, num_distinct, 30)] + spread * generator.standard_normal((30, 16))
    vectors = normalize(near)
    store = build_exact(vectors, tmp_path_factory.mktemp("near") / "index")
    similarities, rows = top_k(centers[:1], vectors, k)
    names = [f"picture-{row:04}.png" for row in rows[0]]
    assert summarize(store.search(centers[:1], k)) == [list(zip(names, map(float, similarities[0]), strict=True))]


def test_segments_stay_few_and_optimise_leaves_one(tmp_path: Path) -> None:
    store = build_exact(random_vectors(5), tmp_path / "index")
    for batch in range(40):
        store.upsert(random_vectors(2, seed=batch), make_records([f"{batch}-0", f"{batch}-1"], [{}, {}]))
    segment_names = {path.name.split(".")[0] for path in (tmp_path / "index" / segments.FOLDER_NAME).iterdir()}
    assert len(segment_names) <= 8
    store.optimise()
    assert len(list((tmp_path / "index" / segments.FOLDER_NAME).glob("*.parquet"))) == 1
    assert store.count() == 85


@pytest.mark.parametrize("name", [segments.STATE_NAME, "*.npy", "*.parquet"])
@pytest.mark.parametrize("content", [None, b"", b"damaged"])
def test_open_refuses_damage(tmp_path: Path, name: str, content: bytes | None) -> None:
    build_exact(random_vectors(5), tmp_path / "index").close()
    (path,) = (tmp_path / "index").rglob(name)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match="cannot be read"):
        ExactStore.open(tmp_path / "index")


def test_open_refuses_vectors_of_another_size(tmp_path: Path) -> None:
    build_exact(random_vectors(5), tmp_path / "index").close()
    (path,) = (tmp_path / "index").rglob("*.npy")
    np.save(path, random_vectors(4))
    with pytest.raises(ArtifactError, match="promise"):
        ExactStore.open(tmp_path / "index")


def test_verify_finds_a_changed_byte(tmp_path: Path) -> None:
    store = build_exact(random_vectors(5), tmp_path / "index")
    (path,) = (tmp_path / "index").rglob("*.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert any("is not what was written" in fault for fault in store.verify())


def test_trap_open_never_unpickles(tmp_path: Path) -> None:
    build_exact(random_vectors(5), tmp_path / "index").close()
    (path,) = (tmp_path / "index").rglob("*.npy")
    np.save(path, np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactError, match="pickle"):
        ExactStore.open(tmp_path / "index")
