"""The one interface of everything that orders the first images of a search again, and the table of what there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from vitrieve.errors import ConfigError, unknown_name_message
from vitrieve.rerank.head import Head
from vitrieve.rerank.matching import best_pair_scores, chamfer_scores, compare_parts, transport_scores
from vitrieve.rerank.names import LEARNT
from vitrieve.rerank.neighbors import (
    DEFAULT_ALPHA,
    NUM_EXPANSION_NEIGHBORS,
    expand_queries,
    k_reciprocal_distances,
    superglobal_scores,
)
from vitrieve.rerank.parts import FindParts, PartKind, from_bytes
from vitrieve.similarity import FloatArray, similarity

Scores = npt.NDArray[np.float64]
RERANK_DEPTH = 100
"""First images that are ordered again by their parts or by k-reciprocal sets; those behind keep their order."""
VECTOR_DEPTH = 400
"""First images that are ordered again by their vectors alone, as in SuperGlobal."""
EMBEDDING_WEIGHT = 0.5
"""Weight of the embedding's similarity beside that of the parts, as in ELViS."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shortlist:
    """The first images of one query.

    Attributes:
        query: ``(E,)`` float32, L2-normalized.
        vectors: ``(M, E)`` float32, L2-normalized, nearest first; M may be 0.
        find_parts: Function that finds the parts of the query and of the M images; None where nothing has any.
    """

    query: FloatArray
    vectors: FloatArray
    find_parts: FindParts | None = None

    def compare_parts(self, kind: PartKind) -> FloatArray:
        """Compute the ``(M, P, R)`` cosines of the parts of the query and of the images."""
        assert self.find_parts is not None, "whoever ranks by parts brings them"
        query, images = self.find_parts(kind)
        return compare_parts(from_bytes(query), from_bytes(images))


@dataclass(frozen=True, kw_only=True)
class Reranker:
    """One way of ordering the first images of a query again.

    Attributes:
        name: Name in commands and answers.
        summary: What it does, in a few words.
        score: Function from a shortlist, of which every image has its parts, to ``(M,)`` scores, higher is nearer. Only
            the order of the scores counts; equal ones keep the order that the images had.
        depth: First images that it orders; those behind them keep their order.
        parts: Parts of pictures that it compares; None: it needs nothing but the embeddings.
        head: What was learned; None where nothing is.
    """

    name: str
    summary: str
    score: Callable[[Shortlist], Scores] = field(repr=False)
    depth: int = RERANK_DEPTH
    parts: PartKind | None = None
    head: Head | None = field(default=None, repr=False)

    def order(self, shortlist: Shortlist) -> npt.NDArray[np.intp]:
        """Order the rows of a shortlist, the nearest first."""
        return np.argsort(-self.rank(shortlist), kind="stable")

    def rank(self, shortlist: Shortlist) -> Scores:
        """Score a shortlist, some of whose images may lack their parts, which are zeros then.

        Such an image keeps the place that its embedding gave it, and the others are ordered among their own places. All
        keep them where the query lacks its parts.

        Returns:
            ``(M,)`` scores, higher is nearer.
        """
        if self.parts is None or not len(shortlist.vectors):
            return self.score(shortlist)
        assert shortlist.find_parts is not None, "whoever ranks by parts brings them"
        query, images = shortlist.find_parts(self.parts)
        rows = np.flatnonzero(images.any(axis=(1, 2)) & query.any())
        scores = np.empty(0)
        if len(rows):
            compared = replace(shortlist, vectors=shortlist.vectors[rows], find_parts=lambda _: (query, images[rows]))
            scores = self.score(compared)
        if len(rows) == len(images):
            return scores
        order = np.arange(len(images))
        order[rows] = rows[np.argsort(-scores, kind="stable")]
        places = np.empty(len(images))
        places[order] = np.arange(len(images), 0, -1)
        return places


def _score_expanded(shortlist: Shortlist, alpha: float) -> Scores:
    near = shortlist.vectors[None, :NUM_EXPANSION_NEIGHBORS]
    expanded = expand_queries(shortlist.query[None], near, alpha=alpha)
    return np.asarray(similarity(expanded, shortlist.vectors)[0], dtype=np.float64)


def _score_reciprocal(shortlist: Shortlist) -> Scores:
    vectors = np.concatenate([shortlist.query[None], shortlist.vectors])  # (1 + M, E), the query first
    return np.asarray(-k_reciprocal_distances(similarity(vectors, vectors), 1)[0])


def add_embedding(shortlist: Shortlist, scores: Scores) -> Scores:
    """Mix scores of parts with the similarity of the embeddings."""
    cosines = np.asarray(similarity(shortlist.query[None], shortlist.vectors)[0], dtype=np.float64)
    return np.asarray(EMBEDDING_WEIGHT * cosines + (1 - EMBEDDING_WEIGHT) * scores)


RERANKERS: Mapping[str, Reranker] = {
    one.name: one
    for one in (
        Reranker(
            name="average_query_expansion",
            summary="the mean of the query and its two nearest images asks",
            score=lambda shortlist: _score_expanded(shortlist, 0.0),
            depth=VECTOR_DEPTH,
        ),
        Reranker(
            name="alpha_query_expansion",
            summary="the same, weighted by similarity",
            score=lambda shortlist: _score_expanded(shortlist, DEFAULT_ALPHA),
            depth=VECTOR_DEPTH,
        ),
        Reranker(name="k_reciprocal", summary="images that share reciprocal neighbors", score=_score_reciprocal),
        Reranker(
            name="superglobal",
            summary="vectors refined by their neighbors among the first images",
            score=lambda shortlist: superglobal_scores(shortlist.query, shortlist.vectors),
            depth=VECTOR_DEPTH,
        ),
        Reranker(
            name="chamfer",
            summary="how well the best patch answers each patch",
            score=lambda shortlist: add_embedding(shortlist, chamfer_scores(shortlist.compare_parts("patches"))),
            parts="patches",
        ),
        Reranker(
            name="optimal_transport",
            summary="patches matched one to one, or not at all",
            score=lambda shortlist: add_embedding(shortlist, transport_scores(shortlist.compare_parts("patches"))),
            parts="patches",
        ),
        Reranker(
            name="query_tiles",
            summary="the best of the whole query and its quarters",
            score=lambda shortlist: best_pair_scores(shortlist.compare_parts("tiles")[:, :, :1]),
            parts="tiles",
        ),
        Reranker(
            name="image_tiles",
            summary="the best of the whole image and its quarters",
            score=lambda shortlist: best_pair_scores(shortlist.compare_parts("tiles")[:, :1]),
            parts="tiles",
        ),
        Reranker(
            name="tiles",
            summary="the best pair of both pictures and their quarters",
            score=lambda shortlist: best_pair_scores(shortlist.compare_parts("tiles")),
            parts="tiles",
        ),
    )
}
"""Name -> what needs no learning."""


def build_learnt(head: Head) -> Reranker:
    """Make a re-ranking of a learned head, which compares patches."""

    def score(shortlist: Shortlist) -> Scores:
        """Mix the probabilities of the head with the similarities of the embeddings."""
        assert shortlist.find_parts is not None, "whoever ranks by parts brings them"
        query, images = map(from_bytes, shortlist.find_parts("patches"))
        return add_embedding(shortlist, head.score(query, images))

    return Reranker(
        name=LEARNT,
        summary="patches matched by a head that was learned on your pictures",
        score=score,
        parts="patches",
        head=head,
    )


def find_reranker(name: str) -> Reranker:
    """Look a re-ranking up by name.

    Raises:
        ConfigError: An unknown name; the message lists the valid ones. Or the one that must be learned first.
    """
    if name == LEARNT:
        raise ConfigError(
            f"the re-ranking {LEARNT} is learned on your labeled pictures, and this index remembers none: run vitrieve "
            "evaluate --rerank auto --index INDEX, which keeps it where it is the best."
        )
    if name not in RERANKERS:
        raise ConfigError(unknown_name_message("re-ranking", name, RERANKERS))
    return RERANKERS[name]
