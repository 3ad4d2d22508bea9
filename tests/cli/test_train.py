from __future__ import annotations

import json
from pathlib import Path

import pytest

from vitrieve.cli.main import main

WORDS = (
    *("--model.backbone", "test_vit", "--image-size", "32", "--num-steps", "4", "--batch-size", "6"),
    *("--num-threads", "1", "--train.evaluate-every", "2"),
)

SHARED = ("train", "train", "test", "test")
"""Splits of the four images of every class, so that test classes train, too."""


@pytest.fixture
def run_words(tiny_weights: Path, many_class_folder: Path, tmp_path: Path) -> list[str]:
    words = ["train", "small", "--data", f"folder:{many_class_folder}", "--out", str(tmp_path / "run")]
    return [*words, *WORDS, "--model.weights", str(tiny_weights)]


@pytest.fixture
def many_class_folder(class_folder: Path, tmp_path: Path) -> Path:
    """Fifteen classes: three for testing, two of the others held out."""
    folder = tmp_path / "photographs"
    for number in range(15):
        (folder / f"product{number:02}").mkdir(parents=True)
        for path in sorted((class_folder / f"class{number % 5}").iterdir()):
            (folder / f"product{number:02}" / path.name).write_bytes(path.read_bytes())
    return folder


def test_train_ends_with_encoder_and_report(
    run_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*run_words, "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    run = tmp_path / "run"
    for name in ("manifest.json", "config.json", "metrics.jsonl", "encoder/encoder.onnx", "encoder/README.md"):
        assert (run / name).is_file()
    assert (run / "report" / "report.html").is_file()
    assert len(result["results"]) == 2
    assert set(result["holdout_map_at_r"]) == {"0", "2", "4"}
    assert result["config"]["train"]["num_steps"] == 4
    assert "every fifth" in printed.err
    assert "kept " in printed.err
    assert "held out to choose: 8 images of 2 classes" in printed.err
    card = (run / "encoder" / "README.md").read_text(encoding="utf-8")
    assert "recipe small" in card
    assert "classes not seen in training" in card


def test_train_with_pca_gives_short_embeddings(
    run_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*run_words, "--model.embedding-dim", "8", "--model.whiten", "--json"]) == 0
    printed = capsys.readouterr()
    assert "test_vit: 0.3 M parameters; 0.0 GFLOPs an image at 32 px in linear layers" in printed.err
    frozen, tuned = json.loads(printed.out)["results"]
    assert (frozen["embedding_dim"], tuned["embedding_dim"]) == (64, 8)
    spec = json.loads((tmp_path / "run" / "encoder" / "encoder.json").read_text(encoding="utf-8"))
    assert spec["reduction"] == "training images of photographs"
    assert spec["reduction_kind"] == "pca_whitening"


def test_train_refuses_a_finished_run_unless_overwritten(
    run_words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*run_words, "--no-report"]) == 0
    assert main([*run_words, "--no-report"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*run_words, "--no-report", "--overwrite", "--no-holdout"]) == 0


def test_train_refuses_to_resume_with_other_settings(
    run_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*run_words, "--no-report"]) == 0
    (tmp_path / "run" / "manifest.json").unlink()
    (tmp_path / "run" / ".partial").touch()
    assert main([*run_words, "--no-report", "--resume", "--objective.contrastive.margin", "0.25"]) == 2
    assert "objective.contrastive.margin was 0.5 and is 0.25" in capsys.readouterr().err


def test_train_refuses_values_no_run_can_have_and_leaves_nothing(
    run_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, part in ((["--seed", "-1"], "train.seed is -1"), (["--model.embedding-dim", "99"], "expected 1 to 39")):
        assert main([*run_words, *words]) == 2
        assert part in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_train_card_says_when_training_has_seen_the_tested_classes(
    run_words: list[str], many_class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        f"product{number:02}/{copy}.png,{number},{split}" for number in range(3) for copy, split in enumerate(SHARED)
    ]
    (many_class_folder / "images.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    run_words[run_words.index("--data") + 1] = f"table:{many_class_folder / 'images.csv'}"
    assert main(run_words) == 0
    assert "too few to hold classes out" in capsys.readouterr().err
    assert "3 of 3 classes also seen in training" in (tmp_path / "run" / "encoder" / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["smal", "--data", "emoji", "--out", "x"], ["unknown recipe 'smal'", "Did you mean 'small'"]),
        (["--data", "emoji"], ["the recipe comes first"]),
        ([], ["no recipe was named", "irt_r_small", "vitrieve train small --data folder:DIR --out RUN"]),
        (
            ["irt_o", "--data", "emoji", "--out", "x"],
            ["IRT_O is not trained", "vitrieve evaluate --encoder deit_small"],
        ),
        (["small", "--data", "folder:/gone", "--out", "x"], ["/gone"]),
        (
            ["small", "--data", "emoji", "--out", "x", "--no-such-field", "3"],
            ["unknown flag '--no-such-field'", "nearest"],
        ),
        (
            ["small", "--data", "emoji", "--out", "x", "--koleo-weight", "3"],
            ["unknown flag '--koleo-weight'", "--objective.koleo.weight"],
        ),
    ],
)
def test_train_refuses_wrong_use(words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *words]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for part in parts:
        assert part in message


def test_flags_of_the_time_of_one_table_of_losses_are_taken_with_a_note(
    run_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--objective.koleo-weight", "0.3", "--objective.margin=0.25", "--objective.mean-nonzero"]
    words += ["--objective.contrastive_weight", "1", "--no-report", "--no-holdout", "--json"]
    assert main([*run_words, *words]) == 0
    printed = capsys.readouterr()
    for former, present in (
        ("--objective.koleo-weight", "--objective.koleo.weight"),
        ("--objective.margin", "--objective.contrastive.margin"),
        ("--objective.mean-nonzero", "--objective.contrastive.mean-nonzero"),
        ("--objective.contrastive_weight", "--objective.contrastive.weight"),
    ):
        assert printed.err.count(f"{former} of train is called {present} now.\n") == 1
    objective = json.loads(printed.out)["config"]["objective"]
    assert objective["koleo"] == {"weight": 0.3}
    assert objective["contrastive"] == {"weight": 1.0, "margin": 0.25, "mean_nonzero": True}


def test_train_refuses_one_class_only(class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "one"
    (folder / "single").mkdir(parents=True)
    for path in (class_folder / "class0").iterdir():
        (folder / "single" / path.name).write_bytes(path.read_bytes())
    assert main(["train", "small", "--data", f"folder:{folder}", "--out", str(tmp_path / "run")]) == 2
    assert "one class only" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_train_help_lists_the_recipes_and_a_recipes_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    listing = capsys.readouterr().out.splitlines()
    titles = [line for line in listing if line.startswith("recipes, ")]
    assert titles == [
        "recipes, for your own images:",
        "recipes, methods to compare, with the budget of small:",
        "recipes, the paper's methods:",
        "recipes, what it compares with:",
    ]
    assert any(line.startswith("  irt_r_small") for line in listing)
    assert max(map(len, listing)) <= 130
    assert main(["train", "irt_r", "--help"]) == 0
    printed = capsys.readouterr().out
    for flag in ("--seed", "--num-steps", "--batch-size", "--image-size", "--num-threads", "--no-holdout"):
        assert flag in printed
    assert "--objective.koleo.weight" in printed
    assert "35000" in printed


TUPLES = (
    *("--loader.sampling", "tuples", "--loader.augmentation", "square", "--model.framing", "square"),
    *("--objective.multi-similarity.weight", "0", "--objective.tuple-contrastive.weight", "1"),
    *("--objective.koleo.weight", "4", "--optimizer.algorithm", "adam", "--optimizer.schedule", "exponential"),
    *("--tuples.num-pairs", "8", "--tuples.num-candidates", "30", "--tuples.tuples-per-batch", "3"),
)


def test_train_on_tuples_of_own_classes(
    run_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*run_words, *TUPLES, "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert set(result["holdout_map_at_r"]) == {"0", "2", "4"}
    assert "tuples: an epoch is 8 pairs in 2 steps, 2 epochs in all" in printed.err
    assert printed.err.count("mine negatives: ") == 2
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["tuple_contrastive"] for line in lines if "loss" in line]
    assert len(losses) == 4
    assert all(0 < loss < float("inf") for loss in losses)
