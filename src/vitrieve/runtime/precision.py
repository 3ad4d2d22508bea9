"""Does this processor compute in bf16?"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from vitrieve.config import Precision

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""The kernel's names. Without one of them bf16 is emulated, and slower than fp32."""
CPU_DESCRIPTION = Path("/proc/cpuinfo")


@cache
def has_bf16_instructions(path: Path = CPU_DESCRIPTION) -> bool:
    """Say whether the processor multiplies bf16 matrices itself; False where the system does not tell."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return not BF16_FLAGS.isdisjoint(flags)


def resolve_precision(precision: Precision, device_type: str = "cpu") -> Precision:
    """Turn ``auto`` into what this processor, or a GPU, is quickest with: bf16 or fp32; the others stay.

    >>> resolve_precision("auto", "cuda"), resolve_precision("fp32", "cuda")
    ('bf16', 'fp32')
    """
    if precision != "auto":
        return precision
    return "bf16" if device_type != "cpu" or has_bf16_instructions() else "fp32"


def describe_emulation(precision: Precision, device_type: str = "cpu") -> str:
    """Return a warning where bf16 was asked for and must be emulated: hundreds of times as slow; else nothing."""
    if precision != "bf16" or device_type != "cpu" or has_bf16_instructions():
        return ""
    return "this processor has no bf16 instructions; emulating them takes hundreds of times as long as fp32"
