"""Products of lower precision, with a proven bound on their error.

Ranking needs similarities only to choose who is compared exactly. A product that is known to lie within a bound of
the similarity settles most pairs, and the definition settles the rest.

**The bound.** Let q and g be rows as given, q' and g' the same rows on the grid of ``definition.py``, and q^, g^ what
is multiplied. The similarity is float32(q' . g'). Embeddings often lie in a narrow cone, so the gallery is centred:
with m near the mean of its rows and c = g - m, q . g is q . c plus an ``offset`` q . m that belongs to the query
alone. q^ is q and g^ is c, as they are or rounded to bfloat16. With d = q^ - q and e = g^ - c, an exact product of
what is multiplied is off by

    |q^ . g^ - q . c| = |d . c + q^ . e| <= |d| |c| + |q^| |e|                        (Cauchy and Schwarz),

where the norms of d and e are measured, not assumed. More errors come on top, with E dimensions:

- c is a float32 difference: each coordinate is off by 2^-24 of itself, which is 2^-24 |q^| |c| in all. The offset is
  summed in float64, from m as float32 has it: less than E 2^-52 |q| |m|, and as much again for using it.

- Summing E products in float32, in any order and even if each partial sum is cut off instead of rounded, errs by at
  most E 2^-23 / (1 - E 2^-23) of the sum of |q^_i g^_i|, thus of |q^| |g^|; with E up to 2^13 that is at most
  E 2^-22 |q^| |g^|. A product of two bfloat16 numbers is exact in float32, and needs no term.
- The grid moves a coordinate by at most half a step, 2^-27 2^(3/4) of the norm, so a row by less than
  E^(1/2) 2^-26 of it, and a similarity by less than E^(1/2) 2^-25 (1 + 2^-20) |q| |g|. Rounding the similarity to
  float32 moves it by 2^-24 |q'| |g'|.
- Units that flush numbers below 2^-126 to zero lose at most that much in each term, partial sum and coordinate. A
  coordinate lost weighs at most the other row's norm: E^(1/2) 2^-126 (|q| + |g|) in all, beside E 2^-125.

The sum of all of these is the ``error_bound`` of a query, taken for the longest g and c and the largest |e|, and
widened by 2^-10 of itself for the rounding of the norms. bfloat16 results are rounded once more; that rounding keeps
the order, so it is not part of the bound but of the conversion between bounds and results (``floor`` and ``lower``).

Next: ``nearest.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from vitrieve.similarity.definition import FloatArray

BLOCK_WIDTH = 4096
"""Gallery rows multiplied at a time: a block of results then stays in the cache until it is looked through."""
BLOCK_HEIGHT = 1024
"""Queries at a time."""
PREPARED_ROWS = 4096
"""Rows converted at a time."""
MAX_DIMS = 2**13
"""Beyond this many dimensions the bound is not claimed."""
TORCH_OPERATIONS = 1e12
"""Multiplications and additions from which loading torch (seconds) pays, where nothing else has loaded it."""
MIN_BFLOAT16_QUERIES = 64
"""For fewer queries, converting the gallery costs as much as multiplying it in float32."""

AnyArray = npt.NDArray[Any]
Results = npt.NDArray[Any]


class Bounds(NamedTuple):
    """What separates the products of some queries from the similarities.

    Attributes:
        errors: ``(Q,)`` float64: similarity and product + offset differ by less.
        offsets: ``(Q,)`` float64.
    """

    errors: npt.NDArray[np.float64]
    offsets: npt.NDArray[np.float64]


class Product(Protocol):
    """A product of the gallery with some queries at a time. Its results are ordered as numbers of their type are.

    Attributes:
        num_gallery: Gallery rows.
        is_signed: Whether results below zero are in order, too. When False, all that is known of a negative result
            is that it is negative, which is faster for some types; ``order_negative`` changes it.
        hidden: The result that is below every other: what the user writes over pairs that are not to be found.
        top: The result that is above every other.
    """

    num_gallery: int
    is_signed: bool
    hidden: float
    top: float

    def start(self, queries: FloatArray) -> Bounds:
        """Take the next queries, ``(Q, E)``."""

    def multiply(self, columns: slice) -> Results:
        """Return the results for some gallery rows, ``(Q, C)``; overwritten by the next call."""

    def order_negative(self, results: Results) -> None:
        """Bring negative results in order, in place, and those of the next calls until ``start``."""

    def maxima(self, results: Results, group_size: int) -> Results:
        """Return the largest result of each group of neighbouring columns, ``(Q, C / group_size)``."""

    def floor(self, values: npt.NDArray[np.float64]) -> Results:
        """Return the smallest result that a product of at least ``values`` can give."""

    def lower(self, results: Results) -> npt.NDArray[np.float64]:
        """Return numbers that the products which gave ``results`` were not below."""

    def upper(self, results: Results) -> npt.NDArray[np.float64]:
        """Return numbers that the products which gave ``results`` were not above."""


class _Spread(NamedTuple):
    """Lengths that bound the error of a product: of the centre, the longest row, centred row and residual."""

    centre: FloatArray
    row: float
    centred: float
    residual: float


class Float32Product:
    """The product in float32, by NumPy."""

    hidden, top = -np.inf, np.inf

    def __init__(self, gallery: FloatArray) -> None:
        """Measure the gallery.

        Args:
            gallery: ``(G, E)`` float32, finite; not copied.
        """
        self.num_gallery, self.is_signed = len(gallery), True
        self._gallery = gallery
        self._centre = _centre(gallery)
        self._max_norm = max(_max_norm(rows) for rows in _pieces(gallery))
        self._max_centred = max(_max_norm(rows - self._centre) for rows in _pieces(gallery))

    def start(self, queries: FloatArray) -> Bounds:
        """Take the next queries; see ``Product``."""
        self._queries = queries
        self._results = np.empty(len(queries) * BLOCK_WIDTH, dtype=np.float32)
        no_residuals = np.zeros((len(queries), 1), dtype=np.float32)
        return _bound(queries, no_residuals, _Spread(self._centre, self._max_norm, self._max_centred, 0.0))

    def multiply(self, columns: slice) -> Results:
        """Return the results for some gallery rows; see ``Product``."""
        rows = self._gallery[columns] - self._centre
        shape = (len(self._queries), len(rows))
        results = self._results[: shape[0] * shape[1]].reshape(shape)
        return np.matmul(self._queries, rows.T, out=results)

    def order_negative(self, results: Results) -> None:
        """Do nothing: they are."""

    def maxima(self, results: Results, group_size: int) -> Results:
        """Return the largest result of each group; see ``Product``."""
        found: Results = results.reshape(len(results), -1, group_size).max(axis=2)
        return found

    def floor(self, values: npt.NDArray[np.float64]) -> Results:
        """Return the smallest result of products of at least ``values``."""
        with np.errstate(over="ignore"):
            return np.nextafter(values.astype(np.float32), np.float32(-np.inf))

    def lower(self, results: Results) -> npt.NDArray[np.float64]:
        """Return the results: nothing is rounded after the sum."""
        return results.astype(np.float64)

    def upper(self, results: Results) -> npt.NDArray[np.float64]:
        """Return the results: nothing is rounded after the sum."""
        return results.astype(np.float64)


class BFloat16Product:
    """The product in bfloat16 with sums in float32, by torch; results are int16 in the order of the bfloat16 numbers.

    A bfloat16 number has the first 16 bits of the float32 number: sign, exponent and 8 bits of precision. Read as an
    integer, positive ones are in order; negative ones are in order when all their bits but the sign are flipped.
    Integers are compared twice as fast as float32 and much faster than torch and NumPy compare bfloat16.
    """

    hidden, top = -(2**15), 2**15 - 1

    def __init__(self, gallery: FloatArray) -> None:
        """Convert the gallery and measure it.

        Args:
            gallery: ``(G, E)`` float32, finite.
        """
        import torch

        self.num_gallery, self.is_signed = len(gallery), False
        self._gallery = torch.empty(gallery.shape, dtype=torch.bfloat16)
        self._spread = _Spread(_centre(gallery), 0.0, 0.0, 0.0)
        for start in range(0, len(gallery), PREPARED_ROWS):
            rows = gallery[start : start + PREPARED_ROWS]
            centred = rows - self._spread.centre
            rounded, residuals = _round_to_bfloat16(centred)
            self._gallery[start : start + len(rows)] = rounded
            lengths = [_max_norm(one) for one in (rows, centred, residuals)]
            self._spread = _Spread(self._spread.centre, *np.maximum(self._spread[1:], lengths))

    def start(self, queries: FloatArray) -> Bounds:
        """Take the next queries; see ``Product``."""
        self._queries, residuals = _round_to_bfloat16(queries)
        self._results = np.empty(len(queries) * BLOCK_WIDTH, dtype=np.int16)
        self.is_signed = False
        return _bound(queries, residuals, self._spread)

    def multiply(self, columns: slice) -> Results:
        """Return the results for some gallery rows; see ``Product``."""
        import torch

        rows = self._gallery[columns]
        shape = (len(self._queries), len(rows))
        results = self._results[: shape[0] * shape[1]].reshape(shape)
        bits = torch.from_numpy(results)
        torch.mm(self._queries, rows.T, out=bits.view(torch.bfloat16))
        if self.is_signed:
            self.order_negative(results)
        return results

    def order_negative(self, results: Results) -> None:
        """Flip all bits of negative results but the sign; see ``Product``."""
        import torch

        self.is_signed = True
        bits = torch.from_numpy(results)
        bits ^= (bits >> 15) & 0x7FFF

    def maxima(self, results: Results, group_size: int) -> Results:
        """Return the largest result of each group; see ``Product``."""
        import torch

        found: Results = torch.from_numpy(results).view(len(results), -1, group_size).amax(dim=2).numpy()
        return found

    def floor(self, values: npt.NDArray[np.float64]) -> Results:
        """Return the smallest result of products of at least ``values``, however they are rounded to a neighbour."""
        with np.errstate(over="ignore"):
            below = np.nextafter(values.astype(np.float32), np.float32(-np.inf))
        bits = below.view(np.int32).astype(np.int64)
        # As sign and magnitude: rounding down is a shift. Zero has two results, -1 and 0; the lower one is meant.
        magnitude = np.where(bits >= 0, bits, -(bits & 0x7FFFFFFF)) >> 16
        return np.clip(magnitude - (magnitude <= 0), self.hidden + 1, self.top).astype(np.int16)

    def lower(self, results: Results) -> npt.NDArray[np.float64]:
        """Return the next bfloat16 number below: the products lie above it, however they were rounded."""
        return _decode(results.astype(np.int32) - 1)

    def upper(self, results: Results) -> npt.NDArray[np.float64]:
        """Return the next bfloat16 number above."""
        return _decode(results.astype(np.int32) + 1)


def choose_products(queries: FloatArray, gallery: FloatArray) -> Iterator[Product]:
    """Yield products from fast to precise: what the first leaves open for too many pairs is for the next.

    Args:
        queries: ``(Q, E)`` float32.
        gallery: ``(G, E)`` float32.

    Yields:
        One or two; none where no bound is claimed. Each is made when it is asked for.
    """
    num_dims = gallery.shape[1]
    if num_dims > MAX_DIMS:
        return
    is_loaded = "torch" in sys.modules or 2.0 * len(queries) * gallery.size > TORCH_OPERATIONS
    if is_loaded and len(queries) >= MIN_BFLOAT16_QUERIES and has_fast_bfloat16(num_dims):
        yield BFloat16Product(gallery)
    yield Float32Product(gallery)


@lru_cache(maxsize=8)
def has_fast_bfloat16(num_dims: int) -> bool:
    """Say whether torch is installed and multiplies bfloat16 in hardware, with sums in float32.

    The sums are tried, not trusted: 256 and then ones stays 256 where partial sums are kept in bfloat16.

    Args:
        num_dims: Dimensions of the embeddings.
    """
    if find_spec("torch") is None:
        return False
    import torch

    capabilities = torch.cpu.get_capabilities()
    if not (capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")):
        return False
    queries = np.ones((BLOCK_HEIGHT, num_dims), dtype=np.float32)
    gallery = queries.copy()
    gallery[:, 0] = 256
    gallery[1::2] *= -1  # so that the mean of the gallery is zero
    product = BFloat16Product(gallery)
    product.start(queries)
    results = product.multiply(slice(0, BLOCK_HEIGHT))[:, ::2]
    exact = gallery[0].sum()
    return bool(((product.lower(results) <= exact) & (exact <= product.upper(results))).all())


def _norms(rows: FloatArray) -> npt.NDArray[np.float64]:
    return np.sqrt(np.einsum("ne,ne->n", rows, rows, dtype=np.float64))


def _max_norm(rows: FloatArray) -> float:
    """Return the length of the longest row, to four places (the bound is widened by more)."""
    if 2.0**-40 < np.abs(rows).max(initial=0.0) < 2.0**40:  # else squares would leave the range of float32
        return float(np.einsum("ne,ne->n", rows, rows).max()) ** 0.5
    return float(_norms(rows).max(initial=0.0))


def _pieces(rows: FloatArray) -> Iterator[FloatArray]:
    for start in range(0, len(rows), PREPARED_ROWS):
        yield rows[start : start + PREPARED_ROWS]


def _bound(queries: FloatArray, residuals: FloatArray, gallery: _Spread) -> Bounds:
    """Return the bounds of each query, as derived above."""
    num_dims = queries.shape[1]
    query_norms, query_residuals = _norms(queries), _norms(residuals)
    multiplied = query_norms + query_residuals  # at least |q^|
    rounding = query_residuals * gallery.centred + multiplied * gallery.residual
    summing = (num_dims * 2.0**-22 + 2.0**-24) * multiplied * (gallery.centred + gallery.residual)
    grid = (num_dims**0.5 * 2.0**-24 + 2.0**-23 + num_dims * 2.0**-50) * query_norms * gallery.row
    flushed = num_dims * 2.0**-124 + num_dims**0.5 * 2.0**-125 * (query_norms + gallery.row)
    errors: npt.NDArray[np.float64] = (rounding + summing + grid + flushed) * (1 + 2.0**-10)
    return Bounds(errors, queries.astype(np.float64) @ gallery.centre.astype(np.float64))


def _centre(gallery: FloatArray) -> FloatArray:
    """Return about the mean of the rows; of some of them, as any centre will do."""
    some = gallery[:: max(1, len(gallery) // PREPARED_ROWS)]
    centre: FloatArray = some.mean(axis=0, dtype=np.float64).astype(np.float32)
    return centre


def _round_to_bfloat16(rows: FloatArray) -> tuple[Any, FloatArray]:
    """Return the rows as a bfloat16 tensor, and what they lose, which float32 holds exactly."""
    import torch

    given = torch.from_numpy(np.ascontiguousarray(rows))
    rounded = given.to(torch.bfloat16)
    return rounded, (given - rounded.float()).numpy()


def _decode(results: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Turn integers in the order of bfloat16 numbers into these; beyond infinity stays infinity."""
    infinity = 0x7F80
    results = np.clip(results, ~infinity, infinity)
    bits = np.where(results >= 0, results, ~results | 0x8000).astype(np.uint32) << 16
    return bits.view(np.float32).astype(np.float64)
