"""Charts of the report as inline SVG.

Colors come from the page's style sheet (classes ``s0`` to ``s3`` for encoders, ``right`` and ``wrong`` for
pairs), so that one drawing serves light and dark. Every function returns escaped markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from vitrieve.evaluation.analysis import SimilarityHistogram

NUM_COLORS = 4
WIDE_PX = 560
NARROW_PX = 400
"""Three of these stand side by side on a page, with their letters at full size."""
MAX_ZOOM = 1.15
"""A chart grows with its card up to here; beyond, its letters would outgrow the text."""
PLOT_BOTTOM_PX = 34
"""Room below a plot for tick labels and the axis title."""


@dataclass(frozen=True, kw_only=True)
class IntervalSeries:
    """One encoder's dots: name, values in [0, 1], and their intervals, one for each row of the chart."""

    name: str
    values: Sequence[float]
    intervals: Sequence[tuple[float, float]]


def draw_intervals(row_names: Sequence[str], series: Sequence[IntervalSeries]) -> Markup:
    """Draw values with their intervals on one axis from 0 to 100 %, a row a metric, a dot an encoder.

    Args:
        row_names: Names of the metrics.
        series: Encoders, each with as many values as there are rows.
    """
    left, right, line_px, gap_px = 92, 16, 14, 36
    row_px = max(line_px * len(series) + gap_px, 56)
    height = row_px * len(row_names)
    scale = (WIDE_PX - left - right) / 100
    parts = [_draw_x_tick(left + tick * scale, height, f"{tick}") for tick in (0, 20, 40, 60, 80, 100)]
    for row, row_name in enumerate(row_names):
        middle = row * row_px + row_px / 2
        parts.append(
            Markup('<text class="label" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                left - 12, middle + 4, row_name
            )
        )
        for number, encoder in enumerate(series):
            y = middle + (number - (len(series) - 1) / 2) * line_px
            value, ends = encoder.values[row] * 100, [end * 100 for end in encoder.intervals[row]]
            parts.append(
                Markup(
                    '<g class="s{}"><title>{}, {}: {:.1f} % ({:.1f} to {:.1f})</title>'
                    '<line class="interval" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
                    '<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="4.5"/></g>'
                ).format(
                    number % NUM_COLORS,
                    encoder.name,
                    row_name,
                    value,
                    *ends,
                    *(left + end * scale for end in ends),
                    y,
                    y,
                    left + value * scale,
                    y,
                )
            )
    parts.append(_draw_axis_title("percent, with 95 % intervals", left, WIDE_PX - right, height))
    return _wrap(
        parts, WIDE_PX, height, "Every metric of every encoder with its interval; the table has the same figures."
    )


def draw_histogram(histogram: SimilarityHistogram, bins: slice) -> Markup:
    """Draw the similarity histograms of relevant and irrelevant pairs over each other, the highest bin at the top.

    Args:
        histogram: What to draw.
        bins: The bins to show, the same in charts that are compared.
    """
    left, right, height = 16, 16, 230
    y_max = max(histogram.positive.max(), histogram.negative.max())
    edges = histogram.edges[bins.start : bins.stop + 1]
    scale = (NARROW_PX - left - right) / (edges[-1] - edges[0])
    xs = left + (edges - edges[0]) * scale
    first, last = np.ceil(edges[0] * 5) / 5, np.floor(edges[-1] * 5) / 5
    ticks = np.arange(round(first * 5), round(last * 5) + 1) / 5
    parts = [_draw_x_tick(left + (tick - edges[0]) * scale, height, f"{tick:.1f}") for tick in ticks]
    for kind, shares, mean in (
        ("wrong", histogram.negative[bins], histogram.negative_mean),
        ("right", histogram.positive[bins], histogram.positive_mean),
    ):
        ys = height - shares / y_max * (height - 14)
        outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in _steps(xs, ys))
        x_mean = left + (mean - edges[0]) * scale
        parts.append(
            Markup(
                '<g class="{}"><polygon class="area" points="{:.1f},{} {} {:.1f},{}"/>'
                '<polyline class="outline" points="{}"/>'
                '<line class="mean" x1="{:.1f}" x2="{:.1f}" y1="8" y2="{}"/></g>'
            ).format(kind, xs[0], height, outline, xs[-1], height, outline, x_mean, x_mean, height)
        )
    parts.append(_draw_axis_title("similarity (cosine)", left, NARROW_PX - right, height))
    label = (
        f"Histogram of similarities. Relevant pairs: mean {histogram.positive_mean:.2f}; "
        f"irrelevant pairs: mean {histogram.negative_mean:.2f}."
    )
    return _wrap(parts, NARROW_PX, height, label)


def shown_bins(histograms: Sequence[SimilarityHistogram]) -> slice:
    """Find the range of bins that holds all pairs of all histograms, with one empty bin around it."""
    used = np.flatnonzero(sum((one.positive + one.negative for one in histograms), np.zeros(1)))
    num_bins = len(histograms[0].positive)
    return slice(max(0, int(used[0]) - 1), min(num_bins, int(used[-1]) + 2))


def draw_energy(names: Sequence[str], energies: Sequence[npt.NDArray[np.float64]]) -> Markup:
    """Draw the cumulative energy of principal components, one line an encoder, the components on a logarithmic axis.

    Args:
        names: Of the encoders.
        energies: For each encoder its ``(E,)`` rising shares in [0, 1].
    """
    left, right, height = 44, 16, 230
    num_most = max(2, *map(len, energies))
    scale = (NARROW_PX - left - right) / np.log(num_most)
    plot_px = height - 10
    parts = [_draw_x_tick(left + np.log(tick) * scale, height, f"{tick}") for tick in _log_ticks(num_most)]
    parts += [
        _draw_y_tick(left, NARROW_PX - right, height - tick / 100 * plot_px, f"{tick}") for tick in (25, 50, 75, 100)
    ]
    for number, (name, energy) in enumerate(zip(names, energies, strict=True)):
        xs = left + np.log(np.arange(1, len(energy) + 1)) * scale
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, height - energy * plot_px, strict=True))
        parts.append(
            Markup('<g class="s{}"><title>{}</title><polyline class="curve" points="{}"/></g>').format(
                number % NUM_COLORS, name, points
            )
        )
    parts.append(_draw_axis_title("principal components", left, NARROW_PX - right, height))
    return _wrap(parts, NARROW_PX, height, "Share of the variance in the first principal components, in percent.")


def _steps(xs: npt.NDArray[np.float64], ys: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    """Turn bin edges ``(B + 1,)`` and heights ``(B,)`` into the corners of a step line."""
    return [(float(x), float(y)) for x, y in zip(np.repeat(xs, 2)[1:-1], np.repeat(ys, 2), strict=True)]


def _log_ticks(num_most: int) -> list[int]:
    """Choose ticks of a logarithmic axis from 1: 1, 2, 5, 10, 20, … and the end where it has room.

    >>> _log_ticks(384)
    [1, 2, 5, 10, 20, 50, 100, 200, 384]
    """
    ticks = [step * 10**power for power in range(6) for step in (1, 2, 5)]
    return [tick for tick in ticks if tick * 1.4 <= num_most] + [num_most]


def _draw_x_tick(x: float, height: float, text: str) -> Markup:
    return Markup(
        '<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="0" y2="{:.1f}"/>'
        '<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>'
    ).format(x, x, height, x, height + 15, text)


def _draw_y_tick(left: float, right: float, y: float, text: str) -> Markup:
    return Markup(
        '<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
        '<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>'
    ).format(left, right, y, y, left - 8, y + 4, text)


def _draw_axis_title(text: str, left: float, right: float, height: float) -> Markup:
    return Markup('<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
        (left + right) / 2, height + 31, text
    )


def _wrap(parts: Sequence[Markup], width: float, height: float, label: str) -> Markup:
    return Markup(
        '<svg class="chart" style="max-width:{}px" viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg>'
    ).format(width * MAX_ZOOM, width, height + PLOT_BOTTOM_PX, label, Markup("").join(parts))
