"""Labels that the neighbors contradict, classes that overlap, and pictures that are far from all others.

The neighbors of a picture vote for their classes, each with the weight ``exp(similarity / 0.07)``; its own label has no
part in it. So the share ``p(j)`` of class j is a probability that was not fitted on the picture itself, as confident
learning asks for. A class has the threshold ``t(j)``, the mean of ``p(j)`` over the pictures that are labeled j. A
label is probably wrong where another class reaches its threshold and has a larger share than the label's class.

Source: Northcutt, Jiang and Chuang, 2021, arXiv:1911.00068, section 3: thresholds and the confident joint. The
probabilities are those of a kNN vote, with the temperature of Caron et al., 2021, arXiv:2104.14294.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vitrieve.similarity import FloatArray, IntArray, top_k

MAX_NEIGHBORS = 10
MIN_NEIGHBORS = 3
TEMPERATURE = 0.07
OUTLIER_DEVIATIONS = 3.5
"""A picture is an outlier from so many standard deviations on, which are estimated by the median deviation."""
MIN_OVERLAP = 0.2
"""Share of wrong votes from which two classes are said to overlap; 0.5: the votes do not tell them apart."""

Numbers = npt.NDArray[np.float64]


class Neighborhood(NamedTuple):
    """The nearest other pictures of every picture.

    Attributes:
        rows: ``(N, K)`` rows, nearest first.
        similarities: ``(N, K)``.
    """

    rows: IntArray
    similarities: FloatArray


class LabelScores(NamedTuple):
    """What the neighbors say about the labels.

    Attributes:
        suggested: ``(N,)`` the class, other than the label, with the largest share among those that reach their
            threshold, or of all where none does; -1 where all neighbors have the picture's label.
        scores: ``(N,)`` in [0, 1]: half of one plus the share of the suggested class less that of the label.
        is_error: ``(N,)`` whether the label is probably wrong.
        overlaps: ``(class, other class, overlap)``, each pair once, the largest first: the share of the votes of both
            classes' pictures, for one of the two, that are for the wrong one.
    """

    suggested: IntArray
    scores: Numbers
    is_error: npt.NDArray[np.bool_]
    overlaps: list[tuple[int, int, float]]


def choose_num_neighbors(labels: IntArray) -> int:
    """Choose how many neighbors vote: as many as a usual class has other pictures, from 3 to 10."""
    sizes = np.unique(labels, return_counts=True)[1]
    usual = int(np.median(sizes)) - 1 if len(sizes) else 0
    return max(MIN_NEIGHBORS, min(MAX_NEIGHBORS, usual))


def find_neighborhood(vectors: FloatArray, num_neighbors: int) -> Neighborhood:
    """Find the nearest other pictures of every picture; ties are ordered by row.

    Args:
        vectors: ``(N, E)`` embeddings, N at least 2.
        num_neighbors: K; all other pictures where there are fewer.
    """
    similarities, rows = top_k(vectors, vectors, num_neighbors + 1)
    is_other = rows != np.arange(len(vectors))[:, None]
    is_other[is_other.all(axis=1), -1] = False  # among many equal pictures it does not find itself
    shape = (len(vectors), rows.shape[1] - 1)
    return Neighborhood(rows[is_other].reshape(shape), similarities[is_other].reshape(shape))


def score_labels(neighborhood: Neighborhood, labels: IntArray) -> LabelScores:
    """Let the neighbors of every picture judge its label.

    A class with one picture cannot be judged: the score of that picture is 0.

    Args:
        neighborhood: The nearest other pictures.
        labels: ``(N,)`` classes, from 0.
    """
    num_pictures, num_classes = len(labels), int(labels.max(initial=0)) + 1
    weights = np.exp((neighborhood.similarities.astype(np.float64) - 1) / TEMPERATURE)
    weights /= weights.sum(axis=1, keepdims=True)
    keys = (np.arange(num_pictures)[:, None] * num_classes + labels[neighborhood.rows]).ravel()
    pairs, places = np.unique(keys, return_inverse=True)  # of the N x C shares, few are not zero
    shares: Numbers = np.bincount(places, weights.ravel(), len(pairs)).astype(np.float64)
    owners, classes = np.divmod(pairs, num_classes)
    is_own = classes == labels[owners]
    own = np.bincount(owners[is_own], shares[is_own], num_pictures)
    sizes = np.bincount(labels, minlength=num_classes)
    thresholds = np.bincount(labels, own, num_classes) / np.maximum(sizes, 1)

    others = np.flatnonzero(~is_own)
    is_reached = shares[others] >= thresholds[classes[others]]
    # The best of a picture comes last: by picture, then whether the threshold is reached, then the share, then falling
    # class, so that of equal ones the first class is suggested.
    order = others[np.lexsort((-classes[others], shares[others], is_reached, owners[others]))]
    last = order[np.flatnonzero(np.diff(owners[order], append=num_pictures))]
    suggested = np.full(num_pictures, -1, dtype=np.int64)
    share, reaches = np.zeros(num_pictures), np.zeros(num_pictures, dtype=bool)
    suggested[owners[last]], share[owners[last]] = classes[last], shares[last]
    reaches[owners[last]] = shares[last] >= thresholds[classes[last]]
    can_be_judged = sizes[labels] > 1
    scores = np.where(can_be_judged & (suggested >= 0), (1 + share - own) / 2, 0.0)
    is_error = can_be_judged & reaches & (share > own)
    return LabelScores(suggested, scores, is_error, _list_overlaps(labels[owners], classes, shares, sizes))


def _list_overlaps(given: IntArray, voted: IntArray, shares: Numbers, sizes: IntArray) -> list[tuple[int, int, float]]:
    """List the pairs of classes whose pictures vote for each other."""
    pairs, places = np.unique(given * len(sizes) + voted, return_inverse=True)
    means = np.bincount(places, shares, len(pairs)) / sizes[pairs // len(sizes)]
    votes = dict(zip(map(tuple, np.stack(np.divmod(pairs, len(sizes)), axis=1).tolist()), means.tolist(), strict=True))
    found = []
    for one, other in {(min(pair), max(pair)) for pair in votes if pair[0] != pair[1]}:
        wrong = votes.get((one, other), 0.0) + votes.get((other, one), 0.0)
        right = votes.get((one, one), 0.0) + votes.get((other, other), 0.0)
        overlap = wrong / (wrong + right)
        if overlap >= MIN_OVERLAP and min(sizes[one], sizes[other]) > 1:
            found.append((one, other, overlap))
    return sorted(found, key=lambda pair: (-pair[2], pair[:2]))


def measure_outliers(neighborhood: Neighborhood) -> Numbers:
    """Return ``(N,)``: how many standard deviations each picture is farther from its neighbors than the usual one.

    The standard deviation is 1.4826 times the median deviation from the median; where that is 0, so are all results.

    >>> far = measure_outliers(Neighborhood(np.zeros((5, 1), int), np.float32([[0.9], [0.8], [0.7], [0.8], [-0.5]])))
    >>> int(far.argmax()), bool(far[1] == 0)
    (4, True)
    """
    nearness = neighborhood.similarities.astype(np.float64).mean(axis=1)
    deviations = np.median(nearness) - nearness
    scale = 1.4826 * np.median(np.abs(deviations))
    return np.asarray(deviations / scale if scale > 0 else np.zeros_like(deviations), dtype=np.float64)
