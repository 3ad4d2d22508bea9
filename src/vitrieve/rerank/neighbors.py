"""What the neighbors of the first images found say about their order: query expansion, k-reciprocal sets, SuperGlobal.

All of it takes L2-normalized embeddings and cosine similarities of any sign. An image whose similarity is not positive
is no evidence: its weight is zero, where the usual power of a negative number would be NaN or, for an even exponent,
positive.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vitrieve.errors import InputError
from vitrieve.similarity import FloatArray, as_embeddings, normalize, order_nearest, similarity, similarity_chunks

NUM_EXPANSION_NEIGHBORS = 2
"""Nearest images that a query is expanded by. Few, and chosen on the training splits of Grocery and emoji
(benchmarks/reranking_settings.py): with a frozen encoder every further one is often of another class, and costs
Recall@1."""
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


SUPERGLOBAL_NEIGHBORS = 9
"""Nearest images, beside itself, that refine each image; this and the next two are the published settings."""
SUPERGLOBAL_WEIGHT = 0.15
"""Factor of a neighbor's similarity in its weight; the image itself weighs 1."""
SUPERGLOBAL_POOLED = 10
"""First images whose refined vectors make the second query."""


def superglobal_scores(
    query: npt.ArrayLike,
    vectors: npt.ArrayLike,
    *,
    num_neighbors: int = SUPERGLOBAL_NEIGHBORS,
    weight: float = SUPERGLOBAL_WEIGHT,
    num_pooled: int = SUPERGLOBAL_POOLED,
) -> npt.NDArray[np.float64]:
    """Score the first images of a query by vectors that their neighbors refine.

    With ``x_i`` the images and ``s_ij`` their similarities, the refined image is the weighted mean
    ``y_i = (x_i + sum_j w s_ij x_j) / (1 + sum_j w s_ij)`` over the ``num_neighbors`` nearest others among the images
    given. The images are ordered by ``q·y_i``; the second query ``p`` takes, coordinate by coordinate, the largest
    value among the first ``num_pooled`` refined images. The score is ``(q·y_i + p·x_i) / 2``.

    Args:
        query: ``(E,)`` L2-normalized.
        vectors: ``(M, E)`` L2-normalized embeddings of the first images found; M may be 0.
        num_neighbors: Others that refine an image, at least 0; a short list has fewer.
        weight: Factor of a neighbor's weight, at least 0.
        num_pooled: Images that make the second query, at least 1.

    Returns:
        ``(M,)`` float64, higher is nearer.

    Raises:
        InputError: Shapes that do not fit, numbers that are not finite, or a number out of range.

    Source:
        Shao et al., "Global Features are All You Need for Image Retrieval and Reranking", ICCV 2023,
        arXiv:2308.06954, section 3.3, and the settings of the authors' code. There all similarities are positive; here
        a negative one weighs nothing. The code takes the refined vectors in the second product, too; the paper, as
        here, the vectors as they were.
    """
    images = as_embeddings(vectors).astype(np.float64)
    asked = as_embeddings(np.asarray(query)[None], "query embeddings").astype(np.float64).reshape(-1)
    if images.shape[1:] != asked.shape or num_neighbors < 0 or not 0 <= weight < np.inf or num_pooled < 1:
        raise InputError(
            f"vectors have shape {images.shape} for a query of {asked.shape}, num_neighbors is {num_neighbors}, weight "
            f"{weight} and num_pooled {num_pooled}; expected (M, E), at least 0, at least 0 and at least 1."
        )
    if not len(images):
        return np.empty(0)
    refined = images
    num_others = min(num_neighbors, len(images) - 1)
    if num_others:
        near = similarity(images, images)
        np.fill_diagonal(near, -np.inf)  # itself, by row: a duplicate may stand before it
        values, rows = order_nearest(near, num_others)
        weights = weight * np.maximum(values.astype(np.float64), 0.0)  # (M, K)
        refined = images + np.einsum("mk,mke->me", weights, images[rows])
        refined /= 1 + weights.sum(axis=1, keepdims=True)
    first = refined @ asked
    pooled = refined[np.argsort(-first, kind="stable")[:num_pooled]].max(axis=0)
    scores: npt.NDArray[np.float64] = (first + images @ pooled) / 2
    return scores
