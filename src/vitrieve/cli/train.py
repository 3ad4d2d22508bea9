"""``vitrieve train``: reads the flags and prints the result; ``training/run.py`` trains. Next: ``evaluate.py``."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vitrieve.cli.arguments import Exclude, Switch, parse_arguments
from vitrieve.cli.console import print_json, print_message, print_result
from vitrieve.config import Config
from vitrieve.errors import ConfigError
from vitrieve.model.artefact import ENCODER_SUBFOLDER
from vitrieve.recipes import RECIPE_GROUPS, RECIPES, Recipe, find_recipe

if TYPE_CHECKING:
    from vitrieve.training.run import RunResult


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Fine-tune an encoder; a stopped run goes on with --resume."""

    data: str
    """A source: grocery:DIR, emoji, sop:DIR, folder:DIR, manifest:FILE, … (vitrieve data describe)."""
    out: Path
    """Folder of the run."""
    protocol: str | None = None
    """One of the source's protocols; by default its first."""
    exclude: Exclude = ()
    """Leave out of the folder, like a line of .vitrieveignore: --exclude drafts/ --exclude '*_small.jpg'."""
    report: bool = True
    """End with a report before and after on the test classes."""
    overwrite: Switch = False
    """Replace what --out holds."""
    resume: Switch = False
    """Go on with an unfinished --out."""
    json: Switch = False
    """Print one JSON object."""
    config: Annotated[Config, tyro.conf.arg(name="")] = Config()


def main(argv: Sequence[str], prog: str) -> int:
    """Read the recipe's name, then the flags with the recipe's values as defaults; train."""
    if not argv or argv[0] in ("--help", "-h"):
        text = _describe_recipes(prog)
        if argv:
            print_result(*text.split("\n"))
            return 0
        print_message(*text.splitlines())
        raise ConfigError("no recipe was named; the list above has them.")
    if argv[0].startswith("-"):
        raise ConfigError(
            f"the recipe comes first: {prog} RECIPE --data SOURCE --out RUN. Valid: {', '.join(RECIPES)}."
        )
    config = find_recipe(argv[0])()
    default = Arguments(data=tyro.MISSING, out=tyro.MISSING, config=config)
    return run(argv[0], parse_arguments(Arguments, argv[1:], f"{prog} {argv[0]}", default))


def run(recipe: str, arguments: Arguments) -> int:
    """Train, and print what came of it."""
    from vitrieve.training.run import TrainingRun, run_training

    result = run_training(
        TrainingRun(
            recipe=recipe,
            data=arguments.data,
            out=arguments.out,
            config=arguments.config,
            protocol=arguments.protocol,
            exclude=arguments.exclude,
            has_report=arguments.report,
            is_overwrite=arguments.overwrite,
            is_resume=arguments.resume,
            say=print_message,
        )
    )
    _print_result(arguments, result)
    return 0


def _print_result(arguments: Arguments, result: RunResult) -> None:
    if arguments.json:
        results = [one.to_json() for one in result.results]
        print_json({"run": str(arguments.out), **result.summary, "results": results})
        return
    from vitrieve.training.run import REPORT_FOLDER

    for one in result.results:
        figures = "  ".join(f"{name} {100 * value:.1f}" for name, value in one.metrics.items())
        print_result(f"{one.encoder}: {figures}")
    print_result(f"encoder: {arguments.out / ENCODER_SUBFOLDER}")
    if result.results:
        print_result(f"report: {arguments.out / REPORT_FOLDER / 'report.html'}")


def _first_line(recipe: Recipe) -> str:
    return (inspect.getdoc(recipe) or "").splitlines()[0]


def _describe_recipes(prog: str) -> str:
    lines = [f"usage: {prog} RECIPE --data SOURCE --out RUN [FLAGS]"]
    width = max(map(len, RECIPES))
    for title, recipes in RECIPE_GROUPS.items():
        lines += ["", f"recipes, {title}:"]
        lines += [f"  {name:<{width}}  {_first_line(recipe)}" for name, recipe in recipes.items()]
    return "\n".join([*lines, "", f"{prog} RECIPE --help tells the flags, with the recipe's values."])
