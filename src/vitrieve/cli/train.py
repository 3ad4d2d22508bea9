"""``vitrieve train`` reads the flags and prints the result; ``training/run.py`` trains."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vitrieve.cli.arguments import Exclude, Json, Names, Overwrite, Resume, parse_arguments
from vitrieve.cli.console import print_failure, print_json, print_result
from vitrieve.config import Config
from vitrieve.errors import ConfigError
from vitrieve.model.artifact import ENCODER_SUBFOLDER
from vitrieve.recipes import RECIPE_GROUPS, RECIPES, Recipe, find_recipe

if TYPE_CHECKING:
    from vitrieve.training.run import TrainedRun


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Fine-tune an encoder; a stopped run goes on with --resume."""

    data: Names = ()
    """A source: grocery:DIR, emoji, sop:DIR, folder:DIR, table:FILE, … (vitrieve data describe); or several, whose
    images train one encoder together."""
    out: Path
    """Folder of the run."""
    protocol: Names = ()
    """One of the source's protocols; of several sources one for each, in order. None given: the first of each."""
    classes: Literal["train", "all", "none"] = "train"
    """train: the classes that each source keeps for training. all: every class; the report is then left out. none: no
    label of a training image is used, and two views of an image are its class; a folder needs no folders of classes."""
    pairs: Path | None = None
    """Corrections of vitrieve feedback --out: positives, negatives and labels; of one source."""
    exclude: Exclude = ()
    loss: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A loss that another package adds (vitrieve doctor lists them), with its weight and settings where wanted:
    --loss NAME:weight=0.5,power=3. The recipe's losses are left out, but for those whose weight is given."""
    report: bool = True
    """End with a report before and after on the test classes."""
    overwrite: Overwrite = False
    resume: Resume = False
    json: Json = False
    logger: Names = ()
    """Who records the run: tensorboard, wandb, mlflow, trackio, or none; several after one flag. None given:
    tensorboard."""
    config: Annotated[Config, tyro.conf.arg(name="")] = Config()


def main(argv: Sequence[str], prog: str) -> int:
    """Read the recipe's name, then the flags with the recipe's values as defaults; train."""
    if not argv or argv[0] in ("--help", "-h"):
        text = _describe_recipes(prog)
        if argv:
            print_result(*text.split("\n"))
            return 0
        print_failure(*text.splitlines())
        raise ConfigError(
            "no recipe was named; the list above has them. For your own images: "
            f"{prog} small --data folder:DIR --out RUN."
        )
    if argv[0].startswith("-"):
        raise ConfigError(
            f"the recipe comes first: {prog} RECIPE --data SOURCE --out RUN. Valid: {', '.join(RECIPES)}."
        )
    config = find_recipe(argv[0])()
    if any(word == "--loss" or word.startswith("--loss=") for word in argv):
        config = replace(config, objective=config.objective.without_terms())
    default = Arguments(out=tyro.MISSING, config=config)
    return run(argv[0], parse_arguments(Arguments, argv[1:], f"{prog} {argv[0]}", default))


def run(recipe: str, arguments: Arguments) -> int:
    """Train, and print what came of it."""
    from vitrieve.data.several import read_sources
    from vitrieve.objective.own import read_plugin_loss
    from vitrieve.settings import list_overrides
    from vitrieve.training.ranks import joining_ranks
    from vitrieve.training.run import train

    base = find_recipe(recipe)()
    overrides: dict[str, Any] = {}
    if arguments.loss:
        base = replace(base, objective=base.objective.without_terms())
        overrides["objective"] = [read_plugin_loss(text) for text in arguments.loss]
    overrides |= list_overrides(arguments.config, base)
    with joining_ranks() as ranks:
        with ranks.first_alone():
            datasets = read_sources(
                tuple(chain(*arguments.data)),
                protocols=tuple(chain(*arguments.protocol)),
                exclude=arguments.exclude,
                classes=arguments.classes,
            )
            if arguments.pairs is not None:
                from vitrieve.feedback.learning import apply_pairs
                from vitrieve.feedback.pairs import read_pairs

                if len(datasets) > 1:
                    raise ConfigError("--pairs name the images of one source; give one to --data.")
                datasets = (apply_pairs(datasets[0], read_pairs(arguments.pairs)),)
        trained = train(
            datasets,
            recipe,
            arguments.out,
            resume=arguments.resume,
            overwrite=arguments.overwrite,
            report=arguments.report,
            logger=tuple(chain(*arguments.logger)) or "tensorboard",
            **overrides,
        )
    return _print(trained, arguments) if ranks.is_first else 0


def _print(trained: TrainedRun, arguments: Arguments) -> int:
    if arguments.json:
        results = [one.to_json() for one in trained.results]
        print_json({"run": str(trained.folder), **trained.summary, "results": results})
        return 0
    num_sources = len(trained.summary["sources"])
    for one in trained.results:
        figures = "  ".join(f"{name} {100 * value:.1f}" for name, value in one.metrics.items())
        name = f"{one.dataset}, {one.encoder}" if num_sources > 1 else one.encoder
        print_result(f"{name}: {figures}")
    print_result(f"encoder: {trained.folder / ENCODER_SUBFOLDER}")
    if trained.report is not None:
        print_result(f"report: {trained.report}")
    return 0


def _first_line(recipe: Recipe) -> str:
    return (inspect.getdoc(recipe) or "").splitlines()[0]


def _describe_recipes(prog: str) -> str:
    lines = [f"usage: {prog} RECIPE --data SOURCE --out RUN [FLAGS]"]
    width = max(map(len, RECIPES))
    for title, recipes in RECIPE_GROUPS.items():
        lines += ["", f"recipes, {title}:"]
        lines += [f"  {name:<{width}}  {_first_line(recipe)}" for name, recipe in recipes.items()]
    return "\n".join([*lines, "", f"{prog} RECIPE --help tells the flags, with the recipe's values."])
