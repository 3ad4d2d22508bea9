from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.search.memory_store import MemoryStore
from vitrieve.data.records import ImageRecord
from vitrieve.embed.embeddings import Embeddings
from vitrieve.errors import ArtifactError, ConfigError, DataError
from vitrieve.index.store import StoreInfo
from vitrieve.search.threshold import (
    NearestScores,
    Threshold,
    calibrate_embeddings,
    calibrate_index,
    choose_threshold,
    load_threshold,
    measure_nearest,
    save_threshold,
)
from vitrieve.similarity import normalize, similarity

INFO = StoreInfo(kind="exact", fingerprint="f", encoder_source="e", image_size=32, embedding_dim=8)


def draw_collection(num_images: int = 120, noise: float = 0.3) -> tuple[np.ndarray, list[ImageRecord]]:
    """Classes of 1 to 5 images; every eleventh image has no label; an exact duplicate across two classes."""
    generator = np.random.default_rng(0)
    labels = np.sort(generator.integers(0, num_images // 3, num_images))
    centers = generator.normal(size=(num_images, 8))
    vectors = normalize(centers[labels] + noise * generator.normal(size=(num_images, 8)))
    vectors[num_images - 1] = vectors[0]
    records = [
        ImageRecord(
            image_id=f"{row:03}",
            path=Path("a"),
            label=int(label),
            split="test",
            metadata={"label": str(label)} if row % 11 else {},
        )
        for row, label in enumerate(labels)
    ]
    return vectors, records


def fill(vectors: np.ndarray, records: list[ImageRecord]) -> MemoryStore:
    store = MemoryStore(INFO)
    store.upsert(vectors, records)
    return store


def measure_slowly(vectors: np.ndarray, values: list[str | None]) -> tuple[list[float], list[float]]:
    known, unknown = [], []
    for row, value in enumerate(values):
        if value is None:
            continue
        scores = {
            other: float(similarity(vectors[row : row + 1], vectors[other : other + 1])[0, 0])
            for other in range(len(values))
            if other != row
        }
        if any(values[other] == value for other in scores):
            known.append(max(scores.values()))
        unknown.append(max(score for other, score in scores.items() if values[other] not in (None, value)))
    return known, unknown


@pytest.mark.parametrize("is_empty", [False, True])
def test_calibrate_index_counts_as_a_slow_reference_does(is_empty: bool) -> None:
    """A picture without a label has no class, so it is no wrong one either; nor has one whose cell is empty."""
    vectors, records = draw_collection()
    known, unknown = measure_slowly(vectors, [record.metadata.get("label") for record in records])
    if is_empty:
        records = [replace(record, metadata={"label": " ", **record.metadata}) for record in records]
    threshold = calibrate_index(fill(vectors, records), column="label", false_accept_rate=0.1)
    assert (threshold.num_known, threshold.num_unknown) == (len(known), len(unknown))
    assert threshold.false_accept_rate == np.mean(np.array(unknown) >= threshold.score)
    assert threshold.false_accept_rate <= 0.1 < threshold.false_accept_rate + 1 / len(unknown)
    assert threshold.false_reject_rate == np.mean(np.array(known) < threshold.score)
    assert threshold.fingerprint == "f"
    assert "leave-class-out" in threshold.method


@pytest.mark.parametrize("metadata", [{"label": "many"}, {}, {"label": ""}])
def test_calibrate_index_finds_another_class_behind_many(metadata: dict[str, str]) -> None:
    vectors, records = draw_collection(60)
    one_class = [
        ImageRecord(image_id=f"z{n:03}", path=Path("a"), label=0, split="test", metadata=metadata) for n in range(60)
    ]
    crowd = normalize(vectors[:1] + 1e-3 * np.random.default_rng(1).normal(size=(60, 8)))
    store = fill(np.concatenate([vectors, crowd]), records + one_class)
    threshold = calibrate_index(store, column="label")
    values = [record.metadata.get("label") or None for record in records + one_class]
    known, unknown = measure_slowly(np.concatenate([vectors, crowd]), values)
    assert (threshold.num_known, threshold.num_unknown) == (len(known), len(unknown))
    assert threshold.false_accept_rate == np.mean(np.array(unknown) >= threshold.score)


def test_calibrate_index_without_classes_rejects_at_most_the_rate() -> None:
    vectors, records = draw_collection()
    threshold = calibrate_index(fill(vectors, records), column=None)
    assert threshold.false_accept_rate is None
    assert threshold.false_reject_rate is not None
    # Two images that are each other's nearest have one score, so that rejecting one more may reject two.
    assert 0.05 - 2 / len(records) <= threshold.false_reject_rate <= 0.05
    assert "leave-image-out" in threshold.method


def test_calibrate_embeddings_equals_calibrate_index_on_the_same_images() -> None:
    vectors, records = draw_collection()
    labeled = [
        ImageRecord(image_id=r.image_id, path=r.path, label=r.label, split="test", metadata={"label": str(r.label)})
        for r in records
    ]
    embeddings = Embeddings(
        vectors=vectors,
        records=tuple(labeled),
        failures=(),
        fingerprint="f",
        encoder_source="",
        image_size=32,
        license="",
    )
    of_embeddings = calibrate_embeddings(embeddings, name="things", false_reject_rate=0.2)
    of_index = calibrate_index(fill(vectors, labeled), column="label", false_reject_rate=0.2)
    assert of_embeddings.score == of_index.score
    assert of_embeddings.false_accept_rate == of_index.false_accept_rate
    assert "things" in of_embeddings.method


def test_calibrate_tells_foreign_queries_from_own_ones() -> None:
    generator = np.random.default_rng(3)
    base = np.array([5.0, *[0.0] * 7])
    centers = base + generator.normal(size=(10, 8))
    vectors = normalize(centers[np.arange(100) % 10] + 0.2 * generator.normal(size=(100, 8)))
    records = [
        ImageRecord(image_id=f"{n}", path=Path("a"), label=0, split="test", metadata={"label": str(n % 10)})
        for n in range(100)
    ]
    foreign = normalize(-base + generator.normal(size=(50, 8)))
    for column in ("label", None):
        score = calibrate_index(fill(vectors, records), column=column).score
        assert (similarity(foreign, vectors).max(axis=1) < score).all()


def test_choose_threshold_by_hand() -> None:
    scores = NearestScores(known=np.float32(np.arange(50, 100) / 100), unknown=np.float32(np.arange(0, 60) / 100))
    settings = {"fingerprint": "f", "where": "paper"}
    # 60 unknown, of which 10 % are 6: 0.59 to 0.54 pass, 0.53 does not.
    accepting = choose_threshold(scores, false_accept_rate=0.1, **settings)
    assert 0.53 < accepting.score <= 0.54
    assert accepting.false_accept_rate == pytest.approx(0.1)
    assert accepting.false_reject_rate == pytest.approx(0.08)
    # 50 known, of which 10 % are 5: 0.50 to 0.54 fall.
    rejecting = choose_threshold(scores, false_reject_rate=0.1, **settings)
    assert rejecting.score == pytest.approx(0.55)
    # At 0.55 reject 5 of 50 and accept 5 of 60; at 0.54 reject 4 and accept 6: the larger is 0.1 in both.
    balanced = choose_threshold(scores, **settings)
    assert max(balanced.false_accept_rate or 0, balanced.false_reject_rate or 0) == pytest.approx(0.1)


def test_choose_threshold_with_all_scores_equal() -> None:
    same = np.full(30, 0.5, np.float32)
    scores = NearestScores(known=same, unknown=same)
    accepting = choose_threshold(scores, fingerprint="f", where="w", false_accept_rate=0.05)
    assert (accepting.false_accept_rate, accepting.false_reject_rate) == (0, 1)
    rejecting = choose_threshold(scores, fingerprint="f", where="w", false_reject_rate=0.05)
    assert (rejecting.false_accept_rate, rejecting.false_reject_rate) == (1, 0)


@pytest.mark.parametrize(
    "rates",
    [
        {"false_accept_rate": 0.1, "false_reject_rate": 0.1},
        {"false_accept_rate": 0.0},
        {"false_reject_rate": 1.0},
        {"false_reject_rate": float("nan")},
    ],
)
def test_choose_threshold_refuses_rates(rates: dict[str, float]) -> None:
    scores = NearestScores(known=np.ones(30, np.float32), unknown=np.ones(30, np.float32))
    with pytest.raises(ConfigError, match="one rate"):
        choose_threshold(scores, fingerprint="f", where="w", **rates)


def test_choose_threshold_needs_classes_for_false_accepts_and_enough_queries() -> None:
    scores = NearestScores(known=np.ones(30, np.float32), unknown=np.empty(0, np.float32))
    with pytest.raises(ConfigError, match="needs classes"):
        choose_threshold(scores, fingerprint="f", where="w", false_accept_rate=0.1)
    few = NearestScores(known=np.ones(5, np.float32), unknown=np.ones(30, np.float32))
    with pytest.raises(DataError, match="5 images"):
        choose_threshold(few, fingerprint="f", where="w")


def test_choose_threshold_of_a_catalogue_with_one_image_a_class() -> None:
    scores = NearestScores(known=np.empty(0, np.float32), unknown=np.float32(np.arange(100) / 100))
    threshold = choose_threshold(scores, fingerprint="f", where="w", false_accept_rate=0.05)
    assert (threshold.false_accept_rate, threshold.false_reject_rate) == (0.05, None)


def test_measure_nearest_of_nothing_and_of_one_class() -> None:
    nothing = measure_nearest(np.empty((0, 3), np.float32), np.empty(0, np.int64))
    assert (len(nothing.known), len(nothing.unknown)) == (0, 0)
    one = measure_nearest(np.eye(3, dtype=np.float32), np.zeros(3, np.int64))
    assert (len(one.known), len(one.unknown)) == (3, 0)


def test_trap_an_exact_duplicate_is_not_taken_for_the_image_itself() -> None:
    vectors = np.float32([[1, 0], [1, 0], [0, 1]])
    assert measure_nearest(vectors, np.array([0, 0, 1])).known.tolist() == [1, 1]


def test_threshold_is_saved_and_loaded(tmp_path: Path) -> None:
    assert load_threshold(tmp_path) is None
    threshold = Threshold(score=0.5, fingerprint="f", method="m", false_reject_rate=0.1, num_known=3)
    save_threshold(threshold, tmp_path)
    assert load_threshold(tmp_path) == threshold


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"score": "x"}', '{"score": NaN, "fingerprint": "f", "method": "m"}']
)
def test_load_threshold_refuses_a_damaged_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "threshold.json").write_text(content)
    with pytest.raises(ArtifactError, match="calibrate again"):
        load_threshold(tmp_path)
