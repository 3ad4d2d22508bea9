from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vitrieve.data import check, decode
from vitrieve.data.check import check_dataset, format_report, report_to_json
from vitrieve.data.records import Dataset
from vitrieve.data.table import read_table
from vitrieve.errors import ConfigError


def build_dataset(folder: Path, *rows: str) -> Dataset:
    (folder / "images.csv").write_text("\n".join(["path,label,split,is_query,is_gallery", *rows]))
    return read_table(folder / "images.csv")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("red", "green", "blue", "grey")):
        Image.new("RGB", (10 + number, 20), (40 * number, 99, 7)).save(tmp_path / f"{name}.png")
    return tmp_path


def test_check_dataset_counts_roles_and_classes(folder: Path) -> None:
    report = check_dataset(
        build_dataset(
            folder, "red.png,a,train,1,1", "green.png,a,validation,1,1", "blue.png,b,test,1,0", "grey.png,a,test,0,1"
        )
    )
    counts = {role: (count.num_images, count.num_classes) for role, count in report.roles.items()}
    assert counts == {"train": (1, 1), "validation": (1, 1), "test": (2, 2), "query": (1, 1), "gallery": (1, 1)}
    assert [(one.name, one.num_images) for one in report.classes] == [("a", 3), ("b", 1)]
    assert report.images_per_class == check.Range(min=1, median=2, max=3)
    assert report.single_image_classes == ("b",)
    assert (report.width_px, report.height_px) == (
        check.Range(min=10, median=11.5, max=13),
        check.Range(min=20, median=20, max=20),
    )
    assert (report.formats, report.modes) == ({"PNG": 4}, {"RGB": 4})
    assert report.is_fine


def test_check_dataset_reports_a_picture_that_the_memory_does_not_suffice_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, load = (folder / "red.png").read_bytes(), decode._load

    def run_out(image: object, loaded: bytes) -> object:
        if loaded == data:
            raise MemoryError
        return load(image, loaded)

    monkeypatch.setattr(decode, "_load", run_out)
    report = check_dataset(build_dataset(folder, "red.png,a,train,1,1", "green.png,a,train,1,1"))
    assert [(one.image_id, one.reason) for one in report.unreadable] == [("red.png", decode.MEMORY_REASON)]
    assert report.formats == {"PNG": 1}


def test_check_dataset_reports_unreadable_files_with_reasons(folder: Path) -> None:
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.jpg").write_bytes(b"")
    rows = [f"{name},a,train,1,1" for name in ("text.jpg", "red.png", "empty.jpg", "gone.jpg")]
    report = check_dataset(build_dataset(folder, *rows))
    assert [one.image_id for one in report.unreadable] == ["text.jpg", "empty.jpg", "gone.jpg"]
    reasons = [one.reason for one in report.unreadable]
    assert "accepted format" in reasons[0]
    assert "empty" in reasons[1]
    assert "No such file" in reasons[2]
    assert not report.is_fine
    assert report.formats == {"PNG": 1}


def test_check_dataset_finds_duplicates_by_content(folder: Path) -> None:
    Image.open(folder / "red.png").save(folder / "red.bmp")  # the same pixels in another file
    (folder / "green_copy.png").write_bytes((folder / "green.png").read_bytes())
    report = check_dataset(
        build_dataset(
            folder,
            "red.png,a,train,1,1",
            "red.bmp,b,test,1,1",
            "green.png,a,train,1,1",
            "green_copy.png,a,train,1,1",
            "blue.png,b,test,1,1",
        )
    )
    across, within = report.duplicates
    assert (across.image_ids, across.splits, across.class_names) == (
        ("red.png", "red.bmp"),
        ("train", "test"),
        ("a", "b"),
    )
    assert across.is_across_train_and_test
    assert (within.image_ids, within.is_across_train_and_test) == (("green.png", "green_copy.png"), False)
    assert not report.is_fine


@pytest.mark.parametrize(
    ("splits", "is_fine"), [("train train", True), ("train validation", True), ("validation test", False)]
)
def test_check_dataset_is_not_fine_when_a_tested_image_was_seen(folder: Path, splits: str, is_fine: bool) -> None:
    first, second = splits.split()
    (folder / "copy.png").write_bytes((folder / "red.png").read_bytes())
    report = check_dataset(build_dataset(folder, f"red.png,a,{first},1,1", f"copy.png,a,{second},1,1"))
    assert len(report.duplicates) == 1
    assert report.is_fine == is_fine


def test_check_dataset_does_not_confuse_boxes_or_shapes(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 2))
    picture.paste((255, 0, 0), (2, 0, 4, 2))
    picture.save(tmp_path / "two.png")
    Image.new("RGB", (1, 4)).save(tmp_path / "tall.png")  # the same bytes as the left half, in another shape
    (tmp_path / "images.csv").write_text(
        "path,label,x_1,y_1,x_2,y_2\ntwo.png,a,0,0,2,2\ntwo.png,a,2,0,4,2\ntall.png,a,,,,\n"
    )
    report = check_dataset(read_table(tmp_path / "images.csv"))
    assert report.duplicates == ()
    assert report.width_px == check.Range(min=1, median=2, max=2)


def test_check_dataset_gives_the_same_with_any_number_of_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "BLOCK_SIZE", 3)
    dataset = build_dataset(folder, *(f"{name}.png,a,train,1,1" for name in ("red", "green", "blue", "grey", "gone")))
    assert check_dataset(dataset, num_threads=1) == check_dataset(dataset, num_threads=4)


def test_check_dataset_refuses_no_threads(folder: Path) -> None:
    with pytest.raises(ConfigError, match="num_threads is 0"):
        check_dataset(build_dataset(folder, "red.png,a,train,1,1"), num_threads=0)


def test_report_to_json_holds_plain_values(folder: Path) -> None:
    values = report_to_json(check_dataset(build_dataset(folder, "red.png,a,train,1,1")))
    assert json.loads(json.dumps(values)) == json.loads(json.dumps(values, default=str))
    assert values["is_fine"] is True
    assert values["roles"]["train"] == {"num_images": 1, "num_classes": 1}
    assert values["classes"][0] == {"name": "a", "num_images": 1}


def test_format_report_cuts_long_lists_and_says_so(folder: Path) -> None:
    rows = [f"gone_{number}.jpg,a,train,1,1" for number in range(15)]
    text = format_report(check_dataset(build_dataset(folder, "red.png,a,train,1,1", *rows)))
    assert "gone_9.jpg: the file cannot be read" in text
    assert "gone_10.jpg" not in text
    assert "and 5 more" in text
    assert text.endswith("not fine: 15 unreadable.")


def test_jpeg_without_its_end_is_noted_and_fine(folder: Path) -> None:
    for name in ("whole", "cut"):
        Image.open(folder / f"{'red' if name == 'cut' else 'blue'}.png").save(folder / f"{name}.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-2])
    report = check_dataset(build_dataset(folder, "whole.jpg,a,test,1,1", "cut.jpg,a,test,1,1"))
    assert report.is_fine
    assert "the JPEG lacks its end marker; every pixel is there: 1 image" in report.notes


def test_check_dataset_is_not_fine_when_a_picture_has_two_labels(folder: Path) -> None:
    (folder / "copy.png").write_bytes((folder / "red.png").read_bytes())
    report = check_dataset(build_dataset(folder, "red.png,a,train,1,1", "copy.png,b,train,1,1"))
    assert not report.is_fine
    assert format_report(report).endswith("not fine: 1 under several labels.")
    assert "2 images, 2 classes" in format_report(report)
    one = check_dataset(build_dataset(folder, "red.png,a,train,1,1"))
    assert "1 image, 1 class\n" in format_report(one) + "\n"
