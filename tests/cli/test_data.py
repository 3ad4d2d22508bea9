from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.data import benchmark_trees as trees
from vitrieve.cli.main import main
from vitrieve.data.sources import DESCRIPTIONS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        (tmp_path / f"class_{number}").mkdir()
        for copy in range(2):
            Image.new("RGB", (8, 8), (number * 40, copy * 90, 0)).save(tmp_path / f"class_{number}" / f"{copy}.png")
    return tmp_path


def test_data_check_prints_a_readable_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", f"folder:{folder}"]) == 0
    captured = capsys.readouterr()
    assert "12 images, 6 classes" in captured.out
    assert "every fifth" in captured.out
    assert captured.out.rstrip().endswith("fine.")
    assert "check: 12/12" in captured.err


def test_data_check_prints_one_json_object(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(folder), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["is_fine"] is True
    assert values["roles"]["test"] == {"num_images": 2, "num_classes": 1}
    assert values["images_per_class"] == {"min": 2, "median": 2, "max": 2}


def test_data_check_exits_with_1_for_unreadable_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "class_0" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    assert main(["data", "check", str(folder)]) == 1
    assert "class_0/broken.jpg: " in capsys.readouterr().out


def test_data_check_exits_with_1_for_duplicates_across_train_and_test(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "class_4" / "copy.png").write_bytes((folder / "class_0" / "0.png").read_bytes())
    assert main(["data", "check", str(folder), "--json"]) == 1
    duplicates = json.loads(capsys.readouterr().out)["duplicates"]
    assert [group["image_ids"] for group in duplicates] == [["class_0/0.png", "class_4/copy.png"]]
    assert duplicates[0]["is_across_train_and_test"] is True


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["folder:absent"], "does not exist"),
        (["grocry:x"], "Did you mean 'grocery'"),
        (["grocery:absent"], "classes.csv cannot be read"),
        (["grocery:absent", "--protocol", "zeroshot"], "Did you mean 'zero_shot'"),
    ],
)
def test_data_check_refuses_wrong_input_with_one_message(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert "Traceback" not in captured.err


def test_data_check_refuses_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tmp_path)]) == 2
    assert "holds no image" in capsys.readouterr().err


def test_data_check_accepts_one_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "only").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "only" / "1.png")
    assert main(["data", "check", str(tmp_path)]) == 0
    assert "classes with one image: 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "num_images"),
    [("cub200", 32), ("sop", 30), ("inshop", 32), ("sfm120k", 36), ("roxford5k", 43), ("revisitop1m", 5)],
)
def test_data_check_works_on_every_benchmark(
    name: str, num_images: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "roxford5k":
        trees.write_revisited(tmp_path, name)
    else:
        getattr(trees, f"write_{name}")(tmp_path)
    assert main(["data", "check", f"{name}:{tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert f": {num_images} images" in printed
    assert "counts differ from the published ones" in printed


def test_data_check_reports_a_missing_image_of_a_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.write_sop(tmp_path)
    (tmp_path / "chair_final" / "11102_0.JPG").unlink()
    assert main(["data", "check", f"sop:{tmp_path}", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [one["image_id"] for one in report["unreadable"]] == ["chair_final/11102_0.JPG"]
    assert any("1 of 30 listed images are missing" in note for note in report["notes"])


def test_data_check_refuses_a_malicious_pickle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.write_revisited(tmp_path, "rparis6k")
    (tmp_path / "gnd_rparis6k.pkl").write_bytes(b"cos\nsystem\n(Vtouch created\ntR.")
    assert main(["data", "check", f"rparis6k:{tmp_path}"]) == 2
    assert "gnd_rparis6k.pkl is refused: it asks for os.system" in capsys.readouterr().err


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_data_describe_tells_origin_layout_license_and_counts(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "describe", name]) == 0
    text = capsys.readouterr().out
    assert main(["data", "describe", name, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["name"] == name
    for key in ("title", "origin", "license", "size", "spelling"):
        assert values[key]
        assert values[key] in text
    assert all(line in text for line in values["layout"])
    assert all(f"{number:,} {what}" in text for what, number in values["counts"].items())


def test_data_describe_lists_the_valid_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "describe", "oxford5k"]) == 2
    said = capsys.readouterr().err
    assert "Did you mean 'roxford5k'" in said
    assert all(name in said for name in DESCRIPTIONS)
