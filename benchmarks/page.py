"""The page of the suite: bars for each task, curves for what grows, shares of the ceilings.

python benchmarks/page.py results/bench_DATE.json     draws the page again
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

from contest import RESULTS
from jinja2 import FileSystemLoader
from lines import Line, Ratio, find_ours
from markupsafe import Markup

from vitrieve.evaluation.charts import Line as Curve
from vitrieve.evaluation.charts import draw_lines
from vitrieve.evaluation.report import render_page

CEILINGS = "ceilings"
WITHOUT_OPTIONS = "xbm"
"""The variant that those with an option are compared with."""
OPTIONS = {
    WITHOUT_OPTIONS: "without any",
    "patch_dropout": "patch dropout 0.5",
    "half_frozen": "6 of 12 blocks frozen",
    "low_resolution_first": "lower resolution first",
    "embedded_twice": "embedded twice for a memory limit (same result, other roundings)",
}


@dataclass(frozen=True, kw_only=True)
class SideView:
    """A row of a task: its line, its bar from 0 to 1, how many times ours is better, and its share of the ceiling."""

    line: Line
    bar: float
    ratio: Ratio | None
    share: float | None


@dataclass(frozen=True, kw_only=True)
class TaskView:
    """A task with its sides."""

    name: str
    sides: tuple[SideView, ...]


@dataclass(frozen=True, kw_only=True)
class CurveView:
    """How something grows: its chart, and at each size each side that is compared with ours."""

    name: str
    names: tuple[str, ...]
    chart: Markup
    ratios: tuple[tuple[Line, Ratio], ...]


@dataclass(frozen=True, kw_only=True)
class SectionView:
    """A part of the suite: tasks with several sides, and those with one, which share a table."""

    name: str
    contests: tuple[TaskView, ...]
    figures: tuple[TaskView, ...]
    curves: tuple[CurveView, ...]


@dataclass(frozen=True, kw_only=True)
class EffectView:
    """What an option of training does to quality: percent, and points more or less than without it."""

    name: str
    recall_at_1: float
    map_at_r: float
    recall_gain: float
    map_gain: float
    seconds: float
    num_seeds: int


def write_page(machine: dict[str, Any], lines: Sequence[Line], path: Path, *, is_quick: bool) -> None:
    """Write one self-contained page."""
    text = render_page(
        "page.html.j2",
        FileSystemLoader(Path(__file__).parent),
        machine=machine,
        sections=view_sections(lines),
        effects=read_effects(path.parent),
        is_quick=is_quick,
        figure=format_figure,
        rounds=format_rounds,
    )
    path.write_text(text)


def read_effects(folder: Path) -> list[EffectView]:
    """Read what the options of training cost in quality, from the newest file about them."""
    files = sorted(folder.glob("options_*.jsonl")) or sorted(RESULTS.glob("options_*.jsonl"))
    if not files:
        return []
    lines = [json.loads(line) for line in files[-1].read_text().splitlines()]
    means = {}
    for variant in OPTIONS:
        of_variant = [line for line in lines if line["variant"] == variant]
        if of_variant:
            names = ("recall_at_1", "map_at_r", "seconds")
            means[variant] = (len(of_variant), *(mean(line[name] for line in of_variant) for name in names))
    _, plain_recall, plain_map, _ = means[WITHOUT_OPTIONS]
    return [
        EffectView(
            name=OPTIONS[variant],
            recall_at_1=100 * recall,
            map_at_r=100 * map_at_r,
            recall_gain=100 * (recall - plain_recall),
            map_gain=100 * (map_at_r - plain_map),
            seconds=seconds,
            num_seeds=num_seeds,
        )
        for variant, (num_seeds, recall, map_at_r, seconds) in means.items()
    ]


def format_figure(value: float) -> str:
    """Spell a figure with three digits that count.

    >>> [format_figure(value) for value in (0.01234, 5.678, 123.4, 12345.6)]
    ['0.0123', '5.68', '123', '12,346']
    """
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def format_rounds(num_rounds: int) -> str:
    """Say how many rounds a figure is the median of, where that was noted."""
    return "" if not num_rounds else f" ({num_rounds})"


def view_sections(lines: Sequence[Line]) -> list[SectionView]:
    """Arrange lines by section and task, in their order."""
    ceilings: dict[str, Line] = {}  # the fastest round of the fastest side: what the machine can do at most
    for line in lines:
        if line.section == CEILINGS and (line.task not in ceilings or line.high > ceilings[line.task].value):
            ceilings[line.task] = replace(line, value=line.high)
    views = []
    for section, of_section in groupby(lines, key=lambda line: line.section):
        tasks = [(name, list(sides)) for name, sides in groupby(of_section, key=lambda line: line.task)]
        curves = [view_curve(name, sides) for name, sides in tasks if is_curve(sides)]
        bars = [view_task(name, sides, ceilings) for name, sides in tasks if not is_curve(sides)]
        contests = tuple(task for task in bars if len(task.sides) > 1)
        figures = tuple(task for task in bars if len(task.sides) == 1)
        views.append(SectionView(name=section, contests=contests, figures=figures, curves=tuple(curves)))
    return views


def is_curve(sides: Sequence[Line]) -> bool:
    """Return whether a task was done at several sizes."""
    return len({line.size for line in sides}) > 1


def view_task(name: str, sides: Sequence[Line], ceilings: dict[str, Line]) -> TaskView:
    """Compare the sides of a task with ours, the first of them that is."""
    most = max(line.value for line in sides)
    views = []
    for line in sides:
        ceiling = ceilings.get(line.ceiling or "")
        views.append(
            SideView(
                line=line,
                bar=line.value / most,
                ratio=compare_with_ours(line, sides),
                share=None if ceiling is None else line.share_of(ceiling),
            )
        )
    return TaskView(name=name, sides=tuple(views))


def compare_with_ours(line: Line, sides: Sequence[Line]) -> Ratio | None:
    """Return how many times better ours is than a side; None for our first side, or where there is none of ours."""
    ours = find_ours(line, sides)
    return None if ours is None else ours.compare(line)


def view_curve(name: str, sides: Sequence[Line]) -> CurveView:
    """Draw a task against its size, both as powers of ten."""
    names = tuple(dict.fromkeys(line.side for line in sides))
    curves = []
    for side in names:
        points = sorted((line.size or 0.0, line.value) for line in sides if line.side == side)
        xs, ys = zip(*((round(math.log10(size), 2), math.log10(value)) for size, value in points), strict=True)
        curves.append(Curve(name=side, xs=xs, ys=ys))
    unit = sides[0].unit
    chart = draw_lines(curves, "size, powers of ten", f"{unit}, powers of ten")
    ratios = [(line, ratio) for line in sides if (ratio := compare_with_ours(line, sides)) is not None]
    return CurveView(name=name, names=names, chart=chart, ratios=tuple(ratios))


if __name__ == "__main__":
    source = Path(sys.argv[1])
    contents = json.loads(source.read_text())
    found = [Line(**one) for one in contents["lines"]]
    write_page(contents["machine"], found, source.with_suffix(".html"), is_quick=contents["is_quick"])
