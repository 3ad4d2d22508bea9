"""Training from Python: the function that the command calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

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


def spread(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (embeddings @ embeddings.T).square().mean()


class Pull(torch.nn.Module):
    """A term with a setting."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        is_same = labels[:, None] == labels
        return ((1 - embeddings @ embeddings.T) * is_same).clamp_min(1e-6).pow(self.power).mean()


def test_train_on_terms_of_ones_own(
    photographs: Path, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    def train(objective: Any, **changes: Any) -> vitrieve.TrainedRun:
        source, out = f"folder:{photographs}", tmp_path / "run"
        return vitrieve.train(source, "small", out, report=False, objective=objective, **settings, **changes)

    with monkeypatch.context() as patch:
        patch.setattr("vitrieve.training.run.finish_run", stop)
        with pytest.raises(KeyboardInterrupt):
            train([spread, (Pull(1.0), 0.5)], koleo_weight=0.1)
    described = json.loads((tmp_path / "run" / "config.json").read_text())["own_terms"]
    assert {name: term["weight"] for name, term in described.items()} == {"spread": 1.0, "Pull": 0.5}
    for objective, part in (
        ([spread, (Pull(2.0), 0.5)], r"own_terms\.Pull\.settings\.power was 1\.0 and is 2\.0"),
        ([spread, Pull(1.0)], r"own_terms\.Pull\.weight was 0\.5 and is 1\.0"),
        (spread, r"own_terms\.Pull was \{.*\} and is none"),
    ):
        with pytest.raises(vitrieve.ArtifactError, match=part):
            train(objective, koleo_weight=0.1, resume=True)
    trained = train([spread, (Pull(1.0), 0.5)], koleo_weight=0.1, resume=True)
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"spread", "Pull", "koleo"} <= logged[-1].keys()
    assert "multi_similarity" not in logged[-1]  # the recipe's own
    assert logged[-1]["loss"] == pytest.approx(
        0.1 * logged[-1]["koleo"] + logged[-1]["spread"] + 0.5 * logged[-1]["Pull"], rel=1e-5
    )
    assert trained.summary["own_terms"].keys() == {"spread", "Pull"}
    card = (trained.folder / "encoder" / "README.md").read_text()
    assert "recipe small with the objective spread (weight 1), Pull (weight 0.5), step 2" in card


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
