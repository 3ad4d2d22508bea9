from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.similarity.hard_collections import HARD_COLLECTIONS, aligned_residuals, random
from vitrieve.errors import InputError
from vitrieve.similarity import FloatArray, similarity, top_k
from vitrieve.similarity.nearest import MIN_GALLERY
from vitrieve.similarity.product import (
    MAX_DIMS,
    MAX_TRIED_DIMS,
    BFloat16Product,
    Bounds,
    Float32Product,
    Product,
    Results,
    has_bfloat16_for,
    has_fast_bfloat16,
)

PRODUCTS: list[Any] = [Float32Product, BFloat16Product]
Collection = Callable[[np.random.Generator], FloatArray]


def multiply(product: Product, queries: FloatArray, num_gallery: int) -> tuple[Results, Bounds]:
    prepared, bounds = product.prepare(queries)
    results = np.empty((len(queries), num_gallery), dtype=product.hidden.dtype)
    product.multiply(prepared, slice(0, num_gallery), results)
    return results, bounds


@pytest.mark.parametrize("make_product", PRODUCTS)
@pytest.mark.parametrize("collection", HARD_COLLECTIONS, ids=lambda one: one.__name__)
def test_products_keep_their_bound(collection: Collection, make_product: Callable[[FloatArray], Product]) -> None:
    gallery = collection(np.random.default_rng(0))
    queries = gallery[::5]
    product = make_product(gallery)
    results, bounds = multiply(product, queries, len(gallery))
    centered = similarity(queries, gallery).astype(np.float64) - bounds.offsets[:, None]
    errors = bounds.errors[:, None]
    least, most = centered - errors, centered + errors
    is_ordered = product.floor(least) >= product.lowest
    assert (results >= product.floor(least))[is_ordered].all()
    assert (product.lower(results) <= most).all()


@pytest.mark.parametrize("num_dims", [24, 384, 768, MAX_TRIED_DIMS])
@pytest.mark.parametrize("num_blocks", [2, 3, 6, 24])
def test_sums_that_are_rounded_between_blocks_are_noticed(
    num_blocks: int, num_dims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})

    def multiply_at_once(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor) -> None:
        out.copy_(left.float() @ right.float())

    monkeypatch.setattr(torch, "mm", multiply_at_once)
    assert has_fast_bfloat16.__wrapped__(num_dims)
    assert not has_fast_bfloat16.__wrapped__(MAX_TRIED_DIMS + 1)

    def multiply_in_blocks(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor) -> None:
        size = num_dims // num_blocks
        out.zero_()
        for start in range(0, num_dims, size):
            out += left[:, start : start + size].float() @ right[start : start + size].float()  # rounded to bfloat16

    monkeypatch.setattr(torch, "mm", multiply_in_blocks)
    assert not has_fast_bfloat16.__wrapped__(num_dims)


@pytest.mark.parametrize("make_product", PRODUCTS)
def test_bounds_are_needed_and_not_far_from_what_happens(make_product: Callable[[FloatArray], Product]) -> None:
    gallery = aligned_residuals(np.random.default_rng(1))
    product = make_product(gallery)
    results, bounds = multiply(product, gallery[:100], len(gallery))
    exact = similarity(gallery[:100], gallery).astype(np.float64) - bounds.offsets[:, None]
    is_ordered = results >= product.lowest
    slack = (exact - product.lower(results)) / bounds.errors[:, None]
    largest = slack[is_ordered].max()
    assert largest > (0.3 if make_product is BFloat16Product else 1e-4)


@pytest.mark.parametrize("make_product", PRODUCTS)
def test_results_of_some_columns_are_those_of_all(make_product: Callable[[FloatArray], Product]) -> None:
    gallery = random(np.random.default_rng(2))
    product = make_product(gallery)
    whole, _ = multiply(product, gallery[:90], len(gallery))
    padded = np.full((90, 1000), product.hidden)
    prepared, _ = product.prepare(gallery[:90])
    product.multiply(prepared, slice(300, 1200), padded[:, 10:910])
    assert (padded[:, :10] == product.hidden).all()
    assert (padded[:, 910:] == product.hidden).all()
    np.testing.assert_allclose(product.lower(padded[:, 10:910]), product.lower(whole[:, 300:1200]), atol=0.01)


@pytest.mark.parametrize("make_product", PRODUCTS)
def test_products_refuse_rows_that_are_too_long(make_product: Callable[[FloatArray], Product]) -> None:
    gallery = random(np.random.default_rng(3))
    long = gallery.copy()
    long[77] *= np.float32(1e30)
    with pytest.raises(InputError, match="normalize"):
        make_product(long)
    with pytest.raises(InputError, match="normalize"):
        make_product(gallery).prepare(long)


def test_bfloat16_conversions_enclose_every_rounding() -> None:
    product = BFloat16Product(random(np.random.default_rng(4)))
    values = np.concatenate([[1e-30, 1.0, 1.0 + 2**-8, 1.0 + 2**-7], np.random.default_rng(5).uniform(0, 3, 1000)])
    neighbors = product.floor(values), product.floor(values) + 1  # a product is rounded to one of these
    for results in neighbors:
        assert (results >= product.floor(values)).all()
        assert (product.lower(results) <= values).all()
    assert (product.floor(np.array([0.0, -1.0, -np.inf])) < product.lowest).all()


def test_bfloat16_is_not_for_few_queries_or_many_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert not has_bfloat16_for(10, np.zeros((3, 8), dtype=np.float32))
    assert not has_bfloat16_for(10_000, np.zeros((3, MAX_TRIED_DIMS + 1), dtype=np.float32))


def test_top_k_of_more_dimensions_than_the_bound_is_claimed_for_compares_everything() -> None:
    gallery = np.zeros((MIN_GALLERY, MAX_DIMS + 1), dtype=np.float32)
    gallery[5, 3] = gallery[77, 4] = 1
    assert top_k(gallery[[5, 77]], gallery, 1)[1].tolist() == [[5], [77]]
