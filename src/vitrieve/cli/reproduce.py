"""``vitrieve reproduce`` reads the flags and prints; ``reproduce/`` of the package plans and runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vitrieve.cli.arguments import MAY_BE_EMPTY, DeviceFlag, Json, Switch
from vitrieve.cli.console import print_failure, print_json, print_message, print_result
from vitrieve.errors import ConfigError, DataError
from vitrieve.writing import check_files

if TYPE_CHECKING:
    from vitrieve.reproduce.plans import Plan, TableRow
    from vitrieve.reproduce.run import Source


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train and measure what a table or figure of the paper shows, and write one page about it.

    Rows whose data sets are missing are left out. Finished rows are reused, also those of other tables; the same
    command goes on with what was interrupted. Exit status 1 when a row failed.
    """

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """table2 to table9, or figure2 to figure5."""
    data_root: Path | None = None
    """Folder that holds the data sets, such as ~/datasets; None: the one that VITRIEVE_DATA names."""
    rows: Annotated[tuple[str, ...], MAY_BE_EMPTY] = ()
    """Rows to run, by the keys that --plan lists (or by the method, for all its data sets); none given: all."""
    num_seeds: int = 1
    """Trainings of each row, with seeds 0, 1, …"""
    out: Path = Path("reproduction")
    """Folder of pages and results; shared by all tables."""
    stand_in: str | None = None
    """Run the same grid on data that is here, with a short budget: grocery, emoji, or any source as NAME:PATH."""
    num_steps: int | None = None
    """Steps of each training; None: the recipes' own, with --stand-in 60."""
    device: DeviceFlag = "auto"
    plan: Switch = False
    """Only list the rows, their published figures and commands, and what is missing."""
    json: Json = False


def run(arguments: Arguments) -> int:
    """List the plan, or run it and write its page."""
    from vitrieve.reproduce.page import collect_outcomes, format_page, plan_to_json
    from vitrieve.reproduce.plans import choose_rows
    from vitrieve.reproduce.run import find_sources
    from vitrieve.reproduce.stand_in import build_plan

    for name, value in (("--num-seeds", arguments.num_seeds), ("--num-steps", arguments.num_steps)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; expected 1 or more.")
    plan = build_plan(arguments.name, arguments.stand_in, arguments.num_steps)
    rows = choose_rows(plan, arguments.rows)
    sources = find_sources(plan.sources, arguments.data_root)
    if not arguments.plan:
        return _run_plan(arguments, plan, rows, sources)
    plan = replace(plan, rows=rows)
    if arguments.json:
        print_json(plan_to_json(plan, sources, arguments.out, arguments.num_seeds))
    else:
        print_result(*format_page(plan, collect_outcomes(plan, sources, (), arguments.out, arguments.num_seeds)))
    return 0


def _run_plan(arguments: Arguments, plan: Plan, rows: Sequence[TableRow], sources: Mapping[str, Source]) -> int:
    """Run the rows that can run; the page shows all of the plan, with what earlier calls have found."""
    from vitrieve.reproduce.page import collect_outcomes, format_tables, list_page_files, outcomes_to_json, write_page
    from vitrieve.reproduce.run import build_cells, list_missing, run_cells

    print_failure(*list_missing(rows, sources))
    runnable = [row for row in rows if not list_missing([row], sources)]
    if not runnable:
        raise DataError(f"no row of {plan.stem} can run, as data is missing; the lines above say which.")
    check_files(*list_page_files(plan, arguments.out), is_folder_made=True)
    cells = build_cells(runnable, sources, arguments.out, arguments.num_seeds)
    failures = run_cells(cells, print_message, arguments.device)
    outcomes = collect_outcomes(plan, sources, failures, arguments.out, arguments.num_seeds)
    page = write_page(plan, outcomes, arguments.out)
    if arguments.json:
        print_json({"page": str(page), **outcomes_to_json(plan, outcomes)})
    else:
        print_result(*format_tables(plan, outcomes), f"page: {page}")
    for failure in failures:
        print_failure(f"failed: {failure.key}, seed {failure.seed}: {failure.reason}", f"  {failure.command}")
    return 1 if failures else 0
