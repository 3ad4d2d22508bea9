from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from tests.similarity.hard_collections import HARD_COLLECTIONS, clusters, random
from vitrieve import progress
from vitrieve.similarity import FloatArray, multiply, nearest, order_nearest, pairs_above, similarity, top_k
from vitrieve.similarity.definition import SERIAL_TERMS
from vitrieve.similarity.product import MIN_BFLOAT16_QUERIES, has_bfloat16_for

Collection = Callable[[np.random.Generator], FloatArray]
NUM_QUERIES = (40, MIN_BFLOAT16_QUERIES + 30)
"""By float32 alone, and by bfloat16 first."""


def test_both_products_are_tried_here(bfloat16: None) -> None:
    gallery = random(np.random.default_rng(0))
    assert [has_bfloat16_for(number, gallery) for number in NUM_QUERIES] == [False, True]


@pytest.mark.parametrize("num_queries", NUM_QUERIES)
@pytest.mark.parametrize("collection", HARD_COLLECTIONS, ids=lambda one: one.__name__)
def test_top_k_equals_the_full_sort(collection: Collection, num_queries: int, bfloat16: None) -> None:
    gallery = collection(np.random.default_rng(0))
    queries = gallery[-num_queries:]
    whole = similarity(queries, gallery)
    for k in (1, 10, 100):
        similarities, rows = top_k(queries, gallery, k)
        expected_similarities, expected_rows = order_nearest(whole, k)
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_array_equal(similarities, expected_similarities)


@pytest.mark.parametrize("num_queries", NUM_QUERIES)
def test_top_k_of_queries_that_are_not_in_the_gallery(num_queries: int, bfloat16: None) -> None:
    rng = np.random.default_rng(1)
    gallery, queries = clusters(rng), random(rng)[:num_queries]
    _, rows = top_k(queries, gallery, 7)
    np.testing.assert_array_equal(rows, order_nearest(similarity(queries, gallery), 7)[1])


@pytest.mark.parametrize("max_queries", [5, 100])
def test_top_k_of_a_large_gallery_does_not_depend_on_the_queries_at_a_time(
    max_queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = clusters(np.random.default_rng(2))
    for number in (11, MIN_BFLOAT16_QUERIES):
        expected = top_k(gallery[:number], gallery, 5)
        with monkeypatch.context() as patch:
            patch.setattr(nearest, "MAX_QUERIES", max_queries)
            found = top_k(gallery[:number], gallery, 5)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize("collection", [clusters, random, lambda rng: random(rng)[:50]], ids=["near", "far", "few"])
def test_top_k_and_pairs_show_how_far_they_are(
    collection: Collection, is_symmetric: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The products, and the comparison of what they leave, move on block by block, up to the number of queries."""
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(nearest, "MAX_QUERIES", 1000)
    gallery = collection(np.random.default_rng(5))
    queries = gallery if is_symmetric else gallery.copy()
    expected = top_k(queries, gallery, 3)
    assert capsys.readouterr().err == ""
    for found, given in zip(top_k(queries, gallery, 3, shown_as="nearest"), expected, strict=True):
        np.testing.assert_array_equal(found, given)
    pairs_above(gallery, 0.999, shown_as="pairs")
    lines = capsys.readouterr().err.splitlines()
    for name in ("nearest", "pairs"):
        done = [int(re.findall(r"\d+", line)[0]) for line in lines if line.startswith(f"{name}: ")]
        assert done == sorted(done)
        assert done[-1] == len(gallery)
        assert len(gallery) == 50 or max(np.diff([0, *done])) < len(gallery), done


def test_top_k_of_no_queries_in_a_large_gallery() -> None:
    similarities, rows = top_k(np.empty((0, 24)), random(np.random.default_rng(3)), 5)
    assert similarities.shape == rows.shape == (0, 5)


def test_top_k_loads_no_torch_and_finds_the_same_without_it(without_torch: str) -> None:
    script = (
        "import sys, numpy as np\n"
        "from vitrieve.similarity import top_k\n"
        "gallery = np.random.default_rng(4).standard_normal((2500, 24))\n"
        "print(top_k(gallery, gallery, 3)[1].tobytes().hex())\n"
        "assert 'torch' not in sys.modules\n"
    )
    outputs = {
        subprocess.run([sys.executable, "-c", start + script], capture_output=True, text=True, check=True).stdout
        for start in ("", without_torch)
    }
    gallery = np.random.default_rng(4).standard_normal((2500, 24))
    assert outputs == {top_k(gallery, gallery, 3)[1].tobytes().hex() + "\n"}


@pytest.mark.parametrize("collection", HARD_COLLECTIONS, ids=lambda one: one.__name__)
def test_one_query_alone_finds_what_it_finds_among_others(collection: Collection) -> None:
    gallery = collection(np.random.default_rng(0))
    whole = similarity(gallery[-5:], gallery)
    for query, row in zip(gallery[-5:], whole, strict=True):
        np.testing.assert_array_equal(similarity(query[None], gallery)[0], row)
        for k in (10, 100):
            for found, expected in zip(top_k(query[None], gallery, k), order_nearest(row[None], k), strict=True):
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("num_queries", [0, 1, 3])
@pytest.mark.parametrize(
    ("num_rows", "num_dims"), [(0, 5), (1, 384), (23, 384), (24, 384), (5_000, 384), (7, SERIAL_TERMS + 1)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_multiply_is_the_product_whatever_pieces_it_is_computed_in(
    num_queries: int, num_rows: int, num_dims: int, dtype: type
) -> None:
    """Of integers every sum is exact, so that the order of summation has no say."""
    generator = np.random.default_rng(0)
    queries, gallery = (generator.integers(-9, 10, (num, num_dims)).astype(dtype) for num in (num_queries, num_rows))
    products = multiply(queries, gallery)
    assert products.dtype == dtype
    np.testing.assert_array_equal(products, np.einsum("qe,ge->qg", queries, gallery))


@pytest.mark.parametrize("num_rows", [500, 4_900])
def test_one_query_is_multiplied_in_pieces_too_small_for_threads(
    num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With threads a query waits for a core that another process has (6 ms for 0.1 ms of work)."""
    sizes: list[int] = []

    class Counted(np.ndarray):
        def __matmul__(self, other: np.ndarray) -> np.ndarray:
            sizes.append(self.shape[-2] * self.shape[-1])
            return np.asarray(self) @ np.asarray(other)

    gallery = np.random.default_rng(0).standard_normal((num_rows, 384)).astype(np.float32)
    products = multiply(gallery[:1].view(Counted), gallery.view(Counted))
    np.testing.assert_allclose(products, gallery[:1] @ gallery.T, rtol=1e-4, atol=1e-3)
    assert sizes
    assert max(sizes) <= SERIAL_TERMS
