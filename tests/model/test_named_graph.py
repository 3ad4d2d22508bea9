"""The encoder of a weights name without torch, beside torch's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from vitrieve.config import ModelConfig
from vitrieve.errors import ConfigError
from vitrieve.model.artifact import EMBEDDING_OUTPUT, PATCH_TOKENS_OUTPUT, PIXELS_INPUT
from vitrieve.model.encoder import build_encoder, build_frozen_encoder, fingerprint_encoder
from vitrieve.model.named_graph import build_vit_graph, has_named_graph, make_named_folder
from vitrieve.model.pretrained import find_weights
from vitrieve.runtime.encoder import load_encoder


def run_graph(graph: bytes, pixels: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run([EMBEDDING_OUTPUT, PATCH_TOKENS_OUTPUT], {PIXELS_INPUT: pixels.numpy()})
    return found


@pytest.mark.parametrize("backbone", ["deit_tiny_patch16_224", "vit_small_patch14_dinov2"])
def test_build_vit_graph_equals_torch(backbone: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = 28 if "14" in backbone else 32
        encoder = build_encoder(ModelConfig(backbone=backbone, image_size=size), is_pretrained=False).eval()
        for parameter in encoder.parameters():  # biases, layer scales and positions that count
            parameter.data += 0.05 * torch.randn_like(parameter)
        pixels = torch.randn(3, 3, size, size)
    states = {name: tensor.numpy() for name, tensor in encoder.backbone.state_dict().items()}
    graph = build_vit_graph(states, size).SerializeToString()
    for batch in (pixels, pixels[:1]):
        with torch.inference_mode():
            expected = encoder.forward_both(batch)
        for ours, theirs in zip(run_graph(graph, batch), expected, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-4)


@pytest.mark.data
@pytest.mark.parametrize("image_size", [56, 112])
def test_make_named_folder_is_torchs_encoder_with_its_fingerprint(
    dinov2_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_size: int
) -> None:
    monkeypatch.setattr("vitrieve.model.named_graph.get_export_folder", lambda name, size: tmp_path / f"{name}-{size}")
    folder = make_named_folder(find_weights("dinov2-vits14"), image_size)
    assert make_named_folder(find_weights("dinov2-vits14"), image_size) == folder
    ours = load_encoder(folder, engine="onnx")
    theirs = build_frozen_encoder("dinov2-vits14", image_size=image_size)
    assert ours.fingerprint == fingerprint_encoder(theirs)
    pixels = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        embedding, tokens = theirs.forward_both(pixels)
    np.testing.assert_allclose(ours.encode_pixels(pixels.numpy()), embedding.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours.patch_tokens(pixels.numpy()), tokens.numpy(), rtol=0, atol=1e-3)
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.data
def test_make_named_folder_refuses_a_size_that_does_not_fit(dinov2_weights: Path) -> None:
    with pytest.raises(ConfigError, match=r"100 is not a multiple of the patch .* 98 or 112"):
        make_named_folder(find_weights("dinov2-vits14"), 100)


@pytest.mark.data
def test_dinov2_by_name_needs_no_torch(dinov2_weights: Path, without_torch: str) -> None:
    script = (
        f"{without_torch}"
        "import numpy as np\n"
        "from vitrieve import load_encoder\n"
        "encoder = load_encoder('dinov2-vits14', image_size=56)\n"
        "embedding = encoder.encode_pixels(np.zeros((1, 3, 56, 56), np.float32))\n"
        "assert embedding.shape == (1, 384)\n"
        "assert abs(np.linalg.norm(embedding) - 1) < 1e-3\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_has_named_graph_of_dinov2_alone() -> None:
    assert has_named_graph(find_weights("dinov2-vits14"))
    assert has_named_graph(find_weights("vit_base_patch14_dinov2.lvd142m"))
    assert not has_named_graph(find_weights("vit_base_patch14_reg4_dinov2.lvd142m"))
    assert not has_named_graph(find_weights("efficientnet-lite0"))
    assert not has_named_graph(find_weights("deit_small_patch16_224.fb_in1k"))
