from __future__ import annotations

from pathlib import Path

import pytest

from vitrieve.config import Config, ObjectiveConfig
from vitrieve.errors import ConfigError
from vitrieve.objective.koleo import KoleoConfig
from vitrieve.recipes import RECIPES
from vitrieve.settings import config_from_json, list_overrides, override_config


def test_a_setting_is_named_by_any_end_of_its_path_that_no_other_shares() -> None:
    for name in ("train.num_steps", "num_steps", "train_num_steps", "num-steps"):
        assert override_config(Config(), {name: 7}).train.num_steps == 7


def test_a_stage_is_given_whole_or_as_a_mapping() -> None:
    changed = override_config(Config(), {"objective": {"koleo.weight": 0.3}})
    assert changed.objective.koleo.weight == 0.3
    stage = ObjectiveConfig(koleo=KoleoConfig(weight=0.5))
    assert override_config(changed, {"objective": stage}).objective is stage


def test_values_are_checked_and_paths_become_text() -> None:
    assert override_config(Config(), {"weights": Path("a.pth")}).model.weights == "a.pth"
    assert override_config(Config(), {"memory_limit_gib": None}).train.memory_limit_gib is None
    with pytest.raises(ConfigError, match=r"num_steps: '200' is not of type int"):
        override_config(Config(), {"num_steps": "200"})
    with pytest.raises(ConfigError, match=r"'gpu' is not one of auto, cpu, cuda"):
        override_config(Config(), {"train.device": "gpu"})
    with pytest.raises(ConfigError, match="objective is 3; give a ObjectiveConfig"):
        override_config(Config(), {"objective": 3})


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'num_step'; the nearest valid ones: train\.num_steps, "):
        override_config(Config(), {"num_step": 3})


def test_names_that_several_settings_share_are_refused_with_all_of_them() -> None:
    with pytest.raises(ConfigError, match="unknown setting"):  # no path ends with it at a dot
        override_config(Config(), {"rate": 0.5})
    with pytest.raises(ConfigError, match=r"objective\.normalized_softmax\.temperature, objective\.proxy_nca\.temp"):
        override_config(Config(), {"temperature": 0.5})
    with pytest.raises(ConfigError, match=r"the end of several settings: one\.size, other\.size"):
        override_config(make_ambiguous(), {"size": 3})


def make_ambiguous() -> object:
    from dataclasses import dataclass, field

    @dataclass(frozen=True)
    class Stage:
        size: int = 1

    @dataclass(frozen=True)
    class Two:
        one: Stage = field(default_factory=Stage)
        other: Stage = field(default_factory=Stage)

    return Two()


FORMER_VALUES = {name: 0.25 for name in ObjectiveConfig.FORMER_NAMES} | {"mean_nonzero": True}


@pytest.mark.parametrize("former", FORMER_VALUES)
def test_settings_of_the_time_of_one_flat_table_are_understood(former: str, capsys: pytest.CaptureFixture[str]) -> None:
    value, present = FORMER_VALUES[former], ObjectiveConfig.FORMER_NAMES[former]
    expected = override_config(Config(), {f"objective.{present}": value})
    assert expected != Config()
    for name in (former, f"objective.{former}", f"objective_{former}"):
        assert override_config(Config(), {name: value}) == expected
    assert override_config(Config(), {"objective": {former: value}}) == expected
    assert config_from_json(Config, {"objective": {former: value}}) == expected
    # ``koleo_weight`` is a way to write the present name, and needs no note; nor does ``mean_nonzero``, an end of it.
    num_notes = {"margin": 4, "tuple_margin": 4, "mean_nonzero": 2}.get(former, 0)
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == num_notes
    assert all(note.endswith(f"{present} now.") for note in notes)


def test_a_former_name_beside_the_present_table_of_its_loss_is_understood() -> None:
    found = config_from_json(ObjectiveConfig, {"koleo": {"weight": 0.5}, "margin": 0.1, "contrastive": {"weight": 1}})
    assert (found.koleo.weight, found.contrastive.margin, found.contrastive.weight) == (0.5, 0.1, 1)


@pytest.mark.parametrize("name", RECIPES)
def test_the_difference_of_two_configurations_leads_from_one_to_the_other(name: str) -> None:
    recipe = RECIPES[name]()
    assert override_config(Config(), list_overrides(recipe, Config())) == recipe
    assert list_overrides(recipe, recipe) == {}
