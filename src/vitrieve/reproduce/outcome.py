"""From results to what the page says: means over seeds, differences from the published figures, lines of charts.

All figures are percentages.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitrieve.reproduce.published import Measure
from vitrieve.reproduce.rows import Plan, Row, list_measures
from vitrieve.reproduce.run import CellResult, Failure

Found = Mapping[str, Sequence[CellResult]]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of ours beside the published one.

    Attributes:
        measure: What it is of.
        values: One for each seed; empty where nothing was run.
        published: The paper's; None where it has none.
        change: Mean over the seeds that both have of the difference from the reference row; None without one.
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
        """Ours minus the published one; None where one of them is missing."""
        return None if self.mean is None or self.published is None else self.mean - self.published


@dataclass(frozen=True, kw_only=True)
class RowOutcome:
    """A row of the page.

    Attributes:
        row: What was asked for.
        figures: In the order of the measures of its group.
        parallel: In a stand-in, the paper's figures of the row that it stands for, and their changes from those of the
            reference row (None without one).
        results: Of each seed.
        commands: Of the first seed.
        missing: What keeps it from running; empty when it can run.
        failures: Of its seeds.
    """

    row: Row
    figures: tuple[Figure, ...]
    parallel: tuple[tuple[Measure, float, float | None], ...]
    results: tuple[CellResult, ...]
    commands: tuple[str, ...]
    missing: tuple[str, ...]
    failures: tuple[Failure, ...]


def read_outcomes(
    plan: Plan,
    found: Found,
    failures: Sequence[Failure],
    commands: Mapping[str, Sequence[str]],
    missing: Mapping[str, Sequence[str]],
) -> tuple[RowOutcome, ...]:
    """Put rows, figures and commands together.

    Args:
        plan: What was planned.
        found: Key of a row -> its results.
        failures: What failed.
        commands: Key of a row -> its commands with the first seed.
        missing: Key of a row -> what keeps it from running.
    """
    rows = {row.key: row for row in plan.rows}
    outcomes = []
    for group in plan.groups.values():
        measures = list_measures(plan, group)
        for row in group:
            outcomes.append(
                RowOutcome(
                    row=row,
                    figures=tuple(_read_figure(plan, row, measure, found) for measure in measures),
                    parallel=_read_parallel(plan, row, rows.get(row.reference)),
                    results=tuple(found.get(row.key, ())),
                    commands=tuple(commands.get(row.key, ())),
                    missing=tuple(missing.get(row.key, ())),
                    failures=tuple(failure for failure in failures if failure.key == row.key),
                )
            )
    return tuple(outcomes)


def _read_figure(plan: Plan, row: Row, measure: Measure, found: Found) -> Figure:
    values = _read_values(found.get(row.key, ()), measure)
    change = _mean_change(values, _read_values(found.get(row.reference, ()), measure))
    published = row.published.get(measure) if plan.stand_in is None else None
    return Figure(measure=measure, values=tuple(values.values()), published=published, change=change)


def _mean_change(values: Mapping[int, float], before: Mapping[int, float]) -> float | None:
    """Average the differences of the seeds that both have; a reference with one seed (not trained) stands for all."""
    if len(before) == 1:
        before = dict.fromkeys(values, next(iter(before.values())))
    changes = [value - before[seed] for seed, value in values.items() if seed in before]
    return statistics.mean(changes) if changes else None


def _read_values(results: Sequence[CellResult], measure: Measure) -> dict[int, float]:
    """Read a measure of each seed, in percent."""
    values = {}
    for result in results:
        for entry in result.results.get(measure.dataset, ()):
            if measure.protocol in (None, entry["protocol"]) and measure.metric in entry:
                values[result.seed] = 100 * float(entry[measure.metric])
                break
    return values


def _read_parallel(plan: Plan, row: Row, reference: Row | None) -> tuple[tuple[Measure, float, float | None], ...]:
    if plan.stand_in is None:
        return ()
    before = reference.published if reference is not None else {}
    return tuple(
        (measure, value, value - before[measure] if measure in before else None)
        for measure, value in row.published.items()
    )


def outcomes_to_json(plan: Plan, outcomes: Sequence[RowOutcome]) -> dict[str, Any]:
    """Convert to plain JSON values, with everything that the page is made of."""
    return {
        "name": plan.name,
        "title": plan.title,
        "claim": plan.claim,
        "stand_in": plan.stand_in,
        "notes": list(plan.notes),
        "rows": [_row_to_json(outcome) for outcome in outcomes],
    }


def _row_to_json(outcome: RowOutcome) -> dict[str, Any]:
    row = outcome.row
    return {
        "key": row.key,
        "label": row.label,
        "group": row.group,
        "figures": [
            {
                "measure": figure.measure.title,
                "published": figure.published,
                "values": list(figure.values),
                "mean": figure.mean,
                "deviation": figure.deviation,
                "difference": figure.difference,
                "change_from_reference": figure.change,
            }
            for figure in outcome.figures
        ],
        "reference": row.reference or None,
        "paper": [
            {"measure": measure.title, "published": value, "change_from_reference": change}
            for measure, value, change in outcome.parallel
        ],
        "commands": list(outcome.commands),
        "missing": list(outcome.missing),
        "failures": [{"seed": one.seed, "command": one.command, "reason": one.reason} for one in outcome.failures],
        "nuclear_norms": [one.gradients["nuclear_norm"] for one in outcome.results if one.gradients],
        "energies": [one.analysis["energy"] for one in outcome.results if one.analysis],
        "seconds": [dict(one.seconds) for one in outcome.results],
    }
