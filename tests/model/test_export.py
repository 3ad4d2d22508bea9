from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from vitrieve.errors import ArtifactError
from vitrieve.model.encoder import ImageEncoder, add_reduction, save_encoder
from vitrieve.model.export import MIN_COSINE, export_folder, export_onnx
from vitrieve.model.reduction import fit_pca

BuildTiny = Callable[..., ImageEncoder]


def run_graph(path: Path, pixels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    embedding, patch_tokens = session.run(["embedding", "patch_tokens"], {"pixels": pixels.numpy()})
    return embedding, patch_tokens


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pooling": "gem"},
        {"pooling": "average", "image_size": 48},
        {"backbone": "test_resnet", "pooling": "gem"},
        {"backbone": "test_resnet", "pooling": "max", "image_size": 75},
        {
            "backbone": "tf_mobilenetv3_small_minimal_100",
            "pooling": "average",
            "image_size": 75,
        },  # pads by its input's size
        {"backbone": "test_vit2", "pooling": "average"},  # with a register
    ],
    ids=lambda fields: "-".join(map(str, fields.values())) or "test_vit",
)
def test_export_onnx_agrees_with_torch(build_tiny: BuildTiny, tmp_path: Path, fields: dict[str, object]) -> None:
    encoder = build_tiny(**fields)
    assert export_onnx(encoder, tmp_path / "encoder.onnx") >= MIN_COSINE
    size = encoder.spec.preprocessing.image_size
    for batch_size in (1, 3, 7):
        pixels = torch.randn(batch_size, 3, size, size)
        embedding, patch_tokens = run_graph(tmp_path / "encoder.onnx", pixels)
        with torch.inference_mode():
            np.testing.assert_allclose(embedding, encoder(pixels).numpy(), atol=1e-4)
            np.testing.assert_allclose(patch_tokens, encoder.patch_tokens(pixels).numpy(), atol=1e-3)


def test_trap_distilled_export_uses_both_tokens(build_tiny: BuildTiny, tmp_path: Path) -> None:
    encoder = build_tiny(backbone="deit_tiny_distilled_patch16_224")
    export_onnx(encoder, tmp_path / "encoder.onnx")
    pixels = torch.randn(2, 3, 32, 32)
    embedding, patch_tokens = run_graph(tmp_path / "encoder.onnx", pixels)
    with torch.inference_mode():
        tokens = encoder.backbone.forward_features(pixels)
        expected = torch.nn.functional.normalize((tokens[:, 0] + tokens[:, 1]) / 2, dim=1)
    np.testing.assert_allclose(embedding, expected.numpy(), atol=1e-5)
    assert patch_tokens.shape == (2, 4, 192)


def test_export_onnx_includes_the_reduction(build_tiny: BuildTiny, pixels: torch.Tensor, tmp_path: Path) -> None:
    encoder = build_tiny()
    with torch.inference_mode():
        features = encoder.pool(torch.randn(30, 3, 32, 32)).numpy()
    reduced = add_reduction(encoder, fit_pca(features, 4, fitted_on="train"))
    export_onnx(reduced, tmp_path / "encoder.onnx")
    embedding, _ = run_graph(tmp_path / "encoder.onnx", pixels)
    with torch.inference_mode():
        np.testing.assert_allclose(embedding, reduced(pixels).numpy(), atol=1e-4)


def test_export_onnx_is_quiet_and_leaves_the_mode(
    build_tiny: BuildTiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    encoder = build_tiny(drop_path_rate=0.5).train()
    export_onnx(encoder, tmp_path / "encoder.onnx")
    assert encoder.training
    assert encoder.backbone.blocks[-1].training
    assert capfd.readouterr() == ("", "")
    model = onnx.load(tmp_path / "encoder.onnx")
    onnx.checker.check_model(model)
    operators = {node.op_type for node in model.graph.node}
    assert "LayerNormalization" in operators
    assert operators.isdisjoint({"Loop", "If", "Dropout", "RandomUniformLike"})


class NoisyEncoder(ImageEncoder):
    """An encoder that a graph cannot repeat: it computes something else in each call."""

    def forward_both(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding, patch_tokens = super().forward_both(pixels)
        return embedding + 0.5 * torch.rand_like(embedding), patch_tokens


def test_export_onnx_refuses_a_graph_that_differs(build_tiny: BuildTiny, tmp_path: Path) -> None:
    tiny = build_tiny()
    with pytest.raises(ArtifactError, match=r"differs from torch \(cosine 0\.\d+; expected at least 0\.9999\)"):
        export_onnx(NoisyEncoder(tiny.backbone, tiny.spec), tmp_path / "encoder.onnx")
    assert list(tmp_path.iterdir()) == []


def test_export_folder_adds_the_graph_to_the_manifest(build_tiny: BuildTiny, tmp_path: Path) -> None:
    fingerprint = save_encoder(build_tiny(), tmp_path, config={"recipe": "small"})
    before = json.loads((tmp_path / "manifest.json").read_text())
    export_folder(tmp_path)
    after = json.loads((tmp_path / "manifest.json").read_text())
    assert after["sha256"].keys() == {"encoder.json", "encoder.onnx"}
    assert after["fingerprint"] == fingerprint
    assert {**after, "sha256": None} == {**before, "sha256": None}
    export_folder(tmp_path)  # again: replaced
    assert not list(tmp_path.glob("*.tmp"))
