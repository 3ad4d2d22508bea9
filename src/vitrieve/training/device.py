"""Where a run computes, and how it keeps its memory.

What is here for CUDA follows its documentation; it was never run on one: no machine of this project has a GPU.
"""

from __future__ import annotations

import ctypes
import sys

import torch

from vitrieve.config import Config
from vitrieve.data.loader import Batch
from vitrieve.model.backbone import use_explicit_attention
from vitrieve.model.encoder import ImageEncoder
from vitrieve.runtime.device import resolve_device, resolve_precision

# Of glibc's malloc.h: which freed memory goes back to the system, and which blocks are asked of it one by one.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAX_MMAP_THRESHOLD = 2**25
"""The most that glibc accepts."""


def prepare_encoder(encoder: ImageEncoder, config: Config) -> torch.device:
    """Move an encoder to the device of its run and choose the fast kernels there; return the device.

    On a CPU freed memory is kept, and attention in bf16 is written out (``use_explicit_attention``). On CUDA float32
    products may use TF32, convnets keep their channels last, and the encoder is compiled, unless ``train.compile`` says
    otherwise.

    Raises:
        ConfigError: As ``resolve_device``.
    """
    device = resolve_device(config.train.device)
    encoder.to(device)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        if not encoder.layout.is_transformer:
            encoder.to(memory_format=torch.channels_last)
    else:
        if resolve_precision(config.train.precision) == "bf16":
            use_explicit_attention(encoder.backbone)
        keep_freed_memory()
    if config.train.compile if config.train.compile is not None else device.type == "cuda":
        encoder.compile()
    return device


def keep_freed_memory() -> bool:
    """Let this process keep what a step frees for the next step; return whether the C library could be told.

    A step frees all of its activations, gigabytes. By default glibc gives them back to the system, which hands them out
    again a page at a time, each cleared first: some 100,000 page faults a step. The most that a process needs at a
    time does not change.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        change_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(change_option(M_TRIM_THRESHOLD, 2**31 - 1) and change_option(M_MMAP_THRESHOLD, MAX_MMAP_THRESHOLD))


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to the device, without waiting where it is pinned (the loader's are); on a CPU it is itself."""
    if device.type == "cpu":
        return batch
    moved = [None if one is None else one.to(device, non_blocking=True) for one in batch]
    return Batch(*moved)  # type: ignore[arg-type]
