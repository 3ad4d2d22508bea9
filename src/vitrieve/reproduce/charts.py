"""The figures of the page as inline SVG: lines, and the report's histograms.

Colors come from the style sheet (classes ``s0`` to ``s7``), so that one drawing serves light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

NUM_COLORS = 8
WIDTH_PX = 520
HEIGHT_PX = 280
LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 46, 14, 10, 42
MAX_ZOOM = 1.15
NUM_TICKS = 5
MAX_DOTS = 16
"""A line of more points than this is a curve, without a dot a point."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart.

    Attributes:
        name: For the legend.
        xs: Rising.
        ys: As many.
        deviations: Half the length of a bar at each point; empty: no bars.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    deviations: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis: its title, its ends, its ticks, and whether it is logarithmic."""

    title: str
    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Place a value on the axis: 0 at the low end, 1 at the high one."""
        low, high, value = (math.log(number) if self.is_log else number for number in (self.low, self.high, value))
        return (value - low) / (high - low) if high > low else 0.5


def draw_lines(lines: Sequence[Line], x_title: str, y_title: str, *, is_log_x: bool = False) -> Markup:
    """Draw lines over each other, with a dot a point where there are few.

    Args:
        lines: At least one point in all; those without any are left out.
        x_title: Of the axis below.
        y_title: Of the axis at the left.
        is_log_x: Whether the axis below is logarithmic; all x are then positive.
    """
    xs = [x for line in lines for x in line.xs]
    lows = [y - d for line in lines for y, d in _with_deviations(line)]
    highs = [y + d for line in lines for y, d in _with_deviations(line)]
    x_axis = _x_axis(x_title, xs, is_log_x)
    y_axis = _y_axis(y_title, min(lows), max(highs))
    parts = [_draw_x_tick(x_axis, tick) for tick in x_axis.ticks]
    parts += [_draw_y_tick(y_axis, tick) for tick in y_axis.ticks]
    parts += [_draw_line(line, number, x_axis, y_axis) for number, line in enumerate(lines)]
    middle = (LEFT_PX + WIDTH_PX - RIGHT_PX) / 2
    parts.append(
        Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            middle, HEIGHT_PX - 6, x_title
        )
    )
    return Markup(
        '<svg class="chart" style="max-width:{:.0f}px" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH_PX * MAX_ZOOM, WIDTH_PX, HEIGHT_PX, f"{y_title} against {x_title}", Markup("").join(parts))


def _with_deviations(line: Line) -> list[tuple[float, float]]:
    return list(zip(line.ys, line.deviations or [0.0] * len(line.ys), strict=True))


def _x_axis(title: str, xs: Sequence[float], is_log: bool) -> Axis:
    distinct = sorted(set(xs))
    if is_log:
        ticks = tuple(2.0**power for power in range(math.ceil(math.log2(distinct[0])), 20) if 2**power <= distinct[-1])
    else:
        ticks = tuple(distinct)
    return Axis(title=title, low=distinct[0], high=distinct[-1], ticks=ticks, is_log=is_log)


def _y_axis(title: str, low: float, high: float) -> Axis:
    """Choose round ends and ticks.

    >>> _y_axis("", 81.2, 84.4).ticks
    (81.0, 82.0, 83.0, 84.0, 85.0)
    """
    span = max(high - low, 1e-3 * max(1.0, abs(high)))
    power = 10.0 ** math.floor(math.log10(span / NUM_TICKS))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * NUM_TICKS >= span)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    ticks = tuple(round(number * step, 10) for number in range(first, last + 1))
    return Axis(title=title, low=ticks[0], high=ticks[-1], ticks=ticks)


def _x_px(axis: Axis, value: float) -> float:
    return LEFT_PX + axis.place(value) * (WIDTH_PX - LEFT_PX - RIGHT_PX)


def _y_px(axis: Axis, value: float) -> float:
    return HEIGHT_PX - BOTTOM_PX - axis.place(value) * (HEIGHT_PX - BOTTOM_PX - TOP_PX)


def _draw_x_tick(axis: Axis, value: float) -> Markup:
    x = _x_px(axis, value)
    return Markup(
        '<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>'
        '<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>'
    ).format(x, x, TOP_PX, HEIGHT_PX - BOTTOM_PX, x, HEIGHT_PX - BOTTOM_PX + 16, f"{value:g}")


def _draw_y_tick(axis: Axis, value: float) -> Markup:
    y = _y_px(axis, value)
    return Markup(
        '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
        '<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>'
    ).format(LEFT_PX, WIDTH_PX - RIGHT_PX, y, y, LEFT_PX - 8, y + 4, f"{value:g}")


def _draw_line(line: Line, number: int, x_axis: Axis, y_axis: Axis) -> Markup:
    places = [(_x_px(x_axis, x), _y_px(y_axis, y)) for x, y in zip(line.xs, line.ys, strict=True)]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks = Markup("")
    if len(places) <= MAX_DOTS:
        for (x, y), value, deviation in zip(places, line.ys, line.deviations or [0.0] * len(places), strict=True):
            ends = [_y_px(y_axis, value + sign * deviation) for sign in (-1, 1)]
            marks += Markup(
                '<line class="interval" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
                '<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}: {:.4g}</title></circle>'
            ).format(x, x, *ends, x, y, line.name, value)
    return Markup('<g class="s{}"><title>{}</title><polyline class="curve" points="{}"/>{}</g>').format(
        number % NUM_COLORS, line.name, points, marks
    )
