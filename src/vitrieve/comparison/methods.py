"""What competes: methods by name, what is the same for all of them, their budget, and the grid of trials.

A method is a recipe's name, with changed settings where wanted: ``small``, ``small:koleo.weight=0.3``. Nothing here
imports torch, because the settings are flags of the command line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

from vitrieve.config import Config, Device, check_config
from vitrieve.errors import ConfigError
from vitrieve.recipes import find_recipe
from vitrieve.settings import Count, Positive, Range, check_ranges, list_overrides, override_config

FROZEN = "frozen"
"""The row of the backbone as it comes, which is always there and never trained."""
NUM_MEASUREMENTS = 4
"""Measurements of a training on the held-out classes, evenly over its steps; the state before the first step is one
more."""
FIXED = frozenset(
    {
        *(f"model.{name}" for name in ("backbone", "weights", "image_size", "framing")),
        *(
            f"train.{name}"
            for name in (
                "num_steps",
                "seed",
                "holdout",
                "evaluate_every",
                "num_patience",
                "try_larger_image",
                "checkpoint_every",
                "device",
                "num_threads",
                "max_bad_fraction",
            )
        ),
    }
)
"""Settings that are the contest's, and that no method changes."""
STEP_SETTINGS = ("optimizer.num_warmup_steps", "optimizer.decay_every", "objective.memory_start_step")
"""Settings that count steps: they grow and shrink with the number of steps of a recipe."""
RATE = "optimizer.learning_rate"
RATE_EXPONENTS = (0.0, -1.0, 1.0, -0.5, 0.5, -2.0, 2.0, -1.5, 1.5)
"""Powers of 3 that multiply the learning rate of a method without a main setting, in the order of the trials."""
GRID = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))
"""For a method with a main setting: powers that multiply the learning rate (of 3) and the setting, in that order."""
KNOBS = {"proxy_anchor.alpha": 2.0, "temperature": 2.0, "margin": 1.5, "base": 1.5, "beta": 2.0}
"""Main setting of a loss -> its factor from a trial to the next. The first one that the loss has is taken; one with a
dot is a single loss's. (Measured for Proxy-Anchor, which draws all images together where alpha is too large:
``docs/method/losses.md``. Assumed for the others: temperature and margin move the figures of a loss most, as their
papers' ablations say.)"""
MAX_TRIALS = len(GRID)
TrialCount = Annotated[int, Range(f"a whole number in [1, {MAX_TRIALS}]", lambda value: 1 <= value <= MAX_TRIALS)]


@dataclass(frozen=True, kw_only=True)
class ContestSettings:
    """What is the same for every method of a contest."""

    budget_minutes: Positive = 4.0
    """Minutes of training steps of the reference. How many images it sees in them is measured once; every method then
    sees that many, in more time where its loss is slower."""
    num_images: Count | None = None
    """Images that each run sees, counted again in every epoch, instead of a time; None: those of the budget."""
    seeds: Count = 3
    """Trainings of each method on each data set, with seeds 0, 1, …"""
    trials: TrialCount = 1
    """Settings of each method that are tried with seed 0, the best on held-out training classes is taken: the recipe's,
    then a third and three times its learning rate, then its main setting lower and higher."""
    reference: str | None = None
    """The method that the others are compared with; None: the first."""
    backbone: str | None = None
    """A weights name or timm model for all methods; None: the reference's."""
    weights: str | None = None
    """Local weights of the backbone for all methods; None: the backbone's own."""
    image_size: Count | None = None
    """Side of the input in pixels for all methods; None: the reference's."""
    device: Device = "auto"
    """Where to compute; auto: on a GPU where torch sees one."""
    num_threads: Count | None = None
    """CPU threads; None: all cores."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of a contest.

    Attributes:
        name: Name as it was given, for example ``small:koleo.weight=0.3``.
        recipe: Name of the recipe.
        config: The recipe with the changes, and with the contest's model.
    """

    name: str
    recipe: str
    config: Config

    def with_backbone(self, name: str) -> Method:
        """Return the method with another backbone."""
        return replace(self, config=override_config(self.config, {"model.backbone": name}))


class Trial(NamedTuple):
    """One point of a method's grid.

    Attributes:
        name: What differs from the method, in words.
        changes: Values by dotted path.
    """

    name: str
    changes: dict[str, Any]


def read_methods(names: Sequence[str], settings: ContestSettings) -> tuple[Method, ...]:
    """Read the methods of a contest; the first is the reference.

    Args:
        names: Names, each a recipe's with changes: ``RECIPE:SETTING=VALUE,…``. ``frozen`` may be among them.
        settings: Settings of all methods.

    Raises:
        ConfigError: A recipe or setting is unknown or out of range, is the contest's, or a method stands there twice.
    """
    check_ranges(settings)
    trained = [name for name in names if name != FROZEN]
    if not trained:
        raise ConfigError("no method was named; give one or more recipes, such as small. frozen is always a row.")
    doubled = next((name for name in trained if trained.count(name) > 1), None)
    if doubled is not None:
        raise ConfigError(f"the method {doubled!r} stands there twice; give each method once.")
    methods = [_read_method(name) for name in trained]
    first = settings.reference or trained[0]
    if first not in trained:
        raise ConfigError(f"the reference {first!r} is none of the methods; give one of {', '.join(trained)}.")
    reference = next(method for method in methods if method.name == first)
    shared = _share_model(reference.config, settings)
    methods.sort(key=lambda method: method.name != first)
    if settings.num_images:
        require_a_step(methods, settings.num_images)
    return tuple(
        Method(name=method.name, recipe=method.recipe, config=override_config(method.config, shared))
        for method in methods
    )


def require_a_step(methods: Sequence[Method], num_images: int) -> None:
    """Refuse a budget that one step of a method exceeds: it would see more images than the others.

    Raises:
        ConfigError: The message names the method.
    """
    sizes = {method.name: count_images_per_step(method.config) for method in methods}
    name = max(sizes, key=lambda one: sizes[one])
    if sizes[name] > num_images:
        raise ConfigError(
            f"each run sees {num_images:,} images, fewer than one step of {name}, which takes {sizes[name]:,}: it "
            "would see more than the others. Give more minutes or images, or the method a smaller batch "
            "(METHOD:batch_size=16)."
        )


def _read_method(name: str) -> Method:
    recipe, _, changes = name.partition(":")
    base = find_recipe(recipe)()
    config = override_config(base, dict(_read_changes(name, changes)))
    fixed = sorted(FIXED & list_overrides(config, base).keys())
    if fixed:
        raise ConfigError(
            f"the method {name!r} changes {fixed[0]}, which is the same for all methods of a contest; leave it out."
        )
    check_config(config)
    return Method(name=name, recipe=recipe, config=config)


def _read_changes(name: str, changes: str) -> Iterator[tuple[str, Any]]:
    for change in filter(None, re.split(r",(?![^\[]*\])", changes)):  # a list has commas of its own
        setting, equals, text = change.partition("=")
        if not equals:
            raise ConfigError(f"the method {name!r}: {change!r} is no change; write SETTING=VALUE.")
        try:
            yield setting.strip(), json.loads(text)
        except json.JSONDecodeError:
            yield setting.strip(), text.strip()


def _share_model(reference: Config, settings: ContestSettings) -> dict[str, Any]:
    """Collect the settings of the model and of measuring that every method gets."""
    backbone = settings.backbone or reference.model.backbone
    is_own = backbone == reference.model.backbone
    return {
        "model.backbone": backbone,
        "model.weights": settings.weights or (reference.model.weights if is_own else None),
        "model.image_size": settings.image_size or reference.model.image_size,
        "model.framing": reference.model.framing,
        "train.holdout": True,
        "train.num_patience": reference.train.num_patience,
        "train.max_bad_fraction": reference.train.max_bad_fraction,
        "train.try_larger_image": False,
        "train.device": settings.device,
        "train.num_threads": settings.num_threads,
    }


def count_images_per_step(config: Config) -> int:
    """Count the images of an optimizer step.

    >>> count_images_per_step(Config())
    64
    """
    if config.loader.sampling == "tuples":
        return config.tuples.tuples_per_batch * (2 + config.tuples.num_negatives)
    return config.train.batch_size


def fit_budget(config: Config, num_images: int, seed: int) -> Config:
    """Give a configuration as many steps as a number of images allows, and measurements at equal shares of them.

    Settings that count steps keep their share of the steps: of a warm-up of 10 of 120 steps become 5 of 60.

    Args:
        config: Configuration of a method.
        num_images: Number of images, counted again in every epoch.
        seed: Seed of the run.

    >>> fitted = fit_budget(Config(), num_images=640, seed=1).train
    >>> fitted.num_steps, fitted.evaluate_every
    (10, 3)
    """
    num_steps = max(1, round(num_images / count_images_per_step(config)))
    factor = num_steps / config.train.num_steps
    every = -(-num_steps // NUM_MEASUREMENTS)
    changes: dict[str, Any] = {
        "train.num_steps": num_steps,
        "train.seed": seed,
        "train.evaluate_every": every,
        "train.checkpoint_every": every,
    }
    for name in STEP_SETTINGS:
        value = _get(config, name)
        if name != "optimizer.decay_every" or config.optimizer.schedule == "exponential":
            changes[name] = max(round(factor * value), min(value, 1))
    return override_config(config, changes)


def list_trials(config: Config, num_trials: int) -> tuple[Trial, ...]:
    """List the first points of a method's grid, the method as it is first.

    Args:
        config: Configuration of the method.
        num_trials: Number of points, at most ``MAX_TRIALS``.

    >>> [trial.name for trial in list_trials(Config(), 3)]
    ['as it is', '0.333 times learning_rate', '3 times learning_rate']
    """
    knob = find_knob(config)
    if knob is None:
        steps = [{RATE: 3.0**exponent} for exponent in RATE_EXPONENTS]
    else:
        name, base = knob
        steps = [{RATE: 3.0**rate, name: base**power} for rate, power in GRID]
    return tuple(_build_trial(config, factors) for factors in steps[:num_trials])


def find_knob(config: Config) -> tuple[str, float] | None:
    """Find the main setting of a method, and its factor from a trial to the next; None where it has none.

    It is a setting of ``KNOBS`` of the loss with the greatest weight, if the values of all trials are in its range.
    """
    terms = sorted(config.objective.terms.items(), key=lambda item: -item[1].weight)
    for term, loss in terms:
        for knob, base in KNOBS.items():
            owner, _, name = knob.rpartition(".")
            path = f"objective.{term}.{name}"
            if owner in ("", term) and getattr(loss, name, None) and _is_in_range(config, path, base):
                return path, base
    return None


def _is_in_range(config: Config, path: str, base: float) -> bool:
    try:
        for power in (-1, 1):
            check_ranges(override_config(config, {path: _get(config, path) * base**power}))
    except ConfigError:
        return False
    return True


def _build_trial(config: Config, factors: dict[str, float]) -> Trial:
    changed = {path: factor for path, factor in factors.items() if factor != 1}
    name = ", ".join(f"{factor:.3g} times {path.rpartition('.')[2]}" for path, factor in changed.items())
    return Trial(name or "as it is", {path: _get(config, path) * factor for path, factor in changed.items()})


def _get(config: Config, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value
