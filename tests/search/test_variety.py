"""The images that show the variety of many."""

from __future__ import annotations

import numpy as np

from vitrieve.search.variety import choose_varied
from vitrieve.similarity import normalize


def test_each_planted_group_is_shown_once_and_the_largest_first() -> None:
    draw = np.random.default_rng(0)
    centers = normalize(draw.standard_normal((5, 32)).astype(np.float32))
    sizes = [40, 10, 80, 20, 5]
    groups = np.repeat(np.arange(5), sizes)
    vectors = normalize((centers[groups] + 0.05 * draw.standard_normal((155, 32))).astype(np.float32))

    chosen = choose_varied(vectors, 5)

    assert [int(groups[row]) for row in chosen] == [2, 0, 3, 1, 4]
    assert choose_varied(vectors, 5) == chosen


def test_equal_pictures_and_few_of_them() -> None:
    one = np.tile(np.eye(1, 4, dtype=np.float32), (6, 1))
    assert choose_varied(one, 3) == [0]
    assert choose_varied(one[:0], 3) == []
    assert choose_varied(np.eye(4, dtype=np.float32), 9) == [0, 1, 2, 3]
