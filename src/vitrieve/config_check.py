"""What a configuration may hold: ranges, and settings that change nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from operator import attrgetter
from typing import NamedTuple

from vitrieve.config import Config, ObjectiveConfig, TupleConfig
from vitrieve.errors import ConfigError


class _Range(NamedTuple):
    accepted: str
    is_valid: Callable[[float], bool]


_COUNT = _Range("1 or more", lambda value: value >= 1)
_POSITIVE = _Range("a number above 0", lambda value: value > 0)
_NOT_NEGATIVE = _Range("0 or more", lambda value: value >= 0)
_SHARE = _Range("a share in [0, 1]", lambda value: 0 <= value <= 1)
_POSITIVE_SHARE = _Range("a number in (0, 1]", lambda value: 0 < value <= 1)
_BELOW_ONE = _Range("a number in [0, 1)", lambda value: 0 <= value < 1)
_COSINE = _Range("a similarity in [-1, 1)", lambda value: -1 <= value < 1)
_SEED = _Range("a whole number in [0, 2^32)", lambda value: 0 <= value < 2**32)

_RANGES = {
    "loader.crop_scale_min": _POSITIVE_SHARE,
    "loader.images_per_class": _COUNT,
    "loader.cache_bytes": _NOT_NEGATIVE,
    "train.memory_limit_gib": _POSITIVE,
    "train.low_resolution_size": _COUNT,
    "train.low_resolution_share": _POSITIVE_SHARE,
    "tuples.num_pairs": _COUNT,
    "tuples.num_candidates": _COUNT,
    "tuples.num_negatives": _COUNT,
    "tuples.tuples_per_batch": _COUNT,
    "model.head_dim": _COUNT,
    "model.embedding_dim": _COUNT,
    "model.drop_path_rate": _BELOW_ONE,
    "model.patch_drop_rate": _BELOW_ONE,
    "model.num_frozen_blocks": _NOT_NEGATIVE,
    "objective.contrastive_weight": _NOT_NEGATIVE,
    "objective.margin": _COSINE,
    "objective.memory_fraction": _NOT_NEGATIVE,
    "objective.memory_start_step": _NOT_NEGATIVE,
    "objective.memory_momentum": _BELOW_ONE,
    "objective.multi_similarity_weight": _NOT_NEGATIVE,
    "objective.multi_similarity_beta": _POSITIVE,
    "objective.multi_similarity_base": _COSINE,
    "objective.proxy_anchor_weight": _NOT_NEGATIVE,
    "objective.normalized_softmax_weight": _NOT_NEGATIVE,
    "objective.normalized_softmax_temperature": _POSITIVE,
    "objective.proxy_nca_weight": _NOT_NEGATIVE,
    "objective.proxy_nca_temperature": _POSITIVE,
    "objective.scalable_nca_weight": _NOT_NEGATIVE,
    "objective.scalable_nca_temperature": _POSITIVE,
    "objective.scalable_nca_momentum": _BELOW_ONE,
    "objective.tuple_contrastive_weight": _NOT_NEGATIVE,
    "objective.tuple_margin": _POSITIVE,
    "objective.koleo_weight": _NOT_NEGATIVE,
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.layer_decay": _POSITIVE_SHARE,
    "optimizer.proxy_learning_rate": _POSITIVE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.epsilon": _POSITIVE,
    "optimizer.num_warmup_steps": _NOT_NEGATIVE,
    "optimizer.decay_factor": _POSITIVE_SHARE,
    "optimizer.decay_every": _COUNT,
    "optimizer.gradient_clip_norm": _POSITIVE,
    "train.num_steps": _COUNT,
    "train.batch_size": _COUNT,
    "train.microbatch_size": _COUNT,
    "train.seed": _SEED,
    "train.num_threads": _COUNT,
    "train.ema_decay": _BELOW_ONE,
    "train.frozen_share": _BELOW_ONE,
    "train.evaluate_every": _COUNT,
    "train.num_patience": _COUNT,
    "train.max_bad_fraction": _SHARE,
    "train.checkpoint_every": _COUNT,
}
"""What a field accepts beyond its type; None is accepted where the type has it."""


def check_config(config: Config) -> None:
    """Refuse values that no run can have; whatever depends on the backbone or the images is checked with them.

    Raises:
        ConfigError: A value is out of range, nothing is left to minimize, or a memory that no term reads.

    >>> from vitrieve.config import TrainConfig
    >>> check_config(Config(objective=ObjectiveConfig(koleo_weight=0.7), train=TrainConfig(num_steps=0)))
    Traceback (most recent call last):
    vitrieve.errors.ConfigError: train.num_steps is 0; expected 1 or more.
    """
    for name, accepted_range in _RANGES.items():
        value = attrgetter(name)(config)
        if value is not None and not accepted_range.is_valid(value):
            raise ConfigError(f"{name} is {value}; expected {accepted_range.accepted}.")
    values = dataclasses.asdict(config.objective)
    weights = {name: value for name, value in values.items() if name.endswith("_weight")}
    if not any(weights.values()):
        raise ConfigError(f"every weight of the objective is 0 ({', '.join(weights)}): there is nothing to minimize.")
    if config.objective.memory_fraction > 0 and config.objective.contrastive_weight == 0:
        raise ConfigError(
            f"objective.memory_fraction is {config.objective.memory_fraction}, but only the contrastive loss reads the "
            "memory; give it a weight (objective.contrastive_weight), or set the fraction to 0."
        )
    if config.objective.tuple_contrastive_weight > 0 and not _has_tuples(config):
        raise ConfigError(
            f"objective.tuple_contrastive_weight is {config.objective.tuple_contrastive_weight}, but loader.sampling "
            f"{config.loader.sampling} makes no tuples; choose loader.sampling tuples, or set the weight to 0."
        )


def _has_tuples(config: Config) -> bool:
    return config.loader.sampling == "tuples"


def _is_exponential(config: Config) -> bool:
    return config.optimizer.schedule == "exponential"


def _has_proxies(objective: ObjectiveConfig) -> bool:
    return (objective.proxy_anchor_weight, objective.proxy_nca_weight, objective.normalized_softmax_weight) != (0, 0, 0)


_EFFECTIVE_IF: dict[str, tuple[str, Callable[[Config], bool]]] = {
    "loader.images_per_class": ("m_per_class sampling", lambda config: config.loader.sampling == "m_per_class"),
    "loader.crop_scale_min": (
        "random_resized_crop",
        lambda config: config.loader.augmentation == "random_resized_crop",
    ),
    "train.low_resolution_share": (
        "a low_resolution_size",
        lambda config: config.train.low_resolution_size is not None,
    ),
    "model.gem_learnable": ("gem pooling", lambda config: config.model.pooling == "gem"),
    "model.whiten": ("an embedding_dim", lambda config: config.model.embedding_dim is not None),
    "objective.margin": ("the contrastive loss", lambda config: config.objective.contrastive_weight > 0),
    "objective.mean_nonzero": ("the contrastive loss", lambda config: config.objective.contrastive_weight > 0),
    "objective.memory_start_step": ("a memory", lambda config: config.objective.memory_fraction > 0),
    "objective.memory_momentum": ("a memory", lambda config: config.objective.memory_fraction > 0),
    "objective.multi_similarity_beta": (
        "the multi-similarity loss",
        lambda config: config.objective.multi_similarity_weight > 0,
    ),
    "objective.multi_similarity_base": (
        "the multi-similarity loss",
        lambda config: config.objective.multi_similarity_weight > 0,
    ),
    "objective.normalized_softmax_temperature": (
        "the normalized softmax loss",
        lambda config: config.objective.normalized_softmax_weight > 0,
    ),
    "objective.proxy_nca_temperature": ("ProxyNCA++", lambda config: config.objective.proxy_nca_weight > 0),
    "objective.scalable_nca_temperature": ("scalable NCA", lambda config: config.objective.scalable_nca_weight > 0),
    "objective.scalable_nca_momentum": ("scalable NCA", lambda config: config.objective.scalable_nca_weight > 0),
    "optimizer.proxy_learning_rate": (
        "proxies (Proxy-Anchor, ProxyNCA++) or class weights (the normalized softmax loss)",
        lambda config: _has_proxies(config.objective),
    ),
    "loader.flip": ("a cropping augmentation", lambda config: config.loader.augmentation != "square"),
    **{f"tuples.{field.name}": ("tuples sampling", _has_tuples) for field in dataclasses.fields(TupleConfig)},
    "objective.tuple_margin": (
        "the contrastive loss of tuples",
        lambda config: config.objective.tuple_contrastive_weight > 0,
    ),
    "optimizer.decay_factor": ("the exponential schedule", _is_exponential),
    "optimizer.decay_every": ("the exponential schedule", _is_exponential),
    "train.batch_size": ("random or m_per_class sampling", lambda config: not _has_tuples(config)),
    "train.evaluate_every": ("hold-out", lambda config: config.train.holdout),
    "train.num_patience": ("hold-out", lambda config: config.train.holdout),
}
"""Fields that only mean something together with another, and how to tell."""


def find_ineffective(config: Config, recipe: Config, *, has_batch_norm: bool = True) -> list[str]:
    """List the changes of a recipe that change nothing, as sentences for the user.

    Args:
        config: The complete settings.
        recipe: What they began with.
        has_batch_norm: Whether the encoder has layers of batch norm.

    >>> from vitrieve.config import LoaderConfig
    >>> find_ineffective(Config(loader=LoaderConfig(images_per_class=8)), Config())
    ['loader.images_per_class has no effect without m_per_class sampling']
    """
    notes = [
        f"{name} has no effect without {partner}"
        for name, (partner, is_effective) in _EFFECTIVE_IF.items()
        if attrgetter(name)(config) != attrgetter(name)(recipe) and not is_effective(config)
    ]
    if not has_batch_norm and config.train.freeze_batch_norm and not recipe.train.freeze_batch_norm:
        notes.append("train.freeze_batch_norm has no effect without batch norm, which this backbone lacks")
    return notes
