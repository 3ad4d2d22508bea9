from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

import pytest

from vitrieve.config import (
    Config,
    LoaderConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    TupleConfig,
    check_config,
    find_ineffective,
)
from vitrieve.errors import ConfigError
from vitrieve.objective.contrastive import ContrastiveConfig
from vitrieve.objective.koleo import KoleoConfig
from vitrieve.recipes import RECIPES, find_recipe
from vitrieve.settings import Range, config_from_json, config_to_json, list_settings, override_config

CONTRASTIVE = ObjectiveConfig(contrastive=ContrastiveConfig(weight=1.0))


def change(config: Config, **changes: Any) -> Config:
    """Change settings of the objective, ``loss_setting`` or one that all losses share."""
    return override_config(config, {f"objective_{name}": value for name, value in changes.items()})


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
        (ObjectiveConfig(contrastive=ContrastiveConfig(weight=1, margin=1)), "objective.contrastive.margin is 1"),
        (ObjectiveConfig(), "nothing to minimize"),
        (
            ObjectiveConfig(koleo=KoleoConfig(weight=1), memory_fraction=0.5),
            r"does a weight \(objective.contrastive.weight, objective.recall_at_k.weight\)",
        ),
    ],
)
def test_check_config_refuses_values_no_run_can_have(stage: Any, part: str) -> None:
    name = type(stage).__name__.removesuffix("Config").lower()
    valid = Config(objective=CONTRASTIVE)
    with pytest.raises(ConfigError, match=part):
        check_config(dataclasses.replace(valid, **{name: stage}))


def _list_types(hint: Any) -> list[Any]:
    arguments = typing.get_args(hint)
    return [kind for argument in arguments for kind in _list_types(argument)] if arguments else [hint]


def test_every_number_has_a_range() -> None:
    for one in list_settings(Config()):
        is_number = any(kind in (int, float) for kind in _list_types(one.hint))
        ranges = one.find_marks(Range)
        assert len(ranges) == (is_number and one.name != "model.image_size")  # which fits the patch or not
        if ranges and one.value is not None:
            assert ranges[0].is_valid(one.value), one.name


def test_find_ineffective_is_silent_about_effective_and_unchanged_fields() -> None:
    recipe = find_recipe("small")()
    assert find_ineffective(recipe, recipe) == []
    changed = change(recipe, contrastive_margin=0.3)
    assert find_ineffective(changed, recipe) == [
        "objective.contrastive.margin has no effect while objective.contrastive.weight is 0"
    ]
    assert find_ineffective(change(changed, contrastive_weight=1.0), recipe) == []


def test_find_ineffective_knows_models_without_batch_norm() -> None:
    frozen = Config(train=TrainConfig(freeze_batch_norm=True))
    assert find_ineffective(frozen, Config(), has_batch_norm=True) == []
    assert find_ineffective(frozen, frozen, has_batch_norm=False) == []
    (note,) = find_ineffective(frozen, Config(), has_batch_norm=False)
    assert note == "train.freeze_batch_norm has no effect without batch norm, which this backbone lacks"


@pytest.mark.parametrize(
    ("objective", "part"),
    [
        ({"memory_momentum": 1.0}, r"objective.memory_momentum is 1.0; expected a number in \[0, 1\)"),
        (
            {"normalized_softmax_temperature": 0},
            "objective.normalized_softmax.temperature is 0; expected a number above",
        ),
        ({"proxy_nca_temperature": -1}, "objective.proxy_nca.temperature is -1"),
        ({"scalable_nca_temperature": 0}, "objective.scalable_nca.temperature is 0"),
        ({"scalable_nca_momentum": 1}, "objective.scalable_nca.momentum is 1"),
        (
            {"margin_softmax_weight": 1, "margin_softmax_margin": 28.6},
            "28.6, but the margin on the angle is in radians",
        ),
        (
            {"hyperbolic_weight": 1, "hyperbolic_curvature": 1.0, "hyperbolic_clip_radius": 50},
            "clip_radius is 50 with curvature 1.0: the root of the curvature times the radius is 50, and above 5",
        ),
        ({"scalable_nca_weight": -1}, "objective.scalable_nca.weight is -1; expected 0 or more"),
    ],
)
def test_check_config_refuses_settings_of_the_baselines_out_of_range(objective: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        check_config(change(Config(objective=CONTRASTIVE), **objective))


@pytest.mark.parametrize("name", ["normalized_softmax", "proxy_nca", "scalable_nca"])
def test_check_config_accepts_each_baseline_alone(name: str) -> None:
    check_config(change(Config(), **{f"{name}_weight": 1.0}))


@pytest.mark.parametrize(
    ("changes", "partner"),
    [
        ({"memory_momentum": 0.9}, {"memory_fraction": 0.5}),
        ({"normalized_softmax_temperature": 0.1}, {"normalized_softmax_weight": 1.0}),
        ({"proxy_nca_temperature": 0.2}, {"proxy_nca_weight": 1.0}),
        ({"scalable_nca_temperature": 0.1}, {"scalable_nca_weight": 1.0}),
        ({"scalable_nca_momentum": 0.9}, {"scalable_nca_weight": 1.0}),
    ],
)
def test_find_ineffective_knows_what_a_setting_of_the_objective_needs(
    changes: dict[str, float], partner: dict[str, float]
) -> None:
    recipe = Config(objective=CONTRASTIVE)
    alone = change(recipe, **changes)
    (sentence,) = find_ineffective(alone, recipe)
    loss_and_setting = "_".join(sentence.split()[0].split(".")[1:])
    assert loss_and_setting == next(iter(changes))
    assert " has no effect w" in sentence  # without, while
    assert find_ineffective(change(alone, **partner), recipe) == []


@pytest.mark.parametrize("name", ["proxy_anchor", "proxy_nca", "normalized_softmax"])
def test_find_ineffective_counts_every_kind_of_proxies(name: str) -> None:
    recipe = Config(objective=CONTRASTIVE)
    changed = dataclasses.replace(recipe, optimizer=OptimizerConfig(proxy_learning_rate=0.5))
    assert "proxy_learning_rate has no effect" in find_ineffective(changed, recipe)[0]
    assert find_ineffective(changed, recipe, has_own_terms=True) == []
    assert find_ineffective(change(changed, **{f"{name}_weight": 1.0}), recipe) == []


@pytest.mark.parametrize("field", dataclasses.fields(TupleConfig), ids=lambda field: field.name)
def test_check_config_refuses_tuples_of_nothing(field: dataclasses.Field[int]) -> None:
    tuples = TupleConfig(**{field.name: 0})
    with pytest.raises(ConfigError, match=f"tuples.{field.name} is 0; expected 1 or more"):
        check_config(Config(tuples=tuples, objective=CONTRASTIVE))


def test_check_config_refuses_the_loss_of_tuples_without_tuples() -> None:
    config = change(Config(), tuple_contrastive_weight=1.0)
    with pytest.raises(ConfigError, match=r"loader.sampling random makes no tuples; choose loader.sampling tuples"):
        check_config(config)
    check_config(dataclasses.replace(config, loader=LoaderConfig(sampling="tuples")))


def test_find_ineffective_knows_what_belongs_to_tuples() -> None:
    recipe = Config(objective=CONTRASTIVE)
    changed = dataclasses.replace(recipe, tuples=TupleConfig(num_negatives=3))
    assert find_ineffective(changed, recipe) == ["tuples.num_negatives has no effect without tuples sampling"]
    tupled = dataclasses.replace(changed, loader=LoaderConfig(sampling="tuples"))
    assert find_ineffective(tupled, recipe) == []
    larger = dataclasses.replace(tupled, train=TrainConfig(batch_size=35))
    assert find_ineffective(larger, recipe) == ["train.batch_size has no effect without random or m_per_class sampling"]
    squared = dataclasses.replace(recipe, loader=LoaderConfig(augmentation="square", flip=False))
    assert find_ineffective(squared, recipe) == ["loader.flip has no effect without a cropping augmentation"]
