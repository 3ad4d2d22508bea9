"""Every part of a training on a GPU that is pretended (``pretend_cuda.py``): no tensor is made on the wrong device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.pretend_cuda import CUDA, WrongDeviceError, pretend_cuda
from vitrieve.config import ModelConfig
from vitrieve.data.records import ImageRecord
from vitrieve.data.sources import read_source
from vitrieve.errors import ConfigError
from vitrieve.model.encoder import ImageEncoder, add_reduction, build_encoder
from vitrieve.model.reduction import fit_pca
from vitrieve.runtime.encoder import Encoder, load_encoder, wrap_encoder
from vitrieve.runtime.engine import CPU_BATCH_SIZE, GPU_BATCH_SIZE
from vitrieve.training.reduction import reduce_encoder
from vitrieve.training.run import train


@pytest.fixture(autouse=True)
def _without_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the export out: it reads the encoder's folder again, on the CPU, and cannot be traced here."""
    monkeypatch.setattr("vitrieve.training.finishing.export_folder", lambda folder: None)


@pytest.fixture
def settings(tiny_weights: Path) -> dict[str, Any]:
    return {
        "model": {"backbone": "test_vit", "weights": tiny_weights, "image_size": 32},
        "num_steps": 2,
        "batch_size": 6,
        "num_threads": 1,
        "train.compile": False,
    }


@pytest.fixture
def encoder_on_gpu(tiny_weights: Path) -> ImageEncoder:
    model = ModelConfig(
        backbone="test_vit", weights=str(tiny_weights), image_size=32, pooling="gem", gem_learnable=True
    )
    return build_encoder(model).eval()


def test_the_pretended_gpu_refuses_what_a_gpu_refuses() -> None:
    with pretend_cuda():
        on_gpu, on_cpu = torch.ones(3, device="cuda"), torch.ones(3)
        assert (on_gpu + 1).device == on_cpu.to("cuda").device == CUDA
        assert (on_gpu.cpu() + on_cpu).device.type == "cpu"
        with pytest.raises(WrongDeviceError, match=r"aten::add\.Tensor: expected all tensors on cuda:0"):
            on_gpu + on_cpu
        with pytest.raises(WrongDeviceError, match="numpy"):
            on_gpu.numpy()
        layer = torch.nn.Linear(3, 3).to("cuda")
        loss = layer(on_gpu).sum()
        loss.backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.device == CUDA


def test_a_reduction_is_fitted_and_added_where_the_encoder_is(photographs: Path, encoder_on_gpu: ImageEncoder) -> None:
    records: list[ImageRecord] = list(read_source(f"folder:{photographs}").records)
    with pretend_cuda():
        encoder = encoder_on_gpu.to("cuda")
        reduced = reduce_encoder(encoder, records, 8, fitted_on="tests", precision="fp32")
        assert {tensor.device for tensor in reduced.state_dict().values()} == {CUDA}
        assert reduced(torch.zeros(2, 3, 32, 32, device="cuda")).shape == (2, 8)


def test_add_reduction_makes_what_it_adds_on_the_encoders_device(encoder_on_gpu: ImageEncoder) -> None:
    pca = fit_pca(np.random.default_rng(0).standard_normal((99, 64)), 4, fitted_on="tests")
    with pretend_cuda():
        reduced = add_reduction(encoder_on_gpu.to("cuda"), pca)
        assert {tensor.device for tensor in reduced.state_dict().values()} == {CUDA}


CASES: dict[str, dict[str, Any]] = {
    "measured, averaged, reduced and reported on": {
        **{"embedding_dim": 8, "whiten": True, "pooling": "gem", "gem_learnable": True},
        **{"ema_decay": 0.9, "frozen_share": 0.3},
    },
    "all memories and proxies": {
        **{"contrastive_weight": 1.0, "memory_fraction": 0.5, "memory_momentum": 0.9, "koleo_weight": 0.3},
        **{"proxy_anchor_weight": 1.0, "proxy_nca_weight": 1.0, "normalized_softmax_weight": 1.0},
        **{"scalable_nca_weight": 1.0, "head_norm": True, "head_dim": 16, "holdout": False, "low_resolution_size": 16},
    },
    "losses over pairs and ranks, with prefixes": {
        **{f"{name}_weight": 1.0 for name in ("supervised_contrastive", "smooth_ap", "recall_at_k", "circle")},
        **{"triplet_weight": 1.0, "hyperbolic_weight": 1.0, "margin_softmax_weight": 1.0, "memory_fraction": 0.5},
        **{"margin_softmax.from_images": True, "num_centers": 2, "prefixes": (16, 32), "holdout": False},
    },
    "tuples in little memory": {
        **{"sampling": "tuples", "multi_similarity_weight": 0.0, "tuple_contrastive_weight": 1.0, "koleo_weight": 1.0},
        **{"num_pairs": 4, "num_candidates": 12, "tuples_per_batch": 2, "holdout": False},
        **{"memory_limit_gib": 0.1, "cache_bytes": 0, "microbatch_size": 8, "patch_drop_rate": 0.25},
    },
}


@pytest.mark.parametrize("name", CASES)
def test_a_whole_training_on_a_gpu(
    name: str, photographs: Path, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "memory_limit_gib" in CASES[name]:  # so that each batch is embedded twice
        monkeypatch.setattr("vitrieve.training.compute.measure_graph_bytes", lambda *_: (0, 10_000_000))
    devices = record_devices(monkeypatch)
    report = "embedding_dim" in CASES[name]
    with pretend_cuda():
        train(
            f"folder:{photographs}", "small", tmp_path / "run", device="cuda", report=report, **settings, **CASES[name]
        )
    summary = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert summary["num_steps"] == 2
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in losses if "loss" in line)
    assert devices == {"before": {"cuda"}, "after": {"cuda"}, "training": {"cuda"}} if report else True


def record_devices(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Note where each encoder that measures computes."""
    devices: dict[str, set[str]] = {}

    def note(name: str, wrapped: Encoder) -> Encoder:
        devices.setdefault(name, set()).add(wrapped.device)
        assert wrapped.batch_size == {"cpu": CPU_BATCH_SIZE, "cuda": GPU_BATCH_SIZE}[wrapped.device]
        return wrapped

    def wrap(encoder: ImageEncoder, *, name: str, **given: Any) -> Encoder:
        return note(name, wrap_encoder(encoder, name=name, **given))

    def load(source: Path, **given: Any) -> Encoder:
        return note("after", load_encoder(source, **given))

    for module in ("finishing", "holding_out"):
        monkeypatch.setattr(f"vitrieve.training.{module}.wrap_encoder", wrap)
    monkeypatch.setattr("vitrieve.training.finishing.load_encoder", load)
    return devices


def test_a_convnet_on_a_gpu(photographs: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        model = ModelConfig(backbone="test_resnet", pooling="gem", image_size=64, drop_path_rate=0.0)
        save_file(build_encoder(model, is_pretrained=False).backbone.state_dict(), tmp_path / "convnet.safetensors")
    settings["model"] = {
        **{"backbone": "test_resnet", "weights": tmp_path / "convnet.safetensors", "image_size": 64},
        **{"pooling": "gem", "drop_path_rate": 0.0},
    }
    with pretend_cuda():
        trained = train(f"folder:{photographs}", "small", tmp_path / "run", device="cuda", report=False, **settings)
    assert trained.summary["num_steps"] == 2


def test_a_run_of_a_gpu_is_resumed(
    photographs: Path, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    source = f"folder:{photographs}"
    settings["holdout"] = False
    with monkeypatch.context() as patch, pretend_cuda():
        patch.setattr("vitrieve.training.run.finish_run", stop)
        with pytest.raises(KeyboardInterrupt):
            train(source, "small", tmp_path / "run", device="cuda", report=False, **settings)
    with pretend_cuda():
        resumed = train(source, "small", tmp_path / "run", resume=True, device="cuda", report=False, **settings)
    assert resumed.summary["num_steps"] == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_train_refuses_a_gpu_that_is_not_there(photographs: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torch sees no CUDA device here"):
        train(f"folder:{photographs}", "small", tmp_path / "run", device="cuda", **settings)
