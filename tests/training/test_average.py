from __future__ import annotations

import pytest
import torch
from torch import nn

from vitrieve.training.optimizer import WeightAverage, blend


def build_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())


def test_weight_average_follows_the_recursion() -> None:
    module = build_module()
    average = WeightAverage(module, decay=0.9)
    expected = module[0].weight.detach().clone()
    for step in range(1, 6):
        with torch.no_grad():
            module[0].weight += 1
        average.update(module, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module[0].weight.detach()
    assert torch.allclose(average.module[0].weight, expected)


@pytest.mark.parametrize("decay", [0.9, 0.0])
def test_weight_average_without_ramp_keeps_its_decay_from_the_first_update(decay: float) -> None:
    module = build_module()
    average = WeightAverage(module, decay, has_ramp=False)
    expected = module[0].weight.detach().clone()
    for step in range(1, 4):
        with torch.no_grad():
            module[0].weight += 1
        average.update(module, step)
        expected = decay * expected + (1 - decay) * module[0].weight.detach()
    assert torch.allclose(average.module[0].weight, expected)
    assert decay > 0 or torch.equal(average.module[0].weight, module[0].weight)


def test_trap_weight_average_is_in_eval_mode_and_copies_buffers() -> None:
    module = build_module().train()
    average = WeightAverage(module, decay=0.5)
    module(torch.randn(8, 2))
    average.update(module, 1)
    assert not any(part.training for part in average.module.modules())
    assert torch.equal(average.module[1].running_mean, module[1].running_mean)
    assert not any(parameter.requires_grad for parameter in average.module.parameters())


def test_weight_average_is_apart_from_the_module() -> None:
    module = build_module()
    average = WeightAverage(module, decay=0.5)
    before = average.module[0].weight.clone()
    with torch.no_grad():
        module[0].weight.zero_()
    assert torch.equal(average.module[0].weight, before)
    with pytest.raises(RuntimeError, match="does not require grad"):
        average.module.eval()(torch.randn(4, 2)).sum().backward()


def test_blend_lies_on_the_line_between_frozen_and_trained() -> None:
    module = build_module()
    frozen = {name: torch.full_like(parameter, 4.0) for name, parameter in module.named_parameters()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    module(torch.randn(8, 2))
    blended = blend(module.train(), frozen, 0.25)
    assert all(bool((parameter == 1).all()) for parameter in blended.parameters())
    assert torch.equal(blended[1].running_mean, module[1].running_mean)
    assert not blended.training
    assert all(bool((parameter == 0).all()) for parameter in module.parameters())


def test_blend_of_an_untrained_module_is_the_frozen_one_to_the_bit() -> None:
    module = build_module()
    frozen = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    blended = blend(module, frozen, 0.3)
    assert all(torch.equal(parameter, frozen[name]) for name, parameter in blended.named_parameters())
