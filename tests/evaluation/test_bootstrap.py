from __future__ import annotations

import numpy as np
import pytest

from vitrieve.evaluation.metrics import QueryScores, bootstrap_intervals, bootstrap_means, score_queries
from vitrieve.similarity import normalize


def make_scores(seed: int = 0) -> QueryScores:
    """Classes of one to nine images, so that some queries are skipped and classes weigh differently."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(100, 112), generator.integers(1, 10, 12))
    return score_queries(normalize(generator.standard_normal((len(labels), 3))), labels)


def test_bootstrap_means_equals_averaging_the_drawn_classes_one_by_one() -> None:
    scores = make_scores()
    assert scores.num_skipped > 0
    found = bootstrap_means(scores, (1,), num_resamples=20, seed=5)
    classes = np.unique(scores.labels[scores.is_scored])
    generator = np.random.default_rng(5)
    for number in range(20):
        drawn = classes[generator.integers(len(classes), size=len(classes))]
        for name, values in scores.values((1,)).items():
            pooled = np.concatenate([values[scores.labels[scores.is_scored] == label] for label in drawn])
            assert found[name][number] == pytest.approx(pooled.mean())


def test_bootstrap_intervals_hold_the_mean_and_repeat_under_a_seed() -> None:
    scores = make_scores()
    intervals = bootstrap_intervals(scores, seed=1)
    assert intervals == bootstrap_intervals(scores, seed=1) != bootstrap_intervals(scores, seed=2)
    for name, mean in scores.means().items():
        low, high = intervals[name]
        assert 0 <= low < mean < high <= 1


def test_bootstrap_intervals_are_over_classes_not_images() -> None:
    # Ten classes of 100 images, each known or unknown as a whole: ten trials, not a thousand.
    labels = np.repeat(np.arange(10), 100)
    ranks = np.where(labels < 5, 1, 9)
    values = (labels < 5).astype(np.float64)
    scores = QueryScores(
        labels=labels, num_relevant=np.full(1000, 99), first_rank=ranks, r_precision=values, map_at_r=values
    )
    low, high = bootstrap_intervals(scores, (1,))["recall_at_1"]
    assert high - low > 0.5


def test_bootstrap_intervals_of_one_class_have_no_width() -> None:
    scores = score_queries([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], [3, 3, 4])
    assert bootstrap_intervals(scores, (1,))["recall_at_1"] == (1.0, 1.0)


def test_bootstrap_means_are_paired_under_one_seed() -> None:
    scores = make_scores()
    first, second = bootstrap_means(scores, seed=3), bootstrap_means(scores, seed=3)
    assert all((first[name] == second[name]).all() for name in first)
