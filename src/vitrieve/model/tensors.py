"""Tensors by name, without torch: read from a safetensors file, checked, and told apart by a checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vitrieve.errors import ArtifactError


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a safetensors file.

    Raises:
        ArtifactError: The file is missing or damaged, or a tensor holds NaN or infinity.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        states = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path} is missing or damaged ({error}); fetch, copy or make it again.") from None
    found = describe_non_finite(states)
    if found:
        raise ArtifactError(f"{path} cannot be used: {found}. Fetch, copy or make it again.")
    return states


def describe_non_finite(states: Mapping[str, np.ndarray]) -> str:
    """Name the first tensor that holds NaN or infinity, and count the others; empty when there is none.

    >>> describe_non_finite({"bias": np.zeros(2), "weight": np.array([0.0, np.nan])})
    "the tensor 'weight' holds NaN or infinity (1 of 2 values)"
    """
    broken = {name: int(np.count_nonzero(~np.isfinite(states[name]))) for name in sorted(states)}
    broken = {name: count for name, count in broken.items() if count}
    if not broken:
        return ""
    name, count = next(iter(broken.items()))
    further = f", and so do {len(broken) - 1} others" if len(broken) > 1 else ""
    return f"the tensor {name!r} holds NaN or infinity ({count:,} of {states[name].size:,} values){further}"


def update_digest(digest: hashlib._Hash, states: Mapping[str, np.ndarray]) -> None:
    """Add each tensor's name, type, shape and bytes to a digest, in the order of the names."""
    for name in sorted(states):
        array = np.asarray(states[name], order="C")
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)


def hash_arrays(states: Mapping[str, np.ndarray]) -> str:
    """Compute the SHA-256 of tensors, whatever file they stand in, as hexadecimal text."""
    digest = hashlib.sha256()
    update_digest(digest, states)
    return digest.hexdigest()


HASH_BLOCK_BYTES = 1 << 20


def hash_file(path: Path, digest: hashlib._Hash | None = None) -> str:
    """Compute the checksum of a file, as hexadecimal text, in bounded memory.

    Args:
        path: The file.
        digest: Checksum that the content is added to; None: a new sha256.
    """
    digest = digest or hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
