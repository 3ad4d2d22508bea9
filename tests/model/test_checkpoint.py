"""Weights as users have them: prefixes, Hugging Face's names, nested checkpoints, encoders of ours."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from tests.model.hub_server import Hub, Repository
from vitrieve.config import ModelConfig
from vitrieve.errors import ConfigError, WeightsError
from vitrieve.evaluation.export import export
from vitrieve.model.backbone import build_backbone
from vitrieve.model.checkpoint import load_backbone_states, strip_prefix
from vitrieve.model.encoder import ImageEncoder, add_reduction, build_encoder, save_encoder
from vitrieve.model.reduction import fit_pca

BuildTiny = Callable[..., ImageEncoder]
SMALL: dict[str, Any] = {"img_size": 56, "depth": 2, "embed_dim": 48, "num_heads": 3, "num_classes": 0}


def make_states(name: str = "test_vit") -> dict[str, Tensor]:
    torch.manual_seed(7)
    states = timm.create_model(name).state_dict()
    return {key: torch.randn_like(value) if value.is_floating_point() else value for key, value in states.items()}


def build_from(path: Path, name: str = "test_vit", notes: list[str] | None = None) -> nn.Module:
    return build_backbone(name, image_size=160, weights=path, on_note=(notes if notes is not None else []).append)


def assert_loaded(backbone: nn.Module, states: dict[str, Tensor]) -> None:
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, states[name]), name


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "model.",
        "encoder.",
        "teacher.backbone.",
        "_orig_mod.",
        "module._orig_mod.model.",
        "backbone.",
        "x.y.",
    ],
)
def test_a_prefix_common_to_all_names_is_taken_off_and_said(prefix: str, tmp_path: Path) -> None:
    states, notes = make_states(), []
    save_file({prefix + name: tensor for name, tensor in states.items()}, tmp_path / "w.safetensors")
    assert_loaded(build_from(tmp_path / "w.safetensors", notes=notes), states)
    if prefix != "backbone.":  # an encoder's own
        (note,) = notes
        assert f"begin with {prefix}, which was taken off" in note


def test_a_prefix_of_some_names_leaves_the_others_out_and_says_so(tmp_path: Path) -> None:
    states, notes = make_states(), []
    mixed = {f"teacher.backbone.{name}": tensor for name, tensor in states.items()}
    mixed |= {f"student.backbone.{name}": torch.zeros_like(tensor) for name, tensor in states.items()}
    mixed["teacher.dino_head.weight"] = torch.zeros(2)
    save_file(mixed, tmp_path / "w.safetensors")
    assert_loaded(build_from(tmp_path / "w.safetensors", notes=notes), states)
    (note,) = notes
    assert "begin with teacher.backbone." in note
    assert "Left out, for they do not: student.backbone." in note


def test_two_copies_without_a_known_name_are_refused(tmp_path: Path) -> None:
    states = make_states()
    mixed = {f"{side}.{name}": tensor.clone() for side in ("left", "right") for name, tensor in states.items()}
    save_file(mixed, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"under several names: left\., right\."):
        build_from(tmp_path / "w.safetensors")


def test_of_two_copies_a_whole_word_of_the_name_decides(tmp_path: Path) -> None:
    states, notes = make_states(), []
    mixed = {f"model.{name}": tensor for name, tensor in states.items()}
    mixed |= {f"schema.{name}": torch.zeros_like(tensor) for name, tensor in states.items()}  # "ema" is no word of it
    save_file(mixed, tmp_path / "w.safetensors")
    assert_loaded(build_from(tmp_path / "w.safetensors", notes=notes), states)


def test_strip_prefix_keeps_names_that_a_backbone_shares() -> None:
    states = {"stages.0.weight": torch.zeros(1), "stages.1.weight": torch.zeros(1)}
    assert strip_prefix(states, states.keys(), "x") == (states, ())


# Hugging Face


def randomised(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(3)
    model = timm.create_model(name, **{**SMALL, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def spell_as_hugging_face(states: dict[str, Tensor], is_dinov3: bool) -> dict[str, Tensor]:
    """Rename by hand, part by part: the opposite of what is tested."""
    spelled: dict[str, Tensor] = {"embeddings.mask_token": torch.randn(1, 48)}
    patch = "embeddings.patch_embeddings." if is_dinov3 else "embeddings.patch_embeddings.projection."
    norm, layer = ("norm.", "layer.") if is_dinov3 else ("layernorm.", "encoder.layer.")
    parts = ("q_proj", "k_proj", "v_proj") if is_dinov3 else ("attention.query", "attention.key", "attention.value")
    out = "attention.o_proj." if is_dinov3 else "attention.output.dense."
    for name, tensor in states.items():
        block = layer + name.split(".")[1] + "." if name.startswith("blocks.") else ""
        rest, kind = (name.split(".", 2)[2] if block else name), name.rpartition(".")[2]
        if rest in ("cls_token", "pos_embed", "reg_token"):
            theirs = {"cls_token": "cls_token", "pos_embed": "position_embeddings", "reg_token": "register_tokens"}
            spelled[f"embeddings.{theirs[rest]}"] = tensor
        elif rest.startswith("patch_embed.proj."):
            spelled[patch + kind] = tensor
        elif rest.startswith("attn.qkv."):
            for part, piece in zip(parts, tensor.chunk(3), strict=True):
                spelled[f"{block}attention.{part}.{kind}"] = piece.clone()
        elif rest in ("attn.q_bias", "attn.v_bias"):
            spelled[f"{block}attention.{rest[5]}_proj.bias"] = tensor
        elif rest.startswith("attn.proj."):
            spelled[block + out + kind] = tensor
        elif rest.startswith(("ls", "gamma")):
            number = rest[-1] if is_dinov3 else rest[2]
            spelled[f"{block}layer_scale{number}.lambda1"] = tensor
        elif is_dinov3 and rest.startswith("mlp."):
            spelled[block + rest.replace("fc1", "up_proj").replace("fc2", "down_proj")] = tensor
        else:
            spelled[(norm + kind) if not block and rest.startswith("norm.") else block + rest] = tensor
    return spelled


@pytest.mark.parametrize(
    ("name", "is_dinov3", "prefix"),
    [
        ("vit_small_patch14_dinov2", False, ""),
        ("vit_small_patch14_dinov2", False, "dinov2."),
        ("vit_small_patch16_dinov3_qkvb", True, ""),
        ("vit_small_patch16_dinov3", True, "model."),
    ],
)
def test_names_of_hugging_face_are_timms(name: str, is_dinov3: bool, prefix: str) -> None:
    source = randomised(name, **({"img_size": 64} if is_dinov3 else {}))
    spelled = {prefix + key: value for key, value in spell_as_hugging_face(source.state_dict(), is_dinov3).items()}
    if prefix == "dinov2.":
        spelled["classifier.weight"] = torch.zeros(2, 96)
    target = timm.create_model(name, **{**SMALL, **({"img_size": 64} if is_dinov3 else {})})
    notes = load_backbone_states(target, spelled, "w.safetensors")
    for key, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], tensor), key
    assert "are Hugging Face's" in notes[-1]
    assert ("classifier.weight" in " ".join(notes)) is (prefix == "dinov2.")


def test_names_of_hugging_face_with_registers_give_timms_tokens() -> None:
    target = timm.create_model("vit_small_patch14_reg4_dinov2", **SMALL)
    states = randomised("vit_small_patch14_dinov2").state_dict()
    spelled = spell_as_hugging_face(dict(states), False)
    spelled["embeddings.register_tokens"] = torch.randn(1, 4, 48)
    load_backbone_states(target, spelled, "w.safetensors")
    assert torch.equal(target.reg_token, spelled["embeddings.register_tokens"])
    assert torch.equal(target.pos_embed, states["pos_embed"][:, 1:])
    torch.testing.assert_close(target.cls_token, states["cls_token"] + states["pos_embed"][:, :1])


CLIP_MODEL = "vit_base_patch32_clip_quickgelu_224"
CLIP_SPELLINGS = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding.weight",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "norm_pre.weight": "pre_layrnorm.weight",
    "norm_pre.bias": "pre_layrnorm.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}


def spell_as_clip(states: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name the image tower of a CLIP as transformers does, part by part: the opposite of what is tested."""
    spelled = {"embeddings.position_ids": torch.arange(5)[None]}
    for name, tensor in states.items():
        if name in CLIP_SPELLINGS:
            is_table = name in ("cls_token", "pos_embed")
            spelled[CLIP_SPELLINGS[name]] = tensor.squeeze().clone() if is_table else tensor
            continue
        _, number, part, *rest = name.split(".")
        layer, kind = f"encoder.layers.{number}.", rest[-1]
        if (part, rest[0]) == ("attn", "qkv"):
            for letter, piece in zip("qkv", tensor.chunk(3), strict=True):
                spelled[f"{layer}self_attn.{letter}_proj.{kind}"] = piece.clone()
        elif part == "attn":
            spelled[f"{layer}self_attn.out_proj.{kind}"] = tensor
        elif part == "mlp":
            spelled[f"{layer}mlp.{rest[0]}.{kind}"] = tensor
        else:
            spelled[f"{layer}layer_norm{part[-1]}.{kind}"] = tensor
    return spelled


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [
        ("", ()),
        ("vision_model.", ()),
        ("vision_model.", ("logit_scale", "text_model.final_layer_norm.weight", "visual_projection.weight")),
    ],
)
def test_the_image_tower_of_a_clip_of_hugging_face_is_timms(prefix: str, beside: tuple[str, ...]) -> None:
    source = randomised(CLIP_MODEL, img_size=64)
    spelled = {prefix + key: value for key, value in spell_as_clip(source.state_dict()).items()}
    target = timm.create_model(CLIP_MODEL, **{**SMALL, "img_size": 64})
    notes = load_backbone_states(target, {**spelled, **{name: torch.zeros(2) for name in beside}}, "w.safetensors")
    for key, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], tensor), key
    assert "are Hugging Face's" in notes[-1]
    assert "whose name has quickgelu" in notes[-1]
    assert all(name in " ".join(notes) for name in (*beside, "embeddings.position_ids"))


def test_positions_of_a_clip_of_hugging_face_are_resampled() -> None:
    source = randomised(CLIP_MODEL, img_size=64)
    small, large = (timm.create_model(CLIP_MODEL, **{**SMALL, "img_size": 96}) for _ in range(2))
    load_backbone_states(small, spell_as_clip(source.state_dict()), "w.safetensors")
    load_backbone_states(large, source.state_dict(), "w.safetensors")
    assert small.pos_embed.shape == (1, 10, 48)
    assert torch.equal(small.pos_embed, large.pos_embed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda states: states.pop("encoder.layers.1.self_attn.v_proj.weight"),
            r"does not fit .*blocks\.1\.key\.weight",
        ),
        (lambda states: states.pop("embeddings.class_embedding"), "does not fit the backbone"),
        (lambda states: states.pop("embeddings.position_embedding.weight"), "does not fit the backbone"),
    ],
)
def test_a_clip_without_one_of_its_parts_is_refused(change: Callable[[Any], Any], message: str) -> None:
    states = spell_as_clip(randomised(CLIP_MODEL, img_size=64).state_dict())
    change(states)
    with pytest.raises(WeightsError, match=message):
        load_backbone_states(timm.create_model(CLIP_MODEL, **{**SMALL, "img_size": 64}), states, "w.safetensors")


def test_a_clip_does_not_fit_a_plain_vision_transformer() -> None:
    states = spell_as_clip(randomised(CLIP_MODEL, img_size=64).state_dict())
    target = timm.create_model("vit_base_patch32_224", **{**SMALL, "img_size": 64})
    with pytest.raises(WeightsError, match=r"missing \(patch_embed.proj.bias\); .*unexpected \(norm_pre"):
        load_backbone_states(target, states, "w.safetensors")


def test_mlcd_is_fetched_by_its_name(empty_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = randomised(CLIP_MODEL, img_size=64)
    spelled = {f"vision_model.{name}": tensor for name, tensor in spell_as_clip(source.state_dict()).items()}
    repository = Repository({"model.safetensors": save(spelled)})
    empty_hub.repositories["DeepGlint-AI/mlcd-vit-base-patch32-224"] = repository
    create, notes = timm.create_model, list[str]()
    monkeypatch.setattr(timm, "create_model", lambda name, **given: create(name, **{**SMALL, **given}))
    backbone = build_backbone("mlcd-vit-base-patch32-224", image_size=64, on_note=notes.append)
    for key, tensor in source.state_dict().items():
        assert torch.equal(backbone.state_dict()[key], tensor), key
    assert notes == []
    encoder = build_encoder(
        ModelConfig(backbone="mlcd-vit-base-patch32-224", image_size=64, drop_path_rate=0.0), seed=0
    )
    save_encoder(encoder.eval(), tmp_path / "encoder")
    with pytest.raises(ConfigError, match="have other names on the hub"):
        export(tmp_path / "encoder", tmp_path / "small", delta_rank=2)


def test_biases_that_a_backbone_has_not_are_refused() -> None:
    source = randomised("vit_small_patch16_dinov3_qkvb", img_size=64)
    target = timm.create_model("vit_small_patch16_dinov3", **{**SMALL, "img_size": 64})
    spelled = spell_as_hugging_face(source.state_dict(), True)
    with pytest.raises(WeightsError, match=r"biases in its attention .* ends in dinov3_qkvb"):
        load_backbone_states(target, spelled, "w.safetensors")


# Checkpoints of torch


@pytest.mark.parametrize(
    "wrap",
    [
        lambda states: states,
        lambda states: {"model": states, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        lambda states: {"state_dict": {f"module.{name}": value for name, value in states.items()}, "optimizer": {}},
        lambda states: {"epoch": 3, "state_dict": states, "best_acc1": torch.tensor(76.1)},
        lambda states: {"student": {"a": torch.zeros(1)}, "teacher": {f"backbone.{k}": v for k, v in states.items()}},
        lambda states: {"checkpoint": {"model": states}},
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".bin"])
def test_checkpoints_are_read_however_deep_the_weights_lie(
    wrap: Callable[[dict[str, Tensor]], Any], suffix: str, tmp_path: Path
) -> None:
    states = make_states()
    path = tmp_path / f"w{suffix}"
    torch.save(wrap(states), path)
    assert_loaded(build_from(path), states)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_trap_a_checkpoint_that_would_run_code_is_refused_and_the_advice_works(tmp_path: Path) -> None:
    path, states = tmp_path / "w.pth", make_states()
    torch.save({"model": states, "hook": Bomb(tmp_path / "opened")}, path)
    with pytest.raises(WeightsError, match=r"holds more than tensors.*torch\.save\(model\.state_dict\(\)"):
        build_from(path)
    assert not (tmp_path / "opened").exists()
    torch.save(states, path)
    assert_loaded(build_from(path), states)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "holds no weights by name"),
        ([torch.zeros(1)], "holds no weights by name"),
        ({"a": {"w": torch.zeros(1)}, "b": {"w": torch.zeros(1)}}, "several sets of weights: a, b"),
    ],
)
def test_checkpoints_without_one_set_of_weights_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=message):
        build_from(tmp_path / "w.pth")


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    torch.save(make_states(), tmp_path / "whole.pth")
    data = (tmp_path / "whole.pth").read_bytes()
    for length in (0, 10, len(data) // 2):
        (tmp_path / "w.pth").write_bytes(data[:length])
        with pytest.raises(WeightsError, match="cannot be read"):
            build_from(tmp_path / "w.pth")


def test_a_cut_checkpoint_of_an_old_torch_is_refused(tmp_path: Path) -> None:
    torch.save(make_states(), tmp_path / "whole.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "whole.pth").read_bytes()
    for length in range(1, 400):
        (tmp_path / "w.pth").write_bytes(data[:length])
        with pytest.raises(WeightsError, match=r"cannot be read|holds more than tensors"):
            build_from(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "as a web page does"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs has not fetched"),
        (b"\x1f\x8b\x08", "no checkpoint of torch: it begins with"),
    ],
)
def test_files_that_are_no_checkpoints_are_told_by_their_beginning(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        build_from(tmp_path / "w.pth")


# Encoders of ours


def save_trained(build_tiny: BuildTiny, folder: Path, **fields: Any) -> ImageEncoder:
    encoder = build_tiny(**{"head_dim": 8, "head_norm": True, "pooling": "average", **fields})
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1)
    save_encoder(encoder, folder)
    return encoder


@pytest.mark.parametrize("place", ["run", "run/encoder", "run/encoder/model.safetensors"])
def test_going_on_from_an_encoder_keeps_its_head(
    place: str, build_tiny: BuildTiny, pixels: Tensor, tmp_path: Path
) -> None:
    before = save_trained(build_tiny, tmp_path / "run/encoder")
    after = build_encoder(ModelConfig(backbone="test_vit", image_size=32, weights=str(tmp_path / place)), seed=3).eval()
    assert (after.spec.head_dim, after.spec.head_norm, after.spec.pooling) == (8, True, "average")
    assert torch.equal(after(pixels), before(pixels))
    assert after.spec.weights_note == ""


def test_going_on_from_an_encoder_keeps_its_exponent(build_tiny: BuildTiny, pixels: Tensor, tmp_path: Path) -> None:
    before = save_trained(build_tiny, tmp_path, pooling="gem", gem_learnable=True)
    assert before.gem_p is not None
    after = build_encoder(ModelConfig(backbone="test_vit", image_size=32, weights=str(tmp_path))).eval()
    assert torch.equal(after(pixels), before(pixels))


def test_going_on_says_what_is_left_out(build_tiny: BuildTiny, pixels: Tensor, tmp_path: Path) -> None:
    encoder = save_trained(build_tiny, tmp_path / "whole")
    with torch.no_grad():
        features = encoder.pool(torch.randn(40, 3, 32, 32)).numpy()
    save_encoder(add_reduction(encoder, fit_pca(features, 4, fitted_on="my set")), tmp_path / "reduced")
    model = {"backbone": "test_vit", "image_size": 32, "weights": str(tmp_path / "reduced")}
    after = build_encoder(ModelConfig(**model)).eval()
    assert torch.equal(after(pixels), encoder(pixels))
    assert "left out its reduction to 4 dimensions, fitted on my set" in after.spec.weights_note
    assert "framing" not in after.spec.weights_note
    other = build_encoder(ModelConfig(**model, head_dim=5, pooling="cls", framing="square"))
    assert "its framing crop: the settings ask for square (--model.framing crop keeps it)" in other.spec.weights_note
    assert "its head: the settings ask for another" in other.spec.weights_note
    assert "its pooling average: the settings ask for cls" in other.spec.weights_note


@pytest.mark.parametrize("place", ["", "model.safetensors"])
def test_going_on_says_that_the_text_part_is_left_out(place: str, aligned_folder: Path) -> None:
    after = build_encoder(ModelConfig(backbone="test_vit", image_size=32, weights=str(aligned_folder / place)))
    assert "left out its text part" in after.spec.weights_note
    assert "vitrieve align --encoder RUN --data DATA --text-column COLUMN --out OUT" in after.spec.weights_note


def test_going_on_with_another_backbone_is_refused(build_tiny: BuildTiny, tmp_path: Path) -> None:
    save_trained(build_tiny, tmp_path)
    with pytest.raises(WeightsError, match=r"is an encoder of test_vit, not of .*; give --model\.backbone test_vit"):
        build_encoder(ModelConfig(weights=str(tmp_path)))


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.safetensors"):
        with pytest.raises(WeightsError, match=r"give a \.safetensors or \.pth file, or the folder of a finished run"):
            build_from(path)


def test_classifiers_of_several_layers_are_left_out() -> None:
    source = timm.create_model("shvit_s1")
    target = timm.create_model("shvit_s1", num_classes=0)
    load_backbone_states(target, source.state_dict(), "w.safetensors")
    assert torch.equal(next(target.parameters()), next(source.parameters()))
