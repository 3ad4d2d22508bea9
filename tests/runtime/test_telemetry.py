"""Loading an encoder with OpenVINO sends nothing, and forks nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vitrieve.runtime.graph_engines import TELEMETRY, no_telemetry

LOAD = """
import os, sys
def refuse():
    raise SystemExit("a fork")
os.fork = refuse
from vitrieve.runtime.encoder import load_encoder
load_encoder(sys.argv[1], engine="openvino")
import openvino
print([name for name in sys.modules if name.startswith("openvino_telemetry")])
"""


def test_trap_openvino_is_loaded_without_telemetry_and_fork(tiny_encoder_folder: Path) -> None:
    pytest.importorskip("openvino", reason="needs vitrieve[fast]")
    command = [sys.executable, "-c", LOAD, str(tiny_encoder_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    assert "fork" not in done.stderr


def test_no_telemetry_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, TELEMETRY, raising=False)
    with no_telemetry(), pytest.raises(ImportError):
        __import__(TELEMETRY)
    assert TELEMETRY not in sys.modules


def test_no_telemetry_leaves_an_imported_package_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, TELEMETRY, sys)
    with no_telemetry():
        assert sys.modules[TELEMETRY] is sys
    assert sys.modules[TELEMETRY] is sys
