from __future__ import annotations

import json

import pytest

from vitrieve.config import START_WEIGHTS, Config, ObjectiveConfig
from vitrieve.errors import ConfigError
from vitrieve.objective.tuple_contrastive import TupleContrastiveConfig
from vitrieve.recipes import RECIPE_GROUPS, RECIPES, find_recipe
from vitrieve.settings import config_from_json, config_to_json


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
    assert config.objective.contrastive.margin == 0.5
    assert config.objective.koleo.weight == 0.7
    assert config.objective.memory_fraction == 1.0
    assert not config.objective.contrastive.mean_nonzero
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (3e-5, 5e-4)
    assert (config.train.num_steps, config.train.batch_size) == (35_000, 64)
    assert config.loader.augmentation == "random_crop"
    assert config.model.image_size == 224
    assert not config.train.holdout


@pytest.mark.parametrize("size", ["", "_small"])
def test_irt_l_is_irt_r_without_the_regularizer(size: str) -> None:
    without, with_koleo = config_to_json(find_recipe(f"irt_l{size}")()), config_to_json(find_recipe(f"irt_r{size}")())
    assert without["objective"]["koleo"].pop("weight") == 0
    assert with_koleo["objective"]["koleo"].pop("weight") == 0.7
    assert without == with_koleo


@pytest.mark.parametrize(("name", "image_size"), [("small", 126), ("irt_l_small", 112), ("irt_r_small", 112)])
def test_small_recipes_hold_classes_out_and_measure_as_they_go(name: str, image_size: int) -> None:
    config = find_recipe(name)()
    assert config.train.holdout
    assert config.train.evaluate_every is not None
    assert config.train.evaluate_every < config.train.num_steps
    assert (config.model.backbone, config.model.image_size) == (START_WEIGHTS, image_size)


DATASETS = ("cub200", "sop", "inshop", "sfm120k")


def test_recipes_are_grouped_once_and_named_as_their_functions() -> None:
    names = [name for group in RECIPE_GROUPS.values() for name in group]
    assert sorted(names) == sorted(RECIPES)
    assert [recipe.__name__ for recipe in RECIPES.values()] == list(RECIPES)
    assert {f"{method}_{data}" for method in ("irt_l", "irt_r") for data in DATASETS} <= set(names)
    assert {"nsoftmax_sop", "snca_sop", "contrastive_sop", "xbm_sop", "xbm_inshop"} <= set(names)
    assert {f"proxynca_pp_{data}" for data in DATASETS[:3]} <= set(names)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith(DATASETS)])
def test_recipes_of_the_paper_tell_command_published_result_and_open_points(name: str) -> None:
    docstring = RECIPES[name].__doc__ or ""
    data = name.rsplit("_", 1)[1]
    assert f"``vitrieve train {name} --data {data}:DIR --out runs/{name}``" in docstring
    assert "Published: " in docstring
    assert "stated in the paper" in " ".join(docstring.split()) or "What differs: " in docstring
    assert RECIPES[name]().train.holdout == (data == "sfm120k")  # whose 162 validation models must not train


@pytest.mark.parametrize(("data", "num_steps"), [("cub200", 2_000), ("sop", 35_000), ("inshop", 35_000)])
def test_irt_recipes_of_a_dataset_have_the_papers_values(data: str, num_steps: int) -> None:
    config = find_recipe(f"irt_r_{data}")()
    assert (config.train.num_steps, config.train.batch_size) == (num_steps, 64)
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (3e-5, 5e-4)
    assert (config.objective.contrastive.margin, config.objective.koleo.weight) == (0.5, 0.7)
    memory = (config.objective.memory_fraction, config.objective.memory_momentum)
    assert memory == ((0.2, 0.999) if data == "inshop" else (1.0, None))
    assert (config.loader.augmentation, config.model.image_size) == ("random_crop", 224)


@pytest.mark.parametrize("data", DATASETS)
def test_irt_l_of_a_dataset_is_irt_r_without_the_regularizer(data: str) -> None:
    without, with_koleo = (config_to_json(find_recipe(f"irt_{kind}_{data}")()) for kind in "lr")
    assert without["objective"]["koleo"].pop("weight") == 0
    assert with_koleo["objective"]["koleo"].pop("weight") == (4.0 if data == "sfm120k" else 0.7)
    assert without == with_koleo


def test_irt_l_sfm120k_has_the_protocols_values() -> None:
    config = find_recipe("irt_l_sfm120k")()
    assert (config.optimizer.algorithm, config.optimizer.learning_rate) == ("adam", 5e-7)
    assert config.optimizer.weight_decay == 1e-6
    assert config.optimizer.decay_factor == pytest.approx(0.99004983)
    assert config.objective == ObjectiveConfig(tuple_contrastive=TupleContrastiveConfig(weight=1.0, margin=0.85))
    tuples = config.tuples
    assert (tuples.num_pairs, tuples.num_candidates, tuples.num_negatives) == (2_000, 22_000, 5)
    steps_per_epoch = tuples.num_pairs // tuples.tuples_per_batch
    assert config.train.num_steps == 100 * steps_per_epoch
    assert config.optimizer.decay_every == steps_per_epoch
    assert (config.loader.sampling, config.loader.augmentation, config.model.framing) == ("tuples", "square", "square")


@pytest.mark.parametrize(
    ("name", "weight"),
    [("contrastive_sop", "contrastive"), ("nsoftmax_sop", "normalized_softmax"), ("snca_sop", "scalable_nca")],
)
def test_recipes_of_table_4_differ_in_the_loss_only(name: str, weight: str) -> None:
    config, irt = config_to_json(find_recipe(name)()), config_to_json(find_recipe("irt_l_sop")())
    assert {name: term.weight for name, term in find_recipe(name)().objective.terms.items()} == {weight: 1.0}
    for stages in (config, irt):
        del stages["objective"], stages["optimizer"]["proxy_learning_rate"]
    assert config == irt


@pytest.mark.parametrize("name", ["proxynca_pp_cub200", "proxynca_pp_sop", "proxynca_pp_inshop", "xbm_sop"])
def test_convnet_recipes_let_batch_norm_see_the_whole_batch(name: str) -> None:
    config = find_recipe(name)()
    assert (config.model.backbone, config.model.pooling) == ("resnet50.tv_in1k", "max")
    assert config.train.microbatch_size == config.train.batch_size


@pytest.mark.parametrize("name", ["irt_o", "irt_o_cub200"])
def test_find_recipe_says_that_irt_o_is_evaluate(name: str) -> None:
    with pytest.raises(ConfigError, match=r"vitrieve evaluate --encoder deit_small_patch16_224\.fb_in1k --data"):
        find_recipe(name)
