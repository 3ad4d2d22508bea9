"""Labels that the other pictures contradict, classes that overlap, and pictures that are far from all others.

A linear classifier (ridge regression on the embeddings, to 1 for the picture's class and 0 for the others) judges every
label, fitted without that picture: in ridge regression, what leaving one row out would give follows from one fit. A
class has the threshold ``t(j)``, the mean output ``f(j)`` of the pictures that are labeled j. A label is probably wrong
where another class reaches its threshold and has a larger output than the label's class. Of several strengths of the
ridge, the one that confirms the most labels is taken.

Source: Northcutt, Jiang and Chuang, 2021, arXiv:1911.00068, section 3: thresholds and the confident joint; what differs
is the classifier, whose outputs are no probabilities. Leaving one out: Hastie, Tibshirani and Friedman, *The Elements
of Statistical Learning*, 2nd edition, equation 7.64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vitrieve.similarity import FloatArray, IntArray, top_k

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Strengths of the ridge that are tried, for embeddings of unit length."""
MAX_TRIED_ROWS = 10_000
"""Pictures whose labels are counted for the choice of the ridge."""
BLOCK_NUMBERS = 2**24
"""Outputs that are computed at a time: 128 MiB."""
MAX_NEIGHBORS = 10
MIN_NEIGHBORS = 3
TEMPERATURE = 0.07
"""Votes of neighbors are weighted by ``exp(similarity / 0.07)``, as by Caron et al., 2021, arXiv:2104.14294."""
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
    """What the other pictures say about the labels.

    Attributes:
        suggested: ``(N,)`` the class, other than the label, with the largest output among those that reach their
            threshold, or of all where none does; -1 where no other class can be judged.
        scores: ``(N,)``, mostly in [0, 1]: half of one plus the output of the suggested class less that of the label.
        is_error: ``(N,)`` whether the label is probably wrong.
    """

    suggested: IntArray
    scores: Numbers
    is_error: npt.NDArray[np.bool_]


def choose_num_neighbors(labels: IntArray) -> int:
    """Choose how many neighbors vote: as many as a usual class has other pictures, from 3 to 10."""
    sizes = np.unique(labels, return_counts=True)[1]
    usual = int(np.median(sizes)) - 1 if len(sizes) else 0
    return max(MIN_NEIGHBORS, min(MAX_NEIGHBORS, usual))


def find_neighborhood(vectors: FloatArray, num_neighbors: int, *, shown_as: str | None = None) -> Neighborhood:
    """Find the nearest other pictures of every picture; ties are ordered by row.

    Args:
        vectors: ``(N, E)`` embeddings, N at least 2.
        num_neighbors: K; all other pictures where there are fewer.
        shown_as: As ``top_k`` takes it.
    """
    similarities, rows = top_k(vectors, vectors, num_neighbors + 1, shown_as=shown_as)
    is_other = rows != np.arange(len(vectors))[:, None]
    is_other[is_other.all(axis=1), -1] = False  # among many equal pictures it does not find itself
    shape = (len(vectors), rows.shape[1] - 1)
    return Neighborhood(rows[is_other].reshape(shape), similarities[is_other].reshape(shape))


def score_labels(vectors: FloatArray, labels: IntArray) -> LabelScores:
    """Let all other pictures judge the label of each.

    A class with one picture cannot be judged, and is suggested for no other: the score of that picture is 0.

    Args:
        vectors: ``(N, E)`` embeddings of unit length, N at least 1.
        labels: ``(N,)`` classes, from 0.
    """
    sizes = np.bincount(labels)
    classifier = _LeftOut(vectors, labels, len(sizes))
    own = np.concatenate([outputs[np.arange(len(rows)), labels[rows]] for rows, outputs in classifier.compute()])
    thresholds = np.bincount(labels, own, len(sizes)) / np.maximum(sizes, 1)
    suggested = np.full(len(labels), -1, dtype=np.int64)
    best, is_reached = np.full(len(labels), -np.inf), np.zeros(len(labels), dtype=bool)
    for rows, outputs in classifier.compute():
        outputs[:, sizes < 2] = -np.inf
        outputs[np.arange(len(rows)), labels[rows]] = -np.inf
        reached = np.where(outputs >= thresholds, outputs, -np.inf)
        is_reached[rows] = reached.max(axis=1) > -np.inf
        candidates = np.where(is_reached[rows, None], reached, outputs)
        best[rows] = candidates.max(axis=1)
        suggested[rows] = np.where(best[rows] > -np.inf, candidates.argmax(axis=1), -1)
    can_be_judged = (sizes[labels] > 1) & (suggested >= 0)
    scores = np.where(can_be_judged, (1 + np.where(can_be_judged, best, 0) - own) / 2, 0.0)
    return LabelScores(suggested, scores, can_be_judged & is_reached & (best > own))


class _LeftOut:
    """Outputs of a linear classifier for each picture, as if it had been fitted without that picture."""

    def __init__(self, vectors: FloatArray, labels: IntArray, num_classes: int) -> None:
        self._vectors, self._labels = vectors, labels
        self._block_size = max(1, BLOCK_NUMBERS // max(num_classes, vectors.shape[1] + 1))
        width = vectors.shape[1] + 1
        gram, targets = np.zeros((width, width)), np.zeros((num_classes, width))
        for rows in self._cut(np.arange(len(labels))):
            features = self._widen(rows)
            gram += features.T @ features
            np.add.at(targets, labels[rows], features)
        self._values, self._axes = np.linalg.eigh(gram)
        self._targets = self._axes.T @ targets.T
        tried = np.unique(np.linspace(0, len(labels) - 1, min(MAX_TRIED_ROWS, len(labels))).astype(np.int64))
        self._ridge = RIDGES[0]
        self._ridge = max(RIDGES, key=lambda ridge: self._count_confirmed(tried, ridge))

    def compute(self, chosen: IntArray | None = None, ridge: float | None = None) -> Iterator[tuple[IntArray, Numbers]]:
        """Yield some rows and their ``(R, C)`` outputs, of all or of the chosen rows."""
        shrunk = 1 / (np.maximum(self._values, 0) + (ridge or self._ridge))
        weights = shrunk[:, None] * self._targets
        for rows in self._cut(np.arange(len(self._labels)) if chosen is None else chosen):
            features = self._widen(rows) @ self._axes
            leverages = (features**2 @ shrunk)[:, None]
            outputs = features @ weights
            outputs[np.arange(len(rows)), self._labels[rows]] -= leverages[:, 0]
            yield rows, outputs / (1 - leverages)

    def _count_confirmed(self, rows: IntArray, ridge: float) -> int:
        return sum(
            int(np.count_nonzero(outputs.argmax(axis=1) == self._labels[some]))
            for some, outputs in self.compute(rows, ridge)
        )

    def _widen(self, rows: IntArray) -> Numbers:
        """Return the vectors of rows with a one behind them, for the intercept."""
        return np.concatenate([self._vectors[rows].astype(np.float64), np.ones((len(rows), 1))], axis=1)

    def _cut(self, rows: IntArray) -> Iterator[IntArray]:
        for start in range(0, len(rows), self._block_size):
            yield rows[start : start + self._block_size]


def find_overlaps(neighborhood: Neighborhood, labels: IntArray) -> list[tuple[int, int, float]]:
    """Find pairs of classes whose pictures are neighbors of each other; classes with one picture are left out.

    Args:
        neighborhood: The nearest other pictures.
        labels: ``(N,)`` classes, from 0.

    Returns:
        ``(class, other class, overlap)``, each pair once, the largest first. The overlap is the share of the votes of
        both classes' pictures, for one of the two, that are for the wrong one; 0.5: the votes do not tell them apart.
    """
    num_classes = int(labels.max(initial=0)) + 1
    weights = np.exp((neighborhood.similarities.astype(np.float64) - 1) / TEMPERATURE)
    weights /= weights.sum(axis=1, keepdims=True)
    keys = labels[:, None] * num_classes + labels[neighborhood.rows]
    pairs, places = np.unique(keys, return_inverse=True)  # of the C x C pairs, few have votes
    sizes = np.bincount(labels, minlength=num_classes)
    given, voted = np.divmod(pairs, num_classes)
    means = np.bincount(places.ravel(), weights.ravel(), len(pairs)) / sizes[given]
    votes = dict(zip(zip(given.tolist(), voted.tolist(), strict=True), means.tolist(), strict=True))
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
