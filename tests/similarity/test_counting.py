from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.similarity.hard_collections import HARD_COLLECTIONS, NUM_ROWS, clusters, random
from vitrieve.similarity import Counts, FloatArray, IntArray, RankedQuery, count_before, counting, nearest, similarity
from vitrieve.similarity.product import MIN_BFLOAT16_QUERIES

Collection = Callable[[np.random.Generator], FloatArray]
NUM_QUERIES = (40, MIN_BFLOAT16_QUERIES + 30)


def rank_by_label(labels: IntArray, queries: IntArray, *, hide_junk: bool = True) -> list[RankedQuery]:
    """Relevant is what has the query's label; hidden are the query and some others."""
    ranked = []
    for query in queries:
        hidden = np.array([query, *range(query % 11, len(labels), 500)] if hide_junk else [query])
        relevant = np.setdiff1d(np.flatnonzero(labels == labels[query]), hidden)
        ranked.append(RankedQuery(relevant, hidden))
    return ranked


def count_slowly(queries: FloatArray, gallery: FloatArray, ranked: list[RankedQuery]) -> Counts:
    """Compare every relevant image of every query with the whole gallery."""
    places, numbers = [], []
    for place, (similarities, (relevant, hidden)) in enumerate(zip(similarity(queries, gallery), ranked, strict=True)):
        is_irrelevant = np.ones(len(gallery), dtype=bool)
        is_irrelevant[relevant] = is_irrelevant[hidden] = False
        for value in sorted(similarities[relevant].tolist(), reverse=True):
            places.append(place)
            numbers.append(np.count_nonzero(similarities[is_irrelevant] >= value))
    return Counts(np.array(places, dtype=np.int64), np.array(numbers, dtype=np.int64))


def check_counts(found: Counts, expected: Counts) -> None:
    np.testing.assert_array_equal(found.owners, expected.owners)
    num_relevant = np.bincount(expected.owners)[expected.owners]
    is_first = np.diff(expected.owners, prepend=-1) > 0
    is_exact = is_first | (expected.num_before < num_relevant)
    np.testing.assert_array_equal(found.num_before[is_exact], expected.num_before[is_exact])
    assert (found.num_before >= num_relevant)[~is_exact].all()


@pytest.mark.parametrize("num_queries", NUM_QUERIES)
@pytest.mark.parametrize("num_classes", [400, 40])
@pytest.mark.parametrize("collection", HARD_COLLECTIONS, ids=lambda one: one.__name__)
def test_count_before_equals_the_comparison_of_everything(
    collection: Collection, num_classes: int, num_queries: int, bfloat16: None
) -> None:
    gallery = collection(np.random.default_rng(0))
    labels = np.random.default_rng(1).integers(0, num_classes, NUM_ROWS)
    ranked = rank_by_label(labels, np.arange(num_queries))
    check_counts(
        count_before(gallery[:num_queries], gallery, ranked), count_slowly(gallery[:num_queries], gallery, ranked)
    )


@pytest.mark.parametrize("num_queries", NUM_QUERIES)
def test_count_before_of_classes_that_are_clusters(num_queries: int) -> None:
    """Most relevant images are near, as with trained embeddings; a few stand in a wrong cluster."""
    rng = np.random.default_rng(2)
    gallery = clusters(rng)
    labels = np.argmax(similarity(gallery, gallery[:60]), axis=1)
    labels[rng.integers(0, NUM_ROWS, 100)] = rng.integers(0, 60, 100)
    ranked = rank_by_label(labels, np.arange(num_queries), hide_junk=False)
    check_counts(
        count_before(gallery[:num_queries], gallery, ranked), count_slowly(gallery[:num_queries], gallery, ranked)
    )


@pytest.mark.parametrize("num_classes", [400, 60])
def test_count_before_compares_everything_only_where_many_are_relevant(
    num_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[IntArray] = []
    monkeypatch.setattr(counting, "_count_all", lambda chosen, *_: compared.append(chosen) or [])
    gallery = random(np.random.default_rng(7))
    labels = np.random.default_rng(8).integers(0, num_classes, NUM_ROWS)
    ranked = rank_by_label(labels, np.arange(NUM_QUERIES[1]))
    ranked[3] = RankedQuery(np.arange(NUM_ROWS // 2), np.arange(0))
    count_before(gallery[: NUM_QUERIES[1]], gallery, ranked)
    assert np.concatenate(compared).tolist() == [3]


def test_count_before_of_odd_rankings() -> None:
    """Nothing relevant, everything relevant but one, everything hidden but one; others, so that bfloat16 serves."""
    gallery = random(np.random.default_rng(3))
    everything, nothing = np.arange(NUM_ROWS), np.arange(0)
    ranked = [
        RankedQuery(nothing, nothing),
        RankedQuery(everything[1:], nothing),
        RankedQuery(everything[5:6], np.delete(everything, 5)),
        RankedQuery(everything, nothing),
        RankedQuery(everything[7:8], nothing),
    ]
    ranked += ranked[-1:] * MIN_BFLOAT16_QUERIES
    queries = gallery[: len(ranked)]
    check_counts(count_before(queries, gallery, ranked), count_slowly(queries, gallery, ranked))


def test_count_before_without_queries_or_relevant_images() -> None:
    gallery = random(np.random.default_rng(4))
    for num_queries in (0, 3):
        ranked = [RankedQuery(np.arange(0), np.arange(0))] * num_queries
        assert len(count_before(gallery[:num_queries], gallery, ranked).owners) == 0


@pytest.mark.parametrize("max_queries", [7, 64])
def test_count_before_does_not_depend_on_the_queries_at_a_time(
    max_queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest, "MAX_QUERIES", max_queries)
    gallery = clusters(np.random.default_rng(5))
    labels = np.random.default_rng(6).integers(0, 300, NUM_ROWS)
    ranked = rank_by_label(labels, np.arange(NUM_QUERIES[1]))
    queries = gallery[: NUM_QUERIES[1]]
    expected = count_slowly(queries, gallery, ranked)
    check_counts(count_before(queries, gallery, ranked), expected)
