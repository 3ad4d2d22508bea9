from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from vitrieve.artifacts import read_manifest
from vitrieve.cli.main import main

Run = tuple[int, str, str]


@pytest.fixture
def manifest(picture_folder: Path) -> Path:
    """Twelve test pictures of three classes, the last of them alone in its class."""
    path = picture_folder / "images.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        for number, picture in enumerate(sorted(picture_folder.glob("*.png"))):
            rows.writerow([picture.name, "lone" if number == 11 else f"class {number % 2}", "test"])
    return path


@pytest.fixture
def run_evaluate(tiny_encoder_folder: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: Any, **changes: Any) -> Run:
        flags = {"encoder": tiny_encoder_folder, "data": f"manifest:{manifest}", "out": tmp_path / "out", **changes}
        given = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
        status = main(["evaluate", *given, "--num-threads", "1", *map(str, words)])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_evaluate_prints_one_object(run_evaluate: Any, tmp_path: Path) -> None:
    status, out, err = run_evaluate("--json")
    printed = json.loads(out)
    assert status == 0
    assert printed["report"] == str(tmp_path / "out" / "report.html")
    (result,) = printed["results"]
    assert (result["encoder"], result["dataset"]) == ("tiny", "images")
    assert (result["num_queries"], result["num_skipped_queries"], result["num_gallery"]) == (11, 1, 12)
    assert result["embedding_dim"] == 64
    for name, (low, high) in result["intervals"].items():
        assert 0 <= low <= high <= 1
        assert 0 <= result[name] <= 1
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == {"results": printed["results"]}
    assert "embed: 12/12" in err


def test_evaluate_finishes_the_folder_with_its_manifest(run_evaluate: Any, tmp_path: Path) -> None:
    assert run_evaluate()[0] == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["manifest.json", "report.html", "results.json"]
    described = read_manifest(tmp_path / "out", "evaluation")
    assert described["encoders"][0]["name"] == "tiny"
    assert len(described["encoders"][0]["fingerprint"]) == 64


def test_evaluate_prints_a_table(run_evaluate: Any) -> None:
    status, out, err = run_evaluate("--no-report")
    lines = out.splitlines()
    assert status == 0
    assert "11 queries, 12 gallery images" in lines[0]
    assert lines[1] == "queries left out, as nothing relevant is in the gallery: 1"
    assert lines[2].split() == ["R@1", "R@2", "R@4", "R@8", "R-prec", "MAP@R"]
    assert lines[3].split()[0] == "tiny"
    assert lines[4].split()[:2] == ["95", "%"]
    assert "results.json" in err


def test_evaluate_compares_encoders_given_together_or_one_by_one(
    run_evaluate: Any, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    for name in ("second", "third"):
        shutil.copytree(tiny_encoder_folder, tmp_path / name)
    second, third = tmp_path / "second", tmp_path / "third"
    for number, words in enumerate((("--compare", second, third), ("--compare", second, "--compare", third))):
        status, out, _ = run_evaluate(*words, "--json", out=tmp_path / f"out-{number}")
        results = json.loads(out)["results"]
        assert status == 0
        assert [result["encoder"] for result in results] == ["tiny", "second", "third"]
        assert {result["map_at_r"] for result in results} == {results[0]["map_at_r"]}


def test_evaluate_refuses_a_finished_folder(run_evaluate: Any, tmp_path: Path) -> None:
    assert run_evaluate("--no-report")[0] == 0
    status, out, err = run_evaluate("--no-report")
    assert (status, out) == (2, "")
    assert "--overwrite" in err
    assert run_evaluate("--no-report", "--overwrite")[0] == 0
    assert not (tmp_path / "out" / "report.html").exists()


def test_evaluate_resumes_an_unfinished_folder(run_evaluate: Any, tmp_path: Path) -> None:
    assert run_evaluate()[0] == 0
    (tmp_path / "out" / "manifest.json").rename(tmp_path / "out" / ".partial")
    status, _, err = run_evaluate()
    assert status == 2
    assert "--resume" in err
    assert run_evaluate("--resume")[0] == 0
    read_manifest(tmp_path / "out", "evaluation")


def test_evaluate_tells_how_own_data_was_split(
    run_evaluate: Any, picture_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, picture in enumerate(sorted(picture_folder.glob("*.png"))):
        for label in (number, (number + 1) % 12):
            (picture_folder / f"{label:02}").mkdir(exist_ok=True)
            shutil.copy(picture, picture_folder / f"{label:02}" / picture.name)
        picture.unlink()
    status, out, err = run_evaluate("--json", data=f"folder:{picture_folder}")
    assert status == 0
    assert json.loads(out)["results"][0]["num_queries"] == 4
    assert "every fifth" in err


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"encoder": "dinov2-vits41"}, "dinov2-vits14"),
        ({"encoder": "missing/run"}, "missing/run does not exist"),
        ({"data": "manifest:missing.csv"}, "missing.csv"),
        ({"data": "grocerry:x"}, "grocery"),
        ({"protocol": "across_houses"}, "across_houses"),
        ({"batch-size": "0"}, "batch_size is 0"),
        ({"no-such-field": "3"}, "--no-such-field"),
    ],
)
def test_evaluate_refuses_wrong_input_and_leaves_nothing(
    run_evaluate: Any, tmp_path: Path, changes: dict[str, str], part: str
) -> None:
    status, out, err = run_evaluate(**changes)
    assert (status, out) == (2, "")
    assert part in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("column", "value", "part"),
    [
        (1, "one", "one class only"),
        (2, "train", "0 queries and a gallery of 0"),
    ],
)
def test_evaluate_refuses_data_that_cannot_be_measured(
    run_evaluate: Any, manifest: Path, column: int, value: str, part: str
) -> None:
    head, *lines = manifest.read_text().splitlines()
    rows = [line.split(",") for line in lines]
    for row in rows:
        row[column] = value
    manifest.write_text("\n".join([head, *map(",".join, rows)]) + "\n")
    status, _, err = run_evaluate()
    assert status == 2
    assert part in err


@pytest.mark.slow
@pytest.mark.data
def test_evaluate_of_the_frozen_encoder_on_grocery_gives_the_known_figures(
    run_evaluate: Any, grocery_folder: Path, dinov2_weights: Path
) -> None:
    pytest.importorskip("timm")
    words = ("--image-size", "112", "--json")
    status, out, _ = run_evaluate(*words, encoder="dinov2-vits14", data=f"grocery:{grocery_folder}")
    (result,) = json.loads(out)["results"]
    assert status == 0
    assert result["recall_at_1"] == pytest.approx(0.825, abs=0.005)
    assert result["map_at_r"] == pytest.approx(0.152, abs=0.005)


def test_evaluate_refuses_an_encoder_compared_with_itself_and_leaves_nothing(
    run_evaluate: Any, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    status, out, err = run_evaluate("--compare", tiny_encoder_folder)
    assert (status, out) == (2, "")
    assert "a name of its own" in err
    assert not (tmp_path / "out").exists()
