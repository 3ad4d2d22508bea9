"""The whole of ``train``: a run from the source of its images to the encoder, the report and the manifest.

The command ``vitrieve train`` (``cli/train.py``) calls the same function. The optimizer's steps are in ``loop.py``.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vitrieve.artifacts import check_replacing, replacing_folder, write_manifest
from vitrieve.config import Config, Device, ObjectiveConfig, check_config, find_ineffective
from vitrieve.data.check import Readable, find_readable
from vitrieve.data.records import Dataset, ImageRecord, find_measurable, require_trainable
from vitrieve.data.sources import read_source
from vitrieve.embed.collection import EmbedSettings
from vitrieve.errors import ArtifactError, DataError, UnfinishedRunError, VitrieveError
from vitrieve.evaluation.measure import EvaluationResult
from vitrieve.evaluation.protocols import select_records
from vitrieve.evaluation.run import EMBEDDINGS_FOLDER, REPORT_NAME, evaluate_encoder, run_comparison
from vitrieve.model.artifact import ENCODER_SUBFOLDER, ModelCard
from vitrieve.model.backbone import count_cost, format_cost
from vitrieve.model.encoder import ImageEncoder, build_encoder, save_encoder
from vitrieve.model.export import export_folder
from vitrieve.objective.own import OwnTerm, describe_own_terms, read_own_terms
from vitrieve.progress import print_message
from vitrieve.recipes import find_recipe
from vitrieve.runtime.device import describe_emulation, resolve_device
from vitrieve.runtime.encoder import Encoder, load_encoder, wrap_encoder
from vitrieve.settings import config_to_json, override_config
from vitrieve.training.compute import allow_low_resolution, has_batch_norm
from vitrieve.training.holdout import TrainingSplit, split_for_training
from vitrieve.training.identity import describe_run, require_same_run
from vitrieve.training.loop import Evaluate, TrainingResult, fit_encoder
from vitrieve.training.reduction import reduce_encoder, require_reducible

REPORT_FOLDER = "report"
OWN_RECIPE = "own"
"""Name of a configuration that did not begin with a recipe."""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """The order for a run.

    Attributes:
        recipe: Name that the configuration began with.
        base: The recipe's own configuration.
        config: The complete settings.
        dataset: Data set that is trained and reported on, with its unreadable images.
        out: Folder of the run.
        own_terms: Terms of the objective that are not of this package.
        has_report: Whether the run ends with a report before and after on the test classes.
        is_overwrite: Whether what the folder holds is replaced.
        is_resume: Whether an unfinished run in the folder goes on.
    """

    recipe: str
    base: Config
    config: Config
    dataset: Dataset
    out: Path
    own_terms: tuple[OwnTerm, ...] = ()
    has_report: bool = True
    is_overwrite: bool = False
    is_resume: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A finished run.

    Attributes:
        folder: Folder of the run; ``vitrieve embed --encoder`` and ``load_encoder`` take it.
        summary: Contents of the run's manifest, as plain JSON values.
        results: Figures of the frozen start and of the trained encoder on the test classes; empty without a report.
        device: Device that the run was trained on, and that ``encoder`` computes on.
    """

    folder: Path
    summary: Mapping[str, Any]
    results: tuple[EvaluationResult, ...]
    device: Device = "auto"

    @cached_property
    def encoder(self) -> Encoder:
        """The trained encoder, loaded from the folder when it is first used."""
        return load_encoder(self.folder, device=self.device)

    @property
    def report(self) -> Path | None:
        """The report before and after, a web page; None without a report."""
        return self.folder / REPORT_FOLDER / REPORT_NAME if self.results else None


def train(
    data: Dataset | str | Path,
    recipe: str | Config = "small",
    out: str | Path = "run",
    *,
    resume: bool = False,
    overwrite: bool = False,
    report: bool = True,
    device: Device = "auto",
    **overrides: Any,
) -> TrainedRun:
    """Train an encoder: from a folder of photographs to the encoder, its ONNX graph and a report before and after.

    ``train("folder:photos", num_steps=200, batch_size=64)`` is ``vitrieve train small --data folder:photos --num-steps
    200 --batch-size 64``, and makes the same folder. Progress is shown on standard error.

    Args:
        data: A data set, for example of ``read_source``; or a source as that takes it: a folder with one subfolder
            for each class, ``folder:DIR``, ``table:FILE``, ``emoji``.
        recipe: Name of a recipe (``vitrieve.recipes.RECIPES``), or a complete configuration.
        out: Folder of the run; made when it is missing.
        resume: Go on with an unfinished run in ``out``; a folder that is missing or empty is begun.
        overwrite: Replace what ``out`` holds once the new run is complete. Until then it is written beside the old
            one, and ``resume`` goes on there.
        report: End with a report before and after, on the classes that are kept for testing.
        device: Device that computes; ``auto`` is the recipe's setting, which takes a GPU where torch sees one.
        overrides: Settings that differ from the recipe, by name (``settings.py``): ``num_steps=200``,
            ``koleo_weight=0.3`` or ``**{"objective.koleo.weight": 0.3}``. ``objective=my_term`` trains on a term of
            your own instead of the recipe's: a function of embeddings and labels, a module of torch, or a list of
            them and of pairs of one with its weight (``objective/own.py``). Losses whose weight is named beside it
            are added.

    Returns:
        The run: ``.encoder`` is ready to encode pictures, ``.results`` has the figures.

    Raises:
        InputError: The settings, the images or the folder cannot be used.
        NonFiniteLossError: A term of the loss became NaN or infinite.
        UnfinishedRunError: The training is done and its encoder is saved, but something after the last step failed.
        KeyboardInterrupt: After Ctrl-C; a resumed run goes on.
    """
    base = recipe if isinstance(recipe, Config) else find_recipe(recipe)()
    config = base
    own_terms: tuple[OwnTerm, ...] = ()
    if not isinstance(overrides.get("objective", {}), Mapping | ObjectiveConfig):
        own_terms = read_own_terms(overrides.pop("objective"))
        config = replace(config, objective=config.objective.without_terms())
    config = override_config(config, overrides)
    if device != "auto":
        config = override_config(config, {"train.device": device})
    check_config(config, own_terms)
    check_replacing(Path(out), is_overwrite=overwrite, is_resume=resume)
    return run_training(
        TrainingRun(
            recipe=OWN_RECIPE if isinstance(recipe, Config) else recipe,
            base=base,
            config=config,
            dataset=data if isinstance(data, Dataset) else read_source(str(data)),
            out=Path(out),
            own_terms=own_terms,
            has_report=report,
            is_overwrite=overwrite,
            is_resume=resume,
        )
    )


def run_training(run: TrainingRun) -> TrainedRun:
    """Train, keep the encoder, report; ``train`` has checked the settings and the folder."""
    start = time.monotonic()
    # Images
    dataset, readable = _read_images(run)
    split = split_for_training(dataset, is_holdout=run.config.train.holdout)
    _tell_notes(run, dataset, split)
    # Encoder and folder
    encoder = _build_encoder(run, len(split.fit))  # before the folder is made: weights may be out of reach
    model = replace(run.config.model, pooling=encoder.spec.pooling)  # by default the model's own
    run = replace(run, config=replace(run.config, model=model))
    if run.is_resume and not run.out.exists():
        print_message(f"{run.out} does not exist yet: there is nothing to resume, a new run begins")
    out = run.out
    with replacing_folder(out, is_overwrite=run.is_overwrite, is_resume=run.is_resume) as folder:
        run = replace(run, out=folder)  # beside the run that it replaces, until it is complete
        _write_settings(run, encoder, dataset, split, readable)
        # Training
        evaluate = build_evaluate(split.held_out, run.config) if split.held_out is not None else None
        result = fit_encoder(run.config, encoder, split.fit, folder, evaluate, dataset.positive_pairs, run.own_terms)
        seconds = time.monotonic() - start
        print_message(describe_kept(result))
        # Result
        fingerprint, results = _finish(run, dataset, split, result)
        summary = {
            "recipe": run.recipe,
            "data": dataset.source or dataset.name,
            "protocol": dataset.protocol,
            "config": config_to_json(run.config),
            **({"own_terms": describe_own_terms(run.own_terms)} if run.own_terms else {}),
            **_summarize(split.fit, result),
            "seconds": round(seconds, 1),
            "encoder_fingerprint": fingerprint,
        }
        write_manifest(folder, "run", summary)
    return TrainedRun(folder=out, summary=summary, results=tuple(results), device=run.config.train.device)


def _read_images(run: TrainingRun) -> tuple[Dataset, Readable]:
    """Leave unreadable images out of every part of the data set, once, so that no later stage meets one."""
    dataset = run.dataset
    require_trainable(dataset)
    readable = find_readable(dataset.records, max_bad_fraction=run.config.train.max_bad_fraction, show_progress=True)
    if not readable.failures:
        return dataset, readable
    for image_id, reason in readable.failures:
        print_message(f"left out: {image_id}: {reason}")
    verb = "is" if len(readable.failures) == 1 else "are"
    note = f"{len(readable.failures)} of {len(dataset.records)} images {verb} unreadable and left out."
    dataset = replace(dataset, records=readable.records, notes=(*dataset.notes, note))
    require_trainable(dataset)
    return dataset, readable


def _tell_notes(run: TrainingRun, dataset: Dataset, split: TrainingSplit) -> None:
    config = run.config
    emulation = describe_emulation(config.train.precision, resolve_device(config.train.device).type)
    for note in (*dataset.notes, split.note, emulation):
        if note:
            print_message(note)


def _build_encoder(run: TrainingRun, num_images: int) -> ImageEncoder:
    model = run.config.model
    encoder = build_encoder(model, seed=run.config.train.seed)
    if model.weights is not None and encoder.spec.weights_note:
        print_message(encoder.spec.weights_note)
    for note in find_ineffective(
        run.config, run.base, has_batch_norm=has_batch_norm(encoder), has_own_terms=bool(run.own_terms)
    ):
        print_message(note)
    allow_low_resolution(encoder, run.config)
    print_message(f"{model.backbone}: {format_cost(count_cost(model.backbone, model.image_size))}")
    if model.embedding_dim is not None:
        require_reducible(model.embedding_dim, encoder.spec.embedding_dim, num_images)
    return encoder


def _write_settings(
    run: TrainingRun, encoder: ImageEncoder, dataset: Dataset, split: TrainingSplit, readable: Readable
) -> None:
    """Write the settings of a new run, or refuse to go on with another one."""
    digests = {record.image_id: digest for record, digest in zip(readable.records, readable.digests, strict=True)}
    held_out = split.held_out.records if split.held_out is not None else ()
    images, pairs = (*split.fit, *held_out), dataset.positive_pairs
    settings = describe_run(run.recipe, run.config, dataset.protocol, images, pairs, digests, run.own_terms)
    for note in require_same_run(run.out, settings, encoder=encoder):
        print_message(note)


def build_evaluate(held_out: Dataset, config: Config) -> Evaluate:
    """Build the measurement on held-out classes that the training loop calls."""
    # Every image was readable when the run began. Were some left out later, the states would not be comparable.
    settings = EmbedSettings(max_bad_fraction=0.0)

    def evaluate(encoder: ImageEncoder) -> dict[str, float]:
        wrapped = wrap_encoder(encoder, name="training", precision=config.train.precision)
        metrics = evaluate_encoder(wrapped, held_out, settings=settings, has_intervals=False).metrics
        return {name: metrics[name] for name in ("recall_at_1", "map_at_r")}

    return evaluate


def describe_kept(result: TrainingResult) -> str:
    """Say in a sentence which state of a run is kept, and why."""
    if not result.selection.values:
        return f"kept the last state, after step {result.num_steps} (nothing was held out to measure it)"
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
    print_message("exporting to ONNX")
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
        print_message(f"no report: {error}")
        return []
    if dataset.ground_truth is None and not find_measurable(tested, dataset.junk_key):
        print_message("no report: no query of the test split has another readable image of its class to find")
        return []
    config = run.config
    headless = replace(config.model, head_norm=False, head_dim=None)  # an untrained head says nothing of the backbone
    device = next(result.encoder.parameters()).device
    frozen = wrap_encoder(build_encoder(headless).to(device), name="before", precision=config.train.precision)
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
        trained_on=f"{dataset.name} ({dataset.protocol}), recipe {run.recipe}{_describe_own_terms(run)}, step "
        f"{result.kept_step}, "
        f"seed {run.config.train.seed}",
        figures={one.encoder: dict(one.metrics) for one in results},
        measured_on=_describe_test(dataset) if results else "",
        data_license=dataset.license,
        notes=(describe_kept(result) + ".",),
    )
    return save_encoder(result.encoder, run.out / ENCODER_SUBFOLDER, card=card, config=config_to_json(run.config))


def _describe_own_terms(run: TrainingRun) -> str:
    listed = ", ".join(f"{term.name} (weight {term.weight:g})" for term in run.own_terms)
    return f" with the objective {listed}" if listed else ""


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
