"""The page of a table or figure: one self-contained HTML file, the same as Markdown, and the figures as JSON.

This file turns outcomes into what the pages say; ``templates/reproduction.html.j2`` and ``.md.j2`` are the pages.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vitrieve import __version__
from vitrieve.artifacts import write_text_durably
from vitrieve.evaluation.charts import draw_histogram, shown_bins
from vitrieve.reproduce.analyze import read_histogram
from vitrieve.reproduce.charts import NUM_COLORS, Line, draw_lines
from vitrieve.reproduce.outcome import RowOutcome, outcomes_to_json
from vitrieve.reproduce.published import PAPER, REIMPLEMENTATION, REIMPLEMENTED, Measure
from vitrieve.reproduce.rows import Plan


@dataclass(frozen=True, kw_only=True)
class ChartView:
    """A chart with its title and the names of its lines; a histogram's two kinds of pairs have their own legend."""

    title: str
    chart: Markup
    names: tuple[str, ...] = ()
    means: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class GroupView:
    """The rows under one heading: their measures, and in a stand-in the measures of the paper's rows beside them."""

    title: str
    measures: tuple[Measure, ...]
    parallels: tuple[Measure, ...]
    rows: tuple[RowOutcome, ...]


def write_pages(plan: Plan, outcomes: Sequence[RowOutcome], out: Path) -> tuple[Path, Path, Path]:
    """Write ``STEM.html``, ``STEM.md`` and ``STEM.json``.

    Args:
        plan: What was planned.
        outcomes: Of its rows, also of those that were not run.
        out: Folder to write to; made when missing.

    Returns:
        The three files.
    """
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "plan": plan,
        "groups": group_outcomes(plan, outcomes),
        "charts": draw_charts(plan, outcomes),
        "num_colors": NUM_COLORS,
        "num_run": sum(bool(outcome.results) for outcome in outcomes),
        "num_rows": len(outcomes),
        "num_seeds": max((len(outcome.results) for outcome in outcomes), default=0),
        "failures": [failure for outcome in outcomes for failure in outcome.failures],
        "reimplemented": _list_reimplemented(plan),
        "paper": PAPER,
        "reimplementation": REIMPLEMENTATION,
        "version": __version__,
    }
    paths = tuple(out / f"{plan.stem}.{suffix}" for suffix in ("html", "md", "json"))
    # Folders are the user's: names are escaped in HTML; Markdown is for reading as text.
    write_text_durably(paths[0], _build_environment(is_html=True).get_template("reproduction.html.j2").render(content))
    write_text_durably(paths[1], _build_environment(is_html=False).get_template("reproduction.md.j2").render(content))
    text = json.dumps(outcomes_to_json(plan, outcomes), indent=2, ensure_ascii=False)
    write_text_durably(paths[2], text + "\n")
    return paths[0], paths[1], paths[2]


def _build_environment(*, is_html: bool) -> Environment:
    loader = ChoiceLoader([PackageLoader("vitrieve.reproduce"), PackageLoader("vitrieve.evaluation")])
    environment = Environment(
        loader=loader, autoescape=is_html, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["figure"] = format_figure
    environment.filters["points"] = format_points
    return environment


def format_figure(value: float | None) -> str:
    """Spell a percentage; a dash where there is none.

    >>> format_figure(83.04), format_figure(None)
    ('83.0', '–')
    """
    return "–" if value is None else f"{value:.1f}"  # noqa: RUF001


def format_points(value: float | None) -> str:
    """Spell a difference with its sign, zero without; empty where there is none.

    >>> format_points(1.26), format_points(-0.5), format_points(0.01), format_points(None)
    ('+1.3', '−0.5', '0.0', '')
    """
    if value is None:
        return ""
    text = f"{abs(value):.1f}"
    return text if text == "0.0" else f"{'+' if value > 0 else '−'}{text}"  # noqa: RUF001


def group_outcomes(plan: Plan, outcomes: Sequence[RowOutcome]) -> tuple[GroupView, ...]:
    """Put the rows under their headings."""
    groups: dict[str, list[RowOutcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.row.group, []).append(outcome)
    views = []
    for title, rows in groups.items():
        parallels = dict.fromkeys(measure for outcome in rows for measure, _, _ in outcome.parallel)
        measures = tuple(figure.measure for figure in rows[0].figures)
        views.append(GroupView(title=title, measures=measures, parallels=tuple(parallels), rows=tuple(rows)))
    return tuple(views)


def _list_reimplemented(plan: Plan) -> list[tuple[str, str]]:
    """List the figures of the public re-implementation for Table 3 as text."""
    if plan.name != "table3" or plan.stand_in is not None:
        return []
    return [
        (name, ", ".join(f"{measure.title} {value:.1f}" for measure, value in figures.items()))
        for name, figures in REIMPLEMENTED.items()
    ]


def draw_charts(plan: Plan, outcomes: Sequence[RowOutcome]) -> tuple[ChartView, ...]:
    """Draw the charts of a plan from what there is; none where nothing was run and nothing is published."""
    if plan.chart == "sweep":
        return tuple(chart for group in group_outcomes(plan, outcomes) for chart in _draw_sweeps(plan, group))
    if plan.chart == "energy":
        return _draw_energy(outcomes)
    if plan.chart == "histograms":
        return _draw_histograms(outcomes)
    if plan.chart == "gradients":
        return _draw_gradients(plan, outcomes)
    return ()


def _draw_sweeps(plan: Plan, group: GroupView) -> list[ChartView]:
    rows = [outcome for outcome in group.rows if outcome.row.x is not None]
    charts = []
    for place, measure in enumerate(group.measures):
        lines = _lines(
            rows,
            [outcome.figures[place].mean for outcome in rows],
            [outcome.figures[place].deviation or 0.0 for outcome in rows],
        )
        charts += _chart(f"{measure.title}, here", lines, plan, measure)
        if plan.stand_in is None:
            lines = _lines(rows, [outcome.figures[place].published for outcome in rows])
            charts += _chart(f"{measure.title}, published", lines, plan, measure)
    for measure in group.parallels:
        values = [outcome.row.published.get(measure) for outcome in rows]
        charts += _chart(f"{measure.title}, published in the paper", _lines(rows, values), plan, measure)
    return charts


def _lines(
    rows: Sequence[RowOutcome], values: Sequence[float | None], deviations: Sequence[float] | None = None
) -> list[Line]:
    """Collect a line for each series; rows without a value are left out of it."""
    points: dict[str, list[tuple[float, float, float]]] = {}
    for outcome, value, deviation in zip(rows, values, deviations or [0.0] * len(rows), strict=True):
        if value is not None and outcome.row.x is not None:
            points.setdefault(outcome.row.series, []).append((outcome.row.x, value, deviation))
    lines = []
    for name, found in points.items():
        xs, ys, bars = zip(*sorted(found), strict=True)
        lines.append(Line(name=name, xs=xs, ys=ys, deviations=bars))
    return lines


def _chart(title: str, lines: Sequence[Line], plan: Plan, measure: Measure) -> list[ChartView]:
    if not lines:
        return []
    chart = draw_lines(lines, plan.x_name, f"{measure.metric_title}, %", is_log_x=plan.is_log_x)
    return [ChartView(title=f"{title}, %", chart=chart, names=tuple(line.name for line in lines))]


def _draw_energy(outcomes: Sequence[RowOutcome]) -> tuple[ChartView, ...]:
    lines = []
    for outcome in outcomes:
        energies = [result.analysis["energy"] for result in outcome.results if result.analysis]
        if energies:
            mean = 100 * np.mean(energies, axis=0)
            lines.append(Line(name=outcome.row.series, xs=range(1, len(mean) + 1), ys=mean.tolist()))
    if not lines:
        return ()
    chart = draw_lines(lines, "principal components", "energy, %", is_log_x=True)
    title = "Energy in the first principal components, %"
    return (ChartView(title=title, chart=chart, names=tuple(line.name for line in lines)),)


def _draw_histograms(outcomes: Sequence[RowOutcome]) -> tuple[ChartView, ...]:
    found = [
        (outcome.row.series, read_histogram(dict(outcome.results[0].analysis)))
        for outcome in outcomes
        if outcome.results and outcome.results[0].analysis
    ]
    if not found:
        return ()
    bins = shown_bins([histogram for _, histogram in found])
    return tuple(
        ChartView(
            title=name,
            chart=draw_histogram(histogram, bins),
            means=(histogram.positive_mean, histogram.negative_mean),
        )
        for name, histogram in found
    )


def _draw_gradients(plan: Plan, outcomes: Sequence[RowOutcome]) -> tuple[ChartView, ...]:
    norms = [[one.gradients["nuclear_norm"] for one in outcome.results if one.gradients] for outcome in outcomes]
    means = [statistics.mean(values) if values else None for values in norms]
    deviations = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in norms]
    lines = _lines(outcomes, means, deviations)
    if not lines:
        return ()
    chart = draw_lines(lines, plan.x_name, "nuclear norm")
    title = "Nuclear norm of the covariance of the gradient's directions"
    return (ChartView(title=title, chart=chart, names=tuple(line.name for line in lines)),)
