"""From results to the page of a table or figure: Markdown with its charts as SVG files beside it, and JSON.

The page compares means over seeds with the published percentages. The terminal shows the same text.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from vitrieve.evaluation.charts import Line, draw_histogram, draw_lines, shown_bins, to_svg_file
from vitrieve.evaluation.report import format_points
from vitrieve.quoting import escape_text
from vitrieve.reproduce.analyze import read_histogram
from vitrieve.reproduce.plans import Plan, TableRow
from vitrieve.reproduce.published import PAPER, REIMPLEMENTATION, REIMPLEMENTED, Measure
from vitrieve.reproduce.run import CellResult, Failure, Source, build_cells, is_finished, list_missing, read_cells
from vitrieve.writing import write_text_durably

CODE = "    "
"""Indentation of a block of code in Markdown."""
Found = Mapping[str, Sequence[CellResult]]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A measure of a row beside the published one, in percent.

    Attributes:
        measure: The measure.
        values: One value for each seed; empty where nothing was run.
        published: Value in the paper; None where it has none.
        change: Mean, over the seeds that both have, of the difference from the reference row; None without one.
    """

    measure: Measure
    values: tuple[float, ...]
    published: float | None = None
    change: float | None = None

    @property
    def mean(self) -> float | None:
        """Mean over the seeds; None where nothing was run."""
        return statistics.mean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds; None below two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Our mean minus the published value; None where one of them is missing."""
        return None if self.mean is None or self.published is None else self.mean - self.published


@dataclass(frozen=True, kw_only=True)
class RowOutcome:
    """A row of the page.

    Attributes:
        row: The planned row.
        comparisons: Comparisons in the order of the measures of the group.
        parallel: In a stand-in, the published values of the row that it stands for, and their changes from those of
            the reference row (None without one).
        results: Results of each seed.
        commands: Commands of the first seed.
        missing: Data sets that keep the row from running, as messages.
        failures: Failures of its seeds.
    """

    row: TableRow
    comparisons: tuple[Comparison, ...]
    parallel: Mapping[Measure, tuple[float, float | None]]
    results: tuple[CellResult, ...]
    commands: tuple[str, ...]
    missing: tuple[str, ...]
    failures: tuple[Failure, ...]


def collect_outcomes(
    plan: Plan, sources: Mapping[str, Source], failures: Sequence[Failure], out: Path, num_seeds: int
) -> tuple[RowOutcome, ...]:
    """Collect all that is known of every row of a plan: results of this call and of earlier ones, and failures."""
    cells = build_cells(plan.rows, sources, out, num_seeds)
    commands = {cell.row.key: [step.text for step in cell.steps] for cell in reversed(cells)}
    missing = {row.key: list_missing([row], sources) for row in plan.rows}
    return read_outcomes(plan, read_cells(cells), failures, commands, missing)


def read_outcomes(
    plan: Plan,
    found: Found,
    failures: Sequence[Failure],
    commands: Mapping[str, Sequence[str]],
    missing: Mapping[str, Sequence[str]],
) -> tuple[RowOutcome, ...]:
    """Put rows, results and commands together, group by group.

    Args:
        plan: The plan.
        found: Key of a row -> its results.
        failures: Failures of all rows.
        commands: Key of a row -> its commands with the first seed.
        missing: Key of a row -> messages about its missing data sets.
    """
    references = {row.key: row.published for row in plan.rows}
    outcomes = []
    for group in plan.groups.values():
        measures = plan.shown or tuple(dict.fromkeys(measure for row in group for measure in row.published))
        for row in group:
            before = references.get(row.reference, {})
            parallel = {
                measure: (value, value - before[measure] if measure in before else None)
                for measure, value in row.published.items()
                if plan.stand_in is not None
            }
            outcomes.append(
                RowOutcome(
                    row=row,
                    comparisons=tuple(_compare(plan, row, measure, found) for measure in measures),
                    parallel=parallel,
                    results=tuple(found.get(row.key, ())),
                    commands=tuple(commands.get(row.key, ())),
                    missing=tuple(missing.get(row.key, ())),
                    failures=tuple(failure for failure in failures if failure.key == row.key),
                )
            )
    return tuple(outcomes)


def _compare(plan: Plan, row: TableRow, measure: Measure, found: Found) -> Comparison:
    values = _read_values(found.get(row.key, ()), measure)
    before = _read_values(found.get(row.reference, ()), measure)
    is_frozen = any(one.key == row.reference and one.training is None for one in plan.rows)
    if is_frozen and before:  # it has one seed, which stands for all
        before = dict.fromkeys(values, next(iter(before.values())))
    changes = [value - before[seed] for seed, value in values.items() if seed in before]
    return Comparison(
        measure=measure,
        values=tuple(values.values()),
        published=row.published.get(measure) if plan.stand_in is None else None,
        change=statistics.mean(changes) if changes else None,
    )


def _read_values(results: Sequence[CellResult], measure: Measure) -> dict[int, float]:
    """Read a measure of each seed, in percent."""
    values = {}
    for result in results:
        for entry in result.results.get(measure.dataset, ()):
            if measure.protocol in (None, entry["protocol"]) and measure.metric in entry:
                values[result.seed] = 100 * float(entry[measure.metric])
                break
    return values


def plan_to_json(plan: Plan, sources: Mapping[str, Source], out: Path, num_seeds: int) -> dict[str, Any]:
    """Convert a plan with its commands, and what is missing for it, to plain JSON values."""
    cells = build_cells(plan.rows, sources, out, num_seeds)
    return {
        "name": plan.name,
        "stand_in": plan.stand_in,
        "title": plan.title,
        "notes": list(plan.notes),
        "num_cells": len(cells),
        "num_finished": sum(map(is_finished, cells)),
        "missing": list(list_missing(plan.rows, sources)),
        "rows": [
            {
                "key": cell.row.key,
                "label": cell.row.label,
                "group": cell.row.group,
                "published": {measure.title: value for measure, value in cell.row.published.items()},
                "commands": [step.text for step in cell.steps],
                "missing": list(list_missing([cell.row], sources)),
            }
            for cell in cells
            if cell.seed == 0
        ],
    }


def outcomes_to_json(plan: Plan, outcomes: Sequence[RowOutcome]) -> dict[str, Any]:
    """Convert to plain JSON values, with everything that the page is made of."""
    return {
        "name": plan.name,
        "title": plan.title,
        "claim": plan.claim,
        "stand_in": plan.stand_in,
        "notes": list(plan.notes),
        "rows": [_outcome_to_json(outcome) for outcome in outcomes],
    }


def _outcome_to_json(outcome: RowOutcome) -> dict[str, Any]:
    row = outcome.row
    return {
        "key": row.key,
        "label": row.label,
        "group": row.group,
        "figures": [
            {
                "measure": one.measure.title,
                "published": one.published,
                "values": list(one.values),
                "mean": one.mean,
                "deviation": one.deviation,
                "difference": one.difference,
                "change_from_reference": one.change,
            }
            for one in outcome.comparisons
        ],
        "reference": row.reference or None,
        "paper": [
            {"measure": measure.title, "published": value, "change_from_reference": change}
            for measure, (value, change) in outcome.parallel.items()
        ],
        "commands": list(outcome.commands),
        "missing": list(outcome.missing),
        "failures": [{"seed": one.seed, "command": one.command, "reason": one.reason} for one in outcome.failures],
        "nuclear_norms": [one.gradients["nuclear_norm"] for one in outcome.results if one.gradients],
        "energies": [one.analysis["energy"] for one in outcome.results if one.analysis],
        "seconds": [dict(one.seconds) for one in outcome.results],
    }


def list_page_files(plan: Plan, out: Path) -> tuple[Path, Path]:
    """Tell where ``write_page`` writes the page and its figures."""
    return out / f"{plan.stem}.md", out / f"{plan.stem}.json"


def write_page(plan: Plan, outcomes: Sequence[RowOutcome], out: Path) -> Path:
    """Write ``STEM.md``, its charts ``STEM.1.svg``, …, and ``STEM.json``.

    Args:
        plan: The plan.
        outcomes: Outcomes of its rows, also of those that were not run.
        out: Folder to write to; made when missing.

    Returns:
        The Markdown file.
    """
    out.mkdir(parents=True, exist_ok=True)
    pictures = []
    for number, (title, chart) in enumerate(draw_charts(plan, outcomes), start=1):
        name = f"{plan.stem}.{number}.svg"
        write_text_durably(out / name, to_svg_file(chart))
        pictures += [f"![{_escape(title)}](<{name}>)", ""]
    page, figures = list_page_files(plan, out)
    text = json.dumps(outcomes_to_json(plan, outcomes), indent=2, ensure_ascii=False)
    write_text_durably(figures, text + "\n")
    parts = [*_begin_page(plan, outcomes), *pictures, *format_tables(plan, outcomes), *_end_page(plan, outcomes)]
    write_text_durably(page, "\n".join(parts) + "\n")
    return page


def format_page(plan: Plan, outcomes: Sequence[RowOutcome]) -> list[str]:
    """Return the lines of the page without its charts."""
    return [*_begin_page(plan, outcomes), *format_tables(plan, outcomes), *_end_page(plan, outcomes)]


def _begin_page(plan: Plan, outcomes: Sequence[RowOutcome]) -> Iterator[str]:
    for text in (f"# {plan.stem}: {plan.title}", f"In the paper: {plan.claim}", *plan.notes):
        yield from (_escape(text), "")
    num_run = sum(bool(outcome.results) for outcome in outcomes)
    is_repeated = any(len(outcome.results) > 1 for outcome in outcomes)
    spread = "mean ± standard deviation over seeds" if is_repeated else "one seed"
    cells = "published / ours (difference)" if plan.stand_in is None else "ours (change from the reference row)"
    yield from (f"{num_run} of {len(outcomes)} rows run; percentages, {spread}. A cell: {cells}.", "")
    for failure in (failure for outcome in outcomes for failure in outcome.failures):
        yield from (f"**{failure.key}, seed {failure.seed}, failed:** {_escape(failure.reason)}", "")
        yield from (CODE + escape_text(failure.command), "")


def format_tables(plan: Plan, outcomes: Sequence[RowOutcome]) -> Iterator[str]:
    """Yield the lines of a table for each group of rows."""
    for title, rows in _group(outcomes).items():
        parallels = _list_parallels(rows)
        header = ["row", *(one.measure.title for one in rows[0].comparisons)]
        table = [[*header, *(f"paper: {measure.title}" for measure in parallels)]]
        for outcome in rows:
            ours = [_format_comparison(plan, one) for one in outcome.comparisons]
            paper = [_format_value(*outcome.parallel.get(measure, (None, None))) for measure in parallels]
            table.append([_name_row(plan, outcome), *ours, *paper])
        table = [[_escape(cell) for cell in cells] for cells in table]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        table.insert(1, ["-" * width for width in widths])
        yield from (f"## {_escape(title)}", "")
        for cells in table:
            yield f"| {' | '.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))} |"
        yield ""


def _name_row(plan: Plan, outcome: RowOutcome) -> str:
    state = "" if outcome.results else " (failed)" if outcome.failures else " (not run)"
    reference = f", against {outcome.row.reference}" if plan.stand_in is not None and outcome.row.reference else ""
    return f"{outcome.row.label}{reference}{state}"


def _end_page(plan: Plan, outcomes: Sequence[RowOutcome]) -> Iterator[str]:
    for title, rows in _group(outcomes).items():
        yield from (f"## Commands: {_escape(title)}", "")
        for outcome in rows:
            yield from (_escape(" ".join([f"{outcome.row.key}:", *outcome.missing])), "")
            yield from (*(CODE + escape_text(command) for command in outcome.commands), "")
    if plan.name == "table3" and plan.stand_in is None:
        texts = [
            f"{name}: {', '.join(f'{measure.title} {value:.1f}' for measure, value in values.items())}"
            for name, values in REIMPLEMENTED.items()
        ]
        yield from (f"Beside the paper, {REIMPLEMENTATION}: {'; '.join(texts)}.", "")
    yield f"Published percentages: {PAPER}."


def _escape(text: str) -> str:
    """Spell text so that it stays on its line and in its cell, and is no markup."""
    return escape_text(text).replace("|", "\\|").replace("<", "&lt;")


def _group(outcomes: Sequence[RowOutcome]) -> dict[str, list[RowOutcome]]:
    groups: dict[str, list[RowOutcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.row.group, []).append(outcome)
    return groups


def _list_parallels(rows: Sequence[RowOutcome]) -> list[Measure]:
    return list(dict.fromkeys(measure for outcome in rows for measure in outcome.parallel))


def _format_comparison(plan: Plan, one: Comparison) -> str:
    change = one.change if one.difference is None else one.difference
    ours = _format_value(one.mean, change, one.deviation)
    return ours if plan.stand_in is not None else f"{_format_value(one.published)} / {ours}"


def _format_value(value: float | None, change: float | None = None, deviation: float | None = None) -> str:
    """Spell a percentage with its deviation and a change; a dash where there is none.

    >>> _format_value(83.04, -1.26, 0.5), _format_value(7.0, 0.01), _format_value(None)
    ('83.0 ± 0.5 (−1.3)', '7.0 (0.0)', '–')
    """
    if value is None:
        return "\N{EN DASH}"
    text = f"{value:.1f}" if deviation is None else f"{value:.1f} ± {deviation:.1f}"
    return text if change is None else f"{text} ({format_points(change)})"


def draw_charts(plan: Plan, outcomes: Sequence[RowOutcome]) -> list[tuple[str, Markup]]:
    """Draw the charts of a plan from what there is: titles with drawings; none where there is nothing to draw."""
    if plan.chart == "sweep":
        return [chart for rows in _group(outcomes).values() for chart in _draw_sweeps(plan, rows)]
    if plan.chart == "energy":
        energies = [
            (outcome.row.series, 100 * np.mean([one.analysis["energy"] for one in outcome.results], axis=0))
            for outcome in outcomes
            if outcome.results
        ]
        lines = [Line(name=name, xs=range(1, len(mean) + 1), ys=mean.tolist()) for name, mean in energies]
        return _draw("Energy in the first principal components, %", lines, "principal components", is_log_x=True)
    if plan.chart == "gradients":
        norms = [[one.gradients["nuclear_norm"] for one in outcome.results if one.gradients] for outcome in outcomes]
        means = [statistics.mean(values) if values else None for values in norms]
        deviations = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in norms]
        title = "Nuclear norm of the covariance of the gradient's directions"
        return _draw(title, _lines(outcomes, means, deviations), plan.x_name)
    return _draw_histograms(outcomes) if plan.chart == "histograms" else []


def _draw_sweeps(plan: Plan, rows: Sequence[RowOutcome]) -> list[tuple[str, Markup]]:
    charts = []
    for number, measure in enumerate(one.measure for one in rows[0].comparisons):
        comparisons = [outcome.comparisons[number] for outcome in rows]
        ours = _lines(rows, [one.mean for one in comparisons], [one.deviation or 0.0 for one in comparisons])
        charts += _draw(f"{measure.title}, here, %", ours, plan.x_name, is_log_x=plan.is_log_x)
        published = _lines(rows, [one.published for one in comparisons])
        charts += _draw(f"{measure.title}, published, %", published, plan.x_name, is_log_x=plan.is_log_x)
    for measure in _list_parallels(rows):
        values = [outcome.parallel[measure][0] if measure in outcome.parallel else None for outcome in rows]
        charts += _draw(f"{measure.title}, published in the paper, %", _lines(rows, values), plan.x_name)
    return charts


def _lines(
    rows: Sequence[RowOutcome], values: Sequence[float | None], deviations: Sequence[float] | None = None
) -> list[Line]:
    """Collect a line for each series; rows without a value or a position are left out of it."""
    points: dict[str, list[tuple[float, float, float]]] = {}
    for outcome, value, deviation in zip(rows, values, deviations or [0.0] * len(rows), strict=True):
        if value is not None and outcome.row.x is not None:
            points.setdefault(outcome.row.series, []).append((outcome.row.x, value, deviation))
    lines = []
    for name, found in points.items():
        xs, ys, bars = zip(*sorted(found), strict=True)
        lines.append(Line(name=name, xs=xs, ys=ys, deviations=bars))
    return lines


def _draw(title: str, lines: Sequence[Line], x_name: str, *, is_log_x: bool = False) -> list[tuple[str, Markup]]:
    return [(title, draw_lines(lines, x_name, title, is_log_x=is_log_x, has_legend=True))] if lines else []


def _draw_histograms(outcomes: Sequence[RowOutcome]) -> list[tuple[str, Markup]]:
    found = [(one.row.series, read_histogram(one.results[0].analysis)) for one in outcomes if one.results]
    bins = shown_bins([histogram for _, histogram in found]) if found else slice(0)
    return [
        (f"Similarities of pairs, {name}", draw_histogram(histogram, bins, has_legend=True))
        for name, histogram in found
    ]
