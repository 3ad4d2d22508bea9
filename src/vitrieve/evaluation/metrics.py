"""The retrieval metrics as pure functions of embeddings and labels.

Every metric comes from one pass over the queries, ``score_queries``, which counts the irrelevant images before each
relevant one and neither sorts nor holds the whole matrix. What the pass promises:

- A query never finds itself: its own gallery row is left out by row, not by rank or by similarity, so exact
  duplicates of the query count like any other image.
- Ties count against the query: of equally similar images, irrelevant ones stand before relevant ones. An
  encoder that maps everything to one point scores nothing.
- Queries for which nothing relevant is in the gallery are left out of the means, and counted.
- Junk (see ``Exclusions``) is neither right nor wrong: the ranking closes up over it.

Nearness is defined in ``similarity/``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from vitrieve.errors import InputError
from vitrieve.evaluation.relevance import Exclusions, Relevance
from vitrieve.similarity import FloatArray, IntArray, RankedQuery, as_embeddings, count_before

DEFAULT_KS = (1, 2, 4, 8)


class Scores(Protocol):
    """What intervals and the report need of the scores of all queries, whatever the metrics are.

    Attributes:
        headlines: Names of the two metrics that tell most, in ``values((1,))``: of the first place, and of the ranking.
        group_name: What a group is: ``class`` or ``query``.
    """

    headlines: ClassVar[tuple[str, str]]
    group_name: ClassVar[str]

    @property
    def num_relevant(self) -> IntArray:
        """``(Q,)`` images to be found; zero: not scored."""

    @property
    def first_rank(self) -> IntArray:
        """``(Q,)`` rank of the nearest relevant image, from 1; zero where there is none."""

    @property
    def average_precision(self) -> npt.NDArray[np.float64]:
        """``(Q,)`` quality of each ranking, in [0, 1]: what the second headline is the mean of."""

    @property
    def groups(self) -> IntArray:
        """``(Q,)`` queries of one group are not independent, and are drawn together for intervals."""

    @property
    def is_scored(self) -> npt.NDArray[np.bool_]:
        """``(Q,)`` whether the query counts in the means."""

    @property
    def num_scored(self) -> int:
        """Queries that count in the means."""

    @property
    def num_skipped(self) -> int:
        """Queries that do not."""

    def values(self, ks: Sequence[int]) -> dict[str, npt.NDArray[np.float64]]:
        """Return each metric's value for every scored query, in [0, 1]: name -> ``(num_scored,)``."""

    def means(self, ks: Sequence[int]) -> dict[str, float]:
        """Return each metric's mean over the scored queries, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class QueryScores:
    """What became of every query, in the order of the queries.

    Attributes:
        labels: ``(Q,)`` int64.
        num_relevant: ``(Q,)`` int64, R: relevant gallery images other than the query itself and junk. Zero: not scored.
        first_rank: ``(Q,)`` int64, rank of the nearest relevant image, from 1; zero where nothing is relevant.
        r_precision: ``(Q,)`` float64, share of relevant images among the first R.
        map_at_r: ``(Q,)`` float64, 1/R times the sum over ranks k <= R of precision at k where rank k is relevant.
    """

    headlines: ClassVar[tuple[str, str]] = ("recall_at_1", "map_at_r")
    group_name: ClassVar[str] = "class"

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
        """``(Q,)``: the classes, as an encoder knows a class or does not."""
        return self.labels

    @property
    def average_precision(self) -> npt.NDArray[np.float64]:
        """``(Q,)``: at R, which is what MAP@R is the mean of."""
        return self.map_at_r

    @property
    def is_scored(self) -> npt.NDArray[np.bool_]:
        """``(Q,)``: something relevant is in the gallery, so the query counts in the means."""
        return self.num_relevant > 0

    @property
    def num_scored(self) -> int:
        """Queries that count in the means."""
        return int(np.count_nonzero(self.is_scored))

    @property
    def num_skipped(self) -> int:
        """Queries left out because nothing relevant is in the gallery."""
        return len(self.labels) - self.num_scored

    def values(self, ks: Sequence[int] = DEFAULT_KS) -> dict[str, npt.NDArray[np.float64]]:
        """Return each metric's value for every scored query, in [0, 1]: name -> ``(num_scored,)``."""
        ranks = self.first_rank[self.is_scored]
        recalls = {f"recall_at_{k}": (ranks <= k).astype(np.float64) for k in check_cut_offs(ks)}
        return {**recalls, "r_precision": self.r_precision[self.is_scored], "map_at_r": self.map_at_r[self.is_scored]}

    def means(self, ks: Sequence[int] = DEFAULT_KS) -> dict[str, float]:
        """Return each metric's mean over the scored queries, in [0, 1].

        Raises:
            InputError: No query has anything relevant in the gallery.
        """
        if self.num_scored == 0:
            raise InputError(
                f"none of {len(self.labels)} queries has a relevant image in the gallery besides itself, so there is "
                "nothing to average; at least one class needs two images (with a separate gallery: one on each side)."
            )
        return {name: float(values.mean()) for name, values in self.values(ks).items()}


def recall_at_k(
    query_embeddings: npt.ArrayLike,
    query_labels: npt.ArrayLike,
    gallery_embeddings: npt.ArrayLike | None = None,
    gallery_labels: npt.ArrayLike | None = None,
    *,
    ks: Sequence[int] = DEFAULT_KS,
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
        exclusions: What a ranking leaves out.

    Returns:
        For every K the mean over queries that have something relevant, in [0, 1]. Ties count against the query.

    Raises:
        InputError: Shapes or types that do not fit, non-finite embeddings, no query with anything relevant.

    Source: Jégou, Douze, Schmid, "Product quantization for nearest neighbor search" (TPAMI 2011), Recall@R;
        as used for metric learning by Oh Song et al., arXiv:1511.06452.

    >>> recall_at_k([[1, 0], [1, 0], [0, 1], [-1, 0]], [7, 7, 7, 8], ks=(1, 2))
    {1: 0.6666666666666666, 2: 1.0}
    """
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
        query_embeddings: As in ``recall_at_k``, like all other arguments.
        query_labels: ``(Q,)`` integers.
        gallery_embeddings: ``(G, E)`` or None.
        gallery_labels: ``(G,)`` integers or None.
        exclusions: What a ranking leaves out.

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
        query_embeddings: As in ``recall_at_k``, like all other arguments.
        query_labels: ``(Q,)`` integers.
        gallery_embeddings: ``(G, E)`` or None.
        gallery_labels: ``(G,)`` integers or None.
        exclusions: What a ranking leaves out.

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
    chunk_size: int | None = None,
) -> QueryScores:
    """Rank the gallery for every query in one chunked pass; all metrics are means of the result.

    Args:
        query_embeddings: As in ``recall_at_k``, like all other arguments but the last.
        query_labels: ``(Q,)`` integers.
        gallery_embeddings: ``(G, E)`` or None.
        gallery_labels: ``(G,)`` integers or None.
        exclusions: What a ranking leaves out.
        chunk_size: Queries held at a time; by default as many as memory allows. The result does not depend on it.

    Returns:
        The scores of every query, those with nothing relevant included.

    Raises:
        InputError: As in ``recall_at_k``, but for queries with nothing relevant, which are no error here.
    """
    queries, gallery, relevance = _read_inputs(
        query_embeddings, query_labels, gallery_embeddings, gallery_labels, exclusions
    )
    ranked = [_know_ranking(relevance, query) for query in range(len(queries))]
    counts = count_before(queries, gallery, ranked, chunk_size=chunk_size)
    num_relevant = np.array([len(one.relevant) for one in ranked], dtype=np.int64)
    first_rank, precision, average = _score_counts(counts.num_before, num_relevant)
    return QueryScores(
        labels=relevance.query_labels,
        num_relevant=num_relevant,
        first_rank=first_rank,
        r_precision=precision,
        map_at_r=average,
    )


def _know_ranking(relevance: Relevance, query: int) -> RankedQuery:
    """Return what a query's ranking is to find and to leave out; what is both is left out."""
    relevant, hidden = relevance.relevant_rows(query), relevance.excluded_rows(query)
    if len(hidden) == 1:  # its own row: no need to search a list
        return RankedQuery(relevant[relevant != hidden[0]], hidden)
    return RankedQuery(relevant[~np.isin(relevant, hidden)], hidden)


def _score_counts(
    num_before: IntArray, num_relevant: IntArray
) -> tuple[IntArray, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Score the first R places of all rankings.

    Args:
        num_before: ``(P,)`` irrelevant images before each relevant one, query by query, from near to far.
        num_relevant: ``(Q,)`` relevant images of each query, R; P in all.

    Returns:
        First rank (zero where nothing is relevant), R-precision and average precision at R of each query.
    """
    num_queries = len(num_relevant)
    places = np.repeat(np.arange(num_queries), num_relevant)
    starts = np.cumsum(num_relevant) - num_relevant
    num_found = np.arange(1, len(places) + 1) - starts[places]
    ranks = num_found + num_before
    is_reached = ranks <= num_relevant[places]
    divisors = np.maximum(num_relevant, 1)
    precision = np.bincount(places[is_reached], minlength=num_queries) / divisors
    # The sum of precisions of a perfect ranking is exact, so that its average is not above 1.
    average = np.bincount(places[is_reached], (num_found / ranks)[is_reached], num_queries) / divisors
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
    """Spell what a group's first headline figure is: for a single query precision, not its mean."""
    return "P@1" if scores.group_name == "query" else display_name(scores.headlines[0])


def name_average(scores: Scores) -> str:
    """Spell what ``Scores.average_precision`` of one query or class is."""
    return "AP" if scores.group_name == "query" else display_name(scores.headlines[1])


def short_name(metric: str) -> str:
    """Spell a metric for a narrow column.

    >>> short_name("recall_at_10"), short_name("r_precision")
    ('R@10', 'R-prec')
    """
    return display_name(metric).replace("Recall@", "R@").replace("R-precision", "R-prec")
