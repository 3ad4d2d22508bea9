"""``vitrieve train``: joins data, training, measurement and report. Next: ``evaluate.py``."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vitrieve.artifacts import prepare_folder, write_manifest
from vitrieve.cli.arguments import Exclude, Switch, parse_arguments
from vitrieve.cli.console import print_json, print_message, print_result
from vitrieve.config import Config
from vitrieve.config_check import check_config, find_ineffective
from vitrieve.config_json import config_to_json
from vitrieve.data.readable import find_readable
from vitrieve.data.records import Dataset, ImageRecord, require_trainable
from vitrieve.data.sources import read_source
from vitrieve.errors import ConfigError, DataError
from vitrieve.recipes import RECIPE_GROUPS, RECIPES, Recipe, find_recipe
from vitrieve.runtime.precision import describe_emulation
from vitrieve.train.holdout import TrainingSplit, split_for_training

if TYPE_CHECKING:
    from vitrieve.evaluate.run import EvaluationResult
    from vitrieve.model.encoder import ImageEncoder
    from vitrieve.train.loop import Evaluate, TrainingResult

ENCODER_NAME = "encoder"
REPORT_FOLDER = "report"


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
    """Train, keep the encoder, report."""
    from vitrieve.model.export import export_folder
    from vitrieve.train.device import resolve_device
    from vitrieve.train.loop import train

    start = time.monotonic()
    config = arguments.config
    check_config(config)
    dataset = read_source(arguments.data, protocol=arguments.protocol, exclude=arguments.exclude)
    require_trainable(dataset)
    split = split_for_training(dataset, is_holdout=config.train.holdout)
    emulation = describe_emulation(config.train.precision, resolve_device(config.train.device).type)
    for note in (*dataset.notes, split.note, emulation, *find_ineffective(config, find_recipe(recipe)())):
        if note:
            print_message(note)
    encoder = _build_encoder(config, len(split.fit))  # before the folder is made: weights may be out of reach
    config = replace(config, model=replace(config.model, pooling=encoder.spec.pooling))  # by default the model's own
    arguments = replace(arguments, config=config)
    prepare_folder(arguments.out, is_overwrite=arguments.overwrite, is_resume=arguments.resume)
    records = _settle_images(arguments, recipe, dataset, split)
    evaluate = build_evaluate(split.judge, config) if split.judge is not None else None
    result = train(config, encoder, records, arguments.out, evaluate, dataset.positive_pairs)
    seconds = time.monotonic() - start
    print_message(_describe_kept(result))
    if config.model.embedding_dim is not None:
        result = _reduce(result, records, dataset.name, config)
    fingerprint = _save_encoder(arguments, recipe, dataset, result)
    results = _report(arguments, recipe, dataset, result) if arguments.report else []
    if results:
        _save_encoder(arguments, recipe, dataset, result, results)
    print_message("exporting to ONNX")
    export_folder(arguments.out / ENCODER_NAME)
    summary = {
        "recipe": recipe,
        "data": arguments.data,
        "protocol": dataset.protocol,
        "config": config_to_json(config),
        **_summarize(records, result),
        "seconds": round(seconds, 1),
        "encoder_fingerprint": fingerprint,
    }
    write_manifest(arguments.out, "run", summary)
    _print_result(arguments, summary, results)
    return 0


def _build_encoder(config: Config, num_images: int) -> ImageEncoder:
    from vitrieve.model.cost import count_cost, format_cost
    from vitrieve.model.encoder import build_encoder
    from vitrieve.train.reduce import require_reducible
    from vitrieve.train.resolution import allow_low_resolution

    encoder = build_encoder(config.model, seed=config.train.seed)
    if config.model.weights is not None and encoder.spec.weights_note:
        print_message(encoder.spec.weights_note)
    allow_low_resolution(encoder, config)
    print_message(f"{config.model.backbone}: {format_cost(count_cost(config.model.backbone, config.model.image_size))}")
    if config.model.embedding_dim is not None:
        require_reducible(config.model.embedding_dim, encoder.spec.embedding_dim, num_images)
    return encoder


def _settle_images(
    arguments: Arguments, recipe: str, dataset: Dataset, split: TrainingSplit
) -> tuple[ImageRecord, ...]:
    """Sort out unreadable training images; refuse to resume with other settings or images."""
    from vitrieve.train.settings import describe_run, settle

    config = arguments.config
    readable = find_readable(split.fit, max_bad_fraction=config.train.max_bad_fraction, show_progress=True)
    for image_id, reason in readable.failures:
        print_message(f"left out: {image_id}: {reason}")
    judging = split.judge.records if split.judge is not None else ()
    used = (*readable.records, *judging)
    settings = describe_run(recipe, config, dataset.protocol, used, dataset.positive_pairs)
    warning = settle(arguments.out, settings)
    if warning:
        print_message(warning)
    return readable.records


def _summarize(records: Sequence[ImageRecord], result: TrainingResult) -> dict[str, Any]:
    return {
        "num_images": len(records),
        "num_classes": len({record.label for record in records}),
        "num_steps": result.num_steps,
        "kept_step": result.kept_step,
        "holdout_map_at_r": {str(step): value for step, value in result.selection.values.items()},
    }


def build_evaluate(judge: Dataset, config: Config) -> Evaluate:
    """Build the measurement on held-out classes that the training loop calls."""
    from vitrieve.embed.collection import EmbedSettings
    from vitrieve.evaluate.run import evaluate_encoder
    from vitrieve.runtime.encoder import wrap_encoder

    settings = EmbedSettings(max_bad_fraction=config.train.max_bad_fraction)

    def evaluate(encoder: ImageEncoder) -> dict[str, float]:
        wrapped = wrap_encoder(encoder, name="training", precision=config.train.precision)
        metrics = evaluate_encoder(wrapped, judge, settings=settings, has_intervals=False).metrics
        return {name: metrics[name] for name in ("recall_at_1", "map_at_r")}

    return evaluate


def _reduce(
    result: TrainingResult, records: Sequence[ImageRecord], dataset_name: str, config: Config
) -> TrainingResult:
    from vitrieve.train.reduce import reduce_encoder

    assert config.model.embedding_dim is not None
    encoder = reduce_encoder(
        result.encoder,
        records,
        config.model.embedding_dim,
        fitted_on=f"training images of {dataset_name}",
        precision=config.train.precision,
        kind="pca_whitening" if config.model.whiten else "pca",
    )
    return result._replace(encoder=encoder)


def _describe_kept(result: TrainingResult) -> str:
    if not result.selection.values:
        return f"kept the last state, after step {result.num_steps} (nothing was held out to judge it)"
    return result.selection.describe()


def _report(arguments: Arguments, recipe: str, dataset: Dataset, result: TrainingResult) -> list[EvaluationResult]:
    """Measure the frozen start and the result on the test classes; a source without tests only says so."""
    from vitrieve.embed.collection import EmbedSettings
    from vitrieve.evaluate.protocols import select_records
    from vitrieve.evaluate.run import run_comparison
    from vitrieve.model.encoder import build_encoder
    from vitrieve.runtime.encoder import wrap_encoder

    try:
        select_records(dataset)
    except DataError as error:
        print_message(f"no report: {error}")
        return []
    config = arguments.config
    headless = replace(config.model, head_norm=False, head_dim=None)  # an untrained head says nothing of the backbone
    frozen = wrap_encoder(build_encoder(headless), name="before", precision=config.train.precision)
    tuned = wrap_encoder(result.encoder, name="after", precision=config.train.precision)
    names = (f"{config.model.backbone}, frozen", f"{recipe}, step {result.kept_step}")
    folder = arguments.out / REPORT_FOLDER
    settings = EmbedSettings(max_bad_fraction=config.train.max_bad_fraction)
    return run_comparison([frozen, tuned], [dataset], folder, names=names, settings=settings, show_progress=True)


def _save_encoder(
    arguments: Arguments,
    recipe: str,
    dataset: Dataset,
    result: TrainingResult,
    results: Sequence[EvaluationResult] = (),
) -> str:
    """Write the encoder: before the report, so that no failing report can cost it, then again with its figures."""
    from vitrieve.model.card import ModelCard
    from vitrieve.model.encoder import save_encoder

    config = arguments.config
    card = ModelCard(
        trained_on=f"{dataset.name} ({dataset.protocol}), recipe {recipe}, step {result.kept_step}, "
        f"seed {config.train.seed}",
        figures={one.encoder: dict(one.metrics) for one in results},
        measured_on=_describe_test(dataset) if results else "",
        data_license=dataset.license,
        notes=(_describe_kept(result) + ".",),
    )
    return save_encoder(result.encoder, arguments.out / ENCODER_NAME, card=card, config=config_to_json(config))


def _describe_test(dataset: Dataset) -> str:
    """Say what the figures were measured on, and whether training has seen its classes: own splits may share them."""
    seen = {record.label for record in dataset.split("train", "validation")}
    asked = {record.label for record in dataset.split("test") if record.is_query}
    share = f"{len(asked & seen)} of {len(asked)} classes also seen" if asked & seen else "classes not seen"
    return f"{dataset.name} ({dataset.protocol}), {share} in training"


def _print_result(arguments: Arguments, summary: Mapping[str, Any], results: Sequence[EvaluationResult]) -> None:
    if arguments.json:
        print_json({"run": str(arguments.out), **summary, "results": [result.to_json() for result in results]})
        return
    for result in results:
        figures = "  ".join(f"{name} {100 * value:.1f}" for name, value in result.metrics.items())
        print_result(f"{result.encoder}: {figures}")
    print_result(f"encoder: {arguments.out / ENCODER_NAME}")
    if results:
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
