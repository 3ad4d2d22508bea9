from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from vitrieve.evaluation.analysis import SimilarityHistogram
from vitrieve.evaluation.charts import (
    Axis,
    IntervalSeries,
    Line,
    draw_histogram,
    draw_intervals,
    draw_lines,
    round_ticks,
    shown_bins,
    to_svg_file,
)


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


def test_draw_lines_draws_a_curve_a_line_and_a_dot_a_point() -> None:
    lines = [
        Line(name="β = 0.5", xs=[0, 0.3, 1], ys=[80, 82, 81], deviations=[1, 0, 0.5]),
        Line(name="b", xs=[0], ys=[7]),
    ]
    chart = draw_lines(lines, "λ", "R@1, %")
    assert chart.count("<polyline") == 2
    assert chart.count("<circle") == 4
    points = re.search(r'points="([^"]+)"', chart)
    assert points is not None
    xs, ys = zip(*(map(float, pair.split(",")) for pair in points[1].split()), strict=True)
    assert list(xs) == sorted(xs)
    assert ys[1] < ys[2] < ys[0]  # higher values stand higher


def test_draw_lines_leaves_dots_out_of_long_curves_and_spaces_logarithms_evenly() -> None:
    chart = draw_lines([Line(name="a", xs=range(1, 65), ys=range(64))], "components", "energy", is_log_x=True)
    assert "<circle" not in chart
    ticks = [float(x) for x in re.findall(r'<text class="tick" x="([\d.]+)"[^>]*text-anchor="middle">\d+<', chart)]
    gaps = [right - left for left, right in itertools.pairwise(ticks)]
    assert len(ticks) == 7
    assert max(gaps) - min(gaps) < 0.3


def test_draw_lines_escapes_names() -> None:
    chart = draw_lines([Line(name="<script>", xs=[1, 2], ys=[1, 2])], "<x>", "y")
    assert "<script>" not in chart
    assert "<x>" not in chart


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (83.0, 83.0), (9.1, 84.4), (0.91, 0.9101), (-2.0, 3.0)])
def test_round_ticks_hold_what_is_drawn(low: float, high: float) -> None:
    ticks = round_ticks(low, high)
    assert ticks[0] <= low <= high <= ticks[-1]
    assert 2 <= len(ticks) <= 8


def test_axis_puts_a_single_value_in_the_middle() -> None:
    assert Axis(low=3, high=3, low_px=10, high_px=30).to_px(3) == 20


def test_a_curve_of_one_point_is_drawn() -> None:
    chart = draw_lines([Line(name="one", xs=[1], ys=[100.0])], "components", "energy", is_log_x=True)
    assert "nan" not in chart
    assert chart.count("<circle") == 1


def test_svg_file_is_well_formed_and_has_its_legend_and_colors() -> None:
    lines = [Line(name=f"<{number}>", xs=[1, 2], ys=[1, number]) for number in range(3)]
    root = ElementTree.fromstring(to_svg_file(draw_lines(lines, "x", "y", has_legend=True)))
    texts = "".join(root.itertext())
    assert "<2>" in texts
    assert "--s2" in texts
    assert draw_lines(lines, "x", "y").count("&lt;2&gt;") == 1  # the title of its line only
