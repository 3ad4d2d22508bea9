"""The nearest gallery rows of every query, exactly: a bounded product chooses candidates, the definition decides.

If k products of a query are at least t, then k similarities are at least t less the error bound b, and a row among
the k nearest has a product of at least t - 2 b. t is the k-th largest of the maxima of groups of gallery rows: a lower
estimate of the k-th largest product that costs a comparison for every product, but no sorting. Only these maxima of
the product are kept (``Maxima``). The few groups whose maximum is large enough are opened: their products are computed
once more in float32, for all queries that open a group at once.

A collection that is compared with itself in float32 needs half of the product, because a tile of results x . y serves
its rows and its columns. Where the hardware multiplies bfloat16, that product is faster than half of the one in
float32.

A group is the rows of a panel that are equal modulo ``PANEL_GROUPS``, the same for every query, so that whole rows of
a tile, and whole stretches of them, are compared with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vitrieve.errors import InputError
from vitrieve.progress import showing
from vitrieve.similarity.definition import (
    FloatArray,
    GridRows,
    IntArray,
    check_pair,
    nearest_first_keys,
    order_nearest,
    pair_similarities,
    similarity_chunks,
)
from vitrieve.similarity.product import (
    MAX_DIMS,
    BFloat16Product,
    Bounds,
    Float32Product,
    Numbers,
    Product,
    Results,
    has_bfloat16_for,
)

MIN_GALLERY = 2048
"""A smaller gallery is compared whole."""
GROUPS_PER_NEIGHBOR = 8
"""The least number of groups for each wanted neighbor: then few groups hold two, and the estimate is close."""
GROUP_SIZES = (64, 32, 16, 8, 4)
"""Rows of which only the largest result is kept; in a collection that is compared with itself there may be more."""
MAX_SYMMETRIC_SIZE = 1024
"""A query computes some ten groups again: larger ones would cost more than half of the product saves."""
PANEL_GROUPS = 64
"""Groups of a panel; a power of two, as the sizes of groups, strips and tiles are."""
STRIP_ROWS = 1024
"""Queries multiplied at a time at most: larger products are no faster."""
TILE_NUMBERS = 2**22
"""Results at a time: 16 MiB in float32."""
COMPARED_ROWS = 128
"""Rows of a tile that are compared at a time: few enough to stay in the cache."""
MAXIMA_BYTES = 256 * 2**20
"""Memory for the maxima."""
MAX_QUERIES = 2**14
"""Queries whose groups are opened at a time: so many that each group is opened by hundreds of them."""
ORDERED_QUERIES = 256
"""Queries whose maxima are copied at a time."""
MIN_SYMMETRIC_SHARE = 0.75
"""With a smaller share of queries among the images of a collection, half of all products is no gain."""
MAX_CANDIDATES = 512
"""A query with more candidates than this, beside ten for each neighbor, is left to a more precise product."""
MIN_COPIED_QUERIES = 256
"""From so many queries on, so many pairs are compared that the embeddings are copied on their grid."""
ROW_BITS = 32
"""A pair is one integer, to be sorted: the query above so many bits for the gallery row."""


Advance = Callable[[float], None]
"""Told how many queries were worked through, as what ``progress.showing`` yields: half of each for the products, half
for the comparison of what they leave."""


def _tell_nobody(_: float) -> None:
    pass


class RowLists(NamedTuple):
    """Lists of gallery rows, one a query.

    Attributes:
        starts: ``(Q + 1,)`` int64: the list of query q goes from ``starts[q]`` to before ``starts[q + 1]``.
        rows: int64 gallery rows, list after list.
    """

    starts: IntArray
    rows: IntArray

    @classmethod
    def of_lists(cls, lists: Sequence[IntArray]) -> RowLists:
        """Store lists one after the other."""
        starts = np.cumsum([0, *(len(one) for one in lists)], dtype=np.int64)
        return cls(starts, np.concatenate([np.empty(0, dtype=np.int64), *lists]))

    def take(self, queries: IntArray) -> tuple[IntArray, IntArray]:
        """Return the pairs of some queries: the position of the query in ``queries``, and the gallery row."""
        lengths = self.starts[queries + 1] - self.starts[queries]
        owners = np.repeat(np.arange(len(queries)), lengths)
        firsts = self.starts[queries] - np.cumsum(lengths) + lengths
        return owners, self.rows[np.arange(len(owners)) + firsts[owners]]


class QuerySet(NamedTuple):
    """Queries, and how many neighbors each looks for in a gallery.

    Attributes:
        queries: ``(Q, E)`` float32.
        gallery: ``(G, E)`` float32; it may be ``queries``.
        num_wanted: ``(Q,)`` int64: the number of groups that tell how near the neighbors are.
        hidden: Pairs that are not to be found.
    """

    queries: FloatArray
    gallery: FloatArray
    num_wanted: IntArray
    hidden: RowLists


class CandidatePairs(NamedTuple):
    """Pairs that are to be compared exactly, and what is known of the others.

    Attributes:
        owners: ``(P,)`` int64 positions of the queries among those of ``Maxima``, rising.
        rows: ``(P,)`` int64 gallery rows; under one query they rise.
        num_above: ``(Q,)`` further gallery rows of each query that surely reach the upper limit.
        is_left: ``(Q,)`` whether the query has too many open pairs, of which none is listed.
    """

    owners: IntArray
    rows: IntArray
    num_above: IntArray
    is_left: npt.NDArray[np.bool_]


class Maxima:
    """The largest product of every group of gallery rows with some queries.

    Attributes:
        chosen: ``(Q,)`` int64: the queries, as rows of ``QuerySet.queries``.
    """

    def __init__(self, query_set: QuerySet, product: Product, precise: Float32Product, group_size: int) -> None:
        """Begin without queries; ``compute`` or ``take`` gives them."""
        self._query_set, self._product, self._precise = query_set, product, precise
        self._panel_rows = PANEL_GROUPS * group_size
        self._num_groups = PANEL_GROUPS * -(-len(query_set.gallery) // self._panel_rows)
        self.chosen: IntArray = np.empty(0, dtype=np.int64)
        self._bounds = Bounds(np.empty(0), np.empty(0))
        self._largest: Results = np.empty((self._num_groups, 0), dtype=product.hidden.dtype)

    @property
    def queries_that_fit(self) -> int:
        """The number of queries whose maxima fit in memory."""
        return max(1, min(MAX_QUERIES, MAXIMA_BYTES // (self._largest.itemsize * self._num_groups)))

    def compute(self, chosen: IntArray, *, is_symmetric: bool = False, advance: Advance = _tell_nobody) -> None:
        """Multiply some queries with the gallery.

        Args:
            chosen: ``(Q,)`` queries.
            is_symmetric: The queries are all rows of the gallery, in order, and a pair is hidden in both directions:
                half of the products is computed.
            advance: Told half of the number of queries that were multiplied, block by block.

        Raises:
            InputError: A query is too long.
        """
        self.chosen = chosen
        self._largest = np.full((self._num_groups, len(chosen)), self._product.hidden)
        strip_rows = min(STRIP_ROWS, self._panel_rows) if is_symmetric else STRIP_ROWS
        bounds = []
        for start in range(0, len(chosen), strip_rows):
            strip = slice(start, min(start + strip_rows, len(chosen)))
            prepared, measured = self._product.prepare(self._query_set.queries[chosen[strip]])
            bounds.append(measured)
            for first, columns, results in self._multiply(prepared, chosen[strip], start if is_symmetric else 0):
                self._keep_largest_of_rows(results, strip, first)
                behind = slice(max(columns.start, strip.stop), columns.stop)
                if is_symmetric and behind.start < behind.stop:  # then the strip is whole
                    self._keep_largest_of_columns(results[:, behind.start - first : behind.stop - first], start, behind)
            advance((strip.stop - strip.start) / 2)
        self._bounds = Bounds(*(np.concatenate(parts) for parts in zip(*bounds, strict=True)))

    def take(self, chosen: IntArray) -> Maxima:
        """Return the maxima of some queries, after ``compute`` of all rows of a collection."""
        taken = Maxima(self._query_set, self._product, self._precise, self._panel_rows // PANEL_GROUPS)
        taken.chosen, taken._largest = chosen, self._largest[:, chosen]
        taken._bounds = Bounds(self._bounds.errors[chosen], self._bounds.offsets[chosen])
        return taken

    def reach(self, k: int) -> Numbers:
        """Return ``(Q,)`` similarities that at least ``k`` gallery rows of each query reach, or minus infinity."""
        kth = self._num_groups - k
        parts = [
            np.partition(np.ascontiguousarray(self._largest[:, start : start + ORDERED_QUERIES].T), kth, axis=1)[:, kth]
            for start in range(0, len(self.chosen), ORDERED_QUERIES)
        ]
        return self._product.lower(np.concatenate(parts)) + self._bounds.offsets - self._bounds.errors

    def find_pairs(self, least: Numbers, limits: Numbers, max_pairs: int) -> CandidatePairs:
        """List the gallery rows whose similarity may be at least ``least`` but does not surely reach ``limits``.

        Args:
            least: ``(Q,)``.
            limits: ``(Q,)``; infinity: everything is listed.
            max_pairs: The most pairs that are listed of a query.
        """
        product, query_set = self._product, self._query_set
        floors = product.floor(least - self._bounds.offsets - self._bounds.errors)
        is_left = floors < product.lowest
        is_open = self._largest >= floors
        is_left |= np.count_nonzero(is_open, axis=0) > max_pairs  # each would be found to hold one open pair or more
        is_open[:, is_left] = False
        errors = self._precise.prepare(query_set.queries[self.chosen])[1].errors
        floors = np.nextafter((least - errors).astype(np.float32), np.float32(-np.inf))
        limits = np.nextafter((limits + errors).astype(np.float32), np.float32(np.inf))
        num_above, num_open = np.zeros(len(self.chosen), dtype=np.int64), np.zeros(len(self.chosen), dtype=np.int64)
        found = [np.empty(0, dtype=np.int64)]
        groups, openers = np.divmod(np.flatnonzero(is_open), len(self.chosen))
        borders = np.flatnonzero(np.diff(groups, prepend=-1, append=-1))
        hidden = self._hidden_by_group()
        for start, stop in pairwise(borders.tolist()):
            group, owners = int(groups[start]), openers[start:stop]
            members = self._members(group)
            results = query_set.queries[self.chosen[owners]] @ query_set.gallery[members].T
            _hide(results, hidden, group, owners, members)
            is_above = results >= limits[owners, None]
            is_between = (results >= floors[owners, None]) & ~is_above
            num_above[owners] += np.count_nonzero(is_above, axis=1)
            num_open[owners] += np.count_nonzero(is_between, axis=1)
            is_between[num_open[owners] > max_pairs] = False
            lines, numbers = np.divmod(np.flatnonzero(is_between), len(members))
            found.append((owners[lines] << ROW_BITS) | members[numbers])
        is_left |= num_open > max_pairs
        pairs = np.sort(np.concatenate(found))  # the rows of a group are no neighbors
        pairs = pairs[~is_left[pairs >> ROW_BITS]]  # a query may have too many only after its first pairs were listed
        return CandidatePairs(pairs >> ROW_BITS, pairs & (2**ROW_BITS - 1), num_above, is_left)

    def _multiply(self, prepared: Any, queries: IntArray, start: int) -> Iterator[tuple[int, slice, Results]]:
        """Yield tiles of results of a strip: the first column, the columns with results, and ``(q, C)`` results.

        A tile consists of whole panels; its columns before ``start`` and behind the gallery are hidden.
        """
        num_gallery, hidden = len(self._query_set.gallery), self._product.hidden
        num_panels = max(1, min(TILE_NUMBERS // (len(queries) * self._panel_rows), num_gallery // self._panel_rows + 1))
        width = num_panels * self._panel_rows
        buffer = np.empty((len(queries), width), dtype=hidden.dtype)
        owners, rows = self._query_set.hidden.take(queries)
        for first in range(start // self._panel_rows * self._panel_rows, num_gallery, width):
            columns = slice(max(first, start), min(first + width, num_gallery))
            buffer[:, : columns.start - first] = hidden
            buffer[:, columns.stop - first :] = hidden
            self._product.multiply(prepared, columns, buffer[:, columns.start - first : columns.stop - first])
            is_here = (rows >= columns.start) & (rows < columns.stop)
            buffer[owners[is_here], rows[is_here] - first] = hidden
            yield first, columns, buffer

    def _keep_largest_of_rows(self, results: Results, strip: slice, first: int) -> None:
        """Compare the columns of a tile that are in one group, for the queries of the strip."""
        group_size = self._panel_rows // PANEL_GROUPS
        first_group = first // group_size
        for start in range(0, len(results), COMPARED_ROWS):
            some = results[start : start + COMPARED_ROWS]
            largest = self._product.largest(some.reshape(len(some), -1, group_size, PANEL_GROUPS))
            largest = largest.reshape(len(some), -1).T
            queries = slice(strip.start + start, strip.start + start + len(some))
            kept = self._largest[first_group : first_group + len(largest), queries]
            np.maximum(kept, largest[: len(kept)], out=kept)  # the last tile may reach beyond the last panel

    def _keep_largest_of_columns(self, results: Results, start: int, queries: slice) -> None:
        """Compare the rows of a tile that are in one group, for the queries behind the strip."""
        first_group = start // self._panel_rows * PANEL_GROUPS
        kept = self._largest[first_group : first_group + PANEL_GROUPS, queries]
        np.maximum(kept, results.reshape(-1, PANEL_GROUPS, results.shape[1]).max(axis=0), out=kept)

    def _hidden_by_group(self) -> tuple[IntArray, IntArray, IntArray]:
        """Return the hidden pairs, group by group: the start of each group, positions of queries, gallery rows."""
        owners, rows = self._query_set.hidden.take(self.chosen)
        groups = rows // self._panel_rows * PANEL_GROUPS + rows % PANEL_GROUPS
        order = np.argsort(groups, kind="stable")
        return np.searchsorted(groups[order], np.arange(self._num_groups + 1)), owners[order], rows[order]

    def _members(self, group: int) -> IntArray:
        """Return the gallery rows of a group."""
        panel, number = divmod(group, PANEL_GROUPS)
        first = panel * self._panel_rows
        return np.arange(first + number, min(first + self._panel_rows, len(self._query_set.gallery)), PANEL_GROUPS)


def compare_by_products(
    query_set: QuerySet,
    chosen: IntArray,
    use: Callable[[Maxima], npt.NDArray[np.bool_]],
    *,
    may_load_torch: bool = False,
    advance: Advance = _tell_nobody,
) -> IntArray:
    """Compare queries by products, from fast to precise: a query that one leaves open is for the next.

    Args:
        query_set: Queries and a gallery of ``MIN_GALLERY`` rows at least.
        chosen: ``(P,)`` the queries that matter, each with at most ``max_wanted`` neighbors.
        use: Takes the maxima of some queries, ``(Q,)``, and says which of them are left open.
        may_load_torch: Whether ``has_bfloat16_for`` may load torch.
        advance: Told how many queries were worked through; those that are left were only multiplied.

    Returns:
        The queries that are left: the definition is to compare them with everything.

    Raises:
        InputError: A row is too long.
    """
    if query_set.gallery.shape[1] > MAX_DIMS:
        return chosen
    precise = Float32Product(query_set.gallery)
    products: list[Product] = [precise]
    if has_bfloat16_for(len(chosen), query_set.gallery, may_load_torch=may_load_torch):
        products.insert(0, BFloat16Product(query_set.gallery))
    for product in products:
        left = [chosen[:0]]
        for maxima in _compute_maxima(query_set, product, precise, chosen, advance):
            left.append(maxima.chosen[use(maxima)])
            advance((len(maxima.chosen) - len(left[-1])) / 2)
        chosen = np.concatenate(left)
    return chosen


def max_wanted(num_gallery: int) -> int:
    """Return the most neighbors of a query that groups help to find: for more, comparing everything costs no more."""
    return num_gallery // (GROUPS_PER_NEIGHBOR * GROUP_SIZES[-1])


def top_k(
    queries: npt.ArrayLike, gallery: npt.ArrayLike, k: int, *, shown_as: str | None = None
) -> tuple[FloatArray, IntArray]:
    """Find the nearest gallery rows of every query, exactly.

    Args:
        queries: ``(Q, E)`` embeddings.
        gallery: ``(G, E)`` embeddings.
        k: Neighbors to return, at least 1.
        shown_as: What the work is called in the progress on standard error; None: nothing is shown.

    Returns:
        Similarities ``(Q, K)`` float32, falling, and gallery rows ``(Q, K)`` int64, where K is ``k`` or the
        size of a smaller gallery. Ties are ordered by row. Memory beside the result: some hundred megabytes, a copy of
        embeddings of up to 256 MiB and, for many queries where torch is loaded, one of the gallery in bfloat16.

    Raises:
        InputError: ``k`` is below 1, or the embeddings are no finite matrices of the same width.

    >>> top_k([[1.0, 0.0]], [[0.0, 1.0], [0.5, 0.5], [0.5, 0.5]], 2)[1].tolist()
    [[1, 2]]
    """
    if k < 1:
        raise InputError(f"k is {k}; expected at least 1.")
    queries, gallery = check_pair(queries, gallery)
    shape = (len(queries), min(k, len(gallery)))
    similarities, gallery_rows = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.int64)
    left = np.arange(len(queries))
    with showing(shown_as or "", total=len(queries), is_shown=shown_as is not None) as advance:
        if k <= max_wanted(len(gallery)) and len(gallery) >= MIN_GALLERY and len(queries):
            grids = round_both(queries, gallery)
            no_rows = RowLists.of_lists([left[:0]] * len(queries))
            query_set = QuerySet(queries, gallery, np.full(len(queries), k), no_rows)

            def order(maxima: Maxima) -> npt.NDArray[np.bool_]:
                pairs = maxima.find_pairs(maxima.reach(k), np.full(len(maxima.chosen), np.inf), MAX_CANDIDATES + 10 * k)
                done = maxima.chosen[~pairs.is_left]
                similarities[done], gallery_rows[done] = _order(grids, maxima.chosen, pairs, k)
                return pairs.is_left

            left = compare_by_products(query_set, left, order, advance=advance)
        for chunk, block in similarity_chunks(queries[left], gallery) if len(left) else ():
            similarities[left[chunk]], gallery_rows[left[chunk]] = order_nearest(block, k)
            advance(len(block))
    return similarities, gallery_rows


def round_both(queries: FloatArray, gallery: FloatArray) -> tuple[GridRows, GridRows]:
    """Return queries and gallery on their grids; one copy serves both where they are the same.

    Raises:
        InputError: A row is too long.
    """
    is_copied = len(queries) >= MIN_COPIED_QUERIES
    query_grid = GridRows(queries, is_copied=is_copied)
    return query_grid, query_grid if gallery is queries else GridRows(gallery, is_copied=is_copied)


def _compute_maxima(
    query_set: QuerySet, product: Product, precise: Float32Product, chosen: IntArray, advance: Advance
) -> Iterator[Maxima]:
    """Yield the maxima of all chosen queries: of those in a collection that is compared with itself by half of it."""
    num_gallery = len(query_set.gallery)
    if product is precise and query_set.queries is query_set.gallery:
        min_size = GROUP_SIZES[-1]
        while MAXIMA_BYTES * min_size < 4 * num_gallery**2:
            min_size *= 2
        is_few = query_set.num_wanted[chosen] <= num_gallery // (GROUPS_PER_NEIGHBOR * min_size)
        few = chosen[is_few]
        is_gain = min_size <= MAX_SYMMETRIC_SIZE and len(few) >= MIN_SYMMETRIC_SHARE * num_gallery
        if is_gain and _is_symmetric(query_set.hidden):
            size = max(min_size, _choose_group_size(int(query_set.num_wanted[few].max()), num_gallery))
            whole = Maxima(query_set, product, precise, size)
            whole.compute(np.arange(num_gallery), is_symmetric=True, advance=advance)
            for start in range(0, len(few), MAX_QUERIES):
                yield whole.take(few[start : start + MAX_QUERIES])
            chosen = chosen[~is_few]
    while len(chosen):
        num_wanted = int(query_set.num_wanted[chosen[:MAX_QUERIES]].max())
        maxima = Maxima(query_set, product, precise, _choose_group_size(num_wanted, num_gallery))
        maxima.compute(chosen[: maxima.queries_that_fit], advance=advance)
        yield maxima
        chosen = chosen[maxima.queries_that_fit :]


def _choose_group_size(num_wanted: int, num_gallery: int) -> int:
    return next(size for size in GROUP_SIZES if num_gallery >= GROUPS_PER_NEIGHBOR * num_wanted * size)


def _is_symmetric(hidden: RowLists) -> bool:
    """Say whether with every pair of a collection its mirror image is hidden."""
    owners, rows = hidden.take(np.arange(len(hidden.starts) - 1))
    return np.array_equal(np.sort((owners << ROW_BITS) | rows), np.sort((rows << ROW_BITS) | owners))


def _hide(
    results: Results, hidden: tuple[IntArray, IntArray, IntArray], group: int, owners: IntArray, members: IntArray
) -> None:
    """Write minus infinity over the hidden pairs of a group, in its float32 results with the queries ``owners``."""
    starts, all_owners, all_rows = hidden
    pairs = slice(starts[group], starts[group + 1])
    lines = np.minimum(np.searchsorted(owners, all_owners[pairs]), len(owners) - 1)
    is_here = owners[lines] == all_owners[pairs]
    results[lines[is_here], np.searchsorted(members, all_rows[pairs][is_here])] = -np.inf


def _order(
    grids: tuple[GridRows, GridRows], chosen: IntArray, candidates: CandidatePairs, k: int
) -> tuple[FloatArray, IntArray]:
    """Return the similarities and rows of the k nearest of every query that has candidates, by the definition."""
    similarities = pair_similarities(*grids, chosen[candidates.owners], candidates.rows)
    order = np.argsort(nearest_first_keys(candidates.owners, similarities), kind="stable")  # ties stay ordered by row
    is_first = np.diff(candidates.owners, prepend=-1) > 0
    nearest = order[np.flatnonzero(is_first)[:, None] + np.arange(k)]  # (queries with candidates, k)
    return similarities[nearest], candidates.rows[nearest]
