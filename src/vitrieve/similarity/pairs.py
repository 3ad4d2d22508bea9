"""All pairs of a collection that are near enough, exactly: a bounded product lists candidates, the definition decides.

Each row lists the others that may reach the threshold, as in ``nearest.py``; with too many it is compared whole.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vitrieve.errors import InputError
from vitrieve.progress import showing
from vitrieve.similarity.definition import FloatArray, IntArray, as_embeddings, pair_similarities, similarity_chunks
from vitrieve.similarity.nearest import MIN_GALLERY, Maxima, QuerySet, RowLists, compare_by_products, round_both

MAX_CANDIDATES = 4096
"""A row with more candidates than this is compared with every other."""
MAX_PAIRS = 20_000_000
"""The most pairs that are kept: 400 MB of them."""


class Pairs(NamedTuple):
    """Pairs of rows, by rising ``first``, and under one ``first`` by rising ``second``.

    Attributes:
        first: ``(P,)`` int64 rows.
        second: ``(P,)`` int64 rows, each behind its ``first``.
        similarities: ``(P,)`` float32.
    """

    first: IntArray
    second: IntArray
    similarities: FloatArray


def pairs_above(embeddings: npt.ArrayLike, threshold: float, *, shown_as: str | None = None) -> Pairs:
    """Find all pairs of different rows whose similarity is at least ``threshold``.

    Args:
        embeddings: ``(N, E)`` embeddings; any N.
        threshold: Least similarity, compared in float32.
        shown_as: What the work is called in the progress on standard error; None: nothing is shown.

    Returns:
        Each pair once. Memory beside the result and the embeddings: as ``top_k`` needs, whatever N is.

    Raises:
        InputError: The embeddings are no finite matrix, or more than ``MAX_PAIRS`` pairs reach the threshold.

    >>> pairs_above([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], 0.5).second.tolist()
    [2]
    """
    rows = as_embeddings(embeddings)
    collector = _Collector(np.float32(threshold))
    left = np.arange(len(rows))
    with showing(shown_as or "", total=len(rows), is_shown=shown_as is not None) as advance:
        if len(rows) >= MIN_GALLERY:
            grids = round_both(rows, rows)
            itself = RowLists(np.arange(len(rows) + 1), left)

            def collect(maxima: Maxima) -> npt.NDArray[np.bool_]:
                least = np.full(len(maxima.chosen), float(collector.threshold))
                pairs = maxima.find_pairs(least, np.full(len(least), np.inf), MAX_CANDIDATES)
                first = maxima.chosen[pairs.owners]
                is_behind = pairs.rows > first
                first, second = first[is_behind], pairs.rows[is_behind]
                collector.add(first, second, pair_similarities(*grids, first, second))
                return pairs.is_left

            left = compare_by_products(
                QuerySet(rows, rows, np.ones(len(rows), dtype=np.int64), itself), left, collect, advance=advance
            )
        for chunk, block in similarity_chunks(rows[left], rows) if len(left) else ():
            queries, second = np.nonzero(block >= collector.threshold)
            first = left[chunk][queries]
            is_behind = second > first
            collector.add(first[is_behind], second[is_behind], block[queries, second][is_behind])
            advance(len(block))
    return collector.join()


class _Collector:
    """Pairs that reach the threshold, as they are found."""

    def __init__(self, threshold: np.float32) -> None:
        self.threshold = threshold
        none = np.empty(0, dtype=np.int64)
        self._parts = [Pairs(none, none, np.empty(0, dtype=np.float32))]
        self._num_pairs = 0

    def add(self, first: IntArray, second: IntArray, similarities: FloatArray) -> None:
        """Keep those of some pairs that reach the threshold; each array is ``(N,)``."""
        is_near = similarities >= self.threshold
        self._parts.append(Pairs(first[is_near], second[is_near], similarities[is_near]))
        self._num_pairs += len(self._parts[-1].first)
        if self._num_pairs > MAX_PAIRS:
            raise InputError(
                f"more than {MAX_PAIRS:,} pairs have a similarity of {self.threshold:.4g} or more, which are all that "
                "are kept; give a higher threshold."
            )

    def join(self) -> Pairs:
        """Return all pairs, in the order of their rows."""
        first, second, similarities = (np.concatenate(columns) for columns in zip(*self._parts, strict=True))
        order = np.lexsort((second, first))
        return Pairs(first[order], second[order], similarities[order])
