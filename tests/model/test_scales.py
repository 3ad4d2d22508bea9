from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vitrieve.errors import ConfigError
from vitrieve.model.encoder import ImageEncoder, add_reduction, fingerprint_encoder, read_encoder, save_encoder
from vitrieve.model.export import MIN_COSINE, export_onnx
from vitrieve.model.pooling import combine_scales, resize_pixels
from vitrieve.model.reduction import fit_pca
from vitrieve.runtime.encoder import load_encoder

BuildTiny = Callable[..., ImageEncoder]
SCALES = (1.0, 2**-0.5, 0.5)


def with_scales(encoder: ImageEncoder, scales: tuple[float, ...]) -> ImageEncoder:
    gem_p = None if encoder.gem_p is None else encoder.gem_p.item()
    spec = replace(encoder.spec, scales=scales)
    return ImageEncoder(encoder.backbone, spec, encoder.reduction, gem_p).eval()


def reference_combine(embeddings: torch.Tensor, p: float) -> list[list[float]]:
    """The generalised mean of each coordinate, one number after the other."""
    combined = []
    for image in embeddings.double().tolist():
        row = []
        for coordinate in zip(*image, strict=True):
            mean = sum(math.copysign(abs(value) ** p, value) for value in coordinate) / len(coordinate)
            row.append(math.copysign(abs(mean) ** (1 / p), mean))
        combined.append(row)
    return combined


@pytest.mark.parametrize("p", [1.0, 2.5, 3.0])
def test_trap_combine_scales_of_negative_numbers_is_finite_and_right(p: float) -> None:
    embeddings = torch.randn(4, 3, 50, generator=torch.Generator().manual_seed(0))
    embeddings = torch.nn.functional.normalize(embeddings, dim=2)
    embeddings[0, :, 0] = 0.0
    combined = combine_scales(embeddings, p)
    assert torch.isfinite(combined).all()
    torch.testing.assert_close(combined, torch.tensor(reference_combine(embeddings, p)), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(combine_scales(-embeddings, p), -combined)


def test_combine_scales_of_one_scale_changes_nothing_and_one_is_the_mean() -> None:
    embeddings = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(combine_scales(embeddings[:, :1], 3.0), embeddings[:, 0])
    torch.testing.assert_close(combine_scales(embeddings, 1.0), embeddings.mean(dim=1))


@pytest.mark.parametrize(
    ("pooling", "is_reduced", "p"), [("gem", False, 3.0), ("gem", True, 1.0), ("rmac", False, 1.0), ("max", False, 1.0)]
)
def test_encoder_of_several_scales_combines_the_embedding_of_each(
    build_tiny: BuildTiny, pooling: str, is_reduced: bool, p: float
) -> None:
    encoder = build_tiny(backbone="test_resnet", pooling=pooling, image_size=96, drop_path_rate=0.0)
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        if is_reduced:
            features = encoder.pool(torch.randn(20, 3, 96, 96, generator=torch.Generator().manual_seed(2)))
            encoder = add_reduction(encoder, fit_pca(features.numpy(), 6, fitted_on="train"))
        embeddings = []
        for side in (96, 68, 48):
            small = torch.nn.functional.interpolate(pixels, (side, side), mode="bilinear", align_corners=False)
            embeddings.append(
                encoder.embed_features(encoder.backbone.forward_features(small).flatten(2).transpose(1, 2))
            )
        expected = torch.tensor(reference_combine(torch.stack(embeddings, dim=1), p))
        found, patch_tokens = with_scales(encoder, SCALES).forward_both(pixels)
        assert torch.equal(patch_tokens, encoder.patch_tokens(pixels))
    torch.testing.assert_close(found, torch.nn.functional.normalize(expected, dim=1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


def test_resize_pixels_rounds_to_whole_pixels() -> None:
    assert resize_pixels(torch.zeros(1, 3, 96, 96), 2**-0.5).shape == (1, 3, 68, 68)
    pixels = torch.randn(1, 3, 8, 8)
    assert torch.equal(resize_pixels(pixels, 1.0), pixels)


@pytest.mark.parametrize(
    ("backbone", "scales", "message"),
    [
        ("test_vit", (1.0, 0.5), r"scales are 1 0\.5, but test_vit is a transformer"),
        ("test_resnet", (1.0, 1.0), r"expected different numbers in \(0, 2\]"),
        ("test_resnet", (1.0, 0.0), r"expected different numbers in \(0, 2\]"),
        ("test_resnet", (1.0, -0.5), r"expected different numbers in \(0, 2\]"),
        ("test_resnet", (float("nan"),), r"expected different numbers in \(0, 2\]"),
        ("test_resnet", (), "scales are none"),
        ("test_resnet", (1.0, 0.25), "scale 0.25 of 64 px leaves 16 px; test_resnet needs 32 or more"),
    ],
)
def test_check_scales_refuses(build_tiny: BuildTiny, backbone: str, scales: tuple[float, ...], message: str) -> None:
    encoder = build_tiny(backbone=backbone, pooling="average", image_size=64, drop_path_rate=0.0)
    with pytest.raises(ConfigError, match=message):
        with_scales(encoder, scales)


def test_scales_are_saved_exported_and_part_of_the_fingerprint(build_tiny: BuildTiny, tmp_path: Path) -> None:
    one = build_tiny(backbone="test_resnet", pooling="gem", image_size=64, drop_path_rate=0.0)
    several = with_scales(one, (1.0, 0.5))
    assert fingerprint_encoder(one) == fingerprint_encoder(with_scales(one, (1.0,))) != fingerprint_encoder(several)
    save_encoder(several, tmp_path / "several")
    assert "| scales of the input | 1, 0.5 |" in (tmp_path / "several" / "README.md").read_text()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(read_encoder(tmp_path / "several")(pixels), several(pixels))
        assert torch.equal(read_encoder(tmp_path / "several", scales=(1.0,))(pixels), one(pixels))
    assert export_onnx(several, tmp_path / "several.onnx") >= MIN_COSINE


def test_trap_scales_are_one_fingerprint_however_they_are_given(build_tiny: BuildTiny, tmp_path: Path) -> None:
    one = build_tiny(backbone="test_resnet", pooling="gem", image_size=64, drop_path_rate=0.0)
    fingerprint = fingerprint_encoder(with_scales(one, (1.0, 0.5)))
    save_encoder(one, tmp_path / "one")
    for given in ((1.0, 0.5), (1, 0.5), [1, 0.5]):
        assert load_encoder(tmp_path / "one", scales=given).fingerprint == fingerprint  # type: ignore[arg-type]
    assert load_encoder(tmp_path / "one", scales=[1]).fingerprint == fingerprint_encoder(one)  # type: ignore[arg-type]
