from __future__ import annotations

from typing import Literal

import pytest
import torch

from vitrieve.config import ModelConfig, ObjectiveConfig, OptimizerConfig
from vitrieve.errors import ConfigError
from vitrieve.model.encoder import ImageEncoder, build_encoder
from vitrieve.objective.contrastive import ContrastiveConfig
from vitrieve.objective.objective import Objective
from vitrieve.objective.proxy_anchor import ProxyAnchorConfig
from vitrieve.settings import override_config
from vitrieve.training.optimizer import build_optimizer, schedule_factor, set_learning_rate

CONTRASTIVE = ObjectiveConfig(contrastive=ContrastiveConfig(weight=1.0))


def build_parts(num_frozen_blocks: int = 0) -> tuple[ImageEncoder, Objective]:
    config = ModelConfig(backbone="test_vit", image_size=32, num_frozen_blocks=num_frozen_blocks)
    encoder = build_encoder(config, is_pretrained=False)
    objective = Objective(
        ObjectiveConfig(proxy_anchor=ProxyAnchorConfig(weight=1.0)),
        num_classes=3,
        num_images=9,
        embedding_dim=encoder.spec.embedding_dim,
    )
    return encoder, objective


def rates_by_parameter(encoder: ImageEncoder, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    rates = {id(p): group["base_learning_rate"] for group in optimizer.param_groups for p in group["params"]}
    return {name: rates[id(p)] for name, p in encoder.named_parameters() if id(p) in rates}


def test_build_optimizer_holds_every_trainable_parameter_once() -> None:
    encoder, objective = build_parts(num_frozen_blocks=2)
    optimizer = build_optimizer(encoder, objective, OptimizerConfig())
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    expected = [id(p) for p in (*encoder.parameters(), *objective.parameters()) if p.requires_grad]
    assert sorted(held) == sorted(expected)
    assert len(expected) < len([*encoder.parameters(), *objective.parameters()])


def test_build_optimizer_lowers_the_rate_block_by_block() -> None:
    encoder, objective = build_parts()
    rates = rates_by_parameter(encoder, build_optimizer(encoder, objective, OptimizerConfig(layer_decay=0.5)))
    first, second = rates["backbone.blocks.0.mlp.fc1.weight"], rates["backbone.blocks.1.mlp.fc1.weight"]
    assert first == pytest.approx(second / 2)
    assert max(rates.values()) == pytest.approx(OptimizerConfig().learning_rate)


def test_build_optimizer_gives_proxies_their_own_rate() -> None:
    encoder, objective = build_parts()
    optimizer = build_optimizer(encoder, objective, OptimizerConfig(proxy_learning_rate=0.25))
    (group,) = [group for group in optimizer.param_groups if group["params"][0] is next(objective.parameters())]
    assert group["base_learning_rate"] == 0.25
    assert group["weight_decay"] == 0


@pytest.mark.parametrize(
    "config",
    [OptimizerConfig(learning_rate=0), OptimizerConfig(layer_decay=0), OptimizerConfig(layer_decay=1.5)],
)
def test_build_optimizer_refuses_values_out_of_range(config: OptimizerConfig) -> None:
    with pytest.raises(ConfigError, match="expected a positive rate"):
        build_optimizer(*build_parts(), config)


def test_schedule_factor_warms_up_then_falls_to_zero() -> None:
    config = OptimizerConfig(num_warmup_steps=4, schedule="cosine")
    factors = [schedule_factor(config, step, 24) for step in range(24)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert factors[14] == pytest.approx(0.5)
    assert 0 < factors[-1] < 0.02


def test_schedule_factor_constant_stays() -> None:
    assert [schedule_factor(OptimizerConfig(), step, 3) for step in range(3)] == [1, 1, 1]


def test_schedule_factor_exponential_falls_at_the_ends_of_epochs() -> None:
    config = OptimizerConfig(schedule="exponential", decay_factor=0.5, decay_every=3)
    assert [schedule_factor(config, step, 100) for step in range(8)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_schedule_factor_exponential_counts_the_warm_up() -> None:
    config = OptimizerConfig(schedule="exponential", decay_factor=0.5, decay_every=3, num_warmup_steps=2)
    assert [schedule_factor(config, step, 100) for step in range(5)] == [0.5, 1, 1, 0.5, 0.5]


@pytest.mark.parametrize("algorithm", ["adamw", "adam"])
def test_build_optimizer_decays_as_the_algorithm_does(algorithm: Literal["adamw", "adam"]) -> None:
    """Without a gradient of the loss, AdamW shrinks a matrix by rate x decay; Adam makes a whole step of it."""
    encoder, objective = build_parts()
    config = OptimizerConfig(algorithm=algorithm, learning_rate=0.01, weight_decay=0.5)
    optimizer = build_optimizer(encoder, objective, config)
    assert type(optimizer) is (torch.optim.AdamW if algorithm == "adamw" else torch.optim.Adam)
    matrix = encoder.backbone.get_parameter("blocks.0.mlp.fc1.weight")
    before = matrix.detach().clone()
    matrix.grad = torch.zeros_like(matrix)
    optimizer.step()
    shrunk = before * (1 - 0.01 * 0.5) if algorithm == "adamw" else before - 0.01 * before.sign()
    # Adam's step is shorter than the rate where a weight is hardly larger than its epsilon.
    torch.testing.assert_close(matrix.detach(), shrunk, rtol=1e-4, atol=1e-6 if algorithm == "adamw" else 2e-3)


def test_set_learning_rate_scales_every_group() -> None:
    encoder, objective = build_parts()
    config = OptimizerConfig(num_warmup_steps=2, layer_decay=0.5)
    optimizer = build_optimizer(encoder, objective, config)
    assert set_learning_rate(optimizer, config, 0, 10) == 0.5
    for group in optimizer.param_groups:
        assert group["lr"] == group["base_learning_rate"] / 2


def test_build_optimizer_takes_epsilon() -> None:
    assert all(group["eps"] == 1e-8 for group in build_optimizer(*build_parts(), OptimizerConfig()).param_groups)
    optimizer = build_optimizer(*build_parts(), OptimizerConfig(epsilon=1.0))
    assert all(group["eps"] == 1.0 for group in optimizer.param_groups)


@pytest.mark.parametrize("name", ["proxy_anchor", "normalized_softmax", "proxy_nca"])
def test_build_optimizer_puts_proxies_and_class_weights_into_the_group_of_the_proxy_rate(name: str) -> None:
    encoder, _ = build_parts()
    objective = Objective(
        override_config(ObjectiveConfig(), {f"{name}.weight": 1.0}),
        num_classes=3,
        num_images=9,
        embedding_dim=encoder.spec.embedding_dim,
    )
    optimizer = build_optimizer(encoder, objective, OptimizerConfig(proxy_learning_rate=0.25))
    (parameter,) = objective.parameters()
    (group,) = [group for group in optimizer.param_groups if group["params"][0] is parameter]
    assert (group["base_learning_rate"], group["weight_decay"]) == (0.25, 0)


def test_build_optimizer_trains_the_exponent_of_gem_at_ten_times_the_rate_without_decay() -> None:
    config = ModelConfig(backbone="test_vit", image_size=32, pooling="gem", gem_learnable=True)
    encoder = build_encoder(config, is_pretrained=False)
    objective = Objective(
        CONTRASTIVE,
        num_classes=3,
        num_images=9,
        embedding_dim=encoder.spec.embedding_dim,
    )
    optimizer = build_optimizer(encoder, objective, OptimizerConfig(learning_rate=1e-4, weight_decay=0.3))
    (group,) = [group for group in optimizer.param_groups if any(p is encoder.gem_p for p in group["params"])]
    assert group["base_learning_rate"] == pytest.approx(1e-3)
    assert group["weight_decay"] == 0


def test_build_optimizer_trains_a_head_as_the_last_layer_and_decays_its_matrix_only() -> None:
    encoder = build_encoder(ModelConfig(backbone="test_vit", image_size=32, head_dim=4), is_pretrained=False)
    objective = Objective(CONTRASTIVE, num_classes=3, num_images=9, embedding_dim=4)
    optimizer = build_optimizer(
        encoder, objective, OptimizerConfig(learning_rate=1e-4, layer_decay=0.5, weight_decay=0.3)
    )
    decays = {}
    for name, parameter in encoder.head.named_parameters():
        (group,) = [group for group in optimizer.param_groups if any(p is parameter for p in group["params"])]
        assert group["base_learning_rate"] == 1e-4
        decays[name] = group["weight_decay"]
    assert decays == {"linear.weight": 0.3, "linear.bias": 0.0}
