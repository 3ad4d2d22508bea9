"""The script that measures trainings of few weights, with a stub in place of the training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TRAINING = """
import json, os, pathlib, signal, sys
words = sys.argv[1:]
out = pathlib.Path(words[words.index("--out") + 1])
with (out.parent / "trainings").open("a") as file:
    file.write(json.dumps(words) + chr(10))
if "FAIL" in os.environ and os.environ["FAIL"] in words:
    sys.exit(1)
if "STAY" in os.environ:
    print(os.getpid(), flush=True)
    signal.pause()
(out / "state").mkdir(parents=True, exist_ok=True)
(out / "state" / "1").write_bytes(b"0")
measured = {"0": 0.1, "1": 0.5 + words.count("--objective.distillation.weight") / 10}
(out / "manifest.json").write_text(json.dumps({"holdout_map_at_r": measured, "kept_step": 1, "seconds": 2}))
(out / "metrics.jsonl").write_text(json.dumps({"images_per_second": 3}) + chr(10))
"""


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    path = tmp_path / "training.py"
    path.write_text(TRAINING)
    return path


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, stub: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = import_module("few_weights")
    monkeypatch.setattr(script, "TRAIN", (sys.executable, str(stub)))
    monkeypatch.setattr(script, "export_difference", lambda folder: None)
    monkeypatch.setattr(script, "write_result", lambda path, result: path.write_text(json.dumps(result)))
    monkeypatch.setattr(script.signal, "signal", lambda *_: None)
    return script


def run(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, out: Path, *words: str
) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """Run it with one seed; return its figures and how often it has trained so far."""
    monkeypatch.setattr(sys, "argv", ["few_weights.py", str(out), "--data", "folder:x", "--seeds", "1", *words])
    script.main()
    return read_runs(out), len((out / "trainings").read_text().splitlines())


def read_runs(out: Path) -> dict[str, list[dict[str, Any]]]:
    runs: dict[str, list[dict[str, Any]]] = json.loads((out / "few_weights.json").read_text())["runs"]
    return runs


def test_figures_of_another_call_are_not_taken_for_those_of_this_one(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(script, "list_seen_data", lambda teacher, data: "")
    out = tmp_path / "out"
    _, num_first = run(script, monkeypatch, out)
    assert num_first == 4
    runs, num_taught = run(script, monkeypatch, out, "--teacher", "large")
    assert num_taught == num_first + 2  # what was measured without a teacher is kept
    assert {name: one["map_at_r"] for name, (one,) in runs.items()} == {
        "full": 0.5,
        "lora": 0.5,
        "prompts": 0.5,
        "distilled": 0.6,
        "lora, distilled": 0.6,
        "two-pass 1,024": 0.5,
    }
    assert run(script, monkeypatch, out, "--teacher", "large")[1] == num_taught
    assert run(script, monkeypatch, out, "--memory-gib", "2")[1] == num_taught + 1
    assert run(script, monkeypatch, out, "--steps", "3", "--memory-gib", "2")[1] == num_taught + 5


def test_a_variant_that_fails_costs_no_other(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAIL", "small_lora")
    with pytest.raises(SystemExit, match="not measured, because the training failed: lora of seed 0"):
        run(script, monkeypatch, tmp_path / "out")
    assert {name: len(runs) for name, runs in read_runs(tmp_path / "out").items()} == {
        "full": 1,
        "lora": 0,
        "prompts": 1,
        "two-pass 1,024": 1,
    }
    table = capsys.readouterr().out
    assert "| two-pass 1,024 |" in table
    assert "| lora |" not in table


def test_a_teacher_that_has_seen_the_classes_that_measure_is_refused(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "list_seen_data", lambda teacher, data: "grocery" if teacher == "seen" else "")
    with pytest.raises(SystemExit):
        run(script, monkeypatch, tmp_path / "out", "--teacher", "seen")
    assert "seen was trained on all classes of grocery, also those that measure" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_script_that_is_stopped_leaves_no_training_behind(stub: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = f"import few_weights; few_weights.TRAIN = {(sys.executable, str(stub))!r}; few_weights.main()"
    words = [sys.executable, "-c", code, str(out), "--data", "folder:x"]
    environment = {**os.environ, "STAY": "1"}
    with subprocess.Popen(words, cwd=BENCHMARKS, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        training = int(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(training, 0)
