from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from vitrieve.comparison.methods import FROZEN
from vitrieve.comparison.statistics import (
    Contest,
    PairedQueries,
    compare_pairs,
    compare_ranks,
    critical_difference,
    describe_seeds,
    effective_rank,
    find_cliques,
    friedman_statistic,
    mean_cosine,
    rank_methods,
    seeds_p_value,
    summarize,
)
from vitrieve.errors import ArtifactError
from vitrieve.evaluation.analysis import difference_interval
from vitrieve.evaluation.metrics import score_queries

from .conftest import GROUPS, make_contest, make_outcome

AUC = np.array(
    [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.9751, 0.975],  # printed as 0.975 twice, and ranked 2 and 3
        [0.957, 0.978, 0.946, 0.970],
    ]
)
"""Table 6 of Demšar 2006: C4.5, with pruning by m, by the confidence, by both; AUC on 14 data sets."""
PUBLISHED_Q = {
    0.05: (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164),
    0.10: (1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920),
}
"""Table 5a of Demšar 2006, for 2 to 10 methods."""


def test_ranks_and_critical_difference_are_those_of_demsar() -> None:
    ranking = compare_ranks(AUC)
    assert ranking is not None
    assert ranking.average_ranks == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    # The paper does not correct for ties: three pairs and one group of four take 3 · 6 + 60 of 14 · (4³ − 4).
    assert ranking.chi_square * (1 - 78 / 840) == pytest.approx(9.28, abs=5e-3)
    assert ranking.critical_difference == pytest.approx(1.25, abs=5e-3)
    assert critical_difference(4, 14, 0.1) == pytest.approx(1.12, abs=5e-3)
    order = np.argsort(ranking.average_ranks)
    cliques = find_cliques(ranking.average_ranks[order].tolist(), critical_difference(4, 14, 0.1))
    assert cliques == [(0, 2), (2, 3)]  # figure 1b, at 10 %: C4.5 differs from the two best


@pytest.mark.parametrize("significance", [0.05, 0.1])
def test_critical_difference_has_the_published_quantiles(significance: float) -> None:
    found = [critical_difference(k, 10, significance) / math.sqrt(k * (k + 1) / 60) for k in range(2, 11)]
    assert found == pytest.approx(PUBLISHED_Q[significance], abs=1.5e-3)


def test_rank_methods_equals_counting() -> None:
    values = np.random.default_rng(0).integers(0, 4, (20, 5)).astype(float)
    values[3, 1] = values[3, 4] = -np.inf
    expected = [
        [1 + sum(other > one for other in row) + (sum(other == one for other in row) - 1) / 2 for one in row]
        for row in values
    ]
    assert rank_methods(values).tolist() == expected


@pytest.mark.parametrize("num_values", [1000, 3])
def test_friedman_statistic_is_scipys(num_values: int) -> None:
    values = np.random.default_rng(1).integers(0, num_values, (12, 4)).astype(float)
    expected = stats.friedmanchisquare(*values.T)
    ranking = compare_ranks(values)
    assert ranking is not None
    assert ranking.chi_square == pytest.approx(expected.statistic)


def test_friedman_p_value_is_that_of_all_orders() -> None:
    values = np.array([[3.0, 2.0, 1.0], [3.0, 1.0, 2.0], [3.0, 2.0, 1.0]])
    observed = friedman_statistic(rank_methods(values)[None])[0]
    orders = list(itertools.permutations([1.0, 2.0, 3.0]))
    every = np.array(list(itertools.product(orders, repeat=3)))
    exact = np.mean(friedman_statistic(every) >= observed - 1e-9)
    ranking = compare_ranks(values)
    assert ranking is not None
    assert ranking.p_value == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000))


def test_friedman_p_value_is_near_chi_square_for_many_data_sets() -> None:
    values = np.random.default_rng(2).normal(size=(40, 4)) + np.array([0, 0, 0.2, 0.45])
    ranking = compare_ranks(values)
    assert ranking is not None
    assert ranking.p_value == pytest.approx(stats.friedmanchisquare(*values.T).pvalue, abs=0.01)


def test_compare_ranks_of_ties_of_two_and_of_one() -> None:
    tied = compare_ranks(np.ones((3, 4)))
    assert tied is not None
    assert (tied.chi_square, tied.p_value) == (0.0, 1.0)
    two = compare_ranks([[1.0, 0.0]] * 6)  # as the sign test: both orders of six
    assert two is not None
    assert two.p_value == pytest.approx(2 / 2**6, abs=0.005)
    assert compare_ranks([[1.0, 2.0, 3.0]]) is None
    assert compare_ranks([[1.0], [2.0]]) is None


@pytest.mark.parametrize("difference", [0.0, 0.3, 1.0, 9.0])
def test_find_cliques_are_the_largest_groups(difference: float) -> None:
    ranks = sorted(np.random.default_rng(3).uniform(1, 5, 9).tolist())
    close = [
        (first, last) for first, last in itertools.combinations(range(9), 2) if ranks[last] - ranks[first] < difference
    ]
    largest = [
        one for one in close if not any(other != one and other[0] <= one[0] and one[1] <= other[1] for other in close)
    ]
    assert find_cliques(ranks, difference) == largest


def test_seeds_p_value_is_scipys() -> None:
    before, after = np.random.default_rng(4).normal(size=(2, 5))
    assert seeds_p_value(after - before) == pytest.approx(stats.ttest_rel(after, before).pvalue)
    assert seeds_p_value([0.3]) is None
    assert seeds_p_value([0.0, 0.0, 0.0]) == 1.0
    assert seeds_p_value([0.1, 0.1]) == 0.0
    # By hand: differences 1, 2, 3 have t = 2 / (1 / √3) with two degrees of freedom.
    t = 2 * math.sqrt(3)
    assert seeds_p_value([1.0, 2.0, 3.0]) == pytest.approx(1 - t / math.sqrt(2 + t**2))


def test_describe_seeds_of_one_has_no_deviation() -> None:
    assert describe_seeds([0.5]) == (0.5, None)


def make_scores(seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(6), 5)
    vectors = generator.normal(size=(30, 8)) + labels[:, None] * 0.2
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def test_compare_pairs_of_one_seed_is_the_reports_interval() -> None:
    before, after = (score_queries(*make_scores(seed)) for seed in (0, 1))
    pair = PairedQueries(before.labels, before.map_at_r[None], after.map_at_r[None])
    found = compare_pairs([[pair]])
    expected = difference_interval(before, after, ())["map_at_r"]
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.value == pytest.approx(after.map_at_r.mean() - before.map_at_r.mean())
    assert (found.p_value, found.verdict) == (None, "unclear")


def test_compare_pairs_equals_drawing_classes_one_by_one() -> None:
    generator = np.random.default_rng(5)
    groups = np.array([0, 0, 0, 1, 1, 2, 3, 3])
    before, after = generator.uniform(size=(2, 3, 8))
    other = PairedQueries(np.array([5, 5, 9]), *generator.uniform(size=(2, 3, 3)))
    found = compare_pairs([[PairedQueries(groups, before, after)], [other]])

    def draw(pair: PairedQueries, seed: int) -> list[float]:
        draws, classes = np.random.default_rng(seed), np.unique(pair.groups)
        means = []
        for _ in range(2000):
            chosen = draws.integers(len(classes), size=len(classes))
            rows = [row for one in chosen for row in np.flatnonzero(pair.groups == classes[one])]
            means.append(float(np.mean([(pair.after - pair.before)[:, row].mean() for row in rows])))
        return means

    draws = [(a + b) / 2 for a, b in zip(draw(PairedQueries(groups, before, after), 0), draw(other, 1), strict=True)]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, (0.025, 0.975))))
    seeds = ((after - before).mean(axis=1) + (other.after - other.before).mean(axis=1)) / 2
    assert found.value == pytest.approx(seeds.mean())
    assert found.p_value == pytest.approx(stats.ttest_1samp(seeds, 0).pvalue)


def test_effective_rank_is_that_of_the_singular_values() -> None:
    vectors = make_scores(0)[0]
    singular = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    shares = singular / singular.sum()
    assert effective_rank(vectors) == pytest.approx(math.exp(-sum(one * math.log(one) for one in shares)))
    assert effective_rank(np.tile(vectors[:1], (9, 1))) == pytest.approx(1, abs=1e-4)


def test_mean_cosine_is_that_of_all_pairs() -> None:
    vectors = make_scores(0)[0].astype(np.float64)
    cosines = [float(one @ other) for one, other in itertools.combinations(vectors, 2)]
    assert mean_cosine(vectors.astype(np.float32)) == pytest.approx(np.mean(cosines), abs=1e-6)
    assert mean_cosine(vectors[:1].astype(np.float32)) == 1.0


# What a contest has found


def test_summarize_says_what_won_and_by_how_much() -> None:
    summary = summarize(make_contest({"weak": 0.5, "strong": 0.6}))
    assert summary["order"] == ["strong", "weak", FROZEN]
    verdict = summary["verdict"]
    assert verdict["winner"] == "strong"
    assert verdict["text"].startswith(
        "strong won over 3 data sets with an average rank of 1.0: over weak, the next, +10.0 points of MAP@R"
    )
    assert verdict["differences"]["weak"]["verdict"] == "better"
    assert summary["ranks"]["map_at_r"]["average_ranks"] == {"strong": 1.0, "weak": 2.0, FROZEN: 3.0}
    of_strong = next(one for one in summary["figures"] if one["method"] == "strong")
    assert of_strong["map_at_r"]["difference"]["value"] == pytest.approx(0.1)
    assert of_strong["num_seeds"] == 3
    assert summary["problems"] == []


def test_summarize_says_that_nothing_won() -> None:
    summary = summarize(make_contest({"one": 0.5, "two": 0.5}))
    assert summary["verdict"]["winner"] is None
    assert summary["verdict"]["text"].startswith("Nothing won: one leads over 3 data sets")
    assert "but within the spread: over two, +0.0 points" in summary["verdict"]["text"]
    # Of the frozen backbone only the interval and the seeds are asked, and both are sure.
    assert summary["verdict"]["differences"][FROZEN]["verdict"] == "better"


def test_verdict_names_three_of_many() -> None:
    text = summarize(make_contest(dict.fromkeys("abcde", 0.5)))["verdict"]["text"]
    assert text.count("+0.0 points") == 3
    assert "; and over 1 more. By their ranks" in text


def test_summarize_puts_a_method_that_failed_last_and_names_it() -> None:
    failed = make_outcome("strong", "bb", 1, 0, reason="the loss is nan")
    summary = summarize(make_contest({"weak": 0.5, "strong": 0.6}, failed))
    ranks = summary["ranks"]["map_at_r"]["average_ranks"]
    assert ranks == pytest.approx({"strong": 5 / 3, "weak": 5 / 3, FROZEN: 8 / 3})
    assert summary["problems"] == [
        {"method": "strong", "data": "bb", "seed": 1, "kind": "failed", "reason": "the loss is nan"}
    ]
    entry = next(one for one in summary["figures"] if (one["method"], one["data"]) == ("strong", "bb"))
    assert (entry["num_seeds"], entry["has_failed"]) == (2, True)
    assert "strong" not in summary["verdict"]["differences"] or summary["verdict"]["leader"] != "strong"


def test_a_method_that_failed_leads_by_its_rank_and_has_not_won() -> None:
    failed = make_outcome("strong", "ccc", 2, 0, reason="the loss is nan")
    summary = summarize(make_contest({"strong": 0.6}, failed))
    assert summary["order"] == ["strong", FROZEN]
    verdict = summary["verdict"]
    assert verdict["text"] == "Nothing won: strong has the best average rank, but a run of it failed on ccc."
    assert (verdict["winner"], verdict["leader"]) == (None, None)


def test_curves_stand_at_the_share_of_the_planned_steps() -> None:
    contest = make_contest({"one": 0.5})
    stopped = contest.outcomes["a", "one", 1]
    stopped.contents["holdout_map_at_r"].pop("4")  # type: ignore[attr-defined]
    curves = {one["data"]: one for one in summarize(contest)["curves"]}
    assert curves["bb"]["shares"] == [0.0, 0.4, 0.8]
    assert curves["bb"]["map_at_r"] == pytest.approx([0.3, 0.501, 0.501])
    assert curves["a"]["shares"] == [0.0, 0.4]
    assert curves["a"]["map_at_r"] == pytest.approx([0.3, 0.501])


def test_summarize_names_what_collapsed_by_which_measure() -> None:
    worse = make_outcome("one", "a", 0, 0.1)
    point = make_outcome("one", "bb", 0, 0.3, cosine=0.99)
    same = make_outcome("one", "ccc", 0, 0.3, kept=0)
    close_and_better = make_outcome("one", "a", 1, 0.5, cosine=0.99)
    problems = summarize(make_contest({"one": 0.5}, worse, point, same, close_and_better))["problems"]
    found = [(one["data"], one["kind"], one["reason"]) for one in problems]
    assert [one[:2] for one in found] == [("a", "collapsed"), ("bb", "collapsed"), ("ccc", "kept frozen")]
    assert found[0][2].startswith("p: below frozen by more than the interval: MAP@R 9.9, frozen 29.9 (difference -20")
    assert found[1][2] == "p: the mean cosine of two embeddings is 0.990, 0.95 or more"
    assert found[2][2].startswith("no state was better on the held-out classes: MAP@R 30.0 at best, frozen 30.0")


def test_summarize_counts_whole_rounds_only() -> None:
    contest = make_contest(
        {"weak": 0.5, "strong": 0.6}, without=(("a", "weak", 2), ("bb", "weak", 1), ("ccc", "weak", 0))
    )
    assert contest.rounds == {"a": [0, 1], "bb": [0, 2], "ccc": [1, 2]}
    nothing = make_contest({"weak": 0.5, "strong": 0.6}, without=tuple(("a", "weak", seed) for seed in range(3)))
    summary = summarize(nothing)
    assert summary["ranks"]["map_at_r"]["num_data_sets"] == 2
    entries = {one["method"]: one for one in summary["figures"] if one["data"] == "a"}
    assert entries["weak"]["map_at_r"]["mean"] is None
    assert entries["strong"]["num_seeds"] == 3
    assert entries["strong"]["map_at_r"]["difference"] is None


def test_trap_results_of_different_pictures_are_not_paired() -> None:
    """A picture that was mended between two runs is one query more; another that broke since makes up for it."""
    other = make_outcome("b", "bb", 1, 0.6)
    moved = {**other.queries["p"], "groups": np.concatenate([GROUPS[1:], GROUPS[-1:]]).astype(float)}
    with pytest.raises(ArtifactError, match=r"the results of .* on bb are of different pictures"):
        summarize(make_contest({"a": 0.5, "b": 0.6}, replace(other, queries={"p": moved})))


def test_summarize_of_nothing() -> None:
    summary = summarize(Contest(methods=("one",), protocols={"a": ("p",)}, num_seeds=1, outcomes={}))
    assert summary["verdict"]["text"] == "No method is done with a data set yet."
    assert summary["ranks"] == {"map_at_r": None, "recall_at_1": None}


def test_summarize_of_one_data_set_and_seed() -> None:
    outcomes = {
        ("a", FROZEN, 0): make_outcome(FROZEN, "a", 0, 0.3),
        ("a", "one", 0): make_outcome("one", "a", 0, 0.6),
    }
    summary = summarize(Contest(methods=("one",), protocols={"a": ("p",)}, num_seeds=1, outcomes=outcomes))
    assert summary["verdict"]["text"].startswith("Nothing won: one leads on one data set, but within the spread")
    assert "one seed" in summary["verdict"]["text"]
