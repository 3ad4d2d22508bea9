"""The protocol of the revisited Oxford and Paris benchmarks: easy, medium and hard, junk, trapezoidal precision.

Every query lists its easy, hard and junk images; a protocol says which of them are to be found and which are
ignored (taken out of the ranking before it is scored). ``revisited_metrics`` scores rankings of any origin, also
truncated ones; ``score_listed`` scores similarities, so that a ranking of a million images is never held.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from vitrieve.errors import InputError
from vitrieve.evaluation.metrics import ListedRelevance, Scores, as_labels, check_cut_offs
from vitrieve.similarity import FloatArray, IntArray

REVISITED_KS = (1, 5, 10)
PARTS = ("easy", "hard", "junk")


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Which parts of a query's ground truth are to be found, and which are ignored; all other images are wrong."""

    positive: tuple[str, ...]
    ignored: tuple[str, ...]


REVISITED_ROLES: Mapping[str, Roles] = {
    "easy": Roles(positive=("easy",), ignored=("junk", "hard")),
    "medium": Roles(positive=("easy", "hard"), ignored=("junk",)),
    "hard": Roles(positive=("hard",), ignored=("junk", "easy")),
}


@dataclass(frozen=True, kw_only=True)
class RevisitedScores(Scores):
    """The scores of every query under one protocol, in the order of the queries.

    Attributes:
        num_relevant: ``(Q,)`` int64, positives of each query, found or not. Zero: not scored.
        found_ranks: For each query the ranks of the positives in its ranking, from 0, rising, without ignored images.
            Fewer than ``num_relevant`` where a truncated ranking misses some.
    """

    headlines: ClassVar[tuple[str, str]] = ("mp_at_1", "mean_average_precision")
    group_name: ClassVar[str] = "query"
    nothing_relevant: ClassVar[str] = (
        "none of {} queries has an image to be found under this protocol, so there is nothing to average; look at the "
        "ground truth, or choose another protocol."
    )

    num_relevant: IntArray
    found_ranks: tuple[IntArray, ...]

    def __post_init__(self) -> None:
        num_found = np.array([len(ranks) for ranks in self.found_ranks], dtype=np.int64)
        if self.num_relevant.shape != num_found.shape or (num_found > self.num_relevant).any():
            raise ValueError("a query cannot have found more images than it has positives")

    @property
    def groups(self) -> IntArray:
        """``(Q,)`` groups: every query is its own one, as intervals are over queries."""
        return np.arange(len(self.num_relevant))

    @property
    def first_rank(self) -> IntArray:
        """``(Q,)`` rank of the nearest positive, from 1; zero where none is found."""
        return np.array([ranks[0] + 1 if len(ranks) else 0 for ranks in self.found_ranks], dtype=np.int64)

    @cached_property
    def average_precision(self) -> npt.NDArray[np.float64]:
        """``(Q,)`` trapezoidal average precision in [0, 1], zero where nothing is found or nothing is to be found."""
        pairs = zip(self.found_ranks, self.num_relevant, strict=True)
        return np.array([trapezoidal_average_precision(ranks, int(num)) if num else 0.0 for ranks, num in pairs])

    def precision_at(self, k: int) -> npt.NDArray[np.float64]:
        """Return ``(Q,)`` the share of positives among the first min(k, rank of the last one found), in [0, 1]."""
        return np.array([_precision_at(ranks, k) for ranks in self.found_ranks])

    def values(self, ks: Sequence[int] = REVISITED_KS) -> dict[str, npt.NDArray[np.float64]]:
        """Return each metric's value for every scored query, in [0, 1]: name -> ``(num_scored,)``."""
        scored = self.is_scored
        precisions = {f"mp_at_{k}": self.precision_at(k)[scored] for k in check_cut_offs(ks)}
        return {"mean_average_precision": self.average_precision[scored], **precisions}


@dataclass(frozen=True, kw_only=True)
class RevisitedMetrics:
    """The figures of one protocol.

    Attributes:
        mean_average_precision: Mean of the queries' trapezoidal average precision, in [0, 1]; None when no query
            has positives.
        mean_precision_at: mP@k for every k, in [0, 1]; None when no query has positives.
        average_precision: ``(Q,)`` of every query, zero for those left out.
        is_scored: ``(Q,)`` whether the query has positives, so that it counts in the means.
        num_skipped_queries: Queries left out, as they have none.
    """

    mean_average_precision: float | None
    mean_precision_at: Mapping[int, float | None]
    average_precision: npt.NDArray[np.float64]
    is_scored: npt.NDArray[np.bool_]
    num_skipped_queries: int


def revisited_metrics(
    ranks: npt.ArrayLike, ground_truth: Sequence[Mapping[str, npt.ArrayLike]], ks: Iterable[int] = REVISITED_KS
) -> dict[str, RevisitedMetrics]:
    """Score rankings under the easy, medium and hard protocols of revisited Oxford and Paris.

    Easy: find the easy images, hard and junk ones are ignored. Medium: find easy and hard, junk is ignored. Hard:
    find the hard ones, easy and junk are ignored. Ignored images are taken out of the ranking first. Queries without
    positives are left out and counted.

    Args:
        ranks: ``(G, Q)`` integers: column q holds gallery row numbers, the best match of query q first. Fewer rows
            than the gallery has images are a truncated ranking: positives beyond it count as not found.
        ground_truth: For each query gallery row numbers under ``easy``, ``hard`` and ``junk``, each possibly empty,
            without a row in two of them; other keys are ignored.
        ks: Cut-offs of mP@k, each at least 1.

    Returns:
        ``easy``, ``medium`` and ``hard`` -> their figures.

    Raises:
        InputError: Shapes or types that do not fit, a missing key, a row twice in a query's ground truth, a row of
            the ground truth twice in its ranking, a cut-off below 1.

    Source: Radenović, Iscen, Tolias, Avrithis, Chum, "Revisiting Oxford and Paris" (CVPR 2018), arXiv:1803.11285,
        and the authors' evaluation, github.com/filipradenovic/revisitop, python/evaluate.py. Differs where that one
        fails: a ranking that holds no positive scores zero, and no query with positives gives None, not NaN.

    >>> found = revisited_metrics([[3], [0], [1], [2]], [{"easy": [0], "hard": [2], "junk": [3]}], ks=(1,))
    >>> {protocol: figures.mean_average_precision for protocol, figures in found.items()}
    {'easy': 1.0, 'medium': 0.7916666666666666, 'hard': 0.25}
    """
    ks = tuple(check_cut_offs(tuple(ks)))
    rankings = _read_ranks(ranks, len(ground_truth))
    found: dict[str, list[IntArray]] = {protocol: [] for protocol in REVISITED_ROLES}
    num_relevant: dict[str, list[int]] = {protocol: [] for protocol in REVISITED_ROLES}
    for query, given in enumerate(ground_truth):
        rows = _read_parts(given, query)
        found_at = _find_ranks(rankings[:, query], rows, query)
        for protocol, roles in REVISITED_ROLES.items():
            positive, ignored = _join(found_at, roles.positive), _join(found_at, roles.ignored)
            found[protocol].append(positive - np.searchsorted(ignored, positive))
            num_relevant[protocol].append(sum(len(rows[part]) for part in roles.positive))
    return {
        protocol: _summarize(
            RevisitedScores(
                num_relevant=np.array(num_relevant[protocol], dtype=np.int64), found_ranks=tuple(found[protocol])
            ),
            ks,
        )
        for protocol in REVISITED_ROLES
    }


def trapezoidal_average_precision(ranks: npt.ArrayLike, num_positives: int) -> float:
    """Integrate precision over recall by trapezoids, as the authors of the Oxford benchmarks do.

    At the j-th positive found (from 0) precision rises from j / rank to (j + 1) / (rank + 1); the mean of the two
    counts, so that the value lies above the usual step-wise sum or below it.

    Args:
        ranks: Ranks of the positives that are found, from 0, rising, ignored images taken out.
        num_positives: Number of images to be found, at least as many as are found and at least 1.

    Returns:
        The average precision, in [0, 1]; zero when nothing is found.

    Raises:
        InputError: Ranks that do not rise from 0 on, or more of them than positives.

    Source: Philbin et al., "Object retrieval with large vocabularies and fast spatial matching" (CVPR 2007), and
        ``compute_ap`` of github.com/filipradenovic/revisitop, python/evaluate.py.

    >>> trapezoidal_average_precision([1], 1), trapezoidal_average_precision([0, 2], 2)
    (0.25, 0.7916666666666666)
    """
    found = as_labels(ranks, "ranks")
    if num_positives < max(1, len(found)):
        raise InputError(
            f"num_positives is {num_positives} with {len(found)} positives found; expected at least "
            f"{max(1, len(found))}."
        )
    if (np.diff(found, prepend=-1) < 1).any():
        raise InputError(f"ranks are {found[:10].tolist()}; expected them rising, from 0 on, none twice.")
    num_before = np.arange(len(found))
    # At rank 0 nothing lies before, and the curve starts from precision 1.
    precision_before = np.where(found == 0, 1.0, num_before / np.maximum(found, 1))
    precision_after = (num_before + 1) / (found + 1)
    return float((precision_before + precision_after).sum() / (2 * num_positives))


def score_listed(blocks: Iterable[tuple[slice, FloatArray]], listed: ListedRelevance) -> RevisitedScores:
    """Score similarities under listed relevance: of equally similar images the wrong ones stand before the right ones.

    Args:
        blocks: Which queries, in order, and their ``(q, G)`` similarities, which are changed.
        listed: Images that are right and ignored for each query.

    Returns:
        The scores of every query; positives without a gallery row count as not found.
    """
    found = []
    for rows, block in blocks:
        for query, similarities in zip(range(rows.start, rows.stop), block, strict=True):
            found.append(_rank_positives(similarities, listed, query))
    return RevisitedScores(num_relevant=listed.num_positives, found_ranks=tuple(found))


def _rank_positives(similarities: FloatArray, listed: ListedRelevance, query: int) -> IntArray:
    """Find the ranks of a query's positives, from 0, in the ranking without ignored images."""
    positive = np.sort(similarities[listed.relevant_rows(query)])[::-1]
    if len(positive) == 0:
        return np.empty(0, dtype=np.int64)
    similarities[listed.relevant_rows(query)] = -np.inf
    similarities[listed.excluded_rows(query)] = -np.inf
    wrong = np.sort(similarities[similarities >= positive[-1]])
    ranks: IntArray = np.arange(len(positive)) + len(wrong) - np.searchsorted(wrong, positive, side="left")
    return ranks


def _precision_at(ranks: IntArray, k: int) -> float:
    if len(ranks) == 0:
        return 0.0
    num_shown = min(k, int(ranks[-1]) + 1)
    return np.count_nonzero(ranks < num_shown) / num_shown


def _summarize(scores: RevisitedScores, ks: Sequence[int]) -> RevisitedMetrics:
    means = scores.means(ks) if scores.num_scored else {}
    return RevisitedMetrics(
        mean_average_precision=means.get("mean_average_precision"),
        mean_precision_at={k: means.get(f"mp_at_{k}") for k in ks},
        average_precision=scores.average_precision,
        is_scored=scores.is_scored,
        num_skipped_queries=scores.num_skipped,
    )


def _read_ranks(ranks: npt.ArrayLike, num_queries: int) -> IntArray:
    given = np.asarray(ranks)
    if given.size == 0:  # NumPy calls an empty list float64
        given = given.astype(np.int64)
    if given.ndim != 2 or given.dtype.kind not in "iu" or given.shape[1] != num_queries:
        raise InputError(
            f"ranks have shape {given.shape} and type {given.dtype} for {num_queries} queries in the ground truth; "
            "expected a matrix of integers, a column for each query, its best match in the first row."
        )
    return given


def _read_parts(given: Mapping[str, npt.ArrayLike], query: int) -> dict[str, IntArray]:
    missing = [part for part in PARTS if part not in given]
    if missing:
        raise InputError(
            f"the ground truth of query {query} lacks {', '.join(map(repr, missing))}; expected 'easy', 'hard' and "
            "'junk', each a list of gallery rows that may be empty."
        )
    rows = {part: as_labels(given[part], f"{part!r} of query {query}") for part in PARTS}
    values, counts = np.unique(_join(rows, PARTS), return_counts=True)
    if (counts > 1).any():
        raise InputError(
            f"the ground truth of query {query} names gallery row {values[counts > 1][0]} twice; expected every row in "
            "one of 'easy', 'hard' and 'junk' only, and once."
        )
    if len(values) and values[0] < 0:
        raise InputError(f"the ground truth of query {query} names gallery row {values[0]}; rows count from 0.")
    return rows


def _find_ranks(ranking: IntArray, rows: Mapping[str, IntArray], query: int) -> dict[str, IntArray]:
    """Find the ranks of the rows of each part in one ranking, from 0, rising."""
    # One pass over a ranking that may hold a million rows; the parts are then looked up among the few found.
    column = np.ascontiguousarray(ranking, dtype=np.int64)
    ranks = np.flatnonzero(np.isin(column, _join(rows, PARTS)))
    found = column[ranks]
    values, counts = np.unique(found, return_counts=True)
    if (counts > 1).any():
        raise InputError(
            f"gallery row {values[counts > 1][0]} stands {counts.max()} times in the ranking of query {query}; "
            "expected every row at most once in a column of ranks."
        )
    return {part: ranks[np.isin(found, rows[part])] for part in PARTS}


def _join(rows: Mapping[str, IntArray], parts: Sequence[str]) -> IntArray:
    """Concatenate some parts, sorted."""
    return np.sort(np.concatenate([rows[part] for part in parts]))
