"""Where an encoder computes, or a training, and in which precision: on the processor, or on a GPU that torch sees."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vitrieve.choices import Device, Precision
from vitrieve.errors import ConfigError

if TYPE_CHECKING:
    import torch

DeviceName = Literal["cpu", "cuda"]
_DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Files of NVIDIA's driver, also under Windows' Linux, and of AMD's: torch calls both makes ``cuda``."""


def may_have_cuda() -> bool:
    """Say whether torch can see a GPU at all, without importing it, which takes seconds."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return False
    if "+cpu" in version or os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return False
    return not sys.platform.startswith("linux") or any(Path(file).exists() for file in _DRIVER_FILES)


def has_cuda() -> bool:
    """Say whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()


def resolve_device(device: Device) -> torch.device:
    """Return the device of a run; ``auto`` is a GPU where torch sees one.

    Raises:
        ConfigError: ``cuda`` without one.
    """
    import torch

    if device == "cpu" or (device == "auto" and not has_cuda()):
        return torch.device("cpu")
    if not has_cuda():
        raise ConfigError("device is cuda, but torch sees no CUDA device here; use cpu, or auto.")
    return torch.device("cuda")


@contextmanager
def choosing_gpu(number: int) -> Iterator[None]:
    """Let ``cuda`` mean one of several GPUs, for what is loaded in the block; it stays there.

    Args:
        number: Number of the GPU, from 0, as torch counts them.

    Raises:
        ConfigError: torch sees GPUs, but none of that number.
    """
    # Whoever loads something in the block says what is missing where there is no torch, or no GPU at all.
    if find_spec("torch") is None or not has_cuda():
        yield
        return
    import torch

    if number >= torch.cuda.device_count():
        raise ConfigError(
            f"device is cuda:{number}, but torch sees cuda:0 to cuda:{torch.cuda.device_count() - 1} here; use one of "
            "them, or cpu."
        )
    with torch.cuda.device(number):
        yield


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
