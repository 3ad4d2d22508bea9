"""What the other pictures say about labels and classes, against double loops and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vitrieve.curation.labels import (
    RIDGES,
    TEMPERATURE,
    Neighborhood,
    choose_num_neighbors,
    find_neighborhood,
    find_overlaps,
    measure_outliers,
    score_labels,
)
from vitrieve.similarity import normalize, similarity


def make_classes(num_classes: int = 6, size: int = 8, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_classes), size)
    centers = generator.normal(size=(num_classes, 16))
    return normalize(centers[labels] + noise * generator.normal(size=(len(labels), 16))), labels


def judge_slowly(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Fit without each picture in turn; the ridge whose outputs confirm the most labels, the first of several."""
    features = np.concatenate([vectors.astype(np.float64), np.ones((len(vectors), 1))], axis=1)
    targets = np.eye(labels.max() + 1)[labels]
    of_ridges = []
    for ridge in RIDGES:
        outputs = np.zeros_like(targets)
        for row in range(len(labels)):
            others = np.arange(len(labels)) != row
            gram = features[others].T @ features[others] + ridge * np.eye(features.shape[1])
            outputs[row] = features[row] @ np.linalg.solve(gram, features[others].T @ targets[others])
        of_ridges.append(outputs)
    return max(of_ridges, key=lambda outputs: np.count_nonzero(outputs.argmax(axis=1) == labels))


@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_score_labels_equals_confident_learning_by_loops(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrieve.curation.labels.BLOCK_NUMBERS", 170)  # blocks of ten rows
    vectors, labels = make_classes(noise=noise)
    labels = labels.copy()
    labels[[3, 20]] = labels[[20, 3]]
    labels[47] = 6  # a class with one picture
    outputs = judge_slowly(vectors, labels)
    thresholds = [outputs[labels == label, label].mean() for label in range(7)]
    found = score_labels(vectors, labels)
    for row, label in enumerate(labels):
        others = [other for other in range(6) if other != label]
        reached = [other for other in others if outputs[row, other] >= thresholds[other]]
        best = max(reached or others, key=lambda other: outputs[row, other])
        assert found.suggested[row] == best
        if label == 6:
            assert (found.scores[row], found.is_error[row]) == (0, False)
            continue
        assert found.scores[row] == pytest.approx((1 + outputs[row, best] - outputs[row, label]) / 2)
        assert found.is_error[row] == (bool(reached) and outputs[row, best] > outputs[row, label])


def test_planted_errors_are_the_worst() -> None:
    vectors, labels = make_classes(noise=0.3)
    wrong = labels.copy()
    wrong[[0, 10, 30]] = [4, 5, 0]
    found = score_labels(vectors, wrong)
    assert {0, 10, 30} <= set(np.flatnonzero(found.is_error))
    assert set(np.argsort(-found.scores)[:3]) == {0, 10, 30}
    assert found.suggested[[0, 10, 30]].tolist() == labels[[0, 10, 30]].tolist()
    assert not score_labels(vectors, labels).is_error.any()


def test_classes_of_one_picture_are_not_judged() -> None:
    found = score_labels(normalize([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1]))
    assert (found.suggested.tolist(), found.scores.tolist(), found.is_error.any()) == ([-1, -1], [0, 0], False)


def test_overlaps_equal_votes_by_loops() -> None:
    vectors, labels = make_classes(noise=2.0)
    matrix = similarity(vectors, vectors).astype(np.float64)
    votes = np.zeros((6, 6))
    for row in range(len(labels)):
        others = sorted((other for other in range(len(labels)) if other != row), key=lambda i: (-matrix[row, i], i))
        weights = {other: np.exp(matrix[row, other] / TEMPERATURE) for other in others[:5]}
        for other, weight in weights.items():
            votes[labels[row], labels[other]] += weight / sum(weights.values()) / 8
    expected = {}
    for one in range(6):
        for other in range(one + 1, 6):
            wrong, right = votes[one, other] + votes[other, one], votes[one, one] + votes[other, other]
            if wrong >= 0.2 * (wrong + right):
                expected[one, other] = wrong / (wrong + right)
    found = find_overlaps(find_neighborhood(vectors, 5), labels)
    assert {(one, other): overlap for one, other, overlap in found} == pytest.approx(expected)
    assert expected
    assert [overlap for *_, overlap in found] == sorted([overlap for *_, overlap in found], reverse=True)


def test_find_neighborhood_leaves_out_the_picture_itself_among_equal_ones() -> None:
    vectors = np.tile(normalize([[1.0, 2.0]]), (6, 1))
    rows = find_neighborhood(vectors, 3).rows
    assert rows.shape == (6, 3)
    assert all(row not in others for row, others in enumerate(rows.tolist()))
    assert find_neighborhood(vectors[:2], 3).rows.tolist() == [[1], [0]]


def test_two_classes_that_are_one_overlap() -> None:
    vectors, labels = make_classes(noise=0.3)
    mixed = np.where(labels == 5, 4, labels)
    mixed[labels == 5] = np.where(np.arange(8) % 2, 4, 5)
    ((one, other, overlap),) = find_overlaps(find_neighborhood(vectors, 7), mixed)
    assert (one, other) == (4, 5)
    assert 0.2 <= overlap <= 0.6


def test_outliers_by_hand() -> None:
    similarities = np.float32([[0.9, 0.7], [0.8, 0.8], [0.7, 0.7], [0.9, 0.9], [0.1, 0.1]])
    deviations = measure_outliers(Neighborhood(np.zeros((5, 2), dtype=np.int64), similarities))
    # Means 0.8, 0.8, 0.7, 0.9, 0.1; deviations from the median 0.8: 0, 0, 0.1, -0.1, 0.7; their median size 0.1.
    assert deviations == pytest.approx(np.array([0, 0, 0.1, -0.1, 0.7]) / 0.14826, abs=1e-5)
    assert not measure_outliers(Neighborhood(np.zeros((3, 1), np.int64), np.ones((3, 1), np.float32))).any()


@pytest.mark.parametrize(("sizes", "expected"), [([2, 2], 3), ([7, 7, 30], 6), ([90], 10), ([], 3)])
def test_choose_num_neighbors(sizes: list[int], expected: int) -> None:
    assert choose_num_neighbors(np.repeat(np.arange(len(sizes)), np.array(sizes, dtype=int))) == expected
