"""All pairs above a threshold, against the whole matrix of similarities."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from vitrieve.errors import InputError
from vitrieve.similarity import normalize, pairs, pairs_above, similarity


def list_pairs_slowly(vectors: np.ndarray, threshold: float) -> list[tuple[int, int, float]]:
    matrix = similarity(vectors, vectors)
    near = np.argwhere(np.triu(matrix >= np.float32(threshold), k=1)).tolist()
    return [(first, second, matrix[first, second]) for first, second in near]


def make_clusters(num_rows: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(num_rows // 5, 24))
    noise = generator.normal(size=(num_rows, 24)) * generator.uniform(0, 0.8, (num_rows, 1))
    vectors = normalize(centers[np.arange(num_rows) % len(centers)] + noise)
    vectors[7] = vectors[1]  # an exact duplicate
    vectors[9] = 0
    return vectors


@pytest.mark.parametrize("num_rows", [60, 2100])
@pytest.mark.parametrize("threshold", [0.75, 0.97, 1.0])
def test_pairs_above_equals_the_whole_matrix(num_rows: int, threshold: float) -> None:
    vectors = make_clusters(num_rows)
    found = pairs_above(vectors, threshold)
    assert list(zip(*(column.tolist() for column in found), strict=True)) == list_pairs_slowly(vectors, threshold)


def test_pairs_above_compares_rows_with_too_many_candidates_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "MAX_CANDIDATES", 3)
    vectors = make_clusters(2100)
    found = pairs_above(vectors, 0.8)
    assert list(zip(*(column.tolist() for column in found), strict=True)) == list_pairs_slowly(vectors, 0.8)


def test_pairs_above_refuses_more_than_it_can_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "MAX_PAIRS", 100)
    with pytest.raises(InputError, match="give a higher threshold"):
        pairs_above(np.ones((20, 3), dtype=np.float32), 0.5)


def test_memory_of_pairs_above_does_not_grow_with_the_pairs_that_are_compared() -> None:
    def measure(num_rows: int) -> int:
        vectors = normalize(np.random.default_rng(0).normal(size=(num_rows, 16)))
        vectors[7] = vectors[1]
        tracemalloc.start()
        try:
            assert 1 <= len(pairs_above(vectors, 0.99).first) < 10
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert measure(16_000) < 2 * measure(4_000)  # sixteen times as many pairs of rows


@pytest.mark.parametrize("num_rows", [0, 1])
def test_pairs_above_of_none_and_one(num_rows: int) -> None:
    assert len(pairs_above(np.ones((num_rows, 3), dtype=np.float32), -1).first) == 0
