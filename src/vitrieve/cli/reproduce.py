"""``vitrieve reproduce``: the paper's tables and figures, published figures beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vitrieve.cli.arguments import Switch
from vitrieve.cli.console import print_json, print_message, print_result
from vitrieve.config import Device
from vitrieve.errors import ConfigError, DataError

if TYPE_CHECKING:
    from vitrieve.reproduce.commands import Cell
    from vitrieve.reproduce.outcome import RowOutcome
    from vitrieve.reproduce.rows import Plan, Row, Source
    from vitrieve.reproduce.run import Failure


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train and measure what a table or figure of the paper shows, and write one page about it.

    Rows whose data sets are missing are left out. Finished rows are reused, also those of other tables; the same
    command goes on with what was interrupted. Exit status 1 when a row failed.
    """

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """table2 to table9, or figure2 to figure5."""
    data_root: Path | None = None
    """Folder that holds the data sets; None: the one that VITRIEVE_DATA names, then ../shared/datasets."""
    rows: tuple[str, ...] = ()
    """Rows to run, by the keys that --plan lists (or by the method, for all its data sets); none given: all."""
    num_seeds: int = 1
    """Trainings of each row, with seeds 0, 1, …"""
    out: Path = Path("reproduction")
    """Folder of pages and results; shared by all tables."""
    stand_in: str | None = None
    """Run the same grid on data that is here, with a short budget: grocery, emoji, or any source as NAME:PATH."""
    num_steps: int | None = None
    """Steps of each training; None: the recipes' own, with --stand-in 60."""
    device: Device = "auto"
    """Where to compute; auto: on a GPU where torch sees one."""
    plan: Switch = False
    """Only list the rows, their published figures and commands, and what is missing."""
    json: Switch = False
    """Print one JSON object."""


def run(arguments: Arguments) -> int:
    """List the plan, or run it and write its page."""
    from vitrieve.reproduce.rows import choose_rows, find_sources

    for name, value in (("--num-seeds", arguments.num_seeds), ("--num-steps", arguments.num_steps)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; expected 1 or more.")
    plan = _build_plan(arguments)
    rows = choose_rows(plan, arguments.rows)
    sources = find_sources(plan.sources, arguments.data_root)
    if arguments.plan:
        return _show_plan(arguments, replace(plan, rows=rows), sources)
    return _run_plan(arguments, plan, rows, sources)


def _build_plan(arguments: Arguments) -> Plan:
    from vitrieve.reproduce.plan import plan_table
    from vitrieve.reproduce.stand_in import NUM_STEPS, StandIn, check_source, plan_stand_in

    if arguments.stand_in is None:
        plan = plan_table(arguments.name)
        if arguments.num_steps is None:
            return plan
        return replace(plan, rows=tuple(_set_num_steps(row, arguments.num_steps) for row in plan.rows))
    check_source(arguments.stand_in)
    return plan_stand_in(arguments.name, StandIn(source=arguments.stand_in, num_steps=arguments.num_steps or NUM_STEPS))


def _set_num_steps(row: Row, num_steps: int) -> Row:
    if row.training is None:
        return row
    return replace(row, training=replace(row.training, flags=(*row.training.flags, "--num-steps", f"{num_steps}")))


def _run_plan(arguments: Arguments, plan: Plan, rows: Sequence[Row], sources: Mapping[str, Source]) -> int:
    """Run the rows that can run; the page shows all of the plan, with what earlier calls have found."""
    from vitrieve.reproduce.page import write_pages
    from vitrieve.reproduce.rows import is_runnable, list_missing
    from vitrieve.reproduce.run import build_cells, run_cells

    missing = list_missing(rows, sources)
    runnable = [row for row in rows if is_runnable(row, sources)]
    if not runnable:
        print_message(*missing)
        raise DataError(f"no row of {plan.stem} can run, as data is missing; the lines above say which.")
    for text in missing:
        print_message(text)
    failures = run_cells(
        build_cells(runnable, sources, arguments.out, arguments.num_seeds), print_message, arguments.device
    )
    outcomes = _read_outcomes(arguments, plan, sources, failures)
    html, markdown, _ = write_pages(plan, outcomes, arguments.out)
    if arguments.json:
        from vitrieve.reproduce.outcome import outcomes_to_json

        print_json({"page": str(html), **outcomes_to_json(plan, outcomes)})
    else:
        print_result(*format_outcomes(outcomes).split("\n"), f"page: {html}, {markdown}")
    for failure in failures:
        print_message(f"failed: {failure.key}, seed {failure.seed}: {failure.reason}", f"  {failure.command}")
    return 1 if failures else 0


def _read_outcomes(
    arguments: Arguments, plan: Plan, sources: Mapping[str, Source], failures: Sequence[Failure]
) -> tuple[RowOutcome, ...]:
    from vitrieve.reproduce.outcome import read_outcomes
    from vitrieve.reproduce.rows import list_missing
    from vitrieve.reproduce.run import build_cells, read_cells

    cells = build_cells(plan.rows, sources, arguments.out, arguments.num_seeds)
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


def _show_plan(arguments: Arguments, plan: Plan, sources: Mapping[str, Source]) -> int:
    from vitrieve.reproduce.rows import list_missing
    from vitrieve.reproduce.run import build_cells, is_finished

    cells = build_cells(plan.rows, sources, arguments.out, arguments.num_seeds)
    missing = list_missing(plan.rows, sources)
    first = [cell for cell in cells if cell.seed == 0]
    num_finished = sum(map(is_finished, cells))
    if arguments.json:
        print_json(
            {
                "name": plan.name,
                "stand_in": plan.stand_in,
                "title": plan.title,
                "notes": list(plan.notes),
                "num_cells": len(cells),
                "num_finished": num_finished,
                "missing": list(missing),
                "rows": [_row_to_json(cell, sources) for cell in first],
            }
        )
        return 0
    lines = [f"{plan.stem}: {plan.title}", f"in the paper: {plan.claim}", *plan.notes, ""]
    for cell in first:
        lines += [f"{cell.row.key}: {cell.row.label} ({cell.row.group})", *_describe_figures(plan, cell.row)]
        lines += [f"  missing: {text}" for text in list_missing([cell.row], sources)]
        lines += [f"  {step.text}" for step in cell.steps]
    lines += ["", f"{len(plan.rows)} rows, {len(cells)} with seeds, {num_finished} of them finished"]
    print_result(*lines, *missing)
    return 0


def _describe_figures(plan: Plan, row: Row) -> list[str]:
    if not row.published:
        return []
    figures = ", ".join(f"{measure.title} {value:.1f}" for measure, value in row.published.items())
    return [f"  published: {figures}" if plan.stand_in is None else f"  published for its like: {figures}"]


def _row_to_json(cell: Cell, sources: Mapping[str, Source]) -> dict[str, Any]:
    from vitrieve.reproduce.rows import list_missing

    row = cell.row
    return {
        "key": row.key,
        "label": row.label,
        "group": row.group,
        "published": {measure.title: value for measure, value in row.published.items()},
        "commands": [step.text for step in cell.steps],
        "missing": list(list_missing([row], sources)),
    }
