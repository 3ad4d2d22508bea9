"""The images of a run: read, without those that nobody can decode, divided into what trains and what is held out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

from vitrieve.data.check import find_readable
from vitrieve.data.holdout import VIEW_MARK, TrainingSplit, count_images, split_for_training
from vitrieve.data.records import Dataset, ImageRecord, require_trainable
from vitrieve.errors import ConfigError
from vitrieve.model.seen import list_seen
from vitrieve.progress import print_message
from vitrieve.quoting import quote_name
from vitrieve.runtime.device import describe_emulation, resolve_device
from vitrieve.training.identity import IS, IS_NOT, Relation, describe_run
from vitrieve.training.order import TrainingRun
from vitrieve.training.relations import TrainingImages, build_relations


class RunImages(NamedTuple):
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
        """Images that measure the states, by the name of their source; and parts of others beside them."""
        pairs = list(zip(self.datasets, self.splits, strict=True))
        classes = {dataset.name: split.held_out for dataset, split in pairs if split.held_out is not None}
        return classes | {f"parts of {one.name}": split.parts for one, split in pairs if split.parts is not None}

    @property
    def num_measured(self) -> int:
        """Count the sources that measure the states."""
        return sum(split.held_out is not None for split in self.splits)

    @property
    def positive_pairs(self) -> tuple[tuple[str, str], ...]:
        """Pairs that the sources list."""
        return tuple(chain.from_iterable(dataset.positive_pairs for dataset in self.datasets))

    def build_training_images(self) -> TrainingImages:
        """Build what the encoder learns from, with what is known of pairs."""
        more = {name: labels for dataset in self.datasets for name, labels in dataset.more_labels.items()}
        pairs = [pair for dataset in self.datasets for pair in dataset.negative_pairs]
        return TrainingImages(self.fit, self.positive_pairs, build_relations(self.fit, more, pairs))

    @property
    def relations(self) -> tuple[Relation, ...]:
        """What is known of pairs beside one label of each image, which a resumed run compares."""
        more = [
            (name, IS, str(label))
            for one in self.datasets
            for name, labels in sorted(one.more_labels.items())
            for label in labels
        ]
        return (*more, *((first, IS_NOT, second) for one in self.datasets for first, second in one.negative_pairs))

    def describe(self) -> str:
        """Name the sources, each with its protocol."""
        return ", ".join(f"{dataset.name} ({dataset.protocol})" for dataset in self.datasets)

    def tell(self, dataset: Dataset, *sentences: str) -> None:
        """Tell the user about one data set, by its name where there are several."""
        name = f"{dataset.name}: " if len(self.datasets) > 1 else ""
        print_message(*(name + sentence for sentence in sentences if sentence))


def read_images(run: TrainingRun) -> RunImages:
    """Leave unreadable images out of every part of the data sets, once, so that no later stage meets one."""
    for dataset in run.datasets:
        require_trainable(dataset)
    if run.config.loader.sampling == "tuples":
        _check_pairs(run.datasets)
    pairs = [_drop_unreadable(dataset, run.config.train.max_bad_fraction) for dataset in run.datasets]
    datasets = note_copies([dataset for dataset, _ in pairs], [digests for _, digests in pairs])
    splits = tuple(split_for_training(dataset, is_holdout=run.config.train.holdout) for dataset in datasets)
    digests = {name: digest for _, digests in pairs for name, digest in digests.items()}
    images = RunImages(datasets, splits, digests)
    for record in chain.from_iterable(dataset.records for dataset in images.held_out.values()):
        digests.setdefault(record.image_id, digests.get(record.image_id.removesuffix(VIEW_MARK), b""))
    return images


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


def note_copies(datasets: Sequence[Dataset], digests: Sequence[Mapping[str, bytes]]) -> tuple[Dataset, ...]:
    """Note what equal files make untrue: a test image that also trains, and an image that trains as two classes.

    Args:
        datasets: Data sets of one training.
        digests: For each, SHA-256 of the file of each of its images, by ``image_id``.

    Returns:
        The data sets, with a note each where their images are there again, in it or in another of them.
    """
    classes: dict[_Picture, tuple[int, int]] = {}
    mixed: set[_Picture] = set()
    for place, (dataset, files) in enumerate(zip(datasets, digests, strict=True)):
        for record in dataset.records:
            if record.split != "test":
                picture, own = (files[record.image_id], record.box), (place, record.label)
                if classes.setdefault(picture, own) != own:
                    mixed.add(picture)
    return tuple(
        replace(dataset, notes=(*dataset.notes, *_describe_copies(dataset, files, classes, mixed)))
        for dataset, files in zip(datasets, digests, strict=True)
    )


_Picture = tuple[bytes, tuple[float, ...] | None]
"""Digest of a file, and the region of it that is looked at."""


def _describe_copies(
    dataset: Dataset, files: Mapping[str, bytes], trained: Collection[_Picture], mixed: Collection[_Picture]
) -> Iterator[str]:
    leaks: list[str] = []
    split: list[str] = []
    num_tested = num_others = 0
    for record in dataset.records:  # a table of millions makes each when it is asked for
        picture = files[record.image_id], record.box
        if record.split == "test":
            num_tested += 1
            if picture in trained:
                leaks.append(record.image_id)
        elif record.image_id not in dataset.more_labels:
            num_others += 1
            if picture in mixed:
                split.append(record.image_id)
    for names, total, verb, consequence in (
        (leaks, num_tested, "test images train too", "what is measured with them says too much"),
        (split, num_others, "training images train as another class too", "a picture is pushed away from itself"),
    ):
        if names:
            yield (
                f"{len(names):,} of {total:,} {verb}, by files with the same bytes (as {quote_name(names[0])}): "
                f"{consequence}."
            )


_SOURCE_RULES = {
    "mixed": "the classes of a batch come from the sources in turn",
    "one": "each batch is of one source, in turn",
    "together": "the sources are thrown together",
}


def tell_notes(run: TrainingRun, images: RunImages) -> None:
    """Tell the user what is trained on, what is held out, and what the figures will not say."""
    config = run.config
    for dataset, split in zip(images.datasets, images.splits, strict=True):
        images.tell(dataset, *dataset.notes, split.note)
    if len(images.datasets) > 1:
        rule = "" if config.loader.sampling == "tuples" else f"; {_SOURCE_RULES[config.loader.sources]}"
        print_message(f"training on {count_images(images.fit)} from {len(images.datasets)} sources{rule}")
    if images.num_measured > 1:
        print_message(f"the mean over the held-out classes of {', '.join(images.held_out)} chooses the state")
    teacher = config.objective.distillation.teacher or ""
    for name in list_seen(teacher, images.datasets):
        print_message(f"the teacher {teacher} has seen the test classes of {name}: figures there say too much")
    emulation = describe_emulation(config.train.precision, resolve_device(config.train.device).type)
    if emulation:
        print_message(emulation)


def describe_data(run: TrainingRun, images: RunImages) -> dict[str, Any]:
    """Describe what determines a run."""
    records = (*images.fit, *chain.from_iterable(dataset.records for dataset in images.held_out.values()))
    protocol = ", ".join(dataset.protocol for dataset in images.datasets)
    return describe_run(
        run.recipe,
        run.config,
        protocol,
        records,
        (*images.positive_pairs, *images.relations),
        images.digests,
        run.own_terms,
    )


def summarize_sources(images: RunImages) -> dict[str, Any]:
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
