"""The product in bfloat16 with sums in float32, by torch: about four times as fast where the hardware has it.

The only module of this folder that imports torch; ``product.choose_products`` loads it.

Next: ``candidates.py``.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitrieve.similarity.definition import FloatArray
from vitrieve.similarity.product import (
    PREPARED_ROWS,
    Bounds,
    Groups,
    Results,
    Spread,
    bound,
    max_norm,
    norms,
    pad,
    pieces,
)

TRIAL_QUERIES = 256
"""With which the sums are tried."""
MAX_TRIED_DIMS = 2**11
"""With twice as many the bound, which grows with them, would hide such a rounding."""


class BFloat16Product:
    """Results are int16: the bits of the bfloat16 numbers.

    A bfloat16 number has the first 16 bits of the float32 number: sign, exponent and 8 bits of precision. Read as
    integers, positive numbers are in order, and negative ones are below them, but not in order. Near rows have a
    positive product with a query, as the gallery is centred; a query of which that is not true is for the next
    product. Integers are compared twice as fast as float32 and much faster than torch and NumPy compare bfloat16.
    """

    result_bytes = 2
    hidden: float = -(2**15)
    lowest: float = 1
    top: float = 2**15 - 1

    def __init__(self, gallery: FloatArray) -> None:
        """Centre the gallery, convert and measure it.

        Args:
            gallery: ``(G, E)`` float32, finite.

        Raises:
            InputError: A row that is too long.
        """
        self._num_gallery = len(gallery)
        self._centre = _centre(gallery)
        self._gallery = torch.zeros((pad(len(gallery)), gallery.shape[1]), dtype=torch.bfloat16)
        self._buffer = torch.empty(0, dtype=torch.int16)
        lengths = []
        for number, rows in enumerate(pieces(gallery)):
            centred = rows - self._centre
            rounded, residuals = _round(centred)
            first = number * PREPARED_ROWS
            self._gallery[first : first + len(rows)] = rounded
            lengths.append((max_norm(rows), max_norm(centred), max_norm(residuals)))
        self._spread = Spread(*np.max(lengths, axis=0).tolist())

    def multiply(self, queries: FloatArray) -> tuple[Results, Bounds]:
        """Return the results; see ``Product``."""
        rounded, residuals = _round(queries)
        errors = bound(queries, norms(residuals), self._spread)
        shape = (len(queries), len(self._gallery))
        if self._buffer.numel() < shape[0] * shape[1]:
            self._buffer = torch.empty(shape[0] * shape[1], dtype=torch.int16)
        bits = self._buffer[: shape[0] * shape[1]].view(shape)
        torch.mm(rounded, self._gallery.T, out=bits.view(torch.bfloat16))
        bits[:, self._num_gallery :] = self.hidden
        offsets = np.vecdot(queries.astype(np.float64), self._centre.astype(np.float64))  # no threads that spin on
        return bits.numpy(), Bounds(errors, offsets)

    def group(self, results: Results, group_size: int) -> Groups:
        """Take neighbouring columns, which share a cache line."""
        members = results.reshape(len(results), -1, group_size)
        rows = np.arange(results.shape[1]).reshape(-1, group_size)
        return Groups(torch.from_numpy(members).amax(dim=2).numpy(), members, rows)

    def floor(self, values: npt.NDArray[np.float64]) -> Results:
        """Return the bfloat16 number at or below; 0, which is below ``lowest``, for what is not positive."""
        below = np.nextafter(np.maximum(values, 0).astype(np.float32), np.float32(0))
        return (below.view(np.int32) >> 16).astype(np.int16)

    def ceiling(self, values: npt.NDArray[np.float64]) -> Results:
        """Return the second bfloat16 number above: products that give it lie above the first."""
        above = np.nextafter(np.maximum(values, 0).astype(np.float32), np.float32(np.inf))
        return ((above.view(np.int32) >> 16) + 2).astype(np.int16)

    def lower(self, results: Results) -> npt.NDArray[np.float64]:
        """Return the next bfloat16 number below: the products lie above it, however they were rounded."""
        bits = np.maximum(results.astype(np.int32) - 1, 0) << 16
        return np.where(results >= self.lowest, bits.view(np.float32), -np.inf)


@lru_cache(maxsize=8)
def has_fast_bfloat16(num_dims: int) -> bool:
    """Say whether torch multiplies bfloat16 in hardware, with sums in float32.

    The sums are tried, not trusted: coordinates of one sign come before those of the other, so that wherever a
    partial sum is rounded to bfloat16, it is far larger than the whole and loses more than the bound allows.

    Args:
        num_dims: Dimensions of the embeddings.
    """
    capabilities = torch.cpu.get_capabilities()
    if num_dims > MAX_TRIED_DIMS or not (capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")):
        return False
    queries, gallery = _draw_trial(num_dims)
    product = BFloat16Product(gallery)
    results, bounds = product.multiply(queries)
    results = results[:, : len(gallery)]
    exact = queries.astype(np.float64) @ gallery.T.astype(np.float64) - bounds.offsets[:, None]
    errors = bounds.errors[:, None]
    is_reached = results >= product.floor(exact - errors)
    is_positive = exact - errors > 0
    return bool((is_reached & (product.lower(results) <= exact + errors))[is_positive].all())


def _draw_trial(num_dims: int) -> tuple[FloatArray, FloatArray]:
    """Return bfloat16 numbers as queries and gallery whose mean is zero: nothing is lost but by summing."""
    rng = np.random.default_rng(0)
    queries = rng.random((TRIAL_QUERIES, num_dims), dtype=np.float32) + 1
    rows = rng.random((PREPARED_ROWS // 4, num_dims), dtype=np.float32) + 1
    rows[:, num_dims // 2 :] *= -0.9
    queries, rows = (_round(numbers)[0].float().numpy() for numbers in (queries, rows))
    return queries, np.stack([rows, -rows], axis=1).reshape(-1, num_dims)


def _centre(gallery: FloatArray) -> FloatArray:
    """Return about the mean of the rows; of some of them, as any centre will do."""
    some = gallery[:: max(1, len(gallery) // PREPARED_ROWS)]
    centre: FloatArray = some.mean(axis=0, dtype=np.float64).astype(np.float32)
    return centre


def _round(rows: FloatArray) -> tuple[Tensor, FloatArray]:
    """Return the rows as bfloat16, and what they lose, which float32 holds exactly."""
    given = torch.from_numpy(np.ascontiguousarray(rows))
    rounded = given.to(torch.bfloat16)
    return rounded, (given - rounded.float()).numpy()
