"""A collection against itself: half of the product."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.similarity.hard_collections import HARD_COLLECTIONS, NUM_ROWS, clusters, random
from tests.similarity.test_counting import check_counts, count_slowly, rank_by_label
from vitrieve.errors import InputError
from vitrieve.similarity import (
    FloatArray,
    IntArray,
    RankedQuery,
    count_before,
    nearest,
    order_nearest,
    similarity,
    top_k,
)
from vitrieve.similarity.nearest import Maxima, QuerySet, RowLists
from vitrieve.similarity.product import Float32Product

Collection = Callable[[np.random.Generator], FloatArray]
TILES = [(1024, 2**22), (128, 2**15), (64, 2**16), (256, 2**16)]
"""Rows of a strip and numbers of a tile: as they are, and small ones, so that there are many of them."""


@pytest.fixture(autouse=True)
def _without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is bfloat16, it is faster than half of the product."""
    monkeypatch.setattr(nearest, "has_bfloat16_for", lambda *_, **__: False)


def set_tiles(monkeypatch: pytest.MonkeyPatch, strip_rows: int, tile_numbers: int) -> None:
    monkeypatch.setattr(nearest, "STRIP_ROWS", strip_rows)
    monkeypatch.setattr(nearest, "TILE_NUMBERS", tile_numbers)
    monkeypatch.setattr(nearest, "MAX_QUERIES", 5 * strip_rows)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[IntArray]:
    """Return the queries whose maxima came from half of a product."""
    found: list[IntArray] = []
    take = Maxima.take

    def take_and_note(self: Maxima, chosen: IntArray) -> Maxima:
        found.append(chosen)
        return take(self, chosen)

    monkeypatch.setattr(Maxima, "take", take_and_note)
    return found


@pytest.mark.parametrize("collection", HARD_COLLECTIONS, ids=lambda one: one.__name__)
def test_top_k_of_a_collection_with_itself_equals_the_full_sort(
    collection: Collection, taken: list[IntArray], monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = collection(np.random.default_rng(0))
    nearest_60 = order_nearest(similarity(gallery, gallery), 60)
    for tiles, k in zip(TILES, (1, 10, 60, 2), strict=True):
        set_tiles(monkeypatch, *tiles)
        for found, expected in zip(top_k(gallery, gallery, k), nearest_60, strict=True):
            np.testing.assert_array_equal(found, expected[:, :k])
    np.testing.assert_array_equal(np.concatenate(taken), np.tile(np.arange(NUM_ROWS), len(TILES)))


@pytest.mark.parametrize("collection", HARD_COLLECTIONS, ids=lambda one: one.__name__)
def test_counts_of_a_collection_with_itself_equal_the_comparison_of_everything(
    collection: Collection, taken: list[IntArray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two images are junk for each other; one query has nothing relevant."""
    gallery = collection(np.random.default_rng(0))
    labels = np.random.default_rng(1).integers(0, 400, NUM_ROWS)
    labels[5] = 400
    ranked = rank_by_label(labels, np.arange(NUM_ROWS), hide_junk=False)
    for one, other in ((8, 9), (700, 2000)):
        for query, junk in ((one, other), (other, one)):
            ranked[query] = RankedQuery(np.setdiff1d(ranked[query].relevant, [junk]), np.array([query, junk, query]))
    expected = count_slowly(gallery, gallery, ranked)
    for tiles in TILES:
        set_tiles(monkeypatch, *tiles)
        check_counts(count_before(gallery, gallery, ranked), expected)
    assert sum(len(one) for one in taken) == len(TILES) * len(np.unique(expected.owners))


def test_counts_when_every_image_is_a_query(taken: list[IntArray]) -> None:
    """The queries come in another order than the images: few relevant ones first."""
    gallery = clusters(np.random.default_rng(8))
    class_sizes = np.tile(np.arange(2, 10), 50)  # 2,200 in all
    labels = np.random.default_rng(9).permutation(np.repeat(np.arange(400), class_sizes))
    ranked = rank_by_label(labels, np.arange(NUM_ROWS), hide_junk=False)
    assert min(len(one.relevant) for one in ranked) > 0
    check_counts(count_before(gallery, gallery, ranked), count_slowly(gallery, gallery, ranked))
    (chosen,) = taken
    assert len(chosen) == NUM_ROWS
    assert not np.array_equal(chosen, np.arange(NUM_ROWS))


@pytest.mark.parametrize("tiles", TILES, ids=str)
@pytest.mark.parametrize("group_size", [4, 16, 128])
@pytest.mark.parametrize("num_rows", [64, 700, 1024, NUM_ROWS])
def test_maxima_are_those_of_the_groups(
    num_rows: int, group_size: int, tiles: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_tiles(monkeypatch, *tiles)
    rng = np.random.default_rng(2)
    rows = np.round(random(rng)[:num_rows] * 8)  # whole numbers: every order of summation gives the same
    pairs = rng.integers(0, num_rows, (3 * num_rows, 2))
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    hidden = RowLists.of_lists([pairs[pairs[:, 0] == row, 1] for row in range(num_rows)])
    precise = Float32Product(rows)
    products = rows @ rows.T
    products[pairs[:, 0], pairs[:, 1]] = -np.inf
    for is_symmetric in (True, False):
        found = Maxima(QuerySet(rows, rows, np.ones(num_rows), hidden), precise, precise, group_size)
        found.compute(np.arange(num_rows), is_symmetric=is_symmetric)
        groups = [found._members(group) for group in range(found._num_groups)]
        assert sorted(np.concatenate(groups).tolist()) == list(range(num_rows))
        for maxima, members in zip(found._largest, groups, strict=True):
            np.testing.assert_array_equal(maxima, products[:, members].max(axis=1, initial=-np.inf))


def test_it_is_for_collections_that_are_compared_with_themselves(
    taken: list[IntArray], monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = clusters(np.random.default_rng(3))
    top_k(gallery.copy(), gallery, 3)
    ranked = rank_by_label(np.random.default_rng(4).integers(0, 300, NUM_ROWS), np.arange(NUM_ROWS))
    check_counts(count_before(gallery, gallery, ranked), count_slowly(gallery, gallery, ranked))  # hidden one way
    ranked = rank_by_label(np.random.default_rng(4).integers(0, 300, NUM_ROWS), np.arange(NUM_ROWS), hide_junk=False)
    ranked[NUM_ROWS // 2 :] = [RankedQuery(np.arange(0), np.arange(0))] * (NUM_ROWS - NUM_ROWS // 2)
    count_before(gallery, gallery, ranked)
    monkeypatch.setattr(nearest, "MAXIMA_BYTES", 4 * NUM_ROWS**2 // 2048)  # groups would have to be too large
    top_k(gallery, gallery, 1)
    assert not taken


def test_queries_with_too_many_candidates_are_compared_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred images are the same one: each of them has a hundred candidates, of which ten are too many."""
    monkeypatch.setattr(nearest, "MAX_CANDIDATES", 0)
    gallery = random(np.random.default_rng(5))
    gallery[:2000:20] = gallery[0]
    np.testing.assert_array_equal(top_k(gallery, gallery, 1)[1], order_nearest(similarity(gallery, gallery), 1)[1])


@pytest.mark.parametrize("most_bytes", [4 * NUM_ROWS**2 // 16, 4 * NUM_ROWS**2 // 64])
def test_memory_makes_groups_larger(most_bytes: int, taken: list[IntArray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "MAXIMA_BYTES", most_bytes)
    gallery = random(np.random.default_rng(7))
    np.testing.assert_array_equal(top_k(gallery, gallery, 3)[1], order_nearest(similarity(gallery, gallery), 3)[1])
    assert len(np.concatenate(taken)) == NUM_ROWS


def test_rows_that_are_too_long_are_refused() -> None:
    gallery = random(np.random.default_rng(6))
    gallery[-1] *= np.float32(1e30)
    with pytest.raises(InputError, match="normalize"):
        top_k(gallery, gallery, 3)
