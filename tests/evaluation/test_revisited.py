"""The reference is written from the definition, image by image, and shares nothing with the module but the names."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

import vitrieve
from vitrieve.errors import InputError
from vitrieve.evaluation import revisited
from vitrieve.evaluation.metrics import ListedRelevance
from vitrieve.evaluation.revisited import (
    REVISITED_ROLES,
    RevisitedScores,
    revisited_metrics,
    score_listed,
    trapezoidal_average_precision,
)

Truth = Mapping[str, Sequence[int]]
KS = (1, 5, 10)


def clean(ranking: Sequence[int], truth: Truth, protocol: str) -> tuple[list[bool], int]:
    """Whether each place is right, once ignored images are out; and how many images there are to find."""
    easy, hard, junk = (set(truth[part]) for part in ("easy", "hard", "junk"))
    positives = {"easy": easy, "medium": easy | hard, "hard": hard}[protocol]
    ignored = {"easy": junk | hard, "medium": junk, "hard": junk | easy}[protocol]
    return [image in positives for image in ranking if image not in ignored], len(positives)


def slow_average_precision(hits: Sequence[bool], num_positives: int) -> float:
    """Walk down the ranking; every hit adds a trapezoid of width 1 / num_positives under precision over recall."""
    area, num_found = 0.0, 0
    for place, is_hit in enumerate(hits):
        if is_hit:
            before = num_found / place if place else 1.0
            num_found += 1
            area += (before + num_found / (place + 1)) / 2 / num_positives
    return area


def slow_precision(hits: Sequence[bool], k: int) -> float:
    last = max((place + 1 for place, is_hit in enumerate(hits) if is_hit), default=0)
    shown = hits[: min(k, last)]
    return sum(shown) / len(shown) if shown else 0.0


def check_against_reference(ranks: np.ndarray, truths: Sequence[Truth]) -> None:
    found = revisited_metrics(ranks, truths, KS)
    assert list(found) == ["easy", "medium", "hard"]
    for protocol, figures in found.items():
        cleaned = [clean(ranks[:, query].tolist(), truth, protocol) for query, truth in enumerate(truths)]
        scored = [(hits, num) for hits, num in cleaned if num]
        averages = [slow_average_precision(hits, num) if num else 0.0 for hits, num in cleaned]
        assert figures.average_precision == pytest.approx(averages, abs=1e-9)
        assert figures.is_scored.tolist() == [num > 0 for _, num in cleaned]
        assert figures.num_skipped_queries == len(truths) - len(scored)
        if not scored:
            assert figures.mean_average_precision is None
            assert dict(figures.mean_precision_at) == dict.fromkeys(KS)
            continue
        mean = sum(slow_average_precision(hits, num) for hits, num in scored) / len(scored)
        assert figures.mean_average_precision == pytest.approx(mean, abs=1e-9)
        for k in KS:
            precision = sum(slow_precision(hits, k) for hits, _ in scored) / len(scored)
            assert figures.mean_precision_at[k] == pytest.approx(precision, abs=1e-9)


def draw_truth(generator: np.random.Generator, num_gallery: int) -> dict[str, list[int]]:
    """Draw disjoint parts of random sizes, each empty now and then."""
    images = generator.permutation(num_gallery)
    sizes = [int(generator.integers(0, num_gallery // 3 + 1)) * int(generator.random() > 0.25) for _ in range(3)]
    ends = np.cumsum(sizes)
    return {
        part: images[end - size : end].tolist()
        for part, size, end in zip(("easy", "hard", "junk"), sizes, ends, strict=True)
    }


def test_revisited_metrics_equals_the_reference_on_1000_random_rankings() -> None:
    generator = np.random.default_rng(0)
    for _ in range(250):
        num_gallery = int(generator.integers(1, 40))
        truths = [draw_truth(generator, num_gallery) for _ in range(4)]
        ranks = np.stack([generator.permutation(num_gallery) for _ in truths], axis=1)
        num_kept = num_gallery if generator.random() < 0.5 else int(generator.integers(0, num_gallery + 1))
        check_against_reference(ranks[:num_kept], truths)


@pytest.mark.parametrize("junk_place", range(5))
def test_revisited_metrics_with_junk_at_every_position(junk_place: int) -> None:
    ranking = [10, 0, 11, 1]  # wrong, right, wrong, right
    ranking.insert(junk_place, 9)
    truth = {"easy": [0, 1], "hard": [], "junk": [9]}
    found = revisited_metrics(np.array(ranking)[:, None], [truth], KS)
    by_hand = ((0 / 1 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2) / 2
    for protocol in ("easy", "medium"):
        assert found[protocol].mean_average_precision == pytest.approx(by_hand, abs=1e-12)
        assert found[protocol].mean_precision_at == {1: 0.0, 5: 0.5, 10: 0.5}
    assert found["hard"].mean_average_precision is None
    assert found["hard"].num_skipped_queries == 1


def test_revisited_metrics_of_a_ranking_worked_by_hand() -> None:
    # Rows: hard 5, wrong 8, easy 2, junk 7, hard 3, easy 4; row 6 (hard) lies beyond the end.
    ranks = np.array([[5], [8], [2], [7], [3], [4]], dtype=np.uint32)
    truth = {"easy": [2, 4], "hard": [3, 5, 6], "junk": [7], "bbx": [0.5]}
    found = revisited_metrics(ranks, [truth], ks=iter((1, 2, 5)))
    easy = ((0 / 1 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2) / 2  # wrong, easy, easy
    medium = (1 + (1 / 2 + 2 / 3) / 2 + (2 / 3 + 3 / 4) / 2 + (3 / 4 + 4 / 5) / 2) / 5  # right wrong right right right
    hard = (1 + (1 / 2 + 2 / 3) / 2) / 3  # right wrong right
    figures = {protocol: one.mean_average_precision for protocol, one in found.items()}
    assert figures == pytest.approx({"easy": easy, "medium": medium, "hard": hard}, abs=1e-12)
    assert found["easy"].mean_precision_at == pytest.approx({1: 0, 2: 1 / 2, 5: 2 / 3})
    assert found["medium"].mean_precision_at == pytest.approx({1: 1, 2: 1 / 2, 5: 4 / 5})
    assert found["hard"].mean_precision_at == pytest.approx({1: 1, 2: 1 / 2, 5: 2 / 3})


def test_revisited_metrics_leaves_queries_without_positives_out_and_counts_them() -> None:
    ranks = np.array([[0, 0, 1], [1, 1, 0]])
    truths = [{"easy": [0], "hard": [], "junk": []}, {"easy": [], "hard": [], "junk": [0, 1]}] * 2
    found = revisited_metrics(ranks, truths[:3], KS)["medium"]
    assert (found.num_skipped_queries, found.mean_average_precision) == (1, 0.5 * (1 + 0.25))
    assert found.is_scored.tolist() == [True, False, True]
    assert found.average_precision.tolist() == [1.0, 0.0, 0.25]
    assert revisited_metrics(np.empty((4, 0), dtype=int), [], KS)["easy"].mean_average_precision is None


def test_trap_revisited_junk_is_not_ranked() -> None:
    truth = {"easy": [0], "hard": [], "junk": [1, 2, 3]}
    found = revisited_metrics(np.array([[1], [2], [3], [0], [4]]), [truth], KS)["easy"]
    assert found.mean_average_precision == 1.0  # three junk images before it would make it 0.125
    assert found.mean_precision_at == {1: 1.0, 5: 1.0, 10: 1.0}
    blocks = [(slice(0, 1), np.float32([[0.1, 0.9, 0.8, 0.7, 0.0]]))]
    judged = ListedRelevance(
        positive_rows=(np.array([0]),), ignored_rows=(np.array([1, 2, 3]),), num_positives=np.ones(1, dtype=np.int64)
    )
    assert score_listed(blocks, judged).means((1,)) == {"mean_average_precision": 1.0, "mp_at_1": 1.0}


def test_trap_revisited_average_precision_is_trapezoidal_not_stepwise() -> None:
    assert trapezoidal_average_precision([1], 1) == 0.25  # the step-wise sum gives 0.5
    assert trapezoidal_average_precision([0, 2], 2) == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)  # step-wise 5/6
    assert trapezoidal_average_precision(np.arange(7), 7) == 1.0


def test_trap_revisited_truncated_ranking_without_any_positive_scores_zero() -> None:
    truth = {"easy": [7], "hard": [8], "junk": [9]}
    for ranks in (np.array([[1], [2], [9]]), np.empty((0, 1), dtype=np.int64)):
        for figures in revisited_metrics(ranks, [truth], KS).values():
            assert figures.mean_average_precision == 0.0
            assert figures.mean_precision_at == {1: 0.0, 5: 0.0, 10: 0.0}
            assert figures.num_skipped_queries == 0


def test_trap_revisited_uses_no_name_that_numpy_dropped() -> None:
    removed = {"in1d", "trapz", "int", "float", "bool", "row_stack"}
    # Whatever this NumPy still has of them, the source must not use it; and the newest here ran the tests above.
    tree = ast.parse(Path(revisited.__file__).read_text(encoding="utf-8"))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "np"
    }
    assert "isin" in used
    assert not used & removed


def test_trap_revisited_constant_embeddings_score_below_chance() -> None:
    judged = ListedRelevance(
        positive_rows=(np.array([0, 1]),), ignored_rows=(np.array([2]),), num_positives=np.array([2], dtype=np.int64)
    )
    scores = score_listed([(slice(0, 1), np.ones((1, 100), dtype=np.float32))], judged)
    assert scores.found_ranks[0].tolist() == [97, 98]
    assert scores.means((1, 10))["mp_at_10"] == 0.0


def test_score_listed_equals_revisited_metrics_of_the_sorted_similarities() -> None:
    generator = np.random.default_rng(1)
    num_gallery, num_queries = 60, 9
    truths = [draw_truth(generator, num_gallery) for _ in range(num_queries)]
    similarities = generator.random((num_queries, num_gallery), dtype=np.float32)
    found = revisited_metrics(np.argsort(-similarities, axis=1).T, truths, KS)
    for protocol, roles in REVISITED_ROLES.items():
        positive = [np.array([row for part in roles.positive for row in one[part]], dtype=np.int64) for one in truths]
        ignored = [np.array([row for part in roles.ignored for row in one[part]], dtype=np.int64) for one in truths]
        judged = ListedRelevance(
            positive_rows=tuple(positive),
            ignored_rows=tuple(ignored),
            num_positives=np.array([len(rows) for rows in positive]),
        )
        blocks = [(slice(start, start + 4), similarities[start : start + 4].copy()) for start in (0, 4)]
        blocks.append((slice(8, 9), similarities[8:].copy()))
        scores = score_listed(blocks, judged)
        assert scores.average_precision == pytest.approx(found[protocol].average_precision, abs=1e-12)
        assert scores.num_skipped == found[protocol].num_skipped_queries
        means = scores.means(KS)
        assert means["mean_average_precision"] == pytest.approx(found[protocol].mean_average_precision)
        assert means["mp_at_5"] == pytest.approx(found[protocol].mean_precision_at[5])


def test_revisited_scores_counts_positives_that_were_never_ranked() -> None:
    scores = RevisitedScores(
        num_relevant=np.array([2, 1, 0]), found_ranks=(np.array([0]), np.array([], dtype=int), np.array([], dtype=int))
    )
    assert scores.first_rank.tolist() == [1, 0, 0]
    assert scores.average_precision.tolist() == [0.5, 0.0, 0.0]
    assert (scores.num_scored, scores.num_skipped) == (2, 1)
    assert scores.means((1,)) == {"mean_average_precision": 0.25, "mp_at_1": 0.5}
    with pytest.raises(ValueError, match="cannot have found more"):
        RevisitedScores(num_relevant=np.array([0]), found_ranks=(np.array([0]),))
    with pytest.raises(InputError, match="none of 1 queries has an image to be found"):
        RevisitedScores(num_relevant=np.array([0]), found_ranks=(np.array([], dtype=int),)).means()


@pytest.mark.parametrize(
    ("ranks", "truth", "part"),
    [
        ([[0], [1]], {"easy": [0], "hard": []}, "lacks 'junk'"),
        ([[0], [1]], {"easy": [0], "hard": [0], "junk": []}, "names gallery row 0 twice"),
        ([[0], [1]], {"easy": [1, 1], "hard": [], "junk": []}, "names gallery row 1 twice"),
        ([[0], [1]], {"easy": [-1], "hard": [], "junk": []}, "rows count from 0"),
        ([[0], [1]], {"easy": [0.5], "hard": [], "junk": []}, "vector of integers"),
        ([[1], [1]], {"easy": [1], "hard": [], "junk": []}, "gallery row 1 stands 2 times"),
        ([[0, 1]], {"easy": [0], "hard": [], "junk": []}, "shape \\(1, 2\\)"),
        ([[0.0], [1.0]], {"easy": [0], "hard": [], "junk": []}, "float64"),
        ([0, 1], {"easy": [0], "hard": [], "junk": []}, "shape \\(2,\\)"),
    ],
)
def test_revisited_metrics_refuses_what_does_not_fit(ranks: object, truth: dict[str, object], part: str) -> None:
    with pytest.raises(InputError, match=part):
        revisited_metrics(ranks, [truth])  # type: ignore[arg-type, list-item]


def test_revisited_metrics_refuses_a_cut_off_of_zero() -> None:
    with pytest.raises(InputError, match="cut-off"):
        revisited_metrics([[0]], [{"easy": [0], "hard": [], "junk": []}], ks=(0,))


@pytest.mark.parametrize(("ranks", "num_positives"), [([0, 0], 2), ([3, 1], 2), ([-1], 1), ([0, 1], 1), ([], 0)])
def test_trapezoidal_average_precision_refuses_impossible_ranks(ranks: list[int], num_positives: int) -> None:
    with pytest.raises(InputError):
        trapezoidal_average_precision(ranks, num_positives)


def test_revisited_metrics_is_public() -> None:
    assert vitrieve.revisited_metrics is revisited_metrics
