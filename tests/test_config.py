from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from vitrieve.config import Config, ModelConfig, TrainConfig, config_from_json, config_to_json
from vitrieve.errors import ConfigError


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
        ({"loader": {"is_flip": 1}}, "1 is not of type bool"),
        ({"model": {"backbone": None}}, "None is not of type str"),
        ({"model": 3}, "3 is not"),
    ],
)
def test_config_from_json_refuses(values: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        config_from_json(Config, values)
