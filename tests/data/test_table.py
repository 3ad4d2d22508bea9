from __future__ import annotations

import datetime
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pyarrow
import pyarrow.parquet
import pytest

from vitrieve.data.records import Dataset, require_trainable
from vitrieve.data.table import read_table
from vitrieve.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def read_csv(folder: Path, text: str, encoding: str = "utf-8") -> Dataset:
    (folder / "images.csv").write_text(text, encoding=encoding)
    return read_table(folder / "images.csv")


def read_parquet(folder: Path, columns: Mapping[str, Sequence[object]]) -> Dataset:
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "images.parquet")
    return read_table(folder / "images.parquet")


def test_read_table_reads_every_column(folder: Path) -> None:
    dataset = read_csv(
        folder,
        "path,label,split,is_query,is_gallery,x_1,y_1,x_2,y_2,photographer\n"
        'a.jpg,dog,train,1,1,,,,,"Doe, Jo"\n'
        "b.jpg,cat,test,true,FALSE,1,2,30.5,40,\n"
        "c.jpg,dog,validation,0,1,,,,,x\n",
    )
    first, second, third = dataset.records
    assert (dataset.name, dataset.label_names) == ("images", ("cat", "dog"))
    assert (first.image_id, first.path, first.label, first.split) == ("a.jpg", folder / "a.jpg", 1, "train")
    assert first.metadata == {"photographer": "Doe, Jo"}
    assert (second.is_query, second.is_gallery, second.box) == (True, False, (1.0, 2.0, 30.5, 40.0))
    assert (third.split, third.is_query, third.box) == ("validation", False, None)


def test_read_table_reads_the_same_from_csv_and_parquet(folder: Path) -> None:
    text = (
        "path,label,split,is_query,x_1,y_1,x_2,y_2,year\na.jpg,7,train,true,,,,,2020\nb.jpg,8,test,false,1,2,3,4.5,\n"
    )
    columns = {
        "path": ["a.jpg", "b.jpg"],
        "label": [7, 8],
        "split": ["train", "test"],
        "is_query": [True, False],
        "x_1": [None, 1],
        "y_1": [float("nan"), 2.0],
        "x_2": [None, 3.0],
        "y_2": [None, 4.5],
        "year": [2020, None],
    }
    assert read_csv(folder, text) == read_parquet(folder, columns)


def test_read_table_without_split_tests_on_every_fifth_label(folder: Path) -> None:
    rows = [f"a.jpg,{label},{label},0,{label + 1},{side}" for label in range(10, 20) for side in (1, 2)]
    dataset = read_csv(folder, "path,label,x_1,y_1,x_2,y_2\n" + "\n".join(rows))
    assert {dataset.label_names[record.label] for record in dataset.split("test")} == {"14", "19"}
    assert any("every fifth" in note for note in dataset.notes)


def test_read_table_keeps_labels_as_text(folder: Path) -> None:
    dataset = read_csv(folder, "path,label\na.jpg,01\nb.jpg,1\nc.jpg,10\n")
    assert dataset.label_names == ("01", "1", "10")


def test_read_table_notes_classes_on_both_sides(folder: Path) -> None:
    dataset = read_csv(folder, "path,label,split\na.jpg,x,train\nb.jpg,x,test\nc.jpg,y,test\n")
    assert any("1 of 2 test classes" in note for note in dataset.notes)
    assert not read_csv(folder, "path,label,split\na.jpg,x,train\nb.jpg,y,test\n").notes


def test_read_table_distinguishes_boxes_of_one_path(folder: Path) -> None:
    dataset = read_csv(folder, "path,label,x_1,y_1,x_2,y_2\na.jpg,x,0,0,5,5\na.jpg,y,5.25,0,9,5\na.jpg,z,,,,\n")
    assert [record.image_id for record in dataset.records] == ["a.jpg#0,0,5,5", "a.jpg#5.25,0,9,5", "a.jpg"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_read_table_accepts_spreadsheet_habits(folder: Path, encoding: str) -> None:
    text = "path, label ,split,,\r\na.jpg, é ,train,,\r\n\r\n,,,,\r\nb.jpg,z, test ,,\r\n, ,,,\r\n"
    dataset = read_csv(folder, text, encoding)
    assert (dataset.label_names, [record.split for record in dataset.records]) == (("z", "é"), ["train", "test"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column 'path'. Found: nothing"),
        ("path;label\na.jpg;x\n", "Found: 'path;label'. Columns are separated by commas"),
        ("label\na\n", "no column 'path'"),
        ("path,label\n", "no rows"),
        ("path,label,label\na.jpg,x,y\n", "'label' twice"),
        ("path,label,Split\na.jpg,x,test\n", "write it 'split'"),
        ("path,label,x1,y1,x2,y2\na.jpg,x,1,1,2,2\n", "write it 'x_1'"),
        ("path,label,x_1,y_1\na.jpg,x,1,1\n", "not 'x_2'"),
        ("path,label\na.jpg,x\nb.jpg\n", "line 3: 1 cells, but the header has 2"),
        ("path,label\na.jpg,x\nb.jpg,x,y\n", "line 3: 3 cells"),
        ("path,label\n\n,x\n", "line 3: path is empty"),
        ("path,label\na.jpg, \n", "line 2: label is empty"),
        ("path,label,split\na.jpg,x,train\nb.jpg,x,val\n", "line 3: split is 'val'; accepted: train, validation, test"),
        ("path,label,split\na.jpg,x,\n", "line 2: split is ''"),
        ("path,label,is_query\na.jpg,x,maybe\n", "line 2: is_query is 'maybe'; accepted: true, false, 1, 0"),
        ("path,label,is_gallery\na.jpg,x,perhaps\n", "line 2: is_gallery is 'perhaps'"),
        ("path,label,x_1,y_1,x_2,y_2\na.jpg,x,1,2,3,\n", "line 2: the box"),
        ("path,label,x_1,y_1,x_2,y_2\na.jpg,x,1,2,3,wide\n", "line 2: the box"),
        ("path,label,x_1,y_1,x_2,y_2\na.jpg,x,1,2,inf,4\n", "must be finite"),
        ("path,label,x_1,y_1,x_2,y_2\na.jpg,x,5,2,5,4\n", "x_1 < x_2"),
        ("path,label\na.jpg,x\nb.jpg,x\na.jpg,y\n", "line 4: 'a.jpg' was listed before"),
        ('path,label\n"a.jpg"x,y\n', "line 2: "),
        ('path,label\na.jpg,"x\n', "line 2: "),
        ("path,label\ngone/1.jpg,x\ngone/2.jpg,x\n", "line 2: 'gone/1.jpg'. Paths are relative"),
    ],
)
def test_read_table_refuses_malformed_csv(folder: Path, text: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read_csv(folder, text)
    assert said in str(caught.value)
    assert "images.csv" in str(caught.value)


def test_read_table_refuses_other_encodings(folder: Path) -> None:
    for encoding in ("latin-1", "utf-16"):
        with pytest.raises(DataError, match="not UTF-8"):
            read_csv(folder, "path,label\na.jpg,é\n", encoding)


def test_read_table_refuses_other_files(folder: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_table(folder / "absent.csv")
    with pytest.raises(DataError, match="not a file"):
        read_table(folder)
    with pytest.raises(DataError, match=r"must end in \.csv"):
        read_table(folder / "a.jpg")
    (folder / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_table(folder / "broken.parquet")


def test_read_table_names_the_row_of_a_parquet_file(folder: Path) -> None:
    with pytest.raises(DataError, match=r"images.parquet, row 2: label is empty"):
        read_parquet(folder, {"path": ["a.jpg", "b.jpg"], "label": ["x", None]})


def test_read_table_tolerates_single_missing_images(folder: Path) -> None:
    dataset = read_csv(folder, "path,label\ngone.jpg,x\na.jpg,x\n")
    assert len(dataset.records) == 2


def test_read_table_reads_junk_groups(folder: Path) -> None:
    dataset = read_csv(folder, "path,label,junk_group\na.jpg,p1,p1 c1\nb.jpg,p1,p1 c1\nc.jpg,p2,\n")
    assert dataset.junk_key == "junk_group"
    assert [dict(record.metadata) for record in dataset.records] == [{"junk_group": "p1 c1"}] * 2 + [{}]
    assert read_csv(folder, "path,label\na.jpg,p1\nb.jpg,p2\n").junk_key is None
    with pytest.raises(DataError, match="a column 'Junk Group'; write it 'junk_group'"):
        read_csv(folder, "path,label,Junk Group\na.jpg,p1,x\n")


def test_read_table_spells_typed_cells_as_people_filter_by_them(folder: Path) -> None:
    columns = {
        "path": ["a.jpg", "b.jpg"],
        "label": ["x", "y"],
        "split": ["test", "test"],
        "year": pyarrow.array([2020.0, None]),  # as pandas writes whole numbers with a gap
        "is_sold": [True, None],
        "day": [datetime.date(2026, 11, 23), None],
        "moment": [datetime.datetime(2026, 11, 23, 10, 30), None],
        "price": [2.5, None],
        "weight": [2.0, 3.0],
    }
    first, second = read_parquet(folder, columns).records
    assert first.metadata == {
        "year": "2020",
        "is_sold": "true",
        "day": "2026-11-23",
        "moment": "2026-11-23T10:30:00",
        "price": "2.5",
        "weight": "2.0",
    }
    assert set(second.metadata.values()) <= {"", "3.0"}


@pytest.mark.parametrize(
    ("values", "kind"),
    [([["k0", "all"]] * 2, "list"), ([{"a": 1}] * 2, "struct"), ([b"k0"] * 2, "binary"), ([0.5, 1.0], "double")],
)
def test_labels_of_types_that_are_no_names_are_refused(folder: Path, values: list[object], kind: str) -> None:
    with pytest.raises(
        DataError, match=rf"the column 'label' is of the type {kind}.*; accepted: text or whole numbers"
    ):
        read_parquet(folder, {"path": ["a.jpg", "b.jpg"], "label": values})


def test_labels_may_be_text_whole_numbers_or_booleans(folder: Path) -> None:
    for values, names in (([3, 12], ("12", "3")), ([True, False], ("false", "true")), (["b", "a"], ("a", "b"))):
        assert read_parquet(folder, {"path": ["a.jpg", "b.jpg"], "label": values}).label_names == names
    text = pyarrow.array(["b", "a"]).dictionary_encode()
    assert read_parquet(folder, {"path": ["a.jpg", "b.jpg"], "label": text}).label_names == ("a", "b")


def test_a_label_that_often_stands_for_a_missing_one_is_noted(folder: Path) -> None:
    notes = " ".join(read_csv(folder, "path,label\na.jpg,nan\nb.jpg,dog\nc.jpg,NaN\n").notes)
    assert "2 of 3 rows have the label 'nan'" in notes
    assert "nan" not in " ".join(read_csv(folder, "path,label\na.jpg,nancy\n").notes)


def test_labels_that_a_reader_takes_for_one_are_noted(folder: Path) -> None:
    rows = "path,label\na.jpg,2\nb.jpg,2.0\nc.jpg,Dog\nd.jpg,dog\n"
    (note,) = [one for one in read_csv(folder, rows).notes if "class of its own" in one]
    assert "'2' and '2.0'; 'Dog' and 'dog'." in note
    apart = read_csv(folder, "path,label\na.jpg,2\nb.jpg,20\nc.jpg,nan\nd.jpg,inf\n")
    assert "class of its own" not in " ".join(apart.notes)


@pytest.mark.parametrize(
    "names",
    [
        ("1e9999999", "1e99999999"),
        (f"1{30 * '0'}1", f"1{30 * '0'}2"),
        ("1_2", "12"),
        ("1e-9999999", "0"),
        ("9" * 60, "9" * 59),
    ],
)
def test_numbers_without_bounds_are_neither_an_error_nor_alike(folder: Path, names: tuple[str, str]) -> None:
    notes = read_csv(folder, f"path,label\na.jpg,{names[0]}\nb.jpg,{names[1]}\n").notes
    assert "class of its own" not in " ".join(notes)


def test_tables_of_open_metric_learning_are_read(folder: Path) -> None:
    # Roles are empty where a row trains; and numbers, as pandas writes a column with gaps.
    dataset = read_csv(
        folder,
        "path,label,split,is_query,is_gallery\na.jpg,x,train,,\nb.jpg,y,validation,1.0,0.0\nb.jpg,y,validation,0.0,1.0\n"
        "c.jpg,y,validation,0.0,1.0\n",
    )
    assert [record.image_id for record in dataset.records] == ["a.jpg", "b.jpg", "c.jpg"]
    roles = [(record.is_query, record.is_gallery) for record in dataset.records]
    assert roles == [(True, True), (True, True), (False, True)]
    with pytest.raises(
        DataError, match=r"line 3: 'a.jpg' was listed before \(.*line 2\) with the same roles; .*drop_dup"
    ):
        read_csv(folder, "path,label\na.jpg,x\na.jpg,x\n")


def test_a_parquet_table_without_paths_gets_no_advice_about_commas(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'path'. Found: 'label'.$"):
        read_parquet(folder, {"label": ["x"]})
    with pytest.raises(DataError, match="separated by commas"):
        read_csv(folder, "label\nx\n")


def test_paths_are_found_as_people_write_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sub").mkdir()
    for name in ("sub/d.jpg", "sub/e f.jpg", "back\\slash.jpg"):
        (folder / name).write_bytes(b"")
    monkeypatch.setenv("HOME", str(folder))
    rows = {
        "./a.jpg": "a.jpg",
        "sub\\d.jpg": "sub/d.jpg",
        "back\\slash.jpg": "back\\slash.jpg",
        f"file://{folder}/sub/e%20f.jpg": f"{folder}/sub/e f.jpg",
        "~/b.jpg": f"{folder}/b.jpg",
        f"../{folder.name}/c.jpg": f"{folder.name}/c.jpg",
    }
    dataset = read_csv(folder, "path,label\n" + "".join(f"{path},x\n" for path in rows))
    assert [record.image_id for record in dataset.records] == list(rows.values())
    assert all(record.path.is_file() for record in dataset.records)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("C:\\photos\\a.jpg", "a path of a Windows machine"),
        ("d:/photos/a.jpg", "a path of a Windows machine"),
        ("\\\\server\\share\\a.jpg", "a network path of Windows"),
        ("https://example.org/a.jpg", "an address; only files are read"),
        ("s3://bucket/a.jpg", "an address; only files are read"),
        ("https://me:secret@example.org/a.jpg", r"path is 'https://…@example.org/a.jpg', an address"),
        ("/s3:/bucket/a.tar/@512+9.jpg", "an address; only files are read"),
        ("file:///https:/host/a.tar/@512+9.jpg", "an address; only files are read"),
        ("../../../../../../../../../../../../s3:/bucket/a.tar/@512+9.jpg", "an address; only files are read"),
        ("file://elsewhere/a.jpg", "a file of the machine 'elsewhere'"),
    ],
)
def test_paths_of_other_machines_are_refused_with_what_to_do(folder: Path, path: str, said: str) -> None:
    with pytest.raises(DataError, match=r"images.csv, line 3: path is ") as told:
        read_csv(folder, f"path,label\na.jpg,x\n{path},x\n")
    assert said in str(told.value)


def test_two_files_of_one_name_are_refused(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "a.jpg").write_bytes(b"")
    (folder / "a" / "images.csv").write_text("path,label\na.jpg,x\n../a.jpg,y\n")
    with pytest.raises(DataError, match=r"line 3: 'a.jpg' was listed before .* for another file; move the table up"):
        read_table(folder / "a" / "images.csv")


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_path_in_the_other_unicode_form_is_found_and_labels_are_one(
    folder: Path, on_disk: Literal["NFC", "NFD"], in_table: Literal["NFC", "NFD"]
) -> None:
    name = "caf\u00e9.jpg"
    (folder / unicodedata.normalize(on_disk, name)).write_bytes(b"")
    labels = [unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD")]
    text = f"path,label\n{unicodedata.normalize(in_table, name)},{labels[0]}\na.jpg,{labels[1]}\n"
    dataset = read_csv(folder, text)
    assert dataset.records[0].path.is_file()
    assert dataset.label_names == ("caf\u00e9",)
    assert any("1 of 2 files were found under the other Unicode form" in note for note in dataset.notes)


def test_a_table_without_labels_can_be_searched(folder: Path) -> None:
    dataset = read_csv(folder, "path,price\na.jpg,3\nb.jpg,4\n")
    assert [(record.label, dict(record.metadata)) for record in dataset.records] == [
        (0, {"price": "3"}),
        (0, {"price": "4"}),
    ]
    assert dataset.notes == (
        "the table has no column 'label': its images can be searched, but not trained on or measured.",
    )
    with pytest.raises(DataError, match="one class only"):
        require_trainable(dataset)


def test_a_nul_character_costs_its_row_alone(folder: Path) -> None:
    dataset = read_csv(folder, "path,label,note\na.jpg,x,on\0e\nb.jpg,x,two\nc\0.jpg,x,three\n")
    assert "2 of 3 rows have a NUL character, the first in" in " ".join(dataset.notes)
    assert dataset.records[0].metadata == {"note": "on\ufffde"}
    assert [record.path.is_file() for record in dataset.records] == [True, True, False]


def test_more_labels_are_read_once_each_without_empty_ones_and_the_own(folder: Path) -> None:
    dataset = read_csv(
        folder, "path,label,more_labels\na.jpg,dog,red; red ;;dog; Größe \nb.jpg,cat, ; \nc.jpg,dog,cat\n"
    )
    names = [{dataset.label_names[label] for label in labels} for labels in dataset.more_labels.values()]
    assert (list(dataset.more_labels), names) == (["a.jpg", "c.jpg"], [{"red", "Größe"}, {"cat"}])
    assert dataset.label_names == ("cat", "dog", "Größe", "red")
    assert "red; red" in dataset.records[0].metadata["more_labels"], "it is metadata, too"


def test_a_label_that_every_training_image_carries_is_told(folder: Path) -> None:
    rows = "path,label,more_labels,split\na.jpg,dog,animal,train\nb.jpg,cat,animal,train\nc.jpg,rock,{},{}\n"
    for label, split, is_told in (("", "test", True), ("", "train", False), ("animal", "train", True)):
        notes = " ".join(read_csv(folder, rows.format(label, split)).notes)
        assert ("carries animal:" in notes and "learns nothing" in notes) == is_told


def test_more_labels_that_are_too_many_or_none_are_told(folder: Path) -> None:
    row = f"a.jpg,dog,{';'.join(f'tag {number}' for number in range(5000))}\n"
    with pytest.raises(DataError, match=r"a.jpg has 5,000 labels in more_labels; an image takes at most 100"):
        read_csv(folder, f"path,label,more_labels\n{row}")
    many = "".join(f"{name}.jpg,dog,{';'.join(f'{name}{number}' for number in range(100))}\n" for name in "abc")
    assert len(read_csv(folder, f"path,label,more_labels\n{many}").label_names) == 301
    notes = " ".join(read_csv(folder, "path,label,more_labels\na.jpg,dog,red;NaN\nb.jpg,cat,nancy\n").notes)
    assert "1 of 2 rows have the label 'NaN'" in notes
    with pytest.raises(DataError, match=r"'more_labels' is of the type list.*accepted: .*semicolons between"):
        read_parquet(folder, {"path": ["a.jpg"], "label": ["dog"], "more_labels": [["red", "round"]]})
    with pytest.raises(DataError, match="label"):
        read_csv(folder, "path,label,more_labels\na.jpg,,red\n")
