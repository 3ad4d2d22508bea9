"""Where an encoder computes, or a training: on the processor, or on a GPU that torch sees."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vitrieve.config import Device
from vitrieve.errors import ConfigError

if TYPE_CHECKING:
    import torch

DeviceName = Literal["cpu", "cuda"]
_DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Of NVIDIA's driver, of NVIDIA's under Windows' Linux, and of AMD's: torch calls both makes ``cuda``."""


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
