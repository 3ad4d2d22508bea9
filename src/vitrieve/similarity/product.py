"""Products of lower precision than the definition, with a proven bound on their error.

A ranking needs similarities only to choose which pairs are compared exactly. A product that is known to lie within a
bound of the similarity decides about most pairs, and the definition about the rest.

**The bound.** Let q and g be rows as given, q' and g' the same rows on the grid of ``definition.py``, and q^, g^ the
rows that are multiplied. The similarity is float32(q' . g'). Embeddings often lie in a narrow cone, where a product of
bfloat16 numbers would tell little apart, so the gallery may be centered: with m near the mean of its rows and
c = g - m, q . g is q . c plus an ``offset`` q . m that belongs to the query alone. q^ is q and g^ is c, either as they
are or rounded to bfloat16. With d = q^ - q and e = g^ - c, an exact product of the multiplied rows is off by

    |q^ . g^ - q . c| = |d . c + q^ . e| <= |d| |c| + |q^| |e|                        (Cauchy and Schwarz),

where the norms of d and e are measured, not assumed. More errors come on top, with E dimensions:

- c is a float32 difference: each coordinate is off by 2^-24 of itself, which is 2^-24 |q^| |c| in all. The offset is
  summed in float64, from m as float32 has it: less than E 2^-52 |q| |m|, and as much again for using it.
- Summing E products in float32, in any order and even if each partial sum is cut off instead of rounded, errs by at
  most E 2^-23 / (1 - E 2^-23) of the sum of |q^_i g^_i|, thus of |q^| |g^|; with E up to 2^13 that is at most
  E 2^-22 |q^| |g^|, which leaves room for products that are rounded, too. (Of two bfloat16 numbers they are exact.)
- The grid moves a coordinate by at most half a step, 2^-27 2^(3/4) of the norm, so a row by less than
  E^(1/2) 2^-26 of it, and a similarity by less than E^(1/2) 2^-25 (1 + 2^-20) |q| |g|. Rounding the similarity to
  float32 moves it by 2^-24 |q'| |g'|.
- Units that flush numbers below 2^-126 to zero lose at most that much in each term, partial sum and coordinate. A
  coordinate lost weighs at most the other row's norm: E^(1/2) 2^-126 (|q| + |g|) in all, beside E 2^-125.

The sum of all of these is the ``errors`` of a query, taken for the longest g and c and the largest |e|, and widened
by 2^-10 of itself for the rounding of the norms. bfloat16 results are rounded once more; that rounding keeps the
order, so it is not part of the bound but of the conversion between numbers and results (``floor`` and ``lower``).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from vitrieve.similarity.definition import MAX_NORM, FloatArray, grid_steps, multiply

PREPARED_ROWS = 4096
"""Gallery rows measured or converted at a time."""
MAX_DIMS = 2**13
"""Beyond this many dimensions the bound is not claimed."""
TORCH_OPERATIONS = 1e12
"""Multiplications and additions from which loading torch (seconds) pays, where nothing else has loaded it."""
BFLOAT16_COPY_BYTES = 2**30
"""A gallery whose copy in bfloat16 would be larger (1.4 million rows of 384) is multiplied in float32."""
MIN_BFLOAT16_QUERIES = 512
"""For fewer queries, converting the gallery costs more than multiplying it in float32."""
TRIAL_QUERIES = 256
"""The number of queries with which sums of bfloat16 numbers are tried."""
MAX_TRIED_DIMS = 2**11
"""With twice as many dimensions the bound, which grows with them, would hide sums that are rounded to bfloat16."""

Results = npt.NDArray[Any]
Numbers = npt.NDArray[np.float64]


class Bounds(NamedTuple):
    """What separates the products of some queries from the similarities.

    Attributes:
        errors: ``(Q,)``: similarity and product + offset differ by less.
        offsets: ``(Q,)``.
    """

    errors: Numbers
    offsets: Numbers


class Lengths(NamedTuple):
    """Lengths that bound the error of a product: of the longest gallery row, centered row and residual."""

    row: float
    centered: float
    residual: float


class Float32Product:
    """The product in float32, by NumPy; it neither copies nor centers the gallery.

    Attributes:
        hidden: The result that is below every other; it is written over pairs that are not to be found. Its type is
            that of all results, and results are ordered as numbers of their type are.
        lowest: Results below this one are not in order among themselves: that they are below it is all they say.
    """

    hidden: ClassVar[Any] = np.float32(-np.inf)
    lowest: ClassVar[float] = -np.inf

    def __init__(self, gallery: FloatArray) -> None:
        """Measure a gallery, ``(G, E)`` float32.

        Raises:
            InputError: A row is too long.
        """
        self._gallery = gallery
        longest = max(max_norm(rows) for rows in _pieces(gallery))
        self._lengths = Lengths(longest, longest, 0.0)

    def prepare(self, queries: FloatArray) -> tuple[FloatArray, Bounds]:
        """Return ``(Q, E)`` queries as ``multiply`` takes them, and the bounds of their products.

        Raises:
            InputError: A query is too long.
        """
        nothing = np.zeros(len(queries))
        return queries, Bounds(bound(queries, nothing, self._lengths), nothing)

    def multiply(self, prepared: FloatArray, columns: slice, out: Results) -> None:
        """Write the results of queries with some gallery rows to ``out``, ``(Q, C)``."""
        if len(prepared) == 1:
            out[:] = multiply(prepared, self._gallery[columns])
        else:
            np.matmul(prepared, self._gallery[columns].T, out=out)

    def largest(self, members: Results) -> Results:
        """Return the largest of ``(Q, P, S, N)`` results over S: ``(Q, P, N)``."""
        found: Results = members.max(axis=2)
        return found

    def floor(self, values: Numbers) -> Results:
        """Return the smallest result that a product of at least ``values`` can give.

        It is the next float32 number below, because nothing is rounded after the sum.
        """
        return np.nextafter(values.astype(np.float32), np.float32(-np.inf))

    def lower(self, results: Results) -> Numbers:
        """Return numbers that the products which gave ``results`` were not below: the results themselves."""
        return results.astype(np.float64)


class BFloat16Product:
    """The product in bfloat16 with sums in float32, by torch: about four times as fast where the hardware has it.

    Its methods do what those of ``Float32Product`` do.

    Results are int16: the bits of the bfloat16 numbers, which are the first 16 bits of the float32 numbers: sign,
    exponent and 8 bits of precision. Read as integers, positive numbers are in order, and negative ones are below
    them, but not in order. Near rows have a positive product with a query, as the gallery is centered; a query of
    which that is not true is left to the float32 product. Integers are compared twice as fast as float32 and much
    faster than torch and NumPy compare bfloat16.
    """

    hidden: ClassVar[Any] = np.int16(-(2**15))
    lowest: ClassVar[float] = 1

    def __init__(self, gallery: FloatArray) -> None:
        """Center, convert and measure a gallery, ``(G, E)`` float32.

        Raises:
            InputError: A row is too long.
        """
        import torch

        # About the mean: any center will do.
        some = gallery[:: max(1, len(gallery) // PREPARED_ROWS)]
        self._center: FloatArray = some.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._gallery = torch.empty(gallery.shape, dtype=torch.bfloat16)
        lengths = []
        for number, rows in enumerate(_pieces(gallery)):
            centered = rows - self._center
            rounded, residuals = _to_bfloat16(centered)
            first = number * PREPARED_ROWS
            self._gallery[first : first + len(rows)] = rounded
            lengths.append((max_norm(rows), max_norm(centered), max_norm(residuals)))
        self._lengths = Lengths(*np.max(lengths, axis=0).tolist())

    def prepare(self, queries: FloatArray) -> tuple[Any, Bounds]:
        """Return the queries in bfloat16, and the bounds of their products."""
        rounded, residuals = _to_bfloat16(queries)
        # Summed without a matrix product, whose threads would go on spinning on the cores of the next one.
        offsets = np.vecdot(queries.astype(np.float64), self._center.astype(np.float64))
        return rounded, Bounds(bound(queries, _norms(residuals), self._lengths), offsets)

    def multiply(self, prepared: Any, columns: slice, out: Results) -> None:
        """Write the results, as the bits of bfloat16 numbers, to ``out``."""
        import torch

        rows = self._gallery[columns].T
        if out.flags.c_contiguous:
            torch.mm(prepared, rows, out=torch.from_numpy(out).view(torch.bfloat16))
        else:
            out[:] = torch.mm(prepared, rows).view(torch.int16).numpy()

    def largest(self, members: Results) -> Results:
        """Return the largest results, compared by torch."""
        import torch

        found: Results = torch.from_numpy(members).amax(dim=2).numpy()
        return found

    def floor(self, values: Numbers) -> Results:
        """Return the bfloat16 number at or below; 0, which is below ``lowest``, for what is not positive."""
        below = np.nextafter(np.maximum(values, 0).astype(np.float32), np.float32(0))
        return (below.view(np.int32) >> 16).astype(np.int16)

    def lower(self, results: Results) -> Numbers:
        """Return the next bfloat16 number below: the products lie above it, however they were rounded."""
        bits = np.maximum(results.astype(np.int32) - 1, 0) << 16
        return np.where(results >= self.lowest, bits.view(np.float32), -np.inf)


Product = Float32Product | BFloat16Product


def has_bfloat16_for(num_queries: int, gallery: FloatArray, *, may_load_torch: bool = False) -> bool:
    """Say whether ``BFloat16Product`` is faster here, for ``num_queries`` and a gallery ``(G, E)``.

    torch multiplies bfloat16. Search must not load it, so it serves where the program has loaded it anyway. The
    neighbors are the same with and without. ``may_load_torch`` loads it, where it is installed, when the product is
    large enough to gain by that.
    """
    is_large = 2.0 * num_queries * gallery.size > TORCH_OPERATIONS
    may_use = "torch" in sys.modules or (may_load_torch and is_large and find_spec("torch") is not None)
    may_use = may_use and 2 * gallery.size <= BFLOAT16_COPY_BYTES
    return may_use and num_queries >= MIN_BFLOAT16_QUERIES and has_fast_bfloat16(gallery.shape[1])


@lru_cache(maxsize=8)
def has_fast_bfloat16(num_dims: int) -> bool:
    """Say whether torch multiplies bfloat16 in hardware, with sums in float32.

    The sums are tried, not trusted: coordinates of one sign come before those of the other, so that wherever a
    partial sum is rounded to bfloat16, it is far larger than the whole and loses more than the bound allows.
    """
    import torch

    capabilities = torch.cpu.get_capabilities()
    if num_dims > MAX_TRIED_DIMS or not (capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")):
        return False
    rng = np.random.default_rng(0)
    queries = rng.random((TRIAL_QUERIES, num_dims), dtype=np.float32) + 1
    rows = rng.random((PREPARED_ROWS // 4, num_dims), dtype=np.float32) + 1
    rows[:, num_dims // 2 :] *= -0.9
    # Of bfloat16 numbers whose mean is zero, nothing is lost but by summing.
    queries, rows = (_to_bfloat16(numbers)[0].float().numpy() for numbers in (queries, rows))
    gallery = np.stack([rows, -rows], axis=1).reshape(-1, num_dims)
    product = BFloat16Product(gallery)
    prepared, bounds = product.prepare(queries)
    results = np.empty((len(queries), len(gallery)), dtype=np.int16)
    product.multiply(prepared, slice(0, len(gallery)), results)
    exact = queries.astype(np.float64) @ gallery.T.astype(np.float64) - bounds.offsets[:, None]
    errors = bounds.errors[:, None]
    is_within = (results >= product.floor(exact - errors)) & (product.lower(results) <= exact + errors)
    return bool(is_within[exact > errors].all())


def bound(queries: FloatArray, query_residuals: Numbers, gallery: Lengths) -> Numbers:
    """Return the error of each query's products, as derived above.

    Args:
        queries: ``(Q, E)`` as given.
        query_residuals: ``(Q,)`` norms of what rounding the queries loses.
        gallery: The largest lengths of the gallery.

    Raises:
        InputError: A query is too long.
    """
    num_dims = queries.shape[1]
    query_norms = _norms(queries)
    if query_norms.max(initial=0.0) > MAX_NORM:
        grid_steps(queries)  # raises
    multiplied = query_norms + query_residuals  # at least |q^|
    rounding = query_residuals * gallery.centered + multiplied * gallery.residual
    # |m| is at most |g| + |c|: the offset's share is far below the 2^-10 that everything is widened by.
    summing = (num_dims * 2.0**-22 + 2.0**-24) * multiplied * (gallery.centered + gallery.residual)
    grid = (num_dims**0.5 * 2.0**-24 + 2.0**-23 + num_dims * 2.0**-50) * query_norms * gallery.row
    flushed = num_dims * 2.0**-124 + num_dims**0.5 * 2.0**-125 * (query_norms + gallery.row)
    errors: Numbers = (rounding + summing + grid + flushed) * (1 + 2.0**-10)
    return errors


def max_norm(rows: FloatArray) -> float:
    """Return the length of the longest row, to four places (the bound is widened by more).

    Raises:
        InputError: It is too long.
    """
    with np.errstate(over="ignore"):
        longest = math.sqrt(np.einsum("ne,ne->n", rows, rows).max(initial=0.0))
    if 2.0**-40 < longest < 2.0**40:  # else squares may have left the range of float32
        return longest
    longest = float(_norms(rows).max(initial=0.0))
    if longest > MAX_NORM:
        grid_steps(rows)  # raises
    return longest


def _norms(rows: FloatArray) -> Numbers:
    found: Numbers = np.sqrt(np.einsum("ne,ne->n", rows, rows, dtype=np.float64))
    return found


def _pieces(rows: FloatArray) -> Iterator[FloatArray]:
    for start in range(0, len(rows), PREPARED_ROWS):
        yield rows[start : start + PREPARED_ROWS]


def _to_bfloat16(rows: FloatArray) -> tuple[Any, FloatArray]:
    """Return the rows as a bfloat16 tensor, and what they lose, which float32 holds exactly."""
    import torch

    given = torch.from_numpy(np.ascontiguousarray(rows))
    rounded = given.to(torch.bfloat16)
    return rounded, (given - rounded.float()).numpy()
