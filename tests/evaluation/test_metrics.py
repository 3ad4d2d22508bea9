from __future__ import annotations

import dataclasses
import tracemalloc
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrieve.errors import InputError
from vitrieve.evaluation.metrics import Exclusions, QueryScores, map_at_r, r_precision, recall_at_k, score_queries
from vitrieve.similarity import definition, normalize, similarity
from vitrieve.similarity.nearest import MAXIMA_BYTES

KS = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Queries, gallery and what rankings leave out, with integer coordinates: plenty of ties and duplicates."""

    queries: npt.NDArray[np.int64]
    query_labels: list[int]
    gallery: npt.NDArray[np.int64]
    gallery_labels: list[int]
    own_rows: list[int]
    query_junk: list[int]
    gallery_junk: list[int]

    def score(self) -> QueryScores:
        exclusions = Exclusions(query_rows=self.own_rows, query_junk=self.query_junk, gallery_junk=self.gallery_junk)
        return score_queries(self.queries, self.query_labels, self.gallery, self.gallery_labels, exclusions=exclusions)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    num_queries, num_gallery = draw(st.integers(1, 6)), draw(st.integers(1, 12))

    def rows(count: int) -> Any:
        row = st.lists(st.integers(-2, 2), min_size=2, max_size=2)
        return np.array(draw(st.lists(row, min_size=count, max_size=count)))

    def numbers(count: int, low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    return Case(
        queries=rows(num_queries),
        query_labels=numbers(num_queries, 0, 2),
        gallery=rows(num_gallery),
        gallery_labels=numbers(num_gallery, 0, 2),
        own_rows=numbers(num_queries, -1, num_gallery - 1),
        query_junk=numbers(num_queries, -1, 2),
        gallery_junk=numbers(num_gallery, -1, 2),
    )


def rank_slowly(case: Case, query: int) -> list[bool]:
    """Sort the whole gallery of one query; True is relevant. Equally similar: the irrelevant ones first."""
    places = []
    for row, (x, y) in enumerate(case.gallery.tolist()):
        is_junk = case.query_junk[query] >= 0 and case.query_junk[query] == case.gallery_junk[row]
        if row == case.own_rows[query] or is_junk:
            continue
        product = int(case.queries[query][0]) * x + int(case.queries[query][1]) * y
        places.append((-product, case.gallery_labels[row] == case.query_labels[query]))
    return [is_relevant for _, is_relevant in sorted(places)]


def score_slowly(case: Case) -> list[dict[str, float]]:
    """Compute the metrics of every query with something relevant, by their definitions."""
    results = []
    for query in range(len(case.queries)):
        ranking = rank_slowly(case, query)
        num_relevant = sum(ranking)
        if num_relevant == 0:
            continue
        first = ranking[:num_relevant]
        precisions = [sum(first[: k + 1]) / (k + 1) for k in range(num_relevant)]
        results.append(
            {
                **{f"recall_at_{k}": float(any(ranking[:k])) for k in KS},
                "r_precision": sum(first) / num_relevant,
                "map_at_r": sum(p for p, right in zip(precisions, first, strict=True) if right) / num_relevant,
            }
        )
    return results


@given(case=cases(), chunk_size=st.sampled_from([1, 2, 5, 1024]))
def test_score_queries_equals_the_full_matrix_reference(case: Case, chunk_size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(definition, "MAX_CHUNK_SIZE", chunk_size)
        scores = case.score()
    expected = score_slowly(case)
    assert scores.num_scored == len(expected)
    assert scores.num_skipped == len(case.queries) - len(expected)
    for name, values in scores.values(KS).items():
        np.testing.assert_allclose(values, [one[name] for one in expected], rtol=1e-12)


@given(case=cases(), seed=st.integers(0, 1000))
def test_score_queries_does_not_depend_on_the_order_of_the_gallery(case: Case, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(case.gallery))
    places = np.argsort(order)
    shuffled = dataclasses.replace(
        case,
        gallery=case.gallery[order],
        gallery_labels=[case.gallery_labels[row] for row in order],
        gallery_junk=[case.gallery_junk[row] for row in order],
        own_rows=[-1 if row == -1 else int(places[row]) for row in case.own_rows],
    )
    for name, values in case.score().values().items():
        np.testing.assert_array_equal(shuffled.score().values()[name], values)


@given(case=cases())
def test_score_queries_without_a_gallery_is_the_gallery_of_the_queries(case: Case) -> None:
    alone = score_queries(case.queries, case.query_labels, exclusions=Exclusions(query_junk=case.query_junk))
    rows = np.arange(len(case.queries))
    exclusions = Exclusions(query_rows=rows, query_junk=case.query_junk, gallery_junk=case.query_junk)
    both = score_queries(case.queries, case.query_labels, case.queries, case.query_labels, exclusions=exclusions)
    for field in dataclasses.fields(QueryScores):
        np.testing.assert_array_equal(getattr(alone, field.name), getattr(both, field.name))


def place(*degrees: float) -> npt.NDArray[np.float64]:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_metrics_of_a_ranking_worked_by_hand() -> None:
    # The query at 0 degrees sees, from near to far: wrong, right, right, wrong, right. R = 3.
    gallery, labels = place(10, 20, 30, 40, 50), [0, 7, 7, 0, 7]
    arguments = (place(0), [7], gallery, labels)
    assert recall_at_k(*arguments, ks=(1, 2, 5)) == {1: 0.0, 2: 1.0, 5: 1.0}
    assert r_precision(*arguments) == pytest.approx(2 / 3)
    assert map_at_r(*arguments) == pytest.approx((1 / 2 + 2 / 3) / 3)


def test_metrics_among_the_queries_worked_by_hand() -> None:
    # Two pairs on a circle; in each, the partner is the second neighbor: 0 (10) 25, and 10 (0) 40.
    embeddings, labels = place(0, 25, 10, 40), [1, 1, 2, 2]
    assert recall_at_k(embeddings, labels, ks=(1, 2, 3)) == {1: 0.0, 2: 0.5, 3: 1.0}
    assert map_at_r(embeddings, labels) == r_precision(embeddings, labels) == 0.0


def test_metrics_agree_with_pytorch_metric_learning() -> None:
    torch = pytest.importorskip("torch")
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    inference = pytest.importorskip("pytorch_metric_learning.utils.inference")
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 12, 150)
    centers = generator.standard_normal((12, 16))
    embeddings = normalize(centers[labels] + 0.9 * generator.standard_normal((150, 16)))
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    theirs = calculator.AccuracyCalculator(
        include=names, device=torch.device("cpu"), knn_func=inference.CustomKNN(distances.CosineSimilarity())
    )
    for queries, query_labels, gallery, gallery_labels in (
        (embeddings, labels, None, None),
        (embeddings[:40], labels[:40], embeddings[40:], labels[40:]),
    ):
        ours = score_queries(queries, query_labels, gallery, gallery_labels).means((1,))
        reference = None if gallery is None else (torch.tensor(gallery), torch.tensor(gallery_labels))
        found = theirs.get_accuracy(torch.tensor(queries), torch.tensor(query_labels), *(reference or ()))
        assert [ours["recall_at_1"], ours["r_precision"], ours["map_at_r"]] == pytest.approx([found[n] for n in names])


def test_score_queries_of_no_query_and_of_one() -> None:
    assert score_queries(np.empty((0, 3)), []).num_scored == 0
    assert score_queries([[1.0, 0.0]], [5]).num_skipped == 1


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (([[1.0]], [0, 1]), "2 labels"),
        (([[1.0]], [0.5]), "integers"),
        (([[1.0]], ["a"]), "integers"),
        (([[float("nan")], [1.0]], [0, 0]), "NaN"),
        (([[1.0]], [0], [[1.0, 2.0]], [0]), "dimensions"),
        (([[1.0]], [0], [[1.0]], None), "both or neither"),
        (([[1.0]], [0], [[1.0]], [1]), "nothing to average"),
    ],
)
def test_metrics_refuse_what_does_not_fit(arguments: tuple[Any, ...], part: str) -> None:
    with pytest.raises(InputError, match=part):
        map_at_r(*arguments)


def test_recall_at_k_takes_cut_offs_that_can_be_read_once() -> None:
    assert recall_at_k([[1.0], [1.0]], [0, 0], ks=iter((1, 2))) == {1: 1.0, 2: 1.0}


def test_recall_at_k_refuses_a_cut_off_of_zero() -> None:
    with pytest.raises(InputError, match="cut-off K is 0"):
        recall_at_k([[1.0], [1.0]], [0, 0], ks=(0, 1))


def test_query_scores_validates_once() -> None:
    one = np.ones(1, dtype=np.int64)
    good = QueryScores(labels=one, num_relevant=one, first_rank=one, r_precision=np.ones(1), map_at_r=np.ones(1))
    for changes in (
        {"first_rank": np.zeros(1, dtype=np.int64)},
        {"map_at_r": np.full(1, 1.5)},
        {"r_precision": np.full(1, np.nan)},
        {"labels": np.ones(2, dtype=np.int64)},
    ):
        with pytest.raises(ValueError, match=r"vectors|first rank|\[0, 1\]"):
            dataclasses.replace(good, **changes)


def test_trap_self_is_left_out_by_row() -> None:
    # Row 0 has an exact duplicate of its class before it in no order that a sort must keep, and one of another class.
    embeddings = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    assert recall_at_k(embeddings, [1, 1, 2, 2], ks=(1,)) == {1: 1.0}  # duplicates are found, not dropped as self
    scores = score_queries(embeddings, [1, 2, 2, 2])
    assert scores.num_relevant.tolist() == [0, 2, 2, 2]  # the duplicate of another class is not taken for self either
    assert scores.first_rank.tolist() == [0, 2, 1, 1]


def test_trap_self_among_equal_similarities_is_not_dropped_by_column() -> None:
    # Every similarity is 1: dropping the first column would drop another image and count the query itself.
    scores = score_queries(np.ones((3, 1)), [1, 1, 2])
    assert scores.num_relevant.tolist() == [1, 1, 0]
    assert scores.first_rank.tolist() == [2, 2, 0]


def test_trap_constant_embedding_scores_at_or_below_chance() -> None:
    labels = np.repeat(np.arange(20), 5)
    row = normalize(np.random.default_rng(0).standard_normal((1, 384)))
    means = score_queries(np.tile(row, (100, 1)), labels).means(KS)
    assert set(means.values()) == {0.0}


def test_trap_ties_count_against_the_query() -> None:
    gallery, labels = [[1.0, 0.0], [1.0, 0.0], [0.5, 0.0]], [7, 0, 7]
    assert recall_at_k([[1.0, 0.0]], [7], gallery, labels, ks=(1, 2)) == {1: 0.0, 2: 1.0}
    assert map_at_r([[1.0, 0.0]], [7], gallery, labels) == pytest.approx(1 / 2 * 1 / 2)


def test_trap_gallery_smaller_than_k() -> None:
    assert recall_at_k([[1.0]], [7], [[1.0], [0.5]], [0, 7], ks=(1, 2, 1000)) == {1: 0.0, 2: 1.0, 1000: 1.0}


def test_trap_queries_without_positives_are_excluded_and_counted() -> None:
    embeddings, labels = [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]], [3, 3, 4]
    scores = score_queries(embeddings, labels)
    assert (scores.num_scored, scores.num_skipped) == (2, 1)
    assert recall_at_k(embeddings, labels, ks=(1,)) == {1: 1.0}


@pytest.mark.parametrize("base", [2**24, 2**53, 2**63 - 4, -(2**63)])
def test_trap_large_labels_are_not_cast_to_float(base: int) -> None:
    labels = [base, base + 1, base, base + 1]
    assert map_at_r([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.0, 0.9]], labels) < 1
    assert score_queries(np.eye(4), labels).num_relevant.tolist() == [1, 1, 1, 1]
    with pytest.raises(InputError, match="int64"):
        score_queries([[1.0]], np.array([2**63], dtype=np.uint64))


def test_trap_recall_counts_relevant_images_of_negative_similarity() -> None:
    gallery, labels = [[-0.1], [-0.9]], [7, 0]
    assert recall_at_k([[1.0]], [7], gallery, labels, ks=(1,)) == {1: 1.0}
    assert map_at_r([[1.0]], [7], gallery, labels) == 1.0


def test_trap_junk_is_not_ranked() -> None:
    # The nearest is junk and wrong, the next junk and right: the ranking starts at the third.
    gallery, labels = place(1, 2, 3, 4), [0, 7, 7, 0]
    junk = Exclusions(query_junk=[5], gallery_junk=[5, 5, -1, 6])
    scores = score_queries(place(0), [7], gallery, labels, exclusions=junk)
    assert (scores.num_relevant.tolist(), scores.first_rank.tolist()) == ([1], [1])


def test_trap_the_whole_matrix_is_never_in_memory() -> None:
    generator = np.random.default_rng(0)
    gallery = generator.standard_normal((60_502, 4), dtype=np.float32)
    labels = generator.integers(0, 11_316, 60_502)
    num_queries = 4000
    tracemalloc.start()
    score_queries(gallery[:num_queries], labels[:num_queries], gallery, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_queries * 60_502 * 4 > 960e6
    assert peak < MAXIMA_BYTES + 100e6  # maxima of groups, a tile of products, and what is found in it


@pytest.mark.parametrize("num_queries", [30, 600])  # by a float32 product, and by a bfloat16 one where there is one
def test_score_queries_of_a_large_gallery_equals_the_full_sort(num_queries: int) -> None:
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    gallery = normalize(rng.integers(-1, 2, (2500, 6)))  # 729 points: plenty of exact ties
    labels = rng.integers(0, 300, 2500)
    scores = score_queries(
        gallery[:num_queries],
        labels[:num_queries],
        gallery,
        labels,
        exclusions=Exclusions(query_rows=np.arange(num_queries)),
    )
    values = similarity(gallery[:num_queries], gallery)
    for query in range(num_queries):
        others = np.delete(np.arange(2500), query)
        is_relevant = labels[others] == labels[query]
        ranking = is_relevant[np.lexsort((is_relevant, -values[query, others]))]  # ties: the irrelevant ones first
        num_relevant = np.count_nonzero(is_relevant)
        first = ranking[:num_relevant]
        precisions = np.cumsum(first) / np.arange(1, num_relevant + 1)
        assert scores.num_relevant[query] == num_relevant
        assert scores.first_rank[query] == (1 + np.argmax(ranking) if num_relevant else 0)
        if num_relevant:
            assert scores.r_precision[query] == pytest.approx(first.mean())
            assert scores.map_at_r[query] == pytest.approx((precisions * first).sum() / num_relevant)
