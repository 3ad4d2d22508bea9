from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.data.benchmark_trees import edit_lines, write_cub200
from vitrieve.data.cub200 import read_cub200
from vitrieve.data.decode import read_image
from vitrieve.data.sources import read_source
from vitrieve.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_cub200(tmp_path / "CUB_200_2011", num_classes=2, num_images=3)


def test_read_cub200_splits_at_class_100(folder: Path) -> None:
    dataset = read_cub200(folder)
    assert (dataset.name, dataset.protocol, dataset.ks) == ("cub200", "zero_shot", (1, 2, 4, 8))
    assert dataset.label_names == ("001.Bird_1", "002.Bird_2", "101.Bird_101", "102.Bird_102")
    assert Counter((record.label, record.split) for record in dataset.records) == {
        (0, "train"): 3,
        (1, "train"): 3,
        (2, "test"): 3,
        (3, "test"): 3,
    }
    first = dataset.records[0]
    assert first.image_id == "images/001.Bird_1/Bird_1_0000.jpg"
    assert first.path == folder / first.image_id
    assert first.is_query
    assert first.is_gallery
    assert first.box is None
    assert read_image(first).size == (48, 40)


def test_read_cub200_accepts_the_parent_and_gives_the_same_ids(folder: Path) -> None:
    assert read_cub200(folder.parent) == read_cub200(folder)


def test_trap_read_cub200_ignores_the_classification_split(folder: Path) -> None:
    before = read_cub200(folder)
    (folder / "train_test_split.txt").unlink()
    assert read_cub200(folder) == before


def test_read_cub200_notes_expected_and_found_counts(folder: Path) -> None:
    (note,) = read_cub200(folder).notes
    assert "training images: expected 5,864, found 6" in note
    assert "test images: expected 5,924, found 6" in note
    assert "test classes: expected 100, found 2" in note


def test_read_cub200_has_no_note_when_all_counts_agree(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"training images": 6, "training classes": 2, "test images": 6, "test classes": 2}
    monkeypatch.setattr("vitrieve.data.cub200.COUNTS", counts)
    assert read_cub200(folder).notes == ()


def test_read_cub200_keeps_and_names_a_missing_image(folder: Path) -> None:
    (folder / "images/002.Bird_2/Bird_2_0001.jpg").unlink()
    dataset = read_cub200(folder)
    assert len(dataset.records) == 12
    assert "1 of 12 listed images are missing: images/002.Bird_2/Bird_2_0001.jpg." in dataset.notes


def test_read_cub200_leaves_out_and_names_an_extra_image(folder: Path) -> None:
    (folder / "images/002.Bird_2/extra.jpg").write_bytes(b"x")
    dataset = read_cub200(folder)
    assert len(dataset.records) == 12
    assert "1 image that no list names is left out: images/002.Bird_2/extra.jpg." in dataset.notes


@pytest.mark.parametrize("name", ["images.txt", "image_class_labels.txt"])
def test_read_cub200_drops_and_names_a_repeated_row(folder: Path, name: str) -> None:
    edit_lines(folder / name, 2, None)
    dataset = read_cub200(folder)
    assert len(dataset.records) == 12
    assert f"{name}: repeated rows are dropped (line 13 repeats line 2)." in dataset.notes


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("images.txt", "2", "images.txt, line 3: '2' has 1 cells; expected 2"),
        ("images.txt", "2 a.jpg", "images.txt, line 3: '2' is listed with other values than in line 2"),
        ("images.txt", "3 001.Bird_1/Bird_1_0000.jpg", "is listed with other values than in line 1"),
        ("images.txt", "3 ../../secret.jpg", "images.txt, line 3: '../../secret.jpg' is not a path inside"),
        ("images.txt", "3 /secret.jpg", "is not a path inside"),
        ("images.txt", "77 a.jpg", "has no class for 1 images: 77"),
        ("image_class_labels.txt", "3 x", "line 3: 'x' is not a number"),
        ("image_class_labels.txt", "3 0", "line 3: '0' is not a number, 1 or more"),
        ("image_class_labels.txt", "77 1", "has no class for 1 images: 3"),
    ],
)
def test_read_cub200_names_the_malformed_line(folder: Path, name: str, line: str, said: str) -> None:
    edit_lines(folder / name, 3, line)
    with pytest.raises(DataError) as caught:
        read_cub200(folder)
    assert said in str(caught.value)


def test_read_cub200_refuses_labels_of_images_that_are_not_listed(folder: Path) -> None:
    lines = (folder / "images.txt").read_text().splitlines()
    (folder / "images.txt").write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match=r"images.txt does not list 1 labeled images: 12"):
        read_cub200(folder)


def test_read_cub200_refuses_empty_lists(folder: Path) -> None:
    (folder / "images.txt").write_text("")
    (folder / "image_class_labels.txt").write_text("")
    with pytest.raises(DataError, match="lists no image"):
        read_cub200(folder)


def test_read_cub200_says_what_it_looked_for(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        read_cub200(tmp_path)
    said = str(caught.value)
    assert "looked for images.txt, image_class_labels.txt, images there and in CUB_200_2011" in said
    assert "lacks images.txt" in said
    assert "holds holiday.jpg" in said
    assert "vitrieve data describe cub200" in said
    with pytest.raises(DataError, match="the folder does not exist"):
        read_cub200(tmp_path / "absent")
    with pytest.raises(DataError, match="the folder is not a folder"):
        read_cub200(tmp_path / "holiday.jpg")
    with pytest.raises(DataError, match="zero_shot"):
        read_source(f"cub200:{tmp_path}", protocol="zeroshot")
