from __future__ import annotations

from dataclasses import replace

import pytest

from vitrieve.comparison.methods import (
    MAX_TRIALS,
    ContestSettings,
    count_images_per_step,
    find_knob,
    fit_budget,
    list_trials,
    read_methods,
)
from vitrieve.config import START_WEIGHTS, check_config
from vitrieve.errors import ConfigError
from vitrieve.recipes import RECIPES, find_recipe
from vitrieve.settings import list_overrides, override_config


def test_methods_share_the_references_model() -> None:
    first, second, third = read_methods(
        ["xbm_sop", "small", "frozen", "small:koleo.weight=0.3,loader.sampling=random"],
        ContestSettings(reference="small", image_size=98, num_threads=1),
    )
    assert [one.name for one in (first, second, third)] == [
        "small",
        "xbm_sop",
        "small:koleo.weight=0.3,loader.sampling=random",
    ]
    for method in (first, second, third):
        assert (method.config.model.backbone, method.config.model.image_size) == (START_WEIGHTS, 98)
        assert (method.config.train.holdout, method.config.train.num_threads) == (True, 1)
    assert second.config.model.pooling == "max"  # the method's own
    (listed,) = read_methods(["recall_at_k:ks=[1,2],prefixes=[64,128],seed=0"], ContestSettings())
    assert (listed.config.objective.recall_at_k.ks, listed.config.objective.prefixes) == ((1, 2), (64, 128))
    assert (third.config.objective.koleo.weight, third.config.loader.sampling) == (0.3, "random")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no method was named"),
        (["frozen"], "no method was named"),
        (["smal"], "unknown recipe 'smal'. Did you mean 'small'"),
        (["small", "small"], "stands there twice"),
        (["small:image_size=224"], "changes model.image_size, which is the same for all methods"),
        (["small:num_steps=200"], "changes train.num_steps"),
        (["small:koleo"], "'koleo' is no change; write SETTING=VALUE"),
        (["small:koleo.wight=1"], "unknown setting 'koleo.wight'"),
        (["small:koleo.weight=-1"], "objective.koleo.weight is -1; expected 0 or more"),
        (["small", "large_batch"], "sees 255 images, fewer than one step of large_batch, which takes 256: it"),
    ],
)
def test_wrong_methods_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_methods(names, ContestSettings(num_images=255))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="the reference 'irt_l' is none of the methods; give one of small"):
        read_methods(["small"], ContestSettings(reference="irt_l"))
    with pytest.raises(ConfigError, match="trials is 10; expected a whole number in"):
        read_methods(["small"], ContestSettings(trials=10))
    with pytest.raises(ConfigError, match="budget_minutes is 0; expected a number above 0"):
        read_methods(["small"], ContestSettings(budget_minutes=0))


def test_weights_go_with_the_references_backbone_only() -> None:
    (own,) = read_methods(["small"], ContestSettings(backbone="test_vit", weights="w.safetensors"))
    assert (own.config.model.backbone, own.config.model.weights) == ("test_vit", "w.safetensors")


def test_fit_budget_gives_every_method_as_many_images() -> None:
    for recipe in RECIPES.values():
        config = fit_budget(recipe(), 6_400, seed=2)
        num_seen = config.train.num_steps * count_images_per_step(config)
        assert abs(num_seen - 6_400) <= count_images_per_step(config) / 2
        assert config.train.seed == 2
        check_config(config)


def test_fit_budget_scales_what_counts_steps() -> None:
    small = find_recipe("small")()
    fitted = fit_budget(small, 60 * 64, seed=0)
    assert (small.optimizer.num_warmup_steps, small.train.num_steps) == (10, 120)
    assert (fitted.optimizer.num_warmup_steps, fitted.train.num_steps, fitted.train.evaluate_every) == (5, 60, 15)
    tiny = fit_budget(small, 1, seed=0)
    assert (tiny.train.num_steps, tiny.optimizer.num_warmup_steps, tiny.train.evaluate_every) == (1, 1, 1)
    tuples = replace(small, loader=replace(small.loader, sampling="tuples"))
    assert count_images_per_step(tuples) == 5 * (1 + 1 + 5)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_as_many_valid_and_different_trials(name: str) -> None:
    config = find_recipe(name)()
    trials = list_trials(config, MAX_TRIALS)
    assert (len(trials), len({trial.name for trial in trials})) == (MAX_TRIALS, MAX_TRIALS)
    assert trials[0].changes == {}
    changed = [override_config(config, trial.changes) for trial in trials]
    for one in changed:
        check_config(one)
    assert len(set(map(str, changed))) == MAX_TRIALS
    rates = [one.optimizer.learning_rate / config.optimizer.learning_rate for one in changed[:3]]
    assert rates == pytest.approx([1, 1 / 3, 3])


def test_the_main_setting_is_that_of_the_heaviest_loss() -> None:
    assert find_knob(find_recipe("small")()) == ("objective.multi_similarity.base", 1.5)
    assert find_knob(find_recipe("irt_r")()) == ("objective.contrastive.margin", 1.5)
    anchors = find_recipe("proxy_anchor")()
    assert find_knob(anchors) == ("objective.proxy_anchor.alpha", 2.0)  # not its margin
    assert [trial.changes for trial in list_trials(anchors, 5)[3:]] == [
        {"objective.proxy_anchor.alpha": 4.0},
        {"objective.proxy_anchor.alpha": 16.0},
    ]
    config = override_config(find_recipe("small")(), {"multi_similarity.weight": 0.0, "koleo.weight": 1.0})
    assert find_knob(config) is None
    assert [trial.name for trial in list_trials(config, 5)] == [
        "as it is",
        "0.333 times learning_rate",
        "3 times learning_rate",
        "0.577 times learning_rate",
        "1.73 times learning_rate",
    ]
    assert list_overrides(override_config(config, list_trials(config, 2)[1].changes), config).keys() == {
        "optimizer.learning_rate"
    }
    # A value that a trial would bring out of its range is no main setting.
    edge = override_config(find_recipe("small")(), {"multi_similarity.base": 0.9})
    assert find_knob(edge) == ("objective.multi_similarity.beta", 2.0)
