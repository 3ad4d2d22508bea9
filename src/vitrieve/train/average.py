"""The running average of the encoder's weights. Next file: ``selection.py``."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class WeightAverage(Generic[ModuleT]):
    """An exponential moving average of a module's weights; its buffers are copied as they are.

    Early on the decay is smaller, ``(1 + t) / (10 + t)`` after t updates, so that the start does not linger.

    Source:
        Polyak and Juditsky 1992; the ramp as in TensorFlow's ``ExponentialMovingAverage``.
    """

    def __init__(self, module: ModuleT, decay: float) -> None:
        """Start from a copy of ``module``, in eval mode and without gradients."""
        self.module: ModuleT = copy.deepcopy(module).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move the average towards ``module``'s current weights.

        Args:
            module: The module that is trained.
            step: Number of finished steps, this one included.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        for average, current in zip(self.module.parameters(), module.parameters(), strict=True):
            average.lerp_(current, 1 - decay)
        for average_buffer, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            average_buffer.copy_(buffer)
