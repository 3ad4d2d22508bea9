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
    bfloat16,
    count_before,
    nearest,
    order_nearest,
    similarity,
    symmetric,
    top_k,
)
from vitrieve.similarity.candidates import GROUP_SIZES, GROUPS_PER_NEIGHBOUR, PairLists
from vitrieve.similarity.product import Float32Product
from vitrieve.similarity.symmetric import SymmetricProduct, choose_symmetric_size, max_symmetric

Collection = Callable[[np.random.Generator], FloatArray]
TILES = [(1024, 4096), (128, 256), (64, 1024), (256, 256)]
"""Rows of a strip and columns of a tile: as they are, and small ones, so that there are many of them."""


@pytest.fixture(autouse=True)
def _without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is bfloat16, it is faster than half of the product."""
    monkeypatch.setattr(bfloat16, "has_fast_bfloat16", lambda num_dims: False)


def set_tiles(monkeypatch: pytest.MonkeyPatch, strip_rows: int, tile_columns: int) -> None:
    monkeypatch.setattr(symmetric, "STRIP_ROWS", strip_rows)
    monkeypatch.setattr(symmetric, "TILE_COLUMNS", tile_columns)
    monkeypatch.setattr(symmetric, "LOOKED_QUERIES", 5 * strip_rows)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[IntArray]:
    """Return the queries that the way was taken for."""
    found: list[IntArray] = []
    looks = SymmetricProduct.looks

    def look_and_note(self: SymmetricProduct, places: IntArray) -> object:
        found.append(places)
        return looks(self, places)

    monkeypatch.setattr(SymmetricProduct, "looks", look_and_note)
    return found


@pytest.mark.parametrize("collection", HARD_COLLECTIONS, ids=lambda one: one.__name__)
def test_top_k_of_a_collection_with_itself_equals_the_full_sort(
    collection: Collection, looked_at: list[IntArray], monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = collection(np.random.default_rng(0))
    nearest_60 = order_nearest(similarity(gallery, gallery), 60)
    for (strip_rows, tile_columns), k in zip([*TILES, *TILES[:2]], (1, 10, 60, 2, 60, 11), strict=True):
        set_tiles(monkeypatch, strip_rows, tile_columns)
        for found, expected in zip(top_k(gallery, gallery, k), nearest_60, strict=True):
            np.testing.assert_array_equal(found, expected[:, :k])
    assert [len(places) for places in looked_at] == [NUM_ROWS] * 6


@pytest.mark.parametrize("collection", HARD_COLLECTIONS, ids=lambda one: one.__name__)
def test_counts_of_a_collection_with_itself_equal_the_comparison_of_everything(
    collection: Collection, looked_at: list[IntArray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some pairs are hidden in one direction only; one query has nothing relevant, one too much."""
    gallery = collection(np.random.default_rng(0))
    ranked = rank_by_label(np.random.default_rng(1).integers(0, 400, NUM_ROWS), np.arange(NUM_ROWS))
    ranked[5] = RankedQuery(np.arange(0), np.arange(0))
    ranked[7] = RankedQuery(np.arange(NUM_ROWS // 2), np.arange(NUM_ROWS // 2, NUM_ROWS // 2 + 9))
    expected = count_slowly(gallery, gallery, ranked)
    for tiles in TILES:
        set_tiles(monkeypatch, *tiles)
        check_counts(count_before(gallery, gallery, ranked), expected)
    num_looked_at = len(np.unique(expected.places)) - 1
    assert [len(places) for places in looked_at] == [num_looked_at] * len(TILES)


def test_counts_when_every_image_is_a_query(looked_at: list[IntArray]) -> None:
    """The queries come in another order than the images: few relevant ones first."""
    gallery = clusters(np.random.default_rng(8))
    class_sizes = np.tile(np.arange(2, 10), 50)  # 2,200 in all
    labels = np.random.default_rng(9).permutation(np.repeat(np.arange(400), class_sizes))
    ranked = rank_by_label(labels, np.arange(NUM_ROWS), hide_junk=False)
    assert min(len(one.relevant) for one in ranked) > 0
    check_counts(count_before(gallery, gallery, ranked), count_slowly(gallery, gallery, ranked))
    (places,) = looked_at
    assert len(places) == NUM_ROWS
    assert not np.array_equal(places, np.arange(NUM_ROWS))


@pytest.mark.parametrize("tiles", TILES, ids=str)
@pytest.mark.parametrize("group_size", [4, 16, 128])
@pytest.mark.parametrize("num_rows", [64, 700, 1024, NUM_ROWS])
def test_maxima_are_those_of_the_groups(
    num_rows: int, group_size: int, tiles: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_tiles(monkeypatch, *tiles)
    rng = np.random.default_rng(2)
    rows = np.round(random(rng)[:num_rows] * 8)  # whole numbers: every order of summation gives the same
    hidden = PairLists.of_pairs(*rng.integers(0, num_rows, (2, 3 * num_rows)), num_rows)
    found = SymmetricProduct(rows, Float32Product(rows), group_size, hidden)
    products = rows @ rows.T
    owners, hidden_rows = hidden.take(np.arange(num_rows))
    products[owners, hidden_rows] = -np.inf
    groups = [found._members(group) for group in range(len(found._maxima))]
    assert sorted(np.concatenate(groups).tolist()) == list(range(num_rows))
    for maxima, members in zip(found._maxima, groups, strict=True):
        np.testing.assert_array_equal(maxima, products[:, members].max(axis=1, initial=-np.inf))


def test_it_is_for_collections_that_are_compared_with_themselves(looked_at: list[IntArray]) -> None:
    gallery = clusters(np.random.default_rng(3))
    top_k(gallery.copy(), gallery, 3)
    top_k(gallery, gallery, 3, chunk_size=500)
    top_k(gallery, gallery, max_symmetric(NUM_ROWS) + 1)
    ranked = rank_by_label(np.random.default_rng(4).integers(0, 300, NUM_ROWS), np.arange(NUM_ROWS))
    ranked[NUM_ROWS // 2 :] = [RankedQuery(np.arange(0), np.arange(0))] * (NUM_ROWS - NUM_ROWS // 2)
    count_before(gallery, gallery, ranked)
    assert not looked_at


def test_queries_with_too_many_candidates_are_compared_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred images are the same one: each of them has a hundred candidates, of which ten are too many."""
    monkeypatch.setattr(nearest, "MAX_CANDIDATES", 0)
    gallery = random(np.random.default_rng(5))
    gallery[:2000:20] = gallery[0]
    np.testing.assert_array_equal(top_k(gallery, gallery, 1)[1], order_nearest(similarity(gallery, gallery), 1)[1])


@pytest.mark.parametrize("num_rows", [2_048, 10_083, 60_502, 200_000, 262_144])
def test_groups_are_many_enough_and_their_maxima_fit(num_rows: int) -> None:
    most = max_symmetric(num_rows)
    assert most >= 11
    for num_wanted in (1, 11, most):
        size = choose_symmetric_size(num_wanted, num_rows)
        assert num_rows >= GROUPS_PER_NEIGHBOUR * num_wanted * size
        assert num_rows**2 * 4 / size <= symmetric.MAXIMA_BYTES
        assert GROUP_SIZES[-1] <= size <= symmetric.MAX_GROUP_SIZE


def test_a_collection_that_is_too_large_has_no_maxima() -> None:
    assert max_symmetric(262_145) == 0


def test_rows_that_are_too_long_are_refused() -> None:
    gallery = random(np.random.default_rng(6))
    gallery[-1] *= np.float32(1e30)
    with pytest.raises(InputError, match="normalise"):
        top_k(gallery, gallery, 3)
