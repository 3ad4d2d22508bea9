"""``hf:``: the layouts of the library ``datasets``, written by hand as it writes them."""

from __future__ import annotations

import io
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vitrieve.data import cells
from vitrieve.data.decode import read_image, read_image_bytes
from vitrieve.data.pack import PackSettings, pack_dataset
from vitrieve.data.records import Dataset
from vitrieve.data.sources import read_source
from vitrieve.errors import DataError, DecodeError


def picture(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]], features: Mapping[str, Any] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows))
    if features is not None:
        said = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": said})
    pq.write_table(table, path, row_group_size=3)


def read(folder: Path) -> Dataset:
    return read_source(f"hf:{folder}")


def cell(number: int) -> dict[str, object]:
    return {"bytes": picture(number), "path": f"{number}.png"}


FEATURES = {
    "image": {"_type": "Image"},
    "kind": {"names": ["pear", "apple"], "_type": "ClassLabel"},
    "price": {"dtype": "float64", "_type": "Value"},
}


def test_parquet_gives_pictures_classes_splits_and_metadata(tmp_path: Path) -> None:
    rows = [{"image": cell(number), "kind": number % 2, "price": number / 2, "tags": ["a"]} for number in range(7)]
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", rows[:4], FEATURES)
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", rows[4:5], FEATURES)
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows[5:], FEATURES)

    dataset = read(tmp_path)

    assert dataset.label_names == ("pear", "apple")
    assert [record.split for record in dataset.records] == ["test"] * 2 + ["train"] * 5
    assert [record.image_id for record in dataset.records][1:3] == [
        "data/test-00000-of-00001/000001", "data/train-00000-of-00002/000000",
    ]  # fmt: skip
    numbers = [5, 6, 0, 1, 2, 3, 4]
    assert [record.label for record in dataset.records] == [number % 2 for number in numbers]
    for number, record in zip(numbers, dataset.records, strict=True):
        assert read_image_bytes(record.path) == picture(number)
        assert record.metadata == {"price": str(number / 2), "file_name": f"{number}.png"}
    assert read_image(dataset.records[0]).size == (8, 8)
    assert "faster after vitrieve data pack" in dataset.notes[-1]
    assert "2 of 2 test classes are also trained on" in dataset.notes[0]


def test_trap_pictures_without_a_split_beside_others_with_one(tmp_path: Path) -> None:
    """The pictures that were given for testing would have been trained on."""
    rows = [{"image": cell(number), "label": f"class{number}"} for number in range(6)]
    for name in ("train", "test", "more"):
        write_parquet(tmp_path / f"{name}.parquet", rows)
    with pytest.raises(DataError, match=r"6 of 18 pictures have no split, among them '?more/000000'?, and the others"):
        read(tmp_path)


def test_parquet_of_other_programs_needs_no_description(tmp_path: Path) -> None:
    rows = [{"img": picture(number), "label": f"class{number // 2}"} for number in range(12)]
    write_parquet(tmp_path / "some.parquet", rows)
    dataset = read(tmp_path)
    assert dataset.label_names == tuple(f"class{number}" for number in range(6))
    assert {record.label for record in dataset.split("test")} == {4}
    assert read_image_bytes(dataset.records[7].path) == picture(7)


def test_each_group_of_rows_is_decoded_once_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "train.parquet", [{"image": cell(number)} for number in range(8)])
    decoded: list[int] = []
    decode = cells._decode

    def count(parquet: pq.ParquetFile, group: int, column: int) -> pa.ChunkedArray:
        decoded.append(group)
        return decode(parquet, group, column)

    monkeypatch.setattr(cells, "_decode", count)
    monkeypatch.setattr(cells, "KEPT_BYTES", 1)
    records = read(tmp_path).records
    assert [read_image_bytes(record.path) for record in records] == [picture(number) for number in range(8)]
    assert decoded == [0, 1, 2]


def test_a_file_that_changes_or_goes_is_a_bad_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "train.parquet"
    write_parquet(file, [{"image": cell(number)} for number in range(4)])
    records = read(tmp_path).records
    monkeypatch.setattr(cells, "MAX_GROUP_BYTES", 10)
    with pytest.raises(DecodeError, match=r"group of rows has .* at most 10 are decoded.*row_group_size"):
        read_image(records[0])
    write_parquet(file, [{"image": {"bytes": None, "path": "elsewhere.png"}}, {"image": cell(0)}])
    with pytest.raises(DecodeError, match="no row 3; it has changed"):
        read_image(records[3])
    monkeypatch.undo()
    with pytest.raises(DecodeError, match="no bytes of a picture"):
        read_image(records[0])
    file.write_bytes(b"PAR1 and no more")
    with pytest.raises(DecodeError, match=r"train\.parquet is damaged"):
        read_image(records[0])
    file.unlink()
    with pytest.raises(DecodeError, match=r"train\.parquet cannot be read: No such file"):
        read_image(records[0])


def test_parquet_packs_into_shards(tmp_path: Path) -> None:
    rows = [{"image": cell(number), "kind": number % 2, "price": 1.0} for number in range(6)]
    write_parquet(tmp_path / "set" / "train.parquet", rows, FEATURES)
    dataset = read(tmp_path / "set")
    pack_dataset(dataset, tmp_path / "out", settings=PackSettings(num_processes=1))
    packed = read_source(f"shards:{tmp_path / 'out'}")
    for one, other in zip(dataset.records, packed.records, strict=True):
        assert replace(one, path=other.path) == other
        assert read_image_bytes(one.path) == read_image_bytes(other.path)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_an_image_folder_with_metadata(tmp_path: Path, name: str) -> None:
    for split, number in (("train", 0), ("train", 1), ("test", 2)):
        folder = tmp_path / split
        (folder / "sub").mkdir(parents=True, exist_ok=True)
        (folder / "sub" / f"{number}.png").write_bytes(picture(number))
    (tmp_path / "test" / "unlisted.png").write_bytes(picture(3))
    for split, numbers in (("train", (0, 1)), ("test", (2,))):
        rows = [{"file_name": f"sub/{number}.png", "label": f"kind {number % 2}", "text": "a, b"} for number in numbers]
        lines = [json.dumps({**row, "objects": {"bbox": [1]}}) for row in rows]
        if name.endswith(".csv"):
            lines = ["file_name,label,text", *(f'{row["file_name"]},{row["label"]},"a, b"' for row in rows)]
        (tmp_path / split / name).write_text("\n".join(lines) + "\n")
    dataset = read(tmp_path)
    assert [record.image_id for record in dataset.records] == ["test/sub/2.png", "train/sub/0.png", "train/sub/1.png"]
    assert [record.split for record in dataset.records] == ["test", "train", "train"]
    assert [dataset.label_names[record.label] for record in dataset.records] == ["kind 0", "kind 0", "kind 1"]
    assert all(record.metadata == {"text": "a, b"} for record in dataset.records)
    assert read_image_bytes(dataset.records[2].path) == picture(1)
    assert dataset.notes[-1] == "1 picture is in no list of the data set and left out."


def test_empty_rows_and_columns_of_spreadsheets_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(picture(0))
    (tmp_path / "metadata.csv").write_text("file_name,label,text,, \n0.png,pear,ripe,,\n,,,, \n,,,,\n")
    (record,) = read(tmp_path).records
    assert (record.image_id, record.metadata) == ("0.png", {"text": "ripe"})


def test_labels_of_types_that_are_no_names_are_metadata_or_nothing(tmp_path: Path) -> None:
    many = [{"image": cell(number), "label": [0, number]} for number in range(2)]
    write_parquet(tmp_path / "many" / "a.parquet", many)
    write_parquet(tmp_path / "many" / "b.parquet", many)
    dataset = read(tmp_path / "many")
    assert (dataset.label_names, [record.metadata["file_name"] for record in dataset.records[:2]]) == (
        ("image",), ["0.png", "1.png"],
    )  # fmt: skip
    said = [note for note in dataset.notes if "is of the type list" in note]
    assert len(said) == 1
    assert said[0].endswith("which names no class, and is no label.")
    write_parquet(tmp_path / "score" / "a.parquet", [{"image": cell(0), "label": 0.5}])
    dataset = read(tmp_path / "score")
    assert (dataset.label_names, dataset.records[0].metadata["label"]) == (("image",), "0.5")


def test_pictures_without_a_label_are_told(tmp_path: Path) -> None:
    rows = [{"image": cell(number), "kind": kind} for number, kind in enumerate((1, 0, None, -1))]
    write_parquet(tmp_path / "data" / "train.parquet", rows, FEATURES)
    write_parquet(tmp_path / "data" / "test.parquet", [{"image": cell(4)}], {"image": FEATURES["image"]})
    dataset = read(tmp_path)
    assert [dataset.label_names[record.label] for record in dataset.records] == [
        "image", "apple", "pear", "image", "image",
    ]  # fmt: skip
    assert dataset.label_names == ("pear", "apple", "image")
    assert any(note.startswith("3 pictures have no label") for note in dataset.notes)
    write_parquet(tmp_path / "data" / "train-2.parquet", [{"image": cell(5), "label": "0"}])
    with pytest.raises(DataError, match=r"train\.parquet numbers its classes otherwise than the files before it"):
        read(tmp_path)


@pytest.mark.parametrize(("on_disk", "in_list"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_picture_is_found_under_the_other_form_of_unicode(
    tmp_path: Path, on_disk: Literal["NFC", "NFD"], in_list: Literal["NFC", "NFD"]
) -> None:
    (tmp_path / unicodedata.normalize(on_disk, "caf\u00e9.png")).write_bytes(picture(0))
    rows = [{"file_name": unicodedata.normalize(in_list, "caf\u00e9.png"), "cut": "fish \ud83d"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = read(tmp_path)
    (record,) = dataset.records
    assert read_image_bytes(record.path) == picture(0)
    assert record.metadata == {"cut": "fish \N{REPLACEMENT CHARACTER}"}
    assert dataset.notes[-1] == "1 of 1 files were found under the other Unicode form of the name (NFC, NFD)."


def test_a_label_or_split_that_is_a_list_is_passed_over_and_told_once(tmp_path: Path) -> None:
    said: list[dict[str, object]] = [
        {"label": ["a", "b"]},
        {"label": {"id": 1}, "split": ["train"]},
        {"label": "pear", "tags": ["x"]},
        {"label": None},
    ]
    for number in range(len(said)):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    rows = [{"file_name": f"{number}.png", **one} for number, one in enumerate(said)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = read(tmp_path)
    assert [dataset.label_names[record.label] for record in dataset.records] == ["image", "image", "pear", "image"]
    assert [note for note in dataset.notes if "a list" in note] == [
        "2 pictures have a list or an object as label, which names no label and is passed over.",
        "1 picture has a list or an object as split, which names no split and is passed over.",
    ]


def test_class_folders_without_metadata_are_read_as_a_folder(photographs: Path) -> None:
    assert replace(read(photographs), source="") == read_source(f"folder:{photographs}")


@pytest.mark.parametrize("file_name", ["../secret.png", "/etc/passwd", "~/a.png", "a\\..\\b.png", "a/../../b.png", ""])
def test_a_list_names_pictures_below_its_folder_alone(tmp_path: Path, file_name: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": file_name}))
    with pytest.raises(DataError, match=r"metadata.jsonl, line 1.*(lies below the folder|has no 'file_name')"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.jsonl", b"{", "line 1 is no JSON"),
        ("metadata.jsonl", b"[1]", "line 1 is no JSON object"),
        ("metadata.jsonl", b'\n{"file_name": "a.png"}\n{"file_name": "./a.png"}', r"line 3: a\.png was listed before"),
        ("metadata.jsonl", b'{"file_name": "a.png"}', r"none of the pictures .* exists"),
        ("metadata.csv", b"file_name,b\na.png\n", "line 2 has another number of cells"),
        ("metadata.csv", b"\xff\xfe", "not UTF-8"),
        ("metadata.csv", b"file_name\n", "lists no picture"),
        ("metadata.csv", b"file_name,label,label\na.png,x,y\n", "has the column 'label' twice"),
        ("a.parquet", b"PAR1PAR1", "not a readable Parquet file of pictures"),
    ],
)
def test_what_is_wrong_is_one_message(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_parquet_without_pictures_and_bad_labels_are_told(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a" / "a.parquet", [{"text": "x"}])
    with pytest.raises(DataError, match=r"no column of pictures; expected one called image .* Found: text"):
        read(tmp_path / "a")
    write_parquet(tmp_path / "b" / "a.parquet", [{"image": cell(0), "kind": 7}], FEATURES)
    with pytest.raises(DataError, match="row 1: the label is 7, and there are 2 classes"):
        read(tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "dataset_info.json").write_text("{}")
    (tmp_path / "c" / "data-00000-of-00001.arrow").write_bytes(b"")
    with pytest.raises(DataError, match=r"written by save_to_disk.*to_parquet"):
        read(tmp_path / "c")
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "d")
