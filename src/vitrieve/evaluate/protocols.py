"""From the records of a data set to the arrays that the metrics take: queries, gallery, junk.

Next file: ``run.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.errors import DataError
from vitrieve.evaluate.relevance import NO_GROUP, NO_ROW, Exclusions
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
    """

    records: tuple[ImageRecord, ...]
    query_rows: IntArray
    gallery_rows: IntArray
    labels: IntArray
    junk_groups: IntArray | None = None

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


def select_records(dataset: Dataset) -> tuple[ImageRecord, ...]:
    """Select the images of the test split that ask or can be found, each once, in order.

    Raises:
        DataError: No query, nothing to find, a gallery of one class, or of no query's class.
    """
    records = tuple(record for record in dataset.split("test") if record.is_query or record.is_gallery)
    num_queries = sum(record.is_query for record in records)
    num_gallery = sum(record.is_gallery for record in records)
    where = f"data set {dataset.name} ({dataset.protocol})"
    if num_queries == 0 or num_gallery == 0:
        raise DataError(
            f"{where} has {num_queries} queries and a gallery of {num_gallery} images in its test split; at least one "
            "of each is needed. Without a split of its own every fifth class is for testing: give ten classes or more, "
            "or a manifest with a column 'split'. `vitrieve data check SOURCE` shows what is there."
        )
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
    return records


def build_task(dataset: Dataset, records: Sequence[ImageRecord]) -> RetrievalTask:
    """Build the arrays of an evaluation.

    Args:
        dataset: Names the metadata that makes images junk for each other (``junk_key``).
        records: Of ``select_records``, without those that could not be read.
    """
    labels = np.array([record.label for record in records], dtype=np.int64)
    return RetrievalTask(
        records=tuple(records),
        query_rows=np.flatnonzero([record.is_query for record in records]),
        gallery_rows=np.flatnonzero([record.is_gallery for record in records]),
        labels=labels,
        junk_groups=None if dataset.junk_key is None else _number_groups(records, dataset.junk_key),
    )


def _number_groups(records: Sequence[ImageRecord], key: str) -> IntArray:
    """Number the values of a metadata key; a record without it belongs to no group."""
    names = sorted({record.metadata[key] for record in records if key in record.metadata})
    numbers = {name: number for number, name in enumerate(names)}
    return np.array(
        [numbers[record.metadata[key]] if key in record.metadata else NO_GROUP for record in records], dtype=np.int64
    )
