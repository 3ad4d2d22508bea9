"""The images of an answer in their order: fetched as far as needed, ordered again by their neighbors, and grouped.

All of it takes L2-normalized embeddings and cosine similarities of any sign. An image whose similarity is not positive
is no evidence for re-ranking: its weight is zero, where the usual power of a negative number would be NaN or, for an
even exponent, positive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrieve.errors import InputError
from vitrieve.index.filter import FilterLike
from vitrieve.index.store import Hit, VectorStore
from vitrieve.search.query import Query
from vitrieve.search.request import Reranking, SearchRequest
from vitrieve.similarity import FloatArray, as_embeddings, normalize, order_nearest, similarity, similarity_chunks

MAX_DEPTH = 16_384
"""Nearest images that a search can reach: Milvus returns at most this many, and no user pages deeper."""
GROWTH = 4
"""Every further fetch is this many times as deep, so that all of them cost a third more than the last."""
GROUP_DEPTH = 4
"""Images fetched at first for each group asked for."""
RERANK_DEPTH = 100
"""Nearest images that k-reciprocal re-ranking orders again; those behind keep their order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking:
    """The images that answer a query, in order.

    Attributes:
        nearest_score: Highest cosine similarity of all images that may be found; None when there is none.
        levels: The images, nearest first or in the order of a re-ranking, in the lists in which they are fetched.
    """

    nearest_score: float | None
    levels: Iterator[list[Hit]]


def rank_images(store: VectorStore, query: Query, request: SearchRequest) -> Ranking:
    """Order the images of a store for a query.

    The order is the same for every page of a request, also where a store is approximate and finds other images when
    more are asked for: what a deeper fetch finds in addition stands behind all that was found before.

    Returns:
        At most ``MAX_DEPTH`` images, each once, without the query's own; every score is the cosine similarity to
        the query as it was asked.
    """
    num_first = choose_depth(request)
    levels = fetch_levels(store, query, query.vector, num_first, request.filter)
    first = next(levels, [])
    nearest_score = first[0].score if first else None
    if request.reranking == "none" or not first:
        return Ranking(nearest_score=nearest_score, levels=chain([first], levels))
    if request.reranking == "k_reciprocal":
        reordered = _reorder(store, query.vector, first[:RERANK_DEPTH]) + first[RERANK_DEPTH:]
        return Ranking(nearest_score=nearest_score, levels=chain([reordered], levels))
    expanded = _expand(store, query.vector, first, request.reranking)
    found = fetch_levels(store, query, expanded, num_first, request.filter)
    return Ranking(nearest_score=nearest_score, levels=(_score(store, query.vector, hits) for hits in found))


def choose_depth(request: SearchRequest) -> int:
    """Choose how many images are fetched first: a function of all but the offset, so that pages agree."""
    is_grouped = request.group_by is not None or request.is_near_duplicate_grouped
    depth = (request.k + 1) * (GROUP_DEPTH if is_grouped else 1)
    return min(max(depth, RERANK_DEPTH) if request.reranking != "none" else depth, MAX_DEPTH)


def fetch_levels(
    store: VectorStore, query: Query, vector: FloatArray, num_first: int, filter: FilterLike
) -> Iterator[list[Hit]]:
    """Fetch the nearest images, then deeper ones; yield what each fetch finds in addition, nearest first."""
    seen = set(query.own_ids)
    depth = min(num_first + len(seen), MAX_DEPTH)
    while True:
        (hits,) = store.search(vector[None], depth, filter)
        new = [hit for hit in hits if hit.record.image_id not in seen]
        seen.update(hit.record.image_id for hit in new)
        yield new
        if len(hits) < depth or depth == MAX_DEPTH:
            return
        depth = min(GROWTH * depth, MAX_DEPTH)


def read_vectors(store: VectorStore, hits: Sequence[Hit]) -> np.ndarray:
    """Read the full vectors ``(H, E)`` of some images found."""
    return store.get([hit.record.image_id for hit in hits])[0]


def _expand(store: VectorStore, vector: FloatArray, first: Sequence[Hit], reranking: Reranking) -> FloatArray:
    neighbors = read_vectors(store, first[:NUM_EXPANSION_NEIGHBORS])
    alpha = DEFAULT_ALPHA if reranking == "alpha_query_expansion" else 0.0
    return expand_queries(vector[None], neighbors[None], alpha=alpha).reshape(-1)


def _score(store: VectorStore, vector: FloatArray, hits: Sequence[Hit]) -> list[Hit]:
    """Give every image its similarity to the query itself, in the order that the expanded query found."""
    if not hits:
        return []
    scores = similarity(vector[None], read_vectors(store, hits))[0]
    return [dataclasses.replace(hit, score=float(score)) for hit, score in zip(hits, scores, strict=True)]


def _reorder(store: VectorStore, vector: FloatArray, hits: Sequence[Hit]) -> list[Hit]:
    vectors = np.concatenate([vector[None], read_vectors(store, hits)])  # (1 + H, E), the query first
    distances = k_reciprocal_distances(similarity(vectors, vectors), 1)[0]  # (H,)
    return [hits[row] for row in np.argsort(distances, kind="stable")]


NEAR_DUPLICATE_SIMILARITY = 0.99
"""Images at least as similar as this are nearly equal. Measured with dinov2-vits14 at 112 px on 60 photographs
(Grocery, benchmarks/search_settings.py): a picture saved again as JPEG of quality 20 or 50, at half the size, or 15 %
brighter is above it in 99 of 100 cases; one cut by 2 % at every edge in half of them; of different photographs, one in
200 has another that near. An encoder fine-tuned to draw a class together calls more images equal."""

MAX_GROUP_IMAGES = 100
"""Images kept in a group, the first included: a class of 30,000 would fill a page that nobody looks through. A filter
shows them all."""


def group_hits(store: VectorStore, levels: Iterable[list[Hit]], request: SearchRequest) -> list[list[Hit]]:
    """Sort images into groups, until there is one more than the request's page needs.

    An image joins the group that has its value of ``group_by``; where near-duplicates are grouped, otherwise the group
    whose first image it nearly equals; or it opens a group. An image without the column opens one, too. A group's first
    image depends on nearer images only, so that every page finds the same groups.

    Returns:
        Groups in the order of their first images; in each, the images met until then, in order, at most
        ``MAX_GROUP_IMAGES``. Without grouping, every image is a group.
    """
    groups = _Groups(request.group_by, request.offset + request.k + 1, store.info.embedding_dim)
    for hits in levels:
        groups.add(hits, read_vectors(store, hits) if request.is_near_duplicate_grouped and hits else None)
        if groups.is_enough:
            break
    return groups.found


class _Groups:
    def __init__(self, column: str | None, num_wanted: int, embedding_dim: int) -> None:
        self.found: list[list[Hit]] = []
        self._column = column
        self._num_wanted = num_wanted
        self._group_rows: dict[str, int] = {}  # value of the column -> row in found
        self._leaders = np.empty((num_wanted, embedding_dim), np.float32)  # vectors of the groups' first images

    @property
    def is_enough(self) -> bool:
        return len(self.found) == self._num_wanted

    def add(self, hits: Sequence[Hit], vectors: np.ndarray | None) -> None:
        for row, hit in enumerate(hits):
            value = None if self._column is None else hit.record.metadata.get(self._column)
            vector = None if vectors is None else vectors[row]
            group = self._find(value, vector)
            if group is None:
                if self.is_enough:
                    continue
                group = len(self.found)
                self.found.append([])
                if vector is not None:
                    self._leaders[group] = vector
            if len(self.found[group]) < MAX_GROUP_IMAGES:
                self.found[group].append(hit)
            if value is not None:
                self._group_rows.setdefault(value, group)

    def _find(self, value: str | None, vector: np.ndarray | None) -> int | None:
        if value is not None and value in self._group_rows:
            return self._group_rows[value]
        if vector is None or not self.found:
            return None
        similarities = self._leaders[: len(self.found)] @ vector  # (groups,)
        nearest = int(np.argmax(similarities))
        return nearest if similarities[nearest] >= NEAR_DUPLICATE_SIMILARITY else None


NUM_EXPANSION_NEIGHBORS = 2
"""Nearest images that a query is expanded by. Few, and chosen on the training splits of Grocery and emoji
(benchmarks/reranking.py): with a frozen encoder every further one is often of another class, and costs Recall@1."""
DEFAULT_ALPHA = 3.0
"""Exponent of a neighbor's weight; Radenović et al. use 3."""
DEFAULT_K1 = 10
"""Neighbors whose reciprocity is looked at. Half as many as in Zhong et al. (20 and 6), chosen as above."""
DEFAULT_K2 = 3
DEFAULT_DISTANCE_WEIGHT = 0.3


def expand_queries(queries: npt.ArrayLike, neighbors: npt.ArrayLike, *, alpha: float = 0.0) -> FloatArray:
    """Replace every query by the weighted mean of itself and its nearest images.

    A neighbor of similarity s weighs ``s ** alpha`` where s is positive, else nothing; the query weighs 1.

    Args:
        queries: ``(Q, E)`` L2-normalized.
        neighbors: ``(Q, n, E)`` L2-normalized embeddings of each query's nearest images; n may be 0.
        alpha: 0 for the plain mean (average query expansion); larger trusts near neighbors more.

    Returns:
        ``(Q, E)`` float32 of unit length; a query of zeros stays zero.

    Raises:
        InputError: Shapes that do not fit, numbers that are not finite, or a negative ``alpha``.

    Source:
        Chum et al., "Total Recall", ICCV 2007 (average); Radenović et al., "Fine-tuning CNN Image Retrieval with No
        Human Annotation", TPAMI 2018, section 3.4 (α). They have non-negative similarities and no rule for others.

    >>> expand_queries([[1.0, 0.0]], [[[0.6, 0.8], [-1.0, 0.0]]]).round(3)
    array([[0.894, 0.447]], dtype=float32)
    """
    query_rows = as_embeddings(queries, "query embeddings").astype(np.float64)
    near = np.asarray(neighbors, dtype=np.float64)
    if near.ndim != 3 or near.shape[::2] != query_rows.shape or not np.isfinite(near).all():
        raise InputError(
            f"neighbors have shape {near.shape}; expected (Q, n, E) for queries {query_rows.shape}, finite."
        )
    _check_alpha(alpha)
    similarities = np.einsum("qe,qne->qn", query_rows, near)
    expanded = query_rows + np.einsum("qn,qne->qe", _weigh(similarities, alpha), near)
    return normalize(expanded)


def augment_database(
    vectors: npt.ArrayLike, *, num_neighbors: int = NUM_EXPANSION_NEIGHBORS, alpha: float = DEFAULT_ALPHA
) -> FloatArray:
    """Replace every image by the weighted mean of itself and its nearest other images: query expansion, offline.

    Args:
        vectors: ``(N, E)`` L2-normalized embeddings of a collection.
        num_neighbors: Other images that count for each, at least 0; all of a smaller collection.
        alpha: As in ``expand_queries``.

    Returns:
        ``(N, E)`` float32 of unit length, from the vectors as they were given: no result is averaged again.

    Raises:
        InputError: Not a finite matrix, a negative ``num_neighbors`` or a negative ``alpha``.

    Source:
        Turcot and Lowe, "Better matching with fewer features", ICCV workshops 2009; Arandjelović and Zisserman,
        CVPR 2012. There the neighbors share inliers of a homography; here they are the nearest by cosine.
    """
    rows = as_embeddings(vectors)
    _check_alpha(alpha)
    if num_neighbors < 0:
        raise InputError(f"num_neighbors is {num_neighbors}; it must be 0 or more.")
    num_others = min(num_neighbors, len(rows) - 1)
    augmented = rows.copy()
    if num_others < 1:
        return augmented
    for chunk, similarities in similarity_chunks(rows, rows):
        # An image's own row is marked, not taken for the nearest: an exact duplicate may stand before it.
        similarities[np.arange(len(similarities)), np.arange(chunk.start, chunk.stop)] = -np.inf
        _, nearest = order_nearest(similarities, num_others)
        augmented[chunk] = expand_queries(rows[chunk], rows[nearest], alpha=alpha)
    return augmented


def k_reciprocal_distances(
    similarities: npt.ArrayLike,
    num_queries: int,
    *,
    k1: int = DEFAULT_K1,
    k2: int = DEFAULT_K2,
    distance_weight: float = DEFAULT_DISTANCE_WEIGHT,
) -> npt.NDArray[np.float64]:
    """Compute distances that count how many reciprocal neighbors two images share.

    Two images are k-reciprocal neighbors when each is among the k nearest of the other (itself included). An
    image's set is that of its ``k1`` neighbors, enlarged by the sets (of half the size) of its members that share two
    thirds with it; a member at the distance d weighs ``exp(-d)``. The sets of the ``k2`` nearest are averaged,
    and two images are compared by the Jaccard distance of their weighted sets, mixed with the distance itself.

    Args:
        similarities: ``(N, N)`` cosines of queries and gallery together, the queries first.
        num_queries: Number of rows that are queries.
        k1: Neighbors whose reciprocity is looked at, at least 1; a small set has fewer.
        k2: Nearest images whose sets are averaged, at least 1; 1 for none but its own.
        distance_weight: Part of the distance itself, in [0, 1]; 1 leaves the order as it is.

    Returns:
        ``(num_queries, N - num_queries)`` float64 in [0, 1]; lower is nearer.

    Raises:
        InputError: Not a square finite matrix, or a number out of range.

    Source:
        Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017, equations 1 to 12,
        and the order of steps of its published Python code. As there, the distance is the squared Euclidean one,
        divided by the largest of the row: it is ``2 - 2 s``, which no sign of s disturbs. Ties are ordered by row
        except that every image comes first among its own neighbors.
    """
    values = as_embeddings(similarities, "similarities").astype(np.float64)
    _check_reciprocal(values, num_queries, k1, k2, distance_weight)
    distances = np.maximum(2 - 2 * values, 0)
    np.fill_diagonal(distances, 0)
    distances /= np.maximum(distances.max(axis=1, keepdims=True, initial=0.0), np.finfo(np.float64).tiny)
    ranked = _rank_with_self_first(distances)
    encodings = _encode_reciprocal(distances, ranked, k1)  # (N, N), rows sum to 1
    if k2 > 1:
        encodings = np.stack([encodings[nearest].mean(axis=0) for nearest in ranked[:, :k2]])
    jaccard = np.empty((num_queries, len(values) - num_queries))
    for query, members in enumerate(encodings[:num_queries]):
        columns = np.flatnonzero(members)
        shared = np.minimum(members[columns], encodings[num_queries:, columns]).sum(axis=1)
        jaccard[query] = 1 - shared / (2 - shared)  # rows sum to 1, so that the maxima sum to 2 - shared
    return (1 - distance_weight) * jaccard + distance_weight * distances[:num_queries, num_queries:]


def _weigh(similarities: npt.NDArray[np.float64], alpha: float) -> Any:
    return np.where(similarities > 0, np.maximum(similarities, 0) ** alpha, 0.0)


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha < np.inf:
        raise InputError(f"alpha is {alpha}; it must be 0 or more.")


def _check_reciprocal(
    similarities: npt.NDArray[np.float64], num_queries: int, k1: int, k2: int, distance_weight: float
) -> None:
    if similarities.shape[0] != similarities.shape[1] or not 0 <= num_queries <= len(similarities):
        raise InputError(
            f"similarities have shape {similarities.shape} with {num_queries} queries; expected a square matrix of "
            "queries and gallery, the queries first."
        )
    if k1 < 1 or k2 < 1 or not 0 <= distance_weight <= 1:
        raise InputError(
            f"k1 is {k1}, k2 is {k2} and distance_weight {distance_weight}; k1 and k2 must be 1 or more, the weight "
            "from 0 to 1."
        )


def _rank_with_self_first(distances: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    own_first = distances.copy()
    np.fill_diagonal(own_first, -1)  # before exact duplicates, which are at distance zero as well
    return np.argsort(own_first, axis=1, kind="stable")


def _encode_reciprocal(
    distances: npt.NDArray[np.float64], ranked: npt.NDArray[np.intp], k1: int
) -> npt.NDArray[np.float64]:
    """Weigh the members of every image's enlarged set; each row sums to 1."""
    wide = _find_reciprocal(ranked, k1)  # (N, N), row: image, column: member
    narrow = _find_reciprocal(ranked, max(1, round(k1 / 2)))
    num_shared = wide @ narrow.T  # members of the column's small set that are in the row's set
    is_joined = (wide > 0) & (3 * num_shared > 2 * narrow.sum(axis=1))
    is_member = wide + is_joined.astype(np.float32) @ narrow > 0
    weights = np.where(is_member, np.exp(-distances), 0.0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _find_reciprocal(ranked: npt.NDArray[np.intp], k: int) -> FloatArray:
    """Mark with 1 the columns among the row's k nearest others (and itself) that have it among theirs."""
    is_near = np.zeros(ranked.shape, dtype=np.float32)  # numbers, whose products count
    np.put_along_axis(is_near, ranked[:, : k + 1], 1, axis=1)  # the row itself is the first
    return is_near * is_near.T
