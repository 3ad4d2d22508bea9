"""Where a run computes. Next file: ``resolution.py``.

What is here for CUDA follows its documentation; it was never run on one: no machine of this project has a GPU.
"""

from __future__ import annotations

import torch

from vitrieve.config import Config, Device
from vitrieve.data.loader import Batch
from vitrieve.errors import ConfigError
from vitrieve.model.backbone import use_explicit_attention
from vitrieve.model.encoder import ImageEncoder


def resolve_device(device: Device) -> torch.device:
    """Return the device of a run; ``auto`` is a GPU where torch sees one.

    Raises:
        ConfigError: ``cuda`` without one.
    """
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ConfigError("train.device is cuda, but torch sees no CUDA device here; use cpu, or auto.")
    return torch.device("cuda" if device == "cuda" or (device == "auto" and has_cuda) else "cpu")


def prepare_encoder(encoder: ImageEncoder, config: Config) -> torch.device:
    """Move an encoder to the device of its run and choose the fast kernels there; return the device.

    On a CPU attention is written out (``use_explicit_attention``). On CUDA float32 products may use TF32, convnets keep
    their channels last, and the encoder is compiled, unless ``train.compile`` says otherwise.

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
        use_explicit_attention(encoder.backbone)
    if config.train.compile if config.train.compile is not None else device.type == "cuda":
        encoder.compile()
    return device


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to the device, from pinned memory and without waiting; on a CPU it is the batch itself."""
    if device.type == "cpu":
        return batch
    moved = [None if one is None else one.pin_memory().to(device, non_blocking=True) for one in batch]
    return Batch(*moved)  # type: ignore[arg-type]
