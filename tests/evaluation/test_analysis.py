from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vitrieve.data.records import Dataset
from vitrieve.embed.collection import embed_images
from vitrieve.evaluation.analysis import (
    count_similarities,
    cumulative_energy,
    difference_interval,
    find_neighbors,
    list_group_figures,
    pick_changed,
    pick_random,
    pick_worst,
)
from vitrieve.evaluation.measure import Measurement, measure
from vitrieve.evaluation.metrics import QueryScores
from vitrieve.similarity import similarity

from .conftest import MakeEncoder


@pytest.fixture
def measurement(dataset: Dataset, make_encoder: MakeEncoder) -> Measurement:
    junk = dataclasses.replace(dataset, junk_key="artist")
    return measure(junk, embed_images(make_encoder("grid"), dataset.split("test"), num_threads=1), "grid")


def make_scores(labels: list[int], averages: list[float], first_ranks: list[int]) -> QueryScores:
    ranks = np.array(first_ranks, dtype=np.int64)
    return QueryScores(
        labels=np.array(labels, dtype=np.int64),
        num_relevant=(ranks > 0).astype(np.int64),
        first_rank=ranks,
        r_precision=np.array(averages),
        map_at_r=np.array(averages),
    )


def test_list_group_figures_averages_the_scored_queries_of_each_class() -> None:
    scores = make_scores([9, 3, 9, 9, 4], [0.5, 0.2, 1.0, 0.0, 0.0], [2, 5, 1, 0, 0])
    figures = [dataclasses.astuple(one) for one in list_group_figures(scores)]
    assert figures == [(3, 1, 0.0, 0.2), (9, 2, 0.5, 0.75)]


def test_difference_interval_is_zero_for_equal_scores_and_paired() -> None:
    before = make_scores([1, 2, 3], [0.1, 0.5, 0.9], [1, 1, 1])
    after = make_scores([1, 2, 3], [0.15, 0.55, 0.95], [1, 1, 1])
    assert difference_interval(before, before, (1,))["map_at_r"] == (0.0, 0.0)
    assert difference_interval(before, after, (1,))["map_at_r"] == pytest.approx((0.05, 0.05))


def test_count_similarities_counts_every_pair_once_without_self_and_junk(measurement: Measurement) -> None:
    histogram = count_similarities(measurement)
    whole = similarity(measurement.vectors, measurement.vectors)
    positive, negative = [], []
    for query, one in enumerate(measurement.task.records):
        for row, other in enumerate(measurement.task.records):
            if one.metadata["artist"] != other.metadata["artist"]:
                (positive if one.label == other.label else negative).append(float(whole[query, row]))
    for found, mean, values in (
        (histogram.positive, histogram.positive_mean, positive),
        (histogram.negative, histogram.negative_mean, negative),
    ):
        counts, _ = np.histogram(values, bins=len(found), range=(-1, 1))
        np.testing.assert_allclose(found, counts / len(values))
        assert mean == pytest.approx(np.mean(values))


def test_trap_cumulative_energy_is_real_and_rising_on_degenerate_embeddings() -> None:
    generator = np.random.default_rng(0)
    flat = generator.standard_normal((50, 2)) @ generator.standard_normal((2, 30))
    energy = cumulative_energy(flat.astype(np.float32))
    assert energy.dtype == np.float64
    assert (np.diff(energy) >= 0).all()
    assert energy[1] == pytest.approx(1.0)
    assert cumulative_energy(np.ones((10, 3), dtype=np.float32)).tolist() == [1.0, 1.0, 1.0]


def test_cumulative_energy_equals_the_singular_values() -> None:
    vectors = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32) * np.float32([5, 4, 3, 2, 1, 1])
    squares = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False).astype(np.float64) ** 2
    np.testing.assert_allclose(cumulative_energy(vectors), np.cumsum(squares) / squares.sum(), rtol=1e-5)


def test_find_neighbors_leaves_out_self_and_junk_and_orders_by_similarity(measurement: Measurement) -> None:
    (neighbors,) = find_neighbors(measurement, [5], 100)
    records = measurement.task.records
    assert len(neighbors) == 12  # of 16 images, four are by the query's artist
    assert all(records[one.row].metadata["artist"] != records[5].metadata["artist"] for one in neighbors)
    assert [one.similarity for one in neighbors] == sorted((one.similarity for one in neighbors), reverse=True)
    assert [one.verdict == "right" for one in neighbors] == [records[one.row].label == 1 for one in neighbors]
    assert find_neighbors(measurement, [5], 3) == [neighbors[:3]]


def test_pick_worst_prefers_low_scores_and_different_classes() -> None:
    scores = make_scores([1, 1, 2, 2, 3], [0.0, 0.0, 0.1, 0.3, 0.0], [5, 9, 1, 1, 0])
    assert pick_worst(scores, 2) == [1, 2]
    assert pick_worst(scores, 10) == [1, 2, 0, 3]


def test_pick_random_repeats_under_a_seed_and_takes_scored_queries() -> None:
    scores = make_scores([1] * 6, [0.5] * 6, [1, 0, 1, 1, 1, 0])
    assert pick_random(scores, 3, seed=1) == pick_random(scores, 3, seed=1)
    assert sorted(pick_random(scores, 10)) == [0, 2, 3, 4]


def test_pick_changed_takes_only_what_changed_in_that_direction() -> None:
    before = make_scores([1, 2, 3, 4], [0.5, 0.5, 0.5, 0.5], [1, 1, 1, 1])
    after = make_scores([1, 2, 3, 4], [0.9, 0.5, 0.1, 0.6], [1, 1, 1, 1])
    assert pick_changed(before, after, 5, is_gain=True) == [0, 3]
    assert pick_changed(before, after, 5, is_gain=False) == [2]
