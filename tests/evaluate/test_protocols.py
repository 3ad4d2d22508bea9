from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vitrieve.data.records import Dataset
from vitrieve.errors import DataError
from vitrieve.evaluate.metrics import score_queries
from vitrieve.evaluate.protocols import build_task, select_records


def test_select_records_takes_each_test_image_with_a_role_once(dataset: Dataset) -> None:
    idle = dataclasses.replace(dataset.records[3], is_query=False, is_gallery=False)
    changed = dataclasses.replace(dataset, records=(*dataset.records[:3], idle, *dataset.records[4:]))
    ids = [record.image_id for record in select_records(changed)]
    assert len(ids) == len(set(ids)) == 15
    assert "training" not in ids


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"is_query": False}, "0 queries and a gallery of 16"),
        ({"is_gallery": False}, "16 queries and a gallery of 0"),
        ({"split": "train"}, "0 queries and a gallery of 0"),
        ({"label": 3}, "one class only .'plum'."),
    ],
)
def test_select_records_refuses_what_cannot_be_measured(
    dataset: Dataset, changes: dict[str, object], part: str
) -> None:
    records = tuple(dataclasses.replace(record, **changes) for record in dataset.records[:16])
    with pytest.raises(DataError, match=part):
        select_records(dataclasses.replace(dataset, records=records))


def test_select_records_refuses_classes_of_one_image(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="no query has another image"):
        select_records(dataclasses.replace(dataset, records=dataset.records[:16:4]))


def test_build_task_leaves_out_the_own_image_of_a_query_in_the_gallery(dataset: Dataset) -> None:
    # Row 0 only asks, row 1 is only found, all others do both.
    records = list(select_records(dataset))
    records[0] = dataclasses.replace(records[0], is_gallery=False)
    records[1] = dataclasses.replace(records[1], is_query=False)
    task = build_task(dataset, records)
    assert task.query_rows.tolist() == [0, *range(2, 16)]
    assert task.gallery_rows.tolist() == list(range(1, 16))
    assert np.asarray(task.exclusions.query_rows).tolist() == [-1, *range(1, 15)]
    assert task.junk_groups is None


def test_build_task_numbers_junk_groups_and_spares_images_without_one(dataset: Dataset) -> None:
    records = list(select_records(dataset))
    records[5] = dataclasses.replace(records[5], metadata={})
    task = build_task(dataclasses.replace(dataset, junk_key="artist"), records)
    assert task.junk_groups is not None
    assert task.junk_groups.tolist() == [0, 1, 2, 3, 0, -1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]
    vectors = np.eye(16)
    scores = score_queries(vectors, task.query_labels, vectors, task.gallery_labels, exclusions=task.exclusions)
    assert scores.num_relevant.tolist() == [3] * 16  # no two images of a class share an artist
