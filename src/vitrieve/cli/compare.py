"""``vitrieve compare`` reads the flags and prints the table; ``comparison/contest.py`` runs the contest."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated

import tyro

from vitrieve.cli.arguments import NEEDED_HINT, Json, Names, Overwrite, Resume
from vitrieve.cli.console import print_json, print_message, print_result
from vitrieve.comparison.methods import ContestSettings


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compare training methods on data sets, each with the same backbone, budget and number of trials.

    The frozen backbone is always a row, and so is a method that fails. One page and one JSON file are written as the
    contest goes on. Ctrl-C stops it, and --resume goes on in the middle of a training, or adds methods, data and seeds.
    """

    methods: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="METHOD", help_behavior_hint=NEEDED_HINT)
    ]
    """Recipes, with changed settings where wanted: small, small:koleo.weight=0.3,optimizer.learning_rate=1e-4."""
    data: Names
    """What to train and measure on: grocery:DIR, emoji, folder:DIR, …; several after one flag."""
    out: Path = Path("comparison")
    """Folder of the contest: comparison.html and comparison.json."""
    overwrite: Overwrite = False
    resume: Resume = False
    json: Json = False
    settings: Annotated[ContestSettings, tyro.conf.arg(name="")] = ContestSettings()


def run(arguments: Arguments) -> int:
    """Run the contest, and print what it found."""
    from vitrieve.comparison.contest import compare

    settings = {field.name: getattr(arguments.settings, field.name) for field in dataclasses.fields(ContestSettings)}
    comparison = compare(
        arguments.methods,
        tuple(chain(*arguments.data)),
        arguments.out,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        **settings,
    )
    if arguments.json:
        print_json({"page": str(comparison.page), **comparison.summary})
    else:
        print_result(*str(comparison).split("\n"))
        print_message(f"page: {comparison.page}")
    return 0
