"""The retrieval metrics as pure functions of embeddings and labels, and their intervals.

Every metric comes from one pass over the queries, ``score_queries``, which counts the irrelevant images before each
relevant one and neither sorts nor holds the whole matrix. The pass promises:

- A query never finds itself: its own gallery row is left out by row, not by rank or by similarity, so exact
  duplicates of the query count like any other image.
- Ties count against the query: of equally similar images, irrelevant ones stand before relevant ones. An
  encoder that maps everything to one point scores nothing.
- Queries for which nothing relevant is in the gallery are left out of the means, and counted.
- Junk (see ``Exclusions``) is neither right nor wrong: the ranking closes up over it.

``similarity/`` defines how near two images are. ``RelevanceRule`` says which images are right, wrong or left out; the
histograms and galleries of the report use the same one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from vitrieve.data.records import NO_GROUP
from vitrieve.errors import InputError
from vitrieve.similarity import FloatArray, IntArray, RankedQuery, as_embeddings, count_before

DEFAULT_KS = (1, 2, 4, 8)
QUERY_BLOCK_SIZE = 2**18
"""Queries whose right images are listed at a time. A larger collection has no symmetric product to lose
(``similarity/nearest.py``)."""
NUM_RESAMPLES = 2000
"""For a normal distribution the ends of an interval then scatter by 1.5 % of its width."""
INTERVAL_QUANTILES = (0.025, 0.975)
NO_ROW = -1
"""Gallery row of a query that is not in the gallery."""


@dataclass(frozen=True, kw_only=True)
class Exclusions:
    """Gallery images that a query's ranking leaves out.

    Attributes:
        query_rows: ``(Q,)`` the gallery row that is the query's own image, or ``NO_ROW``; None: no query is in the
            gallery. Not to be given without a gallery: then every query leaves out its own row.
        query_junk: ``(Q,)`` int64 group of each query, or ``NO_GROUP``. Gallery images of its group are junk for it.
        gallery_junk: ``(G,)`` group of each gallery image. Not to be given without a gallery: ``query_junk`` serves.
    """

    query_rows: npt.ArrayLike | None = None
    query_junk: npt.ArrayLike | None = None
    gallery_junk: npt.ArrayLike | None = None


class RelevanceRule(Protocol):
    """Which gallery images are right for a query, and which are left out; all others are wrong."""

    def relevant_rows(self, query: int) -> IntArray:
        """Return the gallery rows to be found; those that are excluded too do not count."""

    def excluded_rows(self, query: int) -> IntArray:
        """Return the gallery rows that are neither right nor wrong."""

    def shown_junk_rows(self, query: int) -> IntArray:
        """Return the excluded rows that a picture of the ranking shows nevertheless, as junk."""


@dataclass(frozen=True, kw_only=True)
class ListedRelevance:
    """Right and ignored gallery images listed query by query, as the revisited benchmarks do.

    Attributes:
        positive_rows: For each query its gallery rows to be found.
        ignored_rows: For each query the gallery rows that its ranking leaves out; none of them is positive.
        num_positives: ``(Q,)`` images to be found, among them those without a gallery row (not readable).
    """

    positive_rows: tuple[IntArray, ...]
    ignored_rows: tuple[IntArray, ...]
    num_positives: IntArray

    def relevant_rows(self, query: int) -> IntArray:
        """Return the gallery rows to be found."""
        return self.positive_rows[query]

    def excluded_rows(self, query: int) -> IntArray:
        """Return the gallery rows that are ignored."""
        return self.ignored_rows[query]

    def shown_junk_rows(self, query: int) -> IntArray:
        """Return the ignored rows: a reader of a ranking asks whether they are ignored rightly."""
        return self.ignored_rows[query]


class Relevance:
    """Which gallery rows are relevant to a query, and which its ranking leaves out.

    Rows are looked up in sorted arrays, so that a query costs its own list, not a comparison with the whole gallery.
    """

    def __init__(
        self, query_labels: npt.ArrayLike, gallery_labels: npt.ArrayLike | None, exclusions: Exclusions | None = None
    ) -> None:
        """Check labels and exclusions, and sort the gallery by label and by junk group.

        Args:
            query_labels: ``(Q,)`` integers.
            gallery_labels: ``(G,)`` integers; None: the queries are the gallery, and leave themselves out by row.
            exclusions: Images that rankings leave out.

        Raises:
            InputError: Arrays that are no integers, do not fit each other, or have no meaning without a gallery.
        """
        exclusions = exclusions or Exclusions()
        self.query_labels = as_labels(query_labels, "query labels")
        own_rows, gallery_junk = exclusions.query_rows, exclusions.gallery_junk
        if gallery_labels is None:
            if own_rows is not None or gallery_junk is not None:
                raise InputError("query_rows and gallery_junk describe a separate gallery; leave them out without one.")
            gallery_labels, own_rows = self.query_labels, np.arange(len(self.query_labels))
            gallery_junk = exclusions.query_junk
        self.gallery_labels = as_labels(gallery_labels, "gallery labels")
        self._own_rows = self._read_own_rows(own_rows)
        self._relevant = _Groups(self.query_labels, self.gallery_labels)
        self._junk = self._read_junk(exclusions.query_junk, gallery_junk)

    def relevant_rows(self, query: int) -> IntArray:
        """Return the gallery rows with the query's label, among them its own and junk."""
        return self._relevant.rows(query)

    def excluded_rows(self, query: int) -> IntArray:
        """Return the gallery rows that are the query's own or junk for it; a row may come twice."""
        own = self._own_rows[query : query + 1]
        if own[0] == NO_ROW:
            own = own[:0]
        if self._junk is None or self._junk.query_values[query] == NO_GROUP:
            return own
        return np.concatenate([own, self._junk.rows(query)])

    def shown_junk_rows(self, query: int) -> IntArray:
        """Return nothing: junk by metadata may be a large share of the gallery, and would hide what is found."""
        return self._own_rows[:0]

    def _read_own_rows(self, query_rows: npt.ArrayLike | None) -> IntArray:
        num_queries, num_gallery = len(self.query_labels), len(self.gallery_labels)
        if query_rows is None:
            return np.full(num_queries, NO_ROW, dtype=np.int64)
        rows = as_labels(query_rows, "query_rows", num_queries)
        if rows.min(initial=0) < NO_ROW or rows.max(initial=NO_ROW) >= num_gallery:
            raise InputError(
                f"query_rows lie in [{rows.min()}, {rows.max()}]; expected {NO_ROW} or a row of the gallery, "
                f"below {num_gallery}."
            )
        return rows

    def _read_junk(self, query_junk: npt.ArrayLike | None, gallery_junk: npt.ArrayLike | None) -> _Groups | None:
        if query_junk is None and gallery_junk is None:
            return None
        if query_junk is None or gallery_junk is None:
            raise InputError("query_junk and gallery_junk belong together; give both or neither.")
        return _Groups(
            as_labels(query_junk, "query_junk", len(self.query_labels)),
            as_labels(gallery_junk, "gallery_junk", len(self.gallery_labels)),
        )


class _Groups:
    """For every query, the gallery rows with its value."""

    def __init__(self, query_values: IntArray, gallery_values: IntArray) -> None:
        self.query_values = query_values
        self._order = np.argsort(gallery_values, kind="stable")
        self._starts = np.searchsorted(gallery_values, query_values, side="left", sorter=self._order)
        self._stops = np.searchsorted(gallery_values, query_values, side="right", sorter=self._order)

    def rows(self, query: int) -> IntArray:
        """List the gallery rows with the value of a query, by its row, in rising order."""
        found: IntArray = self._order[self._starts[query] : self._stops[query]]
        return found


def as_labels(values: npt.ArrayLike, name: str, length: int | None = None) -> IntArray:
    """Check that ``values`` is a vector of integers and return it as int64, never by way of floats.

    Args:
        values: Integers that int64 holds.
        name: Name for the message.
        length: Values expected; None for any number.

    Raises:
        InputError: Another shape or type, or an integer beyond int64.

    >>> as_labels([2**53, 2**53 + 1], "labels").tolist()
    [9007199254740992, 9007199254740993]
    """
    given = np.asarray(values)
    if given.shape == (0,):  # NumPy calls an empty list float64
        given = given.astype(np.int64)
    if given.ndim != 1 or given.dtype.kind not in "iu" or len(given) != (len(given) if length is None else length):
        expected = "a vector of integers" if length is None else f"{length} integers"
        raise InputError(f"{name} have shape {given.shape} and type {given.dtype}; expected {expected}.")
    if given.dtype.kind == "u" and given.max(initial=0) > np.iinfo(np.int64).max:
        raise InputError(f"{name} reach {given.max()}, which is beyond int64; number the classes from 0.")
    return given.astype(np.int64, copy=False)


class Scores(ABC):
    """The scores of all queries under one kind of metrics: what intervals and the report need of them.

    Attributes:
        headlines: Names of the two metrics that tell most, in ``values((1,))``: of the first rank, and of the ranking.
        group_name: Name of a group: ``class`` or ``query``.
        num_relevant: ``(Q,)`` int64 images to be found, other than the query itself and junk. Zero: not scored.
    """

    headlines: ClassVar[tuple[str, str]]
    group_name: ClassVar[str]
    nothing_relevant: ClassVar[str]
    """Message about queries of which none can be scored, with ``{}`` for their number."""

    num_relevant: IntArray
    if TYPE_CHECKING:  # a field in one class and computed in the other

        @property
        def first_rank(self) -> IntArray:
            """``(Q,)`` rank of the nearest relevant image, from 1; zero where none is found."""

    @property
    @abstractmethod
    def average_precision(self) -> npt.NDArray[np.float64]:
        """``(Q,)`` quality of each ranking, in [0, 1], whose mean is the second headline."""

    @property
    @abstractmethod
    def groups(self) -> IntArray:
        """``(Q,)`` groups: their queries are not independent, and are drawn together for intervals."""

    @abstractmethod
    def values(self, ks: Sequence[int]) -> dict[str, npt.NDArray[np.float64]]:
        """Return each metric's value for every scored query, in [0, 1]: name -> ``(num_scored,)``.

        Raises:
            InputError: A cut-off is below 1.
        """

    @property
    def is_scored(self) -> npt.NDArray[np.bool_]:
        """``(Q,)`` whether something is to be found, so that the query counts in the means."""
        return self.num_relevant > 0

    @property
    def num_scored(self) -> int:
        """Number of queries that count in the means."""
        return int(np.count_nonzero(self.is_scored))

    @property
    def num_skipped(self) -> int:
        """Number of queries that are left out because nothing is to be found."""
        return len(self.num_relevant) - self.num_scored

    def means(self, ks: Sequence[int] = DEFAULT_KS) -> dict[str, float]:
        """Return each metric's mean over the scored queries, in [0, 1].

        Raises:
            InputError: No query has anything to be found, or a cut-off is below 1.
        """
        if self.num_scored == 0:
            raise InputError(self.nothing_relevant.format(len(self.num_relevant)))
        return {name: float(values.mean()) for name, values in self.values(ks).items()}


@dataclass(frozen=True, kw_only=True)
class QueryScores(Scores):
    """The scores of every query by labels, in the order of the queries.

    Attributes:
        labels: ``(Q,)`` int64.
        num_relevant: ``(Q,)`` int64, R: relevant gallery images other than the query itself and junk. Zero: not scored.
        first_rank: ``(Q,)`` int64, rank of the nearest relevant image, from 1; zero where nothing is relevant.
        r_precision: ``(Q,)`` float64, share of relevant images among the first R.
        map_at_r: ``(Q,)`` float64, 1/R times the sum over ranks k <= R of precision at k where rank k is relevant.
    """

    headlines: ClassVar[tuple[str, str]] = ("recall_at_1", "map_at_r")
    group_name: ClassVar[str] = "class"
    nothing_relevant: ClassVar[str] = (
        "none of {} queries has a relevant image in the gallery besides itself, so there is nothing to average; at "
        "least one class needs two images (with a separate gallery: one on each side)."
    )

    labels: IntArray
    num_relevant: IntArray
    first_rank: IntArray
    r_precision: npt.NDArray[np.float64]
    map_at_r: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        columns = (self.labels, self.num_relevant, self.first_rank, self.r_precision, self.map_at_r)
        if any(column.shape != self.labels.shape or column.ndim != 1 for column in columns):
            raise ValueError("the columns of QueryScores must be vectors of one length")
        if not np.array_equal(self.first_rank > 0, self.num_relevant > 0):
            raise ValueError("exactly the queries with relevant images have a first rank")
        if not all(((column >= 0) & (column <= 1)).all() for column in (self.r_precision, self.map_at_r)):
            raise ValueError("r_precision and map_at_r must lie in [0, 1]")

    @property
    def groups(self) -> IntArray:
        """``(Q,)`` classes, as an encoder knows a class or does not."""
        return self.labels

    @property
    def average_precision(self) -> npt.NDArray[np.float64]:
        """``(Q,)`` average precision at R, whose mean is MAP@R."""
        return self.map_at_r

    def values(self, ks: Sequence[int] = DEFAULT_KS) -> dict[str, npt.NDArray[np.float64]]:
        """Return each metric's value for every scored query, in [0, 1]: name -> ``(num_scored,)``."""
        ranks = self.first_rank[self.is_scored]
        recalls = {f"recall_at_{k}": (ranks <= k).astype(np.float64) for k in check_cut_offs(ks)}
        return {**recalls, "r_precision": self.r_precision[self.is_scored], "map_at_r": self.map_at_r[self.is_scored]}


def recall_at_k(
    query_embeddings: npt.ArrayLike,
    query_labels: npt.ArrayLike,
    gallery_embeddings: npt.ArrayLike | None = None,
    gallery_labels: npt.ArrayLike | None = None,
    *,
    ks: Iterable[int] = DEFAULT_KS,
    exclusions: Exclusions | None = None,
) -> dict[int, float]:
    """Compute the share of queries with at least one relevant image among the first K.

    (Elsewhere: CMC@K, accuracy@K. It is not the share of relevant images that are found.)

    Args:
        query_embeddings: ``(Q, E)``, L2-normalized; other rows are ranked by their inner products.
        query_labels: ``(Q,)`` integers.
        gallery_embeddings: ``(G, E)``; None: every query searches among the other queries.
        gallery_labels: ``(G,)`` integers; None with ``gallery_embeddings``.
        ks: Cut-offs, each at least 1; one beyond the gallery's size means all of it.
        exclusions: Images that a ranking leaves out.

    Returns:
        For every K the mean over queries that have something relevant, in [0, 1]. Ties count against the query.

    Raises:
        InputError: Shapes or types that do not fit, non-finite embeddings, no query with anything relevant.

    Source: Jégou, Douze, Schmid, "Product quantization for nearest neighbor search" (TPAMI 2011), Recall@R;
        as used for metric learning by Oh Song et al., arXiv:1511.06452.

    >>> recall_at_k([[1, 0], [1, 0], [0, 1], [-1, 0]], [7, 7, 7, 8], ks=(1, 2))
    {1: 0.6666666666666666, 2: 1.0}
    """
    ks = tuple(ks)
    scores = score_queries(query_embeddings, query_labels, gallery_embeddings, gallery_labels, exclusions=exclusions)
    means = scores.means(ks)
    return {k: means[f"recall_at_{k}"] for k in ks}


def r_precision(
    query_embeddings: npt.ArrayLike,
    query_labels: npt.ArrayLike,
    gallery_embeddings: npt.ArrayLike | None = None,
    gallery_labels: npt.ArrayLike | None = None,
    *,
    exclusions: Exclusions | None = None,
) -> float:
    """Compute the share of relevant images among the first R, R being how many there are, as a mean over queries.

    Args:
        query_embeddings: ``(Q, E)``; all arguments are those of ``recall_at_k``.
        query_labels: ``(Q,)`` integers.
        gallery_embeddings: ``(G, E)`` or None.
        gallery_labels: ``(G,)`` integers or None.
        exclusions: Images that a ranking leaves out.

    Returns:
        The mean over queries that have something relevant, in [0, 1]. Ties count against the query.

    Raises:
        InputError: As in ``recall_at_k``.

    Source: Musgrave, Belongie, Lim, "A Metric Learning Reality Check", arXiv:2003.08505, section 3.1.

    >>> r_precision([[1, 0], [0.8, 0.6], [0, 1]], [7, 8, 7], [[1, 0], [0.6, 0.8]], [7, 7])
    1.0
    """
    scores = score_queries(query_embeddings, query_labels, gallery_embeddings, gallery_labels, exclusions=exclusions)
    return scores.means(())["r_precision"]


def map_at_r(
    query_embeddings: npt.ArrayLike,
    query_labels: npt.ArrayLike,
    gallery_embeddings: npt.ArrayLike | None = None,
    gallery_labels: npt.ArrayLike | None = None,
    *,
    exclusions: Exclusions | None = None,
) -> float:
    """Compute MAP@R: the mean over queries of 1/R times the sum over k <= R of precision@k where rank k is relevant.

    Args:
        query_embeddings: ``(Q, E)``; all arguments are those of ``recall_at_k``.
        query_labels: ``(Q,)`` integers.
        gallery_embeddings: ``(G, E)`` or None.
        gallery_labels: ``(G,)`` integers or None.
        exclusions: Images that a ranking leaves out.

    Returns:
        The mean over queries that have something relevant, in [0, 1]. Ties count against the query.

    Raises:
        InputError: As in ``recall_at_k``.

    Source: Musgrave, Belongie, Lim, "A Metric Learning Reality Check", arXiv:2003.08505, section 3.1.

    >>> map_at_r([[1, 0]], [7], [[1, 0], [0.8, 0.6], [0, 1]], [8, 7, 7])
    0.25
    """
    scores = score_queries(query_embeddings, query_labels, gallery_embeddings, gallery_labels, exclusions=exclusions)
    return scores.means(())["map_at_r"]


def score_queries(
    query_embeddings: npt.ArrayLike,
    query_labels: npt.ArrayLike,
    gallery_embeddings: npt.ArrayLike | None = None,
    gallery_labels: npt.ArrayLike | None = None,
    *,
    exclusions: Exclusions | None = None,
) -> QueryScores:
    """Rank the gallery for every query in one chunked pass; all metrics are means of the result.

    Args:
        query_embeddings: ``(Q, E)``; all arguments are those of ``recall_at_k``.
        query_labels: ``(Q,)`` integers.
        gallery_embeddings: ``(G, E)`` or None.
        gallery_labels: ``(G,)`` integers or None.
        exclusions: Images that a ranking leaves out.

    Returns:
        The scores of every query, those with nothing relevant included.

    Raises:
        InputError: As in ``recall_at_k``, but for queries with nothing relevant, which are no error here.
    """
    queries, gallery, relevance = _read_inputs(
        query_embeddings, query_labels, gallery_embeddings, gallery_labels, exclusions
    )
    num_relevant, parts = [np.empty(0, dtype=np.int64)], []
    for start in range(0, max(1, len(queries)), QUERY_BLOCK_SIZE):
        block = queries if len(queries) <= QUERY_BLOCK_SIZE else queries[start : start + QUERY_BLOCK_SIZE]
        ranked = [_list_known_rows(relevance, query) for query in range(start, start + len(block))]
        num_relevant.append(np.array([len(one.relevant) for one in ranked], dtype=np.int64))
        parts.append(_score_counts(count_before(block, gallery, ranked).num_before, num_relevant[-1]))
    first_rank, precision, average = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return QueryScores(
        labels=relevance.query_labels,
        num_relevant=np.concatenate(num_relevant),
        first_rank=first_rank,
        r_precision=precision,
        map_at_r=average,
    )


def score_rows(rows: Iterable[FloatArray], relevance: Relevance) -> QueryScores:
    """Score rankings that are given as similarities, where they are not those of embeddings (re-ranking).

    Args:
        rows: ``(G,)`` similarities of each query to the gallery, in the order of the queries.
        relevance: Which gallery rows are right and which are left out.

    Returns:
        The scores of every query. Ties count against the query, as in ``score_queries``.
    """
    num_relevant, num_before = [], [np.empty(0, dtype=np.int64)]
    for query, similarities in enumerate(rows):
        known = _list_known_rows(relevance, query)
        is_wrong = np.ones(len(similarities), dtype=bool)
        is_wrong[known.relevant] = is_wrong[known.hidden] = False
        wrong = np.sort(similarities[is_wrong])
        found = np.sort(similarities[known.relevant])[::-1]
        num_relevant.append(len(found))
        num_before.append(len(wrong) - np.searchsorted(wrong, found, side="left"))
    counts = np.array(num_relevant, dtype=np.int64)
    first_rank, precision, average = _score_counts(np.concatenate(num_before), counts)
    return QueryScores(
        labels=relevance.query_labels,
        num_relevant=counts,
        first_rank=first_rank,
        r_precision=precision,
        map_at_r=average,
    )


def _list_known_rows(relevance: Relevance, query: int) -> RankedQuery:
    """Return the rows that a query's ranking is to find and to leave out; a row that is both is left out."""
    relevant, hidden = relevance.relevant_rows(query), relevance.excluded_rows(query)
    if len(hidden) == 1:  # its own row: no need to search a list
        return RankedQuery(relevant[relevant != hidden[0]], hidden)
    return RankedQuery(relevant[~np.isin(relevant, hidden)], hidden)


def _score_counts(
    num_before: IntArray, num_relevant: IntArray
) -> tuple[IntArray, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Score the first R images of all rankings.

    Args:
        num_before: ``(P,)`` irrelevant images before each relevant one, query by query, from near to far.
        num_relevant: ``(Q,)`` relevant images of each query, R; P in all.

    Returns:
        First rank (zero where nothing is relevant), R-precision and average precision at R of each query.
    """
    num_queries = len(num_relevant)
    owners = np.repeat(np.arange(num_queries), num_relevant)
    starts = np.cumsum(num_relevant) - num_relevant
    num_found = np.arange(1, len(owners) + 1) - starts[owners]
    ranks = num_found + num_before
    is_reached = ranks <= num_relevant[owners]
    divisors = np.maximum(num_relevant, 1)
    precision = np.bincount(owners[is_reached], minlength=num_queries) / divisors
    # The sum of precisions of a perfect ranking is exact, so that its average is not above 1.
    average = np.bincount(owners[is_reached], (num_found / ranks)[is_reached], num_queries) / divisors
    first_rank = np.zeros(num_queries, dtype=np.int64)
    first_rank[num_relevant > 0] = ranks[starts[num_relevant > 0]]
    return first_rank, precision, average


def _read_inputs(
    query_embeddings: npt.ArrayLike,
    query_labels: npt.ArrayLike,
    gallery_embeddings: npt.ArrayLike | None,
    gallery_labels: npt.ArrayLike | None,
    exclusions: Exclusions | None,
) -> tuple[FloatArray, FloatArray, Relevance]:
    if (gallery_embeddings is None) != (gallery_labels is None):
        raise InputError("gallery embeddings and gallery labels belong together; give both or neither.")
    relevance = Relevance(query_labels, gallery_labels, exclusions)
    queries = as_embeddings(query_embeddings, "query embeddings")
    if gallery_embeddings is None or gallery_embeddings is query_embeddings:
        gallery = queries
    else:
        gallery = as_embeddings(gallery_embeddings, "gallery embeddings")
    for name, embeddings, labels in (
        ("query", queries, relevance.query_labels),
        ("gallery", gallery, relevance.gallery_labels),
    ):
        if len(embeddings) != len(labels):
            raise InputError(f"{len(embeddings)} {name} embeddings have {len(labels)} labels; expected one each.")
    return queries, gallery, relevance


def check_cut_offs(ks: Sequence[int]) -> Sequence[int]:
    """Return the cut-offs when each is at least 1.

    Raises:
        InputError: One is not.
    """
    wrong = [k for k in ks if k < 1]
    if wrong:
        raise InputError(f"a cut-off K is {wrong[0]}; expected integers of at least 1.")
    return ks


def bootstrap_means(
    scores: Scores,
    ks: Sequence[int] = DEFAULT_KS,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, npt.NDArray[np.float64]]:
    """Recompute every metric on random draws of the groups (``Scores.groups``): classes, or single queries.

    Two encoders scored on the same queries see the same draws under the same seed, so the difference of
    their results is a paired bootstrap of the difference.

    Whole classes are drawn, because the images of a class are not independent trials: an encoder knows a class or
    does not, and resampling images would make intervals too narrow. The intervals tell how far a figure might be off,
    had other classes of this kind been collected. They say nothing about training seeds.

    Args:
        scores: Scores of at least one query with something relevant.
        ks: Cut-offs.
        num_resamples: Number of draws; each takes as many groups as there are, with replacement.
        seed: Seed of the generator of the draws.

    Returns:
        Metric name -> ``(num_resamples,)`` means over the queries of the drawn groups.

    Raises:
        InputError: A cut-off below 1.

    Source: Efron, "Bootstrap methods: another look at the jackknife" (1979); Field and Welsh, "Bootstrapping
        clustered data" (2007), the cluster bootstrap.
    """
    values = scores.values(ks)
    _, group_rows = np.unique(scores.groups[scores.is_scored], return_inverse=True)
    num_groups = int(group_rows.max()) + 1
    columns = [np.ones(scores.num_scored), *values.values()]
    group_sums = np.stack([np.bincount(group_rows, column, num_groups) for column in columns], axis=1)
    generator = np.random.default_rng(seed)
    # How often each group is drawn, times its sum: 100,000 groups are summed without copying a row for each draw.
    totals = np.stack(
        [
            np.bincount(generator.integers(num_groups, size=num_groups), minlength=num_groups) @ group_sums
            for _ in range(num_resamples)
        ]
    )
    return dict(zip(values, (totals[:, 1:] / totals[:, :1]).T, strict=True))


def bootstrap_intervals(
    scores: Scores, ks: Sequence[int] = DEFAULT_KS, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Compute the 95 % percentile interval of every metric over the groups of its queries.

    Args:
        scores: Scores of at least one query with something relevant. One group alone gives an interval of no width.
        ks: Cut-offs.
        num_resamples: Number of draws of the groups.
        seed: Seed of the generator of the draws.

    Returns:
        Metric name -> (low, high), in [0, 1].
    """
    means = bootstrap_means(scores, ks, num_resamples=num_resamples, seed=seed)
    return {name: percentile_interval(draws) for name, draws in means.items()}


def percentile_interval(draws: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Cut the interval that holds the middle 95 % of the draws.

    >>> percentile_interval(np.linspace(0, 1000, 1001))
    (25.0, 975.0)
    """
    low, high = np.quantile(draws, INTERVAL_QUANTILES)
    return float(low), float(high)


SPELLINGS = {"r_precision": "R-precision", "map_at_r": "MAP@R", "mean_average_precision": "mAP"}
PREFIXES = {"recall_at_": "Recall@", "mp_at_": "mP@"}


def display_name(metric: str) -> str:
    """Spell a metric.

    >>> display_name("recall_at_10"), display_name("map_at_r"), display_name("mp_at_5")
    ('Recall@10', 'MAP@R', 'mP@5')
    """
    if metric in SPELLINGS:
        return SPELLINGS[metric]
    for prefix, spelling in PREFIXES.items():
        metric = metric.replace(prefix, spelling)
    return metric


def name_first(scores: Scores) -> str:
    """Spell the first headline metric of a group: for a single query precision, not its mean."""
    return "P@1" if scores.group_name == "query" else display_name(scores.headlines[0])


def name_average(scores: Scores) -> str:
    """Spell the metric that ``Scores.average_precision`` of one query or class is."""
    return "AP" if scores.group_name == "query" else display_name(scores.headlines[1])


def short_name(metric: str) -> str:
    """Spell a metric for a narrow column.

    >>> short_name("recall_at_10"), short_name("r_precision")
    ('R@10', 'R-prec')
    """
    return display_name(metric).replace("Recall@", "R@").replace("R-precision", "R-prec")
