"""A checksum of tensors, by which weights are recognized and damage is found."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def digest_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Compute the SHA-256 of named tensors: of each its name, its shape and its bytes.

    Args:
        tensors: Names and tensors, in the order of the names; one at a time is held.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
