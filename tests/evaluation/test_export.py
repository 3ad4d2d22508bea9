"""What a low-rank difference costs, beside sums written out here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from vitrieve.cli.main import main
from vitrieve.config import ModelConfig
from vitrieve.evaluation.export import _compare_weights, export
from vitrieve.evaluation.run import evaluate
from vitrieve.model.artifact import read_contents
from vitrieve.model.delta import Delta
from vitrieve.model.pretrained import DESCRIPTION_FILE, WEIGHTS, WEIGHTS_FILE, WeightsEntry
from vitrieve.model.wheels import WheelSource
from vitrieve.runtime.encoder import load_encoder

torch = pytest.importorskip("torch", reason="training needs vitrieve[train]")


@pytest.fixture
def tuned(tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's encoder that started from weights with a name, and moved in all directions."""
    from vitrieve.model.encoder import build_encoder, save_encoder

    wheel = WheelSource(requirement="none==0", wheel_sha256="", member="", member_sha256="", reader="dinov2_onnx")
    entry = WeightsEntry(name="tiny-base", architecture="test_vit", license="none", wheel=wheel)
    monkeypatch.setitem(WEIGHTS, "tiny-base", entry)
    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path / "cache"))
    cached = tmp_path / "cache" / "weights" / "tiny-base"
    cached.mkdir(parents=True)
    (cached / WEIGHTS_FILE).write_bytes(tiny_weights.read_bytes())
    (cached / DESCRIPTION_FILE).write_text(json.dumps({"safetensors_bytes": tiny_weights.stat().st_size}))
    with torch.random.fork_rng(devices=[]):
        encoder = build_encoder(ModelConfig(backbone="tiny-base", image_size=32), seed=0).eval()
        for parameter in encoder.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    save_encoder(encoder, tmp_path / "run" / "encoder")
    return tmp_path / "run"


def test_export_measures_what_a_difference_costs(tuned: Path, photographs: Path, tmp_path: Path) -> None:
    made = export(tuned, tmp_path / "small", delta_rank=4, data=f"folder:{photographs}")
    cost = made.delta
    assert cost is not None
    full, small = read_contents(tuned / "encoder").states, read_contents(made.folder).states
    start = {name: array for name, array in read_contents_of_start().items()}
    lost = sum(float(((full[name] - small[name]).astype(float) ** 2).sum()) for name in full)
    total = sum(float((array.astype(float) ** 2).sum()) for array in full.values())
    change = sum(float(((full[f"backbone.{name}"] - start[name]).astype(float) ** 2).sum()) for name in start)
    assert cost.weight_error == pytest.approx((lost / total) ** 0.5, rel=1e-4)
    assert cost.lost_fraction == pytest.approx((lost / change) ** 0.5, rel=1e-4)
    assert 0.5 < cost.lost_fraction < 1  # noise in all directions has no low rank
    before, after = (load_encoder(one, engine="torch", precision="fp32") for one in (tuned, made.folder))
    training = sorted(path for path in photographs.rglob("*.png") if path.parent.name not in ("class4", "class9"))
    cosines = (before.encode(training) * after.encode(training)).sum(axis=1)
    assert cost.num_images == len(training) == 24
    assert cost.mean_cosine == pytest.approx(cosines.mean(), abs=1e-5)
    assert cost.min_cosine == pytest.approx(cosines.min(), abs=1e-5)
    for encoder, figures in ((before, cost.before), (after, cost.after)):
        assert figures == evaluate(encoder, f"folder:{photographs}").results[0].metrics
    card = (made.folder / "README.md").read_text()
    assert made.fingerprint in card
    assert load_encoder(tuned).fingerprint not in card
    assert "difference of rank 4 to the weights tiny-base" in card


def test_statistics_of_batch_norm_do_not_hide_what_the_weights_lose() -> None:
    generator = np.random.default_rng(0)
    start = {
        "conv.weight": generator.standard_normal((6, 6)),
        "bn.running_var": np.ones(6),
        "bn.running_mean": np.zeros(6),
    }
    states = {name: np.float32(array) for name, array in start.items()}
    states["conv.weight"] = np.float32(start["conv.weight"] + 0.01)
    states["bn.running_var"] = np.full(6, 400, np.float32)
    restored = {**states, "conv.weight": np.float32(start["conv.weight"] + 0.005)}
    delta = Delta(base="x", base_sha256="", rank=1, parts={})
    cost = _compare_weights(delta, states, restored, {name: np.float32(array) for name, array in start.items()})
    assert cost.lost_fraction == pytest.approx(0.5, rel=1e-3)


def test_pictures_without_test_classes_cost_no_figures_and_no_export(
    tuned: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4, 10):
        shutil.rmtree(photographs / f"class{number}")
    made = export(tuned, tmp_path / "small", delta_rank=4, data=f"folder:{photographs}")
    assert made.delta is not None
    assert (made.delta.num_images, made.delta.before) == (12, {})
    assert made.file.is_file()
    assert "no Recall@1: data set photographs (own_classes) has 0 queries" in capsys.readouterr().err


def read_contents_of_start() -> dict[str, np.ndarray]:
    from vitrieve.model.pretrained import pull_weights
    from vitrieve.model.tensors import read_arrays

    return read_arrays(pull_weights("tiny-base"))


def test_export_command_prints_the_cost(
    tuned: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "--encoder", str(tuned), "--delta-rank", "4", "--out", str(tmp_path / "small")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "delta.safetensors: 0." in printed
    assert "of the weights" in printed
    assert "Of the fine-tuning" in printed
    assert "cosine" not in printed
    assert main(words) == 2  # there already
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--data", str(photographs), "--exclude", "class0", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["file"] == "delta.safetensors"
    assert made["delta"]["rank"] == 4
    assert made["delta"]["num_images"] == 27
    assert made["delta"]["before"] == {}
    assert main(["export", "--encoder", str(tuned), "--data", str(photographs)]) == 2
    assert "--delta-rank" in capsys.readouterr().err
