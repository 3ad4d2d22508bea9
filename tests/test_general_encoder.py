"""The script that trains a general encoder and judges it on what it never saw, whole and tiny."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.data.benchmark_trees import write_cub200
from vitrieve.model.artifact import read_contents

torch = pytest.importorskip("torch", reason="needs vitrieve[train]")

from vitrieve.model.encoder import save_encoder  # noqa: E402  (needs torch)

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, which imports its neighbors; forgotten again. The export, which takes longest, is left out."""
    known = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr("vitrieve.training.finishing.export_folder", lambda folder: None)
    yield import_module("general_encoder")
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(BENCHMARKS)):
            del sys.modules[name]


def test_no_encoder_is_measured_on_what_it_was_trained_on_and_finished_runs_are_not_repeated(
    script: ModuleType, photographs: Path, class_folder: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    shutil.copytree(class_folder, tmp_path / "clothing")
    sources = {
        "grocery": f"folder:{photographs}",
        "clothing-small": f"folder:{tmp_path / 'clothing'}",
        script.JUDGE: f"cub200:{write_cub200(tmp_path / 'birds')}",
    }
    tests = [
        script.Test(collection="grocery", protocol="own_classes"),
        script.Test(collection="clothing-small", protocol="own_classes", classes="all"),
        script.Test(collection=script.JUDGE, protocol="zero_shot", metrics=("recall_at_1",)),
    ]
    model = {"model.backbone": "test_vit", "model.weights": str(tiny_weights), "model.image_size": 32}
    settings = {"loader.sources": "mixed", "num_steps": 1, "batch_size": 8, "num_threads": 1, "holdout": False}
    plan = script.Plan(sources=sources, overrides={**model, **settings}, seeds=[7], tests=tests, delta_rank=None)
    out = tmp_path / "out"

    def find_runs() -> dict[tuple[str, int | None], dict[str, Any]]:
        return {(line["left_out"], line["seed"]): line for line in script.read_lines(out)}

    script.run_plan(plan, out)
    runs = find_runs()
    assert runs.keys() == {(left_out, seed) for left_out in sources for seed in (None, 7)}
    assert [run["trained_on"] for run in runs.values()] == [
        [],
        [],
        [],
        ["clothing-small"],
        ["grocery"],
        list(sources)[:2],
    ]
    for (left_out, seed), run in runs.items():
        assert [test.split(",")[0] for test in run["tests"]] == [left_out]
        if seed is not None:
            assert {one["name"]: one["num_classes"] for one in run["sources"]} == {
                name: {"grocery": 10, "clothing-small": 5}[name] for name in run["trained_on"]
            }
            assert (out / run["encoder"] / "model.safetensors").is_file()
    assert runs["clothing-small", 7]["tests"]["clothing-small, own_classes, all classes"]["num_queries"] == 20

    table = (out / "general_encoder.md").read_text()
    assert "| grocery, own_classes | clothing-small (20 images of 5 classes, 0 more held out) | recall_at_1 |" in table
    assert (
        f"| {script.JUDGE}, zero_shot | grocery (30 images of 10 classes, 0 more held out), clothing-small (20" in table
    )
    rows = json.loads((out / "general_encoder.json").read_text())["rows"]
    assert [row["metric"] for row in rows] == ["recall_at_1", "map_at_r"] * 2 + ["recall_at_1"]
    tuned = runs["grocery", 7]["tests"]["grocery, own_classes"]
    assert (rows[0]["mean"], rows[0]["deviation"]) == (tuned["recall_at_1"], None)
    assert rows[0]["frozen"] == runs["grocery", None]["tests"]["grocery, own_classes"]["recall_at_1"]

    before = (out / "results.jsonl").read_bytes()
    script.run_plan(plan, out)
    assert (out / "results.jsonl").read_bytes() == before
    lines = before.splitlines(keepends=True)
    (out / "results.jsonl").write_bytes(b"".join(lines[:-1]))  # stopped before the last line was written
    script.run_plan(plan, out)
    again = find_runs()[script.JUDGE, 7]
    assert again["tests"] == runs[script.JUDGE, 7]["tests"]


def test_a_script_that_is_stopped_after_the_training_goes_on_with_what_it_trained(
    script: ModuleType,
    photographs: Path,
    class_folder: Path,
    tiny_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(class_folder, tmp_path / "clothing")
    sources = {"grocery": f"folder:{photographs}", "clothing-small": f"folder:{tmp_path / 'clothing'}"}
    tests = [script.Test(collection="grocery", protocol="own_classes")]
    model = {"model.backbone": "test_vit", "model.weights": str(tiny_weights), "model.image_size": 32}
    settings = {"loader.sources": "mixed", "num_steps": 1, "batch_size": 8, "num_threads": 1, "holdout": False}
    plan = script.Plan(sources=sources, overrides={**model, **settings}, seeds=[7], tests=tests, chosen=["grocery"])
    out = tmp_path / "out"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def have_no_difference(*_: object, **__: object) -> None:
        raise script.ConfigError("there is no difference to keep")

    monkeypatch.setattr(script, "export", have_no_difference)
    with monkeypatch.context() as patch:
        patch.setattr(script.shutil, "copytree", stop)
        with pytest.raises(KeyboardInterrupt):
            script.run_plan(plan, out)
    folder = script.find_run(plan, "grocery", 7, out)
    assert folder.is_dir()
    monkeypatch.setattr(script, "train", None)  # nothing is trained again
    script.run_plan(plan, out)
    (line,) = (line for line in script.read_lines(out) if line["seed"] is not None)
    assert "small_tests" not in line
    assert (out / line["encoder"] / "model.safetensors").is_file()
    assert not folder.exists()


def test_the_weights_of_several_seeds_are_averaged_and_measured_in_both_forms(
    script: ModuleType,
    photographs: Path,
    class_folder: Path,
    tiny_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(class_folder, tmp_path / "clothing")
    sources = {"grocery": f"folder:{photographs}", "clothing-small": f"folder:{tmp_path / 'clothing'}"}
    tests = [script.Test(collection="grocery", protocol="own_classes")]
    model = {"model.backbone": "test_vit", "model.weights": str(tiny_weights), "model.image_size": 32}
    settings = {**model, "loader.sources": "mixed"}
    plan = script.Plan(sources=sources, overrides=settings, seeds=[3, 5], tests=tests, chosen=["grocery"])
    out = tmp_path / "out"
    start = script.build_encoder(plan.build_config().model)
    generator = torch.Generator().manual_seed(0)

    def train_nothing(plan: Any, left_out: str, seed: int, out: Path) -> dict[str, Any]:
        """Write an encoder beside the start in place of a training."""
        encoder = copy.deepcopy(start)
        with torch.no_grad():
            for weights in encoder.parameters():
                weights += 0.01 * torch.randn(weights.shape, generator=generator)
        folder = out / "encoders" / f"of-{seed}"
        save_encoder(encoder, folder)
        script.find_run(plan, left_out, seed, out).mkdir(parents=True)
        measured = script.measure_both_forms(plan, folder, left_out, folder)
        source = {"name": "clothing-small", "num_images": 20, "num_classes": 5, "num_held_out_classes": 0}
        return {"encoder": f"encoders/of-{seed}", "seconds": 1.0, "sources": [source], **measured}

    def write_difference(encoder: Path, *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(folder=encoder, num_bytes=1)  # the start has no name, so there is no real difference

    monkeypatch.setattr(script, "train_and_measure", train_nothing)
    monkeypatch.setattr(script, "export", write_difference)
    script.run_plan(plan, out)
    *_, line = script.read_lines(out)
    assert line["seed"] == "mean of 3, 5"
    weights = [read_contents(out / "encoders" / name).states for name in ("of-3", "of-5")]
    for name, array in read_contents(out / line["encoder"]).states.items():
        np.testing.assert_allclose(array, (weights[0][name] + weights[1][name]) / 2, rtol=0, atol=1e-6)
    (row, _) = json.loads((out / "general_encoder.json").read_text())["rows"]
    test = line["tests"]["grocery, own_classes"]
    assert (row["average"], row["average_small"], len(row["values"])) == (
        test["recall_at_1"],
        line["small_tests"]["grocery, own_classes"]["recall_at_1"],
        2,
    )
    before = (out / "results.jsonl").read_bytes()
    script.run_plan(plan, out)
    assert (out / "results.jsonl").read_bytes() == before


def test_trainings_with_other_settings_have_other_folders(script: ModuleType) -> None:
    sources = {name: name for name in script.TRAINING}
    plans = [
        script.Plan(sources=sources, recipe=recipe, overrides={"loader.sources": "mixed", "num_steps": num_steps})
        for recipe in ("small", "small_lora")
        for num_steps in (1, 200)
    ]
    assert len({script.find_run(plan, "emoji", seed, Path("out")) for plan in plans for seed in (0, 1)}) == 8


def test_collections_that_only_judge_are_never_trained_on(script: ModuleType) -> None:
    plan = script.Plan(sources={name: name for name in (*script.TRAINING, script.JUDGE)})
    assert plan.left_out == ["grocery", "emoji", "clothing-small", "cub200-subset"]
    assert [plan.list_trained(left_out) for left_out in plan.left_out] == [
        ["emoji", "clothing-small"],
        ["grocery", "clothing-small"],
        ["grocery", "emoji"],
        ["grocery", "emoji", "clothing-small"],
    ]
