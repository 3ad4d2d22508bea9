from __future__ import annotations

from vitrieve.training.selection import Selection


def select(*values: float) -> Selection:
    selection = Selection()
    for number, value in enumerate(values):
        selection.add(10 * number, value)
    return selection


def test_selection_keeps_the_best_step() -> None:
    assert select(0.2, 0.3, 0.5, 0.4).best_step == 20


def test_selection_the_frozen_start_wins_ties() -> None:
    assert select(0.5, 0.5, 0.4).best_step == 0
    assert "kept the frozen start" in select(0.5, 0.5).describe()


def test_selection_counts_measurements_below_the_start_in_a_row() -> None:
    assert select(0.5, 0.4, 0.3).num_worse == 2
    assert select(0.5, 0.4, 0.6, 0.4).num_worse == 1
    assert select(0.5, 0.6, 0.55).num_worse == 0


def test_selection_says_what_it_kept_and_by_how_much() -> None:
    assert select(0.2, 0.345).describe() == (
        "kept step 10: MAP@R on the held-out classes 34.5, +14.5 points from the frozen 20.0"
    )
