"""Runs of a tiny encoder on several sources."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrieve
from tests.evaluation.measured import evaluate_encoder
from vitrieve.cli.main import main
from vitrieve.errors import ArtifactError, ConfigError, DataError
from vitrieve.training import holding_out as module
from vitrieve.training import loop

Train = Callable[..., vitrieve.TrainedRun]


@pytest.fixture(autouse=True)
def _exports_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the export out, which takes as long as all else of a tiny run."""
    monkeypatch.setattr("vitrieve.training.finishing.export_folder", lambda folder: None)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Ten classes of four noisy pictures; names of classes and pictures are those of ``photographs``, too."""
    generator = np.random.default_rng(1)
    for number in range(10):
        folder = tmp_path / "tools" / f"class{number}"
        folder.mkdir(parents=True)
        for copy in range(4):
            Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{copy}.png")
    return tmp_path / "tools"


@pytest.fixture
def train(tiny_weights: Path, tmp_path: Path) -> Train:
    model = {"backbone": "test_vit", "weights": tiny_weights, "image_size": 32}

    def run(*sources: Any, out: Path | None = None, **changes: Any) -> vitrieve.TrainedRun:
        settings: dict[str, Any] = {"model": model, "num_steps": 4, "batch_size": 8, "num_threads": 1, "report": False}
        return vitrieve.train(list(sources), "small", out or tmp_path / "run", **{**settings, **changes})

    return run


def test_a_run_on_two_sources_measures_holds_out_and_reports_each(
    train: Train, photographs: Path, tools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = train(photographs, tools, report=True, evaluate_every=2)
    told = capsys.readouterr().err
    assert "photographs: training on 21 images of 7 classes; held out to choose: 3 images of 1 class" in told
    assert "tools: training on 28 images of 7 classes; held out to choose: 4 images of 1 class" in told
    assert "training on 49 images of 14 classes from 2 sources; the classes of a batch come from the sources" in told
    assert "the mean over the held-out classes of photographs, tools chooses the state" in told
    assert "kept " in told
    assert "(the mean over 2 sources)" in told

    summary = json.loads((trained.folder / "manifest.json").read_text())
    assert summary["data"] == [str(photographs), str(tools)]
    assert summary["protocol"] == ["own_classes", "own_classes"]
    assert summary["sources"] == [
        {"name": "photographs", "num_images": 21, "num_classes": 7, "num_held_out_classes": 1},
        {"name": "tools", "num_images": 28, "num_classes": 7, "num_held_out_classes": 1},
    ]
    assert (summary["num_images"], summary["num_classes"]) == (49, 14)

    measured = [json.loads(line) for line in (trained.folder / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in measured if "holdout_map_at_r" in line]
    assert [line["step"] for line in measured] == [0, 2, 4]
    for line in measured:
        for metric in ("map_at_r", "recall_at_1"):
            each = [line[f"holdout_{metric}/{name}"] for name in ("photographs", "tools")]
            assert line[f"holdout_{metric}"] == pytest.approx(sum(each) / 2)
    assert summary["holdout_map_at_r"] == {str(line["step"]): line["holdout_map_at_r"] for line in measured}

    assert [(one.dataset, one.num_queries) for one in trained.results] == [("photographs", 6), ("tools", 8)] * 2
    for source, (before, after) in (
        (photographs, trained.results[::2]),
        (tools, trained.results[1::2]),
    ):
        assert before.encoder == "test_vit, frozen"
        alone = evaluate_encoder(trained.encoder, vitrieve.read_source(str(source)))
        assert after.metrics == pytest.approx(alone.metrics)
    page = (trained.folder / "report" / "report.html").read_text()
    assert "photographs · own_classes" in page
    assert "tools · own_classes" in page
    card = (trained.folder / "encoder" / "README.md").read_text()
    assert "photographs (own_classes), tools (own_classes), recipe small" in card
    assert "on photographs" in card
    assert "photographs (own_classes), classes not seen in training; tools (own_classes), classes not" in card


def test_trap_copies_of_pictures_in_another_source_are_told_and_stand_in_the_report(
    train: Train, photographs: Path, tools: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A test picture that trains under another name makes the report too good, and no path shows it."""
    dataset = vitrieve.read_source(str(photographs))
    tested = [record for record in dataset.records if record.split == "test"]
    trained = [record for record in dataset.records if record.split == "train"]
    copies = tmp_path / "copies"
    shutil.copytree(tools, copies)
    for number, record in enumerate([*tested[:3], *trained[:2]]):
        shutil.copy(record.path, copies / "class0" / f"copy{number}{record.path.suffix}")  # a class that trains
    run = train(photographs, copies, report=True)
    told = capsys.readouterr().err.splitlines()
    leak = f"3 of {len(tested)} test images train too, by files with the same bytes"
    split = "training images train as another class too, by files with the same bytes"
    assert sum(line.startswith(f"photographs: {leak}") for line in told) == 1
    assert sum(line.startswith(f"photographs: 2 of {len(trained)} {split}") for line in told) == 1
    assert sum(line.startswith(f"copies: 2 of 37 {split}") for line in told) == 1
    assert sum("with the same bytes" in line for line in told) == 3
    assert leak in (run.folder / "report" / "report.html").read_text()

    train(photographs, tools, out=tmp_path / "apart")
    assert "with the same bytes" not in capsys.readouterr().err


def test_trap_a_large_source_does_not_choose_the_state_alone() -> None:
    """The mean counts every source once, and not its images."""
    values = {"small": {"recall_at_1": 0.1, "map_at_r": 0.2}, "large": {"recall_at_1": 0.7, "map_at_r": 0.4}}

    def build(dataset: str, config: object) -> Any:
        return lambda encoder: values[dataset]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "build_evaluate", lambda held_out, config, shown=None: build(held_out, config))
        evaluate = module.build_mean_evaluate({"a": "small", "b": "large"}, vitrieve.Config())  # type: ignore[dict-item]
    assert evaluate is not None
    assert evaluate(None) == pytest.approx(  # type: ignore[arg-type]
        {
            **{"recall_at_1": 0.4, "map_at_r": 0.3, "recall_at_1/a": 0.1, "map_at_r/a": 0.2},
            **{"recall_at_1/b": 0.7, "map_at_r/b": 0.4},
        }
    )
    assert module.build_mean_evaluate({}, vitrieve.Config()) is None


def test_a_run_goes_on_with_the_same_sources_in_the_same_order_only(
    train: Train, photographs: Path, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = loop.train_step

    def fail_at_step_3(state: Any, *values: Any) -> Any:
        if state.step == 2:
            raise OSError(5, "Input/output error")
        return step(state, *values)

    settings = {"checkpoint_every": 2, "memory_fraction": 1.0, "contrastive": {"weight": 1.0}}
    whole = train(photographs, tools, out=tmp_path / "whole", **settings)
    with monkeypatch.context() as broken:
        broken.setattr(loop, "train_step", fail_at_step_3)
        with pytest.raises(OSError, match="Input/output"):
            train(photographs, tools, **settings)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["data"]["sources"] == [["photographs", 24], ["tools", 32]]
    assert saved["data"]["protocol"] == "own_classes, own_classes"
    for sources, part in (
        ([photographs], r"data\.sources was \[\['photographs', 24\], \['tools', 32\]\] and is none"),
        ([tools, photographs], r"data\.sources was .* and is \[\['tools', 32\], \['photographs', 24\]\]"),
    ):
        with pytest.raises(ArtifactError, match=part):
            train(*sources, resume=True, **settings)
    with pytest.raises(ArtifactError, match=r"loader\.sources was mixed and is one"):
        train(photographs, tools, resume=True, **{"loader.sources": "one"}, **settings)
    shutil.move(tools, tmp_path / "moved")  # and is called otherwise
    resumed = train(photographs, tmp_path / "moved", resume=True, **settings)
    assert resumed.summary["encoder_fingerprint"] == whole.summary["encoder_fingerprint"]


def test_a_source_that_cannot_be_trained_is_refused_by_its_name(
    train: Train, photographs: Path, tools: Path, tmp_path: Path
) -> None:
    for path in tools.glob("class[1-9]"):
        shutil.rmtree(path)
    with pytest.raises(DataError, match="tools has one class only"):
        train(photographs, tools)
    with pytest.raises(DataError, match="a source is given twice"):
        train(photographs, f"folder:{photographs}")
    with pytest.raises(ConfigError, match="there is nothing to train on"):
        train()
    assert not (tmp_path / "run").exists()


def test_unreadable_images_are_counted_in_their_source(
    train: Train, photographs: Path, tools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tools / "class0" / "0.png").write_bytes(b"no picture")
    trained = train(photographs, tools, holdout=False, num_steps=1)
    told = capsys.readouterr().err
    assert told.count("left out: tools/class0/0.png: ") == 1
    assert told.count("tools: 1 of 40 images is unreadable and left out.") == 1
    assert trained.summary["sources"][1]["num_images"] == 31
    for number in (1, 2):
        (tools / "class0" / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"3 of 40 images are unreadable, more than the 5% .*tools/class0/0\.png"):
        train(photographs, tools, holdout=False, overwrite=True)


def test_a_source_too_small_to_hold_classes_out_trains_whole_beside_one_that_is_measured(
    train: Train, photographs: Path, tools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in tools.glob("class[5-9]"):
        shutil.rmtree(path)  # of five classes one tests, and four are too few
    train(photographs, tools, num_steps=1)
    told = capsys.readouterr().err
    assert "tools: training on all 16 images of 4 classes; too few to hold classes out" in told
    assert "chooses the state" not in told
    assert "the mean over" not in told


def test_tuples_of_sources_need_pairs_from_all_or_from_none(train: Train, photographs: Path, tools: Path) -> None:
    tuples = {
        **{"loader.sampling": "tuples", "tuples_per_batch": 2, "holdout": False, "num_steps": 1},
        **{"multi_similarity.weight": 0.0, "tuple_contrastive.weight": 1.0},
    }
    listed = vitrieve.read_source(str(tools))
    pairs = tuple((f"class{number}/0.png", f"class{number}/1.png") for number in range(4))
    listed = vitrieve.Dataset(**{**vars(listed), "positive_pairs": pairs})
    with pytest.raises(ConfigError, match="tools lists the pairs that make tuples, and photographs does not"):
        train(photographs, listed, **tuples)
    trained = train(photographs, tools, **tuples)
    assert trained.summary["num_steps"] == 1


def test_the_command_takes_several_sources(
    photographs: Path, tools: Path, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "small", "--out", str(tmp_path / "run"), "--model.backbone", "test_vit", "--image-size", "32"]
    words += ["--model.weights", str(tiny_weights), "--num-steps", "1", "--batch-size", "8", "--num-threads", "1"]
    words += ["--no-holdout", "--overwrite"]
    both = ["--data", str(photographs), "--data", f"folder:{tools}"]
    assert main([*words, *both, "--loader.sources", "one"]) == 0
    printed = capsys.readouterr()
    assert "each batch is of one source, in turn" in printed.err
    assert [line.split(":")[0] for line in printed.out.splitlines()[:4]] == [
        "photographs, test_vit, frozen",
        "tools, test_vit, frozen",
        "photographs, small, step 1",
        "tools, small, step 1",
    ]
    assert main([*words, "--data", str(photographs), f"folder:{tools}", "--classes", "all", "--json"]) == 0
    printed = capsys.readouterr()
    assert "photographs: no report: " in printed.err
    assert "tools: the classes for testing are training classes, too" in printed.err
    found = json.loads(printed.out)
    assert found["num_classes"] == 20
    assert found["protocol"] == ["own_classes, all classes"] * 2
    assert main([*words, *both, "--protocol", "own_classes"]) == 2
    assert "give one protocol for each source" in capsys.readouterr().err
    assert main([*words, "--data", str(photographs), "--loader.sources", "one", "--no-report"]) == 0
    assert "loader.sources has no effect without a second source" in capsys.readouterr().err
    assert main(words) == 2
    assert "no source is named; give one or more: --data SOURCE." in capsys.readouterr().err
