"""Charts as inline SVG, for the report, the pages of ``vitrieve reproduce`` and ``compare``, and the benchmarks' pages.

Colors come from ``templates/chart.css`` (classes ``s0`` to ``s7`` for encoders and lines, ``right`` and ``wrong`` for
pairs), so that one drawing serves light and dark. Every function returns escaped markup.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
from markupsafe import Markup

from vitrieve.evaluation.analysis import SimilarityHistogram

NUM_COLORS = 8
WIDE_PX = 560
NARROW_PX = 400
"""Three of these stand side by side on a page, with their letters at full size."""
PLOT_PX = 230
"""Height of the plot of a narrow chart."""
LEFT_PX = 44
RIGHT_PX = 16
MAX_ZOOM = 1.15
"""A chart grows with its card up to here; beyond, its letters would outgrow the text."""
PLOT_BOTTOM_PX = 34
"""Room below a plot for tick labels and the axis title."""
LEGEND_PX = 18
"""Height of a line of a legend."""
NUM_TICKS = 5
MAX_TICKS = 8
"""Each position of a line has its tick, up to here; of more the ticks are round numbers."""
MAX_NAME = 19
"""Characters of a name beside a critical-difference diagram."""
MAX_DOTS = 16
"""A line of more points than this is a curve, without dots."""

_TEXT = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
_LINE = Markup('<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>')
_DOT = Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="{}"/>')


@dataclass(frozen=True, kw_only=True)
class IntervalSeries:
    """One encoder's dots: name, values in [0, 1], and their intervals, one for each row of the chart."""

    name: str
    values: Sequence[float]
    intervals: Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart.

    Attributes:
        name: Name in the legend.
        xs: Positions, rising.
        ys: Values, as many.
        deviations: Half the length of a bar at each point; empty: no bars.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    deviations: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis: its ends as numbers and as pixels, and whether it is logarithmic."""

    low: float
    high: float
    low_px: float
    high_px: float
    is_log: bool = False

    def to_px(self, value: float) -> float:
        """Return the pixel of a value; the middle where the axis has no length."""
        low, high, value = (math.log(number) if self.is_log else number for number in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.low_px + share * (self.high_px - self.low_px)


def draw_intervals(row_names: Sequence[str], series: Sequence[IntervalSeries]) -> Markup:
    """Draw values with their intervals on one axis from 0 to 100 %: a row for each metric, a dot for each encoder.

    Args:
        row_names: Names of the metrics.
        series: Encoders, each with as many values as there are rows.
    """
    left, line_px, gap_px = 92, 14, 36
    row_px = max(line_px * len(series) + gap_px, 56)
    height = row_px * len(row_names)
    axis = Axis(low=0, high=1, low_px=left, high_px=WIDE_PX - RIGHT_PX)
    parts = [_draw_x_tick(axis.to_px(tick / 100), height, f"{tick}") for tick in (0, 20, 40, 60, 80, 100)]
    for row, row_name in enumerate(row_names):
        middle = row * row_px + row_px / 2
        parts.append(_TEXT.format("label", left - 12, middle + 4, "end", row_name))
        for number, encoder in enumerate(series):
            y = middle + (number - (len(series) - 1) / 2) * line_px
            value, (low, high) = encoder.values[row], encoder.intervals[row]
            title = f"{encoder.name}, {row_name}: {value * 100:.1f} % ({low * 100:.1f} to {high * 100:.1f})"
            bar = _LINE.format("interval", axis.to_px(low), axis.to_px(high), y, y)
            parts.append(_draw_series(number, title, bar + _DOT.format(axis.to_px(value), y, 4.5)))
    parts.append(_draw_axis_title("percent, with 95 % intervals", axis, height))
    label = "Every metric of every encoder with its interval; the table has the same figures."
    return _wrap(parts, WIDE_PX, height, label)


def draw_histogram(histogram: SimilarityHistogram, bins: slice, *, has_legend: bool = False) -> Markup:
    """Draw the similarity histograms of relevant and irrelevant pairs over each other, the highest bin at the top.

    Args:
        histogram: Histogram to draw.
        bins: Bins to show, the same in charts that are compared.
        has_legend: Whether the drawing names the two kinds of pairs; a report does so beside it.
    """
    y_max = max(histogram.positive.max(), histogram.negative.max())
    edges = histogram.edges[bins.start : bins.stop + 1]
    axis = Axis(low=edges[0], high=edges[-1], low_px=RIGHT_PX, high_px=NARROW_PX - RIGHT_PX)
    ticks = np.arange(math.ceil(round(edges[0] * 5, 6)), math.floor(round(edges[-1] * 5, 6)) + 1) / 5
    parts = [_draw_x_tick(axis.to_px(tick), PLOT_PX, f"{tick:.1f}") for tick in ticks]
    for kind, shares, mean in (
        ("wrong", histogram.negative[bins], histogram.negative_mean),
        ("right", histogram.positive[bins], histogram.positive_mean),
    ):
        xs = [axis.to_px(edge) for edge in np.repeat(edges, 2)[1:-1]]
        outline = _join_points(xs, PLOT_PX - np.repeat(shares, 2) / y_max * (PLOT_PX - 14))
        area = f"{xs[0]:.1f},{PLOT_PX} {outline} {xs[-1]:.1f},{PLOT_PX}"
        drawn = Markup('<polygon class="area" points="{}"/><polyline class="outline" points="{}"/>{}').format(
            area, outline, _LINE.format("mean", axis.to_px(mean), axis.to_px(mean), 8, PLOT_PX)
        )
        parts.append(Markup('<g class="{}">{}</g>').format(kind, drawn))
    parts.append(_draw_axis_title("similarity (cosine)", axis, PLOT_PX))
    names = [
        ("right", f"relevant pairs, mean {histogram.positive_mean:.2f}"),
        ("wrong", f"irrelevant pairs, mean {histogram.negative_mean:.2f}"),
    ]
    label = f"Histogram of similarities: {names[0][1]}; {names[1][1]}."
    return _wrap(parts, NARROW_PX, PLOT_PX, label, names if has_legend else ())


def shown_bins(histograms: Sequence[SimilarityHistogram]) -> slice:
    """Find the range of bins that holds all pairs of all histograms, with one empty bin around it."""
    used = np.flatnonzero(sum((one.positive + one.negative for one in histograms), np.zeros(1)))
    num_bins = len(histograms[0].positive)
    return slice(max(0, int(used[0]) - 1), min(num_bins, int(used[-1]) + 2))


def draw_lines(
    lines: Sequence[Line], x_title: str, y_title: str, *, is_log_x: bool = False, has_legend: bool = False
) -> Markup:
    """Draw lines over each other, with dots where there are few.

    Args:
        lines: Lines with at least one point in all.
        x_title: Title of the axis below.
        y_title: What the values are, for readers who do not see the drawing.
        is_log_x: Whether the axis below is logarithmic; all positions are then positive.
        has_legend: Whether the drawing names the lines; a page of HTML does so beside it.
    """
    xs = sorted({x for line in lines for x in line.xs})
    spans = [(y - bar, y + bar) for line in lines for y, bar in zip(line.ys, _bars(line), strict=True)]
    y_ticks = round_ticks(min(low for low, _ in spans), max(high for _, high in spans))
    x_axis = Axis(low=xs[0], high=xs[-1], low_px=LEFT_PX, high_px=NARROW_PX - RIGHT_PX, is_log=is_log_x)
    y_axis = Axis(low=y_ticks[0], high=y_ticks[-1], low_px=PLOT_PX, high_px=10)
    x_ticks: Sequence[float] = xs
    if is_log_x:
        x_ticks = list(_powers_of_two(xs[0], xs[-1]))
    elif len(xs) > MAX_TICKS:
        x_ticks = [tick for tick in round_ticks(xs[0], xs[-1]) if xs[0] <= tick <= xs[-1]]
    parts = [_draw_x_tick(x_axis.to_px(tick), PLOT_PX, f"{tick:g}") for tick in x_ticks]
    for tick in y_ticks:
        y = y_axis.to_px(tick)
        parts.append(_LINE.format("grid", LEFT_PX, NARROW_PX - RIGHT_PX, y, y))
        parts.append(_TEXT.format("tick", LEFT_PX - 8, y + 4, "end", f"{tick:g}"))
    parts += [_draw_line(number, line, x_axis, y_axis) for number, line in enumerate(lines)]
    parts.append(_draw_axis_title(x_title, x_axis, PLOT_PX))
    names = [(f"s{number % NUM_COLORS}", line.name) for number, line in enumerate(lines)]
    return _wrap(parts, NARROW_PX, PLOT_PX, f"{y_title} against {x_title}", names if has_legend else ())


def draw_critical_difference(
    names: Sequence[str], average_ranks: Sequence[float], difference: float, cliques: Sequence[tuple[int, int]]
) -> Markup:
    """Draw a critical-difference diagram: methods at their average ranks, bars over those that are not told apart.

    Args:
        names: Names of two or more methods, the best first.
        average_ranks: Their average ranks, rising.
        difference: The critical difference, drawn as a bar at the top.
        cliques: First and last position of each group that a bar joins.

    Source: Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets" (JMLR 7, 2006), figure 1.
    """
    label_px, axis_y, line_px, clique_px = 166.0, 44.0, 18.0, 8.0
    axis = Axis(low=1, high=len(names), low_px=label_px, high_px=WIDE_PX - label_px)
    parts = [_LINE.format("axis", axis.low_px, axis.high_px, axis_y, axis_y)]
    for tick in range(1, len(names) + 1):
        parts.append(_LINE.format("axis", axis.to_px(tick), axis.to_px(tick), axis_y - 5, axis_y))
        parts.append(_TEXT.format("tick", axis.to_px(tick), axis_y - 10, "middle", tick))
    bar_end = axis.low_px + difference * (axis.to_px(2) - axis.low_px)
    parts.append(_LINE.format("clique", axis.low_px, min(bar_end, WIDE_PX), 8, 8))
    parts.append(_TEXT.format("tick", axis.low_px - 8, 12, "end", f"critical difference {difference:.2f}"))
    for number, (first, last) in enumerate(cliques):
        y = axis_y + (number + 1) * clique_px
        left, right = axis.to_px(average_ranks[first]) - 3, axis.to_px(average_ranks[last]) + 3
        parts.append(_LINE.format("clique", left, right, y, y))
    top = axis_y + (len(cliques) + 1) * clique_px + line_px / 2
    num_left = (len(names) + 1) // 2
    for number, (name, rank) in enumerate(zip(names, average_ranks, strict=True)):
        is_left = number < num_left
        y = top + line_px * (number if is_left else len(names) - 1 - number)
        x, end = axis.to_px(rank), label_px - 6 if is_left else WIDE_PX - label_px + 6
        elbow = Markup('<polyline class="elbow" points="{}"/>').format(_join_points((x, x, end), (axis_y, y, y)))
        text = f"{_clip(name)} {rank:.2f}" if is_left else f"{rank:.2f} {_clip(name)}"
        label = _TEXT.format("label", end - 4 if is_left else end + 4, y + 4, "end" if is_left else "start", text)
        parts.append(Markup("<g><title>{}: {:.2f}</title>{}{}</g>").format(name, rank, elbow, label))
    about = "Average ranks of the methods; a bar joins those that are not told apart. The table has the same figures."
    return _wrap(parts, WIDE_PX, top + line_px * (num_left - 1) - PLOT_BOTTOM_PX + 12, about)


def _clip(name: str) -> str:
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def to_svg_file(chart: Markup) -> str:
    """Return a chart as the text of an SVG file, with the style sheet in it."""
    styles = resources.files("vitrieve.evaluation").joinpath("templates", "chart.css").read_text(encoding="utf-8")
    start, rest = str(chart).split(">", 1)  # a Markup would escape what is put in
    start = start.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return f"{start}><style>{styles}svg {{ background: var(--card); }}</style>{rest}\n"


def round_ticks(low: float, high: float) -> list[float]:
    """Choose round ticks around some values.

    >>> round_ticks(81.2, 84.4)
    [81.0, 82.0, 83.0, 84.0, 85.0]
    >>> round_ticks(0.0, 100.00000001)[-1]
    100.0
    """
    span = max(high - low, 1e-3 * max(1.0, abs(high)))
    power = 10.0 ** math.floor(math.log10(span / NUM_TICKS))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * NUM_TICKS >= span)
    # What is a rounding beyond a tick is on it.
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def _powers_of_two(low: float, high: float) -> list[float]:
    return [2.0**power for power in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]


def _draw_line(number: int, line: Line, x_axis: Axis, y_axis: Axis) -> Markup:
    xs, ys = [x_axis.to_px(x) for x in line.xs], [y_axis.to_px(y) for y in line.ys]
    marks = Markup("")
    if len(xs) <= MAX_DOTS:
        for x, y, value, bar in zip(xs, ys, line.ys, _bars(line), strict=True):
            marks += _LINE.format("interval", x, x, y_axis.to_px(value - bar), y_axis.to_px(value + bar))
            marks += _DOT.format(x, y, 4)
    curve = Markup('<polyline class="curve" points="{}"/>').format(_join_points(xs, ys))
    return _draw_series(number, line.name, curve + marks)


def _bars(line: Line) -> Sequence[float]:
    return line.deviations or [0.0] * len(line.ys)


def _draw_series(number: int, title: str, drawn: Markup) -> Markup:
    return Markup('<g class="s{}"><title>{}</title>{}</g>').format(number % NUM_COLORS, title, drawn)


def _join_points(xs: Iterable[float], ys: Iterable[float]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))


def _draw_x_tick(x: float, height: float, text: str) -> Markup:
    return _LINE.format("grid", x, x, 0, height) + _TEXT.format("tick", x, height + 15, "middle", text)


def _draw_axis_title(text: str, axis: Axis, height: float) -> Markup:
    return _TEXT.format("tick", (axis.low_px + axis.high_px) / 2, height + 31, "middle", text)


def _wrap(
    parts: Sequence[Markup], width: float, height: float, label: str, legend: Sequence[tuple[str, str]] = ()
) -> Markup:
    """Join the parts of a chart; ``legend`` has the class and the name of each line of its legend."""
    drawn = list(parts)
    for number, (css_class, name) in enumerate(legend, start=1):
        y = height + PLOT_BOTTOM_PX + number * LEGEND_PX - 6
        drawn.append(Markup('<g class="{}">{}</g>').format(css_class, _DOT.format(LEFT_PX, y - 4, 4)))
        drawn.append(_TEXT.format("label", LEFT_PX + 12, y, "start", name))
    bottom = height + PLOT_BOTTOM_PX + len(legend) * LEGEND_PX + (4 if legend else 0)
    return Markup(
        '<svg class="chart" style="max-width:{:.0f}px" viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg>'
    ).format(width * MAX_ZOOM, width, bottom, label, Markup("").join(drawn))
