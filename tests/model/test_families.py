"""Every family of timm's models, tiny and with random weights, against timm's own pooled output."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch import nn

from vitrieve.config import Config, ModelConfig, TrainConfig
from vitrieve.data.preprocess import build_preprocessing
from vitrieve.errors import ConfigError
from vitrieve.model.artifact import EncoderSpec
from vitrieve.model.backbone import describe_tokens
from vitrieve.model.encoder import ImageEncoder, build_encoder, fingerprint_encoder, read_encoder, save_encoder
from vitrieve.model.export import MIN_COSINE, export_folder, export_onnx
from vitrieve.runtime.encoder import load_encoder
from vitrieve.training.compute import allow_low_resolution

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
    """Build an encoder and the whole model of timm, of the same weights: none is what it was initialized with."""
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


@functools.cache
def build_family(name: str) -> tuple[ImageEncoder, nn.Module]:
    """Build a family once for the tests that change nothing."""
    return build(name, next(options for family, options, _ in FAMILIES if family == name))


def draw_pixels(encoder: ImageEncoder, num_images: int = 2) -> torch.Tensor:
    size = encoder.spec.preprocessing.image_size
    return torch.randn(num_images, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "pooling"), [(name, pooling) for name, _, pooling in FAMILIES], ids=IDS)
def test_an_encoder_pools_as_timm_does(name: str, pooling: str) -> None:
    encoder, whole = build_family(name)
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


@pytest.mark.parametrize(("name", "options"), [family[:2] for family in FAMILIES], ids=IDS)
def test_patch_tokens_are_those_of_patches_or_refused(name: str, options: dict[str, Any]) -> None:
    encoder, _ = build_family(name)
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


# Settings that only some families support: refused when the encoder is built, before a run begins.

SWIN = "swin_tiny_patch4_window7_224"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "xcit_nano_12_p16_224", "patch_drop_rate": 0.3}, "cannot leave patches out.*ViT, DeiT"),
        ({"backbone": "test_resnet", "patch_drop_rate": 0.3}, "cannot leave patches out"),
        ({"backbone": "vgg11", "drop_path_rate": 0.1}, r"has no stochastic depth; use --model\.drop-path-rate 0"),
        ({"backbone": "pit_ti_224", "num_frozen_blocks": 1}, "not a vision transformer with blocks"),
        ({"backbone": "hiera_tiny_224", "num_frozen_blocks": 1}, "not a vision transformer with blocks"),
        ({"backbone": "test_vit", "image_size": 100}, "nearest valid: 96 or 112"),
        ({"backbone": "resnetaa34d", "image_size": 100}, "cannot be used with pictures of 100 px"),
        ({"backbone": "hrnet_w18_small", "image_size": 100}, r"made for 224 px \(--image-size 224\)"),
        ({"backbone": "pit_ti_224", "pooling": "gem"}, "has no tokens of patches"),
        ({"backbone": "coat_tiny", "pooling": "average"}, "has no tokens of patches"),
        ({"backbone": "test_vit", "pooling": "rmac"}, "has no feature map"),
    ],
)
def test_settings_that_a_family_lacks_are_refused(fields: dict[str, Any], message: str) -> None:
    config = ModelConfig(**{"image_size": 64, "drop_path_rate": 0.0, **fields})
    with pytest.raises(ConfigError, match=message):
        build_encoder(config, is_pretrained=False, seed=0)


@pytest.mark.parametrize("name", ["cait_xxs24_224", "xcit_nano_12_p16_224"])
def test_frozen_blocks_leave_the_blocks_of_the_class_token_free(name: str) -> None:
    config = ModelConfig(backbone=name, image_size=32, drop_path_rate=0.0, num_frozen_blocks=1)
    encoder = build_encoder(config, is_pretrained=False, seed=0)
    trained = {key for key, parameter in encoder.backbone.named_parameters() if parameter.requires_grad}
    assert {"cls_token", "norm.weight", "blocks.1.norm1.weight"} <= trained
    assert any(key.startswith(("blocks_token_only.", "cls_attn_blocks.")) for key in trained)
    assert not any(key.startswith(("blocks.0.", "patch_embed.", "pos_embed")) for key in trained)


def test_several_scales_need_a_family_that_takes_several_sizes() -> None:
    encoder, _ = build(SWIN, dict(next(options for name, options, _ in FAMILIES if name == SWIN)))
    spec = dataclasses.replace(encoder.spec, scales=(1.0, 0.5))
    with pytest.raises(ConfigError, match=r"takes no pictures of 32 px .* several scales are for convnets"):
        ImageEncoder(encoder.backbone, spec)


LOW_RESOLUTION = {
    "deit_tiny_patch16_224": True,
    "deit_tiny_distilled_patch16_224": True,
    "vit_small_patch16_dinov3": True,
    "test_resnet": True,
    "test_convnext": True,
    "eva02_tiny_patch14_224": False,
    "beit_base_patch16_224": False,
    "vit_relpos_small_patch16_224": False,
    "cait_xxs24_224": False,
    SWIN: False,
}


@pytest.mark.parametrize(("name", "is_taken"), LOW_RESOLUTION.items())
def test_low_resolution_is_taken_or_refused_before_the_run(name: str, is_taken: bool) -> None:
    options = next((options for family, options, _ in FAMILIES if family == name), VIT)
    encoder, _ = build(name, options)
    size = encoder.spec.preprocessing.image_size
    config = Config(model=ModelConfig(image_size=size), train=TrainConfig(low_resolution_size=28 if size == 56 else 32))
    if not is_taken:
        with pytest.raises(ConfigError, match=f"{name} takes pictures of one size only; .* ViT, DeiT, DINOv2, DINOv3"):
            allow_low_resolution(encoder, config)
        return
    allow_low_resolution(encoder, config)
    embedding = encoder.train()(torch.randn(2, 3, 32, 32))
    embedding[0, 0].backward()
    assert embedding.isfinite().all()


MORE_FAMILIES = {
    "test_byobnet": {"drop_path_rate", "pooling", "low_resolution_size"},
    "test_coatnet": {"drop_path_rate", "pooling"},
    "mobilevit_xxs": {"drop_path_rate", "pooling", "low_resolution_size"},
    "cspnext_tiny": {"drop_path_rate", "pooling", "low_resolution_size"},
    "fasternet_t0": {"drop_path_rate", "pooling", "low_resolution_size"},
    "hgnetv2_b0": {"drop_path_rate", "pooling", "low_resolution_size"},
    "efficientvit_b0": {"pooling", "low_resolution_size"},
    "efficientvim_m1": {"drop_path_rate", "low_resolution_size"},
    "convit_tiny": {"drop_path_rate", "pooling"},
}
"""Small models of further families, and which of three settings they support."""


@pytest.mark.parametrize("name", MORE_FAMILIES)
def test_each_setting_trains_or_is_refused_before_the_run(name: str) -> None:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    taken = set()
    for option, value in (("drop_path_rate", 0.1), ("pooling", "gem"), ("low_resolution_size", 32)):
        is_model = option != "low_resolution_size"
        model = ModelConfig(
            **{"backbone": name, "image_size": 64, "drop_path_rate": 0.0, **({option: value} if is_model else {})}
        )
        try:
            encoder = build_encoder(model, is_pretrained=False, seed=0)
            if not is_model:
                allow_low_resolution(encoder, Config(model=model, train=TrainConfig(low_resolution_size=32)))
        except ConfigError:
            continue
        size = 64 if is_model else 32
        embedding = encoder.train()(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)))
        embedding[0, 0].backward()
        assert embedding.isfinite().all()
        taken.add(option)
    assert taken == MORE_FAMILIES[name]


@pytest.mark.parametrize("engine", ["onnx", "openvino", "torch"])
def test_an_encoder_without_patches_embeds_and_refuses_to_explain(engine: Any, tmp_path: Path) -> None:
    config = ModelConfig(backbone="pit_ti_224", image_size=64, drop_path_rate=0.0)
    save_encoder(build_encoder(config, is_pretrained=False, seed=0), tmp_path)
    export_folder(tmp_path)
    encoder = load_encoder(tmp_path, engine=engine, num_threads=1)
    pixels = np.zeros((2, 3, 64, 64), np.float32)
    assert encoder.encode_pixels(pixels).shape == (2, encoder.embedding_dim)
    with pytest.raises(ConfigError, match="puts out no tokens of patches"):
        encoder.patch_tokens(pixels)
