from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.benchmark_trees import edit_lines, write_sop
from vitrieve.data.decode import read_image
from vitrieve.data.sop import read_sop
from vitrieve.data.sources import read_source
from vitrieve.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sop(tmp_path / "Stanford_Online_Products", num_classes=2, num_images=2)


def test_read_sop_takes_the_split_of_the_lists(folder: Path) -> None:
    dataset = read_sop(folder)
    assert (dataset.name, dataset.protocol, dataset.ks) == ("sop", "zero_shot", (1, 10, 100, 1000))
    assert dataset.label_names == ("bicycle 1", "chair 2", "bicycle 3", "chair 4")
    assert [(record.label, record.split) for record in dataset.records] == [
        (0, "train"),
        (0, "train"),
        (1, "train"),
        (1, "train"),
        (2, "test"),
        (2, "test"),
        (3, "test"),
        (3, "test"),
    ]
    last = dataset.records[-1]
    assert (last.image_id, last.metadata) == ("chair_final/11104_1.JPG", {"super_class": "chair"})
    assert read_image(last).mode == "RGB"
    assert read_sop(folder.parent) == dataset


def test_read_sop_notes_expected_and_found_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (note,) = read_sop(folder).notes
    assert "training images: expected 59,551, found 4" in note
    assert "test classes: expected 11,316, found 2" in note
    counts = {"training images": 4, "training classes": 2, "test images": 4, "test classes": 2}
    monkeypatch.setattr("vitrieve.data.sop.COUNTS", counts)
    assert read_sop(folder).notes == ()


def test_read_sop_notes_missing_extra_and_repeated(folder: Path) -> None:
    (folder / "chair_final/11104_1.JPG").unlink()
    (folder / "chair_final/extra.JPG").write_bytes(b"x")
    edit_lines(folder / "Ebay_test.txt", 2, None)
    dataset = read_sop(folder)
    assert len(dataset.records) == 8
    assert dataset.notes[1:] == (
        "Ebay_test.txt: repeated rows are dropped (line 6 repeats line 2).",
        "1 of 8 listed images are missing: chair_final/11104_1.JPG.",
        "1 image that no list names is left out: chair_final/extra.JPG.",
    )


def test_read_sop_notes_a_class_in_both_lists(folder: Path) -> None:
    edit_lines(folder / "Ebay_test.txt", 2, "5 1 1 bicycle_final/11103_0.JPG")
    assert "1 of 3 test classes are also trained on: figures are not about unseen classes." in read_sop(folder).notes


@pytest.mark.parametrize(
    ("number", "line", "said"),
    [
        (1, "image_id class_id path", "Ebay_test.txt: the header is 'image_id class_id path'; expected 'image_id"),
        (2, "5 3 bicycle_final/11103_0.JPG", "line 2: '5 3 bicycle_final/11103_0.JPG' has 3 cells"),
        (2, "5 x 1 bicycle_final/11103_0.JPG", "line 2: 'x' is not a number"),
        (2, "5 3 -1 bicycle_final/11103_0.JPG", "line 2: '-1' is not a number"),
        (2, "5 3 1 ../a.JPG", "line 2: '../a.JPG' is not a path inside"),
        (2, "6 3 1 a.JPG", "line 3: '6' is listed with other values than in line 2"),
        (2, "9 4 1 bicycle_final/11103_1.JPG", "is listed with other values"),
        (2, "5 3 1 bicycle_final/11101_0.JPG", "1 image is in both Ebay_train.txt and Ebay_test.txt"),
    ],
)
def test_read_sop_names_the_malformed_line(folder: Path, number: int, line: str, said: str) -> None:
    edit_lines(folder / "Ebay_test.txt", number, line)
    with pytest.raises(DataError) as caught:
        read_sop(folder)
    assert said in str(caught.value)


def test_read_sop_says_what_it_looked_for(folder: Path, tmp_path: Path) -> None:
    (folder / "Ebay_test.txt").unlink()
    with pytest.raises(DataError, match=r"looked for Ebay_train.txt, Ebay_test.txt .* lacks Ebay_test.txt"):
        read_sop(folder)
    with pytest.raises(DataError, match="zero_shot"):
        read_source(f"sop:{folder}", protocol="zero")


def test_read_sop_refuses_lists_without_an_image(folder: Path) -> None:
    for name in ("Ebay_train.txt", "Ebay_test.txt"):
        (folder / name).write_text("image_id class_id super_class_id path\n")
    with pytest.raises(DataError, match="list no image"):
        read_sop(folder)
