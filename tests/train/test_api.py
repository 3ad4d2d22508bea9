"""Training from Python: the function that the command calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import vitrieve
from vitrieve.cli.main import main
from vitrieve.errors import ConfigError


@pytest.fixture
def settings(tiny_weights: Path) -> dict[str, Any]:
    """A tiny model instead of the recipe's, and two steps."""
    model = {"backbone": "test_vit", "weights": tiny_weights, "image_size": 32}
    return {"model": model, "num_steps": 2, "batch_size": 6, "num_threads": 1, "holdout": False}


def test_train_and_the_command_make_the_same_folder(
    photographs: Path, settings: dict[str, Any], tiny_weights: Path, tmp_path: Path
) -> None:
    source = f"folder:{photographs}"
    words = ["train", "small", "--data", source, "--out", str(tmp_path / "shell"), "--no-holdout", "--num-steps", "2"]
    words += ["--model.backbone", "test_vit", "--model.weights", str(tiny_weights), "--image-size", "32"]
    assert main([*words, "--batch-size", "6", "--num-threads", "1"]) == 0
    trained = vitrieve.train(source, "small", tmp_path / "python", **settings)
    shell, python = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("shell", "python"))
    for found in (shell, python):
        found.pop("seconds", None)
        found.pop("created_at", None)
        found.pop("created", None)
    assert python == shell
    assert trained.summary["encoder_fingerprint"] == trained.encoder.fingerprint
    names = [sorted(path.name for path in (tmp_path / name).rglob("*.*")) for name in ("shell", "python")]
    assert [name for name in names[0] if "tfevents" not in name] == [
        name for name in names[1] if "tfevents" not in name
    ]
    assert trained.report == tmp_path / "python" / "report" / "report.html"
    assert trained.report.is_file()
    assert [one.encoder for one in trained.results] == ["test_vit, frozen", "small, step 2"]


def test_train_takes_a_data_set_and_a_configuration(
    photographs: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    dataset = vitrieve.read_source(f"folder:{photographs}", exclude=["2.png"])
    config = vitrieve.recipes.find_recipe("irt_r")()
    trained = vitrieve.train(dataset, config, tmp_path / "run", report=False, **settings)
    assert trained.report is None
    assert trained.results == ()
    assert (trained.summary["recipe"], trained.summary["data"]) == ("own", f"folder:{photographs}")
    assert trained.summary["num_images"] == 16
    with pytest.raises(vitrieve.ArtifactError, match="overwrite"):
        vitrieve.train(dataset, config, tmp_path / "run", report=False, **settings)


def test_train_refuses_a_wrong_name_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'num_stepps'; the nearest valid ones: train\.num_steps"):
        vitrieve.train("nowhere", out=tmp_path / "run", num_stepps=3)
    with pytest.raises(ConfigError, match="unknown recipe 'smal'"):
        vitrieve.train("nowhere", "smal", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_evaluate_measures_in_memory_and_in_a_folder(
    tiny_encoder_folder: Path, photographs: Path, tmp_path: Path
) -> None:
    found = vitrieve.evaluate(tiny_encoder_folder, f"folder:{photographs}", num_threads=1)
    assert (found.folder, found.report) == (None, None)
    assert found.results[0].num_queries == 6
    assert "tiny" in str(found)
    dataset = vitrieve.read_source(f"folder:{photographs}")
    kept = vitrieve.evaluate([vitrieve.load_encoder(tiny_encoder_folder)], dataset, tmp_path / "out")
    assert kept.results == found.results
    assert kept.report is not None
    assert kept.report.is_file()
    with pytest.raises(vitrieve.ArtifactError, match="overwrite"):
        vitrieve.evaluate(tiny_encoder_folder, dataset, tmp_path / "out")


def test_sync_makes_an_index_and_keeps_it_true(tiny_encoder_folder: Path, photographs: Path, tmp_path: Path) -> None:
    report = vitrieve.sync(photographs, tmp_path / "index", tiny_encoder_folder)
    assert str(report) == "30 images indexed; 30 embedded"
    (photographs / "class0" / "0.png").unlink()
    report = vitrieve.sync(str(photographs), tmp_path / "index")
    assert (report.num_indexed, report.num_removed) == (29, 1)
