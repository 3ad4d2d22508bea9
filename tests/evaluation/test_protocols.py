from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from vitrieve.data.records import Dataset, GroundTruth, ImageRecord
from vitrieve.data.table import read_table
from vitrieve.errors import DataError
from vitrieve.evaluation.metrics import score_queries
from vitrieve.evaluation.protocols import (
    add_distractors,
    build_task,
    find_whole_cut_offs,
    select_records,
    take_all_classes,
)


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


def test_select_records_refuses_a_class_whose_other_images_are_junk(dataset: Dataset) -> None:
    records = tuple(dataclasses.replace(record, metadata={"camera": "one"}) for record in dataset.records[:16])
    with pytest.raises(DataError, match="in the gallery that does not share its camera, so there is nothing"):
        select_records(dataclasses.replace(dataset, records=records, junk_key="camera"))


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


@pytest.mark.parametrize(
    ("protocol", "positive", "ignored", "num_positives"),
    [
        ("easy", [[0], [3, 4], []], [[2, 10, 1], [5], [6]], [1, 2, 0]),
        ("medium", [[0, 1], [3, 4], []], [[2, 10], [5], [6]], [2, 2, 0]),
        ("hard", [[1], [], []], [[2, 10, 0], [5, 3, 4], [6]], [1, 0, 0]),
    ],
)
def test_build_task_turns_a_ground_truth_into_gallery_rows(
    judged: Dataset, protocol: str, positive: list[list[int]], ignored: list[list[int]], num_positives: list[int]
) -> None:
    dataset = dataclasses.replace(judged, protocol=protocol)
    task = build_task(dataset, select_records(dataset))
    assert task.listed is not None
    assert task.relevance is task.listed
    assert [rows.tolist() for rows in task.listed.positive_rows] == positive
    assert [rows.tolist() for rows in task.listed.ignored_rows] == ignored
    assert task.listed.num_positives.tolist() == num_positives


def test_build_task_counts_positives_that_cannot_be_read_as_not_found(judged: Dataset) -> None:
    readable = [record for number, record in enumerate(select_records(judged)) if number != 1]
    task = build_task(judged, readable)
    assert task.listed is not None
    assert [rows.tolist() for rows in task.listed.positive_rows] == [[0], [2, 3], []]
    assert task.listed.num_positives.tolist() == [2, 2, 0]


def test_select_records_refuses_a_ground_truth_that_does_not_fit(judged: Dataset) -> None:
    assert judged.ground_truth is not None
    first = next(iter(judged.ground_truth))
    with pytest.raises(DataError, match="2 queries have no ground truth"):
        select_records(dataclasses.replace(judged, ground_truth={first: judged.ground_truth[first]}))
    elsewhere = dict.fromkeys(judged.ground_truth, GroundTruth(easy=("elsewhere",)))
    with pytest.raises(DataError, match="no query has an image to be found"):
        select_records(dataclasses.replace(judged, ground_truth=elsewhere))
    with pytest.raises(DataError, match="medium"):
        select_records(dataclasses.replace(judged, protocol="all"))


def test_add_distractors_puts_gallery_images_of_a_class_of_their_own_behind(
    dataset: Dataset, judged: Dataset, tmp_path: Path
) -> None:
    images = tuple(
        ImageRecord(image_id=name, path=tmp_path / name, label=3, split="train", is_gallery=False)
        for name in ("a.png", "noise/b.png")
    )
    noise = Dataset(name="noise", protocol="all", records=images, label_names=("x",) * 4, notes=("Noise.",))
    for before in (dataset, judged):
        after = add_distractors(before, noise)
        assert (after.name, after.notes[-2]) == (f"{before.name} + noise", "Noise.")
        assert after.records[: len(before.records)] == before.records
        added = after.records[len(before.records) :]
        assert [record.image_id for record in added] == ["noise/a.png", "noise/b.png"]
        assert all(one.is_gallery and not one.is_query and one.split == "test" for one in added)
        assert {after.label_names[record.label] for record in added} == {"distractor"}
        assert len(build_task(after, select_records(after)).gallery_rows) == 2 + len(
            build_task(before, select_records(before)).gallery_rows
        )


def test_add_distractors_refuses_the_data_set_itself(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="is an image of colors too"):
        add_distractors(dataset, dataclasses.replace(dataset, name="again"))


def test_trap_the_data_set_itself_by_another_spelling_is_no_distractor(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "placed"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    placed = [dataclasses.replace(one, path=folder / f"{row}.png") for row, one in enumerate(dataset.records)]
    for spelled in (Path("placed"), tmp_path / "link"):
        again = tuple(dataclasses.replace(one, path=spelled / one.path.name) for one in placed)
        with pytest.raises(DataError, match="is an image of colors too"):
            add_distractors(
                dataclasses.replace(dataset, records=tuple(placed)),
                dataclasses.replace(dataset, name="again", records=again),
            )


def test_junk_groups_measure_re_identification_across_cameras(tmp_path: Path) -> None:
    # Two people, two cameras, angles on a circle; worked by hand. A query's nearest pictures are of its own camera.
    rows = [("p1", "c1", 0), ("p1", "c1", 1), ("p1", "c2", 30), ("p2", "c1", 10), ("p2", "c2", 50), ("p2", "c2", 51)]
    lines = [f"{number}.jpg,{who},test,{who} {camera}" for number, (who, camera, _) in enumerate(rows)]
    for number in range(len(rows)):
        (tmp_path / f"{number}.jpg").touch()
    (tmp_path / "people.csv").write_text("\n".join(["path,label,split,junk_group", *lines]))
    dataset = read_table(tmp_path / "people.csv")
    task = build_task(dataset, select_records(dataset))
    angles = np.deg2rad([angle for _, _, angle in rows])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    scores = score_queries(vectors, task.query_labels, vectors, task.gallery_labels, exclusions=task.exclusions)
    # 0.jpg: 1.jpg is its own camera's picture of the same person and is passed over; then 3 (wrong), 2 (right).
    # 2.jpg: 3 and 4 tie at 20 degrees and 5 is next, all wrong, then 1 and 0.
    # 3.jpg: 1, 0, 2 (the wrong person, from its own camera, too) stand before 4. 4 and 5 find 2 (wrong), then 3.
    assert scores.num_relevant.tolist() == [1, 1, 2, 2, 1, 1]
    assert scores.first_rank.tolist() == [2, 2, 4, 4, 2, 2]
    assert scores.means((1, 2)) == {"recall_at_1": 0, "recall_at_2": 4 / 6, "r_precision": 0, "map_at_r": 0}


def test_take_all_classes_measures_training_images_too(dataset: Dataset, judged: Dataset) -> None:
    assert len(select_records(dataset)) == 16
    everything = take_all_classes(dataset)
    assert [record.image_id for record in select_records(everything)] == [record.image_id for record in dataset.records]
    assert "of them with images outside the test split" in everything.notes[-1]
    assert take_all_classes(everything).notes == everything.notes  # all of it is the test split already
    with pytest.raises(DataError, match="leave out --classes all"):
        take_all_classes(judged)


def test_find_whole_cut_offs_counts_what_a_query_can_find(dataset: Dataset, judged: Dataset) -> None:
    records = select_records(dataset)
    ks = (1, 3, 12, 14, 15, 16)
    # 16 images, each a query: itself left out, 15 can be found.
    assert find_whole_cut_offs(build_task(dataset, records), ks) == (15, 16)
    # Of the four artists, each query's own is junk: 12 can be found, the gallery less four images.
    by_artist = dataclasses.replace(dataset, junk_key="artist")
    assert find_whole_cut_offs(build_task(by_artist, records), ks) == (12, 14, 15, 16)
    # A query that is not in the gallery can find one image more.
    outside = [dataclasses.replace(records[0], is_gallery=False), *records[1:]]
    assert find_whole_cut_offs(build_task(dataset, outside), ks) == (15, 16)
    extra = dataclasses.replace(records[0], image_id="another", is_gallery=False)
    assert find_whole_cut_offs(build_task(dataset, [*records, extra]), ks) == (16,)
    assert find_whole_cut_offs(build_task(judged, select_records(judged)), (1, 1000)) == ()
