from __future__ import annotations

from pathlib import Path

import pytest

from vitrieve.data.records import (
    Dataset,
    ImageRecord,
    Split,
    hold_out_labels,
    require_trainable,
)
from vitrieve.errors import DataError


def build_dataset(*images: tuple[int, Split, bool, bool]) -> Dataset:
    """Build a data set from (label, split, is_query, is_gallery)."""
    records = tuple(
        ImageRecord(
            image_id=str(row), path=Path(str(row)), label=label, split=split, is_query=is_query, is_gallery=is_gallery
        )
        for row, (label, split, is_query, is_gallery) in enumerate(images)
    )
    return Dataset(name="own", protocol="p", records=records, label_names=("a", "b", "c"))


def test_split_selects_in_order() -> None:
    dataset = build_dataset((0, "test", True, True), (1, "train", True, True), (2, "validation", True, True))
    assert [record.label for record in dataset.split("test", "validation")] == [0, 2]


@pytest.mark.parametrize(
    ("num_labels", "held_out"), [(0, set()), (4, set()), (5, {4}), (9, {4}), (10, {4, 9}), (12, {4, 9})]
)
def test_hold_out_labels_takes_every_fifth_from_the_fifth(num_labels: int, held_out: set[int]) -> None:
    assert hold_out_labels(range(num_labels)) == held_out


def test_hold_out_labels_counts_classes_that_occur_not_numbers_or_images() -> None:
    assert hold_out_labels([20, 2, 4, 4, 4, 8, 6, 2]) == {20}


def test_require_trainable_accepts_two_classes_and_a_pair() -> None:
    require_trainable(build_dataset((0, "train", True, True), (0, "train", True, True), (1, "train", True, True)))


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([], "no classes"),
        ([(1, "train", True, True)] * 3, "one class only \\('b'\\)"),
        ([(0, "train", True, True), (1, "test", True, True)], "one class only"),
        ([(0, "train", True, True), (1, "train", True, True)], "two images"),
    ],
)
def test_require_trainable_refuses_what_nothing_can_be_learnt_from(
    images: list[tuple[int, Split, bool, bool]], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        require_trainable(build_dataset(*images))
