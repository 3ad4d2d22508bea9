from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from vitrieve.data.decode import read_image
from vitrieve.data.grocery import read_grocery
from vitrieve.data.sources import read_source
from vitrieve.errors import DataError

HEADER = "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),Iconic Image Path (str),Text"


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """Write the lists of a data set of three classes; the readers open no picture."""
    names = ("Apple", "Brie", "Corn")
    rows = [
        f"{name},{number},Coarse-{name},{number},/iconic-images-and-descriptions/{name}/{name}_Iconic.jpg,x.txt"
        for number, name in enumerate(names)
    ]
    (tmp_path / "classes.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    (tmp_path / "train.txt").write_text("train/a_1.jpg, 0, 0\ntrain/b_1.jpg, 1, 1\n\n")
    (tmp_path / "val.txt").write_text("val/c_1.jpg, 2, 2\n")
    (tmp_path / "test.txt").write_text("test/b_2.jpg, 1, 1\ntest/a_2.jpg, 0, 0\n")
    (tmp_path / "iconic").mkdir()
    return tmp_path


def test_read_grocery_splits_by_class_id_not_by_list(tiny_folder: Path) -> None:
    dataset = read_grocery(tiny_folder)
    assert [(record.image_id, record.label, record.split) for record in dataset.records] == [
        ("train/a_1.jpg", 0, "train"),
        ("train/b_1.jpg", 1, "test"),
        ("val/c_1.jpg", 2, "train"),
        ("test/b_2.jpg", 1, "test"),
        ("test/a_2.jpg", 0, "train"),
    ]
    assert (dataset.name, dataset.protocol, dataset.ks) == ("grocery", "zero_shot", (1, 2, 4, 8))
    assert dataset.label_names == ("Apple", "Brie", "Corn")
    assert dataset.records[1].metadata == {"class_name": "Brie", "coarse_class": "Coarse-Brie"}
    assert dataset.records[1].path == tiny_folder / "train/b_1.jpg"
    assert "MIT" in dataset.license


def test_read_grocery_notes_another_count(tiny_folder: Path) -> None:
    assert any("5 photographs of 3 classes" in note for note in read_grocery(tiny_folder).notes)


def test_read_grocery_phone_to_catalogue_separates_queries_and_gallery(tiny_folder: Path) -> None:
    dataset = read_grocery(tiny_folder, "phone_to_catalogue")
    assert dataset.ks == (1, 5)
    assert dataset.split("train") == read_grocery(tiny_folder).split("train")
    tested = dataset.split("test")
    assert [record.image_id for record in tested if record.is_query] == ["train/b_1.jpg", "test/b_2.jpg"]
    gallery = [record for record in tested if record.is_gallery]
    assert [(record.image_id, record.label) for record in gallery] == [
        ("iconic/Apple/Apple_Iconic.jpg", 0),
        ("iconic/Brie/Brie_Iconic.jpg", 1),
        ("iconic/Corn/Corn_Iconic.jpg", 2),
    ]
    assert not any(record.is_query and record.is_gallery for record in tested)


def test_read_grocery_accepts_the_published_folder_names(tiny_folder: Path) -> None:
    (tiny_folder / "iconic").rename(tiny_folder / "iconic-images-and-descriptions")
    dataset = read_grocery(tiny_folder, "phone_to_catalogue")
    assert dataset.records[-1].image_id == "iconic-images-and-descriptions/Corn/Corn_Iconic.jpg"


def test_read_grocery_refuses_what_is_not_the_data_set(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"classes.csv cannot be read .*GroceryStoreDataset"):
        read_grocery(tmp_path / "absent")
    with pytest.raises(DataError, match="'zero_shot'"):
        read_source(f"grocery:{tiny_folder}", protocol="zeroshot")
    shutil.rmtree(tiny_folder / "iconic")
    with pytest.raises(DataError, match="no folder 'iconic'"):
        read_grocery(tiny_folder, "phone_to_catalogue")
    (tiny_folder / "val.txt").unlink()
    with pytest.raises(DataError, match=r"val.txt cannot be read"):
        read_grocery(tiny_folder)


@pytest.mark.parametrize("line", ["val/c_1.jpg", "val/c_1.jpg, x, 2", "val/c_1.jpg, 3, 2", "val/c_1.jpg, -1, 2"])
def test_read_grocery_names_the_malformed_line(tiny_folder: Path, line: str) -> None:
    (tiny_folder / "val.txt").write_text("val/c_1.jpg, 2, 2\n" + line + "\n")
    with pytest.raises(DataError, match=r"val.txt, line 2: "):
        read_grocery(tiny_folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "no column"), ("a,b\n1,2\n", "no column 'Class Name"), (HEADER + "\nA,7,B,0,/x,y\n", "0, 1")],
)
def test_read_grocery_refuses_malformed_classes(tiny_folder: Path, content: str, said: str) -> None:
    (tiny_folder / "classes.csv").write_text(content)
    with pytest.raises(DataError, match=said):
        read_grocery(tiny_folder)


@pytest.mark.data
def test_read_grocery_has_the_published_counts(grocery_folder: Path) -> None:
    dataset = read_grocery(grocery_folder)
    assert dataset.notes == ()
    assert Counter(record.split for record in dataset.records) == {"train": 2_781, "test": 2_640}
    assert {len({record.label for record in dataset.split("train")}), len(dataset.label_names)} == {41, 81}
    assert len({record.image_id for record in dataset.records}) == 5_421
    catalogue = read_grocery(grocery_folder, "phone_to_catalogue").split("test")
    assert [sum(record.is_query for record in catalogue), sum(record.is_gallery for record in catalogue)] == [2_640, 81]
    assert all(record.path.is_file() for record in catalogue)
    assert read_image(catalogue[-1]).mode == "RGB"
