"""AdamW or Adam with layer-wise learning rates, and the schedule."""

from __future__ import annotations

import math

import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from vitrieve.config import OptimizerConfig
from vitrieve.errors import ConfigError
from vitrieve.model.encoder import ImageEncoder

GEM_LEARNING_RATE_FACTOR = 10.0
"""The exponent of GeM learns at ten times the rate, without decay: the protocol the paper follows (PAPER.md, 2)."""


def build_optimizer(encoder: ImageEncoder, objective: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build AdamW or Adam over the encoder's trainable parameters and the objective's.

    Biases, norms and other vectors are not decayed (timm's rule). Each group carries ``base_learning_rate``, which
    ``set_learning_rate`` scales.

    Raises:
        ConfigError: A setting is out of range, or nothing is left to train.
    """
    if not config.learning_rate > 0 or not 0 < config.layer_decay <= 1:
        raise ConfigError(
            f"optimizer.learning_rate is {config.learning_rate} and optimizer.layer_decay {config.layer_decay}; "
            "expected a positive rate and a decay in (0, 1]."
        )
    groups = [
        {
            "params": [parameter for parameter in group["params"] if parameter.requires_grad],
            "weight_decay": group["weight_decay"],
            "base_learning_rate": config.learning_rate * group["lr_scale"],
        }
        for group in param_groups_layer_decay(
            encoder.backbone, weight_decay=config.weight_decay, layer_decay=config.layer_decay
        )
    ]
    head = dict(encoder.head.named_parameters())
    gem_rate = config.learning_rate * GEM_LEARNING_RATE_FACTOR
    for parameters, weight_decay, rate in (
        ([weight for weight in head.values() if weight.ndim > 1], config.weight_decay, config.learning_rate),
        ([bias for bias in head.values() if bias.ndim == 1], 0.0, config.learning_rate),
        ([] if encoder.gem_p is None else [encoder.gem_p], 0.0, gem_rate),
        (list(objective.parameters()), 0.0, config.proxy_learning_rate),
    ):
        groups.append({"params": parameters, "weight_decay": weight_decay, "base_learning_rate": rate})
    groups = [group for group in groups if group["params"]]
    if not any(parameter.requires_grad for parameter in encoder.parameters()):
        raise ConfigError("model.num_frozen_blocks leaves nothing to train; choose a smaller number.")
    algorithm = torch.optim.AdamW if config.algorithm == "adamw" else torch.optim.Adam
    return algorithm(groups, lr=config.learning_rate, eps=config.epsilon, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Set the learning rates of a step; return the factor on the base rates, in [0, 1].

    Args:
        optimizer: From ``build_optimizer``; changed.
        config: Warm-up and schedule.
        step: Number of finished steps.
        num_steps: Length of the run.
    """
    factor = schedule_factor(config, step, num_steps)
    for group in optimizer.param_groups:
        group["lr"] = group["base_learning_rate"] * factor
    return factor


def schedule_factor(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Compute the factor on the base learning rate: linear warm-up, then the schedule.

    The exponential one counts from step 0, so that it falls at the ends of epochs of ``decay_every`` steps.

    >>> schedule_factor(OptimizerConfig(num_warmup_steps=10, schedule="cosine"), 4, 100)
    0.5
    """
    if step < config.num_warmup_steps:
        return (step + 1) / config.num_warmup_steps
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "exponential":
        return float(config.decay_factor ** (step // config.decay_every))
    share = (step - config.num_warmup_steps) / max(1, num_steps - config.num_warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * share))
