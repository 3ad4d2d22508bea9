"""Every method that is compared under the budget of `small`, in a run of two steps; and all losses in a resumed run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vitrieve.config import Config, LoaderConfig, ModelConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from vitrieve.data.records import ImageRecord
from vitrieve.model.encoder import build_encoder
from vitrieve.recipes import RECIPE_GROUPS
from vitrieve.settings import override_config
from vitrieve.training.loop import fit_encoder
from vitrieve.training.relations import TrainingImages
from vitrieve.training.run import train
from vitrieve.training.state import STATE_NAME

(METHODS,) = [group for title, group in RECIPE_GROUPS.items() if title.startswith("methods")]


@pytest.fixture(scope="module")
def mixed_folder(class_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five classes of four pictures whose colors are those of other classes, so that no loss is zero."""
    folder = tmp_path_factory.mktemp("mixed")
    for label in range(5):
        (folder / f"class{label}").mkdir()
        for copy in range(4):
            picture = class_folder / f"class{(label + copy) % 5}" / f"{copy}.png"
            (folder / f"class{label}" / f"{copy}.png").write_bytes(picture.read_bytes())
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(
    name: str, mixed_folder: Path, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrieve.training.finishing.export_folder", lambda folder: None)  # the same for all of them
    train(
        f"folder:{mixed_folder}",
        name,
        tmp_path / "run",
        report=False,
        model={"backbone": "test_vit", "weights": tiny_weights, "image_size": 32},
        num_steps=2,
        batch_size=8,
        holdout=False,
        num_threads=1,
        prefixes=(16,),
    )
    steps = [line for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert len(steps) == 2
    assert all(line["loss"] > 0 and line["gradient_norm"] > 0 for line in steps)


def read_metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_run_of_all_losses_with_prefixes_ends_with_the_same_bits(
    mixed_folder: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    # Distillation needs a teacher; tests/training/test_distillation.py resumes it.
    all_losses = ObjectiveConfig().losses.items()
    losses = {f"{name}.weight": 1.0 for name, loss in all_losses if not loss.needs_tuples and name != "distillation"}
    begun = {f"{name}.from_images": True for name in ("proxy_anchor", "margin_softmax")}
    objective = override_config(ObjectiveConfig(), {**losses, **begun, "memory_fraction": 0.8, "prefixes": (16, 32)})
    config = Config(
        loader=LoaderConfig(sampling="random"),
        model=ModelConfig(backbone="test_vit", weights=str(tiny_weights), image_size=32),
        objective=objective,
        optimizer=OptimizerConfig(learning_rate=1e-3),
        train=TrainConfig(num_steps=4, batch_size=6, checkpoint_every=2, precision="fp32", num_threads=1),
    )
    records = [
        ImageRecord(image_id=str(path), path=path, label=number // 4, split="train")
        for number, path in enumerate(sorted(mixed_folder.rglob("*.png")))
    ]
    fit_encoder(config, build_encoder(config.model), TrainingImages(records), tmp_path)
    before, last = sorted((tmp_path / STATE_NAME).iterdir(), key=lambda path: path.stat().st_mtime_ns)
    whole = load_file(last)
    last.unlink()
    fit_encoder(config, build_encoder(config.model), TrainingImages(records), tmp_path)
    again = load_file(last)
    assert whole.keys() == again.keys()
    assert [name for name in whole if not torch.equal(whole[name], again[name])] == []
    assert any("prefix16" in name for name in whole)
    assert before.exists()
    resumed = [line["step"] for line in read_metrics(tmp_path) if "loss" in line]
    assert resumed == [1, 2, 3, 4]
