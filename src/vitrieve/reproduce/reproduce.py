"""Plans, their outcomes, and both as text and as JSON: what ``vitrieve reproduce`` is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrieve.reproduce.commands import Cell
from vitrieve.reproduce.outcome import RowOutcome, read_outcomes
from vitrieve.reproduce.plan import plan_table
from vitrieve.reproduce.rows import Plan, Row, Source, list_missing
from vitrieve.reproduce.run import Failure, build_cells, is_finished, read_cells
from vitrieve.reproduce.stand_in import NUM_STEPS, StandIn, check_source, plan_stand_in


def build_plan(name: str, stand_in: str | None, num_steps: int | None) -> Plan:
    """Build the plan of a table or figure: of the paper's data, or of a stand-in for it.

    Args:
        name: ``table2`` to ``table9``, or ``figure2`` to ``figure5``.
        stand_in: Source of data that is here; None: the paper's data sets.
        num_steps: Steps of each training; None: the recipes' own, of a stand-in few.
    """
    if stand_in is None:
        plan = plan_table(name)
        if num_steps is None:
            return plan
        return replace(plan, rows=tuple(_set_num_steps(row, num_steps) for row in plan.rows))
    check_source(stand_in)
    return plan_stand_in(name, StandIn(source=stand_in, num_steps=num_steps or NUM_STEPS))


def _set_num_steps(row: Row, num_steps: int) -> Row:
    if row.training is None:
        return row
    return replace(row, training=replace(row.training, flags=(*row.training.flags, "--num-steps", f"{num_steps}")))


def collect_outcomes(
    plan: Plan, sources: Mapping[str, Source], failures: Sequence[Failure], out: Path, num_seeds: int
) -> tuple[RowOutcome, ...]:
    """Collect what is known of every row of a plan: what this call and earlier ones have found, and what failed."""
    cells = build_cells(plan.rows, sources, out, num_seeds)
    commands = {cell.row.key: [step.text for step in cell.steps] for cell in reversed(cells)}
    missing = {row.key: list_missing([row], sources) for row in plan.rows}
    return read_outcomes(plan, read_cells(cells), failures, commands, missing)


def format_outcomes(outcomes: Sequence[RowOutcome]) -> str:
    """Lay the figures out as plain text, a line a row, in percent."""
    lines = []
    for outcome in outcomes:
        figures = []
        for figure in outcome.figures:
            if figure.mean is None:
                continue
            deviation = f" ± {figure.deviation:.1f}" if figure.deviation is not None else ""
            published = f" (published {figure.published:.1f})" if figure.published is not None else ""
            figures.append(f"{figure.measure.title} {figure.mean:.1f}{deviation}{published}")
        lines.append(f"{outcome.row.key}: {', '.join(figures) or ('failed' if outcome.failures else 'not run')}")
    return "\n".join(lines)


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
        "rows": [_row_to_json(cell, sources) for cell in cells if cell.seed == 0],
    }


def plan_to_lines(plan: Plan, sources: Mapping[str, Source], out: Path, num_seeds: int) -> list[str]:
    """Lay a plan out as plain text: each row with its published figures and its commands, and what is missing."""
    cells = build_cells(plan.rows, sources, out, num_seeds)
    lines = [f"{plan.stem}: {plan.title}", f"in the paper: {plan.claim}", *plan.notes, ""]
    for cell in cells:
        if cell.seed == 0:
            lines += [f"{cell.row.key}: {cell.row.label} ({cell.row.group})", *_describe_figures(plan, cell.row)]
            lines += [f"  missing: {text}" for text in list_missing([cell.row], sources)]
            lines += [f"  {step.text}" for step in cell.steps]
    num_finished = sum(map(is_finished, cells))
    lines += ["", f"{len(plan.rows)} rows, {len(cells)} with seeds, {num_finished} of them finished"]
    return [*lines, *list_missing(plan.rows, sources)]


def _describe_figures(plan: Plan, row: Row) -> list[str]:
    if not row.published:
        return []
    figures = ", ".join(f"{measure.title} {value:.1f}" for measure, value in row.published.items())
    return [f"  published: {figures}" if plan.stand_in is None else f"  published for its like: {figures}"]


def _row_to_json(cell: Cell, sources: Mapping[str, Source]) -> dict[str, Any]:
    row = cell.row
    return {
        "key": row.key,
        "label": row.label,
        "group": row.group,
        "published": {measure.title: value for measure, value in row.published.items()},
        "commands": [step.text for step in cell.steps],
        "missing": list(list_missing([row], sources)),
    }
