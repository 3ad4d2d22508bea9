"""What follows the last step of a run: reduction, encoder, ONNX graph, report before and after, model card."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vitrieve.config import Config
from vitrieve.data.records import Dataset
from vitrieve.embed.collection import EmbedSettings
from vitrieve.errors import ArtifactError, DataError, UnfinishedRunError, describe_error
from vitrieve.evaluation.measure import EvaluationResult
from vitrieve.evaluation.protocols import select_records
from vitrieve.evaluation.run import EMBEDDINGS_FOLDER, run_comparison
from vitrieve.model.artifact import ENCODER_SUBFOLDER, ModelCard
from vitrieve.model.encoder import (
    build_encoder,
    fingerprint_encoder,
    leave_out_untrained,
    save_encoder,
    write_card,
)
from vitrieve.model.export import export_folder
from vitrieve.model.named_graph import has_named_graph, make_named_folder
from vitrieve.model.pretrained import find_weights
from vitrieve.progress import print_message
from vitrieve.runtime.device import resolve_device
from vitrieve.runtime.encoder import Encoder, load_encoder, wrap_encoder
from vitrieve.settings import config_to_json
from vitrieve.training.holding_out import describe_kept
from vitrieve.training.image_size import SizeChoice
from vitrieve.training.images import RunImages
from vitrieve.training.loop import TrainingResult
from vitrieve.training.order import TrainingRun
from vitrieve.training.ranks import current_ranks
from vitrieve.training.reduction import reduce_encoder
from vitrieve.training.reporting import DividedReport

REPORT_FOLDER = "report"

TEST_EMBEDDINGS_FOLDER = "test_embeddings"
"""Inside the report of a run on one source: the embeddings of the test images, which ``embed --reuse`` takes."""


def finish_run(
    run: TrainingRun, images: RunImages, result: TrainingResult, choice: SizeChoice, final_folder: Path
) -> tuple[str, list[EvaluationResult]]:
    """Do everything that follows the last step; whatever fails in it costs neither the encoder nor the rest.

    Args:
        run: Order for the run, with the folder that is written now.
        images: Readable images.
        result: End of the training.
        choice: Choice of the encoder's image size.
        final_folder: Folder of the encoder once the run is complete.

    Returns:
        Fingerprint of the encoder, and the figures of the report.

    Raises:
        UnfinishedRunError: Something failed; the encoder is saved.
    """
    folder = run.out / ENCODER_SUBFOLDER
    failures: list[tuple[str, Exception]] = []
    if result.failure is not None:
        failures.append(("the last measurement", result.failure))
    if run.config.model.embedding_dim is not None:
        try:
            result = _reduce(run, images, result)
        except Exception as error:
            failures.append(("the reduction", error))
    may_report = not failures and run.has_report
    card = _build_card(run, images, result, choice)
    fingerprint = save_encoder(result.encoder, folder, card=card, config=config_to_json(run.config))
    print_message("exporting to ONNX")
    try:
        export_folder(folder)
    except Exception as error:
        failures.append(("the export", error))
    results: list[EvaluationResult] = []
    if may_report:
        try:
            results = _report(run, images, result, final_folder)
            if results:
                write_card(result.encoder, folder, _build_card(run, images, result, choice, results))
        except Exception as error:
            failures.append(("the report", error))
    if failures:
        raise _build_unfinished_error(run, failures) from failures[0][1]
    return fingerprint, results


def _build_unfinished_error(run: TrainingRun, failures: Sequence[tuple[str, Exception]]) -> UnfinishedRunError:
    told = "; ".join(f"{stage} failed: {describe_error(error)}" for stage, error in failures)
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


def _reduce(run: TrainingRun, images: RunImages, result: TrainingResult) -> TrainingResult:
    config = run.config
    assert config.model.embedding_dim is not None
    encoder = reduce_encoder(
        result.encoder,
        images.fit,
        config.model.embedding_dim,
        fitted_on=f"training images of {', '.join(dataset.name for dataset in images.datasets)}",
        precision=config.train.precision,
        kind="pca_whitening" if config.model.whiten else "pca",
    )
    return result._replace(encoder=encoder)


def _has_tests(images: RunImages, dataset: Dataset) -> bool:
    """Tell whether a source can be reported on; one without tests only says so."""
    try:
        select_records(dataset)
    except DataError as error:
        images.tell(dataset, f"no report: {error}")
        return False
    return True


def _report(run: TrainingRun, images: RunImages, result: TrainingResult, final_folder: Path) -> list[EvaluationResult]:
    """Measure the frozen start and the result on the test classes of each source."""
    tested = [dataset for dataset in images.datasets if _has_tests(images, dataset)]
    if not tested:
        return []
    config = run.config
    frozen, loaded = load_compared(run.out / ENCODER_SUBFOLDER, config)
    tuned = replace(loaded, source=str(final_folder))
    frozen = tuned if frozen is loaded else frozen
    names = (f"{config.model.backbone}, frozen", f"{run.recipe}, step {result.kept_step}")
    folder = run.out / REPORT_FOLDER
    settings = EmbedSettings(max_bad_fraction=config.train.max_bad_fraction, show_progress=True)
    # In a training on several sources the images have other names than in an embedding of one of them.
    kept = folder / TEST_EMBEDDINGS_FOLDER if len(images.datasets) == 1 else None

    ranks = current_ranks()
    divided = DividedReport(ranks, (frozen, tuned), run.out / ENCODER_SUBFOLDER) if ranks.size > 1 else None
    embed = divided.embed if divided is not None and divided.is_divided else None

    def compare() -> list[EvaluationResult]:
        return run_comparison([frozen, tuned], tested, folder, names=names, settings=settings, kept=kept, embed=embed)

    try:
        return compare()
    except ArtifactError:  # what an interrupted report had embedded is of other images, or damaged
        shutil.rmtree(folder / EMBEDDINGS_FOLDER, ignore_errors=True)
        return compare()


def _load(folder: Path, config: Config) -> Encoder:
    """Load an encoder to measure it with the engine that ``vitrieve embed`` takes: the fastest that has its graph."""
    train = config.train
    return load_encoder(folder, device=train.device, precision=train.precision, num_threads=train.num_threads)


def load_compared(folder: Path, config: Config) -> tuple[Encoder, Encoder]:
    """Load what a report compares: the start of the run, and the encoder in a folder."""
    tuned = _load(folder, config)
    return _load_frozen(config, tuned), tuned


def _load_frozen(config: Config, tuned: Encoder) -> Encoder:
    """Load the start of the run, for pictures of the same size: from a graph of the same encoder, else with torch."""
    size = tuned.preprocessing.image_size
    model = replace(leave_out_untrained(config.model), image_size=size)
    frozen = build_encoder(model).to(resolve_device(config.train.device))
    if fingerprint_encoder(frozen) == tuned.fingerprint:  # no state was better, and the start was kept
        return tuned
    is_named = model.weights is None and has_named_graph(find_weights(model.backbone))
    if is_named and tuned.engine != "torch":
        named = _load(make_named_folder(find_weights(model.backbone), size), config)
        if named.fingerprint == fingerprint_encoder(frozen):
            return named
    return wrap_encoder(frozen, name="before", precision=config.train.precision)


def _build_card(
    run: TrainingRun,
    images: RunImages,
    result: TrainingResult,
    choice: SizeChoice,
    results: Sequence[EvaluationResult] = (),
) -> ModelCard:
    """Build the model card: before the report, which must not be able to cost the encoder, then with its figures."""
    measured = {one.dataset for one in results}
    is_alone = len(images.datasets) == 1
    licenses = {dataset.name: dataset.license for dataset in images.datasets if dataset.license}
    return ModelCard(
        trained_on=f"{images.describe()}, recipe {run.recipe}{_describe_terms(run)}, step {result.kept_step}, "
        f"seed {run.config.train.seed}",
        figures={one.encoder if is_alone else f"{one.encoder}, on {one.dataset}": one.metrics for one in results},
        measured_on="; ".join(_describe_test(one) for one in images.datasets if one.name in measured),
        data_license="; ".join(text if is_alone else f"{name}: {text}" for name, text in licenses.items()),
        notes=tuple(
            f"{note}."
            for note in (describe_kept(result, images.num_measured), choice.describe(images.num_measured))
            if note
        ),
    )


def _describe_terms(run: TrainingRun) -> str:
    listed = ", ".join(f"{term.name} (weight {term.weight:g})" for term in run.own_terms)
    distillation = run.config.objective.distillation
    teacher = f", distilled from {distillation.teacher}" if distillation.weight > 0 else ""
    return (f" with the objective {listed}" if listed else "") + teacher


def _describe_test(dataset: Dataset) -> str:
    """Say what the figures were measured on, and whether training has seen its classes: own splits may share them."""
    seen = {record.label for record in dataset.split("train", "validation")}
    asked = {record.label for record in dataset.split("test") if record.is_query}
    share = f"{len(asked & seen)} of {len(asked)} classes also seen" if asked & seen else "classes not seen"
    return f"{dataset.name} ({dataset.protocol}), {share} in training"
