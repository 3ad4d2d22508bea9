from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vitrieve.config import ModelConfig, Pooling
from vitrieve.errors import ArtifactError, ConfigError, FingerprintError
from vitrieve.model.artifact import ModelCard
from vitrieve.model.encoder import (
    ImageEncoder,
    add_reduction,
    build_encoder,
    build_frozen_encoder,
    evaluation_mode,
    fingerprint_encoder,
    read_encoder,
    save_encoder,
)
from vitrieve.model.export import MIN_COSINE, export_onnx
from vitrieve.model.reduction import Pca, fit_pca
from vitrieve.model.tensors import hash_file

BuildTiny = Callable[..., ImageEncoder]


def reduce_to(encoder: ImageEncoder, num_components: int) -> ImageEncoder:
    with torch.inference_mode():
        features = encoder.pool(torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(2))).numpy()
    return add_reduction(encoder, fit_pca(features, num_components, fitted_on="grocery train"))


@pytest.mark.parametrize("pooling", ["cls", "average", "max", "gem"])
def test_forward_returns_unit_rows(build_tiny: BuildTiny, pixels: torch.Tensor, pooling: str) -> None:
    encoder = build_tiny(pooling=pooling)
    embedding = encoder(pixels)
    assert embedding.shape == (3, encoder.spec.embedding_dim) == (3, 64)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))
    assert embedding.requires_grad


def test_trap_normalization_is_float32_under_bf16_autocast(build_tiny: BuildTiny, pixels: torch.Tensor) -> None:
    encoder = reduce_to(build_tiny(), 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = encoder(pixels)
        tokens = encoder.patch_tokens(pixels)
    assert embedding.dtype == tokens.dtype == torch.float32
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3), rtol=0, atol=1e-6)


def test_patch_tokens_have_no_prefix(build_tiny: BuildTiny, pixels: torch.Tensor) -> None:
    encoder = build_tiny(pooling="average")
    tokens = encoder.patch_tokens(pixels)
    assert tokens.shape == (3, 4, 64)
    torch.testing.assert_close(torch.nn.functional.normalize(tokens.mean(dim=1), dim=1), encoder(pixels))
    embedding, both = encoder.forward_both(pixels)
    assert torch.equal(both, tokens)
    assert torch.equal(embedding, encoder(pixels))


def test_trap_distilled_encoder_uses_both_tokens_in_training_and_evaluation(build_tiny: BuildTiny) -> None:
    encoder = build_tiny(backbone="deit_tiny_distilled_patch16_224", drop_path_rate=0.0)
    pixels = torch.randn(2, 3, 32, 32)
    tokens = encoder.backbone.forward_features(pixels)
    expected = torch.nn.functional.normalize((tokens[:, 0] + tokens[:, 1]) / 2, dim=1)
    torch.testing.assert_close(encoder(pixels), expected)
    torch.testing.assert_close(encoder.train()(pixels), expected)


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_trap_forward_refuses_another_image_size(build_tiny: BuildTiny, backbone: str) -> None:
    encoder = build_tiny(backbone=backbone, pooling="average", image_size=64)
    encoder(torch.zeros(1, 3, 64, 64))
    with pytest.raises(AssertionError, match="for an encoder of 64 px"):
        encoder(torch.zeros(1, 3, 96, 96))


def test_add_reduction_projects_before_normalizing(build_tiny: BuildTiny, pixels: torch.Tensor) -> None:
    encoder = build_tiny()
    reduced = reduce_to(encoder, 8)
    assert reduced.spec.embedding_dim == 8
    assert reduced.spec.reduction == "grocery train"
    assert reduced.reduction is not None
    projected = (encoder.pool(pixels) - reduced.reduction.mean) @ reduced.reduction.components.T
    torch.testing.assert_close(reduced(pixels), torch.nn.functional.normalize(projected, dim=1))
    with pytest.raises(ConfigError, match="fitted on 64 dimensions; this encoder has 96"):
        add_reduction(
            build_tiny(backbone="test_resnet", pooling="gem"), fit_pca(np.eye(64), 2, fitted_on="something else")
        )


def test_build_encoder_refuses_cls_of_a_convnet() -> None:
    with pytest.raises(ConfigError, match=r"test_resnet has no CLS token; .* average, max, gem"):
        build_encoder(ModelConfig(backbone="test_resnet", image_size=32, pooling="cls"), is_pretrained=False)


def test_build_encoder_freezes_blocks() -> None:
    encoder = build_encoder(ModelConfig(backbone="test_vit", image_size=32, num_frozen_blocks=3), is_pretrained=False)
    assert encoder.training
    assert not encoder.backbone.pos_embed.requires_grad


def test_build_encoder_takes_a_local_file(build_tiny: BuildTiny, pixels: torch.Tensor, tmp_path: Path) -> None:
    source = build_tiny()
    save_file(source.backbone.state_dict(), tmp_path / "mine.safetensors")
    config = ModelConfig(backbone="test_vit", image_size=32, weights=str(tmp_path / "mine.safetensors"))
    encoder = build_encoder(config).eval()
    assert torch.equal(encoder(pixels), source(pixels))
    assert encoder.spec.weights_source == "the file mine.safetensors"
    assert "unknown" in encoder.spec.weights_license


def test_evaluation_mode_restores_every_part(build_tiny: BuildTiny) -> None:
    encoder = build_tiny(backbone="test_resnet", pooling="gem").train()
    encoder.backbone.layer1.eval()
    before = [part.training for part in encoder.modules()]
    with evaluation_mode(encoder):
        assert not any(part.training for part in encoder.modules())
    assert [part.training for part in encoder.modules()] == before


@pytest.mark.parametrize("is_reduced", [False, True])
def test_save_encoder_read_encoder_gives_the_same_embeddings(
    build_tiny: BuildTiny, pixels: torch.Tensor, tmp_path: Path, is_reduced: bool
) -> None:
    encoder = reduce_to(build_tiny(), 8) if is_reduced else build_tiny()
    fingerprint = save_encoder(encoder, tmp_path / "encoder", config={"recipe": "small"})
    again = read_encoder(tmp_path / "encoder")
    assert torch.equal(again(pixels), encoder(pixels))
    assert again.spec == encoder.spec
    assert not again.training
    assert fingerprint == fingerprint_encoder(encoder) == fingerprint_encoder(again)
    manifest = json.loads((tmp_path / "encoder" / "manifest.json").read_text())
    assert manifest["kind"] == "encoder"
    assert manifest["fingerprint"] == fingerprint
    assert manifest["embedding_dim"] == encoder.spec.embedding_dim
    assert manifest["image_size"] == 32
    assert manifest["config"] == {"recipe": "small"}


def test_read_encoder_leaves_the_random_state_alone(build_tiny: BuildTiny, tmp_path: Path) -> None:
    save_encoder(build_tiny(), tmp_path)
    state = torch.get_rng_state()
    read_encoder(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_read_encoder_at_another_image_size(build_tiny: BuildTiny, tmp_path: Path) -> None:
    fingerprint = save_encoder(build_tiny(image_size=64), tmp_path)
    larger = read_encoder(tmp_path, image_size=96)
    assert larger.backbone.pos_embed.shape[1] == 1 + 6 * 6
    assert larger.spec.preprocessing.image_size == 96
    assert larger.spec.preprocessing.resize_size == 109
    assert larger(torch.zeros(1, 3, 96, 96)).shape == (1, 64)
    assert fingerprint_encoder(larger) != fingerprint
    assert fingerprint_encoder(read_encoder(tmp_path, image_size=64)) == fingerprint
    with pytest.raises(ConfigError, match="nearest valid: 80 or 96"):
        read_encoder(tmp_path, image_size=90)


def flip_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", "encoder.json"])
def test_read_encoder_refuses_a_changed_byte_anywhere(build_tiny: BuildTiny, tmp_path: Path, name: str) -> None:
    save_encoder(build_tiny(), tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    for position in np.linspace(0, len(whole) - 1, 40).astype(int):
        flip_byte(path, position)
        with pytest.raises(ArtifactError):  # FingerprintError is one
            read_encoder(tmp_path)
        path.write_bytes(whole)
    read_encoder(tmp_path)


@pytest.mark.parametrize("name", ["head.", "reduction.components", "backbone.norm.weight"])
def test_read_encoder_names_the_tensor_that_is_not_finite(build_tiny: BuildTiny, tmp_path: Path, name: str) -> None:
    encoder = build_tiny(head_norm=True, head_dim=8)
    pca = Pca(
        mean=np.zeros(8, np.float32),
        components=np.eye(8, dtype=np.float32)[:4],
        variances=np.ones(4),
        fitted_on="made",
    )
    encoder = add_reduction(encoder, pca)
    states = encoder.state_dict()
    name = next(one for one in states if one.startswith(name))
    states[name].view(-1)[0] = float("nan")
    save_encoder(encoder, tmp_path)
    with pytest.raises(ArtifactError, match=rf"'{name}' holds NaN or infinity"):
        read_encoder(tmp_path)


def test_read_encoder_refuses_weights_of_another_encoder(build_tiny: BuildTiny, tmp_path: Path) -> None:
    save_encoder(build_tiny(), tmp_path / "a")
    other = build_tiny()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    save_encoder(other, tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").replace(tmp_path / "a" / "model.safetensors")
    with pytest.raises(FingerprintError, match="a file was changed or damaged"):
        read_encoder(tmp_path / "a")


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "encoder.json"])
def test_read_encoder_refuses_an_incomplete_folder(build_tiny: BuildTiny, tmp_path: Path, name: str) -> None:
    save_encoder(build_tiny(), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError):
        read_encoder(tmp_path)


def test_save_encoder_replaces_and_drops_the_old_graph(build_tiny: BuildTiny, tmp_path: Path) -> None:
    save_encoder(build_tiny(), tmp_path)
    (tmp_path / "encoder.onnx").write_bytes(b"of the old weights")
    save_encoder(build_tiny(pooling="gem"), tmp_path)
    assert not (tmp_path / "encoder.onnx").exists()
    assert read_encoder(tmp_path).spec.pooling == "gem"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "encoder.json",
        "manifest.json",
        "model.safetensors",
    ]


def test_save_encoder_writes_the_model_card(build_tiny: BuildTiny, tmp_path: Path) -> None:
    card = ModelCard(
        trained_on="grocery (zero_shot), recipe small, 100 steps, seed 0",
        figures={"frozen": {"Recall@1": 0.825, "MAP@R": 0.152}, "fine-tuned": {"Recall@1": 0.986}},
        measured_on="grocery, protocol zero_shot",
        data_license="MIT",
        notes=("A further note.",),
    )
    fingerprint = save_encoder(build_tiny(), tmp_path, card=card)
    text = (tmp_path / "README.md").read_text()
    assert "| frozen | 82.5 | 15.2 |" in text
    assert "| fine-tuned | 98.6 |  |" in text
    for part in (fingerprint, card.trained_on, "MIT", "A further note.", "load_encoder", "License:"):
        assert part in text
    assert read_encoder(tmp_path).spec.trained_on == card.trained_on


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({}, True),
        ({"drop_path_rate": 0.0}, True),
        ({"pooling": "gem"}, False),
        ({"image_size": 48}, False),
    ],
)
def test_fingerprint_encoder_depends_on_what_changes_embeddings(
    build_tiny: BuildTiny, change: dict[str, object], is_same: bool
) -> None:
    assert (fingerprint_encoder(build_tiny(**change)) == fingerprint_encoder(build_tiny())) is is_same


def test_fingerprint_encoder_depends_on_every_weight(build_tiny: BuildTiny) -> None:
    encoder = build_tiny()
    fingerprints = {fingerprint_encoder(encoder)}
    for parameter in list(encoder.parameters())[::7]:
        with torch.no_grad():
            parameter.view(-1)[-1] += 1
        fingerprints.add(fingerprint_encoder(encoder))
    assert len(fingerprints) == 1 + len(list(encoder.parameters())[::7])


@pytest.mark.data
@pytest.mark.usefixtures("dinov2_weights")
def test_build_frozen_encoder_dinov2_says_where_it_comes_from(tmp_path: Path) -> None:
    encoder = build_frozen_encoder("dinov2-vits14", image_size=56)
    assert encoder.spec.pooling == "cls"
    assert encoder.spec.preprocessing.resize_size == 64
    save_encoder(encoder, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "may have been fine-tuned" in text
    assert "Apache-2.0 (DINOv2)" in text


def test_square_framing_is_in_the_fingerprint_and_survives_saving(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = build_encoder(ModelConfig(backbone="test_vit", image_size=32), is_pretrained=False)
    torch.manual_seed(0)
    square = build_encoder(ModelConfig(backbone="test_vit", image_size=32, framing="square"), is_pretrained=False)
    assert fingerprint_encoder(square) != fingerprint_encoder(plain)
    save_encoder(square, tmp_path)
    assert read_encoder(tmp_path).spec.preprocessing == square.spec.preprocessing
    larger = read_encoder(tmp_path, image_size=64).spec.preprocessing
    assert (larger.framing, larger.resize_size) == ("square", 64)
    assert "the whole picture squeezed to 32 px square" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_learnable_gem_is_a_weight_that_is_saved_read_and_fingerprinted(
    build_tiny: BuildTiny, pixels: torch.Tensor, tmp_path: Path
) -> None:
    fixed, encoder = build_tiny(pooling="gem"), build_tiny(pooling="gem", gem_learnable=True)
    assert fixed.gem_p is None
    assert encoder.gem_p is not None
    torch.testing.assert_close(encoder(pixels), fixed(pixels))
    encoder(pixels)[0, 0].backward()
    assert encoder.gem_p.grad is not None
    assert encoder.gem_p.grad.item() != 0
    before = fingerprint_encoder(encoder)
    with torch.no_grad():
        encoder.gem_p.fill_(1.7)
    assert save_encoder(encoder, tmp_path) != before
    again = read_encoder(tmp_path)
    assert torch.equal(again(pixels), encoder(pixels))
    assert not torch.allclose(again(pixels), fixed(pixels))
    assert export_onnx(again, tmp_path / "encoder.onnx") >= MIN_COSINE
    reduced = reduce_to(again, 4)
    assert reduced.gem_p is not None
    assert reduced.gem_p.item() == pytest.approx(1.7)
    assert build_tiny(pooling="cls", gem_learnable=True).gem_p is None


def test_trap_add_reduction_refuses_a_second_one(build_tiny: BuildTiny) -> None:
    with pytest.raises(ConfigError, match="has a reduction already, fitted on grocery train"):
        reduce_to(reduce_to(build_tiny(), 8), 4)


def test_read_encoder_reads_what_was_written_before_scales_and_kinds(
    build_tiny: BuildTiny, pixels: torch.Tensor, tmp_path: Path
) -> None:
    encoder = reduce_to(build_tiny(), 8)
    fingerprint = save_encoder(encoder, tmp_path)
    spec = json.loads((tmp_path / "encoder.json").read_text())
    del spec["scales"], spec["reduction_kind"]
    (tmp_path / "encoder.json").write_text(json.dumps(spec))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["sha256"]["encoder.json"] = hash_file(tmp_path / "encoder.json")
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    again = read_encoder(tmp_path)
    assert again.spec == encoder.spec
    assert fingerprint_encoder(again) == fingerprint
    assert torch.equal(again(pixels), encoder(pixels))


@pytest.mark.parametrize(
    ("backbone", "pooling", "image_size", "width"),
    [
        ("deit_small_patch16_224.fb_in1k", "cls", 224, 384),
        ("deit_small_distilled_patch16_224.fb_in1k", "cls", 384, 384),
        ("deit_base_patch16_224.fb_in1k", "gem", 224, 768),
        ("deit_base_distilled_patch16_224.fb_in1k", "cls", 384, 768),
        ("resnet50", "gem", 224, 2048),
        ("resnet101", "rmac", 384, 2048),
    ],
)
def test_backbones_of_the_paper_embed(backbone: str, pooling: Pooling, image_size: int, width: int) -> None:
    with torch.device("meta"):  # shapes without numbers: a second instead of a minute
        config = ModelConfig(backbone=backbone, image_size=image_size, pooling=pooling, drop_path_rate=0.0)
        encoder = build_encoder(config, is_pretrained=False).eval()
        pixels = torch.zeros(2, 3, image_size, image_size)
        features, patch_tokens = encoder.pool(pixels), encoder.patch_tokens(pixels)  # autocast knows no meta device
    assert features.shape == (2, width) == (2, encoder.spec.embedding_dim)
    stride = 32 if backbone.startswith("resnet") else 16
    assert patch_tokens.shape == (2, (image_size // stride) ** 2, width)
    is_distilled = "distilled" in backbone
    assert encoder.layout.num_class_tokens == (0 if stride == 32 else 1 + is_distilled)
    if stride == 16:
        assert encoder.backbone.pos_embed.shape[1] == (image_size // 16) ** 2 + 1 + is_distilled


def test_trap_a_head_standardizes_and_projects_before_the_normalization(
    build_tiny: BuildTiny, pixels: torch.Tensor
) -> None:
    encoder = build_tiny(pooling="max", head_norm=True, head_dim=5)
    features = encoder.patch_tokens(pixels).amax(dim=1).double()
    features = features - features.mean(dim=1, keepdim=True)
    features = features / (features.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
    linear = encoder.head.linear
    expected = features @ linear.weight.double().T + linear.bias.double()
    expected = expected / expected.norm(dim=1, keepdim=True)
    assert encoder.spec.embedding_dim == 5
    torch.testing.assert_close(encoder(pixels).double(), expected, rtol=0, atol=1e-6)


def test_a_head_is_saved_exported_and_part_of_the_fingerprint(
    build_tiny: BuildTiny, pixels: torch.Tensor, tmp_path: Path
) -> None:
    encoder = build_tiny(pooling="average", head_norm=True, head_dim=5).eval()
    fingerprint = save_encoder(encoder, tmp_path)
    read = read_encoder(tmp_path)
    assert fingerprint_encoder(read) == fingerprint
    torch.testing.assert_close(read(pixels), encoder(pixels), rtol=0, atol=0)
    assert export_onnx(read, tmp_path / "encoder.onnx") >= MIN_COSINE
    without_norm = build_tiny(pooling="average", head_dim=5)
    without_norm.load_state_dict(encoder.state_dict())
    assert fingerprint_encoder(without_norm) != fingerprint


def test_a_reduction_is_fitted_behind_the_head(build_tiny: BuildTiny, pixels: torch.Tensor, tmp_path: Path) -> None:
    encoder = reduce_to(build_tiny(head_dim=6).eval(), 3)
    save_encoder(encoder, tmp_path)
    embedding = read_encoder(tmp_path)(pixels)
    assert embedding.shape == (3, 3)
    torch.testing.assert_close(embedding, encoder(pixels), rtol=0, atol=0)
