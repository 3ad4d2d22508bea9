"""Votes of neighbors about labels, against double loops and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vitrieve.curation.labels import (
    TEMPERATURE,
    Neighborhood,
    choose_num_neighbors,
    find_neighborhood,
    measure_outliers,
    score_labels,
)
from vitrieve.similarity import normalize, similarity


def make_classes(num_classes: int = 6, size: int = 8, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_classes), size)
    centers = generator.normal(size=(num_classes, 16))
    return normalize(centers[labels] + noise * generator.normal(size=(len(labels), 16))), labels


def vote_slowly(vectors: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    matrix = similarity(vectors, vectors).astype(np.float64)
    shares = np.zeros((len(labels), labels.max() + 1))
    for row in range(len(labels)):
        others = [other for other in range(len(labels)) if other != row]
        others.sort(key=lambda other: (-matrix[row, other], other))
        weights = {other: np.exp(matrix[row, other] / TEMPERATURE) for other in others[:k]}
        for other, weight in weights.items():
            shares[row, labels[other]] += weight / sum(weights.values())
    return shares


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_score_labels_equals_confident_learning_by_loops(noise: float) -> None:
    vectors, labels = make_classes(noise=noise)
    labels = labels.copy()
    labels[[3, 20]] = labels[[20, 3]]
    labels[47] = 6  # a class with one picture
    shares = vote_slowly(vectors, labels, 5)
    thresholds = [shares[labels == label, label].mean() for label in range(7)]
    found = score_labels(find_neighborhood(vectors, 5), labels)
    for row, label in enumerate(labels):
        others = [other for other in range(7) if other != label and shares[row, other] > 0]
        reached = [other for other in others if shares[row, other] >= thresholds[other]]
        best = max(reached or others, key=lambda other: (shares[row, other], -other), default=-1)
        assert found.suggested[row] == best
        if label == 6 or best < 0:
            assert (found.scores[row], found.is_error[row]) == (0, False)
            continue
        assert found.scores[row] == pytest.approx((1 + shares[row, best] - shares[row, label]) / 2)
        assert found.is_error[row] == (bool(reached) and shares[row, best] > shares[row, label])
    overlaps = {(one, other): overlap for one, other, overlap in found.overlaps}
    means = np.stack([shares[labels == label].mean(axis=0) for label in range(7)])
    for one in range(6):
        for other in range(one + 1, 6):
            wrong, right = means[one, other] + means[other, one], means[one, one] + means[other, other]
            expected = wrong / (wrong + right) if wrong + right else 0
            assert overlaps.get((one, other), 0) == pytest.approx(expected if expected >= 0.2 else 0)


def test_planted_errors_are_the_worst() -> None:
    vectors, labels = make_classes(noise=0.3)
    wrong = labels.copy()
    wrong[[0, 10, 30]] = [4, 5, 0]
    found = score_labels(find_neighborhood(vectors, 7), wrong)
    assert set(np.flatnonzero(found.is_error)) == {0, 10, 30}
    assert set(np.argsort(-found.scores)[:3]) == {0, 10, 30}
    assert found.suggested[[0, 10, 30]].tolist() == labels[[0, 10, 30]].tolist()
    assert not score_labels(find_neighborhood(vectors, 7), labels).is_error.any()


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
    ((one, other, overlap),) = score_labels(find_neighborhood(vectors, 7), mixed).overlaps
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
