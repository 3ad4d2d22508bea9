"""Whole runs, train then evaluate, on small trees in the official layout of every benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data.benchmark_trees import (
    write_cub200,
    write_inshop,
    write_revisited,
    write_revisitop1m,
    write_sfm120k,
    write_sop,
)
from vitrieve.cli.main import main

SMALL = (
    *("--model.backbone", "test_vit", "--image-size", "32", "--num-threads", "1"),
    *("--train.checkpoint-every", "2", "--num-steps", "4", "--no-report", "--json"),
)


@pytest.fixture
def run_json(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run a command that must succeed; return what it printed."""

    def run(*words: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main(list(words)) == 0
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


@pytest.mark.parametrize(
    ("name", "write", "ks"),
    [("cub200", write_cub200, (1, 2, 4, 8)), ("sop", write_sop, (1, 10, 100)), ("inshop", write_inshop, (1, 10, 20))],
)
def test_benchmark_run_trains_and_evaluates(
    name: str,
    write: Callable[[Path], Path],
    ks: tuple[int, ...],
    tiny_weights: Path,
    tmp_path: Path,
    run_json: Callable[..., dict[str, Any]],
) -> None:
    source = f"{name}:{write(tmp_path / name)}"
    run, weights = tmp_path / "run", ("--model.weights", str(tiny_weights))
    words = ("train", f"irt_r_{name}", "--data", source, "--out", str(run), "--batch-size", "8", *weights, *SMALL)
    trained = run_json(*words)
    assert trained["num_steps"] == 4
    assert trained["config"]["objective"]["koleo"]["weight"] == 0.7
    words = ("evaluate", "--encoder", str(run), "--data", source, "--out", str(tmp_path / "evaluation"), "--json")
    (result,) = run_json(*words)["results"]
    assert result["dataset"] == name
    assert all(0 <= result[f"recall_at_{k}"] <= 1 for k in ks)
    assert result["num_unreadable"] == 0
    assert (tmp_path / "evaluation" / "report.html").is_file()


def test_benchmark_run_sfm120k_then_roxford5k_with_distractors(
    tiny_weights: Path, tmp_path: Path, run_json: Callable[..., dict[str, Any]]
) -> None:
    sfm = write_sfm120k(tmp_path / "sfm120k")
    oxford = write_revisited(tmp_path / "roxford5k", "roxford5k")
    million = write_revisitop1m(tmp_path / "revisitop1m")
    run, weights = tmp_path / "run", ("--model.weights", str(tiny_weights))
    words = ("train", "irt_r_sfm120k", "--data", f"sfm120k:{sfm}", "--out", str(run), *weights, *SMALL)
    trained = run_json(*words, "--tuples.tuples-per-batch", "2", "--tuples.num-negatives", "3")
    assert trained["num_steps"] == 4
    assert "0" in trained["holdout_map_at_r"]
    words = ("evaluate", "--encoder", str(run), "--data", f"roxford5k:{oxford}", "--json", "--out")
    alone = run_json(*words, str(tmp_path / "alone"))["results"]
    assert [result["protocol"] for result in alone] == ["easy", "medium", "hard"]
    assert all(0 <= result["mean_average_precision"] <= 1 for result in alone)
    crowd = run_json(*words, str(tmp_path / "crowd"), "--distractors", f"revisitop1m:{million}")["results"]
    for one, other in zip(alone, crowd, strict=True):
        assert other["num_gallery"] == one["num_gallery"] + 5
        assert other["mean_average_precision"] <= one["mean_average_precision"] + 1e-9
