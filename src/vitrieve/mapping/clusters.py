"""Groups of pictures: the hills of density in the graph of nearest neighbors; ``collection_map.py`` is next.

The density at a picture is its mean similarity to its neighbors. From each picture one climbs to the nearest neighbor
that is denser, and so on to a peak: the pictures that reach one peak are a hill. Between two hills lies a pass, the
highest of the lower ends of their common edges. A hill joins the higher one behind its highest pass, the least
prominent hill first, until few enough are left.

Source: F. Chazal et al., "Persistence-based clustering in Riemannian manifolds", 2013 (ToMATo). There hills join below
a prominence; here until a number is reached.
"""

from __future__ import annotations

import math

import numpy as np

from vitrieve.mapping.neighbors import Neighbors
from vitrieve.similarity import IntArray

MAX_NEIGHBORS = 15
MAX_CLUSTERS = 40
"""The most groups: as many as a person looks through, and as colors that can be told apart at all."""


def choose_num_clusters(num_images: int) -> int:
    """Return the most groups of a collection: ``sqrt(N / 2)``, and at most ``MAX_CLUSTERS``.

    >>> [choose_num_clusters(number) for number in (1, 8, 200, 100_000)]
    [1, 2, 10, 40]
    """
    return max(1, min(MAX_CLUSTERS, math.isqrt(num_images // 2)))


def choose_num_neighbors(num_images: int) -> int:
    """Return how many neighbors the graph has of each picture: ``sqrt(N)``, from 3 to ``MAX_NEIGHBORS``.

    With more, the graph of a small collection has one hill.

    >>> [choose_num_neighbors(number) for number in (2, 40, 100_000)]
    [3, 6, 15]
    """
    return max(3, min(MAX_NEIGHBORS, math.isqrt(num_images)))


def find_clusters(neighbors: Neighbors, num_clusters: int) -> IntArray:
    """Divide pictures into groups.

    Args:
        neighbors: The neighbors of ``N`` pictures, of which the first ``choose_num_neighbors(N)`` count.
        num_clusters: The most groups, at least 1; parts of the graph without an edge between them stay apart, so there
            may be more.

    Returns:
        ``(N,)`` int64: the number of the group, from 0 for the largest; equally large ones by their first picture.
    """
    rows = neighbors.rows[:, : choose_num_neighbors(len(neighbors.rows))]
    density = neighbors.similarities[:, : rows.shape[1]].mean(axis=1, dtype=np.float64)
    height = np.empty(len(density), dtype=np.int64)  # ranks, so that no two are equal: of equals, the first is higher
    height[np.argsort(-density, kind="stable")] = -np.arange(len(density))
    peaks = _climb(rows, height)
    joined = _join_hills(_find_passes(rows, peaks, density), np.unique(peaks), density, num_clusters)
    roots = np.array([joined.get(peak, peak) for peak in np.unique(peaks).tolist()])
    _, first, numbers, counts = np.unique(
        roots[np.searchsorted(np.unique(peaks), peaks)], return_index=True, return_inverse=True, return_counts=True
    )
    order = np.empty(len(first), dtype=np.int64)
    order[np.lexsort((first, -counts))] = np.arange(len(first))
    return order[numbers]


def _climb(rows: IntArray, height: IntArray) -> IntArray:
    """Return the peak of each picture."""
    is_higher = height[rows] > height[:, None]
    itself = np.arange(len(rows))
    above = np.where(is_higher.any(axis=1), rows[itself, is_higher.argmax(axis=1)], itself)
    while not np.array_equal(above, above[above]):
        above = above[above]
    return above


def _find_passes(rows: IntArray, peaks: IntArray, density: np.ndarray) -> list[tuple[float, int, int]]:
    """Return ``(density, peak, peak)`` of the pass between every two hills with an edge, the highest first."""
    passes: dict[tuple[int, int], float] = {}
    for column in rows.T:  # one neighbor of all pictures at a time, which bounds the memory
        one, other = peaks, peaks[column]
        is_pass = one != other
        ends = np.minimum(density, density[column])[is_pass]
        low, high = np.minimum(one, other)[is_pass], np.maximum(one, other)[is_pass]
        order = np.lexsort((-ends, high, low))
        low, high, ends = low[order], high[order], ends[order]
        is_first = np.ones(len(low), dtype=bool)
        is_first[1:] = (np.diff(low) != 0) | (np.diff(high) != 0)
        for pair in zip(low[is_first].tolist(), high[is_first].tolist(), ends[is_first].tolist(), strict=True):
            passes[pair[:2]] = max(pair[2], passes.get(pair[:2], -np.inf))
    return sorted(((end, low, high) for (low, high), end in passes.items()), key=lambda one: (-one[0], one[1], one[2]))


def _join_hills(
    passes: list[tuple[float, int, int]], peaks: IntArray, density: np.ndarray, num_clusters: int
) -> dict[int, int]:
    """Return the peak of the group of each hill that joined another."""
    deaths = _find_deaths(passes, density)
    num_joined = max(0, len(peaks) - num_clusters)
    # Where less prominent ones join first, what a hill joins is there or has joined further itself.
    chosen = sorted(deaths, key=lambda peak: (deaths[peak][0], peak))[:num_joined]
    above = {peak: deaths[peak][1] for peak in chosen}
    joined = {}
    for peak in chosen:
        root = above[peak]
        while root in above:
            root = above[root]
        joined[peak] = root
    return joined


def _find_deaths(passes: list[tuple[float, int, int]], density: np.ndarray) -> dict[int, tuple[float, int]]:
    """Return of each hill that meets a higher one its prominence, and the peak that it meets."""
    parents: dict[int, int] = {}

    def find(peak: int) -> int:
        while peak in parents:
            peak = parents[peak]
        return peak

    deaths = {}
    for end, one, other in passes:
        low, high = sorted((find(one), find(other)), key=lambda peak: (density[peak], -peak))
        if low != high:
            parents[low] = high
            deaths[low] = (float(density[low]) - end, high)
    return deaths
