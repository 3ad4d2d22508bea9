"""The only definition of nearness, in NumPy.

The similarity of two embeddings is their inner product (the cosine, for L2-normalized rows), computed in
float64 and rounded to float32. It is a function of the two rows alone: not of their position in a matrix,
the size of a block, the number of threads or the library underneath. Exact duplicates therefore tie
exactly, and so does a whole collapsed collection, which the metrics rely on (ties count against the query).

Plain float64 products come close to that promise but break it about once in 10^8 pairs, because the order
of summation decides the last bits and now and then the rounding. Here the coordinates are first rounded to
a grid of 2^-26 of the row's norm. A product is then a multiple of 2^-52, no partial sum exceeds 2, and
53 bits hold every partial sum exactly: there is nothing left for the order to decide. The price is an
error below 2^-27 a coordinate, about a tenth of a float32 step in the similarity.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrieve.errors import InputError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

BLOCK_BYTES = 64 * 2**20
"""Memory for one block of similarities; sorting needs about five times as much for a moment."""
LARGE_BLOCK_BYTES = 192 * 2**20
"""The same for a gallery that is rounded anew for each block: with ten million images below 1 GB in all."""
CHUNK_COPY_BYTES = 512 * 2**20
"""A gallery up to this size is copied on its grid once for all blocks."""
MAX_CHUNK_SIZE = 1024
"""Queries in one block at most: larger products are no faster."""
GALLERY_BLOCK_SIZE = 8192
"""Gallery rows that are converted to float64 at a time."""
STEP_BLOCK_SIZE = 1024
"""Rows whose norms are computed at a time: few enough to stay in the cache."""
PAIR_BLOCK_NUMBERS = 2**17 + 2**16
"""Coordinates of listed pairs that are compared at a time (512 pairs of 384): they stay in the cache, and are
enough work for a thread."""
MIN_PAIRS_A_THREAD = 4096
"""Fewer pairs are not worth a thread."""
GRID_COPY_BYTES = 256 * 2**20
"""Embeddings up to this size are copied on their grid once; the others are rounded again for every pair."""
SERIAL_TERMS = 9_000
"""OpenBLAS computes the product of a matrix and a vector of fewer numbers in the thread that calls."""
MAX_SERIAL_NUMBERS = 2**26
"""Up to so many numbers of a gallery (64 million: some 10 ms) one query is compared in the thread that calls."""
GRID_BITS = 26
MAX_NORM = 2.0**60
"""Longer rows would overflow float32 in their inner products."""


def normalize(vectors: npt.ArrayLike) -> FloatArray:
    """Scale rows to Euclidean length one.

    Args:
        vectors: ``(N, E)`` real numbers; unchanged.

    Returns:
        ``(N, E)`` float32; norms are computed in float64. A row of zeros stays zero: equally similar to everything.

    Raises:
        InputError: ``vectors`` is no matrix of finite numbers.

    >>> normalize([[3.0, 4.0], [0.0, 0.0]]).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    rows = as_embeddings(vectors).astype(np.float64)
    norms = np.sqrt((rows**2).sum(axis=1, keepdims=True))
    return (rows / np.where(norms > 0, norms, 1.0)).astype(np.float32)


def as_embeddings(vectors: npt.ArrayLike, name: str = "embeddings") -> FloatArray:
    """Check that ``vectors`` is a matrix of finite numbers and convert it to float32.

    Args:
        vectors: ``(N, E)`` real numbers, E at least 1.
        name: Name for the message.

    Raises:
        InputError: ``vectors`` has another shape or type, or holds NaN, infinity, or numbers too large for float32.
    """
    given = np.asarray(vectors)
    if given.ndim != 2 or given.shape[1] == 0 or given.dtype.kind not in "fiub":
        raise InputError(
            f"{name} have shape {given.shape} and type {given.dtype}; expected a matrix of numbers, a row an image."
        )
    with np.errstate(over="ignore"):  # reported below, as what it is: not finite
        matrix = np.ascontiguousarray(given, dtype=np.float32)
    with np.errstate(all="ignore"):
        sums = multiply(np.ones((1, matrix.shape[1]), dtype=np.float32), matrix)[0]
    suspects = np.flatnonzero(~np.isfinite(sums))  # a finite sum has finite terms; of finite terms it may overflow
    wrong = suspects[~np.isfinite(matrix[suspects]).all(axis=1)]
    if len(wrong):
        raise InputError(
            f"{name} hold NaN or infinity in {len(wrong)} of {len(matrix)} rows, "
            f"first in row {wrong[0]}; look for the image or training step that made them."
        )
    return matrix


def multiply(queries: npt.NDArray[Any], gallery: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Multiply rows with rows: ``queries @ gallery.T``, for one query without threads.

    The threads of a BLAS wait for each other, and where something else has a core, as in a service with its clients
    or beside a training, one query takes milliseconds of waiting instead of 0.1 ms of work. So the gallery is handed
    over in pieces that are too small for threads. The last bits may differ from those of one product.

    Args:
        queries: ``(Q, E)`` float32 or float64.
        gallery: ``(G, E)`` of the same type.

    Returns:
        ``(Q, G)`` of the same type.
    """
    num_rows = SERIAL_TERMS // gallery.shape[1]
    if len(queries) != 1 or not num_rows or gallery.size > MAX_SERIAL_NUMBERS:
        whole: npt.NDArray[Any] = queries @ gallery.T
        return whole
    num_whole = len(gallery) // num_rows * num_rows
    query = queries[0]
    products = gallery[:num_whole].reshape(-1, num_rows, gallery.shape[1]) @ query
    return np.concatenate([products.reshape(-1), gallery[num_whole:] @ query])[None]


def similarity(queries: npt.ArrayLike, gallery: npt.ArrayLike) -> FloatArray:
    """Compute the similarity of every query to every gallery row; higher is nearer.

    The whole matrix at once: for large sets go through ``similarity_chunks``.

    Args:
        queries: ``(Q, E)`` embeddings.
        gallery: ``(G, E)`` embeddings.

    Returns:
        ``(Q, G)`` float32; each value depends on its two rows alone, and a pair gives the same value in either order.

    Raises:
        InputError: The embeddings are no finite matrices of the same width.

    >>> similarity([[1.0, 0.0]], [[0.0, 1.0], [0.5, 0.5], [-1.0, 0.0]]).tolist()
    [[0.0, 0.5, -1.0]]
    """
    query_rows, gallery_rows = check_pair(queries, gallery)
    return _grid_product(round_to_grid(query_rows), round_to_grid(gallery_rows), is_rounded=True)


def similarity_chunks(
    queries: npt.ArrayLike, gallery: npt.ArrayLike, *, chunk_size: int | None = None
) -> Iterator[tuple[slice, FloatArray]]:
    """Compute similarities for some queries at a time, in order.

    Args:
        queries: ``(Q, E)`` embeddings.
        gallery: ``(G, E)`` embeddings.
        chunk_size: Queries at a time; by default as many as keep a block near ``BLOCK_BYTES``. Changes no value.

    Yields:
        Which queries, and their ``(q, G)`` similarities: a fresh array that the caller may change.

    Raises:
        InputError: As in ``similarity``.
    """
    query_rows, gallery_rows = check_pair(queries, gallery)
    is_copied = gallery_rows.nbytes <= CHUNK_COPY_BYTES
    block_bytes = BLOCK_BYTES if is_copied else LARGE_BLOCK_BYTES
    gallery_rows = round_to_grid(gallery_rows) if is_copied else gallery_rows
    size = chunk_size or max(1, min(MAX_CHUNK_SIZE, block_bytes // (4 * max(1, len(gallery_rows)))))
    for start in range(0, len(query_rows), size):
        rows = slice(start, min(start + size, len(query_rows)))
        yield rows, _grid_product(round_to_grid(query_rows[rows]), gallery_rows, is_rounded=is_copied)


def order_nearest(similarities: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
    """Order the ``k`` highest similarities of each row; ties are ordered by column.

    Args:
        similarities: ``(Q, G)`` float32 without NaN; minus infinity marks what must come last.
        k: Columns to keep, at least 1.

    Returns:
        Similarities ``(Q, K)``, falling, and their columns ``(Q, K)``, K = min(k, G).
    """
    num_columns = similarities.shape[1]
    num_kept = min(k, num_columns)
    # One integer holds both: its upper half orders as the similarity does, its lower half falls with the column.
    # No two are equal, so that selecting the largest is exact where a selection by similarity would cut through a tie.
    keys = _order_as_integers(similarities) << 32
    keys += np.arange(num_columns, dtype=np.int64)[::-1]
    if num_kept < num_columns:
        keys.partition(num_columns - num_kept, axis=1)
    nearest = np.sort(keys[:, num_columns - num_kept :], axis=1)[:, ::-1]
    columns = num_columns - 1 - (nearest & 0xFFFFFFFF)
    return np.take_along_axis(similarities, columns, axis=1), columns


def nearest_first_keys(owners: IntArray, similarities: FloatArray) -> IntArray:
    """Return integers that order listed pairs by query, and under one query from near to far; equal where both are.

    Args:
        owners: ``(P,)`` the query of each pair, below 2^30.
        similarities: ``(P,)`` float32 without NaN.
    """
    return (owners << 32) - _order_as_integers(similarities)


def _order_as_integers(similarities: FloatArray) -> IntArray:
    """Return int64 numbers in the range of int32, in the order of the similarities."""
    bits = (similarities + np.float32(0)).view(np.int32)  # + 0 makes -0.0 and 0.0 the same bits
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)


def check_pair(queries: npt.ArrayLike, gallery: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Check two sets of embeddings that are to be compared, and convert them to float32.

    Raises:
        InputError: The embeddings are no finite matrices of the same width.
    """
    query_rows = as_embeddings(queries, "query embeddings")
    gallery_rows = query_rows if gallery is queries else as_embeddings(gallery, "gallery embeddings")
    if query_rows.shape[1] != gallery_rows.shape[1]:
        raise InputError(
            f"query embeddings have {query_rows.shape[1]} dimensions and gallery embeddings {gallery_rows.shape[1]}; "
            "they must come from the same encoder."
        )
    return query_rows, gallery_rows


def grid_steps(rows: FloatArray) -> npt.NDArray[np.float64]:
    """Return the step of each row's grid, 2^-26 of the power of two near its norm.

    Args:
        rows: ``(N, E)`` float32.

    Returns:
        ``(N,)`` float64, powers of two: multiplying and dividing by them is exact.

    Raises:
        InputError: A norm is above ``MAX_NORM``.
    """
    steps = np.empty(len(rows))
    for start in range(0, len(rows), STEP_BLOCK_SIZE):
        block = slice(start, start + STEP_BLOCK_SIZE)
        norms = np.sqrt((rows[block].astype(np.float64) ** 2).sum(axis=1))
        if norms.max(initial=0.0) > MAX_NORM:
            raise InputError(f"an embedding has the norm {norms.max():.3g}; normalize embeddings first.")
        mantissas, exponents = np.frexp(norms)
        # Norms up to 2^(e + 1/4) belong to exponent e, so that rows of norm 1, give or take a rounding, share one
        # grid. The inner product of two such rows stays below 2^(1/2) times their grids' scales: room to spare.
        exponents -= mantissas <= 2**-0.75
        steps[block] = np.ldexp(1.0, exponents - GRID_BITS)
    return steps


class GridRows:
    """Rows of embeddings on their grids, for comparing listed pairs."""

    def __init__(self, rows: FloatArray, *, is_copied: bool) -> None:
        """Remember the rows, or a rounded copy of them.

        Args:
            rows: ``(N, E)`` float32.
            is_copied: Whether so many pairs follow that rounding every row once costs less than rounding each pair's;
                larger embeddings than ``GRID_COPY_BYTES`` are not copied nevertheless.

        Raises:
            InputError: A norm is above ``MAX_NORM``, among rows that are copied.
        """
        self._is_rounded = is_copied and rows.nbytes <= GRID_COPY_BYTES
        self._rows = round_to_grid(rows) if self._is_rounded else rows
        self.num_dims = rows.shape[1]

    def take(self, rows: IntArray) -> npt.NDArray[np.float64]:
        """Return some rows, ``(P, E)``."""
        taken = self._rows[rows]
        return taken.astype(np.float64) if self._is_rounded else _to_grid(taken, grid_steps(taken))


def pair_similarities(queries: GridRows, gallery: GridRows, query_rows: IntArray, gallery_rows: IntArray) -> FloatArray:
    """Compute the similarities of listed pairs, bit for bit those of ``similarity``.

    Args:
        queries: ``(Q, E)``.
        gallery: ``(G, E)``.
        query_rows: ``(P,)`` rows of ``queries``; fastest where neighbors are the same.
        gallery_rows: ``(P,)`` rows of ``gallery``.

    Returns:
        ``(P,)`` float32.
    """
    found = np.empty(len(query_rows), dtype=np.float32)

    block_size = max(1, PAIR_BLOCK_NUMBERS // queries.num_dims)

    def compare(first: int, stop: int) -> None:
        for start in range(first, stop, block_size):
            pairs = slice(start, min(start + block_size, stop))
            # A dot product a pair, not a matrix product of which few entries are wanted: OpenBLAS would compute that
            # in threads that go on spinning for a while, on the cores that the next bfloat16 product needs.
            found[pairs] = np.vecdot(gallery.take(gallery_rows[pairs]), queries.take(query_rows[pairs]))

    num_threads = max(1, min(os.cpu_count() or 1, len(found) // MIN_PAIRS_A_THREAD))
    borders = np.linspace(0, len(found), num_threads + 1, dtype=int).tolist()
    if num_threads == 1:
        compare(*borders)
    else:
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(compare, borders[:-1], borders[1:]))
    return found


def round_to_grid(embeddings: FloatArray) -> FloatArray:
    """Round coordinates to multiples of 2^-26 of the power of two near the row's norm.

    float32 holds these multiples exactly: a coordinate of a quarter of the norm or more is one already, and a
    smaller one needs at most 24 bits.

    Raises:
        InputError: A norm is above ``MAX_NORM``.
    """
    rounded = np.empty_like(embeddings)
    for start in range(0, len(embeddings), GALLERY_BLOCK_SIZE):
        rows = slice(start, start + GALLERY_BLOCK_SIZE)
        rounded[rows] = _to_grid(embeddings[rows], grid_steps(embeddings[rows]))
    return rounded


def _to_grid(rows: FloatArray, steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    rounded = rows * (1.0 / steps)[:, None]  # float64; exact, as multiplying by a power of two is
    np.rint(rounded, out=rounded)
    rounded *= steps[:, None]
    return rounded


def _grid_product(queries: FloatArray, gallery: FloatArray, *, is_rounded: bool) -> FloatArray:
    product = np.empty((len(queries), len(gallery)), dtype=np.float32)
    query_rows = queries.astype(np.float64)
    for start in range(0, len(gallery), GALLERY_BLOCK_SIZE):
        rows = slice(start, start + GALLERY_BLOCK_SIZE)
        block = gallery[rows] if is_rounded else round_to_grid(gallery[rows])
        product[:, rows] = multiply(query_rows, block.astype(np.float64))  # (Q, B)
    return product
