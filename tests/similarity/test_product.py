from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.similarity.hard_collections import HARD_COLLECTIONS, aligned_residuals, random
from vitrieve.errors import InputError
from vitrieve.similarity import FloatArray, similarity
from vitrieve.similarity.bfloat16 import MAX_TRIED_DIMS, BFloat16Product, has_fast_bfloat16
from vitrieve.similarity.product import MAX_DIMS, Float32Product, Product, choose_products

PRODUCTS: list[Any] = [
    Float32Product,
    pytest.param(
        BFloat16Product,
        marks=pytest.mark.skipif(not has_fast_bfloat16(24), reason="this processor does not multiply bfloat16"),
    ),
]
Collection = Callable[[np.random.Generator], FloatArray]


@pytest.mark.parametrize("make_product", PRODUCTS)
@pytest.mark.parametrize("collection", HARD_COLLECTIONS, ids=lambda one: one.__name__)
def test_products_keep_their_bound(collection: Collection, make_product: Callable[[FloatArray], Product]) -> None:
    gallery = collection(np.random.default_rng(0))
    queries = gallery[::5]
    product = make_product(gallery)
    results, bounds = product.multiply(queries)
    results = results[:, : len(gallery)]
    centred = similarity(queries, gallery).astype(np.float64) - bounds.offsets[:, None]
    errors = bounds.errors[:, None]
    least, most = centred - errors, centred + errors
    is_ordered = product.floor(least) >= product.lowest
    assert (results >= product.floor(least))[is_ordered].all()
    assert (results[results >= product.lowest] < product.ceiling(most)[results >= product.lowest]).all()
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
    results, bounds = product.multiply(gallery[:100])
    exact = similarity(gallery[:100], gallery).astype(np.float64) - bounds.offsets[:, None]
    is_ordered = results[:, : len(gallery)] >= product.lowest
    slack = (exact - product.lower(results[:, : len(gallery)])) / bounds.errors[:, None]
    largest = slack[is_ordered].max()
    assert largest > (0.3 if make_product is BFloat16Product else 1e-4)


@pytest.mark.parametrize("make_product", PRODUCTS)
def test_padding_is_hidden(make_product: Callable[[FloatArray], Product]) -> None:
    gallery = random(np.random.default_rng(2))
    product = make_product(gallery)
    for num_queries in (90, 7):  # the second call reuses the memory of the first
        results, _ = product.multiply(gallery[:num_queries])
        assert results.shape[1] % 64 == 0
        assert (results[:, len(gallery) :] == product.hidden).all()
        assert (results[:, : len(gallery)] != product.top).all()


@pytest.mark.parametrize("make_product", PRODUCTS)
def test_products_refuse_rows_that_are_too_long(make_product: Callable[[FloatArray], Product]) -> None:
    gallery = random(np.random.default_rng(3))
    long = gallery.copy()
    long[77] *= np.float32(1e30)
    with pytest.raises(InputError, match="normalise"):
        make_product(long)
    with pytest.raises(InputError, match="normalise"):
        make_product(gallery).multiply(long)


def test_bfloat16_conversions_enclose_every_rounding() -> None:
    product = BFloat16Product(random(np.random.default_rng(4)))
    values = np.concatenate([[1e-30, 1.0, 1.0 + 2**-8, 1.0 + 2**-7], np.random.default_rng(5).uniform(0, 3, 1000)])
    neighbours = product.floor(values), product.floor(values) + 1  # a product is rounded to one of these
    for results in neighbours:
        assert (results >= product.floor(values)).all()
        assert (product.lower(results) <= values).all()
        assert (results < product.ceiling(values)).all()
    assert (product.floor(np.array([0.0, -1.0, -np.inf])) < product.lowest).all()


def test_choose_products_claims_nothing_for_too_many_dimensions() -> None:
    assert not list(choose_products(10, np.zeros((3, MAX_DIMS + 1), dtype=np.float32)))
    assert [type(one) for one in choose_products(10, np.zeros((3, 8), dtype=np.float32))] == [Float32Product]
