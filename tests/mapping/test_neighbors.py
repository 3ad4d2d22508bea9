from __future__ import annotations

import numpy as np

from vitrieve.mapping.neighbors import find_neighbors
from vitrieve.similarity import similarity


def test_find_neighbors_equals_sorting_all_others() -> None:
    vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    found = find_neighbors(vectors, 7)
    for row in range(60):
        others = [other for other in range(60) if other != row]
        values = {
            other: float(similarity(vectors[row : row + 1], vectors[other : other + 1])[0, 0]) for other in others
        }
        expected = sorted(others, key=lambda other: (-values[other], other))[:7]
        assert found.rows[row].tolist() == expected
        assert found.similarities[row].tolist() == [values[other] for other in expected]


def test_a_row_is_never_its_own_neighbor_among_more_copies_than_neighbors() -> None:
    found = find_neighbors(np.tile(np.float32([[1, 0]]), (9, 1)), 3)
    assert found.rows.shape == (9, 3)
    assert not (found.rows == np.arange(9)[:, None]).any()
    assert found.similarities.min() == 1


def test_fewer_rows_than_neighbors_give_all_others() -> None:
    found = find_neighbors(np.eye(3, dtype=np.float32), 30)
    assert [sorted(rows) for rows in found.rows.tolist()] == [[1, 2], [0, 2], [0, 1]]
