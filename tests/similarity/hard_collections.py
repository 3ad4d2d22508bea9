"""Collections that tempt a fast ranking into a mistake: what is near the bound, tied, degenerate or out of scale."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from vitrieve.similarity import FloatArray, normalize

NUM_ROWS, NUM_DIMS = 2200, 24
"""Just above the size from which a gallery is not compared whole, and no multiple of a group."""


def _draw(rng: np.random.Generator, num_rows: int = NUM_ROWS) -> npt.NDArray[np.float64]:
    return rng.standard_normal((num_rows, NUM_DIMS))


def random(rng: np.random.Generator) -> FloatArray:
    return normalize(_draw(rng))


def near_ties(rng: np.random.Generator) -> FloatArray:
    """Forty rows nearly equal to each of 55: similarities a few float32 steps apart."""
    return normalize(np.repeat(normalize(_draw(rng, 55)), 40, axis=0) + 1e-7 * _draw(rng))


def tiny_gaps(rng: np.random.Generator) -> FloatArray:
    """A fan of rows, each turned from the one before by less than bfloat16 and float32 products can tell."""
    angles = np.arange(NUM_ROWS) * 3e-5
    fan = np.zeros((NUM_ROWS, NUM_DIMS))
    fan[:, 0], fan[:, 1] = np.cos(angles), np.sin(angles)
    turn, _ = np.linalg.qr(rng.standard_normal((NUM_DIMS, NUM_DIMS)))
    return normalize((fan @ turn)[rng.permutation(NUM_ROWS)])


def duplicates(rng: np.random.Generator) -> FloatArray:
    """A quarter as many rows, each about four times, anywhere."""
    return random(rng)[rng.integers(0, NUM_ROWS // 4, NUM_ROWS)]


def few_points(rng: np.random.Generator) -> FloatArray:
    """Three points: more ties than any candidate list holds."""
    return random(rng)[rng.integers(0, 3, NUM_ROWS)]


def one_point(rng: np.random.Generator) -> FloatArray:
    return np.repeat(random(rng)[:1], NUM_ROWS, axis=0)


def clusters(rng: np.random.Generator) -> FloatArray:
    return normalize(normalize(_draw(rng, 20))[rng.integers(0, 20, NUM_ROWS)] + 1e-3 * _draw(rng))


def narrow_cone(rng: np.random.Generator) -> FloatArray:
    return normalize(1.0 + 1e-2 * _draw(rng))


def half_zero(rng: np.random.Generator) -> FloatArray:
    rows = random(rng)
    rows[::2] = 0
    return rows


def any_length(rng: np.random.Generator) -> FloatArray:
    return random(rng) * 10.0 ** rng.uniform(-4, 4, (NUM_ROWS, 1)).astype(np.float32)


def long_and_tiny(rng: np.random.Generator) -> FloatArray:
    """Products beyond the range in which float32 is precise, at both ends."""
    rows = random(rng)
    rows[:100] *= np.float32(1e17)
    rows[100:1000] *= np.float32(1e-30)
    return rows


def aligned_residuals(rng: np.random.Generator) -> FloatArray:
    """Positive coordinates just above those of bfloat16 plus half a step: all roundings err downwards together."""
    coarse = (1 + rng.integers(0, 120, (NUM_ROWS, NUM_DIMS)) / 128).astype(np.float32)
    signs = np.where(np.arange(NUM_ROWS) % 2, 1, -1)[:, None]  # the mean is near zero
    return (signs * (coarse + 0.49 / 128) / 8).astype(np.float32)


def opposite(rng: np.random.Generator) -> FloatArray:
    """Every query is far from all but itself: most products are negative."""
    rows = normalize(1.0 + 0.1 * _draw(rng))
    rows[::7] *= -1
    return rows


HARD_COLLECTIONS: tuple[Callable[[np.random.Generator], FloatArray], ...] = (
    random,
    near_ties,
    tiny_gaps,
    duplicates,
    few_points,
    one_point,
    clusters,
    narrow_cone,
    half_zero,
    any_length,
    long_and_tiny,
    aligned_residuals,
    opposite,
)
