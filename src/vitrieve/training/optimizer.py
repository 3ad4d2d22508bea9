"""AdamW or Adam with layer-wise learning rates and the schedule, and averages of the weights that they move."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from vitrieve.config import OptimizerConfig
from vitrieve.errors import ConfigError
from vitrieve.model.encoder import ImageEncoder

GEM_LEARNING_RATE_FACTOR = 10.0
"""The exponent of GeM learns at ten times the rate, without decay: the protocol the paper follows."""


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
        optimizer: Result of ``build_optimizer``; changed.
        config: Settings of warm-up and schedule.
        step: Number of finished steps.
        num_steps: Number of steps of the run.
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


ModuleT = TypeVar("ModuleT", bound=nn.Module)


class WeightAverage(Generic[ModuleT]):
    """An exponential moving average of a module's weights; its buffers are copied as they are.

    With the ramp, the decay is smaller early on, ``(1 + t) / (10 + t)`` after t updates, so that the start does not
    linger; an average that is to lag behind, as a momentum encoder is, has none.

    Source:
        Polyak and Juditsky 1992; the ramp as in TensorFlow's ``ExponentialMovingAverage``; the momentum encoder of
        He et al., Momentum Contrast, CVPR 2020, arXiv:1911.05722, Eq. 2.
    """

    def __init__(self, module: ModuleT, decay: float, *, has_ramp: bool = True) -> None:
        """Start from a copy of ``module``, in eval mode and without gradients.

        Args:
            module: The module that is trained.
            decay: Share that the average keeps of itself in an update, in [0, 1); 0 makes it a copy.
            has_ramp: Whether the decay is smaller early on.
        """
        self.module: ModuleT = copy.deepcopy(module).eval().requires_grad_(False)
        self._decay = decay
        self._has_ramp = has_ramp

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move the average towards ``module``'s current weights.

        Args:
            module: The module that is trained.
            step: Number of finished steps, this one included.
        """
        decay = min(self._decay, (1 + step) / (10 + step)) if self._has_ramp else self._decay
        for average, current in zip(self.module.parameters(), module.parameters(), strict=True):
            average.lerp_(current, 1 - decay)
        for average_buffer, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            average_buffer.copy_(buffer)


@torch.no_grad()
def blend(module: ModuleT, frozen: Mapping[str, Tensor], frozen_share: float) -> ModuleT:
    """Build the average of a trained module and its frozen start; buffers are the trained module's.

    On the straight line between both, a fine-tuned network keeps more of what the frozen one knew about classes that
    fine-tuning never showed it.

    Args:
        module: Left as it is.
        frozen: Parameters of the start, by name; those that it lacks stay as they were trained.
        frozen_share: Weight of the start, in [0, 1).

    Returns:
        A new module in eval mode.

    Source:
        Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022, arXiv:2109.01903.
    """
    blended = copy.deepcopy(module).eval()
    for name, start in frozen.items():
        blended.get_parameter(name).lerp_(start, frozen_share)
    return blended
