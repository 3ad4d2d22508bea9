"""Which training images train, and which judge. Next file: ``optimizer.py``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from vitrieve.data.records import Dataset, ImageRecord, hold_out_labels


class TrainingSplit(NamedTuple):
    """The images of a run.

    Attributes:
        fit: What the encoder learns from.
        held_out: What every state is measured on; empty without hold-out. Never test images.
        note: How they were parted, for the user.
    """

    fit: tuple[ImageRecord, ...]
    held_out: tuple[ImageRecord, ...]
    note: str


def split_for_training(dataset: Dataset, *, is_holdout: bool) -> TrainingSplit:
    """Part the training images.

    With hold-out, the validation split judges, where the source has one, otherwise every fifth training class
    (labels sorted, from the fifth). Without, everything but the test split trains.

    Args:
        dataset: From a source.
        is_holdout: Whether anything is held out.
    """
    if not is_holdout:
        everything = dataset.split("train", "validation")
        return TrainingSplit(everything, (), f"training on all {_count(everything)}; nothing is held out")
    validation = dataset.split("validation")
    if has_pairs(validation):
        fit = dataset.split("train")
        note = f"training on {_count(fit)}; the source's validation split judges: {_count(validation)}"
        return TrainingSplit(fit, validation, note)
    labels = hold_out_labels(record.label for record in dataset.split("train"))
    fit = tuple(record for record in dataset.split("train") if record.label not in labels)
    held_out = tuple(record for record in dataset.split("train") if record.label in labels)
    if not has_pairs(held_out) or not has_pairs(fit):
        everything = dataset.split("train")
        note = (
            f"training on all {_count(everything)}; too few to hold classes out (ten or more are needed), so the last "
            "state is kept unseen"
        )
        return TrainingSplit(everything, (), note)
    return TrainingSplit(fit, held_out, f"training on {_count(fit)}; held out to choose: {_count(held_out)}")


def has_pairs(records: Sequence[ImageRecord]) -> bool:
    """Tell whether retrieval can be measured: at least two classes, and two images of one."""
    num_images = Counter(record.label for record in records)
    return len(num_images) > 1 and max(num_images.values()) > 1


def _count(records: Sequence[ImageRecord]) -> str:
    return f"{len(records)} images of {len({record.label for record in records})} classes"
