"""Averages of weights: over the steps of a run, and with the frozen start."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

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
        frozen: Parameters of the start, by name.
        frozen_share: Weight of the start, in [0, 1).

    Returns:
        A new module in eval mode.

    Source:
        Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022, arXiv:2109.01903.
    """
    blended = copy.deepcopy(module).eval()
    for name, parameter in blended.named_parameters():
        parameter.lerp_(frozen[name], frozen_share)
    return blended
