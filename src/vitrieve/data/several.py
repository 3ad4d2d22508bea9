"""Several sources in one training: how they are read, and what keeps their images and classes apart."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from vitrieve.data.folder import ROLES, read_flat_folder
from vitrieve.data.records import Dataset, GroundTruth, ImageRecord
from vitrieve.data.sources import find_source_path, is_folder_source, list_protocols, read_source
from vitrieve.errors import ConfigError, DataError
from vitrieve.quoting import count_nouns, quote_name
from vitrieve.settings import list_texts

TrainingClasses = Literal["train", "all", "none"]


def read_sources(
    sources: str | Path | Sequence[str | Path],
    *,
    protocols: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    classes: TrainingClasses = "train",
) -> tuple[Dataset, ...]:
    """Read the sources of a training, each as ``read_source`` reads it.

    Args:
        sources: Sources as ``read_source`` takes them, at least one.
        protocols: One protocol for each source, in order; none: the first of each.
        exclude: Patterns of files to leave out of every folder, with the rules of gitignore.
        classes: ``train``: the classes that each source keeps for training. ``all``: every class
            (``train_on_all_classes``). ``none``: no class of a training image is looked at (``forget_labels``); a
            folder needs no folders of classes then, and pictures in its folders that are named for testing (``test``,
            ``query``, ``gallery``) stay out.

    Returns:
        A data set for each source. ``train`` takes them, and keeps their images and classes apart.

    Raises:
        DataError: A source or a protocol is unknown, or cannot be read.
        ConfigError: No source, another number of protocols, or patterns although no source is a folder.
    """
    names = [str(source) for source in ([sources] if isinstance(sources, str | Path) else sources)]
    protocols = list_texts(protocols)
    if not names:
        raise ConfigError("no source is named; give one or more: --data SOURCE.")
    if protocols and len(protocols) != len(names):
        raise ConfigError(
            f"the protocols are {', '.join(protocols)}, and the sources are {', '.join(names)}; give one protocol for "
            "each source, in order, or none: then it is the first of each."
        )
    # Where no source is a folder, read_source refuses the patterns.
    is_for_all = not any(map(is_folder_source, names))
    read = _read_unlabeled if classes == "none" else read_source
    datasets = [
        read(name, protocol=protocol, exclude=exclude if is_for_all or is_folder_source(name) else ())
        for name, protocol in itertools.zip_longest(names, protocols)
    ]
    return tuple(map(train_on_all_classes, datasets)) if classes == "all" else tuple(datasets)


def _read_unlabeled(source: str, *, protocol: str | None, exclude: str | Sequence[str]) -> Dataset:
    """Read a source without looking at the classes of its training images; test images keep theirs.

    Of a folder without folders of classes every picture trains, but those in folders that are named for testing.

    Raises:
        DataError: The source cannot be read, or has pictures for testing only.
    """
    try:
        return forget_labels(read_source(source, protocol=protocol, exclude=exclude))
    except DataError as error:
        path = find_source_path(source)
        if path is None or not is_folder_source(source) or protocol not in (None, *list_protocols(source)):
            raise
        refusal = error
    dataset = replace(read_flat_folder(path, exclude=exclude), source=source)  # at any depth
    records = tuple(replace(one, split="train") for one in dataset.records if not _is_for_testing(one.image_id))
    if not records:
        raise refusal
    notes = dataset.notes
    if num_left_out := len(dataset.records) - len(records):
        counted = count_nouns(num_left_out, "image is", "images are")
        notes += (f"{counted} left out, in folders that are named for testing, such as test or query.",)
    return forget_labels(replace(dataset, records=records, notes=notes))


def _is_for_testing(image_id: str) -> bool:
    """Say whether the first folder above a picture that has the name of a split is for testing.

    >>> _is_for_testing("all/Test/1.jpg"), _is_for_testing("train/test/1.jpg"), _is_for_testing("2020/test.jpg")
    (True, False, False)
    """
    roles = (ROLES.get(folder.casefold()) for folder in image_id.split("/")[:-1])
    first = next((role for role in roles if role is not None), None)
    return first is not None and first.split == "test"


def forget_labels(dataset: Dataset) -> Dataset:
    """Make every training image a class of its own, of which two views are positives.

    Args:
        dataset: Data set of any kind; its test images keep their labels.
    """
    records, names = [], list(dataset.label_names)
    for record in dataset.records:
        if record.split == "test":
            records.append(record)
        else:
            records.append(replace(record, label=len(names), split="train"))
            names.append(record.image_id)
    note = "no label of a training image is used: two views of an image are its class."
    return replace(
        dataset,
        protocol=f"{dataset.protocol}, no labels",
        records=tuple(records),
        label_names=tuple(names),
        positive_pairs=(),
        more_labels={},
        notes=(*dataset.notes, note),
        is_unlabeled=True,
    )


def train_on_all_classes(dataset: Dataset) -> Dataset:
    """Move the images of the test split into training, for an encoder that is measured on another collection.

    Args:
        dataset: Data set under a protocol whose labels decide what is right.

    Raises:
        DataError: The data set has a ground truth query by query, so that its labels mean nothing.
    """
    if dataset.ground_truth is not None:
        raise DataError(
            f"{dataset.name} lists for each query what is right, so its test images have no classes to train on; leave "
            "it out."
        )
    note = "the classes for testing are training classes, too: nothing of it can be measured fairly."
    return replace(
        dataset,
        protocol=f"{dataset.protocol}, all classes",
        records=tuple(
            replace(record, split="train") if record.split == "test" else record for record in dataset.records
        ),
        notes=(*dataset.notes, note),
    )


def set_apart(datasets: Sequence[Dataset]) -> tuple[Dataset, ...]:
    """Give several data sets names, image names and labels of which no two are equal.

    Args:
        datasets: Data sets, at least one. A single one is returned as it is.

    Returns:
        The data sets in order. Each has a name of its own (its spelling where two are called alike), which stands
        before each ``image_id`` and in each record's ``source``; labels count on from those of the data set before, and
        ``label_names`` are those of all.

    Raises:
        DataError: A picture is in two of them, as when a source is given twice; or two that were made in memory are
            called alike; or one has several labels an image, or pairs of feedback.
    """
    if len(datasets) == 1:
        return tuple(datasets)
    for dataset in datasets:
        if dataset.more_labels or dataset.negative_pairs:
            raise DataError(
                f"{quote_name(dataset.name)} has several labels an image, or pairs; that works with one source only."
            )
    counts = Counter(dataset.name for dataset in datasets)
    names = [dataset.source or dataset.name if counts[dataset.name] > 1 else dataset.name for dataset in datasets]
    _refuse_shared_pictures(datasets, names)
    if len(set(names)) < len(names):
        name = Counter(names).most_common(1)[0][0]
        raise DataError(
            f"two of the data sets are called {quote_name(name)}; give one another name: dataclasses.replace(dataset, "
            "name=...)."
        )
    for name, dataset in zip(names, datasets, strict=True):
        if any(not 0 <= record.label < len(dataset.label_names) for record in dataset.records):
            raise DataError(
                f"{quote_name(name)} has labels for which label_names has no name; they would become classes of "
                "another data set. Give each label a name."
            )
    label_names = tuple(itertools.chain.from_iterable(dataset.label_names for dataset in datasets))
    apart, first_label = [], 0
    for name, dataset in zip(names, datasets, strict=True):
        apart.append(replace(_rename(dataset, name, first_label), label_names=label_names))
        first_label += len(dataset.label_names)
    return tuple(apart)


def _refuse_shared_pictures(datasets: Sequence[Dataset], names: Sequence[str]) -> None:
    """Refuse a picture that would be of two classes, whatever the spellings of its sources and links."""
    seen: dict[tuple[str, tuple[float, ...] | None], tuple[str, ImageRecord]] = {}
    for name, dataset in zip(names, datasets, strict=True):
        here = {(os.path.realpath(record.path), record.box): record for record in dataset.records}
        for picture, record in here.items():
            if picture not in seen:
                continue
            other_name, other = seen[picture]
            raise DataError(
                f"{quote_name(record.image_id)} of {name} and {quote_name(other.image_id)} of {other_name} are "
                "the same picture, which would be of two classes: a source is given twice, or two overlap. Name each "
                "once."
            )
        seen |= {picture: (name, record) for picture, record in here.items()}


def _rename(dataset: Dataset, name: str, first_label: int) -> Dataset:
    def spell(image_ids: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"{name}/{image_id}" for image_id in image_ids)

    truths = dataset.ground_truth
    return replace(
        dataset,
        name=name,
        records=tuple(
            replace(record, image_id=f"{name}/{record.image_id}", label=first_label + record.label, source=name)
            for record in dataset.records
        ),
        positive_pairs=tuple((f"{name}/{one}", f"{name}/{other}") for one, other in dataset.positive_pairs),
        ground_truth=None
        if truths is None
        else {
            f"{name}/{query}": GroundTruth(easy=spell(truth.easy), hard=spell(truth.hard), junk=spell(truth.junk))
            for query, truth in truths.items()
        },
    )
