"""Moving the edges of parts to where each is most like the whole that it lies on; many pairs at once.

Source: the alignment is that of Lucas and Kanade, 1981, for four edges, brightness and contrast, with Cauchy's weights.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MAX_STEP = 0.02
"""The farthest that an edge moves in a step, as a share of the longer side."""
SERIAL_PRODUCT = 2**18
"""OpenBLAS computes products of so many terms in the thread that calls. It divides larger ones among threads, which
costs matrices of a few thousand numbers more than it gains."""
SLACK_PX = 1e-3
"""A whole pixel that rounding has cut by that much is one."""

FloatImages = npt.NDArray[np.float32]
Frames = npt.NDArray[np.float64]
"""``(P, 4)``: where the top, bottom, left and right edge of each part lie, in pixels of its whole."""


def multiply(left: FloatImages, right: FloatImages, out: FloatImages | None = None) -> FloatImages:
    """Multiply stacks of small matrices, into ``out`` where it is given, in the thread that calls."""
    num_rows = max(1, SERIAL_PRODUCT // (left.shape[-1] * right.shape[-1]))
    if num_rows >= left.shape[-2]:
        return np.asarray(np.matmul(left, right, out=out), dtype=np.float32)
    shape = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    product = np.empty((*shape, left.shape[-2], right.shape[-1]), dtype=np.float32) if out is None else out
    for start in range(0, left.shape[-2], num_rows):
        np.matmul(left[..., start : start + num_rows, :], right, out=product[..., start : start + num_rows, :])
    return product


def resample(parts: FloatImages, frames: Frames, shape: tuple[int, ...]) -> FloatImages:
    """Lay parts into their frames on the pixels of wholes, each the mean of what it covers; 0 where it covers nothing.

    Args:
        parts: ``(P, h, w)`` pictures.
        frames: Where they lie.
        shape: Height and width of the wholes.

    Returns:
        ``(P, height, width)`` pictures.
    """
    down = _weigh(parts.shape[1], frames[:, 0], frames[:, 1], shape[0])
    across = _weigh(parts.shape[2], frames[:, 2], frames[:, 3], shape[1])
    return multiply(down, multiply(parts, across.transpose(0, 2, 1)))


def _weigh(num_old: int, starts: Frames, stops: Frames, num_new: int) -> FloatImages:
    """Compute shares of old pixels, which lie between two edges, in new ones: ``(P, num_new, num_old)``."""
    edges = (np.arange(num_new + 1) - starts[:, None]) * (num_old / (stops - starts))[:, None]
    edges = np.clip(edges, 0, num_old).astype(np.float32)
    before = np.clip(edges[:, :, None] - np.arange(num_old, dtype=np.float32), 0, 1)
    covered = before[:, 1:] - before[:, :-1]
    covered /= np.maximum(edges[:, 1:] - edges[:, :-1], 1e-6)[:, :, None]
    return np.asarray(covered, dtype=np.float32)


def cover(frames: Frames, shape: tuple[int, ...], margin: float) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Say which rows ``(P, height)`` and columns ``(P, width)`` lie in frames, so far away from the edges at least."""
    rows, columns = (
        (np.arange(side) >= frames[:, 2 * axis, None] + margin - SLACK_PX)
        & (np.arange(side) + 1 <= frames[:, 2 * axis + 1, None] - margin + SLACK_PX)
        for axis, side in enumerate(shape)
    )
    return rows, columns


def find_moves(wholes: FloatImages, parts: FloatImages, frames: Frames, margin: float) -> Frames:
    """Return how far the edges of parts have to move, to first order.

    What lies nearer to the edges than the margin is left out, so that no frame around a picture pulls.

    Args:
        wholes: ``(P, H, W)`` gray pictures.
        parts: ``(P, h, w)`` gray pictures.
        frames: Where the parts lie.
        margin: In pixels of the wholes.
    """
    shape = wholes.shape[1:]
    if min(shape) < 2:
        return np.zeros_like(frames)  # across one pixel nothing rises or falls
    rows, columns = cover(frames, shape, margin)
    is_covered = (rows[:, :, None] & columns[:, None, :]).astype(np.float32)
    num_covered = np.maximum(is_covered.sum(axis=(1, 2), keepdims=True), 1)

    def average(pictures: FloatImages) -> FloatImages:
        return np.asarray(np.einsum("phw,phw->p", pictures, is_covered)[:, None, None] / num_covered, dtype=np.float32)

    laid = resample(parts, frames, shape)
    centered, laid_centered = wholes - average(wholes), laid - average(laid)
    deviations = [np.sqrt(average(one * one)) for one in (centered, laid_centered)]
    gain = deviations[0] / np.maximum(deviations[1], 1e-3)
    rest = centered - gain * laid_centered
    weights = is_covered / (1 + (rest / (2 * average(np.abs(rest)) + 2)) ** 2)  # what differs has little say
    down, across = (np.gradient(laid, axis=axis) for axis in (1, 2))
    below, beside = (
        ((np.arange(side) + 0.5 - frames[:, first, None]) / (frames[:, first + 1] - frames[:, first])[:, None])
        for side, first in zip(shape, (0, 2), strict=True)
    )
    below, beside = below[:, :, None].astype(np.float32), beside[:, None, :].astype(np.float32)
    causes = np.empty((len(laid), 6, *shape), dtype=np.float32)
    np.multiply(down, -gain, out=down)
    np.multiply(across, -gain, out=across)
    np.multiply(down, below, out=causes[:, 1])
    np.subtract(down, causes[:, 1], out=causes[:, 0])
    np.multiply(across, beside, out=causes[:, 3])
    np.subtract(across, causes[:, 3], out=causes[:, 2])
    causes[:, 4], causes[:, 5] = laid, 1
    weighted = (causes * weights[:, None]).reshape(len(laid), 6, -1)
    normal = multiply(weighted, causes.reshape(len(laid), 6, -1).transpose(0, 2, 1)).astype(np.float64)
    edges, others = np.arange(4), np.arange(4, 6)
    normal[:, edges, edges] += 0.01 * num_covered[:, :, 0]  # where nothing has structure, nothing moves
    normal[:, others, others] += 1e-6 * normal[:, 4, 4, None] + 1e-6
    wanted = multiply(weighted, rest.reshape(len(laid), -1, 1)).astype(np.float64)
    limit = MAX_STEP * max(shape)
    return np.clip(np.linalg.solve(normal, wanted)[:, :4, 0], -limit, limit)
