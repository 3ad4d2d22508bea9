"""The last block, of which training computes only what is pooled: embeddings and gradients are those of the whole."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import Block

from vitrieve.config import Config, ModelConfig, PromptConfig, TrainConfig
from vitrieve.model.blocks import ClassTokenBlock, keep_class_tokens, pooled_only
from vitrieve.model.encoder import ImageEncoder, build_encoder
from vitrieve.training.compute import MemoryPlan, encode_batch, prepare_encoder
from vitrieve.training.draws import StepDraws, place_draws

NAMES = [
    "test_vit",
    "vit_tiny_patch16_224",
    "vit_small_patch14_reg4_dinov2",  # layer scale, and registers behind the class token
    "deit_tiny_distilled_patch16_224",  # two class tokens
]


def build(name: str, **given: object) -> ImageEncoder:
    torch.manual_seed(0)
    size = 28 if "patch14" in name else 32
    model = ModelConfig(backbone=name, image_size=size, pooling="cls", drop_path_rate=0.3, **given)  # type: ignore[arg-type]
    encoder = build_encoder(model, is_pretrained=False)
    with torch.no_grad():  # layer scale begins near zero, and would hide the blocks
        for key, parameter in encoder.named_parameters():
            if key.endswith(".gamma"):
                parameter.uniform_(0.5, 1.5)
    place_draws(encoder)
    return encoder


def compute_gradients(encoder: ImageEncoder, precision: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the embeddings of a batch in two pieces, and all gradients of a loss over its pairs."""
    config = Config(train=TrainConfig(precision=precision))  # type: ignore[arg-type]
    size = encoder.spec.preprocessing.image_size
    pixels = torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(1))
    draws = StepDraws(0, 3, len(pixels), np.arange(len(pixels)))
    embeddings, backward = encode_batch(encoder, pixels, config, MemoryPlan(4), draws)
    backward((embeddings @ embeddings.T).triu(1).square().sum())
    gradients = [parameter.grad for parameter in encoder.parameters()]
    assert all(gradient is not None for gradient in gradients)
    return embeddings.detach(), torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


@pytest.mark.parametrize(
    ("name", "is_fused"), [*((name, True) for name in NAMES), *((name, False) for name in NAMES[:1])]
)
def test_embeddings_and_gradients_are_those_of_the_whole_block(name: str, is_fused: bool) -> None:
    found = []
    for is_whole in (True, False):
        encoder = build(name)
        if not is_whole:
            keep_class_tokens(encoder)
            assert isinstance(encoder.backbone.blocks[-1], ClassTokenBlock)  # type: ignore[index, union-attr]
        for module in encoder.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = is_fused
        found.append(compute_gradients(encoder, "fp32"))
    (whole, whole_gradients), (kept, gradients) = found
    assert whole_gradients.abs().max() > 1e-3
    torch.testing.assert_close(kept, whole, rtol=1e-5, atol=1e-6)
    errors = gradients - whole_gradients
    assert errors.abs().max() < 1e-5 * whole_gradients.abs().max()
    assert errors.norm() < 1e-5 * whole_gradients.norm()


@pytest.mark.parametrize("name", NAMES[:2])
def test_in_bf16_both_are_as_near_to_float32(name: str) -> None:
    exact = compute_gradients(build(name), "fp32")[1]
    errors = []
    for is_whole in (True, False):
        encoder = build(name)
        if not is_whole:
            keep_class_tokens(encoder)
        gradients = compute_gradients(encoder, "bf16")[1]
        errors.append(float((gradients - exact).norm() / exact.norm()))
    assert 0 < errors[1] < 1.2 * errors[0] < 0.2


def test_whoever_reads_tokens_gets_all_of_them_as_before() -> None:
    encoder = build("vit_tiny_patch16_224").eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = encoder.forward_both(pixels)
        keep_class_tokens(encoder)
        with pooled_only(encoder):
            torch.testing.assert_close(encoder(pixels), before[0], rtol=1e-5, atol=1e-6)
        for one, other in zip(before, copy.deepcopy(encoder).forward_both(pixels), strict=True):
            assert torch.equal(one, other)


def test_the_last_block_does_less_in_training() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for is_whole in (True, False):
        encoder = build("vit_tiny_patch16_224").train()
        if not is_whole:
            keep_class_tokens(encoder)
        with FlopCounterMode(display=False) as counter, pooled_only(encoder):
            encoder(torch.randn(1, 3, 32, 32))
        counts.append(counter.get_total_flops())
    # Five tokens: of the projection and the hidden layers, nine twelfths of one of twelve blocks, a fifth is left.
    assert counts[1] / counts[0] == pytest.approx(1 - 0.8 * 9 / 12 / 12, abs=0.005)


def test_what_needs_all_tokens_keeps_them() -> None:
    average = build_encoder(ModelConfig(backbone="test_vit", image_size=32, pooling="average"), is_pretrained=False)
    prompted = build("test_vit", prompts=PromptConfig(num_tokens=2))
    convolutional = build_encoder(
        ModelConfig(backbone="test_resnet", image_size=64, pooling="gem"), is_pretrained=False
    )
    masked = build("test_vit").train()
    keep_class_tokens(masked)
    for encoder in (average, prompted, convolutional):
        keep_class_tokens(encoder)
        assert not any(isinstance(module, ClassTokenBlock) for module in encoder.modules())
    block = masked.backbone.blocks[-1]  # type: ignore[index, union-attr]
    tokens = torch.randn(1, 5, 64)
    with pooled_only(masked):
        assert block(tokens, attn_mask=torch.ones(5, 5, dtype=torch.bool)).shape == tokens.shape
        assert block(tokens).shape == (1, 1, 64)


def test_prepare_encoder_keeps_class_tokens_alone() -> None:
    encoder = build("test_vit")
    names = list(encoder.state_dict())
    prepare_encoder(encoder, Config(train=TrainConfig(device="cpu")))
    blocks = [type(module) for module in encoder.modules() if isinstance(module, Block)]
    assert blocks == [Block] * (len(blocks) - 1) + [ClassTokenBlock]
    assert list(encoder.state_dict()) == names
