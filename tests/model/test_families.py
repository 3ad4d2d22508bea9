"""Every family of timm's models, tiny and with random weights, against timm's own pooled output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import timm
import torch
from torch import nn

from vitrieve.config import ModelConfig
from vitrieve.data.preprocess import build_preprocessing
from vitrieve.errors import ConfigError
from vitrieve.model.backbone import describe_tokens
from vitrieve.model.encoder import ImageEncoder, build_encoder, fingerprint_encoder, read_encoder, save_encoder
from vitrieve.model.export import MIN_COSINE, export_onnx
from vitrieve.model.spec import EncoderSpec

VIT: dict[str, Any] = {"img_size": 64, "depth": 1, "embed_dim": 48, "num_heads": 3}
FAMILIES = [
    # A pool of their own: attention, a norm behind the mean, or layers behind it.
    ("vit_base_patch16_siglip_224", VIT, "native"),
    ("vit_base_patch16_224_miil", VIT, "cls"),
    ("beit_base_patch16_224", VIT, "native"),
    ("beitv2_base_patch16_224", VIT, "native"),
    ("eva02_tiny_patch14_224", {**VIT, "img_size": 56}, "native"),
    ("vit_medium_patch16_reg1_gap_256", VIT, "native"),
    ("vit_mediumd_patch16_rope_reg1_gap_256", VIT, "native"),
    ("vit_relpos_small_patch16_224", VIT, "native"),
    ("vit_pe_core_tiny_patch16_384", VIT, "native"),
    ("test_convnext", {}, "native"),
    ("test_mambaout", {}, "native"),
    ("mobilenetv4_conv_small_035", {}, "native"),
    ("mobilenetv3_small_050", {}, "native"),
    ("ghostnet_050", {}, "native"),
    ("tiny_vit_5m_224", {"embed_dims": (16, 32, 48, 64), "num_heads": (1, 1, 1, 2)}, "native"),
    ("hiera_tiny_224", {"img_size": 64, "embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1)}, "native"),
    ("davit_tiny", {"embed_dims": (16, 32, 48, 64), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}, "native"),
    ("edgenext_xx_small", {}, "native"),
    ("test_nfnet", {}, "average"),
    # Right without it: their vectors and fingerprints are those of before.
    ("pit_ti_224", {"img_size": 64}, "cls"),
    ("pit_ti_distilled_224", {"img_size": 64}, "cls"),
    ("deit_tiny_patch16_224", VIT, "cls"),
    ("deit_tiny_distilled_patch16_224", VIT, "cls"),
    ("vit_small_patch14_dinov2", {**VIT, "img_size": 56}, "cls"),
    ("vit_small_patch14_reg4_dinov2", {**VIT, "img_size": 56}, "cls"),
    ("eva02_base_patch16_clip_224", VIT, "cls"),
    ("vit_base_patch16_siglip_gap_224", VIT, "average"),
    ("cait_xxs24_224", {**VIT, "depth": 2}, "cls"),
    ("xcit_nano_12_p16_224", VIT, "cls"),
    (
        "swin_tiny_patch4_window7_224",
        {"img_size": 64, "window_size": 2, "depths": (1, 1), "num_heads": (1, 1), "embed_dim": 16},
        "average",
    ),
    ("test_resnet", {}, "average"),
    ("test_efficientnet", {}, "average"),
    ("regnetx_002", {}, "average"),
]
IDS = [name for name, _, _ in FAMILIES]


def build(name: str, options: dict[str, Any], pooling: str | None = None) -> tuple[ImageEncoder, nn.Module]:
    """Build an encoder and the whole model of timm, of the same weights: none is what it was initialised with."""
    torch.manual_seed(0)
    whole = timm.create_model(name, **options).eval()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_((0.3 if parameter.ndim == 1 else 0.05) * torch.randn_like(parameter))
    backbone = timm.create_model(name, num_classes=0, **options)
    backbone.load_state_dict({key: value for key, value in whole.state_dict().items() if key in backbone.state_dict()})
    size = options.get("img_size", 64)
    layout = describe_tokens(backbone, size, name)
    chosen: Any = pooling or layout.own_pooling
    spec = EncoderSpec(
        backbone=name,
        architecture=name,
        pooling=chosen,
        preprocessing=build_preprocessing(size),
        embedding_dim=layout.native_width if chosen == "native" else layout.width,
    )
    return ImageEncoder(backbone, spec).eval(), whole


def draw_pixels(encoder: ImageEncoder, num_images: int = 2) -> torch.Tensor:
    size = encoder.spec.preprocessing.image_size
    return torch.randn(num_images, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "options", "pooling"), FAMILIES, ids=IDS)
def test_an_encoder_pools_as_timm_does(name: str, options: dict[str, Any], pooling: str) -> None:
    encoder, whole = build(name, options)
    pixels = draw_pixels(encoder)
    with torch.no_grad():
        expected = whole.forward_head(whole.forward_features(pixels), pre_logits=True)
        pooled, embedding = encoder.pool(pixels), encoder(pixels)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-4)
    assert encoder.spec.pooling == pooling
    assert embedding.shape == (2, encoder.spec.embedding_dim)


def test_dinov3_is_pooled_by_its_class_token_as_its_authors_do() -> None:
    encoder, whole = build("vit_small_patch16_dinov3", VIT)
    pixels = draw_pixels(encoder)
    with torch.no_grad():
        torch.testing.assert_close(encoder.pool(pixels), whole.forward_features(pixels)[:, 0])
    native, whole = build("vit_small_patch16_dinov3", VIT, pooling="native")
    with torch.no_grad():
        expected = whole.forward_head(whole.forward_features(pixels), pre_logits=True)
        torch.testing.assert_close(native.pool(pixels), expected)


@pytest.mark.parametrize(("name", "options", "pooling"), FAMILIES, ids=IDS)
def test_patch_tokens_are_those_of_patches_or_refused(name: str, options: dict[str, Any], pooling: str) -> None:
    encoder, _ = build(name, options)
    pixels = draw_pixels(encoder)
    if name.startswith("pit"):
        with pytest.raises(ConfigError, match="no tokens of patches"):
            encoder.patch_tokens(pixels)
        with pytest.raises(ConfigError, match=r"has no tokens of patches; choose --model\.pooling from: cls, native"):
            build(name, options, pooling="average")
        return
    with torch.no_grad():
        tokens, features = encoder.patch_tokens(pixels), encoder.backbone.forward_features(pixels)
    side = round(tokens.shape[1] ** 0.5)
    assert tokens.shape == (2, side * side, encoder.layout.width)
    if features.ndim == 3:
        assert torch.equal(tokens, features[:, features.shape[1] - side * side :])


EXPORTED = {
    "vit_base_patch16_siglip_224",
    "eva02_tiny_patch14_224",
    "vit_relpos_small_patch16_224",
    "test_convnext",
    "test_mambaout",
    "mobilenetv4_conv_small_035",
    "hiera_tiny_224",
    "pit_ti_224",
}


@pytest.mark.parametrize(("name", "options"), [family[:2] for family in FAMILIES if family[0] in EXPORTED])
def test_native_pooling_is_exported(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    encoder, _ = build(name, options, pooling="native")
    assert export_onnx(encoder, tmp_path / "encoder.onnx") >= MIN_COSINE
    session = onnxruntime.InferenceSession(str(tmp_path / "encoder.onnx"), providers=["CPUExecutionProvider"])
    pixels = draw_pixels(encoder, num_images=3)
    (found,) = session.run(["embedding"], {"pixels": pixels.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), encoder(pixels), rtol=0, atol=1e-4)
    assert [output.name for output in session.get_outputs()][1:] == ([] if "pit" in name else ["patch_tokens"])


def test_native_pooling_is_float32_under_autocast_and_learns() -> None:
    encoder, _ = build("vit_base_patch16_siglip_224", VIT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = encoder(draw_pixels(encoder))
    assert embedding.dtype == torch.float32
    embedding[0, 0].backward()
    assert all(parameter.grad is not None for parameter in encoder.backbone.attn_pool.parameters())


def test_native_pooling_is_saved_and_part_of_the_fingerprint(tmp_path: Path) -> None:
    config = ModelConfig(backbone="test_convnext", image_size=64, drop_path_rate=0.0)
    encoder = build_encoder(config, is_pretrained=False, seed=0).eval()
    assert encoder.spec.pooling == "native"
    fingerprint = save_encoder(encoder, tmp_path)
    again = read_encoder(tmp_path)
    assert (again.spec.pooling, fingerprint_encoder(again)) == ("native", fingerprint)
    pixels = draw_pixels(encoder)
    torch.testing.assert_close(again(pixels), encoder(pixels), rtol=0, atol=0)
    average = ModelConfig(backbone="test_convnext", image_size=64, pooling="average", drop_path_rate=0.0)
    assert fingerprint_encoder(build_encoder(average, is_pretrained=False, seed=0)) != fingerprint


def test_a_head_fits_the_width_of_the_pool() -> None:
    config = ModelConfig(backbone="mobilenetv4_conv_small_035", image_size=64, head_dim=5)
    encoder = build_encoder(config, is_pretrained=False, seed=0).eval()
    assert encoder.layout.native_width != encoder.layout.width
    assert encoder(draw_pixels(encoder)).shape == (2, 5)
