from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrieve.data.records import ImageRecord
from vitrieve.embed.embeddings import Embeddings
from vitrieve.errors import ArtifactError, DataError
from vitrieve.index import exact, segments
from vitrieve.index.exact import ExactStore
from vitrieve.index.folder import writing
from vitrieve.index.open import build_index, open_index
from vitrieve.similarity import normalize, top_k


def make_embeddings(vectors: np.ndarray, image_ids: list[str] | None = None) -> Embeddings:
    names = image_ids or [f"picture-{row:04}.png" for row in range(len(vectors))]
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


def build(vectors: np.ndarray, folder: Path, image_ids: list[str] | None = None) -> ExactStore:
    store = build_index(make_embeddings(vectors, image_ids), folder, store="exact")
    assert isinstance(store, ExactStore)
    return store


def random_vectors(num_rows: int, width: int = 8, seed: int = 0) -> np.ndarray:
    return normalize(np.random.default_rng(seed).standard_normal((num_rows, width)))


def search_rows(store: ExactStore, queries: np.ndarray, k: int) -> tuple[list[list[float]], list[list[int]]]:
    """Scores and the rows that the images had when the index was built."""
    hits = store.search(queries, k)
    return (
        [[hit.score for hit in some] for some in hits],
        [[int(hit.record.metadata["row"]) for hit in some] for some in hits],
    )


def assert_equals_top_k(store: ExactStore, queries: np.ndarray, vectors: np.ndarray, k: int) -> None:
    scores, rows = top_k(queries, vectors, k)
    assert search_rows(store, queries, k) == (scores.tolist(), rows.tolist())


def list_segments(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "segments").iterdir())


@pytest.fixture
def store(tmp_path: Path) -> ExactStore:
    return build(random_vectors(50), tmp_path / "index")


def test_create_copies_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "BLOCK_ROWS", 3)
    vectors = random_vectors(10)
    store = build(vectors, tmp_path / "index")
    assert np.array_equal(store.get(list(store.image_ids()))[0], vectors)


@pytest.mark.parametrize("k", [1, 3, 49, 50, 51, 1000])
def test_search_equals_top_k(store: ExactStore, k: int) -> None:
    assert_equals_top_k(store, random_vectors(7, seed=1), random_vectors(50), k)


def test_search_does_not_depend_on_the_block(store: ExactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = random_vectors(7, seed=1)
    expected = store.search(queries, 5)
    monkeypatch.setattr(exact, "BLOCK_BYTES", 1)
    assert store.search(queries, 5) == expected


def test_search_equals_top_k_across_segments_and_gaps(tmp_path: Path) -> None:
    vectors = random_vectors(300)
    records = make_embeddings(vectors).records
    store = build(vectors[:200], tmp_path / "index")
    for start in (200, 250, 280):
        end = {200: 250, 250: 280, 280: 300}[start]
        store.upsert(vectors[start:end], records[start:end])
    store.delete([records[row].image_id for row in range(0, 300, 3)])
    left = np.flatnonzero(np.arange(300) % 3)
    queries = random_vectors(5, seed=2)
    scores, places = top_k(queries, vectors[left], 20)
    assert len(list_segments(tmp_path / "index")) > 3  # several segments, and files of what is gone
    assert search_rows(store, queries, 20) == (scores.tolist(), left[places].tolist())


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), num_distinct=st.integers(1, 6), k=st.integers(1, 30), spread=st.floats(0, 1e-6))
def test_search_orders_near_ties_like_top_k(
    tmp_path_factory: pytest.TempPathFactory, seed: int, num_distinct: int, k: int, spread: float
) -> None:
    generator = np.random.default_rng(seed)
    centers = random_vectors(num_distinct, width=16, seed=seed)
    vectors = centers[generator.integers(0, num_distinct, 30)] + spread * generator.standard_normal((30, 16))
    store = build(normalize(vectors), tmp_path_factory.mktemp("near") / "index")
    assert_equals_top_k(store, centers[:1], normalize(vectors), k)


def test_search_finds_negative_similarities(tmp_path: Path) -> None:
    store = build(np.array([[-1, 0], [0, -1]], dtype=np.float32), tmp_path / "index")
    assert search_rows(store, np.array([[1, 0]], dtype=np.float32), 1) == ([[0.0]], [[1]])


def test_upsert_merges_small_segments(tmp_path: Path) -> None:
    vectors = random_vectors(64)
    records = make_embeddings(vectors).records
    store = build(vectors[:1], tmp_path / "index")
    for row in range(1, 64):
        store.upsert(vectors[row : row + 1], records[row : row + 1])
    assert len(list_segments(tmp_path / "index")) <= 2 * 8  # two files a segment, about log2(64) segments
    assert_equals_top_k(store, vectors[:3], vectors, 5)


def test_optimize_leaves_one_segment_without_gaps(store: ExactStore, tmp_path: Path) -> None:
    store.upsert(random_vectors(2, seed=5), make_embeddings(random_vectors(2), ["a", "b"]).records)
    store.delete(["picture-0003.png"])
    store.optimize()
    assert len(list_segments(tmp_path / "index")) == 2
    assert np.load(next((tmp_path / "index" / "segments").glob("*.npy"))).shape == (51, 8)


def test_reader_keeps_what_it_holds_while_a_writer_replaces_the_files(store: ExactStore, tmp_path: Path) -> None:
    reader = open_index(tmp_path / "index")
    names = list(reader.image_ids())
    iterator = reader.image_ids()
    first = next(iterator)
    store.delete(names[:49])
    store.optimize()
    assert [first, *iterator] == names  # began before the change
    assert list(reader.image_ids()) == names[49:]


def test_change_removes_what_a_killed_writer_left(store: ExactStore, tmp_path: Path) -> None:
    (tmp_path / "index" / "segments" / "000099.npy").write_bytes(b"half")
    store.delete(["picture-0000.png"])
    assert not any(name.startswith("000099") for name in list_segments(tmp_path / "index"))


def test_change_waits_for_another_writer_and_says_so(
    store: ExactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrieve.index.folder.WAIT_SECONDS", 0.05)
    with writing(tmp_path / "index"), pytest.raises(ArtifactError, match="another process"):
        store.delete(["picture-0000.png"])
    assert store.delete(["picture-0000.png"]) == 1


def test_build_index_refuses_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no embedding"):
        build(np.empty((0, 4), dtype=np.float32), tmp_path / "index")


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.0, 0.5])
def test_build_index_refuses_vectors_that_are_not_normalized(tmp_path: Path, value: float) -> None:
    vectors = random_vectors(5)
    vectors[3] = vectors[3] * np.float32(value)
    with pytest.raises(DataError, match=r"picture-0003\.png"):
        build(vectors, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_build_index_refuses_an_image_id_that_occurs_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'a.png' occurs twice"):
        build(random_vectors(3), tmp_path / "index", ["a.png", "b.png", "a.png"])


def test_build_index_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        build_index(tmp_path / "nothing", tmp_path / "index", store="exact")


@pytest.mark.parametrize("ending", ["*.npy", "*.parquet", "../state.json"])
@pytest.mark.parametrize("content", [None, b"", b"damaged"])
def test_open_refuses_damage(store: ExactStore, tmp_path: Path, ending: str, content: bytes | None) -> None:
    folder = tmp_path / "index" / "segments"
    path = folder / ending if ending.startswith("..") else next(folder.glob(ending))
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=path.name):
        open_index(tmp_path / "index")


@pytest.mark.parametrize("ending", ["*.npy", "*.parquet"])
def test_verify_notices_a_flipped_bit(store: ExactStore, tmp_path: Path, ending: str) -> None:
    path = next((tmp_path / "index" / "segments").glob(ending))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert any(path.name in fault for fault in store.verify())


@pytest.mark.parametrize("ending", ["segments/*.dead.npy", "state.json"])
def test_verify_notices_a_change_in_what_says_which_images_count(
    store: ExactStore, tmp_path: Path, ending: str
) -> None:
    store.delete(["picture-0001.png"])
    path = next((tmp_path / "index").glob(ending))
    content = path.read_bytes()
    changed = content.replace(b'"row"', b'"raw"') if path.suffix == ".json" else content[:-8] + bytes([2] + [0] * 7)
    assert changed != content
    path.write_bytes(changed)
    (fault,) = open_index(tmp_path / "index").verify() if path.suffix == ".npy" else store.verify()
    assert "is not what was written" in fault
    assert path.name in fault


def test_an_index_of_before_there_were_these_checksums_opens(store: ExactStore, tmp_path: Path) -> None:
    store.delete(["picture-0001.png"])
    path = tmp_path / "index" / "state.json"
    state = json.loads(path.read_text())
    del state["crc32"], state["segments"][0]["dead_crc32"]
    path.write_text(json.dumps(state))
    old = open_index(tmp_path / "index")
    assert (old.count(), old.verify()) == (49, [])


@pytest.mark.parametrize("is_held", [False, True])
def test_search_is_refused_when_a_file_is_cut_while_it_runs(store: ExactStore, tmp_path: Path, is_held: bool) -> None:
    """A mapped file would end the process with a bus error."""
    assert store.hold(10**9 * is_held) is is_held
    expected = store.search(random_vectors(1), 5)
    state = store._read()
    path = next((tmp_path / "index" / "segments").glob("*.npy"))
    os.truncate(path, 300)
    if is_held:
        assert exact._approximate(state, random_vectors(1)).shape == (1, 50)
        assert exact._rank(state, random_vectors(1)[0], np.arange(50), 5) == expected[0]
        return
    for read in (
        lambda: exact._approximate(state, random_vectors(1)),
        lambda: exact._rank(state, random_vectors(1)[0], np.arange(50), 5),
        lambda: exact._rank(state, random_vectors(1)[0], np.array([49]), 1),
    ):
        with pytest.raises(ArtifactError, match=rf"{path.name} is not what was written: it has been cut short"):
            read()


def test_held_vectors_follow_a_change(store: ExactStore, tmp_path: Path) -> None:
    assert store.hold(10**9)
    open_index(tmp_path / "index").delete(["picture-0001.png"])
    assert store.count() == 49
    vectors = np.delete(random_vectors(50), 1, axis=0)
    scores, _ = top_k(random_vectors(3, seed=1), vectors, 5)
    assert search_rows(store, random_vectors(3, seed=1), 5)[0] == scores.tolist()
    assert not store.hold(100)


def test_verify_goes_on_where_a_writer_replaces_the_files_meanwhile(
    store: ExactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_index(tmp_path / "index")
    vectors, records = writer.get([next(writer.image_ids())])
    find_faults, num_changes = exact.find_faults, 2

    def change_and_find(folder: Path, part: segments.Part) -> list[str]:
        nonlocal num_changes
        if num_changes:
            num_changes -= 1
            writer.upsert(vectors, records)
            writer.optimize()
        return find_faults(folder, part)

    monkeypatch.setattr(exact, "find_faults", change_and_find)
    assert store.verify() == []
    assert num_changes == 0
    part = store._read().parts[0]
    (tmp_path / "index" / "segments" / f"{part.segment.name}.parquet").unlink()
    assert any(f"{part.segment.name}.parquet" in fault for fault in store.verify())


def test_verify_reports_what_cannot_be_opened_any_more(store: ExactStore, tmp_path: Path) -> None:
    (tmp_path / "index" / "state.json").write_text("{")
    assert "state.json" in store.verify()[0]


def test_open_refuses_vectors_of_another_size(store: ExactStore, tmp_path: Path) -> None:
    np.save(next((tmp_path / "index" / "segments").glob("*.npy")), random_vectors(4))
    with pytest.raises(ArtifactError, match="promise"):
        open_index(tmp_path / "index")


def test_open_refuses_gaps_outside_the_segment(store: ExactStore, tmp_path: Path) -> None:
    store.delete(["picture-0001.png"])
    np.save(next((tmp_path / "index" / "segments").glob("*.dead.npy")), np.array([50]))
    with pytest.raises(ArtifactError, match="rows of a segment"):
        open_index(tmp_path / "index")


def test_trap_open_never_unpickles(store: ExactStore, tmp_path: Path) -> None:
    path = next((tmp_path / "index" / "segments").glob("*.npy"))
    np.save(path, np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactError, match="pickle"):
        open_index(tmp_path / "index")


def test_open_refuses_another_kind_of_store(store: ExactStore, tmp_path: Path) -> None:
    path = tmp_path / "index" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"store": "cassette"}))
    with pytest.raises(ArtifactError, match="cassette"):
        open_index(tmp_path / "index")


def test_take_keeps_the_order_across_segments(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    (folder / "segments").mkdir(parents=True)
    vectors = random_vectors(6)
    tables = [exact._to_table(make_embeddings(vectors).records[start : start + 3]) for start in (0, 3)]
    parts = [segments.write_segment(folder, n + 1, [vectors[3 * n : 3 * n + 3]], tables[n]) for n in (0, 1)]
    state = segments.State("f", 3, (), tuple(parts))
    found, rows = state.take(np.array([4, 0, 5, 0]))
    assert np.array_equal(found, vectors[[4, 0, 5, 0]])
    assert rows["image_id"].to_pylist() == [f"picture-000{n}.png" for n in (4, 0, 5, 0)]
    assert isinstance(rows, pa.Table)
