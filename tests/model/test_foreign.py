"""Weights that others trained become an encoder that computes what they computed."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from vitrieve import import_encoder, load_encoder
from vitrieve.cli.main import main
from vitrieve.errors import ConfigError, WeightsError
from vitrieve.model.foreign import build_foreign_encoder

timm = pytest.importorskip("timm")
CLIP = "vit_xsmall_patch16_clip_224"


@pytest.fixture(autouse=True)
def _same_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """A model of timm with a classifier, as its checkpoints have one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return timm.create_model("test_vit", num_classes=7, img_size=32).eval()


@pytest.mark.parametrize("kind", ["safetensors", "pth", "nested", "folder"])
def test_a_checkpoint_of_timm_becomes_an_encoder(model: torch.nn.Module, tmp_path: Path, kind: str) -> None:
    states = model.state_dict()
    file = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "folder":
        (tmp_path / "folder").mkdir()
        file = tmp_path / "folder"
        save_file(states, file / "model.safetensors")
    elif kind == "safetensors":
        save_file(states, file)
    else:
        wrapped = {f"module.{name}": tensor for name, tensor in states.items()}
        torch.save({"epoch": 3, "state_dict": wrapped} if kind == "nested" else states, file)
    made = import_encoder("test_vit", file, tmp_path / "out", image_size=32)
    assert made.cosine is not None
    assert made.cosine > 0.9999
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = F.normalize(model.forward_head(model.forward_features(pixels), pre_logits=True))  # type: ignore[operator]
    with load_encoder(tmp_path / "out", engine="onnx", num_threads=1) as encoder:
        found = encoder.encode_pixels(pixels.numpy())
        assert encoder.fingerprint == made.fingerprint
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert "the file " in (tmp_path / "out" / "README.md").read_text()


def rename_to_open_clip(states: dict[str, Tensor], projection: Tensor) -> dict[str, Tensor]:
    """Turn the names of timm's CLIP into open_clip's, with a tower of texts beside it."""
    swaps = (("patch_embed.proj", "conv1"), ("norm_pre", "ln_pre"), ("blocks.", "transformer.resblocks."))
    swaps += (("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"), ("norm", "ln_"), ("fc1", "c_fc"))
    renamed = {"logit_scale": torch.zeros(()), "token_embedding.weight": torch.zeros(9, 8)}
    renamed["transformer.resblocks.0.ln_1.weight"] = torch.zeros(8)
    for name, tensor in states.items():
        if name.startswith("norm."):
            name = name.replace("norm.", "ln_post.")
        for ours, theirs in (*swaps, ("fc2", "c_proj")):
            name = name.replace(ours, theirs)
        name = {"cls_token": "class_embedding", "pos_embed": "positional_embedding"}.get(name, name)
        if "embedding" in name:
            tensor = tensor.squeeze()
        renamed[f"visual.{name}"] = tensor.clone()
    return {**renamed, "visual.proj": projection.clone()}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_of_open_clip_becomes_an_encoder_with_its_projection(tmp_path: Path, prefix: str) -> None:
    model = timm.create_model(CLIP, num_classes=0).eval()
    projection = torch.randn(256, 24) / 16
    states = rename_to_open_clip(model.state_dict(), projection)
    torch.save({"state_dict": {prefix + name: tensor for name, tensor in states.items()}}, tmp_path / "epoch.pt")
    encoder, _ = build_foreign_encoder(CLIP, tmp_path / "epoch.pt")
    pixels = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        expected = F.normalize(model(pixels) @ projection)
        found = encoder(pixels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    spec = encoder.spec
    assert (spec.embedding_dim, spec.head_dim, spec.pooling) == (24, 24, "cls")
    assert (spec.preprocessing.resize_size, spec.preprocessing.mean[0]) == (224, pytest.approx(0.48145466))


def test_a_trunk_of_timm_in_open_clip_has_its_projection(tmp_path: Path) -> None:
    model = timm.create_model("test_convnext", num_classes=0).eval()
    projection = torch.randn(12, model.num_features) / 8
    states = {f"visual.trunk.{name}": tensor for name, tensor in model.state_dict().items()}
    file = tmp_path / "open_clip.safetensors"
    save_file({**states, "visual.head.proj.weight": projection, "logit_scale": torch.zeros(())}, file)
    encoder, _ = build_foreign_encoder("test_convnext", file, image_size=64)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = F.normalize(model(pixels) @ projection.T)
        torch.testing.assert_close(encoder(pixels), expected, atol=1e-5, rtol=0)
    save_file({**states, "visual.head.mlp.fc1.weight": projection, "logit_scale": torch.zeros(())}, file)
    with pytest.raises(WeightsError, match=r"projects its features by visual\.head\.mlp"):
        build_foreign_encoder("test_convnext", file, image_size=64)
    save_file({**states, "visual.head.proj.weight": projection[:, 1:].clone(), "logit_scale": torch.zeros(())}, file)
    with pytest.raises(WeightsError, match="name the model that it was trained as"):
        build_foreign_encoder("test_convnext", file, image_size=64)


def test_the_embeddings_are_those_of_open_clip(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip", reason="compares with open_clip_torch, which is no extra of vitrieve")
    vision = {"layers": 10, "width": 256, "patch_size": 16, "image_size": 224}
    text = {"layers": 1, "width": 64, "heads": 2, "vocab_size": 50, "context_length": 8}
    model = open_clip.model.CLIP(24, vision, text).eval()
    torch.save(model.state_dict(), tmp_path / "open_clip.pt")
    encoder, _ = build_foreign_encoder(CLIP, tmp_path / "open_clip.pt")
    pixels = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = model.encode_image(pixels, normalize=True)
        assert F.cosine_similarity(encoder(pixels), expected).min() > 0.9999


class Evil:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("evil"),)  # type: ignore[return-value]


def test_wrong_files_are_refused_in_one_line(
    model: torch.nn.Module,
    tiny_encoder_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    states = model.state_dict()
    some = {name: tensor for name, tensor in states.items() if not name.startswith("blocks.1.")}
    save_file(states, "fine.safetensors")
    save_file(some, "some.safetensors")
    save_file({**states, "cls_token": torch.full_like(states["cls_token"], torch.nan)}, "nan.safetensors")
    Path("evil.pth").write_bytes(pickle.dumps({"weight": Evil()}, protocol=2))
    Path("damaged.safetensors").write_bytes(b"\xff" * 100)
    cases = {
        ("test_vit", "some.safetensors"): "missing (blocks.1",
        ("test_resnet", "fine.safetensors"): "Check --encoder, which tells the layers, and --weights",
        ("test_vit", "nan.safetensors"): "cannot be used",
        ("test_vit", "evil.pth"): "holds more than tensors",
        ("test_vit", "damaged.safetensors"): "cannot be read",
        ("test_vit", "no.pth"): "do not exist",
        ("test_vitt", "fine.safetensors"): "unknown weights 'test_vitt'. Did you mean 'test_vit",
        ("test_vit", str(tiny_encoder_folder)): "is an encoder of vitrieve already",
    }
    for (name, file), message in cases.items():
        command = ["export", "--encoder", name, "--weights", file, "--image-size", "32", "--out", "out"]
        assert main(command) == 2, file
        printed = capsys.readouterr().err
        assert message in printed, printed
        assert printed.count("error: ") == 1
        assert not Path("out").exists()
    assert not Path("evil").exists()
    assert main(["export", "--encoder", "test_vit", "--weights", "fine.safetensors"]) == 2
    assert "name its folder with --out" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="not a multiple of the patch"):
        import_encoder("test_vit", "fine.safetensors", "out", image_size=33)
    assert main([*command[:3], "--weights", "fine.safetensors", "--image-size", "32", "--out", "out"]) == 0
    assert load_encoder("out", engine="onnx").embedding_dim == 64
