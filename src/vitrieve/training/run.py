"""The whole of ``train``: a run from the source of its images to the encoder, the report and the manifest.

The command ``vitrieve train`` (``cli/train.py``) calls the same function. The optimizer's steps are in ``loop.py``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vitrieve import __version__
from vitrieve.artifacts import (
    check_replacing,
    has_artifact,
    is_partial,
    read_manifest,
    replacing_folder,
    write_manifest,
)
from vitrieve.config import Config, Device, ObjectiveConfig, check_config, find_ineffective
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.data.several import set_apart
from vitrieve.data.sources import read_source
from vitrieve.errors import ConfigError
from vitrieve.evaluation.measure import EvaluationResult
from vitrieve.evaluation.run import (
    REPORT_NAME,
)
from vitrieve.folders import locking_folder
from vitrieve.model.artifact import ENCODER_SUBFOLDER
from vitrieve.model.backbone import count_cost, format_cost
from vitrieve.model.encoder import (
    ImageEncoder,
    build_encoder,
)
from vitrieve.model.lora import describe_trained
from vitrieve.model.pretrained import WEIGHTS
from vitrieve.model.seen import list_seen
from vitrieve.objective.objective import require_prefixes
from vitrieve.objective.own import OwnTerm, describe_own_terms, read_own_terms
from vitrieve.progress import print_message
from vitrieve.recipes import find_recipe
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.settings import config_to_json, list_settings, override_config
from vitrieve.training.callbacks import Callback, check_callbacks
from vitrieve.training.compute import allow_low_resolution, count_batch_images, has_batch_norm
from vitrieve.training.distillation import require_teacher
from vitrieve.training.finishing import REPORT_FOLDER, finish_run, load_compared
from vitrieve.training.holding_out import build_mean_evaluate, describe_kept
from vitrieve.training.identity import digest_weights, require_same_on_ranks, require_same_run
from vitrieve.training.image_size import SizeChoice, choose_image_size
from vitrieve.training.images import RunImages, describe_data, read_images, summarize_sources, tell_notes
from vitrieve.training.loggers import build_loggers
from vitrieve.training.loop import TrainingResult, fit_encoder
from vitrieve.training.order import TrainingRun, describe_order
from vitrieve.training.ranks import current_ranks, is_restart, joining_ranks, require_share
from vitrieve.training.reduction import require_reducible
from vitrieve.training.reporting import end_report, help_report
from vitrieve.training.watching import RunWatch

Data = Dataset | str | Path
"""A data set, or a source as ``read_source`` takes it."""
OWN_RECIPE = "own"
"""Name of a configuration that did not begin with a recipe."""


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


def train(  # noqa: PLR0913  # each is a choice of its own, by name
    data: Data | Sequence[Data],
    recipe: str | Config = "small",
    out: str | Path = "run",
    *,
    resume: bool = False,
    overwrite: bool = False,
    report: bool = True,
    device: Device = "auto",
    logger: str | Sequence[str] = "tensorboard",
    callbacks: Sequence[Callback] = (),
    **overrides: Any,
) -> TrainedRun:
    """Train an encoder: from a folder of photographs to the encoder, its ONNX graph and a report before and after.

    ``train("folder:photos", num_steps=200, batch_size=64)`` is ``vitrieve train small --data folder:photos --num-steps
    200 --batch-size 64``, and makes the same folder. Progress is shown on standard error.

    Of several sources, ``train(["folder:photos", "emoji"])``, each keeps its own classes, splits and protocol: equal
    names of classes in two of them are two classes, the same share of each source's classes is held out, the mean of
    the measurements on them chooses the state, and each is reported on its own test classes.

    Processes that torchrun starts train together (``training/ranks.py``): each calls this alike, and gets the same
    result. The first alone writes ``out``.

    Args:
        data: A data set, for example of ``read_source``; a source as that takes it: a folder with one subfolder
            for each class, ``folder:DIR``, ``table:FILE``, ``emoji``; or several of them (``read_sources``).
        recipe: Name of a recipe (``vitrieve.recipes.RECIPES``), or a complete configuration.
        out: Folder of the run; made when it is missing.
        resume: Go on with an unfinished run in ``out``; a folder that is missing or empty is begun.
        overwrite: Replace what ``out`` holds once the new run is complete. Until then it is written beside the old
            one, and ``resume`` goes on there.
        report: End with a report before and after, on the classes that are kept for testing.
        device: Device that computes; ``auto`` is the recipe's setting, which takes a GPU where torch sees one.
        logger: Who records the run beside ``metrics.jsonl``: ``tensorboard``, ``wandb``, ``mlflow``, ``trackio``,
            several of them, or ``none``. One that fails is told once, and the run goes on without it.
        callbacks: Objects whose methods are called at the start, after each step, after each measurement and at the
            end (``Callback``). An exception in one stops the run, with its steps saved; in a ``Logger`` it does not.
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
        RankLostError: Another process of the training died.
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
    watchers = (*build_loggers(logger), *check_callbacks(callbacks))
    run = TrainingRun(
        recipe=OWN_RECIPE if isinstance(recipe, Config) else recipe,
        base=base,
        config=config,
        datasets=(),
        out=Path(out),
        own_terms=own_terms,
        callbacks=watchers,
        has_report=report,
        is_overwrite=overwrite,
        is_resume=resume,
    )
    with joining_ranks() as ranks, ExitStack() as held:
        require_same_on_ranks(describe_order(run))
        ranks.share_first(lambda: held.enter_context(locking_folder(run.out)))
        finished, is_overwrite, is_resume = ranks.share_first(lambda: _choose_beginning(run))
        if finished is not None:
            return TrainedRun(folder=run.out, summary=finished, results=(), device=config.train.device)
        with ranks.first_alone():
            datasets = _read_data(data)
        config = choose_unseen_start(config, datasets)
        run = replace(run, config=config, datasets=set_apart(datasets))
        return run_training(replace(run, is_overwrite=is_overwrite, is_resume=is_resume))


def _choose_beginning(run: TrainingRun) -> tuple[dict[str, Any] | None, bool, bool]:
    """Choose how a run begins: as it was told to, or, once torchrun has started it again, where it was.

    Returns:
        The manifest of a run that was finished before the restart, or None; whether what is there is replaced; whether
        an unfinished run goes on.

    Raises:
        ArtifactError: The folder cannot be used.
    """
    is_overwrite, is_resume = run.is_overwrite, run.is_resume
    if is_restart():
        if has_artifact(run.out) and not is_overwrite:
            return read_manifest(run.out, "run"), is_overwrite, is_resume
        is_overwrite, is_resume = is_overwrite and not is_partial(run.out), True
    check_replacing(run.out, kind="run", is_overwrite=is_overwrite, is_resume=is_resume, is_resumable=True)
    return None, is_overwrite, is_resume


def _read_data(data: Data | Sequence[Data]) -> list[Dataset]:
    several = [data] if isinstance(data, Dataset | str | Path) else list(data)
    if not several:
        raise ConfigError("there is nothing to train on; give a data set, a source, or a list of them.")
    return [one if isinstance(one, Dataset) else read_source(str(one)) for one in several]


def choose_unseen_start(config: Config, datasets: Sequence[Dataset]) -> Config:
    """Start from other weights where those of a configuration were trained on the test classes of a data set.

    They are the weights that the former are a difference to. Without test classes nothing is measured, and any start
    is fair.

    Args:
        config: Settings of a training.
        datasets: Data sets that it trains on and is measured on.
    """
    entry = WEIGHTS.get(config.model.backbone)
    if entry is None or entry.delta is None or config.model.weights is not None:
        return config
    seen = list_seen(entry.name, datasets)
    if not seen:
        return config
    unseen = entry.delta.base
    print_message(f"{entry.name} has seen the test classes of {', '.join(seen)}: training starts from {unseen}")
    return override_config(config, {"model.backbone": unseen})


def run_training(run: TrainingRun) -> TrainedRun:
    """Train, keep the encoder, report; ``train`` has checked the settings and the folder."""
    start, ranks = time.monotonic(), current_ranks()
    # Images
    images = read_images(run)
    tell_notes(run, images)
    # Encoder and folder
    with ranks.first_alone():
        encoder = _build_encoder(run, len(images.fit))  # before the folder is made: weights may be out of reach
    model = replace(run.config.model, pooling=encoder.spec.pooling)  # by default the model's own
    run = replace(run, config=replace(run.config, model=model))
    settings = describe_data(run, images)
    if ranks.size > 1:
        require_same_on_ranks({**settings, "start": {"weights": digest_weights(encoder)}})
    require_share(ranks, count_batch_images(run.config))  # before the folder is made
    if not ranks.is_first:
        return _help(run, encoder, images)
    if run.is_resume and not run.out.exists():
        print_message(f"{run.out} does not exist yet: there is nothing to resume, a new run begins")
    watch = RunWatch(run.callbacks)
    try:
        summary, results = _train_first(run, images, encoder, settings, watch, start)
    except BaseException as error:
        watch.end(run.out, error)
        raise
    end_report(ranks, (summary, results))
    trained = TrainedRun(folder=run.out, summary=summary, results=tuple(results), device=run.config.train.device)
    watch.end(run.out, results=results, report=trained.report)
    return trained


def _train_first(
    run: TrainingRun,
    images: RunImages,
    encoder: ImageEncoder,
    settings: Mapping[str, Any],
    watch: RunWatch,
    start: float,
) -> tuple[dict[str, Any], list[EvaluationResult]]:
    """Train on the process that writes, or alone; return the manifest and the figures of the report."""
    out = run.out
    with replacing_folder(out, kind="run", is_overwrite=run.is_overwrite, is_resume=run.is_resume) as folder:
        run = replace(run, out=folder)  # beside the run that it replaces, until it is complete
        for note in require_same_run(folder, settings, encoder=encoder):
            print_message(note)
        watch.open(folder, out.absolute().name, _list_values(run.config), _describe_facts(run, images))
        # Training
        shown = watch.watchers.examples if run.callbacks else None
        evaluate = build_mean_evaluate(images.held_out, run.config, shown)
        result = fit_encoder(
            run.config, encoder, images.build_training_images(), folder, evaluate, run.own_terms, watch
        )
        print_message(describe_kept(result, images.num_measured))
        result, choice = choose_image_size(run.config, result, evaluate, images.num_measured)
        seconds = time.monotonic() - start
        # Result
        fingerprint, results = finish_run(run, images, result, choice, out.absolute() / ENCODER_SUBFOLDER)
        summary = {
            "recipe": run.recipe,
            **summarize_sources(images),
            "config": config_to_json(run.config),
            **({"own_terms": describe_own_terms(run.own_terms)} if run.own_terms else {}),
            **_summarize(images.fit, result, choice),
            "seconds": round(seconds, 1),
            "encoder_fingerprint": fingerprint,
        }
        watch.finish()
        write_manifest(folder, "run", summary)
    return summary, results


def _list_values(config: Config) -> dict[str, Any]:
    """List every setting by its dotted name, as plain JSON values."""
    return {one.name: list(one.value) if isinstance(one.value, tuple) else one.value for one in list_settings(config)}


def _describe_facts(run: TrainingRun, images: RunImages) -> dict[str, Any]:
    """Describe what a run depends on beside its settings, for its record and its loggers."""
    return {
        "recipe": run.recipe,
        "data": images.describe(),
        "num_images": len(images.fit),
        "num_classes": len({record.label for record in images.fit}),
        "vitrieve_version": __version__,
    }


def _help(run: TrainingRun, encoder: ImageEncoder, images: RunImages) -> TrainedRun:
    """Train with the first of several processes, which alone writes, and help it with the report."""
    evaluate = build_mean_evaluate(images.held_out, run.config)
    result = fit_encoder(run.config, encoder, images.build_training_images(), run.out, evaluate, run.own_terms)
    choose_image_size(run.config, result, evaluate)
    summary, results = help_report(current_ranks(), lambda folder: load_compared(folder, run.config))
    return TrainedRun(folder=run.out, summary=summary, results=tuple(results), device=run.config.train.device)


def _build_encoder(run: TrainingRun, num_images: int) -> ImageEncoder:
    model = run.config.model
    encoder = build_encoder(model, seed=run.config.train.seed)
    if model.weights is not None and encoder.spec.weights_note:
        print_message(encoder.spec.weights_note)
    for note in find_ineffective(
        run.config,
        run.base,
        has_batch_norm=has_batch_norm(encoder),
        has_own_terms=bool(run.own_terms),
        num_sources=len(run.datasets),
    ):
        print_message(note)
    allow_low_resolution(encoder, run.config)
    print_message(f"{model.backbone}: {format_cost(count_cost(model.backbone, model.image_size))}")
    if model.lora.rank is not None or model.prompts.num_tokens is not None:
        print_message(describe_trained(encoder))
    require_prefixes(run.config.objective, encoder.spec.embedding_dim)
    require_teacher(run.config, run.out if run.is_resume and not run.is_overwrite else None)
    if model.embedding_dim is not None:
        require_reducible(model.embedding_dim, encoder.spec.embedding_dim, num_images)
    return encoder


def _summarize(records: Sequence[ImageRecord], result: TrainingResult, choice: SizeChoice) -> dict[str, Any]:
    return {
        "num_images": len(records),
        "num_classes": len({record.label for record in records}),
        "num_steps": result.num_steps,
        "kept_step": result.kept_step,
        "holdout_map_at_r": {str(step): value for step, value in result.selection.values.items()},
        "image_size": choice.image_size,
        "holdout_map_at_r_by_image_size": {str(size): value for size, value in choice.values.items()},
    }
