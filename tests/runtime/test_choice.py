from __future__ import annotations

import subprocess
import sys

import pytest

from vitrieve.errors import ConfigError
from vitrieve.runtime import engine as engine_module
from vitrieve.runtime.engine import PRECISIONS, EngineChoice, PrecisionChoice, choose_engine

ALL = frozenset(PRECISIONS)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What the test says is installed."""
    names: set[str] = set()
    packages = {"openvino": "openvino", "onnx": "onnxruntime", "torch": "torch"}
    monkeypatch.setattr(engine_module, "_PACKAGES", {engine: (package,) for engine, package in packages.items()})
    is_there = {package: engine for engine, package in packages.items()}
    monkeypatch.setattr(engine_module, "find_spec", lambda package: package if is_there[package] in names else None)
    monkeypatch.setattr(engine_module, "has_bf16_instructions", lambda: True)
    return names


@pytest.mark.parametrize(
    ("there", "precision", "has_graph", "expected"),
    [
        (ALL, "auto", True, "openvino"),
        (ALL, "auto", False, "torch"),
        (ALL, "fp32", True, "openvino"),
        (ALL, "bf16", False, "torch"),
        ({"onnx", "torch"}, "auto", True, "onnx"),
        ({"onnx", "torch"}, "bf16", True, "torch"),
        ({"onnx"}, "auto", True, "onnx"),
        ({"onnx"}, "auto", False, "onnx"),
        ({"onnx", "openvino"}, "auto", True, "openvino"),
    ],
)
def test_choose_engine_auto_takes_the_fastest_that_can(
    installed: set[str], there: set[str], precision: PrecisionChoice, has_graph: bool, expected: str
) -> None:
    installed |= there
    assert choose_engine("auto", precision, has_graph=has_graph) == expected


@pytest.mark.parametrize(
    ("there", "engine", "precision", "message"),
    [
        ({"onnx"}, "openvino", "auto", r"'openvino' needs the extra vitrieve\[fast\]"),
        ({"onnx"}, "torch", "auto", r"'torch' needs the extra vitrieve\[train\]"),
        ({"onnx"}, "auto", "bf16", r"'bf16' needs the extra vitrieve\[fast\]"),
        (ALL, "onnx", "bf16", "'onnx' does not compute in 'bf16', only in fp32"),
    ],
)
def test_choose_engine_refuses_what_cannot_be(
    installed: set[str], there: set[str], engine: EngineChoice, precision: PrecisionChoice, message: str
) -> None:
    installed |= there
    with pytest.raises(ConfigError, match=message):
        choose_engine(engine, precision, has_graph=True)


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_choose_engine_refuses_bf16_that_would_be_emulated(
    installed: set[str], monkeypatch: pytest.MonkeyPatch, engine: EngineChoice
) -> None:
    installed |= ALL
    monkeypatch.setattr(engine_module, "has_bf16_instructions", lambda: False)
    assert choose_engine("auto", "auto", has_graph=True) == "openvino"
    with pytest.raises(ConfigError, match="no bf16 instructions"):
        choose_engine(engine, "bf16", has_graph=True)


def test_choosing_imports_no_engine() -> None:
    script = (
        "import sys\n"
        "from vitrieve.runtime.engine import choose_engine\n"
        "choose_engine('auto', 'auto', has_graph=True)\n"
        "sys.exit(bool({'torch', 'onnxruntime', 'openvino'} & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
