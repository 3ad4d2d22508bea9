from __future__ import annotations

import pytest
import torch

from vitrieve.errors import ConfigError
from vitrieve.model.backbone import TokenLayout
from vitrieve.model.pooling import check_pooling, pool_gem, pool_tokens

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
