"""What an evaluation measures: a source under each protocol, then queries, gallery and junk as arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from vitrieve.data.records import (
    SPLITS,
    Dataset,
    GroundTruth,
    ImageRecord,
    RecordColumns,
    choose_records,
    list_measurable,
    move_records,
    number_groups,
    read_columns,
    read_ids,
)
from vitrieve.data.revisited import use_whole_queries
from vitrieve.data.sources import is_folder_source, list_protocols, read_collection, read_source
from vitrieve.errors import ConfigError, DataError, unknown_name_message
from vitrieve.evaluation.metrics import (
    NO_ROW,
    Exclusions,
    ListedRelevance,
    Relevance,
    RelevanceRule,
    check_cut_offs,
)
from vitrieve.evaluation.revisited import REVISITED_ROLES, Roles
from vitrieve.quoting import count_nouns
from vitrieve.similarity import IntArray

Classes = Literal["test", "all"]


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """Data sets to measure on, with the choices behind them, which an evaluation's manifest records.

    Attributes:
        datasets: One for each protocol; the first says the cut-offs.
        distractors: Source of the images that were added to the gallery; None: none were.
        whole_queries: The queries of a revisited benchmark are not cropped to their boxes.
        classes: Whether the classes kept for testing are measured, or all.
    """

    datasets: tuple[Dataset, ...]
    distractors: str | None = None
    whole_queries: bool = False
    classes: Classes = "test"


@dataclass(frozen=True, kw_only=True)
class DataChoices:
    """How a source is measured.

    Attributes:
        protocols: Protocols of the source; empty: its first, and of a revisited benchmark all three.
        classes: ``test``: the classes (or images) that the source keeps for testing; ``all``: every class, also those
            that training may have seen.
        ks: Cut-offs K of Recall@K (mP@K); empty: those that the field reports on the data set.
        distractors: Source of images that are added to the gallery and wrong for every query; None: none.
        whole_queries: Do not crop the queries of roxford5k and rparis6k to their boxes.
        exclude: Patterns of files to leave out of a folder, with the rules of gitignore.
    """

    protocols: tuple[str, ...] = ()
    classes: Classes = "test"
    ks: tuple[int, ...] = ()
    distractors: str | None = None
    whole_queries: bool = False
    exclude: tuple[str, ...] = ()


def read_evaluation_data(source: str, choices: DataChoices | None = None) -> EvaluationData:
    """Read a source under each protocol, as an evaluation measures it.

    Args:
        source: Source as ``read_source`` takes it.
        choices: Choice of what is measured of it; None: its first protocol (or all three of a revisited benchmark).

    Raises:
        DataError: The source cannot be read, or has nothing to measure on.
        ConfigError: A choice does not fit the source.
    """
    choices = choices or DataChoices()
    ks = tuple(sorted(set(check_cut_offs(choices.ks))))
    # Patterns leave files out of every folder; where there is none, the reader of the data set refuses them.
    is_data_meant = choices.distractors is None or not is_folder_source(choices.distractors)
    exclude = choices.exclude if is_data_meant or is_folder_source(source) else ()
    datasets = _read_protocols(source, choices.protocols, exclude)
    if choices.classes == "all":
        datasets = [take_all_classes(dataset) for dataset in datasets]
    if ks:
        datasets = [replace(dataset, ks=ks) for dataset in datasets]
    if choices.whole_queries:
        if datasets[0].ground_truth is None:
            raise ConfigError(
                f"--whole-queries is for roxford5k and rparis6k, not for {datasets[0].name}; leave it out."
            )
        datasets = [use_whole_queries(dataset) for dataset in datasets]
    if choices.distractors is not None:
        added = read_collection(choices.distractors, exclude=() if is_data_meant else choices.exclude)
        datasets = [add_distractors(dataset, added) for dataset in datasets]
    return EvaluationData(
        datasets=tuple(datasets),
        distractors=choices.distractors,
        whole_queries=choices.whole_queries,
        classes=choices.classes,
    )


def _read_protocols(source: str, protocols: Sequence[str], exclude: Sequence[str]) -> list[Dataset]:
    """Read the data set under each protocol that is asked for, or that is measured without asking."""
    chosen = tuple(dict.fromkeys(protocols))  # a protocol given twice is one
    datasets = [read_source(source, protocol=protocol, exclude=exclude) for protocol in chosen or (None,)]
    if not chosen and datasets[0].ground_truth is not None:
        # Easy, medium and hard differ in what counts, not in images, and are published together.
        offered = list_protocols(source)
        datasets = [read_source(source, protocol=protocol) for protocol in REVISITED_ROLES if protocol in offered]
    return datasets


@dataclass(frozen=True, kw_only=True)
class RetrievalTask:
    """Queries, gallery, and which images are right.

    Attributes:
        records: ``N`` images, each once, also those that are query and gallery.
        query_rows: ``(Q,)`` rows of the queries in ``records``.
        gallery_rows: ``(G,)`` rows of the gallery in ``records``.
        labels: ``(N,)`` int64.
        junk_groups: ``(N,)`` int64, images of one group are junk for each other (``NO_GROUP``: for nobody);
            None without junk.
        listed: Right and ignored images listed query by query; None: labels and ``junk_groups`` decide.
    """

    records: Sequence[ImageRecord]
    query_rows: IntArray
    gallery_rows: IntArray
    labels: IntArray
    junk_groups: IntArray | None = None
    listed: ListedRelevance | None = None

    @property
    def query_labels(self) -> IntArray:
        """``(Q,)`` labels of the queries."""
        return self.labels[self.query_rows]

    @property
    def gallery_labels(self) -> IntArray:
        """``(G,)`` labels of the gallery."""
        return self.labels[self.gallery_rows]

    @property
    def exclusions(self) -> Exclusions:
        """Images that a query's ranking leaves out: its own image, by row, and junk."""
        gallery_positions = np.full(len(self.records), NO_ROW, dtype=np.int64)
        gallery_positions[self.gallery_rows] = np.arange(len(self.gallery_rows))
        junk = self.junk_groups
        return Exclusions(
            query_rows=gallery_positions[self.query_rows],
            query_junk=None if junk is None else junk[self.query_rows],
            gallery_junk=None if junk is None else junk[self.gallery_rows],
        )

    @property
    def relevance(self) -> RelevanceRule:
        """Which images are right and which are left out, query by query."""
        return self.listed or Relevance(self.query_labels, self.gallery_labels, self.exclusions)


def add_distractors(dataset: Dataset, distractors: Dataset) -> Dataset:
    """Add images that are wrong for every query to the gallery of the test split.

    Args:
        dataset: Data set under any protocol.
        distractors: Source of the images; all are taken, whatever their splits, roles and labels.

    Returns:
        ``dataset`` with the distractors behind its records: gallery only, ``NAME/`` before their ``image_id``, of one
        further class without queries. Both names stand in its name.

    Raises:
        DataError: A distractor is a file of the data set, or has an ``image_id`` of it.
    """
    locate = _Locator()
    own_ids = {record.image_id for record in dataset.records}
    own_paths = {locate(record.path) for record in dataset.records}
    prefix = f"{distractors.name}/"
    added = tuple(
        ImageRecord(
            image_id=prefix + record.image_id.removeprefix(prefix),
            path=record.path,
            label=len(dataset.label_names),
            split="test",
            is_query=False,
            box=record.box,
        )
        for record in distractors.records
    )
    for record in added:
        if locate(record.path) in own_paths or record.image_id in own_ids:
            raise DataError(
                f"the distractor {record.image_id} ({record.path}) is an image of {dataset.name} too; distractors must "
                "be images that no query looks for. Give another source of distractors."
            )
    note = f"{len(added):,} distractors from {distractors.name} are in the gallery."
    return replace(
        dataset,
        name=f"{dataset.name} + {distractors.name}",
        records=(*dataset.records, *added),
        label_names=(*dataset.label_names, "distractor"),
        notes=(*dataset.notes, *distractors.notes, note),
        license=" ".join(filter(None, (dataset.license, distractors.license))),
    )


class _Locator:
    """It finds the real places of files, and looks each folder up once; a link that is a file is not followed."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def __call__(self, path: Path) -> str:
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)


def take_all_classes(dataset: Dataset) -> Dataset:
    """Move every image into the test split, so that all classes are measured, not only those held out for testing.

    Args:
        dataset: Data set under a protocol whose labels decide what is right. Queries and gallery keep their roles.

    Raises:
        DataError: The data set has a ground truth query by query; its queries are fixed.
    """
    if dataset.ground_truth is not None:
        raise DataError(
            f"{dataset.name} lists for each query what is right, so there are no further classes to measure; "
            "leave out --classes all."
        )
    columns = read_columns(dataset.records)
    num_trained = len(np.unique(columns.labels[columns.splits != SPLITS.index("test")]))
    note = (
        f"Measured on all {len(dataset.label_names)} classes, {num_trained} of them with images outside the test "
        "split: the figures of an encoder that was trained on them say little about new classes."
    )
    return replace(
        dataset,
        records=move_records(dataset.records, "test"),
        notes=(*dataset.notes, note) if num_trained else dataset.notes,
    )


def find_whole_cut_offs(task: RetrievalTask, ks: Sequence[int]) -> tuple[int, ...]:
    """Find the cut-offs K that reach to the end of every ranking: Recall@K is then 100 %, whatever the encoder does.

    Args:
        task: Queries and gallery.
        ks: Cut-offs, at least one.

    Returns:
        The cut-offs that are at least as large as the number of gallery images that the luckiest query can find: the
        gallery without the query's own image and without its junk.
    """
    if task.listed is not None:  # mP@K is a precision, which a large K lowers
        return ()
    relevance, length = task.relevance, 0
    for query in range(len(task.query_rows)):
        length = max(length, len(task.gallery_rows) - len(np.unique(relevance.excluded_rows(query))))
        if length > max(ks):
            return ()
    return tuple(k for k in ks if k >= length)


def select_records(dataset: Dataset) -> Sequence[ImageRecord]:
    """Select the queries and gallery images of the test split, each once, in order; of a table without making them.

    Raises:
        DataError: No query, nothing to find, a gallery of one class, or of no query's class; with a ground truth a
            query that it lacks, or none with an image to be found.
    """
    columns = read_columns(dataset.records)
    rows = np.flatnonzero((columns.splits == SPLITS.index("test")) & (columns.is_query | columns.is_gallery))
    records = choose_records(dataset.records, rows)
    columns = columns if len(rows) == len(dataset.records) else columns.take(rows)
    num_queries, num_gallery = np.count_nonzero(columns.is_query), np.count_nonzero(columns.is_gallery)
    where = f"data set {dataset.name} ({dataset.protocol})"
    if num_queries == 0 or num_gallery == 0:
        raise DataError(
            f"{where} has {num_queries} queries and a gallery of {num_gallery} images in its test split; at least one "
            "of each is needed. Without a split of its own every fifth class is for testing: give ten classes or more, "
            "or a manifest with a column 'split'. `vitrieve data check --data SOURCE` shows what is there."
        )
    if dataset.ground_truth is None:
        _check_labels(dataset, records, columns, where)
    else:
        _check_ground_truth(dataset.ground_truth, _find_roles(dataset), records, where)
    return records


def _check_labels(dataset: Dataset, records: Sequence[ImageRecord], columns: RecordColumns, where: str) -> None:
    labels = columns.labels[columns.is_gallery]
    if labels.min() == labels.max():
        name = dataset.label_names[labels[0]]
        raise DataError(
            f"{where} has one class only ({name!r}) in the gallery of its test split: whatever is found would be "
            "right. At least two classes are needed; without a split of its own every fifth of a source's classes is "
            "for testing, so give ten or more."
        )
    if not len(list_measurable(records, dataset.junk_key)):
        junk = "" if dataset.junk_key is None else f" that does not share its {dataset.junk_key}"
        raise DataError(
            f"{where}: no query has another image of its class in the gallery{junk}, so there is nothing to be found; "
            "at least one class needs two images."
        )


def _check_ground_truth(
    ground_truth: Mapping[str, GroundTruth], roles: Roles, records: Sequence[ImageRecord], where: str
) -> None:
    queries = [record.image_id for record in records if record.is_query]
    unknown = [image_id for image_id in queries if image_id not in ground_truth]
    if unknown:
        queries_have = count_nouns(len(unknown), "query has", "queries have")
        raise DataError(f"{where}: {queries_have} no ground truth, for example {unknown[0]!r}.")
    wanted = {one for image_id in queries for one in _list_images(ground_truth[image_id], roles.positive)}
    if not any(image_id in wanted for image_id in _gallery_ids(records)):
        raise DataError(
            f"{where}: no query has an image to be found in the gallery; compare the names in the ground truth with "
            "the files, or choose another protocol."
        )


def _find_roles(dataset: Dataset) -> Roles:
    if dataset.protocol not in REVISITED_ROLES:
        raise DataError(unknown_name_message(f"protocol of {dataset.name}", dataset.protocol, tuple(REVISITED_ROLES)))
    return REVISITED_ROLES[dataset.protocol]


def _list_images(truth: GroundTruth, parts: Sequence[str]) -> list[str]:
    return [image_id for part in parts for image_id in getattr(truth, part)]


def build_task(dataset: Dataset, records: Sequence[ImageRecord], *, num_queries: int | None = None) -> RetrievalTask:
    """Build the arrays of an evaluation.

    Args:
        dataset: Data set, which names the metadata that makes images junk for each other (``junk_key``), or lists for
            each query what is right and what is ignored (``ground_truth``).
        records: Records of ``select_records``, without those that could not be read.
        num_queries: Number of queries that are drawn at random where there are more, by a seed of their own; all can
            be found as before. None: all.
    """
    columns = read_columns(records)
    if num_queries is not None and num_queries < np.count_nonzero(columns.is_query):
        columns = columns._replace(is_query=_draw(columns.is_query, num_queries))
    query_rows = np.flatnonzero(columns.is_query)
    return RetrievalTask(
        records=records,
        query_rows=query_rows,
        gallery_rows=np.flatnonzero(columns.is_gallery),
        labels=columns.labels,
        junk_groups=None if dataset.junk_key is None else number_groups(records, dataset.junk_key),
        listed=None
        if dataset.ground_truth is None
        else _list_relevance(dataset, dataset.ground_truth, records, query_rows),
    )


def _draw(is_query: npt.NDArray[np.bool_], num_queries: int) -> npt.NDArray[np.bool_]:
    """Draw some queries, the same ones of the same images."""
    is_drawn = np.zeros(len(is_query), dtype=np.bool_)
    is_drawn[np.random.default_rng(0).choice(np.flatnonzero(is_query), num_queries, replace=False)] = True
    return is_drawn


def _list_relevance(
    dataset: Dataset, ground_truth: Mapping[str, GroundTruth], records: Sequence[ImageRecord], query_rows: IntArray
) -> ListedRelevance:
    """Turn the names of a ground truth into gallery rows; an image that is not among ``records`` has none."""
    roles = _find_roles(dataset)
    truths = [ground_truth[records[row].image_id] for row in query_rows.tolist()]
    positives = [_list_images(truth, roles.positive) for truth in truths]
    ignored = [_list_images(truth, roles.ignored) for truth in truths]
    named = {image_id for listed in (*positives, *ignored) for image_id in listed}
    rows = {image_id: row for row, image_id in enumerate(_gallery_ids(records)) if image_id in named}
    return ListedRelevance(
        positive_rows=tuple(_find_rows(rows, image_ids) for image_ids in positives),
        ignored_rows=tuple(_find_rows(rows, image_ids) for image_ids in ignored),
        num_positives=np.array([len(image_ids) for image_ids in positives], dtype=np.int64),
    )


def _gallery_ids(records: Sequence[ImageRecord]) -> Iterator[str]:
    """Yield the names of the images that can be found, in order."""
    return compress(read_ids(records), read_columns(records).is_gallery)


def _find_rows(rows: Mapping[str, int], image_ids: Sequence[str]) -> IntArray:
    return np.array([rows[image_id] for image_id in image_ids if image_id in rows], dtype=np.int64)
