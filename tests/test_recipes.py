from __future__ import annotations

import json

import pytest

from vitrieve.config import Config, config_from_json, config_to_json
from vitrieve.errors import ConfigError
from vitrieve.recipes import RECIPES, find_recipe


def test_find_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'small'\?.*irt_r_small"):
        find_recipe("smal")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_round_trip_through_json_and_document_themselves(name: str) -> None:
    config = RECIPES[name]()
    assert config_from_json(Config, json.loads(json.dumps(config_to_json(config)))) == config
    docstring = RECIPES[name].__doc__ or ""
    assert f"vitrieve train {name} " in docstring
    assert "Source:" in docstring


def test_irt_r_has_the_papers_values() -> None:
    config = find_recipe("irt_r")()
    assert config.objective.margin == 0.5
    assert config.objective.koleo_weight == 0.7
    assert config.objective.memory_fraction == 1.0
    assert not config.objective.mean_nonzero
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (3e-5, 5e-4)
    assert (config.train.num_steps, config.train.batch_size) == (35_000, 64)
    assert config.loader.augmentation == "random_crop"
    assert config.model.image_size == 224
    assert not config.train.holdout


@pytest.mark.parametrize("size", ["", "_small"])
def test_irt_l_is_irt_r_without_the_regulariser(size: str) -> None:
    without, with_koleo = config_to_json(find_recipe(f"irt_l{size}")()), config_to_json(find_recipe(f"irt_r{size}")())
    assert without["objective"].pop("koleo_weight") == 0
    assert with_koleo["objective"].pop("koleo_weight") == 0.7
    assert without == with_koleo


@pytest.mark.parametrize("name", ["small", "irt_l_small", "irt_r_small"])
def test_small_recipes_hold_classes_out_and_measure_as_they_go(name: str) -> None:
    config = find_recipe(name)()
    assert config.train.holdout
    assert config.train.evaluate_every is not None
    assert config.train.evaluate_every < config.train.num_steps
    assert (config.model.backbone, config.model.image_size) == ("dinov2-vits14", 112)
