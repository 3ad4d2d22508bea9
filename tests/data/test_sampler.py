from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrieve.config import Sampling
from vitrieve.data.loader import EpochTuples, Sampler
from vitrieve.errors import ConfigError

LABELS = [0] * 5 + [1] * 3 + [2] * 1 + [3] * 8 + [4] * 4


def build_sampler(sampling: Sampling, batch_size: int = 8, images_per_class: int = 2, seed: int = 0) -> Sampler:
    return Sampler(LABELS, batch_size=batch_size, sampling=sampling, images_per_class=images_per_class, seed=seed)


def test_random_sampling_shows_every_image_once_an_epoch() -> None:
    sampler = build_sampler("random", batch_size=7)
    rows = np.concatenate([sampler.batch_rows(step) for step in range(6)])
    assert sorted(rows[:21]) == list(range(21))
    assert sorted(rows[21:]) == list(range(21))
    assert rows[:21].tolist() != rows[21:].tolist()


def test_random_sampling_carries_the_rest_of_an_epoch_into_the_next_batch() -> None:
    sampler = build_sampler("random", batch_size=8)
    rows = np.concatenate([sampler.batch_rows(step) for step in range(21)])
    assert set(Counter(rows.tolist()).values()) == {8}


def test_m_per_class_gives_each_class_its_images_without_repetition() -> None:
    sampler = build_sampler("m_per_class", batch_size=8, images_per_class=2)
    for step in range(20):
        rows = sampler.batch_rows(step)
        classes = Counter(LABELS[row] for row in rows)
        assert len(rows) == 8
        assert all(count % 2 == 0 for count in classes.values())
        assert all(
            len(set(rows[[LABELS[row] == label for row in rows]])) >= min(2, LABELS.count(label)) for label in classes
        )


def test_m_per_class_visits_all_classes_in_turn() -> None:
    sampler = build_sampler("m_per_class", batch_size=10, images_per_class=2)
    for step in range(10):
        assert {LABELS[row] for row in sampler.batch_rows(step)} == {0, 1, 2, 3, 4}


def test_m_per_class_with_fewer_classes_than_places_takes_new_images_first() -> None:
    sampler = Sampler([0] * 6 + [1] * 6, batch_size=12, sampling="m_per_class", images_per_class=2, seed=0)
    assert sorted(sampler.batch_rows(0)) == list(range(12))


@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 40), st.sampled_from(["random", "m_per_class"]))
def test_batch_rows_always_has_the_batch_size(batch_size: int, images: int, step: int, sampling: Sampling) -> None:
    rows = build_sampler(sampling, batch_size, min(images, batch_size)).batch_rows(step)
    assert rows.shape == (batch_size,)
    assert rows.dtype == np.int64
    assert set(rows) <= set(range(len(LABELS)))


@pytest.mark.parametrize("sampling", ["random", "m_per_class"])
def test_batch_rows_depends_on_seed_and_step_only(sampling: Sampling) -> None:
    first, second = build_sampler(sampling), build_sampler(sampling)
    for step in range(5):
        first.batch_rows(step)
    assert first.batch_rows(3).tolist() == second.batch_rows(3).tolist()
    assert first.batch_rows(3).tolist() != build_sampler(sampling, seed=1).batch_rows(3).tolist()


def test_sampler_refuses_sizes_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        build_sampler("random", batch_size=0)
    with pytest.raises(ConfigError, match="more than the batch_size"):
        build_sampler("m_per_class", batch_size=2, images_per_class=3)


def test_epoch_tuples_lay_tuples_of_different_sizes_one_after_the_other() -> None:
    rows = np.array([[4, 5, 1], [7, 8, -1], [9, 3, 2], [6, 5, 0], [1, 2, 3]])
    tuples = EpochTuples(epoch=3, rows=rows, tuples_per_batch=2)
    assert (tuples.start_step, tuples.end_step) == (6, 8)
    batch, anchors = tuples.batch_rows(6)
    assert batch.tolist() == [4, 5, 1, 7, 8]
    assert anchors.tolist() == [0, 0, 0, 3, 3]
    batch, anchors = tuples.batch_rows(7)  # the fifth tuple would make a batch of one and is left out
    assert batch.tolist() == [9, 3, 2, 6, 5, 0]
    assert anchors.tolist() == [0, 0, 0, 3, 3, 3]
    with pytest.raises(AssertionError, match="step 8 lies outside epoch 3"):
        tuples.batch_rows(8)


def test_epoch_tuples_fewer_than_a_batch_make_one_step() -> None:
    tuples = EpochTuples(epoch=2, rows=np.array([[0, 1, 2]]), tuples_per_batch=5)
    assert (tuples.start_step, tuples.end_step) == (2, 3)
    assert tuples.batch_rows(2)[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("sampling", ["random", "m_per_class"])
def test_batch_rows_equal_those_of_a_search_for_each_class(sampling: Sampling) -> None:
    # The definition, written with a permutation for each step and a search for each class.
    labels = np.random.default_rng(3).integers(0, 7, 61) * 10
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    sampler = Sampler(labels.tolist(), batch_size=10, sampling=sampling, images_per_class=4, seed=5)

    def stream(num_items: int, start: int, count: int) -> list[int]:
        orders = [np.random.default_rng([5, 1, epoch]).permutation(num_items) for epoch in range(60)]
        return np.concatenate(orders)[start : start + count].tolist()

    for step in (*range(12), 3, 0):  # also backwards
        found = sampler.batch_rows(step).tolist()
        if sampling == "random":
            assert found == stream(61, 10 * step, 10)
            continue
        generator = np.random.default_rng([5, 2, step])
        rows: list[int] = []
        for position, times in Counter(stream(7, 3 * step, 3)).items():
            some: list[int] = []
            while len(some) < 4 * times:
                some += generator.permutation(classes[position]).tolist()
            rows += some[: 4 * times]
        assert found == rows[:10]


def test_sampler_is_set_up_by_as_many_calls_for_many_classes_as_for_few() -> None:
    def count_calls(num_classes: int) -> int:
        labels = np.repeat(np.arange(num_classes), 4).tolist()
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event == "c_call"

        sys.setprofile(count)
        try:
            Sampler(labels, batch_size=8, sampling="m_per_class", images_per_class=2, seed=0)
        finally:
            sys.setprofile(None)
        return calls

    count_calls(2)  # imports what NumPy loads at its first use
    assert count_calls(5_000) == count_calls(10)
