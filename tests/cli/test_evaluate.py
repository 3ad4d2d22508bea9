from __future__ import annotations

import csv
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrieve.artifacts import read_manifest, reopen_folder
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
        flags = {"encoder": tiny_encoder_folder, "data": f"table:{manifest}", "out": tmp_path / "out", **changes}
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


def test_evaluate_draws_queries_and_takes_embeddings_that_are_there(
    run_evaluate: Any, tiny_encoder_folder: Path, manifest: Path, tmp_path: Path
) -> None:
    words = ["--encoder", tiny_encoder_folder, "--data", f"table:{manifest}", "--out", tmp_path / "embeddings"]
    assert main(["embed", *map(str, words), "--num-threads", "1", "--quiet"]) == 0
    status, out, err = run_evaluate("--num-queries", 5, embeddings=tmp_path / "embeddings")
    assert status == 0
    assert "queries drawn at random from 12" in out
    assert "embed:" not in err
    assert "the queries are drawn at random from 12" in (tmp_path / "out" / "report.html").read_text()
    (result,) = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert result["num_queries"] + result["num_skipped_queries"] == 5
    assert (result["num_gallery"], result["num_drawn_from"]) == (12, 12)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["num_queries"] == 5


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


def test_evaluate_at_several_scales_notes_them_and_refuses_transformers(run_evaluate: Any, tmp_path: Path) -> None:
    import torch

    from vitrieve.config import ModelConfig
    from vitrieve.model.encoder import build_encoder, save_encoder

    with torch.random.fork_rng(devices=[]):
        config = ModelConfig(backbone="test_resnet", pooling="gem", image_size=64, drop_path_rate=0.0)
        save_encoder(build_encoder(config, is_pretrained=False), tmp_path / "convnet")
    assert run_evaluate("--scales", "1", "0.5", "--no-report", encoder=tmp_path / "convnet")[0] == 0
    (encoder,) = read_manifest(tmp_path / "out", "evaluation")["encoders"]
    assert encoder["scales"] == [1.0, 0.5]
    status, _, err = run_evaluate("--scales", "1", "0.5", out=tmp_path / "other")
    assert status == 2
    assert "is a transformer" in err
    assert not (tmp_path / "other").exists()


def test_evaluate_refuses_a_finished_folder(run_evaluate: Any, tmp_path: Path) -> None:
    assert run_evaluate("--no-report")[0] == 0
    status, out, err = run_evaluate("--no-report")
    assert (status, out) == (2, "")
    assert "--overwrite" in err
    assert run_evaluate("--no-report", "--overwrite")[0] == 0
    assert not (tmp_path / "out" / "report.html").exists()


def test_evaluate_resumes_an_unfinished_folder(run_evaluate: Any, tmp_path: Path) -> None:
    assert run_evaluate()[0] == 0
    reopen_folder(tmp_path / "out")
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
        ({"data": "table:missing.csv"}, "missing.csv"),
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


@pytest.fixture
def revisited_folder(tmp_path: Path) -> Path:
    """Revisited Oxford in the official layout, tiny: eight gallery images and three queries with their boxes.

    The box of a query holds what it asks for; the rest of the file shows what another query asks for.
    """
    generator = np.random.default_rng(0)
    folder = tmp_path / "roxford5k"
    (folder / "jpg").mkdir(parents=True)
    scenes = [generator.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1) for _ in range(3)]
    for number in range(8):
        noisy = np.clip(scenes[number % 3] + generator.normal(0, 4 + 8 * number, (40, 40, 3)), 0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(folder / "jpg" / f"scene_{number}.jpg")
    for number, scene in enumerate(scenes):
        other = scenes[(number + 1) % 3]
        Image.fromarray(np.concatenate([scene, other, other], axis=1)).save(folder / "jpg" / f"query_{number}.jpg")
    box = [0.0, 0.0, 40.0, 40.0]
    answers = [
        {"bbx": box, "easy": [0], "hard": [3], "junk": [6]},
        {"bbx": box, "easy": [1, 4], "hard": np.array([], dtype=np.int64), "junk": np.array([7])},
        {"bbx": box, "easy": [], "hard": [], "junk": []},
    ]
    content = {
        "gnd": answers,
        "imlist": [f"scene_{number}" for number in range(8)],
        "qimlist": [f"query_{number}" for number in range(3)],
    }
    (folder / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content))
    return folder


@pytest.fixture
def distractor_folder(picture_folder: Path) -> Path:
    """Twelve distractors in the official layout."""
    folder = picture_folder.parent / "revisitop1m"
    (folder / "jpg" / "ab").mkdir(parents=True)
    for picture in sorted(picture_folder.glob("*.png")):
        Image.open(picture).save(folder / "jpg" / "ab" / f"{picture.stem}.jpg")
    return folder


def test_evaluate_measures_all_protocols_of_a_revisited_benchmark(
    run_evaluate: Any, revisited_folder: Path, tmp_path: Path
) -> None:
    status, out, err = run_evaluate("--json", data=f"roxford5k:{revisited_folder}")
    printed = json.loads(out)
    assert status == 0
    assert [result["protocol"] for result in printed["results"]] == ["easy", "medium", "hard"]
    assert [result["num_skipped_queries"] for result in printed["results"]] == [1, 1, 2]
    for result in printed["results"]:
        assert (result["dataset"], result["num_gallery"]) == ("roxford5k", 8)
        for name in ("mean_average_precision", "mp_at_1", "mp_at_5", "mp_at_10"):
            low, high = result["intervals"][name]
            assert 0 <= low <= result[name] <= high <= 1
        assert "recall_at_1" not in result
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == {"results": printed["results"]}
    report = Path(printed["report"]).read_text(encoding="utf-8")
    assert report.count("Queries, the worst first") == 3
    assert "embed: 11/11" in err
    described = read_manifest(tmp_path / "out", "evaluation")
    assert described["protocols"] == ["easy", "medium", "hard"]
    assert (described["distractors"], described["whole_queries"]) == (None, False)


def test_evaluate_of_a_revisited_benchmark_prints_tables(run_evaluate: Any, revisited_folder: Path) -> None:
    status, out, _ = run_evaluate("--no-report", "--protocol", "hard", data=f"roxford5k:{revisited_folder}")
    lines = out.splitlines()
    assert status == 0
    assert "roxford5k, hard: 1 queries, 8 gallery images" in lines[0]
    assert lines[2].split() == ["mAP", "mP@1", "mP@5", "mP@10"]


@pytest.mark.parametrize("kind", ["revisitop1m", "folder"])
def test_evaluate_adds_distractors_to_the_gallery(
    run_evaluate: Any, revisited_folder: Path, distractor_folder: Path, tmp_path: Path, kind: str
) -> None:
    words = (
        ("--distractors", f"{kind}:{distractor_folder}")
        if kind == "revisitop1m"
        else (
            "--distractors",
            distractor_folder,
        )
    )
    status, out, err = run_evaluate("--json", *words, data=f"roxford5k:{revisited_folder}")
    results = json.loads(out)["results"]
    assert status == 0
    assert {result["num_gallery"] for result in results} == {20}
    assert {result["dataset"] for result in results} == {"roxford5k + revisitop1m"}
    assert "embed: 23/23" in err
    assert "12 distractors from revisitop1m are in the gallery" in err
    _, without, _ = run_evaluate("--json", data=f"roxford5k:{revisited_folder}", out=tmp_path / "without")
    for result, before in zip(results, json.loads(without)["results"], strict=True):
        assert result["mean_average_precision"] <= before["mean_average_precision"]
    assert read_manifest(tmp_path / "out", "evaluation")["distractors"] == str(words[1])


def test_evaluate_leaves_out_distractors_that_are_excluded(
    run_evaluate: Any, revisited_folder: Path, distractor_folder: Path
) -> None:
    words = ("--json", "--no-report", "--distractors", distractor_folder)
    first = sorted(path.name for path in distractor_folder.rglob("*.jpg"))[0]
    status, out, err = run_evaluate(*words, "--exclude", first, data=f"roxford5k:{revisited_folder}")
    assert status == 0, err
    assert {result["num_gallery"] for result in json.loads(out)["results"]} == {19}
    status, _, err = run_evaluate("--exclude", first, "--overwrite", data=f"roxford5k:{revisited_folder}")
    assert status == 2
    assert "roxford5k lists its images itself" in err


def test_trap_revisited_query_is_cropped_unless_told_otherwise(
    run_evaluate: Any, revisited_folder: Path, tmp_path: Path
) -> None:
    figures = []
    for number, words in enumerate(((), ("--whole-queries",))):
        data, out = f"roxford5k:{revisited_folder}", tmp_path / f"out-{number}"
        status, printed, err = run_evaluate("--json", "--protocol", "easy", *words, data=data, out=out)
        assert status == 0
        assert ("queries are whole images" in err) == bool(words)
        figures.append(json.loads(printed)["results"][0]["mean_average_precision"])
    assert figures[0] == 1.0 > figures[1]


def test_evaluate_refuses_whole_queries_and_distractors_that_make_no_sense(
    run_evaluate: Any, revisited_folder: Path, tmp_path: Path
) -> None:
    status, _, err = run_evaluate("--whole-queries")
    assert status == 2
    assert "--whole-queries is for roxford5k and rparis6k" in err
    status, _, err = run_evaluate("--distractors", revisited_folder / "jpg", data=f"roxford5k:{revisited_folder}")
    assert status == 2
    assert "is an image of roxford5k too" in err
    status, _, err = run_evaluate("--protocol", "harder", data=f"roxford5k:{revisited_folder}")
    assert status == 2
    assert "medium" in err
    assert not (tmp_path / "out").exists()


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


def test_evaluate_measures_all_classes_at_chosen_cut_offs_and_marks_those_that_say_nothing(
    run_evaluate: Any, picture_folder: Path, tmp_path: Path
) -> None:
    for number, picture in enumerate(sorted(picture_folder.glob("*.png"))):
        (picture_folder / f"class {number % 6}").mkdir(exist_ok=True)
        picture.rename(picture_folder / f"class {number % 6}" / picture.name)
    source = f"folder:{picture_folder}"
    status, out, err = run_evaluate("--classes", "all", "--ks", "11", "1", "12", "1", data=source)
    assert status == 0
    title, first, head, *_ = out.splitlines()
    assert "12 queries, 12 gallery images" in title
    assert first == "* K is as large as the gallery: this is 100 % whatever the encoder does"
    assert head.split() == ["R@1", "R@11*", "R@12*", "R-prec", "MAP@R"]
    assert "Measured on all 6 classes, 5 of them with images outside the test split" in err
    (result,) = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert (result["whole_cut_offs"], result["recall_at_11"]) == ([11, 12], 1.0)
    assert "Recall@11*" in (tmp_path / "out" / "report.html").read_text()
    fields = read_manifest(tmp_path / "out", "evaluation")
    assert (fields["classes"], fields["ks"]) == ("all", [1, 11, 12])


def test_evaluate_refuses_a_cut_off_of_nothing(run_evaluate: Any, tmp_path: Path) -> None:
    status, _, err = run_evaluate("--ks", "0")
    assert (status, "a cut-off K is 0; expected integers of at least 1" in err) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def colors(tmp_path: Path) -> Path:
    """Classes of four pictures of one color, every fourth class for testing: of the others five are held out."""
    generator = np.random.default_rng(0)
    path = tmp_path / "colors.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        for label in range(34):
            color = generator.integers(0, 200, 3)
            for copy in range(4):
                pixels = (color + generator.integers(0, 56, (40, 36, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / f"{label}-{copy}.png")
                rows.writerow([f"{label}-{copy}.png", f"class {label}", "train" if label % 4 else "test"])
    return path


def test_evaluate_chooses_a_reranking_that_the_index_remembers(
    run_evaluate: Any, colors: Path, tiny_encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, index = f"table:{colors}", tmp_path / "index"
    assert main(["embed", "--encoder", str(tiny_encoder_folder), "--data", data, "--out", str(tmp_path / "e")]) == 0
    assert main(["index", "--embeddings", str(tmp_path / "e"), "--out", str(index), "--store", "exact"]) == 0
    capsys.readouterr()
    status, out, err = run_evaluate("--no-report", "--rerank", "auto", "--index", index, "--json", data=data)
    assert status == 0
    choice = json.loads(out)["rerankings"][0]
    names = {row["reranking"] for row in choice["rows"]}
    assert {"none", "superglobal", "chamfer", "optimal_transport", "tiles"} <= names
    assert choice["chosen"] in names
    assert choice["dataset"] == "colors, held out"
    kept = json.loads((index / "reranker.json").read_text())
    assert (kept["name"], kept["reason"]) == (choice["chosen"], choice["reason"])
    assert f"remembers the re-ranking {choice['chosen']}" in err
    assert main(["search", "--index", str(index), str(tmp_path / "1-1.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["queries"][0]["reranking"] == choice["chosen"]


def test_evaluate_prints_the_table_of_named_rerankings(run_evaluate: Any) -> None:
    status, out, _ = run_evaluate("--no-report", "--rerank", "superglobal,chamfer")
    table = out.split("\n\n")[1].splitlines()
    assert status == 0
    assert [line.split()[0] for line in table[1:5]] == ["re-ranking", "none", "superglobal", "chamfer"]
    assert table[4].split()[-1] == "256"
    assert table[-1] == "measured on the test split"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--rerank", "magic"), "unknown re-ranking 'magic'"),
        (("--rerank", "auto,chamfer"), "give one of them alone"),
        (("--rerank", "chamfer", "--index", "index"), "--rerank auto, one encoder and one protocol"),
        (("--rerank", "auto", "--index", "missing"), "missing"),
    ],
)
def test_evaluate_refuses_wrong_rerankings_before_measuring(
    run_evaluate: Any, tmp_path: Path, words: tuple[str, ...], reason: str
) -> None:
    status, out, err = run_evaluate(*words)
    assert (status, out) == (2, "")
    assert reason in err
    assert not (tmp_path / "out").exists()
