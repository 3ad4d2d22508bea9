"""Which training images train, and which are held out to choose a state, a head or a re-ranking."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from vitrieve.data.decode import measure_image, read_image_bytes
from vitrieve.data.records import HOLD_OUT_EVERY, Dataset, ImageRecord, find_measurable, hold_out_labels
from vitrieve.quoting import count_nouns

NUM_JUDGES_MIN = 5
"""Fewest held-out classes that can prove a gain: all of n classes gain by chance once in 2^n times, which is more than
once in twenty for fewer, and which an interval over so few does not show (over one it has no width)."""
NUM_CLASSES_MIN = HOLD_OUT_EVERY * NUM_JUDGES_MIN
"""Training classes of which so many are held out."""
MAX_CHOOSING = 3_000
"""Most images that choose a re-ranking or a head, that they look for, and that a re-ranking learns from. More make the
interval narrower and the choice minutes longer."""


class TrainingSplit(NamedTuple):
    """The images of a run.

    Attributes:
        fit: Images that the encoder learns from.
        held_out: A data set whose test split measures every state; None without hold-out. It has no test image of
            the source.
        note: Sentence for the user about how the images were divided.
        parts: Another such data set, which counts as much: held-out pictures, each asked for by a part of it. It is
            there where corrections alone made the classes of ``held_out``, because corrections may be wrong.
    """

    fit: tuple[ImageRecord, ...]
    held_out: Dataset | None
    note: str
    parts: Dataset | None = None


def split_for_training(dataset: Dataset, *, is_holdout: bool) -> TrainingSplit:
    """Divide the training images.

    With hold-out, the states are measured on the validation split, where the source has one with classes of its own: on
    classes that also train every state looks better than the frozen start, and classes that test must not choose.
    Otherwise one of every five training classes is held out (``hold_out_labels``), among those that can be measured. A
    single held-out class is searched for among the images that train, too. Without hold-out, everything but the test
    split trains.

    Args:
        dataset: Data set of a source, without unreadable images: a class of which one image is left measures nothing.
        is_holdout: Whether classes are held out.
    """
    train, validation = dataset.split("train"), dataset.split("validation")
    if dataset.is_unlabeled:
        return _split_unlabeled(dataset, (*train, *validation), is_holdout=is_holdout)
    if not is_holdout:
        everything = (*train, *validation)
        return TrainingSplit(everything, None, f"training on all {count_images(everything)}; nothing is held out")
    others = _labels(dataset.split("train", "test"))
    if _can_be_measured(dataset, validation) and _labels(validation).isdisjoint(others):
        measured = f"the states are measured on the source's validation split: {count_images(validation)}"
        note = f"training on {count_images(train)}; {measured}"
        return TrainingSplit(train, _build_held_out(dataset, validation), note)
    unused = "; the validation split has no pairs or no classes of its own, and is not used" if validation else ""
    measurable = find_measurable(_give_roles(train), dataset.junk_key)
    labels = hold_out_labels(_labels(train), measurable)
    fit = tuple(record for record in train if record.label not in labels)
    held_out = tuple(record for record in train if record.label in labels)
    if not labels or not has_pairs(fit):
        note = (
            f"training on all {count_images(train)}; too few to hold classes out (five or more, of which two have two "
            f"readable images each, are needed; of {len(_labels(train))} here {len(measurable)} have), so the last "
            f"state is kept, unmeasured{unused}"
        )
        return TrainingSplit(train, None, note)
    note = f"training on {count_images(fit)}; held out to choose: {count_images(held_out)}{unused}"
    return TrainingSplit(fit, _build_held_out(dataset, held_out, fit if len(labels) == 1 else ()), note)


def limit_images(records: Sequence[ImageRecord], max_images: int) -> list[ImageRecord]:
    """Keep so many images: the first classes, of a large one images from all over it.

    Of no class more than a fifth of them is kept, so that enough classes stay to tell a gain from chance.
    """
    num_of_class = max(1, max_images // NUM_JUDGES_MIN)
    of_label: dict[int, list[ImageRecord]] = {}
    for record in records:
        of_label.setdefault(record.label, []).append(record)
    kept: list[ImageRecord] = []
    for _, members in sorted(of_label.items()):
        step = -(-len(members) // num_of_class)
        chosen = members[::step]
        if len(kept) + len(chosen) > max_images:
            break
        kept += chosen
    return kept


VIEW_MARK = "#part"
"""Ends the name of a part of a held-out picture, which asks for the whole one."""
VIEW_SHARE = 0.6
"""Side of that part, as a share of the picture's."""
MAX_WHOLES = 1000
"""The most pictures that are asked for by a part: enough to see a difference of two points, and soon embedded."""


def _split_unlabeled(dataset: Dataset, images: Sequence[ImageRecord], *, is_holdout: bool) -> TrainingSplit:
    """Divide images without classes: of every five one is held out, and a part of it asks for the whole.

    Where corrections have made classes that can be measured, every fifth of those is held out as well.
    """
    if not is_holdout:
        return TrainingSplit(tuple(images), None, f"training on all {len(images)} images; nothing is held out")
    groups = find_measurable(_give_roles(images), dataset.junk_key)
    labels = frozenset(sorted(groups)[HOLD_OUT_EVERY - 1 :: HOLD_OUT_EVERY])
    grouped = tuple(record for record in images if record.label in labels) if len(groups) >= NUM_CLASSES_MIN else ()
    # A picture of a group that trains would be known; where there are no groups to hold out, none counts as one.
    others = [record for record in images if record.label not in groups] if grouped else images
    whole = others[HOLD_OUT_EVERY - 1 :: HOLD_OUT_EVERY]
    whole = whole[:: -(-len(whole) // MAX_WHOLES)] if whole else whole
    if len(whole) < NUM_JUDGES_MIN:
        whole = ()
    held = {record.image_id for record in (*grouped, *whole)}
    fit = tuple(record for record in images if record.image_id not in held)
    parts = _build_parts(dataset, whole) if whole else None
    described = [f"{count_images(grouped)} of the pairs"] if grouped else []
    described += [f"{len(whole)}, of which a part finds the whole"] if whole else []
    if not described:
        note = f"training on all {len(images)} images; too few to hold any out, so the last state is kept, unmeasured"
        return TrainingSplit(tuple(images), None, note)
    both = "; both count alike" if len(described) == 2 else ""
    note = f"no labels: training on {len(fit)} images; held out to choose: {' and '.join(described)}{both}"
    if grouped:
        return TrainingSplit(fit, _build_held_out(dataset, grouped), note, parts)
    return TrainingSplit(fit, parts, note)


def _build_parts(dataset: Dataset, whole: Sequence[ImageRecord]) -> Dataset:
    """Build the data set in which a part of each picture asks for the whole one. No picture of it is junk."""
    records = [
        *(replace(record, split="test", is_query=False, is_gallery=True) for record in whole),
        *(_cut_part(record) for record in whole),
    ]
    return replace(dataset, name=f"{dataset.name}, held out", records=tuple(records), junk_key=None)


def _cut_part(record: ImageRecord) -> ImageRecord:
    """Make the middle of a picture a query."""
    left, top, right, bottom = record.box or (0.0, 0.0, *measure_image(read_image_bytes(record.path)))
    margin = (1 - VIEW_SHARE) / 2
    x, y = margin * (right - left), margin * (bottom - top)
    return replace(
        record,
        image_id=record.image_id + VIEW_MARK,
        split="test",
        is_query=True,
        is_gallery=False,
        box=(left + x, top + y, right - x, bottom - y),
    )


def has_pairs(records: Sequence[ImageRecord]) -> bool:
    """Tell whether retrieval can be learned or measured: two classes at least, and two images of one."""
    num_images = Counter(record.label for record in records)
    return len(num_images) > 1 and max(num_images.values()) > 1


def _labels(records: Sequence[ImageRecord]) -> set[int]:
    return {record.label for record in records}


def _can_be_measured(dataset: Dataset, records: Sequence[ImageRecord]) -> bool:
    """Tell whether a measurement among these images, of two classes at least, can be made."""
    return len(_labels(records)) > 1 and bool(find_measurable(_give_roles(records), dataset.junk_key))


def _give_roles(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Make every image a query and part of the gallery."""
    return [replace(record, split="test", is_query=True, is_gallery=True) for record in records]


def _build_held_out(
    dataset: Dataset, held_out: Sequence[ImageRecord], distractors: Sequence[ImageRecord] = ()
) -> Dataset:
    """Build the data set of held-out images, which are queries and gallery; distractors are gallery only."""
    records = _give_roles(held_out)
    records += [replace(record, split="test", is_query=False, is_gallery=True) for record in distractors]
    return replace(dataset, name=f"{dataset.name}, held out", records=tuple(records))


def count_images(records: Sequence[ImageRecord]) -> str:
    """Count images and their classes in words: 12 images of 3 classes."""
    images = count_nouns(len(records), "image", "images")
    return f"{images} of {count_nouns(len(_labels(records)), 'class', 'classes')}"
