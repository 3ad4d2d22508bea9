"""The story of a training run, from the source of its images to the encoder, the report and the manifest.

The command line (``cli/train.py``) parses and prints; ``loop.py``, the next file, trains.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitrieve.artifacts import check_folder, prepare_folder, write_manifest
from vitrieve.config import Config
from vitrieve.config_check import check_config, find_ineffective
from vitrieve.config_json import config_to_json
from vitrieve.data.readable import Readable, find_readable
from vitrieve.data.records import Dataset, ImageRecord, find_measurable, require_trainable
from vitrieve.data.sources import read_source
from vitrieve.embed.collection import EmbedSettings
from vitrieve.errors import ArtifactError, DataError, UnfinishedRunError, VitrieveError
from vitrieve.evaluation.protocols import select_records
from vitrieve.evaluation.run import EMBEDDINGS_FOLDER, EvaluationResult, evaluate_encoder, run_comparison
from vitrieve.model.artefact import ENCODER_SUBFOLDER
from vitrieve.model.card import ModelCard
from vitrieve.model.cost import count_cost, format_cost
from vitrieve.model.encoder import ImageEncoder, build_encoder, save_encoder
from vitrieve.model.export import export_folder
from vitrieve.recipes import find_recipe
from vitrieve.runtime.encoder import wrap_encoder
from vitrieve.runtime.precision import describe_emulation
from vitrieve.training.device import resolve_device
from vitrieve.training.holdout import TrainingSplit, split_for_training
from vitrieve.training.loop import Evaluate, TrainingResult, train
from vitrieve.training.reduce import reduce_encoder, require_reducible
from vitrieve.training.resolution import allow_low_resolution
from vitrieve.training.settings import describe_run, settle

REPORT_FOLDER = "report"

Say = Callable[[str], None]
"""Tells the user a sentence."""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What a run is asked for.

    Attributes:
        recipe: Name that the configuration began with.
        data: Source of the images, as ``read_source`` spells it.
        out: Folder of the run.
        config: The complete settings.
        protocol: One of the source's protocols; None for its first.
        exclude: Patterns of files to leave out of a folder, with the rules of gitignore.
        has_report: The run ends with a report before and after on the test classes.
        is_overwrite: What the folder holds is replaced.
        is_resume: An unfinished run in the folder goes on.
        say: Tells the user what is not the result.
    """

    recipe: str
    data: str
    out: Path
    config: Config
    protocol: str | None = None
    exclude: tuple[str, ...] = ()
    has_report: bool = True
    is_overwrite: bool = False
    is_resume: bool = False
    say: Say = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a finished run ends with.

    Attributes:
        summary: Contents of the run's manifest, as plain JSON values.
        results: Figures of the frozen start and of the result on the test classes; empty without a report.
    """

    summary: Mapping[str, Any]
    results: tuple[EvaluationResult, ...]


def run_training(run: TrainingRun) -> RunResult:
    """Train, keep the encoder, report.

    Raises:
        InputError: The settings, the images or the folder cannot be used.
        NonFiniteLossError: A term of the loss became NaN or infinite.
        UnfinishedRunError: The training is done and its encoder is saved, but something after the last step failed.
        KeyboardInterrupt: After Ctrl-C; a resumed run goes on.
    """
    start = time.monotonic()
    # Images
    check_config(run.config)
    check_folder(run.out, is_overwrite=run.is_overwrite, is_resume=run.is_resume)
    dataset, readable = _read_images(run)
    split = split_for_training(dataset, is_holdout=run.config.train.holdout)
    _tell_notes(run, dataset, split)
    # Encoder and folder
    encoder = _build_encoder(run, len(split.fit))  # before the folder is made: weights may be out of reach
    model = replace(run.config.model, pooling=encoder.spec.pooling)  # by default the model's own
    run = replace(run, config=replace(run.config, model=model))
    prepare_folder(run.out, is_overwrite=run.is_overwrite, is_resume=run.is_resume)
    _settle(run, encoder, dataset, split, readable)
    # Training
    evaluate = build_evaluate(split.judge, run.config) if split.judge is not None else None
    result = train(run.config, encoder, split.fit, run.out, evaluate, dataset.positive_pairs)
    seconds = time.monotonic() - start
    run.say(describe_kept(result))
    # Result
    fingerprint, results = _finish(run, dataset, split, result)
    summary = {
        "recipe": run.recipe,
        "data": run.data,
        "protocol": dataset.protocol,
        "config": config_to_json(run.config),
        **_summarize(split.fit, result),
        "seconds": round(seconds, 1),
        "encoder_fingerprint": fingerprint,
    }
    write_manifest(run.out, "run", summary)
    return RunResult(summary=summary, results=tuple(results))


def _read_images(run: TrainingRun) -> tuple[Dataset, Readable]:
    """Read the source; leave unreadable images out of every part, once, so that no later stage meets one."""
    dataset = read_source(run.data, protocol=run.protocol, exclude=run.exclude)
    require_trainable(dataset)
    readable = find_readable(dataset.records, max_bad_fraction=run.config.train.max_bad_fraction, show_progress=True)
    if not readable.failures:
        return dataset, readable
    for image_id, reason in readable.failures:
        run.say(f"left out: {image_id}: {reason}")
    verb = "is" if len(readable.failures) == 1 else "are"
    note = f"{len(readable.failures)} of {len(dataset.records)} images {verb} unreadable and left out."
    dataset = replace(dataset, records=readable.records, notes=(*dataset.notes, note))
    require_trainable(dataset)
    return dataset, readable


def _tell_notes(run: TrainingRun, dataset: Dataset, split: TrainingSplit) -> None:
    config = run.config
    emulation = describe_emulation(config.train.precision, resolve_device(config.train.device).type)
    for note in (*dataset.notes, split.note, emulation, *find_ineffective(config, find_recipe(run.recipe)())):
        if note:
            run.say(note)


def _build_encoder(run: TrainingRun, num_images: int) -> ImageEncoder:
    model = run.config.model
    encoder = build_encoder(model, seed=run.config.train.seed)
    if model.weights is not None and encoder.spec.weights_note:
        run.say(encoder.spec.weights_note)
    allow_low_resolution(encoder, run.config)
    run.say(f"{model.backbone}: {format_cost(count_cost(model.backbone, model.image_size))}")
    if model.embedding_dim is not None:
        require_reducible(model.embedding_dim, encoder.spec.embedding_dim, num_images)
    return encoder


def _settle(
    run: TrainingRun, encoder: ImageEncoder, dataset: Dataset, split: TrainingSplit, readable: Readable
) -> None:
    """Write down what the run is of, or refuse to go on with another one."""
    digests = {record.image_id: digest for record, digest in zip(readable.records, readable.digests, strict=True)}
    judging = split.judge.records if split.judge is not None else ()
    settings = describe_run(
        run.recipe, run.config, dataset.protocol, (*split.fit, *judging), dataset.positive_pairs, digests
    )
    for note in settle(run.out, settings, encoder=encoder):
        run.say(note)


def build_evaluate(judge: Dataset, config: Config) -> Evaluate:
    """Build the measurement on held-out classes that the training loop calls."""
    # Every image was readable when the run began. Were some left out later, the states would not be comparable.
    settings = EmbedSettings(max_bad_fraction=0.0)

    def evaluate(encoder: ImageEncoder) -> dict[str, float]:
        wrapped = wrap_encoder(encoder, name="training", precision=config.train.precision)
        metrics = evaluate_encoder(wrapped, judge, settings=settings, has_intervals=False).metrics
        return {name: metrics[name] for name in ("recall_at_1", "map_at_r")}

    return evaluate


def describe_kept(result: TrainingResult) -> str:
    """Say in a sentence which state of a run is kept, and why."""
    if not result.selection.values:
        return f"kept the last state, after step {result.num_steps} (nothing was held out to judge it)"
    return result.selection.describe()


def _finish(
    run: TrainingRun, dataset: Dataset, split: TrainingSplit, result: TrainingResult
) -> tuple[str, list[EvaluationResult]]:
    """Do everything that follows the last step; whatever fails in it costs neither the encoder nor the rest.

    Raises:
        UnfinishedRunError: Something failed; the encoder is saved.
    """
    failures: list[tuple[str, Exception]] = []
    if result.failure is not None:
        failures.append(("measuring the last state", result.failure))
    if run.config.model.embedding_dim is not None:
        try:
            result = _reduce(run, result, split.fit, dataset.name)
        except Exception as error:
            failures.append(("the reduction", error))
    fingerprint = _save_encoder(run, dataset, result)
    results: list[EvaluationResult] = []
    if not failures and run.has_report:
        try:
            results = _report(run, dataset, result)
            if results:
                _save_encoder(run, dataset, result, results)
        except Exception as error:
            failures.append(("the report", error))
    run.say("exporting to ONNX")
    try:
        export_folder(run.out / ENCODER_SUBFOLDER)
    except Exception as error:
        failures.append(("the export", error))
    if failures:
        raise _build_unfinished_error(run, failures) from failures[0][1]
    return fingerprint, results


def _build_unfinished_error(run: TrainingRun, failures: Sequence[tuple[str, Exception]]) -> UnfinishedRunError:
    told = "; ".join(f"{stage} failed: {_describe(error)}" for stage, error in failures)
    stages = {stage for stage, _ in failures}
    hints = ""
    if "the report" in stages:
        hints += " (with --no-report it leaves the report out)"
    if "the reduction" in stages:
        hints += " (with another --model.embedding-dim, if need be; the encoder is saved without a reduction)"
    return UnfinishedRunError(
        f"the training is done, and its encoder is saved in {run.out / ENCODER_SUBFOLDER}, but {told.rstrip('.')}. "
        f"The same command with --resume finishes the rest{hints}."
    )


def _describe(error: Exception) -> str:
    is_told = isinstance(error, VitrieveError) or (isinstance(error, OSError) and error.strerror)
    return str(error) if is_told else f"{type(error).__name__}: {error}"


def _reduce(
    run: TrainingRun, result: TrainingResult, records: Sequence[ImageRecord], dataset_name: str
) -> TrainingResult:
    config = run.config
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


def _report(run: TrainingRun, dataset: Dataset, result: TrainingResult) -> list[EvaluationResult]:
    """Measure the frozen start and the result on the test classes; a source without tests only says so."""
    try:
        tested = select_records(dataset)
    except DataError as error:
        run.say(f"no report: {error}")
        return []
    if dataset.ground_truth is None and not find_measurable(tested, dataset.junk_key):
        run.say("no report: no query of the test split has another readable image of its class to find")
        return []
    config = run.config
    headless = replace(config.model, head_norm=False, head_dim=None)  # an untrained head says nothing of the backbone
    frozen = wrap_encoder(build_encoder(headless), name="before", precision=config.train.precision)
    tuned = wrap_encoder(result.encoder, name="after", precision=config.train.precision)
    names = (f"{config.model.backbone}, frozen", f"{run.recipe}, step {result.kept_step}")
    folder = run.out / REPORT_FOLDER
    settings = EmbedSettings(max_bad_fraction=config.train.max_bad_fraction)

    def compare() -> list[EvaluationResult]:
        return run_comparison([frozen, tuned], [dataset], folder, names=names, settings=settings, show_progress=True)

    try:
        return compare()
    except ArtifactError:  # what an interrupted report had embedded is of other images, or damaged
        shutil.rmtree(folder / EMBEDDINGS_FOLDER, ignore_errors=True)
        return compare()


def _save_encoder(
    run: TrainingRun, dataset: Dataset, result: TrainingResult, results: Sequence[EvaluationResult] = ()
) -> str:
    """Write the encoder: before the report, so that no failing report can cost it, then again with its figures."""
    card = ModelCard(
        trained_on=f"{dataset.name} ({dataset.protocol}), recipe {run.recipe}, step {result.kept_step}, "
        f"seed {run.config.train.seed}",
        figures={one.encoder: dict(one.metrics) for one in results},
        measured_on=_describe_test(dataset) if results else "",
        data_license=dataset.license,
        notes=(describe_kept(result) + ".",),
    )
    return save_encoder(result.encoder, run.out / ENCODER_SUBFOLDER, card=card, config=config_to_json(run.config))


def _describe_test(dataset: Dataset) -> str:
    """Say what the figures were measured on, and whether training has seen its classes: own splits may share them."""
    seen = {record.label for record in dataset.split("train", "validation")}
    asked = {record.label for record in dataset.split("test") if record.is_query}
    share = f"{len(asked & seen)} of {len(asked)} classes also seen" if asked & seen else "classes not seen"
    return f"{dataset.name} ({dataset.protocol}), {share} in training"


def _summarize(records: Sequence[ImageRecord], result: TrainingResult) -> dict[str, Any]:
    return {
        "num_images": len(records),
        "num_classes": len({record.label for record in records}),
        "num_steps": result.num_steps,
        "kept_step": result.kept_step,
        "holdout_map_at_r": {str(step): value for step, value in result.selection.values.items()},
    }
