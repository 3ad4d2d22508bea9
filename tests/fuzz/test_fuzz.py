"""Inputs of strangers: a fixed corpus in every run, ten minutes of new ones with VITRIEVE_LONG_TESTS=1.

``VITRIEVE_FUZZ_SECONDS`` sets the time of all targets together.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz.harness import draw_inputs, read_regressions, run_inputs
from tests.fuzz.targets import Target, build_targets

NUM_INPUTS = 100
"""Of each target in every run."""
NAMES = (
    "decode", "json", "address", "filter", "csv", "parquet", "settings", "weights", "vectors", "embeddings", "pickle",
    "stamps", "shard index", "archive",
)  # fmt: skip
ROOT = Path(__file__).parents[2]
LONG_SECONDS = 600.0


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return build_targets(tmp_path_factory.mktemp("seeds"))


def test_all_targets_are_named(targets: dict[str, Target]) -> None:
    assert set(NAMES) == set(targets)


@pytest.mark.parametrize("name", NAMES)
def test_fixed_corpus_raises_documented_errors_alone(name: str, targets: dict[str, Target], tmp_path: Path) -> None:
    inputs = [*read_regressions(name), *itertools.islice(draw_inputs(targets[name].seeds, 0), NUM_INPUTS)]
    assert run_inputs(targets[name], inputs, tmp_path) == len(inputs)


@pytest.mark.parametrize("name", NAMES)
def test_new_inputs_raise_documented_errors_alone(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process of its own, whose memory and time for one input are bounded; the seed is the day."""
    is_long = os.environ.get("VITRIEVE_LONG_TESTS") == "1"
    seconds = float(os.environ.get("VITRIEVE_FUZZ_SECONDS", LONG_SECONDS if is_long else 0)) / len(NAMES)
    if not seconds:
        pytest.skip("ten minutes of fuzzing run with VITRIEVE_LONG_TESTS=1 (make test-all)")
    command = [sys.executable, "-m", "tests.fuzz.harness", name, f"--seconds={seconds}", f"--folder={tmp_path}"]
    command += [f"--seed={int(time.time()) // 86_400}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    with capsys.disabled():
        print(f"\n{done.stdout.strip()}")
    assert done.returncode == 0, f"{done.stderr[-4000:]}\nthe input is {tmp_path / 'current'}"
