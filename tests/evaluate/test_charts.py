from __future__ import annotations

import re

import numpy as np

from vitrieve.evaluation.analysis import SimilarityHistogram
from vitrieve.evaluation.charts import IntervalSeries, draw_energy, draw_histogram, draw_intervals, shown_bins


def make_histogram(positive: dict[int, float], negative: dict[int, float]) -> SimilarityHistogram:
    shares = np.zeros((2, 80))
    for kind, values in enumerate((positive, negative)):
        for place, share in values.items():
            shares[kind, place] = share
    return SimilarityHistogram(
        edges=np.linspace(-1, 1, 81), positive=shares[0], negative=shares[1], positive_mean=0.9, negative_mean=0.1
    )


def test_draw_intervals_places_dots_in_proportion() -> None:
    series = [IntervalSeries(name="<b>", values=[0.0, 1.0, 0.5], intervals=[(0, 0), (1, 1), (0.25, 0.75)])]
    chart = draw_intervals(["a", "b", "c&d"], series)
    first, last, middle = (float(x) for x in re.findall(r'cx="([\d.]+)"', chart))
    assert middle == (first + last) / 2
    assert "<b>" not in chart
    assert "&lt;b&gt;, c&amp;d: 50.0 % (25.0 to 75.0)" in chart


def test_shown_bins_hold_all_pairs_and_stay_inside() -> None:
    assert shown_bins([make_histogram({70: 1}, {40: 1}), make_histogram({60: 1}, {30: 1})]) == slice(29, 72)
    assert shown_bins([make_histogram({79: 1}, {0: 1})]) == slice(0, 80)
    assert shown_bins([make_histogram({79: 1}, {79: 1})]) == slice(78, 80)


def test_draw_histogram_of_one_bin_and_without_one_kind() -> None:
    for histogram in (make_histogram({79: 1.0}, {79: 1.0}), make_histogram({}, {40: 1.0})):
        chart = draw_histogram(histogram, shown_bins([histogram]))
        assert "nan" not in chart
        assert "inf" not in chart


def test_draw_energy_of_one_dimension() -> None:
    chart = draw_energy(["one"], [np.ones(1)])
    assert "nan" not in chart
