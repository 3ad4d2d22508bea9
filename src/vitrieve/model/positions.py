"""The positions of a transformer at another number of patches, with the same bits with torch and without."""

from __future__ import annotations

import math

import numpy as np

CUBIC_SHARPNESS = -0.5
"""a of Keys's cubic, as torch and Pillow take it when they smooth."""


def resample_positions(table: np.ndarray, num_prefix: int, side: int) -> np.ndarray:
    """Resample the learned positions of a transformer to another number of patches along a side.

    Bicubic with smoothing, as timm does it with torch (equal but for the last bits). Only sums in a fixed order, in
    double precision: every machine gets the same bits, so that an encoder has one fingerprint everywhere.

    Args:
        table: ``(1, P + H * H, D)``: positions of the prefix tokens, then of the patches row by row.
        num_prefix: P.
        side: Patches along the new side.

    Returns:
        ``(1, P + side * side, D)`` float32.

    Source:
        Keys, Cubic convolution interpolation, IEEE TASSP 29 (1981), the kernel stretched by the factor of shrinking.
    """
    prefix, patches = table[0, :num_prefix], table[0, num_prefix:]
    old_side = math.isqrt(len(patches))
    assert old_side * old_side == len(patches), f"{len(patches)} positions are no square"
    grid = patches.reshape(old_side, old_side, -1).astype(np.float64)
    weights = _cubic_weights(old_side, side)
    rows = _mix(weights, grid)  # (side, H, D)
    both = _mix(weights, rows.transpose(1, 0, 2)).transpose(1, 0, 2)  # (side, side, D)
    resampled = np.ascontiguousarray(both).reshape(side * side, -1).astype(np.float32)
    return np.concatenate([prefix.astype(np.float32), resampled])[None]


def _mix(weights: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Multiply ``(S, H)`` by ``(H, W, D)``, term by term: a library's product sums in an order of its own."""
    mixed = np.zeros((len(weights), *grid.shape[1:]))
    for column, line in zip(weights.T, grid, strict=True):
        mixed += column[:, None, None] * line
    return mixed


def _cubic_weights(old_side: int, side: int) -> np.ndarray:
    """Return ``(side, old_side)``: the share of every old position in every new one; rows sum to 1."""
    stretch = max(old_side / side, 1.0)
    centers = (np.arange(side) + 0.5) * (old_side / side)
    distance = np.abs(np.arange(old_side) + 0.5 - centers[:, None]) / stretch
    a = CUBIC_SHARPNESS
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * a
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    total = np.zeros((side, 1))
    for column in weights.T:
        total += column[:, None]
    return weights / total
