"""``vitrieve runs`` reads the flags and prints the table; ``training/runs.py`` reads the runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vitrieve.cli.arguments import Json
from vitrieve.cli.console import print_json, print_message, print_result
from vitrieve.writing import check_files


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """List the training runs below a folder, finished or not, with the settings that differ and their figures."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder of runs."""
    html: Path | None = None
    """Write the table and the held-out curves as a page, in one file."""
    json: Json = False


def run(arguments: Arguments) -> int:
    """List the runs."""
    from vitrieve.training.runs import list_runs

    check_files(arguments.html, is_folder_made=True)
    listed = list_runs(arguments.folder)
    if arguments.html is not None:
        listed.write_page(arguments.html)
        print_message(f"page: {arguments.html}")
    if arguments.json:
        print_json(listed.to_json())
    elif listed.runs or listed.damaged:
        print_result(*str(listed).split("\n"))
    else:
        print_message(f"{arguments.folder} has no runs")
    return 0
