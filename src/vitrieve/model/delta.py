"""A low-rank difference: the weights of a fine-tuned encoder, told by how they differ from those they started from.

Of every matrix the difference is kept as two factors of a small rank, from its singular value decomposition; of vectors
(biases, norms, scales, tokens) it is kept whole. Both are float16. Of what does not differ the factors have rank 0, and
what the start does not have (head, reduction) is kept as it is. This needs no torch, and the weights that come out are
the same to the last bit on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrieve.errors import ArtifactError, ConfigError
from vitrieve.model.positions import resample_positions
from vitrieve.model.tensors import read_arrays
from vitrieve.writing import write_bytes_durably

DELTA_NAME = "delta.safetensors"
LEFT, RIGHT, DIFFERENCE, WHOLE = "left", "right", "difference", "whole"
"""What stands behind the last dot of a name in the file: a factor, a difference as it is, or a tensor as it is."""
HALF_ERROR_MAX = 2e-3
"""Largest share of a difference that float16 may lose; its own precision is 5e-4 where numbers are not tiny."""
MAX_PREFIX_TOKENS = 2
MAX_POSITIONS = 1 << 16
"""Most positions in a table: those of 2,048 px in patches of 8 px, and more than any backbone here has."""


@dataclass(frozen=True, kw_only=True)
class Delta:
    """A difference to the weights that have a name.

    Attributes:
        base: Name of the weights that it is a difference to.
        base_sha256: Checksum of their tensors (``hash_arrays``).
        rank: Columns of each left factor.
        parts: Tensor of each name in the file.
    """

    base: str
    base_sha256: str
    rank: int
    parts: Mapping[str, np.ndarray]


def compute_parts(
    states: Mapping[str, np.ndarray], starts: Mapping[str, np.ndarray], rank: int
) -> dict[str, np.ndarray]:
    """Decompose what weights differ in from others.

    A matrix is decomposed where its factors are smaller than it is. A convolution counts as the matrix of its output
    channels, and a position table as the matrix of its positions.

    Args:
        states: Weights by name.
        starts: Those they started from, by the same names; further ones are ignored.
        rank: Singular values that are kept of each matrix.

    Returns:
        The tensors of ``Delta.parts``, differences and factors in float16, or in float32 where that loses much.

    Raises:
        ConfigError: The rank is not smaller than the largest matrix, nothing differs, no weights have the type and
            shape of those they started from, or a difference is too large for float16.
    """
    fitted = {name: _fit_start(starts.get(name), array) for name, array in states.items()}
    shared = {name: start for name, start in fitted.items() if start is not None}
    if all(_equals(array, fitted[name]) or _equals(array, starts.get(name)) for name, array in states.items()):
        raise ConfigError("the weights are those they started from: there is no difference to keep.")
    if not shared:
        raise ConfigError(
            "none of the weights is a float32 tensor of the shape that it had at the start, so there is no difference "
            "to take. Export the encoder whole."
        )
    _check_rank([_as_matrix(states[name]).shape for name in shared], rank)
    parts: dict[str, np.ndarray] = {}
    for name, array in states.items():
        start = fitted[name]
        if start is None:
            parts[f"{name}.{WHOLE}"] = array
            continue
        difference = array.astype(np.float64) - start
        matrix = _as_matrix(difference)
        kept_rank = rank if matrix.any() else 0
        if kept_rank * sum(matrix.shape) < matrix.size:
            left, right = factorize(matrix, kept_rank)
            parts[f"{name}.{LEFT}"], parts[f"{name}.{RIGHT}"] = _to_half(left, name), _to_half(right, name)
        else:
            parts[f"{name}.{DIFFERENCE}"] = _to_half(difference, name)
    return parts


def _equals(array: np.ndarray, start: np.ndarray | None) -> bool:
    return start is not None and np.array_equal(array, start)


def _fit_start(start: np.ndarray | None, like: np.ndarray) -> np.ndarray | None:
    """Return the start in the shape of a tensor, positions resampled; None where it is no float32 of that shape."""
    if start is None or start.dtype != np.float32 or like.dtype != np.float32:
        return None
    return start if start.shape == like.shape else _resample_start(start, like.shape)


def _resample_start(start: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Resample a table of positions ``(1, P + H * H, D)``; None where the two shapes are not of such tables."""
    if start.ndim != 3 or len(shape) != 3 or (1, start.shape[2]) != (shape[0], shape[2]):
        return None
    for num_prefix in range(MAX_PREFIX_TOKENS + 1):
        counts = [num_tokens - num_prefix for num_tokens in (start.shape[1], shape[1])]
        if min(counts) > 0 and all(math.isqrt(count) ** 2 == count for count in counts):
            return resample_positions(start, num_prefix, math.isqrt(counts[1]))
    return None


def _check_rank(shapes: Sequence[tuple[int, ...]], rank: int) -> None:
    largest = max(shapes, key=math.prod)
    if not 1 <= rank < min(largest):
        raise ConfigError(
            f"the rank {rank} does not fit: the largest matrix is {largest[0]} by {largest[1]}; choose 1 to "
            f"{min(largest) - 1}, for example 8."
        )


def _as_matrix(array: np.ndarray) -> np.ndarray:
    """Lay a tensor out as ``(m, n)``; a vector has one row."""
    shape = [length for length in array.shape if length != 1]
    return array.reshape((shape[0], -1) if len(shape) > 1 else (1, -1))


def _to_half(array: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if np.linalg.norm(half - array) > HALF_ERROR_MAX * np.linalg.norm(array) and np.abs(array).max() < 1:
        return array.astype(np.float32)  # so small that float16 has too few steps there
    if not np.isfinite(half).all():
        raise ConfigError(
            f"the weights {name!r} differ by up to {np.abs(array).max():.3g} from those they started from, more than "
            "float16 holds: this is no fine-tuning of them. Export the encoder whole."
        )
    return half


def factorize(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the two factors whose product is nearest to a matrix among all of a rank.

    Args:
        matrix: ``(m, n)`` float64.
        rank: r; at most the smaller of m and n.

    Returns:
        ``(m, r)`` and ``(r, n)``: the singular vectors of the r largest singular values, each scaled by the root of
        its value.

    Source:
        Eckart and Young, Psychometrika 1 (1936). The vectors of the smaller side come from the matrix's product with
        itself, in double precision, which is some ten times as quick as a whole decomposition.
    """
    if matrix.shape[0] > matrix.shape[1]:
        right, left = factorize(matrix.T, rank)
        return left.T, right.T
    vectors = np.linalg.eigh(matrix @ matrix.T)[1][:, ::-1][:, :rank]  # (m, r), of the largest values first
    projected = vectors.T @ matrix  # (r, n): each row is as long as its singular value
    roots = np.sqrt(np.linalg.norm(projected, axis=1))
    scales = np.divide(1.0, roots, out=np.zeros_like(roots), where=roots > 0)
    return vectors * roots, projected * scales[:, None]


def restore_states(parts: Mapping[str, np.ndarray], starts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute the weights that a difference stands for.

    Args:
        parts: Result of ``compute_parts``.
        starts: The weights that it is a difference to.

    Returns:
        Weights by name. The factors are multiplied term by term in double precision: every machine gets the same bits.

    Raises:
        ArtifactError: The two do not fit.
    """
    states: dict[str, np.ndarray] = {}
    for part, array in parts.items():
        name, _, kind = part.rpartition(".")
        if kind == WHOLE:
            states[name] = array
        elif kind == DIFFERENCE:
            states[name] = _add(starts, name, array.astype(np.float64), array.shape)
        elif kind == LEFT:
            product = _multiply(array, parts.get(f"{name}.{RIGHT}"), name, starts.get(name))
            states[name] = _add(starts, name, product, None)
        elif f"{name}.{LEFT}" not in parts:
            raise ArtifactError(_describe_misfit(name))
    return states


def _describe_misfit(name: str) -> str:
    return f"the factors of {name!r} do not fit each other: {DELTA_NAME} is damaged; copy it again."


def _multiply(left: np.ndarray, right: np.ndarray | None, name: str, start: np.ndarray | None) -> np.ndarray:
    """Multiply ``(m, r)`` by ``(r, n)``, term by term: a library's product sums in an order of its own.

    The start bounds the product, because two thin factors of a stranger could ask for terabytes.
    """
    if right is None or left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise ArtifactError(_describe_misfit(name))
    most = 0 if start is None else max(start.size, MAX_POSITIONS * start.shape[-1] if start.ndim == 3 else 0)
    if len(left) * right.shape[1] > most:
        raise ArtifactError(
            f"the factors of {name!r} make {len(left):,} by {right.shape[1]:,} numbers, more than the weights have "
            f"that they are a difference to: {DELTA_NAME} is damaged; copy it again."
        )
    product = np.zeros((left.shape[0], right.shape[1]))
    for column, row in zip(left.T.astype(np.float64), right.astype(np.float64), strict=True):
        product += column[:, None] * row
    return product


def _add(
    starts: Mapping[str, np.ndarray], name: str, difference: np.ndarray, shape: tuple[int, ...] | None
) -> np.ndarray:
    """Add a difference to its start; of a product the shape is that of the start, or of a table of its positions."""
    start = starts.get(name)
    if start is not None and shape is None:
        shape = start.shape if start.size == difference.size else (1, *difference.shape)
    if start is not None and shape is not None:
        start = _fit_start(start, np.empty(shape, dtype=np.float32))
    if start is None or shape is None:
        raise ArtifactError(
            f"the difference of {name!r} does not fit the weights that it is a difference to; copy the folder again."
        )
    difference = difference.reshape(shape)
    restored: np.ndarray = (start + difference).astype(np.float32)
    return np.where(difference == 0, start, restored)  # also a zero keeps its sign


def write_delta(path: Path, delta: Delta) -> None:
    """Write a difference as one safetensors file, which names its base."""
    from safetensors.numpy import save

    described = {"base": delta.base, "base_sha256": delta.base_sha256, "rank": str(delta.rank)}
    parts = {name: np.asarray(array, order="C") for name, array in sorted(delta.parts.items())}
    write_bytes_durably(path, save(parts, metadata=described))


def read_delta(path: Path) -> Delta:
    """Read the file of a difference; the weights that it is a difference to are not needed.

    Raises:
        ArtifactError: Missing or damaged, or not such a file.
    """
    from safetensors import safe_open

    parts = read_arrays(path)
    with safe_open(path, framework="numpy") as file:
        described = file.metadata() or {}
    kinds = {name.rpartition(".")[2] for name in parts}
    lefts = [array for name, array in parts.items() if name.endswith(f".{LEFT}")]
    is_described = {"base", "base_sha256", "rank"} <= described.keys()
    if not is_described or not kinds <= {LEFT, RIGHT, DIFFERENCE, WHOLE} or any(array.ndim != 2 for array in lefts):
        raise ArtifactError(f"{path} is not a difference to other weights, or is damaged; make or copy it again.")
    rank = max((array.shape[1] for array in lefts), default=0)
    return Delta(base=described["base"], base_sha256=described["base_sha256"], rank=rank, parts=parts)
