from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrieve.config import Sampling, SourceRule
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


SOURCES = {0: [20, 21, 22], 1: [5, 6, 7, 8, 9, 10, 11], 2: [40]}
"""Labels of three sources: of three classes, of seven, and of one."""
OF_SOURCES = [label for source in SOURCES for label in SOURCES[source] for _ in range(2 + label % 4)]
SOURCE_OF = [source for label in OF_SOURCES for source in SOURCES if label in SOURCES[source]]


def build_mixing_sampler(sampling: Sampling, rule: SourceRule, batch_size: int = 10, seed: int = 5) -> Sampler:
    return Sampler(
        OF_SOURCES,
        batch_size=batch_size,
        sampling=sampling,
        images_per_class=4,
        seed=seed,
        sources=SOURCE_OF,
        rule=rule,
    )


@pytest.mark.parametrize("sampling", ["random", "m_per_class"])
@pytest.mark.parametrize("rule", ["mixed", "one"])
def test_batch_rows_of_sources_equal_those_of_a_walk_from_the_first_step(sampling: Sampling, rule: SourceRule) -> None:
    # The definition, written as one long walk: every source deals from its own pack, and shuffles a new one when it is
    # through; the sources deal in turn.
    def deal(source: int) -> Iterator[int]:
        for epoch in itertools.count():
            things = SOURCES[source] if sampling == "m_per_class" else find_rows(source)
            yield from np.random.default_rng([5, 1, epoch, source]).permutation(sorted(things)).tolist()

    def find_rows(source: int) -> list[int]:
        return [row for row, other in enumerate(SOURCE_OF) if other == source]

    packs, turn = [deal(source) for source in SOURCES], itertools.cycle(SOURCES)
    sampler = build_mixing_sampler(sampling, rule)
    expected = []
    for step in range(40):
        if sampling == "random":
            whose = [next(turn)] * 10 if rule == "one" else [next(turn) for _ in range(10)]
            expected.append([next(packs[source]) for source in whose])
            continue
        whose = [next(turn)] * 3 if rule == "one" else [next(turn) for _ in range(3)]
        generator, rows = np.random.default_rng([5, 2, step]), []
        for label, times in Counter(next(packs[source]) for source in whose).items():
            some: list[int] = []
            while len(some) < 4 * times:
                images = [row for row, other in enumerate(OF_SOURCES) if other == label]
                some += generator.permutation(images).tolist()
            rows += some[: 4 * times]
        expected.append(rows[:10])
    assert [sampler.batch_rows(step).tolist() for step in range(40)] == expected
    assert [build_mixing_sampler(sampling, rule).batch_rows(step).tolist() for step in (31, 7)] == [
        expected[31],
        expected[7],
    ]


def test_sources_are_shown_equally_often_whatever_their_size_unless_they_are_thrown_together() -> None:
    def count(rule: SourceRule, sampling: Sampling) -> dict[int, int]:
        sampler = build_mixing_sampler(sampling, rule, batch_size=12)
        rows = np.concatenate([sampler.batch_rows(step) for step in range(231)])
        return Counter(SOURCE_OF[row] for row in rows.tolist())

    for rule in ("mixed", "one"):
        for sampling in ("random", "m_per_class"):
            assert count(rule, sampling) == dict.fromkeys(SOURCES, 231 * 4)
    assert count("together", "m_per_class") == {0: 252 * 3, 1: 252 * 7, 2: 252}  # as many as they have classes
    num_images = Counter(SOURCE_OF)
    assert count("together", "random") == {
        source: pytest.approx(231 * 12 * num_images[source] / len(SOURCE_OF), abs=12) for source in SOURCES
    }


def test_every_class_of_a_source_comes_before_one_comes_again() -> None:
    sampler = build_mixing_sampler("m_per_class", "mixed", batch_size=12)
    shown = Counter(OF_SOURCES[row] for step in range(7) for row in sampler.batch_rows(step).tolist())
    assert {label: shown[label] for label in SOURCES[1]} == dict.fromkeys(SOURCES[1], 4)


def test_a_batch_of_one_source_holds_no_other() -> None:
    sampler = build_mixing_sampler("m_per_class", "one")
    shown = [{SOURCE_OF[row] for row in sampler.batch_rows(step).tolist()} for step in range(9)]
    assert shown == [{0}, {1}, {2}] * 3


@pytest.mark.parametrize("sampling", ["random", "m_per_class"])
@pytest.mark.parametrize("rule", ["mixed", "one", "together"])
def test_one_source_is_sampled_as_if_there_were_no_rule(sampling: Sampling, rule: SourceRule) -> None:
    alone = Sampler(LABELS, batch_size=8, sampling=sampling, images_per_class=2, seed=3, sources=[0] * 21, rule=rule)
    plain = build_sampler(sampling, seed=3)
    together = Sampler(
        LABELS, batch_size=8, sampling=sampling, images_per_class=2, seed=3, sources=[0] * 8 + [1] * 13, rule="together"
    )
    for step in range(30):
        assert plain.batch_rows(step).tolist() == alone.batch_rows(step).tolist() == together.batch_rows(step).tolist()
