from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.data.benchmark_trees import edit_lines, write_inshop
from vitrieve.data.decode import read_image
from vitrieve.data.inshop import read_inshop
from vitrieve.data.sources import read_source
from vitrieve.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_inshop(tmp_path, num_classes=2, num_images=2)


def test_read_inshop_separates_queries_and_gallery(folder: Path) -> None:
    dataset = read_inshop(folder)
    assert (dataset.name, dataset.protocol, dataset.ks) == ("inshop", "standard", (1, 10, 20, 30))
    assert dataset.label_names == ("id_00000001", "id_00000002", "id_00000003", "id_00000004")
    assert [(r.label, r.split, r.is_query, r.is_gallery) for r in dataset.records] == [
        (0, "train", True, True),
        (0, "train", True, True),
        (1, "train", True, True),
        (1, "train", True, True),
        (2, "test", True, False),
        (2, "test", False, True),
        (3, "test", True, False),
        (3, "test", False, True),
    ]
    assert dataset.records[0].image_id == "img/WOMEN/Dresses/id_00000001/00_1_front.jpg"
    assert read_image(dataset.records[0]).size == (48, 40)


def test_read_inshop_high_resolution_takes_the_other_folder_and_other_ids(folder: Path) -> None:
    standard, large = read_inshop(folder), read_inshop(folder, "high_resolution")
    assert large.records[0].image_id == "img_highres/WOMEN/Dresses/id_00000001/00_1_front.jpg"
    assert read_image(large.records[0]).size == (96, 80)
    assert [(r.label, r.split) for r in large.records] == [(r.label, r.split) for r in standard.records]


def test_read_inshop_finds_pictures_below_img(tmp_path: Path) -> None:
    nested = write_inshop(tmp_path / "In-shop Clothes Retrieval Benchmark", num_classes=2, is_nested=True)
    for protocol in ("standard", "high_resolution"):
        dataset = read_inshop(tmp_path, protocol)
        assert all(record.path.is_file() for record in dataset.records)
        assert len(dataset.notes) == 1
        assert dataset == read_inshop(nested, protocol)


def test_read_inshop_finds_the_list_beside_the_pictures(folder: Path) -> None:
    before = read_inshop(folder)
    shutil.move(folder / "Eval" / "list_eval_partition.txt", folder)
    assert read_inshop(folder) == before


def test_read_inshop_notes_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (note,) = read_inshop(folder).notes
    for part in ("training images: expected 25,882, found 4", "queries: expected 14,218, found 2", "3,985, found 2"):
        assert part in note
    counts = {"training images": 4, "training classes": 2, "queries": 2, "gallery images": 2, "test classes": 2}
    monkeypatch.setattr("vitrieve.data.inshop.COUNTS", counts)
    assert read_inshop(folder).notes == ()


def test_read_inshop_notes_missing_extra_repeated_and_a_wrong_announcement(folder: Path) -> None:
    (folder / "img/WOMEN/Dresses/id_00000001/00_1_front.jpg").unlink()
    (folder / "img/WOMEN/extra.jpg").write_bytes(b"x")
    edit_lines(folder / "Eval/list_eval_partition.txt", 4, None)
    dataset = read_inshop(folder)
    assert len(dataset.records) == 8
    assert dataset.notes[1:] == (
        "list_eval_partition.txt: repeated rows are dropped (line 11 repeats line 4).",
        "list_eval_partition.txt: its first line announces 8 images, but it lists 9.",
        "1 of 8 listed images are missing: img/WOMEN/Dresses/id_00000001/00_1_front.jpg.",
        "1 image that no list names is left out: img/WOMEN/extra.jpg.",
    )
    assert len(read_inshop(folder, "high_resolution").notes) == 3


def test_read_inshop_notes_a_garment_in_train_and_test(folder: Path) -> None:
    edit_lines(folder / "Eval/list_eval_partition.txt", 10, "img/a.jpg id_00000001 gallery")
    assert any("1 of 3 test classes are also trained on" in note for note in read_inshop(folder).notes)


@pytest.mark.parametrize(
    ("number", "line", "said"),
    [
        (1, "eight", "the first two lines must be the number of images and 'image_name item_id evaluation_status'"),
        (2, "image_name item_id", "the first two lines must be"),
        (4, "img/a.jpg id_1", "line 4: 'img/a.jpg id_1' is not 'image_name"),
        (4, "img/a.jpg id_1 val", "with a status of train, query, gallery"),
        (4, "a.jpg id_1 train", "line 4: 'a.jpg' does not begin with 'img/'"),
        (4, "img/../../a.jpg id_1 train", "is not a path inside"),
        (4, "img/WOMEN/Dresses/id_00000001/00_1_front.jpg id_2 train", "is listed with other values than in line 3"),
    ],
)
def test_read_inshop_names_the_malformed_line(folder: Path, number: int, line: str, said: str) -> None:
    edit_lines(folder / "Eval/list_eval_partition.txt", number, line)
    with pytest.raises(DataError) as caught:
        read_inshop(folder)
    assert said in str(caught.value)


@pytest.mark.parametrize("content", ["", "0\n", "0\nimage_name item_id evaluation_status\n"])
def test_read_inshop_refuses_an_empty_list(folder: Path, content: str) -> None:
    (folder / "Eval/list_eval_partition.txt").write_text(content)
    with pytest.raises(DataError, match="list_eval_partition"):
        read_inshop(folder)


def test_read_inshop_says_what_it_looked_for(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "img")
    with pytest.raises(DataError, match=r"in img and Img/img; neither.* choose it with --protocol high_resolution"):
        read_inshop(folder)
    shutil.rmtree(folder / "img_highres")
    with pytest.raises(DataError, match=r"neither is a folder. `vitrieve data describe inshop`"):
        read_inshop(folder, "high_resolution")
    (folder / "Eval/list_eval_partition.txt").unlink()
    with pytest.raises(DataError, match=r"looked for Eval/list_eval_partition\.txt"):
        read_inshop(folder)
    with pytest.raises(DataError, match="high_resolution"):
        read_source(f"inshop:{folder}", protocol="highres")
