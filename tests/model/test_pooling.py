from __future__ import annotations

import math

import pytest
import torch

from vitrieve.errors import ConfigError
from vitrieve.model.backbone import TokenLayout
from vitrieve.model.pooling import check_pooling, list_rmac_regions, pool_gem, pool_rmac, pool_tokens

VIT = TokenLayout(width=5, num_class_tokens=1, num_prefix_tokens=1, is_transformer=True)
REGISTERS = TokenLayout(width=5, num_class_tokens=1, num_prefix_tokens=5, is_transformer=True)
DISTILLED = TokenLayout(width=5, num_class_tokens=2, num_prefix_tokens=2, is_transformer=True)
CONVNET = TokenLayout(width=5, num_class_tokens=0, num_prefix_tokens=0, is_transformer=False)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(3, 13, 5, generator=torch.Generator().manual_seed(0))


def reference_gem(values: list[float], p: float = 3.0) -> float:
    mean = sum((1 if value >= 0 else -1) * abs(value) ** p for value in values) / len(values)
    return (1 if mean >= 0 else -1) * abs(mean) ** (1 / p)


def test_pool_tokens_cls_takes_the_class_token(tokens: torch.Tensor) -> None:
    assert torch.equal(pool_tokens(tokens, "cls", VIT), tokens[:, 0])
    assert torch.equal(pool_tokens(tokens, "cls", REGISTERS), tokens[:, 0])


def test_trap_distilled_models_use_the_mean_of_both_class_tokens(tokens: torch.Tensor) -> None:
    expected = (tokens[:, 0] + tokens[:, 1]) / 2
    torch.testing.assert_close(pool_tokens(tokens, "cls", DISTILLED), expected)


@pytest.mark.parametrize("layout", [VIT, REGISTERS, DISTILLED, CONVNET])
def test_pool_tokens_sees_patches_only(tokens: torch.Tensor, layout: TokenLayout) -> None:
    patches = tokens[:, layout.num_prefix_tokens :]
    torch.testing.assert_close(pool_tokens(tokens, "average", layout), patches.mean(dim=1))
    assert torch.equal(pool_tokens(tokens, "max", layout), patches.max(dim=1).values)
    gem = pool_tokens(tokens, "gem", layout)
    for image in range(3):
        for channel in range(5):
            assert gem[image, channel].item() == pytest.approx(
                reference_gem(patches[image, :, channel].tolist()), abs=1e-5
            )


def test_pool_gem_hand_case() -> None:
    assert pool_gem(torch.tensor([[[1.0], [2.0], [0.0]]])).item() == pytest.approx(3 ** (1 / 3))
    assert pool_gem(torch.tensor([[[-1.0], [-2.0], [0.0]]])).item() == pytest.approx(-(3 ** (1 / 3)))


def test_pool_gem_equals_the_usual_formula_for_feature_maps() -> None:
    patches = torch.rand(2, 7, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pool_gem(patches), patches.pow(3).mean(dim=1).pow(1 / 3))


def test_trap_gem_of_signed_tokens_is_finite_and_odd() -> None:
    patches = torch.randn(4, 9, 6, generator=torch.Generator().manual_seed(0))
    for p in (1.0, 2.0, 2.5, 3.0):
        pooled = pool_gem(patches, p)
        assert torch.isfinite(pooled).all()
        torch.testing.assert_close(pool_gem(-patches, p), -pooled)
    torch.testing.assert_close(pool_gem(patches, 1.0), patches.mean(dim=1))


@pytest.mark.parametrize("values", [[0.0, 0.0], [1.0, -1.0], [1e-4, -1e-4], [1e-20, 0.0]])
def test_trap_gem_gradient_is_finite_where_the_mean_vanishes(values: list[float]) -> None:
    patches = torch.tensor(values).reshape(1, -1, 1).requires_grad_()
    pooled = pool_gem(patches)
    pooled.sum().backward()
    assert torch.isfinite(pooled).all()
    assert patches.grad is not None
    assert torch.isfinite(patches.grad).all()


def test_pool_gem_gradcheck() -> None:
    patches = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(pool_gem, (patches,))


@pytest.mark.parametrize("pooling", ["cls", "average", "max", "gem"])
def test_pool_tokens_of_bf16_is_float32(tokens: torch.Tensor, pooling: str) -> None:
    assert pool_tokens(tokens.bfloat16(), pooling, VIT).dtype == torch.float32


def test_check_pooling_names_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"test_resnet has no CLS token; .* average, max, gem"):
        check_pooling("cls", CONVNET, "test_resnet")
    check_pooling("gem", CONVNET, "test_resnet")
    check_pooling("cls", VIT, "test_vit")


def test_trap_gem_of_negatives_differs_from_the_clamp_that_throws_them_away() -> None:
    patches = torch.tensor([[[-3.0], [1.0]]])
    clamped = patches.clamp(min=1e-6).pow(3).mean(dim=1).pow(1 / 3)
    assert pool_gem(patches).item() == pytest.approx(-(13 ** (1 / 3)))
    assert clamped.item() > 0


def test_pool_gem_learnable_exponent_equals_the_fixed_one_and_learns() -> None:
    patches = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    p = torch.tensor([3.0], requires_grad=True)
    pooled = pool_gem(patches, p)
    torch.testing.assert_close(pooled, pool_gem(patches, 3.0))
    pooled.sum().backward()
    assert p.grad is not None
    assert torch.isfinite(p.grad).all()
    assert p.grad.abs().item() > 0


def test_pool_gem_gradcheck_of_the_exponent() -> None:
    patches = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = torch.tensor([2.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda exponent: pool_gem(patches, exponent), (p,))


@pytest.mark.parametrize("p", [-4.0, 0.0, 1.0, 15.0, 80.0])
def test_trap_pool_gem_learnable_exponent_stays_finite_wherever_it_drifts(p: float) -> None:
    patches = torch.tensor([[[0.0, 1e-3, -5.0], [0.0, -1e-3, 20.0]]]).requires_grad_()
    exponent = torch.tensor([p], requires_grad=True)
    pooled = pool_gem(patches, exponent)
    pooled.sum().backward()
    for tensor in (pooled, patches.grad, exponent.grad):
        assert tensor is not None
        assert torch.isfinite(tensor).all()
    kept = min(max(p, 1.0), 15.0)
    torch.testing.assert_close(pooled, pool_gem(patches, kept))


def reference_rmac(feature_map: list[list[list[float]]], num_scales: int = 3) -> list[float]:
    """R-MAC of one square feature map ``[row][column][channel]``, by plain loops."""
    side, width = len(feature_map), len(feature_map[0][0])
    total = [0.0] * width
    for scale in range(1, num_scales + 1):
        extent = max(1, math.floor(2 * side / (scale + 1)))
        step = (side - extent) / (scale - 1) if scale > 1 else 0.0
        for top in range(scale):
            for left in range(scale):
                rows = range(math.floor(top * step), math.floor(top * step) + extent)
                columns = range(math.floor(left * step), math.floor(left * step) + extent)
                region = [max(feature_map[y][x][channel] for y in rows for x in columns) for channel in range(width)]
                norm = math.sqrt(sum(value * value for value in region))
                total = [one + value / max(norm, 1e-6) for one, value in zip(total, region, strict=True)]
    return total


@pytest.mark.parametrize("side", [1, 2, 3, 6, 7, 12])
def test_pool_rmac_agrees_with_plain_loops(side: int) -> None:
    patches = torch.randn(2, side * side, 4, generator=torch.Generator().manual_seed(side)).relu()
    for image, pooled in zip(patches, pool_rmac(patches), strict=True):
        expected = reference_rmac(image.reshape(side, side, 4).tolist())
        torch.testing.assert_close(pooled, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_list_rmac_regions_of_a_map_of_seven() -> None:
    regions = list_rmac_regions(7)
    assert regions[0] == (0, 0, 7)
    assert regions[1:5] == [(0, 0, 4), (0, 3, 4), (3, 0, 4), (3, 3, 4)]
    assert regions[5:] == [(top, left, 3) for top in (0, 2, 4) for left in (0, 2, 4)]
    for side in range(1, 30):  # every region lies inside the map
        assert all(
            min(top, left) >= 0 and max(top, left) + extent <= side for top, left, extent in list_rmac_regions(side)
        )


def test_pool_rmac_of_a_dead_map_is_zero_with_a_finite_gradient() -> None:
    patches = torch.zeros(1, 9, 3).requires_grad_()
    pooled = pool_rmac(patches)
    pooled.sum().backward()
    assert torch.equal(pooled, torch.zeros(1, 3))
    assert patches.grad is not None
    assert torch.isfinite(patches.grad).all()


def test_check_pooling_keeps_rmac_for_convnets() -> None:
    check_pooling("rmac", CONVNET, "test_resnet")
    with pytest.raises(ConfigError, match=r"test_vit has no feature map.* choose .* from: cls, average, max, gem\."):
        check_pooling("rmac", VIT, "test_vit")
