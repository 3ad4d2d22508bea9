"""The chooser: its facts beside timm and a count, and one small model of each family built, exported and run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from vitrieve.cli.main import main
from vitrieve.config import DEFAULT_WEIGHTS, ModelConfig
from vitrieve.model.backbone import count_cost
from vitrieve.model.catalog import FAMILIES, Family, read_facts
from vitrieve.model.encoder import ImageEncoder, build_encoder
from vitrieve.model.export import MIN_COSINE, export_onnx
from vitrieve.model.pretrained import WEIGHTS, find_weights
from vitrieve.reproduce.published import CUB, INSHOP, PUBLISHED, REVISITED, SOP

NAMES = [name for family in FAMILIES for name in family.names]
NAMES_WITHOUT_HUB = ("dinov2-vits14", "vitrieve-general-v2", "vitrieve-general-v1", "efficientnet-lite0")
COUNTED = ("vit_small_patch14_dinov2.lvd142m", "convnext_tiny.fb_in22k", "vitrieve-general-v2")
SHALLOW: dict[str, dict[str, Any]] = {
    "DINOv2": {"depth": 1, "img_size": 28},
    "DINOv2 with registers": {"depth": 1, "img_size": 28},
    "DINOv3": {"depth": 1, "img_size": 32},
    "SigLIP 2, image tower": {"depth": 1, "embed_dim": 192, "num_heads": 3, "img_size": 32},
    "Perception Encoder, core": {"depth": 1, "img_size": 32},
    "MLCD": {"depth": 1, "img_size": 64},
    "DeiT III": {"depth": 1, "img_size": 32},
    "ConvNeXt": {"depths": (1, 1, 1, 1), "dims": (16, 32, 48, 64)},
    "EfficientNet": {},
    "DeiT": {"depth": 1, "img_size": 32},
    "ResNet": {"layers": (1, 1, 1, 1)},
}
"""The first name of each family, with few layers: their kinds and their order are what matters."""
IS_LONG = os.environ.get("VITRIEVE_LONG_TESTS") == "1"


def test_every_name_has_its_facts() -> None:
    facts = read_facts()
    assert facts.keys() == WEIGHTS.keys()
    assert set(NAMES) < WEIGHTS.keys()
    for name in NAMES_WITHOUT_HUB:  # the entries of the others are made of their facts
        entry = WEIGHTS[name]
        assert (facts[name].image_size, facts[name].num_bytes) == (entry.image_size, entry.num_bytes)
    for family in FAMILIES:
        assert {name for name, _ in family.published} <= set(family.names)


@pytest.mark.parametrize("name", [name for name in read_facts() if IS_LONG or name in COUNTED])
def test_facts_are_those_of_a_count(name: str) -> None:
    facts = read_facts()[name]
    cost = count_cost(name, facts.image_size)
    assert facts.num_parameters == cost.num_parameters
    assert facts.gflops == round(cost.flops / 1e9, 2)


def test_mlcd_has_the_facts_of_its_repositories() -> None:
    """The numbers are those that mteb states for revisions 0862ef0 and bd75627 of the hub's repositories."""
    stated = {"mlcd-vit-base-patch32-224": 87_456_000, "mlcd-vit-large-patch14-336": 303_507_456}
    for name, num_parameters in stated.items():
        entry = find_weights(name)
        assert (entry.hub_id, entry.license) == (f"DeepGlint-AI/{name}", "Apache-2.0")
        assert read_facts()[name].num_parameters == num_parameters
        assert entry.image_size == int(name.rpartition("-")[2])
        assert entry.mean == (0.48145466, 0.4578275, 0.40821073)
        assert entry.std == (0.26862954, 0.26130258, 0.27577711)
        assert entry.architecture.endswith(f"_quickgelu_{entry.image_size}")
    assert find_weights("mlcd-vit-large-patch14-336").num_bytes == pytest.approx(1_214_077_616, rel=1e-4)


def build_small(family: Family, monkeypatch: pytest.MonkeyPatch) -> ImageEncoder:
    """Build the encoder of the first name of a family as a user's command does, with few layers and a small input."""
    options = SHALLOW[family.title]
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **given: create(name, **{**options, **given}))
    size = options.get("img_size", 64)
    config = ModelConfig(backbone=family.names[0], image_size=size, drop_path_rate=0.0)
    return build_encoder(config, is_pretrained=False, seed=0).eval()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.title)
def test_one_of_each_family_is_built_exported_and_encodes(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = build_small(family, monkeypatch)
    assert encoder.spec.pooling == family.pooling
    assert encoder.spec.weights_source == "none (random)"
    assert export_onnx(encoder, tmp_path / "encoder.onnx") >= MIN_COSINE
    size = encoder.spec.preprocessing.image_size
    with torch.inference_mode():
        embedding = encoder(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)))
    np.testing.assert_allclose(embedding.norm(dim=1), 1, rtol=1e-5)


def test_the_published_figures_of_deit_are_those_of_the_papers_table() -> None:
    table = PUBLISHED["table3"]["irt_o"]
    family = next(family for family in FAMILIES if family.title == "DeiT")
    shown = [figure.percent for name, figure in family.published if name == "deit_small_patch16_224.fb_in1k"]
    assert shown == [table[key] for key in (REVISITED[1], CUB[0], SOP[0], INSHOP[0])]


@pytest.mark.skipif(not IS_LONG, reason="builds 35 whole models: VITRIEVE_LONG_TESTS=1 (make test-all)")
@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_built_exported_and_encodes(name: str, tmp_path: Path) -> None:
    entry = find_weights(name)
    config = ModelConfig(backbone=name, image_size=entry.image_size, drop_path_rate=0.0)
    encoder = build_encoder(config, is_pretrained=False, seed=0).eval()
    assert encoder.spec.embedding_dim == read_facts()[name].dimensions
    assert export_onnx(encoder, tmp_path / "encoder.onnx") >= MIN_COSINE


def test_list_is_a_table_of_at_most_110_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 110
    titles = [line for line in lines if line.startswith("DINOv3")]
    assert titles == ["DINOv3 (dinov3-license): derived weights stay under the DINOv3 License (its section 1.b.i)"]
    (row,) = [line for line in lines if "vit_base_patch16_dinov3.lvd1689m" in line]
    speed = str(read_facts()["vit_base_patch16_dinov3.lvd1689m"].images_per_second)
    assert row.split()[:7] == ["vit_base_patch16_dinov3.lvd1689m", "256", "768", "47.1", speed, "cls", "58.5"]
    assert [line.split()[1] for line in lines if line.startswith("* ") and "is the" not in line] == [DEFAULT_WEIGHTS]


def test_list_json_and_describe_tell_license_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["weights"]}
    row = rows["vit_large_patch16_dinov3.lvd1689m"]
    assert (row["license"], row["family"], row["dimensions"]) == ("dinov3-license", "DINOv3", 1024)
    assert "stay under the DINOv3 License" in row["asks_of_derived_weights"]
    assert [figure["percent"] for figure in row["published"]] == [63.1, 31.1]
    assert all("arXiv" in figure["source"] for figure in row["published"])
    assert main(["weights", "describe", "vit_small_patch16_dinov3.lvd1689m"]) == 0
    printed = capsys.readouterr().out
    assert "published: mAP on revisited Oxford, hard 49.5 % (DINOv3's model card (arXiv:2508.10104))" in printed
    assert "pooling: cls" in printed
    assert main(["weights", "describe", "vit_tiny_patch16_224"]) == 0
    assert "the license asks: unknown, read it" in capsys.readouterr().out
