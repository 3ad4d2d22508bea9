from __future__ import annotations

import math

import numpy as np
import pytest

from vitrieve.rerank.matching import (
    DUSTBIN_SIMILARITY,
    SINKHORN_ITERATIONS,
    SINKHORN_SHARPNESS,
    best_pair_scores,
    chamfer_scores,
    compare_parts,
    match_by_transport,
    transport_scores,
)
from vitrieve.similarity import normalize


def draw_similarities(num_images: int, num_query: int, num_parts: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    query = normalize(generator.normal(size=(num_query, 6)))
    images = normalize(generator.normal(size=(num_images * num_parts, 6))).reshape(num_images, num_parts, 6)
    return compare_parts(query, images)


def match_slowly(similarities: np.ndarray, rows: list[float], columns: list[float], corner: float) -> np.ndarray:
    """One pair of pictures, with logarithms and loops."""
    num_rows, num_columns = similarities.shape
    table = [[SINKHORN_SHARPNESS * float(value) for value in row] for row in similarities]
    for row, dustbin in zip(table, rows, strict=True):
        row.append(SINKHORN_SHARPNESS * dustbin)
    table.append([SINKHORN_SHARPNESS * dustbin for dustbin in (*columns, corner)])
    row_masses, column_masses = [1.0] * num_rows + [num_columns], [1.0] * num_columns + [num_rows]
    u, v = [0.0] * (num_rows + 1), [0.0] * (num_columns + 1)
    for _ in range(SINKHORN_ITERATIONS):
        for i, mass in enumerate(row_masses):
            u[i] = math.log(mass) - math.log(sum(math.exp(table[i][j] + v[j]) for j in range(num_columns + 1)))
        for j, mass in enumerate(column_masses):
            v[j] = math.log(mass) - math.log(sum(math.exp(table[i][j] + u[i]) for i in range(num_rows + 1)))
    return np.array(
        [[math.exp(table[i][j] + u[i] + v[j]) for j in range(num_columns)] for i in range(num_rows)]
    ).reshape(num_rows, num_columns)


def test_compare_parts_equals_a_loop() -> None:
    generator = np.random.default_rng(0)
    query, images = normalize(generator.normal(size=(3, 5))), normalize(generator.normal(size=(8, 5))).reshape(2, 4, 5)
    expected = [[[float(part @ other) for other in image] for part in query] for image in images]
    np.testing.assert_allclose(compare_parts(query, images), expected, atol=1e-6)
    assert compare_parts(query, images[:0]).shape == (0, 3, 4)


def test_chamfer_equals_a_double_loop() -> None:
    similarities = draw_similarities(4, 3, 5)
    expected = []
    for one in similarities.tolist():
        rows = [max(row) for row in one]
        columns = [max(row[j] for row in one) for j in range(5)]
        expected.append((sum(rows) / 3 + sum(columns) / 5) / 2)
    np.testing.assert_allclose(chamfer_scores(similarities), expected, atol=1e-6)


def test_best_pair_by_hand() -> None:
    np.testing.assert_allclose(
        best_pair_scores(np.array([[[0.1, -0.5], [0.3, 0.2]], [[-1, -0.5], [-0.2, -0.3]]])), [0.3, -0.2]
    )


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 3, 6), (2, 6, 1)])
def test_transport_equals_a_slow_reference_in_logarithms(shape: tuple[int, int, int]) -> None:
    similarities = draw_similarities(*shape)
    generator = np.random.default_rng(1)
    rows, columns = generator.uniform(-1, 1, shape[1]), generator.uniform(-1, 1, (shape[0], shape[2]))
    found = match_by_transport(similarities, rows, columns, 0.2)
    for one, image, dustbins in zip(found, similarities, columns, strict=True):
        np.testing.assert_allclose(one, match_slowly(image, rows.tolist(), dustbins.tolist(), 0.2), rtol=1e-6)


def test_transport_by_hand() -> None:
    # One part each: the kernel is symmetric, so the first iteration is exact: e^5 / (e^5 + e^3).
    found = match_by_transport(np.full((1, 1, 1), 0.5), 0.3, 0.3, 0.5)
    np.testing.assert_allclose(found, [[[1 / (1 + math.exp(-2))]]], rtol=1e-12)


def test_transport_matches_one_to_one_where_chamfer_counts_twice() -> None:
    # Both parts of the query are like the first part of the image, and none like the second.
    similarities = np.array([[[0.9, 0.0], [0.9, 0.0]], [[0.9, 0.0], [0.0, 0.9]]])
    matched = match_by_transport(similarities, DUSTBIN_SIMILARITY, DUSTBIN_SIMILARITY, DUSTBIN_SIMILARITY)
    assert matched[0].sum() < 1.1 < matched[1].sum()
    assert (matched.sum(axis=1) <= 1 + 1e-9).all()  # a column's mass is exact
    scores = transport_scores(similarities)
    assert scores[0] < scores[1]
    chamfer = chamfer_scores(similarities)
    assert scores[1] - scores[0] > chamfer[1] - chamfer[0]


def test_transport_does_not_depend_on_the_order_of_parts() -> None:
    similarities = draw_similarities(3, 5, 6)
    generator = np.random.default_rng(2)
    shuffled = similarities[:, generator.permutation(5)][:, :, generator.permutation(6)]
    np.testing.assert_allclose(transport_scores(shuffled), transport_scores(similarities), rtol=1e-9)
    assert transport_scores(similarities[:0]).shape == (0,)
