from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from vitrieve.config import (
    _RANGES,
    Config,
    LoaderConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    check_config,
    config_from_json,
    config_to_json,
    find_ineffective,
)
from vitrieve.errors import ConfigError
from vitrieve.recipes import RECIPES, find_recipe


def test_config_round_trips_through_json() -> None:
    config = Config(
        model=ModelConfig(weights="x.safetensors", pooling="gem"),
        train=TrainConfig(num_threads=2, evaluate_every=None),
    )
    assert config_from_json(Config, json.loads(json.dumps(config_to_json(config)))) == config


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().model = ModelConfig()  # type: ignore[misc]


def test_config_from_json_accepts_a_whole_number_for_a_float() -> None:
    assert config_from_json(ModelConfig, {"drop_path_rate": 0}).drop_path_rate == 0


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"modell": {}}, "Did you mean 'model'"),
        ({"model": {"poolin": "cls"}}, "Did you mean 'pooling'"),
        ({"model": {"pooling": "median"}}, "'median' is not one of cls, average, max, gem"),
        ({"model": {"image_size": "112"}}, "'112' is not of type int"),
        ({"model": {"image_size": True}}, "True is not of type int"),
        ({"train": {"num_threads": 1.5}}, "1.5 is not of type int"),
        ({"loader": {"flip": 1}}, "1 is not of type bool"),
        ({"model": {"backbone": None}}, "None is not of type str"),
        ({"model": 3}, "3 is not"),
    ],
)
def test_config_from_json_refuses(values: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        config_from_json(Config, values)


@pytest.mark.parametrize("name", RECIPES)
def test_check_config_accepts_every_recipe(name: str) -> None:
    check_config(RECIPES[name]())


@pytest.mark.parametrize(
    ("stage", "part"),
    [
        (TrainConfig(num_steps=0), "train.num_steps is 0; expected 1 or more"),
        (TrainConfig(seed=-1), "train.seed is -1"),
        (TrainConfig(num_threads=0), "train.num_threads is 0"),
        (TrainConfig(microbatch_size=0), "train.microbatch_size is 0"),
        (TrainConfig(evaluate_every=0), "train.evaluate_every is 0"),
        (TrainConfig(num_patience=0), "train.num_patience is 0"),
        (TrainConfig(ema_decay=1.0), r"train.ema_decay is 1.0; expected a number in \[0, 1\)"),
        (LoaderConfig(crop_scale_min=0), "loader.crop_scale_min is 0"),
        (ModelConfig(drop_path_rate=1.5), "model.drop_path_rate is 1.5"),
        (ModelConfig(embedding_dim=0), "model.embedding_dim is 0"),
        (OptimizerConfig(learning_rate=float("nan")), "optimizer.learning_rate is nan"),
        (OptimizerConfig(gradient_clip_norm=-1), "optimizer.gradient_clip_norm is -1"),
        (ObjectiveConfig(contrastive_weight=1, margin=1), "objective.margin is 1"),
        (ObjectiveConfig(), "nothing to minimise"),
        (ObjectiveConfig(koleo_weight=1, memory_fraction=0.5), "only the contrastive loss reads the memory"),
    ],
)
def test_check_config_refuses_values_no_run_can_have(stage: Any, part: str) -> None:
    name = type(stage).__name__.removesuffix("Config").lower()
    valid = Config(objective=ObjectiveConfig(contrastive_weight=1.0))
    with pytest.raises(ConfigError, match=part):
        check_config(dataclasses.replace(valid, **{name: stage}))


def test_check_config_knows_every_number() -> None:
    known = set(_RANGES) | {"model.image_size"}  # which fits or not with the backbone's patch
    numbers = {
        f"{stage.name}.{field.name}"
        for stage in dataclasses.fields(Config)
        for field in dataclasses.fields(stage.default)  # type: ignore[arg-type]
        if "int" in str(field.type) or "float" in str(field.type)
    }
    assert known == numbers


def test_find_ineffective_is_silent_about_effective_and_unchanged_fields() -> None:
    recipe = find_recipe("small")()
    assert find_ineffective(recipe, recipe) == []
    changed = dataclasses.replace(recipe, objective=dataclasses.replace(recipe.objective, margin=0.3))
    assert find_ineffective(changed, recipe) == ["objective.margin has no effect without the contrastive loss"]
    weighted = dataclasses.replace(changed, objective=dataclasses.replace(changed.objective, contrastive_weight=1.0))
    assert find_ineffective(weighted, recipe) == []
