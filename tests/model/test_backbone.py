from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from vitrieve.errors import ConfigError, WeightsError
from vitrieve.model.backbone import (
    build_backbone,
    compute_features,
    describe_tokens,
    features_to_tokens,
    freeze_lower_blocks,
    use_explicit_attention,
)
from vitrieve.model.checkpoint import load_backbone_states


def build(name: str, image_size: int, **options: float) -> torch.nn.Module:
    return build_backbone(name, image_size=image_size, is_pretrained=False, **options)


def compute_tokens(backbone: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return features_to_tokens(backbone, compute_features(backbone, pixels))


def save_timm_states(path: Path, name: str = "test_vit", **options: int) -> dict[str, Tensor]:
    """Save weights as timm has them on the hub: with the classifier, at timm's own size."""
    torch.manual_seed(7)
    states = timm.create_model(name, **options).state_dict()
    states = {key: torch.randn_like(value) if value.is_floating_point() else value for key, value in states.items()}
    save_file(states, path)
    return states


@pytest.mark.parametrize(
    ("name", "num_tokens", "num_class_tokens", "num_prefix_tokens", "is_transformer"),
    [
        ("test_vit", 1 + 16, 1, 1, True),
        ("test_vit2", 1 + 16, 0, 1, True),  # one register, no class token
        ("deit_tiny_distilled_patch16_224", 2 + 16, 2, 2, True),
        ("test_resnet", 4, 0, 0, False),
        ("test_efficientnet", 4, 0, 0, False),
    ],
)
def test_features_to_tokens_has_the_described_layout(
    name: str, num_tokens: int, num_class_tokens: int, num_prefix_tokens: int, is_transformer: bool
) -> None:
    backbone = build(name, 64).eval()
    layout = describe_tokens(backbone, 64)
    with torch.inference_mode():
        tokens = compute_tokens(backbone, torch.zeros(2, 3, 64, 64))
    assert tokens.shape == (2, num_tokens, layout.width)
    assert layout.num_class_tokens == num_class_tokens
    assert layout.num_prefix_tokens == num_prefix_tokens
    assert layout.is_transformer is is_transformer


def test_features_to_tokens_flattens_a_feature_map_row_by_row() -> None:
    backbone = build("test_resnet", 96).eval()
    pixels = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        feature_map = backbone.forward_features(pixels)  # (1, D, 3, 3)
        tokens = compute_tokens(backbone, pixels)
    assert torch.equal(tokens[0, 5], feature_map[0, :, 1, 2])


def test_trap_image_size_changes_tensor_and_positions(tmp_path: Path) -> None:
    states = save_timm_states(tmp_path / "weights.safetensors")
    backbones = {
        size: build_backbone("test_vit", image_size=size, weights=tmp_path / "weights.safetensors") for size in (64, 96)
    }
    for size, backbone in backbones.items():
        num_tokens = 1 + (size // 16) ** 2
        assert backbone.pos_embed.shape[1] == num_tokens
        assert compute_tokens(backbone, torch.zeros(1, 3, size, size)).shape[1] == num_tokens
    assert states["pos_embed"].shape[1] == 1 + 10**2
    assert not torch.equal(backbones[64].pos_embed[:, 1:5], backbones[96].pos_embed[:, 1:5])


@pytest.mark.parametrize("image_size", [32, 96, 160, 224])
def test_build_backbone_resamples_positions_as_timm(tmp_path: Path, image_size: int) -> None:
    path = tmp_path / "weights.safetensors"
    save_timm_states(path)
    ours = build_backbone("test_vit", image_size=image_size, weights=path)
    theirs = timm.create_model(
        "test_vit", pretrained=True, pretrained_cfg_overlay={"file": str(path)}, img_size=image_size, num_classes=0
    )
    assert_same_but_for_the_last_bits_of_positions(ours, theirs)


def assert_same_but_for_the_last_bits_of_positions(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=2e-5 if name == "pos_embed" else 0)


@pytest.mark.data
def test_build_backbone_dinov2_at_112_px_is_timms(dinov2_weights: Path) -> None:
    ours = build_backbone("dinov2-vits14", image_size=112)
    theirs = timm.create_model(
        "vit_small_patch14_dinov2", pretrained=True, pretrained_cfg_overlay={"file": str(dinov2_weights)}, img_size=112
    )
    assert ours.pos_embed.shape == (1, 1 + 8 * 8, 384)
    assert_same_but_for_the_last_bits_of_positions(ours, theirs)


@pytest.mark.parametrize(
    ("name", "image_size", "message"),
    [
        ("test_vit", 100, r"100 is not a multiple of the patch of test_vit \(16 px\); the nearest valid: 96 or 112"),
        ("test_vit", 7, r"the nearest valid: 16\."),
        ("test_vit", 0, "is not a number of pixels"),
        ("test_resnet", -32, "is not a number of pixels"),
        ("vit_small_patch14_dinov2", 224 + 1, r"\(14 px\); the nearest valid: 224 or 238"),
        ("test_resnet", 16, r"too small for test_resnet; use 32 or more"),
    ],
)
def test_build_backbone_names_the_nearest_image_sizes(name: str, image_size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, image_size)


def test_build_backbone_applies_drop_path_rate() -> None:
    backbone = build("test_vit", 32, drop_path_rate=0.3)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in backbone.blocks]
    assert rates[0] == 0.0
    assert rates[-1] == pytest.approx(0.3)
    assert rates == sorted(rates)


def test_build_backbone_without_stochastic_depth_says_so() -> None:
    with pytest.raises(ConfigError, match=r"--model\.drop-path-rate 0"):
        build("vgg11", 32, drop_path_rate=0.1)


@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled_patch16_224"])
def test_build_backbone_drops_patches_in_training_only_and_never_a_prefix_token(name: str) -> None:
    backbone = build(name, 64, patch_drop_rate=0.5)
    num_prefix_tokens = describe_tokens(backbone, 64).num_prefix_tokens
    tokens = torch.arange(num_prefix_tokens + 16).repeat(3, 1)[..., None].float()  # (B, N, 1): each its place
    kept = backbone.patch_drop(tokens)[..., 0]
    assert kept.shape == (3, num_prefix_tokens + 8)
    assert torch.equal(kept[:, :num_prefix_tokens], tokens[:, :num_prefix_tokens, 0])
    assert (kept[:, num_prefix_tokens:] >= num_prefix_tokens).all()
    assert all(len(set(row)) == len(row) for row in kept.tolist())
    assert torch.equal(backbone.eval().patch_drop(tokens), tokens)


def test_build_backbone_without_patches_says_so() -> None:
    with pytest.raises(ConfigError, match=r"--model\.patch-drop-rate 0"):
        build("test_resnet", 32, patch_drop_rate=0.5)


def test_build_backbone_with_weights_leaves_the_random_state_alone(tmp_path: Path) -> None:
    save_timm_states(tmp_path / "weights.safetensors")
    state = torch.get_rng_state()
    build_backbone("test_vit", image_size=32, weights=tmp_path / "weights.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    build("test_vit", 32)
    assert not torch.equal(torch.get_rng_state(), state)


def test_build_backbone_lists_mismatching_keys_briefly(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    states = save_timm_states(path)
    del states["norm.bias"]
    states["norm.weight"] = torch.zeros(3)
    states |= {f"surplus.{number}": torch.zeros(1) for number in range(9)}
    save_file(states, path)
    with pytest.raises(WeightsError) as caught:
        build_backbone("test_vit", image_size=160, weights=path)
    message = str(caught.value)
    assert "1 missing (norm.bias)" in message
    assert "9 unexpected (surplus.0, surplus.1, surplus.2, surplus.3, and 5 more)" in message
    assert "norm.weight (3,) for (64,)" in message


def test_build_backbone_refuses_weights_of_another_model(tmp_path: Path) -> None:
    save_timm_states(tmp_path / "weights.safetensors", "test_resnet")
    with pytest.raises(WeightsError, match="does not fit"):
        build_backbone("test_vit", image_size=32, weights=tmp_path / "weights.safetensors")


def test_trap_a_pickle_is_not_opened_under_another_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"x": torch.zeros(1)}, path)
    disguised = path.rename(tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="cannot be read"):
        build_backbone("test_vit", image_size=32, weights=disguised)
    with pytest.raises(WeightsError, match=r"neither a \.safetensors file nor a checkpoint of torch"):
        build_backbone("test_vit", image_size=32, weights=disguised.rename(tmp_path / "weights.pkl"))


def test_load_backbone_states_accepts_old_batch_norm_and_encoder_weights() -> None:
    source, target = build("test_resnet", 32), build("test_resnet", 32)
    states = {f"backbone.{name}": value for name, value in source.state_dict().items()}
    states["reduction.mean"] = torch.zeros(2)
    states = {name: value for name, value in states.items() if not name.endswith("num_batches_tracked")}
    load_backbone_states(target, states, "states")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_freeze_lower_blocks_freezes_what_lies_below() -> None:
    backbone = build("test_vit", 32)
    freeze_lower_blocks(backbone, 2)
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"}.isdisjoint(trained)
    assert not any(name.startswith(("blocks.0.", "blocks.1.")) for name in trained)
    assert {"blocks.2.norm1.weight", "norm.weight"} <= trained


def test_freeze_lower_blocks_zero_freezes_nothing() -> None:
    backbone = build("test_vit", 32)
    freeze_lower_blocks(backbone, 0)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize(("name", "num_blocks"), [("test_vit", 7), ("test_vit", -1), ("test_resnet", 1)])
def test_freeze_lower_blocks_refuses_what_is_not_there(name: str, num_blocks: int) -> None:
    with pytest.raises(ConfigError, match="num_frozen_blocks"):
        freeze_lower_blocks(build(name, 32), num_blocks)


def test_use_explicit_attention_changes_rounding_only() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("vit_tiny_patch16_224", image_size=32, is_pretrained=False).eval()
    pixels = torch.randn(2, 3, 32, 32)
    fused = backbone(pixels)
    fused.sum().backward()
    fused_gradients = [parameter.grad.clone() for parameter in backbone.parameters() if parameter.grad is not None]
    backbone.zero_grad()
    use_explicit_attention(backbone)
    explicit = backbone(pixels)
    explicit.sum().backward()
    gradients = [parameter.grad for parameter in backbone.parameters() if parameter.grad is not None]
    assert not any(getattr(module, "fused_attn", False) for module in backbone.modules())
    torch.testing.assert_close(explicit, fused, rtol=1e-4, atol=1e-5)
    for gradient, fused_gradient in zip(gradients, fused_gradients, strict=True):
        torch.testing.assert_close(gradient, fused_gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_build_backbone_refuses_weights_that_are_not_finite_and_names_the_tensor(tmp_path: Path, value: float) -> None:
    path = tmp_path / "weights.safetensors"
    states = save_timm_states(path)
    states["blocks.0.norm1.weight"][3] = value
    save_file(states, path)
    with pytest.raises(WeightsError, match=r"weights\.safetensors .*'blocks\.0\.norm1\.weight' holds NaN or infinity"):
        build_backbone("test_vit", image_size=32, weights=path)
