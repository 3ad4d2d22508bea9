"""Lower resolution first."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from vitrieve.config import Config, ModelConfig, ObjectiveConfig, TrainConfig
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ConfigError
from vitrieve.model.encoder import build_encoder
from vitrieve.objective.contrastive import ContrastiveConfig
from vitrieve.training.compute import allow_low_resolution, image_size_at
from vitrieve.training.loop import fit_encoder
from vitrieve.training.relations import TrainingImages
from vitrieve.training.state import STATE_NAME


@pytest.fixture
def records(class_folder: Path) -> list[ImageRecord]:
    return [
        ImageRecord(image_id=path.name, path=path, label=number // 4, split="train")
        for number, path in enumerate(sorted(class_folder.rglob("*.png")))
    ]


@pytest.fixture
def config(tiny_weights: Path) -> Config:
    return Config(
        model=ModelConfig(backbone="test_vit", weights=str(tiny_weights), image_size=64, drop_path_rate=0.0),
        objective=ObjectiveConfig(contrastive=ContrastiveConfig(weight=1.0), memory_fraction=0.5),
        train=TrainConfig(
            num_steps=4, batch_size=4, checkpoint_every=1, precision="fp32", low_resolution_size=32, num_threads=1
        ),
    )


def with_train(config: Config, **changes: object) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(("share", "num_low"), [(0.5, 2), (0.25, 1), (0.3, 2), (1.0, 4)])
def test_image_size_at_is_low_for_the_first_share_of_the_steps(config: Config, share: float, num_low: int) -> None:
    config = with_train(config, low_resolution_share=share)
    assert [image_size_at(config, step) for step in range(4)] == [32] * num_low + [64] * (4 - num_low)


@pytest.mark.parametrize("backbone", ["test_vit", "deit_tiny_distilled_patch16_224", "test_resnet"])
def test_allow_low_resolution_changes_nothing_at_full_size(backbone: str) -> None:
    pooling = "average" if backbone == "test_resnet" else "cls"
    model = ModelConfig(backbone=backbone, image_size=64, pooling=pooling, drop_path_rate=0.0)
    encoder = build_encoder(model, is_pretrained=False).eval()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = encoder(pixels)
        allow_low_resolution(encoder, Config(model=model, train=TrainConfig(low_resolution_size=32)))
        assert torch.equal(encoder(pixels), before)
        assert encoder(pixels[:, :, ::2, ::2]).shape == before.shape


def test_trap_smaller_pictures_are_refused_where_nobody_asked_for_them(config: Config) -> None:
    encoder = build_encoder(config.model)
    with pytest.raises(AssertionError, match="64 px"):
        encoder(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(("size", "reason"), [(64, "expected less than"), (40, "multiple of the patch")])
def test_allow_low_resolution_refuses_sizes_that_do_not_fit(config: Config, size: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        allow_low_resolution(build_encoder(config.model), with_train(config, low_resolution_size=size))


def test_trap_a_run_resumed_in_its_low_steps_equals_an_uninterrupted_one(
    config: Config, records: list[ImageRecord], tmp_path: Path
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    expected = fit_encoder(config, build_encoder(config.model), TrainingImages(records), whole)
    train_one_step(config, records, stopped)
    resumed = fit_encoder(config, build_encoder(config.model), TrainingImages(records), stopped)
    states = [result.encoder.state_dict() for result in (expected, resumed)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def train_one_step(config: Config, records: list[ImageRecord], run: Path) -> None:
    """Train the first step of a run of four: with all steps low at twice the length, the first is the same."""
    fit_encoder(
        with_train(config, num_steps=1, low_resolution_share=1.0),
        build_encoder(config.model),
        TrainingImages(records),
        run,
    )
    assert [path.name for path in (run / STATE_NAME).iterdir()] == ["step_0000001.safetensors"]
