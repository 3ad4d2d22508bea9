from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from vitrieve.data import decode, holdout
from vitrieve.data.holdout import has_pairs, split_for_training
from vitrieve.data.records import Dataset, ImageRecord, Split
from vitrieve.data.several import forget_labels
from vitrieve.evaluation.protocols import select_records
from vitrieve.feedback.events import Correction
from vitrieve.feedback.learning import apply_pairs


def build_dataset(num_train: int, num_validation: int = 0, num_test: int = 2) -> Dataset:
    splits: list[Split] = ["train"] * num_train + ["validation"] * num_validation + ["test"] * num_test
    records = tuple(
        ImageRecord(image_id=f"{label}-{copy}", path=Path("unused"), label=label, split=split)
        for label, split in enumerate(splits)
        for copy in range(2)
    )
    names = tuple(f"class {label:02}" for label in range(len(splits)))
    return Dataset(name="made", protocol="made", records=records, label_names=names)


def labels_of(records: tuple[ImageRecord, ...]) -> set[int]:
    return {record.label for record in records}


def test_split_for_training_holds_out_every_fifth_class_from_the_fifth() -> None:
    split = split_for_training(build_dataset(12), is_holdout=True)
    assert labels_of(split.held_out.records) == {4, 9}
    assert labels_of(split.fit) == {0, 1, 2, 3, 5, 6, 7, 8, 10, 11}


def test_trap_nothing_is_chosen_on_test_classes() -> None:
    dataset = build_dataset(12, 3, 4)
    test_ids = {record.image_id for record in dataset.split("test")}
    for is_holdout in (False, True):
        split = split_for_training(dataset, is_holdout=is_holdout)
        used = (*split.fit, *(split.held_out.records if split.held_out else ()))
        assert test_ids.isdisjoint(record.image_id for record in used)


def test_trap_what_is_held_out_does_not_train() -> None:
    for dataset in (build_dataset(12), build_dataset(12, 3)):
        split = split_for_training(dataset, is_holdout=True)
        assert labels_of(split.fit).isdisjoint(labels_of(split.held_out.records))


def test_split_for_training_searches_a_single_held_out_class_among_the_others() -> None:
    split = split_for_training(build_dataset(6), is_holdout=True)
    assert labels_of(split.fit) == {0, 1, 2, 3, 5}
    assert labels_of(tuple(r for r in split.held_out.records if r.is_query)) == {4}
    assert labels_of(split.held_out.records) == set(range(6))


def test_split_for_training_prefers_the_sources_validation_split() -> None:
    split = split_for_training(build_dataset(12, 3), is_holdout=True)
    assert labels_of(split.held_out.records) == {12, 13, 14}
    assert labels_of(split.fit) == set(range(12))


def test_split_for_training_without_holdout_trains_on_everything_but_the_test() -> None:
    split = split_for_training(build_dataset(12, 3), is_holdout=False)
    assert labels_of(split.fit) == set(range(15))
    assert split.held_out is None


def test_split_for_training_of_few_classes_says_that_nothing_is_held_out() -> None:
    split = split_for_training(build_dataset(4), is_holdout=True)
    assert split.held_out is None
    assert labels_of(split.fit) == set(range(4))
    assert "too few" in split.note


def test_has_pairs_needs_two_classes_and_two_images() -> None:
    records = build_dataset(2).split("train")
    assert has_pairs(records)
    assert not has_pairs(records[:2])
    assert not has_pairs(records[::2])
    assert not has_pairs(())


@pytest.mark.parametrize("shared_with", ["train", "test"])
def test_trap_a_validation_split_of_classes_that_train_or_test_is_not_held_out(shared_with: Split) -> None:
    dataset = build_dataset(12, 0, 3)
    shared = tuple(
        replace(record, image_id=f"validation {record.image_id}", split="validation")
        for record in dataset.split(shared_with)
    )
    split = split_for_training(replace(dataset, records=(*dataset.records, *shared)), is_holdout=True)
    assert labels_of(split.held_out.records) == {4, 9}
    assert "not used" in split.note


def build_unlabeled(num_images: int, num_pairs: int, folder: Path) -> Dataset:
    """Images without classes, of which the first are joined in pairs by corrections."""
    picture = folder / "one.png"
    Image.new("RGB", (20, 10)).save(picture)
    records = tuple(
        ImageRecord(image_id=f"{number:04}", path=picture, label=0, split="train") for number in range(num_images)
    )
    dataset = forget_labels(Dataset(name="made", protocol="made", records=records, label_names=("one",)))
    said = [
        Correction(kind="right", query_id=f"{2 * number:04}", image_id=f"{2 * number + 1:04}")
        for number in range(num_pairs)
    ]
    return apply_pairs(dataset, said) if said else dataset


def test_corrections_alone_do_not_judge(tmp_path: Path) -> None:
    """They may be wrong: so parts of pictures that no correction names ask for the whole ones, too."""
    split = split_for_training(build_unlabeled(80, 25, tmp_path), is_holdout=True)
    assert split.held_out is not None
    assert split.parts is not None
    groups = {record.image_id for record in split.held_out.records}
    parts = {record.image_id.removesuffix("#part") for record in split.parts.records}
    assert groups == {f"{2 * number + one:04}" for number in range(4, 25, 5) for one in (0, 1)}
    assert parts == {"0054", "0059", "0064", "0069", "0074", "0079"}
    assert sum(record.is_query for record in split.parts.records) == len(parts)
    assert {record.image_id for record in split.fit} == {f"{number:04}" for number in range(80)} - groups - parts
    assert "both count alike" in split.note


def test_few_corrections_do_not_judge_and_few_pictures_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for num_pairs in (0, 24):
        split = split_for_training(build_unlabeled(80, num_pairs, tmp_path), is_holdout=True)
        assert split.held_out is not None
        assert split.parts is None
        assert len(split.held_out.records) == 2 * 16
        assert len(split.fit) == 64
    monkeypatch.setattr(holdout, "MAX_WHOLES", 6)
    split = split_for_training(build_unlabeled(80, 0, tmp_path), is_holdout=True)
    assert split.held_out is not None
    assert [record.image_id for record in split.held_out.records if record.is_gallery] == [
        "0004", "0019", "0034", "0049", "0064", "0079"
    ]  # fmt: skip
    assert len(split.fit) == 74
    assert split_for_training(build_unlabeled(20, 0, tmp_path), is_holdout=True).held_out is None


def test_junk_keeps_no_part_from_its_whole_and_judges_no_group(tmp_path: Path) -> None:
    """A picture shares the metadata of its part; a group that shares them all finds nothing."""
    dataset = replace(build_unlabeled(80, 25, tmp_path), junk_key="house")
    records = tuple(replace(record, metadata={"house": "one"}) for record in dataset.records)
    split = split_for_training(replace(dataset, records=records), is_holdout=True)
    assert split.held_out is not None
    assert split.parts is None
    assert len(select_records(split.held_out)) == 2 * 16
    apart = tuple(replace(record, metadata={"house": str(row % 2)}) for row, record in enumerate(records))
    split = split_for_training(replace(dataset, records=apart), is_holdout=True)
    assert split.held_out is not None
    assert split.parts is not None
    assert split.held_out.junk_key == "house"
    assert len(select_records(split.parts)) == len(split.parts.records)


def test_a_part_is_the_middle_of_a_picture_that_is_read_at_half_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (400, 200)).save(tmp_path / "large.jpg")
    record = ImageRecord(image_id="large", path=tmp_path / "large.jpg", label=0, split="train")
    monkeypatch.setattr(decode, "_choose_scale", lambda *_: 2)
    assert decode.read_image(record).size == (200, 100)
    part = holdout._cut_part(record)
    assert part.box == pytest.approx((80, 40, 320, 160))
    assert decode.read_image(part).size == (120, 60)
