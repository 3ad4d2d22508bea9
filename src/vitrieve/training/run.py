"""The whole of ``train``: a run from the source of its images to the encoder, the report and the manifest.

The command ``vitrieve train`` (``cli/train.py``) calls the same function. The optimizer's steps are in ``loop.py``.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

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
from vitrieve.data.check import find_readable
from vitrieve.data.holdout import VIEW_MARK, TrainingSplit, count_images, split_for_training
from vitrieve.data.records import Dataset, ImageRecord, require_trainable
from vitrieve.data.several import set_apart
from vitrieve.data.sources import read_source
from vitrieve.embed.collection import Embeddings, EmbedSettings, describe_source, embed_images
from vitrieve.errors import ArtifactError, ConfigError, DataError, UnfinishedRunError, VitrieveError
from vitrieve.evaluation.examples import NUM_QUERIES, QueryExample, list_examples
from vitrieve.evaluation.measure import EvaluationResult, Measurement, measure
from vitrieve.evaluation.protocols import select_records
from vitrieve.evaluation.run import (
    EMBEDDINGS_FOLDER,
    REPORT_NAME,
    measure_protocols,
    run_comparison,
)
from vitrieve.model.artifact import ENCODER_SUBFOLDER, ModelCard
from vitrieve.model.backbone import count_cost, format_cost
from vitrieve.model.encoder import (
    ImageEncoder,
    build_encoder,
    fingerprint_encoder,
    leave_out_untrained,
    save_encoder,
    write_card,
)
from vitrieve.model.export import export_folder
from vitrieve.model.lora import describe_trained
from vitrieve.model.named_graph import has_named_graph, make_named_folder
from vitrieve.model.pretrained import WEIGHTS, find_weights, list_seen
from vitrieve.objective.own import OwnTerm, describe_own_terms, read_own_terms
from vitrieve.objective.term import Relations
from vitrieve.progress import print_message
from vitrieve.recipes import find_recipe
from vitrieve.runtime.device import describe_emulation, resolve_device
from vitrieve.runtime.encoder import Encoder, load_encoder, wrap_encoder
from vitrieve.settings import config_to_json, list_settings, override_config
from vitrieve.training.callbacks import Callback, check_callbacks
from vitrieve.training.compute import allow_low_resolution, has_batch_norm
from vitrieve.training.identity import describe_run, digest_weights, require_same_on_ranks, require_same_run
from vitrieve.training.loggers import build_loggers
from vitrieve.training.loop import Evaluate, TrainingResult, fit_encoder
from vitrieve.training.ranks import Ranks, current_ranks, is_restart, joining_ranks, share_places
from vitrieve.training.reduction import reduce_encoder, require_reducible
from vitrieve.training.relations import build_relations
from vitrieve.training.reporting import DividedReport, end_report, help_report
from vitrieve.training.watching import RunWatch

Data = Dataset | str | Path
"""A data set, or a source as ``read_source`` takes it."""
REPORT_FOLDER = "report"
TEST_EMBEDDINGS_FOLDER = "test_embeddings"
"""Inside the report of a run on one source: the embeddings of the test images, which ``embed --reuse`` takes."""
OWN_RECIPE = "own"
"""Name of a configuration that did not begin with a recipe."""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """The order for a run.

    Attributes:
        recipe: Name that the configuration began with.
        base: The recipe's own configuration.
        config: The complete settings.
        datasets: Data sets that are trained and reported on, with their unreadable images, kept apart by ``set_apart``.
        out: Folder of the run.
        own_terms: Terms of the objective that are not of this package.
        callbacks: Who watches, loggers included.
        has_report: Whether the run ends with a report before and after on the test classes.
        is_overwrite: Whether what the folder holds is replaced.
        is_resume: Whether an unfinished run in the folder goes on.
    """

    recipe: str
    base: Config
    config: Config
    datasets: tuple[Dataset, ...]
    out: Path
    own_terms: tuple[OwnTerm, ...] = ()
    callbacks: tuple[Callback, ...] = ()
    has_report: bool = True
    is_overwrite: bool = False
    is_resume: bool = False


class _Images(NamedTuple):
    """The readable images of a run.

    Attributes:
        datasets: Data sets without their unreadable images.
        splits: Division of the training images of each.
        digests: SHA-256 of the file of each image, by ``image_id``.
    """

    datasets: tuple[Dataset, ...]
    splits: tuple[TrainingSplit, ...]
    digests: Mapping[str, bytes]

    @property
    def fit(self) -> tuple[ImageRecord, ...]:
        """Images that the encoder learns from."""
        return tuple(chain.from_iterable(split.fit for split in self.splits))

    @property
    def held_out(self) -> dict[str, Dataset]:
        """Images that measure the states, by the name of their source."""
        pairs = zip(self.datasets, self.splits, strict=True)
        return {dataset.name: split.held_out for dataset, split in pairs if split.held_out is not None}

    @property
    def positive_pairs(self) -> tuple[tuple[str, str], ...]:
        """Pairs that the sources list."""
        return tuple(chain.from_iterable(dataset.positive_pairs for dataset in self.datasets))

    def build_relations(self) -> Relations | None:
        """Build what is known of pairs of the training images beside one label of each; None: nothing."""
        more = {name: labels for dataset in self.datasets for name, labels in dataset.more_labels.items()}
        pairs = [pair for dataset in self.datasets for pair in dataset.negative_pairs]
        return build_relations(self.fit, more, pairs)

    @property
    def relation_pairs(self) -> tuple[tuple[str, str], ...]:
        """What the relations say, as pairs of texts that a resumed run compares."""
        more = [
            (name, f"is {label}")
            for one in self.datasets
            for name, labels in sorted(one.more_labels.items())
            for label in labels
        ]
        return (*more, *((first, f"is not {second}") for one in self.datasets for first, second in one.negative_pairs))

    def describe(self) -> str:
        """Name the sources, each with its protocol."""
        return ", ".join(f"{dataset.name} ({dataset.protocol})" for dataset in self.datasets)

    def tell(self, dataset: Dataset, *sentences: str) -> None:
        """Tell the user about one data set, by its name where there are several."""
        name = f"{dataset.name}: " if len(self.datasets) > 1 else ""
        print_message(*(name + sentence for sentence in sentences if sentence))


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
    with joining_ranks() as ranks:
        require_same_on_ranks(_describe_order(run))
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
    check_replacing(run.out, is_overwrite=is_overwrite, is_resume=is_resume)
    return None, is_overwrite, is_resume


def _describe_order(run: TrainingRun) -> dict[str, Any]:
    """Describe what a run was started with, which is the same for all processes of a training."""
    return {
        "recipe": run.recipe,
        "out": str(run.out),
        "report": run.has_report,
        "overwrite": run.is_overwrite,
        "resume": run.is_resume,
        "own_terms": describe_own_terms(run.own_terms),
        **config_to_json(run.config),
    }


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
    seen = list_seen(entry.name, [dataset.name for dataset in datasets if dataset.split("test")])
    if not seen:
        return config
    unseen = entry.delta.base
    print_message(f"{entry.name} has seen the test classes of {', '.join(seen)}: training starts from {unseen}")
    return override_config(config, {"model.backbone": unseen})


def run_training(run: TrainingRun) -> TrainedRun:
    """Train, keep the encoder, report; ``train`` has checked the settings and the folder."""
    start, ranks = time.monotonic(), current_ranks()
    # Images
    images = _read_images(run)
    _tell_notes(run, images)
    # Encoder and folder
    with ranks.first_alone():
        encoder = _build_encoder(run, len(images.fit))  # before the folder is made: weights may be out of reach
    model = replace(run.config.model, pooling=encoder.spec.pooling)  # by default the model's own
    run = replace(run, config=replace(run.config, model=model))
    settings = _describe_data(run, images)
    if ranks.size > 1:
        require_same_on_ranks({**settings, "start": {"weights": digest_weights(encoder)}})
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
    images: _Images,
    encoder: ImageEncoder,
    settings: Mapping[str, Any],
    watch: RunWatch,
    start: float,
) -> tuple[dict[str, Any], list[EvaluationResult]]:
    """Train on the process that writes, or alone; return the manifest and the figures of the report."""
    out = run.out
    with replacing_folder(out, is_overwrite=run.is_overwrite, is_resume=run.is_resume) as folder:
        run = replace(run, out=folder)  # beside the run that it replaces, until it is complete
        for note in require_same_run(folder, settings, encoder=encoder):
            print_message(note)
        watch.open(folder, out.absolute().name, _list_values(run.config), _describe_facts(run, images))
        # Training
        shown = watch.watchers.examples if run.callbacks else None
        evaluate = build_mean_evaluate(images.held_out, run.config, shown)
        result = fit_encoder(
            run.config,
            encoder,
            images.fit,
            folder,
            evaluate,
            images.positive_pairs,
            run.own_terms,
            images.build_relations(),
            watch,
        )
        seconds = time.monotonic() - start
        print_message(describe_kept(result, len(images.held_out)))
        # Result
        fingerprint, results = _finish(run, images, result, out.absolute() / ENCODER_SUBFOLDER)
        summary = {
            "recipe": run.recipe,
            **_summarize_sources(images),
            "config": config_to_json(run.config),
            **({"own_terms": describe_own_terms(run.own_terms)} if run.own_terms else {}),
            **_summarize(images.fit, result),
            "seconds": round(seconds, 1),
            "encoder_fingerprint": fingerprint,
        }
        watch.finish()
        write_manifest(folder, "run", summary)
    return summary, results


def _list_values(config: Config) -> dict[str, Any]:
    """List every setting by its dotted name, as plain JSON values."""
    return {one.name: list(one.value) if isinstance(one.value, tuple) else one.value for one in list_settings(config)}


def _describe_facts(run: TrainingRun, images: _Images) -> dict[str, Any]:
    """Describe what a run depends on beside its settings, for its record and its loggers."""
    return {
        "recipe": run.recipe,
        "data": images.describe(),
        "num_images": len(images.fit),
        "num_classes": len({record.label for record in images.fit}),
        "vitrieve_version": __version__,
    }


def _help(run: TrainingRun, encoder: ImageEncoder, images: _Images) -> TrainedRun:
    """Train with the first of several processes, which alone writes, and help it with the report."""
    evaluate = build_mean_evaluate(images.held_out, run.config)
    fit_encoder(
        run.config,
        encoder,
        images.fit,
        run.out,
        evaluate,
        images.positive_pairs,
        run.own_terms,
        images.build_relations(),
    )
    summary, results = help_report(current_ranks(), lambda folder: _load_compared(folder, run.config))
    return TrainedRun(folder=run.out, summary=summary, results=tuple(results), device=run.config.train.device)


def _read_images(run: TrainingRun) -> _Images:
    """Leave unreadable images out of every part of the data sets, once, so that no later stage meets one."""
    for dataset in run.datasets:
        require_trainable(dataset)
    if run.config.loader.sampling == "tuples":
        _check_pairs(run.datasets)
    pairs = [_drop_unreadable(dataset, run.config.train.max_bad_fraction) for dataset in run.datasets]
    datasets = tuple(dataset for dataset, _ in pairs)
    splits = tuple(split_for_training(dataset, is_holdout=run.config.train.holdout) for dataset in datasets)
    digests = {name: digest for _, digests in pairs for name, digest in digests.items()}
    for split in splits:
        for record in split.held_out.records if split.held_out is not None else ():
            digests.setdefault(record.image_id, digests.get(record.image_id.removesuffix(VIEW_MARK), b""))
    return _Images(datasets, splits, digests)


def _check_pairs(datasets: Sequence[Dataset]) -> None:
    """Refuse pairs listed by some sources only, because the classes of the others would give no anchor.

    Raises:
        ConfigError: The message names a source of each kind.
    """
    listing = [dataset.name for dataset in datasets if dataset.positive_pairs]
    others = [dataset.name for dataset in datasets if not dataset.positive_pairs]
    if listing and others:
        raise ConfigError(
            f"{listing[0]} lists the pairs that make tuples, and {others[0]} does not; train on tuples of one of them "
            "alone, or choose another loader.sampling."
        )


def _drop_unreadable(dataset: Dataset, max_bad_fraction: float) -> tuple[Dataset, dict[str, bytes]]:
    """Return the readable part of a data set, and the digests of its files by ``image_id``."""
    readable = find_readable(dataset.records, max_bad_fraction=max_bad_fraction, show_progress=True)
    digests = {record.image_id: digest for record, digest in zip(readable.records, readable.digests, strict=True)}
    if not readable.failures:
        return dataset, digests
    for image_id, reason in readable.failures:
        print_message(f"left out: {image_id}: {reason}")
    verb = "is" if len(readable.failures) == 1 else "are"
    note = f"{len(readable.failures)} of {len(dataset.records)} images {verb} unreadable and left out."
    dataset = replace(dataset, records=readable.records, notes=(*dataset.notes, note))
    require_trainable(dataset)
    return dataset, digests


_SOURCE_RULES = {
    "mixed": "the classes of a batch come from the sources in turn",
    "one": "each batch is of one source, in turn",
    "together": "the sources are thrown together",
}


def _tell_notes(run: TrainingRun, images: _Images) -> None:
    config = run.config
    for dataset, split in zip(images.datasets, images.splits, strict=True):
        images.tell(dataset, *dataset.notes, split.note)
    if len(images.datasets) > 1:
        rule = "" if config.loader.sampling == "tuples" else f"; {_SOURCE_RULES[config.loader.sources]}"
        print_message(f"training on {count_images(images.fit)} from {len(images.datasets)} sources{rule}")
    if len(images.held_out) > 1:
        print_message(f"the mean over the held-out classes of {', '.join(images.held_out)} chooses the state")
    teacher = config.objective.distillation.teacher or ""
    for name in list_seen(teacher, [dataset.name for dataset in images.datasets if dataset.split("test")]):
        print_message(f"the teacher {teacher} has seen the test classes of {name}: figures there say too much")
    emulation = describe_emulation(config.train.precision, resolve_device(config.train.device).type)
    if emulation:
        print_message(emulation)


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
    if model.embedding_dim is not None:
        require_reducible(model.embedding_dim, encoder.spec.embedding_dim, num_images)
    return encoder


def _describe_data(run: TrainingRun, images: _Images) -> dict[str, Any]:
    """Describe what determines a run."""
    records = (*images.fit, *chain.from_iterable(dataset.records for dataset in images.held_out.values()))
    protocol = ", ".join(dataset.protocol for dataset in images.datasets)
    return describe_run(
        run.recipe,
        run.config,
        protocol,
        records,
        (*images.positive_pairs, *images.relation_pairs),
        images.digests,
        run.own_terms,
    )


def build_evaluate(held_out: Dataset, config: Config, shown: list[QueryExample] | None = None) -> Evaluate:
    """Build the measurement on held-out classes that the training loop calls.

    Args:
        held_out: Images of the held-out classes.
        config: The complete settings.
        shown: List that gets some queries with what they find, at each measurement; None: nobody looks at them.
    """
    # Every image was readable when the run began. Were some left out later, the states would not be comparable.
    settings = EmbedSettings(max_bad_fraction=0.0)

    def evaluate(encoder: ImageEncoder) -> dict[str, float]:
        wrapped = wrap_encoder(encoder, name="training", precision=config.train.precision)
        if current_ranks().size > 1:
            metrics = _evaluate_on_ranks(wrapped, held_out, current_ranks(), shown)
        else:
            measured = measure_protocols(wrapped, [held_out], wrapped.name, settings=settings)[0]
            metrics = _show(measured, shown)
        return {name: metrics[name] for name in ("recall_at_1", "map_at_r")}

    return evaluate


def _show(measured: Measurement, shown: list[QueryExample] | None) -> Mapping[str, float]:
    """Return the figures, and put examples where somebody looks at them."""
    if shown is not None and len(shown) < NUM_QUERIES:
        shown += list_examples(measured, NUM_QUERIES - len(shown))
    return measured.result.metrics


def _evaluate_on_ranks(
    encoder: Encoder, held_out: Dataset, ranks: Ranks, shown: list[QueryExample] | None
) -> Mapping[str, float]:
    """Measure an encoder on images that several processes divide; the first measures, for all of them."""
    records = select_records(held_out)
    shares = share_places(len(records), ranks.size)
    own = [records[row] for row in shares[ranks.rank]]
    empty = np.empty((0, encoder.embedding_dim), np.float32)
    vectors = ranks.try_together(lambda: embed_images(encoder, own, max_bad_fraction=0.0).vectors if own else empty)
    vectors = ranks.gather_arrays(vectors, shares)
    embeddings = Embeddings(
        vectors=vectors,
        records=tuple(records),
        failures=(),
        fingerprint=encoder.fingerprint,
        encoder_source=describe_source(encoder),
        image_size=encoder.preprocessing.image_size,
    )
    return ranks.share_first(
        lambda: dict(_show(measure(held_out, embeddings, encoder.name, has_intervals=False), shown))
    )


def build_mean_evaluate(
    held_out: Mapping[str, Dataset], config: Config, shown: list[QueryExample] | None = None
) -> Evaluate | None:
    """Build the measurement on held-out classes of several sources: its mean over them, and that of each.

    The mean counts every source once, so that a large one does not decide alone.

    Args:
        held_out: Held-out images of each source that has some, by its name.
        config: The complete settings.
        shown: List that gets examples, as in ``build_evaluate``.
    """
    evaluates = {name: build_evaluate(dataset, config, shown) for name, dataset in held_out.items()}
    if len(evaluates) < 2:
        return next(iter(evaluates.values()), None)

    def evaluate(encoder: ImageEncoder) -> dict[str, float]:
        found = {name: evaluate_one(encoder) for name, evaluate_one in evaluates.items()}
        metrics = next(iter(found.values()))
        means = {metric: fmean(values[metric] for values in found.values()) for metric in metrics}
        return means | {f"{metric}/{name}": found[name][metric] for name in found for metric in metrics}

    return evaluate


def describe_kept(result: TrainingResult, num_measured: int = 1) -> str:
    """Say in a sentence which state of a run is kept, and why.

    Args:
        result: End of the run.
        num_measured: Number of sources over which the measurements are means.
    """
    if not result.selection.values:
        return f"kept the last state, after step {result.num_steps} (nothing was held out to measure it)"
    mean = f" (the mean over {num_measured} sources)" if num_measured > 1 else ""
    return f"{result.selection.describe()}{mean}"


def _finish(
    run: TrainingRun, images: _Images, result: TrainingResult, final_folder: Path
) -> tuple[str, list[EvaluationResult]]:
    """Do everything that follows the last step; whatever fails in it costs neither the encoder nor the rest.

    Args:
        run: Order for the run, with the folder that is written now.
        images: Readable images.
        result: End of the training.
        final_folder: Folder of the encoder once the run is complete.

    Returns:
        Fingerprint of the encoder, and the figures of the report.

    Raises:
        UnfinishedRunError: Something failed; the encoder is saved.
    """
    folder = run.out / ENCODER_SUBFOLDER
    failures: list[tuple[str, Exception]] = []
    if result.failure is not None:
        failures.append(("measuring the last state", result.failure))
    if run.config.model.embedding_dim is not None:
        try:
            result = _reduce(run, images, result)
        except Exception as error:
            failures.append(("the reduction", error))
    may_report = not failures and run.has_report
    card = _build_card(run, images, result)
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
                write_card(result.encoder, folder, _build_card(run, images, result, results))
        except Exception as error:
            failures.append(("the report", error))
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


def _reduce(run: TrainingRun, images: _Images, result: TrainingResult) -> TrainingResult:
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


def _has_tests(images: _Images, dataset: Dataset) -> bool:
    """Tell whether a source can be reported on; one without tests only says so."""
    try:
        select_records(dataset)
    except DataError as error:
        images.tell(dataset, f"no report: {error}")
        return False
    return True


def _report(run: TrainingRun, images: _Images, result: TrainingResult, final_folder: Path) -> list[EvaluationResult]:
    """Measure the frozen start and the result on the test classes of each source."""
    tested = [dataset for dataset in images.datasets if _has_tests(images, dataset)]
    if not tested:
        return []
    config = run.config
    frozen, loaded = _load_compared(run.out / ENCODER_SUBFOLDER, config)
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


def _load_compared(folder: Path, config: Config) -> tuple[Encoder, Encoder]:
    """Load what a report compares: the start of the run, and the encoder in a folder."""
    tuned = _load(folder, config)
    return _load_frozen(config, tuned), tuned


def _load_frozen(config: Config, tuned: Encoder) -> Encoder:
    """Load the start of the run: from a graph, where one is of the same encoder, else with torch."""
    frozen = build_encoder(leave_out_untrained(config.model)).to(resolve_device(config.train.device))
    if fingerprint_encoder(frozen) == tuned.fingerprint:  # no state was better, and the start was kept
        return tuned
    is_named = config.model.weights is None and has_named_graph(find_weights(config.model.backbone))
    if is_named and tuned.engine != "torch":
        named = _load(make_named_folder(find_weights(config.model.backbone), config.model.image_size), config)
        if named.fingerprint == fingerprint_encoder(frozen):
            return named
    return wrap_encoder(frozen, name="before", precision=config.train.precision)


def _build_card(
    run: TrainingRun, images: _Images, result: TrainingResult, results: Sequence[EvaluationResult] = ()
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
        notes=(describe_kept(result, len(images.held_out)) + ".",),
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


def _summarize_sources(images: _Images) -> dict[str, Any]:
    """Describe what trained: the spelling and protocol of the source, or a list of them, and the images of each."""
    spellings = [dataset.source or dataset.name for dataset in images.datasets]
    protocols = [dataset.protocol for dataset in images.datasets]
    is_alone = len(spellings) == 1
    return {
        "data": spellings[0] if is_alone else spellings,
        "protocol": protocols[0] if is_alone else protocols,
        "sources": [
            {
                "name": dataset.name,
                "num_images": len(split.fit),
                "num_classes": len({record.label for record in split.fit}),
                "num_held_out_classes": 0 if split.held_out is None else _count_asked(split.held_out),
            }
            for dataset, split in zip(images.datasets, images.splits, strict=True)
        ],
    }


def _count_asked(dataset: Dataset) -> int:
    return len({record.label for record in dataset.split("test") if record.is_query})


def _summarize(records: Sequence[ImageRecord], result: TrainingResult) -> dict[str, Any]:
    return {
        "num_images": len(records),
        "num_classes": len({record.label for record in records}),
        "num_steps": result.num_steps,
        "kept_step": result.kept_step,
        "holdout_map_at_r": {str(step): value for step, value in result.selection.values.items()},
    }
