from __future__ import annotations

import itertools
import re

import pytest

from vitrieve.reproduce.charts import Axis, Line, _y_axis, draw_lines


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
def test_y_axis_holds_what_is_drawn(low: float, high: float) -> None:
    axis = _y_axis("", low, high)
    assert axis.low <= low <= high <= axis.high
    assert 2 <= len(axis.ticks) <= 8


def test_place_puts_a_single_value_in_the_middle() -> None:
    assert Axis(title="", low=3, high=3, ticks=()).place(3) == 0.5
