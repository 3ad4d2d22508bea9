"""How alike two pictures are by their parts: arrays of vectors in, one number a pair of pictures out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vitrieve.similarity import FloatArray

SINKHORN_ITERATIONS = 10
SINKHORN_SHARPNESS = 10.0
"""Factor of the similarities in the exponent, which is one over the temperature. Both settings are those of ELViS."""
DUSTBIN_SIMILARITY = 0.5
"""Similarity to the dustbin: parts that are less alike rather match nothing."""


def compare_parts(query: FloatArray, images: FloatArray) -> FloatArray:
    """Compute the cosines of all parts of a query and of some images.

    Args:
        query: ``(P, D)`` float32, rows of unit length.
        images: ``(M, R, D)`` float32, rows of unit length.

    Returns:
        ``(M, P, R)`` float32.
    """
    num_images, num_parts, width = images.shape
    products = query @ images.reshape(-1, width).T  # (P, M·R): one product, not M small ones
    return np.ascontiguousarray(products.reshape(len(query), num_images, num_parts).transpose(1, 0, 2))


def chamfer_scores(similarities: FloatArray | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Compute the mean over both directions of how well the best part answers each part.

    Args:
        similarities: ``(M, P, R)`` of the parts of a query and of M images, P and R at least 1.

    Returns:
        ``(M,)`` float64, in the range of the similarities.

    Source: Barrow et al., "Parametric correspondence and chamfer matching", IJCAI 1977; as a similarity of two sets of
        descriptors, in both directions, in Kordopatis-Zilos et al., "ViSiL", ICCV 2019, arXiv:1908.07410.

    >>> chamfer_scores(np.array([[[1.0, 0.0], [0.5, 0.25]]]))
    array([0.6875])
    """
    rows = similarities.max(axis=2).mean(axis=1, dtype=np.float64)
    columns = similarities.max(axis=1).mean(axis=1, dtype=np.float64)
    return np.asarray((rows + columns) / 2)


def best_pair_scores(similarities: FloatArray) -> npt.NDArray[np.float64]:
    """Take the similarity of the two parts that are most alike: ``(M, P, R)`` to ``(M,)`` float64."""
    return np.asarray(similarities.max(axis=(1, 2)), dtype=np.float64)


def match_by_transport(
    similarities: FloatArray,
    query_dustbin: npt.ArrayLike,
    image_dustbin: npt.ArrayLike,
    corner: float,
) -> npt.NDArray[np.float64]:
    """Match the parts of a query and of some images by entropic optimal transport with a dustbin on each side.

    The similarities get a row and a column more, the dustbins, into which a part goes that matches nothing. Every part
    has the mass 1, and a dustbin that of all parts of the other side. Sinkhorn's iterations scale ``exp(10 s)`` until
    rows and columns have these masses (the columns exactly, after the last one).

    Args:
        similarities: ``(M, P, R)`` in [-1, 1].
        query_dustbin: ``(P,)`` similarities of the query's parts to the dustbin, or one number for all.
        image_dustbin: ``(M, R)`` similarities of the images' parts to it, or one number.
        corner: Similarity of the two dustbins.

    Returns:
        ``(M, P, R)`` float64, how much of each pair of parts is matched, in [0, 1].

    Source: Cuturi, "Sinkhorn distances", NIPS 2013; Sarlin et al., "SuperGlue", CVPR 2020, section 3.2 (the dustbins);
        the settings of ELViS, arXiv:2603.28603. They work with logarithms; here similarities are at most 1, so that
        ``exp(10 s)`` is at most 22,027.

    >>> match_by_transport(np.ones((1, 1, 1)), -np.inf, -np.inf, 0.0)
    array([[[1.]]])
    """
    num_images, num_query, num_parts = similarities.shape
    kernel = np.empty((num_images, num_query + 1, num_parts + 1))
    kernel[:, :-1, :-1] = similarities
    kernel[:, :-1, -1] = query_dustbin
    kernel[:, -1, :-1] = image_dustbin
    kernel[:, -1, -1] = corner
    np.exp(SINKHORN_SHARPNESS * kernel, out=kernel)
    row_masses, column_masses = np.ones(num_query + 1), np.ones(num_parts + 1)
    row_masses[-1], column_masses[-1] = num_parts, num_query
    columns = np.ones((num_images, num_parts + 1))
    for _ in range(SINKHORN_ITERATIONS):
        rows = row_masses / np.matmul(kernel, columns[..., None])[..., 0]  # (M, P + 1)
        columns = column_masses / np.matmul(rows[:, None], kernel)[:, 0]  # (M, R + 1)
    matched: npt.NDArray[np.float64] = kernel[:, :-1, :-1] * rows[:, :-1, None] * columns[:, None, :-1]
    return matched


def transport_scores(similarities: FloatArray) -> npt.NDArray[np.float64]:
    """Compute the Chamfer similarity of what optimal transport matches, with one dustbin for all parts.

    Args:
        similarities: ``(M, P, R)`` in [-1, 1].

    Returns:
        ``(M,)`` float64 in [0, 1].

    Source: ELViS, arXiv:2603.28603, without what is learned. It sums over the parts, where this is their mean.
    """
    dustbin = DUSTBIN_SIMILARITY
    return chamfer_scores(match_by_transport(similarities, dustbin, dustbin, dustbin))
