from __future__ import annotations

from pathlib import Path

import pytest

from vitrieve.runtime import device
from vitrieve.runtime.device import describe_emulation, has_bf16_instructions, resolve_precision


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_tile\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("processor\t: 0\n", False),
        ("", False),
    ],
)
def test_has_bf16_instructions_reads_the_flags(tmp_path: Path, text: str, expected: bool) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert has_bf16_instructions(path) is expected


def test_has_bf16_instructions_without_a_description(tmp_path: Path) -> None:
    assert has_bf16_instructions(tmp_path / "none") is False


def test_resolve_precision_keeps_a_choice() -> None:
    assert resolve_precision("fp32") == "fp32"
    assert resolve_precision("bf16") == "bf16"
    assert resolve_precision("auto") in ("fp32", "bf16")


def test_describe_emulation_warns_of_bf16_without_instructions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "has_bf16_instructions", lambda: False)
    assert "emulating" in describe_emulation("bf16")
    assert not describe_emulation("bf16", "cuda")
    assert not describe_emulation("fp32")
    assert not describe_emulation("auto")
    monkeypatch.setattr(device, "has_bf16_instructions", lambda: True)
    assert not describe_emulation("bf16")
