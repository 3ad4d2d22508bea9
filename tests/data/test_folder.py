from __future__ import annotations

import os
from pathlib import Path

import pytest

from vitrieve.data.folder import read_flat_folder, read_folder
from vitrieve.data.records import Dataset
from vitrieve.errors import DataError


def touch(root: Path, *names: str) -> None:
    """Create files; listing opens none, so they need no content."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def list_ids(dataset: Dataset) -> list[str]:
    return [record.image_id for record in dataset.records]


def test_read_folder_makes_a_class_of_each_folder(tmp_path: Path) -> None:
    touch(tmp_path, "dog/2.JPG", "dog/1.png", "cat/inner/deep/3.webp", "cat/4.tiff")
    dataset = read_folder(tmp_path)
    assert list_ids(dataset) == ["cat/4.tiff", "cat/inner/deep/3.webp", "dog/1.png", "dog/2.JPG"]
    assert dataset.label_names == ("cat", "dog")
    assert [record.label for record in dataset.records] == [0, 0, 1, 1]
    assert dataset.records[3].path == tmp_path / "dog/2.JPG"
    assert dataset.name == tmp_path.name


def test_read_folder_tests_on_every_fifth_class_and_says_so(tmp_path: Path) -> None:
    touch(tmp_path, *(f"class_{number:02}/{name}.png" for number in range(1, 12) for name in "12"))
    dataset = read_folder(tmp_path)
    assert {dataset.label_names[record.label] for record in dataset.split("test")} == {"class_05", "class_10"}
    assert len(dataset.split("train")) == 18
    assert any("every fifth" in note and "(2)" in note and "(9)" in note for note in dataset.notes)


def test_read_folder_tests_on_no_class_of_one_image(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *(f"class_{number:02}/{name}.png" for number in range(1, 11) for name in "12" if number < 4 or name == "1"),
    )
    dataset = read_folder(tmp_path)
    assert {dataset.label_names[record.label] for record in dataset.split("test")} == {"class_03"}
    touch(tmp_path / "lone", *(f"{number}/1.png" for number in range(5)))
    dataset = read_folder(tmp_path / "lone")
    assert not dataset.split("test")
    assert any("of 5 classes none with two images can be spared" in note for note in dataset.notes)


def test_read_folder_of_few_classes_has_no_test_class_and_says_so(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/1.png", "c/1.png", "d/1.png")
    dataset = read_folder(tmp_path)
    assert not dataset.split("test")
    assert any("there are 4 classes: all images are for training" in note for note in dataset.notes)


def test_read_folder_accepts_one_class(tmp_path: Path) -> None:
    touch(tmp_path, "only/1.png")
    assert any("there is one class" in note for note in read_folder(tmp_path).notes)


def test_read_folder_leaves_out_and_counts_what_is_no_image_of_a_class(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/._1.png", "a/.DS_Store", "a/notes.txt", "a/Thumbs.db", "top.png", ".git/2.png")
    touch(tmp_path, "__MACOSX/a/._1.png", "b/readme")
    (tmp_path / "c").mkdir()
    dataset = read_folder(tmp_path)
    assert list_ids(dataset) == ["a/1.png"]
    notes = " ".join(dataset.notes)
    assert (
        "3 hidden, 1 outside the class folders, 1 of the system (1 __MACOSX), 1 .db, 1 .txt, 1 without a suffix"
        in notes
    )
    assert "2 classes without an image: b, c." in notes


def test_read_folder_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(root, "a/1.png", "b/2.png")
    touch(tmp_path, "elsewhere/3.png")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "self").symlink_to(root / "a")
    (root / "a" / "up").symlink_to(root)
    (root / "b" / "above").symlink_to(tmp_path)
    (root / "b" / "again.png").symlink_to("again.png")
    (root / "loop").symlink_to("loop")
    dataset = read_folder(root)
    assert list_ids(dataset) == ["a/1.png", "b/2.png", "b/again.png", "c/3.png"]
    assert any("3 a link in a circle" in note for note in dataset.notes)


def test_read_folder_lists_a_broken_link_so_that_it_is_reported(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png")
    (tmp_path / "a" / "2.png").symlink_to("gone.png")
    os.mkfifo(tmp_path / "a" / "3.png")
    assert list_ids(read_folder(tmp_path)) == ["a/1.png", "a/2.png"]


def test_read_folder_spells_names_that_are_not_utf_8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/\xff.png", "wb"):
        pass
    dataset = read_folder(tmp_path)
    assert (list_ids(dataset), dataset.label_names) == (["caf\\xe9/\\xff.png"], ("caf\\xe9",))
    assert dataset.records[0].path.is_file()


def test_read_folder_refuses_what_holds_no_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_folder(tmp_path / "absent")
    with pytest.raises(DataError, match="holds no image; expected one subfolder"):
        read_folder(tmp_path)
    touch(tmp_path, "1.png", "notes/readme.txt")
    with pytest.raises(DataError, match=r"1 image but no folder of images; .* vitrieve up searches the images"):
        read_folder(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        read_folder(tmp_path / "1.png")


def test_read_flat_folder_lists_images_at_any_depth(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a/inner/1.jpg", ".hidden.png", "text.txt")
    dataset = read_flat_folder(tmp_path)
    assert list_ids(dataset) == ["a/inner/1.jpg", "b.png"]
    assert {(record.label, record.split) for record in dataset.records} == {(0, "test")}
    assert any("1 hidden" in note for note in dataset.notes)


def test_read_flat_folder_refuses_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image at any depth"):
        read_flat_folder(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read_flat_folder(tmp_path / "absent")
