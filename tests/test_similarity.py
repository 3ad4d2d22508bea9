from __future__ import annotations

from fractions import Fraction
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrieve.errors import InputError
from vitrieve.similarity import (
    GALLERY_BLOCK_SIZE,
    as_embeddings,
    definition,
    normalize,
    order_nearest,
    similarity,
    similarity_chunks,
    top_k,
)

COORDINATES = st.integers(-3, 3)
SEEDS = st.integers(0, 2**32 - 1)


def random_embeddings(seed: int, num_rows: int, num_dims: int = 24) -> npt.NDArray[np.float32]:
    return normalize(np.random.default_rng(seed).standard_normal((num_rows, num_dims)))


def exact_similarity(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> np.float32:
    """The definition in rational arithmetic, for two rows of norm one."""
    grid = 2**26
    products = (
        round(Fraction(float(a)) * grid) * round(Fraction(float(b)) * grid) for a, b in zip(one, other, strict=True)
    )
    return np.float32(float(Fraction(sum(products), grid**2)))


def test_normalize_gives_unit_rows_and_keeps_zeros() -> None:
    rows = normalize([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0], [-1e18, 1e18]])
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0], [1, 0], [-(0.5**0.5), 0.5**0.5]], rtol=1e-7)


@pytest.mark.parametrize(
    ("vectors", "part"),
    [
        ([1.0, 2.0], "matrix"),
        ([["a"]], "matrix"),
        ([[1j]], "matrix"),
        (np.empty((3, 0)), "matrix"),
        ([[0.0], [float("nan")]], "row 1"),
        ([[float("inf")]], "1 of 1 rows"),
        ([[1e300]], "NaN or infinity"),
    ],
)
def test_as_embeddings_refuses_what_is_no_finite_matrix(vectors: Any, part: str) -> None:
    with pytest.raises(InputError, match=part):
        as_embeddings(vectors)


def test_similarity_equals_the_definition_in_rational_arithmetic() -> None:
    queries, gallery = random_embeddings(0, 7, 384), random_embeddings(1, 9, 384)
    expected = [[exact_similarity(one, other) for other in gallery] for one in queries]
    np.testing.assert_array_equal(similarity(queries, gallery), expected)


def test_similarity_is_close_to_the_plain_product() -> None:
    queries, gallery = random_embeddings(2, 50, 384), random_embeddings(3, 60, 384)
    plain = queries.astype(np.float64) @ gallery.astype(np.float64).T
    np.testing.assert_allclose(similarity(queries, gallery), plain, atol=1e-7)


def test_similarity_does_not_depend_on_position_or_blocking() -> None:
    gallery = random_embeddings(4, GALLERY_BLOCK_SIZE + 37, 48)
    queries = gallery[[0, 5, GALLERY_BLOCK_SIZE, GALLERY_BLOCK_SIZE + 36]]
    whole = similarity(queries, gallery)
    order = np.random.default_rng(0).permutation(len(gallery))
    np.testing.assert_array_equal(similarity(queries, gallery[order]), whole[:, order])
    np.testing.assert_array_equal(similarity(queries[2:3], gallery[100:101]), whole[2:3, 100:101])
    np.testing.assert_array_equal(similarity(gallery, queries), whole.T)


@given(row=hnp.arrays(np.float32, 17, elements=st.floats(-100, 100, width=32)), num_rows=st.integers(1, 40))
def test_trap_constant_embeddings_tie_exactly(row: npt.NDArray[np.float32], num_rows: int) -> None:
    for rows in (np.tile(row, (num_rows, 1)), normalize(np.tile(row, (num_rows, 1)))):
        values = similarity(rows, rows)
        assert (values == values[0, 0]).all()


def test_similarity_of_very_short_and_long_rows() -> None:
    rows = np.array([[1e-12, 0], [3e8, 4e8]])
    np.testing.assert_allclose(similarity(rows, rows), rows @ rows.T, rtol=1e-6)
    with pytest.raises(InputError, match="normalize"):
        similarity([[1e30, 0]], [[1.0, 0]])


def test_similarity_refuses_other_widths() -> None:
    with pytest.raises(InputError, match="2 dimensions and gallery embeddings 3"):
        similarity(np.ones((1, 2)), np.ones((1, 3)))


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100, None])
def test_similarity_chunks_cover_all_queries_in_order(chunk_size: int | None) -> None:
    queries, gallery = random_embeddings(5, 7), random_embeddings(6, 4)
    chunks = list(similarity_chunks(queries, gallery, chunk_size=chunk_size))
    assert [row for rows, _ in chunks for row in range(rows.start, rows.stop)] == list(range(7))
    np.testing.assert_array_equal(np.concatenate([block for _, block in chunks]), similarity(queries, gallery))


@given(
    queries=hnp.arrays(np.int64, st.tuples(st.integers(0, 5), st.just(2)), elements=COORDINATES),
    gallery=hnp.arrays(np.int64, st.tuples(st.integers(0, 9), st.just(2)), elements=COORDINATES),
    k=st.integers(1, 12),
    chunk_size=st.sampled_from([1, 2, 1024]),
)
def test_top_k_orders_as_a_sort_with_ties_by_row(
    queries: npt.NDArray[np.int64], gallery: npt.NDArray[np.int64], k: int, chunk_size: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(definition, "MAX_CHUNK_SIZE", chunk_size)
        similarities, rows = top_k(queries, gallery, k)
    assert similarities.shape == rows.shape == (len(queries), min(k, len(gallery)))
    for query, found_values, found_rows in zip(queries, similarities, rows, strict=True):
        products = [sum(int(a) * int(b) for a, b in zip(query, one, strict=True)) for one in gallery]
        expected = sorted(range(len(gallery)), key=lambda row: (-products[row], row))[:k]
        assert found_rows.tolist() == expected
        assert found_values.tolist() == [products[row] for row in expected]


@given(seed=SEEDS)
def test_top_k_of_negative_similarities_and_fractions(seed: int) -> None:
    queries, gallery = random_embeddings(seed, 3, 5), random_embeddings(seed + 1, 20, 5)
    similarities, rows = top_k(queries, gallery, 20)
    whole = similarity(queries, gallery)
    np.testing.assert_array_equal(rows, np.argsort(-whole, axis=1, kind="stable"))
    np.testing.assert_array_equal(similarities, -np.sort(-whole, axis=1))


def test_top_k_refuses_no_neighbors() -> None:
    with pytest.raises(InputError, match="k is 0"):
        top_k([[1.0]], [[1.0]], 0)


def test_order_nearest_puts_minus_infinity_last_and_zeros_together() -> None:
    values = np.array([[-np.inf, -0.0, 0.0, -1.0, 0.0]], dtype=np.float32)
    similarities, columns = order_nearest(values, 5)
    assert columns.tolist() == [[1, 2, 4, 3, 0]]
    assert similarities[0, -1] == -np.inf
