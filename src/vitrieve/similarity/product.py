"""Products of lower precision, with a proven bound on their error.

Ranking needs similarities only to choose who is compared exactly. A product that is known to lie within a bound of
the similarity settles most pairs, and the definition settles the rest.

**The bound.** Let q and g be rows as given, q' and g' the same rows on the grid of ``definition.py``, and q^, g^ what
is multiplied. The similarity is float32(q' . g'). Embeddings often lie in a narrow cone, where a product of bfloat16
numbers would tell little apart, so the gallery may be centred: with m near the mean of its rows and c = g - m, q . g
is q . c plus an ``offset`` q . m that belongs to the query alone. q^ is q and g^ is c, as they are or rounded to
bfloat16. With d = q^ - q and e = g^ - c, an exact product of what is multiplied is off by

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
order, so it is not part of the bound but of the conversion between numbers and results (``floor``, ``ceiling`` and
``lower``).

Next: ``bfloat16.py``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from vitrieve.similarity.definition import MAX_NORM, FloatArray, IntArray, grid_steps

MAX_GROUP_SIZE = 64
"""Results come in columns padded to a multiple of this."""
PREPARED_ROWS = 4096
"""Gallery rows measured or converted at a time."""
MAX_DIMS = 2**13
"""Beyond this many dimensions the bound is not claimed."""
TORCH_OPERATIONS = 1e12
"""Multiplications and additions from which loading torch (seconds) pays, where nothing else has loaded it."""
MIN_BFLOAT16_QUERIES = 512
"""For fewer queries, converting the gallery costs more than multiplying it in float32."""

Results = npt.NDArray[Any]


class Bounds(NamedTuple):
    """What separates the products of some queries from the similarities.

    Attributes:
        errors: ``(Q,)`` float64: similarity and product + offset differ by less.
        offsets: ``(Q,)`` float64.
    """

    errors: npt.NDArray[np.float64]
    offsets: npt.NDArray[np.float64]


class Groups(NamedTuple):
    """A block of results by groups of columns.

    Attributes:
        maxima: ``(Q, N)`` largest result of each group.
        members: ``(Q, N, S)`` the results: a view.
        rows: ``(N, S)`` int64 columns of the block, which are gallery rows.
    """

    maxima: Results
    members: Results
    rows: IntArray


class Product(Protocol):
    """Products of a gallery with some queries at a time. Results are ordered as numbers of their type are.

    Attributes:
        result_bytes: Of one result.
        hidden: The result that is below every other: what is written over pairs that are not to be found.
        lowest: Results below this one are not in order among themselves; that they are below is all they say.
        top: A result that is above every other.
    """

    result_bytes: int
    hidden: float
    lowest: float
    top: float

    def multiply(self, queries: FloatArray) -> tuple[Results, Bounds]:
        """Return the results of ``(Q, E)`` queries with the gallery, and their bounds.

        The results, ``(Q, C)``, are padded with hidden columns to a multiple of ``MAX_GROUP_SIZE``. The caller may
        change them; the next call overwrites them.
        """

    def group(self, results: Results, group_size: int) -> Groups:
        """Divide the columns into groups of ``group_size``: whichever are fast to compare."""

    def floor(self, values: npt.NDArray[np.float64]) -> Results:
        """Return the smallest result that a product of at least ``values`` can give."""

    def ceiling(self, values: npt.NDArray[np.float64]) -> Results:
        """Return a result such that products which give it, or a larger one, are at least ``values``."""

    def lower(self, results: Results) -> npt.NDArray[np.float64]:
        """Return numbers that the products which gave ``results`` were not below."""


class Spread(NamedTuple):
    """Lengths that bound the error of a product: of the longest gallery row, centred row and residual."""

    row: float
    centred: float
    residual: float


class Float32Product:
    """The product in float32, by NumPy. The gallery is neither copied nor centred."""

    result_bytes = 4
    hidden: float = -np.inf
    lowest: float = -np.inf
    top: float = np.inf

    def __init__(self, gallery: FloatArray) -> None:
        """Measure the gallery.

        Args:
            gallery: ``(G, E)`` float32, finite.

        Raises:
            InputError: A row that is too long.
        """
        self._gallery = gallery
        self._max_norm = max(max_norm(rows) for rows in pieces(gallery))
        self._buffer = np.empty(0, dtype=np.float32)

    def multiply(self, queries: FloatArray) -> tuple[Results, Bounds]:
        """Return the results; see ``Product``."""
        num_gallery = len(self._gallery)
        bounds = self.measure(queries)
        shape = (len(queries), pad(num_gallery))
        if self._buffer.size < shape[0] * shape[1]:
            self._buffer = np.empty(shape[0] * shape[1], dtype=np.float32)
        results = self._buffer[: shape[0] * shape[1]].reshape(shape)
        np.matmul(queries, self._gallery.T, out=results[:, :num_gallery])
        results[:, num_gallery:] = self.hidden
        return results, bounds

    def measure(self, queries: FloatArray) -> Bounds:
        """Return the bounds of products with ``(Q, E)`` queries, whatever multiplies them in float32.

        Raises:
            InputError: A query that is too long.
        """
        nothing = np.zeros(len(queries))
        return Bounds(bound(queries, nothing, Spread(self._max_norm, self._max_norm, 0.0)), nothing)

    def group(self, results: Results, group_size: int) -> Groups:
        """Take every n-th column: NumPy compares long rows nine times as fast as neighbours in many short ones."""
        columns = results.reshape(len(results), group_size, -1)
        rows = np.arange(results.shape[1]).reshape(group_size, -1).T
        return Groups(columns.max(axis=1), columns.swapaxes(1, 2), rows)

    def floor(self, values: npt.NDArray[np.float64]) -> Results:
        """Return the next float32 number below: nothing is rounded after the sum."""
        return np.nextafter(values.astype(np.float32), np.float32(-np.inf))

    def ceiling(self, values: npt.NDArray[np.float64]) -> Results:
        """Return the next float32 number above."""
        return np.nextafter(values.astype(np.float32), np.float32(np.inf))

    def lower(self, results: Results) -> npt.NDArray[np.float64]:
        """Return the results."""
        return results.astype(np.float64)


def choose_products(num_queries: int, gallery: FloatArray, *, may_load_torch: bool = False) -> Iterator[Product]:
    """Yield products from fast to precise: what the first leaves open for too many pairs is for the next.

    torch multiplies bfloat16. Search must not load it, so it serves where the program has loaded it anyway. The
    neighbours are the same with and without.

    Args:
        num_queries: How many are to be multiplied.
        gallery: ``(G, E)`` float32.
        may_load_torch: Whether to load torch, where it is installed, when the product is large enough to gain by it.

    Yields:
        One or two; none where no bound is claimed. Each is made when it is asked for.

    Raises:
        InputError: A gallery row that is too long.
    """
    num_dims = gallery.shape[1]
    if num_dims > MAX_DIMS:
        return
    is_large = 2.0 * num_queries * gallery.size > TORCH_OPERATIONS
    may_use = "torch" in sys.modules or (may_load_torch and is_large and find_spec("torch") is not None)
    if may_use and num_queries >= MIN_BFLOAT16_QUERIES:
        from vitrieve.similarity.bfloat16 import BFloat16Product, has_fast_bfloat16

        if has_fast_bfloat16(num_dims):
            yield BFloat16Product(gallery)
    yield Float32Product(gallery)


def bound(queries: FloatArray, query_residuals: npt.NDArray[np.float64], gallery: Spread) -> npt.NDArray[np.float64]:
    """Return the error of each query's products, as derived above.

    Args:
        queries: ``(Q, E)`` as given.
        query_residuals: ``(Q,)`` norms of what rounding the queries loses.
        gallery: The longest of the gallery.

    Returns:
        ``(Q,)`` float64.

    Raises:
        InputError: A query that is too long.
    """
    num_dims = queries.shape[1]
    query_norms = norms(queries)
    if query_norms.max(initial=0.0) > MAX_NORM:
        grid_steps(queries)  # raises
    multiplied = query_norms + query_residuals  # at least |q^|
    rounding = query_residuals * gallery.centred + multiplied * gallery.residual
    # |m| is at most |g| + |c|: the offset's share is far below the 2^-10 that everything is widened by.
    summing = (num_dims * 2.0**-22 + 2.0**-24) * multiplied * (gallery.centred + gallery.residual)
    grid = (num_dims**0.5 * 2.0**-24 + 2.0**-23 + num_dims * 2.0**-50) * query_norms * gallery.row
    flushed = num_dims * 2.0**-124 + num_dims**0.5 * 2.0**-125 * (query_norms + gallery.row)
    errors: npt.NDArray[np.float64] = (rounding + summing + grid + flushed) * (1 + 2.0**-10)
    return errors


def norms(rows: FloatArray) -> npt.NDArray[np.float64]:
    """Return the norms of ``(N, E)`` rows, summed in float64."""
    found: npt.NDArray[np.float64] = np.sqrt(np.einsum("ne,ne->n", rows, rows, dtype=np.float64))
    return found


def max_norm(rows: FloatArray) -> float:
    """Return the length of the longest row, to four places (the bound is widened by more).

    Raises:
        InputError: It is too long.
    """
    with np.errstate(over="ignore"):
        longest = math.sqrt(np.einsum("ne,ne->n", rows, rows).max(initial=0.0))
    if 2.0**-40 < longest < 2.0**40:  # else squares may have left the range of float32
        return longest
    longest = float(norms(rows).max(initial=0.0))
    if longest > MAX_NORM:
        grid_steps(rows)  # raises
    return longest


def pieces(rows: FloatArray) -> Iterator[FloatArray]:
    """Yield ``PREPARED_ROWS`` rows at a time."""
    for start in range(0, len(rows), PREPARED_ROWS):
        yield rows[start : start + PREPARED_ROWS]


def pad(num_columns: int) -> int:
    """Return the number of columns with padding."""
    return -(-num_columns // MAX_GROUP_SIZE) * MAX_GROUP_SIZE
