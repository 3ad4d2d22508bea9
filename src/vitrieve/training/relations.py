"""The images that an encoder learns from, and what is known of pairs of them, as tensors by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from vitrieve.data.records import ImageRecord
from vitrieve.objective.term import Relations


class TrainingImages(NamedTuple):
    """What an encoder learns from.

    Attributes:
        records: Training images, without held-out classes.
        positive_pairs: ``image_id`` of anchors and positives, for training on tuples; empty: the labels say it.
        relations: What is known of pairs of ``records`` beside one label of each; None: nothing.
    """

    records: Sequence[ImageRecord]
    positive_pairs: Sequence[tuple[str, str]] = ()
    relations: Relations | None = None


def build_relations(
    records: Sequence[ImageRecord],
    more_labels: Mapping[str, Sequence[int]],
    negative_pairs: Sequence[tuple[str, str]],
) -> Relations | None:
    """Build what a batch looks up by row.

    Args:
        records: Training images; the labels of a batch are positions among their sorted labels.
        more_labels: Further labels by ``image_id``; other images are passed over.
        negative_pairs: Pairs of ``image_id``; pairs with other images are passed over.

    Returns:
        The relations; None where one label of each image says everything.
    """
    rows = {record.image_id: row for row, record in enumerate(records)}
    known = np.unique([record.label for record in records]).tolist()
    numbers = {label: position for position, label in enumerate(known)}
    for label in sorted({label for name in rows for label in more_labels.get(name, ())} - numbers.keys()):
        numbers[label] = len(numbers)
    num_most = max((len(more_labels.get(name, ())) for name in rows), default=0)
    pairs = [(rows[first], rows[second]) for first, second in negative_pairs if first in rows and second in rows]
    if num_most == 0 and not pairs:
        return None
    more = np.full((len(records), max(1, num_most)), -1, np.int64)
    for name, row in rows.items():
        found = more_labels.get(name, ())
        more[row, : len(found)] = [numbers[label] for label in found]
    both = [*pairs, *((second, first) for first, second in pairs)]
    return Relations(torch.from_numpy(more), torch.tensor(both, dtype=torch.int64).reshape(-1, 2))
