"""LoRA: what is trained, what it computes, and what is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from timm.models.beit import Beit
from torch import nn
from torch.nn import functional

from tests.training.test_loop import (
    _one_thread,
    assert_same_bits,
    config,
    final_state,
    grow,
    measured_each_step,
    records,
    run_training,
    train_some_steps,
    train_until_ctrl_c,
)
from vitrieve.config import Config, LoraConfig, ModelConfig
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ConfigError
from vitrieve.model.delta import compute_parts, restore_states
from vitrieve.model.encoder import ImageEncoder, build_encoder
from vitrieve.model.lora import LoraLinear, add_lora, merge_lora
from vitrieve.settings import override_config

__all__ = ["_one_thread", "config", "records"]  # fixtures

RANK = 3


def with_lora(config: Config, **changes: float) -> Config:
    return override_config(config, {"model.lora.rank": RANK, **changes})


def build(config: Config) -> ImageEncoder:
    return build_encoder(config.model, seed=0).eval()


def move_factors(module: nn.Module) -> None:
    torch.manual_seed(1)
    for part in module.modules():
        if isinstance(part, LoraLinear):
            nn.init.normal_(part.lora_b, std=0.1)


def test_lora_begins_as_the_frozen_encoder(config: Config) -> None:
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    frozen, encoder = build(config), build(with_lora(config))
    with torch.no_grad():
        assert torch.equal(frozen(pixels), encoder(pixels))
    assert_same_bits(frozen.state_dict(), merge_lora(encoder).state_dict())
    assert merge_lora(frozen) is frozen


def test_lora_merged_is_a_plain_encoder_that_computes_the_same(config: Config) -> None:
    encoder = build(override_config(with_lora(config), {"model.lora.alpha": 6.0}))
    move_factors(encoder)
    merged = merge_lora(encoder)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(merged(pixels), encoder(pixels), atol=1e-5, rtol=0)
        assert (merged(pixels) - build(config)(pixels)).abs().max() > 0.01
    assert merged.state_dict().keys() == build(config).state_dict().keys()
    assert not any(isinstance(part, LoraLinear) for part in merged.modules())
    assert any(isinstance(part, LoraLinear) for part in encoder.modules())


def test_lora_gradient_is_that_of_the_product() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 4).double()
    lora = LoraLinear(layer, 2, 1.5)
    nn.init.normal_(lora.lora_b)
    inputs, weights = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    (lora(inputs) * weights).sum().backward()
    merged = (layer.weight + 1.5 * lora.lora_b @ lora.lora_a).detach().requires_grad_()
    (functional.linear(inputs, merged, layer.bias) * weights).sum().backward()
    assert merged.grad is not None
    torch.testing.assert_close(lora.lora_a.grad, 1.5 * lora.lora_b.detach().T @ merged.grad)
    torch.testing.assert_close(lora.lora_b.grad, 1.5 * merged.grad @ lora.lora_a.detach().T)


def test_lora_trains_the_factors_of_all_linear_layers_of_the_blocks_and_nothing_else(
    config: Config, records: list[ImageRecord]
) -> None:
    state = train_some_steps(with_lora(config), records, 3)
    frozen = dict(build(config).named_parameters())
    trained = {name for name, parameter in state.encoder.named_parameters() if parameter.requires_grad}
    num_blocks = len(state.encoder.backbone.get_submodule("blocks"))  # type: ignore[arg-type]
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    blocks = [f"backbone.blocks.{number}.{layer}" for number in range(num_blocks) for layer in layers]
    assert trained == {f"{layer}.{factor}" for layer in blocks for factor in ("lora_a", "lora_b")}
    held = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    num_of_objective = sum(parameter.numel() for parameter in state.objective.parameters())
    num_of_factors = sum(state.encoder.get_parameter(name).numel() for name in trained)
    assert sum(parameter.numel() for parameter in held) == num_of_factors + num_of_objective
    assert num_of_factors < sum(parameter.numel() for parameter in frozen.values()) / 3
    for name, parameter in state.encoder.named_parameters():
        assert name in trained or torch.equal(parameter, frozen[name])
    assert all(state.encoder.get_parameter(name).abs().sum() > 0 for name in trained)


def test_lora_takes_layer_decay(config: Config, records: list[ImageRecord]) -> None:
    state = train_some_steps(with_lora(config, **{"optimizer.layer_decay": 0.5}), records, 1)
    rates = {id(one): group["base_learning_rate"] for group in state.optimizer.param_groups for one in group["params"]}
    first, second = (
        rates[id(state.encoder.get_parameter(f"backbone.blocks.{number}.mlp.fc1.lora_b"))] for number in (0, 1)
    )
    assert first == pytest.approx(second / 2)


def test_lora_with_a_share_of_the_frozen_weights_keeps_a_product_of_its_rank(
    config: Config, records: list[ImageRecord]
) -> None:
    changed = with_lora(config, **{"frozen_share": 0.25, "memory_momentum": 0.9})
    changed = dataclasses.replace(changed, train=dataclasses.replace(changed.train, ema_decay=None))
    state = train_some_steps(changed, records, 3)
    frozen, kept, trained = build(config), state.build_result(), merge_lora(state.encoder)
    name = "backbone.blocks.1.mlp.fc1.weight"
    difference = kept.get_parameter(name) - frozen.get_parameter(name)
    whole = trained.get_parameter(name) - frozen.get_parameter(name)
    torch.testing.assert_close(difference, 0.75 * whole, atol=1e-6, rtol=0)
    lengths = torch.linalg.svdvals(difference.double())
    assert lengths[RANK - 1] > 1e-4
    assert lengths[RANK] < 1e-5

    # The difference of an encoder of rank 3 keeps all of it, but for the rounding to float16; one of rank 2 does not.
    states, starts = ({n: t.detach().numpy() for n, t in one.state_dict().items()} for one in (kept, frozen))
    for rank, limit in ((RANK, 2e-3), (RANK - 1, 1.0)):
        restored = restore_states(compute_parts(states, starts, rank), starts)
        lost = (torch.from_numpy(restored[name]) - kept.get_parameter(name)).norm() / difference.norm()
        assert lost < limit
        assert (lost > 0.05) == (rank < RANK)


def test_trap_resume_of_lora_equals_an_uninterrupted_run_bit_for_bit(
    config: Config, records: list[ImageRecord], tmp_path: Path
) -> None:
    lora = measured_each_step(with_lora(config, **{"frozen_share": 0.3}))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    torch.manual_seed(0)  # from which A is drawn, as in a run of train
    expected = run_training(lora, records, whole, grow(0.01))
    torch.manual_seed(0)
    train_until_ctrl_c(lora, records, stopped, 3)
    resumed = run_training(lora, records, stopped, grow(0.01 * 5))
    assert_same_bits(final_state(whole), final_state(stopped))
    assert_same_bits(expected.encoder.state_dict(), resumed.encoder.state_dict())
    assert expected.encoder.state_dict().keys() == build(config).state_dict().keys()


def test_lora_where_nothing_is_better_keeps_the_frozen_start(
    config: Config, records: list[ImageRecord], tmp_path: Path
) -> None:
    result = run_training(measured_each_step(with_lora(config)), records, tmp_path, grow(0.5, -0.01))
    assert result.kept_step == 0
    assert_same_bits(result.encoder.state_dict(), build(config).state_dict())


def test_lora_leaves_frozen_blocks_alone(config: Config) -> None:
    encoder = build(with_lora(config, **{"num_frozen_blocks": 1}))
    adapted = [name for name, part in encoder.named_modules() if isinstance(part, LoraLinear)]
    assert adapted
    assert not any(name.startswith("backbone.blocks.0.") for name in adapted)


def test_lora_refuses_what_it_cannot_adapt(config: Config) -> None:
    with pytest.raises(ConfigError, match="the rank 500 is not below the sides of any of its layers"):
        build(with_lora(config, **{"model.lora.rank": 500}))
    convnet = ModelConfig(backbone="test_resnet", image_size=32, drop_path_rate=0.0, lora=LoraConfig(rank=2))
    with pytest.raises(ConfigError, match="of ResNet there are none"):
        build_encoder(convnet, is_pretrained=False)


def test_trap_lora_beside_a_layer_that_is_never_called() -> None:
    """BEiT multiplies by the weights of its layer itself: factors there would never have been trained."""
    backbone = Beit(img_size=32, patch_size=16, num_classes=0, embed_dim=32, depth=1, num_heads=2, qkv_bias=True)
    with pytest.raises(ConfigError, match=r"Beit multiplies by the weights of 0\.attn\.qkv itself"):
        add_lora(backbone, LoraConfig(rank=2), 32)
