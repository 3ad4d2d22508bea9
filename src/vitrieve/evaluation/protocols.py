"""From the records of a data set to the arrays that the metrics take: queries, gallery, junk; and distractors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vitrieve.data.records import Dataset, GroundTruth, ImageRecord
from vitrieve.errors import DataError, unknown_name_message
from vitrieve.evaluation.relevance import NO_GROUP, NO_ROW, Exclusions, Judgements, Relevance, RelevanceRule
from vitrieve.evaluation.revisited import REVISITED_ROLES, Roles
from vitrieve.similarity import IntArray


@dataclass(frozen=True, kw_only=True)
class RetrievalTask:
    """Who asks, what can be found, and what is right.

    Attributes:
        records: ``N`` images, each once, also those that are query and gallery.
        query_rows: ``(Q,)`` rows of ``records`` that ask.
        gallery_rows: ``(G,)`` rows of ``records`` that can be found.
        labels: ``(N,)`` int64.
        junk_groups: ``(N,)`` int64, images of one group are junk for each other (``NO_GROUP``: for nobody);
            None without junk.
        judgements: Right and ignored images listed query by query; None: labels and ``junk_groups`` decide.
    """

    records: tuple[ImageRecord, ...]
    query_rows: IntArray
    gallery_rows: IntArray
    labels: IntArray
    junk_groups: IntArray | None = None
    judgements: Judgements | None = None

    @property
    def query_labels(self) -> IntArray:
        """``(Q,)``."""
        return self.labels[self.query_rows]

    @property
    def gallery_labels(self) -> IntArray:
        """``(G,)``."""
        return self.labels[self.gallery_rows]

    @property
    def exclusions(self) -> Exclusions:
        """What a query's ranking leaves out: its own image, by row, and junk."""
        gallery_places = np.full(len(self.records), NO_ROW, dtype=np.int64)
        gallery_places[self.gallery_rows] = np.arange(len(self.gallery_rows))
        junk = self.junk_groups
        return Exclusions(
            query_rows=gallery_places[self.query_rows],
            query_junk=None if junk is None else junk[self.query_rows],
            gallery_junk=None if junk is None else junk[self.gallery_rows],
        )

    @property
    def relevance(self) -> RelevanceRule:
        """Who is right and who is left out, query by query."""
        return self.judgements or Relevance(self.query_labels, self.gallery_labels, self.exclusions)


def add_distractors(dataset: Dataset, distractors: Dataset) -> Dataset:
    """Add images that are wrong for every query to the gallery of the test split.

    Args:
        dataset: Under any protocol.
        distractors: All its images are taken, whatever their splits, roles and labels.

    Returns:
        ``dataset`` with the distractors behind its records: gallery only, ``NAME/`` before their ``image_id``, of one
        further class without queries. Both names stand in its name.

    Raises:
        DataError: A distractor is a file of the data set, or has an ``image_id`` of it.
    """
    own_paths, own_ids = {record.path for record in dataset.records}, {record.image_id for record in dataset.records}
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
        if record.path in own_paths or record.image_id in own_ids:
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


def take_all_classes(dataset: Dataset) -> Dataset:
    """Move every image into the test split, so that all classes are measured, not only those held out for testing.

    Args:
        dataset: Under a protocol whose labels decide what is right. Queries and gallery keep their roles.

    Raises:
        DataError: The data set has a ground truth query by query; its queries are what they are.
    """
    if dataset.ground_truth is not None:
        raise DataError(
            f"{dataset.name} lists for each query what is right, so there are no further classes to measure; "
            "leave out --classes all."
        )
    num_trained = len({record.label for record in dataset.records if record.split != "test"})
    note = (
        f"Measured on all {len(dataset.label_names)} classes, {num_trained} of them with images outside the test "
        "split: the figures of an encoder that was trained on them say little about new classes."
    )
    return replace(
        dataset,
        records=tuple(replace(record, split="test") for record in dataset.records),
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
    if task.judgements is not None:  # mP@K is a precision, which a large K lowers
        return ()
    relevance, length = task.relevance, 0
    for query in range(len(task.query_rows)):
        length = max(length, len(task.gallery_rows) - len(np.unique(relevance.excluded_rows(query))))
        if length > max(ks):
            return ()
    return tuple(k for k in ks if k >= length)


def select_records(dataset: Dataset) -> tuple[ImageRecord, ...]:
    """Select the images of the test split that ask or can be found, each once, in order.

    Raises:
        DataError: No query, nothing to find, a gallery of one class, or of no query's class; with a ground truth a
            query that it lacks, or none with an image to be found.
    """
    records = tuple(record for record in dataset.split("test") if record.is_query or record.is_gallery)
    num_queries = sum(record.is_query for record in records)
    num_gallery = sum(record.is_gallery for record in records)
    where = f"data set {dataset.name} ({dataset.protocol})"
    if num_queries == 0 or num_gallery == 0:
        raise DataError(
            f"{where} has {num_queries} queries and a gallery of {num_gallery} images in its test split; at least one "
            "of each is needed. Without a split of its own every fifth class is for testing: give ten classes or more, "
            "or a manifest with a column 'split'. `vitrieve data check --data SOURCE` shows what is there."
        )
    if dataset.ground_truth is None:
        _check_labels(dataset, records, where)
    else:
        _check_ground_truth(dataset.ground_truth, _find_roles(dataset), records, where)
    return records


def _check_labels(dataset: Dataset, records: Sequence[ImageRecord], where: str) -> None:
    num_of_label = Counter(record.label for record in records if record.is_gallery)
    if len(num_of_label) == 1:
        name = dataset.label_names[next(iter(num_of_label))]
        raise DataError(
            f"{where} has one class only ({name!r}) in the gallery of its test split: whatever is found would be "
            "right. At least two classes are needed; without a split of its own every fifth of a source's classes is "
            "for testing, so give ten or more."
        )
    if not any(record.is_query and num_of_label[record.label] > record.is_gallery for record in records):
        raise DataError(
            f"{where}: no query has another image of its class in the gallery, so there is nothing to be found; "
            "at least one class needs two images."
        )


def _check_ground_truth(
    ground_truth: Mapping[str, GroundTruth], roles: Roles, records: Sequence[ImageRecord], where: str
) -> None:
    queries = [record.image_id for record in records if record.is_query]
    unknown = [image_id for image_id in queries if image_id not in ground_truth]
    if unknown:
        raise DataError(f"{where}: {len(unknown)} queries have no ground truth, the first of them {unknown[0]!r}.")
    gallery = {record.image_id for record in records if record.is_gallery}
    if not any(gallery.intersection(_list_images(ground_truth[image_id], roles.positive)) for image_id in queries):
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


def build_task(dataset: Dataset, records: Sequence[ImageRecord]) -> RetrievalTask:
    """Build the arrays of an evaluation.

    Args:
        dataset: Names the metadata that makes images junk for each other (``junk_key``), or lists for each query what
            is right and what is ignored (``ground_truth``).
        records: Of ``select_records``, without those that could not be read.
    """
    labels = np.array([record.label for record in records], dtype=np.int64)
    return RetrievalTask(
        records=tuple(records),
        query_rows=np.flatnonzero([record.is_query for record in records]),
        gallery_rows=np.flatnonzero([record.is_gallery for record in records]),
        labels=labels,
        junk_groups=None if dataset.junk_key is None else _number_groups(records, dataset.junk_key),
        judgements=None if dataset.ground_truth is None else _judge(dataset, dataset.ground_truth, records),
    )


def _judge(dataset: Dataset, ground_truth: Mapping[str, GroundTruth], records: Sequence[ImageRecord]) -> Judgements:
    """Turn the names of a ground truth into gallery rows; an image that is not among ``records`` has none."""
    roles = _find_roles(dataset)
    gallery = (record.image_id for record in records if record.is_gallery)
    places = {image_id: place for place, image_id in enumerate(gallery)}
    truths = [ground_truth[record.image_id] for record in records if record.is_query]
    positives = [_list_images(truth, roles.positive) for truth in truths]
    ignored = [_list_images(truth, roles.ignored) for truth in truths]
    return Judgements(
        positive_rows=tuple(_find_rows(places, image_ids) for image_ids in positives),
        ignored_rows=tuple(_find_rows(places, image_ids) for image_ids in ignored),
        num_positives=np.array([len(image_ids) for image_ids in positives], dtype=np.int64),
    )


def _find_rows(places: Mapping[str, int], image_ids: Sequence[str]) -> IntArray:
    return np.array([places[image_id] for image_id in image_ids if image_id in places], dtype=np.int64)


def _number_groups(records: Sequence[ImageRecord], key: str) -> IntArray:
    """Number the values of a metadata key; a record without it belongs to no group."""
    names = sorted({record.metadata[key] for record in records if key in record.metadata})
    numbers = {name: number for number, name in enumerate(names)}
    return np.array(
        [numbers[record.metadata[key]] if key in record.metadata else NO_GROUP for record in records], dtype=np.int64
    )
