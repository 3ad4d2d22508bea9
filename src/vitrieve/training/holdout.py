"""Which training images train, and which judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from vitrieve.data.records import Dataset, ImageRecord, find_measurable, hold_out_labels


class TrainingSplit(NamedTuple):
    """The images of a run.

    Attributes:
        fit: What the encoder learns from.
        judge: A data set whose test split measures every state; None without hold-out. Holds no test image of
            the source.
        note: How they were parted, for the user.
    """

    fit: tuple[ImageRecord, ...]
    judge: Dataset | None
    note: str


def split_for_training(dataset: Dataset, *, is_holdout: bool) -> TrainingSplit:
    """Part the training images.

    With hold-out, the validation split judges, where the source has one with classes of its own: on classes that also
    train every state looks better than the frozen start, and classes that test must not choose. Otherwise one of every
    five training classes judges (``hold_out_labels``), among those that can be measured. A single held-out class is
    searched for among the images that train, too. Without hold-out, everything but the test split trains.

    Args:
        dataset: From a source, without unreadable images: a class of which one image is left measures nothing.
        is_holdout: Whether anything is held out.
    """
    train, validation = dataset.split("train"), dataset.split("validation")
    if not is_holdout:
        everything = (*train, *validation)
        return TrainingSplit(everything, None, f"training on all {_count(everything)}; nothing is held out")
    if _can_judge(dataset, validation) and _labels(validation).isdisjoint(_labels(dataset.split("train", "test"))):
        note = f"training on {_count(train)}; the source's validation split judges: {_count(validation)}"
        return TrainingSplit(train, _build_judge(dataset, validation), note)
    unused = "; the validation split has no pairs or no classes of its own, and is not used" if validation else ""
    measurable = find_measurable(_give_roles(train), dataset.junk_key)
    labels = hold_out_labels(_labels(train), measurable)
    fit = tuple(record for record in train if record.label not in labels)
    held_out = tuple(record for record in train if record.label in labels)
    if not labels or not has_pairs(fit):
        note = (
            f"training on all {_count(train)}; too few to hold classes out (five or more, of which two have two "
            f"readable images each, are needed; of {len(_labels(train))} here {len(measurable)} have), so the last "
            f"state is kept, unmeasured{unused}"
        )
        return TrainingSplit(train, None, note)
    note = f"training on {_count(fit)}; held out to choose: {_count(held_out)}{unused}"
    return TrainingSplit(fit, _build_judge(dataset, held_out, fit if len(labels) == 1 else ()), note)


def has_pairs(records: Sequence[ImageRecord]) -> bool:
    """Tell whether retrieval can be learnt or measured: two classes at least, and two images of one."""
    num_images = Counter(record.label for record in records)
    return len(num_images) > 1 and max(num_images.values()) > 1


def _labels(records: Sequence[ImageRecord]) -> set[int]:
    return {record.label for record in records}


def _can_judge(dataset: Dataset, records: Sequence[ImageRecord]) -> bool:
    """Tell whether a measurement among these images, of two classes at least, can be made."""
    return len(_labels(records)) > 1 and bool(find_measurable(_give_roles(records), dataset.junk_key))


def _give_roles(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Let every image ask and be found."""
    return [replace(record, split="test", is_query=True, is_gallery=True) for record in records]


def _build_judge(dataset: Dataset, held_out: Sequence[ImageRecord], distractors: Sequence[ImageRecord] = ()) -> Dataset:
    """Build the data set that judges: the held-out images ask and are found, the distractors are only found."""
    records = _give_roles(held_out)
    records += [replace(record, split="test", is_query=False, is_gallery=True) for record in distractors]
    return replace(dataset, name=f"{dataset.name}, held out", records=tuple(records))


def _count(records: Sequence[ImageRecord]) -> str:
    num_classes = len(_labels(records))
    images = "1 image" if len(records) == 1 else f"{len(records)} images"
    return f"{images} of {'1 class' if num_classes == 1 else f'{num_classes} classes'}"
