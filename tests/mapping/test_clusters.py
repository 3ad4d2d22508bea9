from __future__ import annotations

import numpy as np
import pytest

from vitrieve.mapping.clusters import choose_num_neighbors, find_clusters
from vitrieve.mapping.neighbors import Neighbors, find_neighbors
from vitrieve.similarity import normalize


def test_hills_join_behind_the_highest_pass() -> None:
    """Three hills in a row, 0-1, 2-3 and 4-5: the middle one is the least prominent, and nearer to the last."""
    rows = np.array([[1, 2, 3], [0, 2, 3], [3, 4, 1], [2, 4, 1], [5, 2, 3], [4, 2, 3]])
    similarities = np.float32([[0.9] * 3, [0.8] * 3, [0.7] * 3, [0.6] * 3, [0.95] * 3, [0.85] * 3])
    # The peaks are 0, 2 (which would climb to 4, its first denser neighbor) and 4.
    found = find_clusters(Neighbors(rows, similarities), 5)
    assert found.tolist() == [1, 1, 0, 0, 0, 0]
    assert find_clusters(Neighbors(rows, similarities), 1).tolist() == [0] * 6


@pytest.mark.parametrize(("seed", "num_clusters"), [(0, 1), (1, 3), (2, 6), (3, 100)])
def test_find_clusters_equals_a_plain_definition(seed: int, num_clusters: int) -> None:
    generator = np.random.default_rng(seed)
    centers = generator.normal(size=(9, 5))
    vectors = normalize((centers[generator.integers(0, 9, 150)] + 0.4 * generator.normal(size=(150, 5))).astype("f4"))
    neighbors = find_neighbors(vectors, 20)
    assert find_clusters(neighbors, num_clusters).tolist() == find_plainly(neighbors, num_clusters)


def find_plainly(neighbors: Neighbors, num_clusters: int) -> list[int]:
    """Join one hill at a time, the least prominent of those that are there, and look at all edges again."""
    k = choose_num_neighbors(len(neighbors.rows))
    density = neighbors.similarities[:, :k].mean(axis=1, dtype=np.float64).tolist()
    edges = [(row, other) for row, others in enumerate(neighbors.rows[:, :k].tolist()) for other in others]

    def rank(row: int) -> tuple[float, int]:
        return (density[row], -row)

    peak = []
    for start in range(len(density)):
        row = start
        while True:
            higher = [other for other in neighbors.rows[row, :k].tolist() if rank(other) > rank(row)]
            if not higher:
                break
            row = higher[0]
        peak.append(row)
    while len(set(peak)) > num_clusters:
        options = []
        for hill in set(peak):
            passes = [
                (min(density[one], density[other]), peak[other] if peak[one] == hill else peak[one])
                for one, other in edges
                if (peak[one] == hill) != (peak[other] == hill)
            ]
            if not passes:
                continue
            height = max(end for end, _ in passes)
            over = max((other for end, other in passes if end == height), key=rank)
            if rank(over) > rank(hill):
                options.append((density[hill] - height, hill, over))
        if not options:
            break
        _, hill, over = min(options)
        peak = [over if one == hill else one for one in peak]
    sizes = {hill: peak.count(hill) for hill in set(peak)}
    order = sorted(sizes, key=lambda hill: (-sizes[hill], peak.index(hill)))
    return [order.index(one) for one in peak]


def test_far_parts_of_the_graph_stay_apart() -> None:
    vectors = normalize(
        np.repeat(np.eye(4), 6, axis=0).astype("f4") + 0.01 * np.arange(24)[:, None].astype("f4") % 0.05
    )
    found = find_clusters(find_neighbors(vectors, 4), 1)
    assert len({*found.tolist()}) == 4
    assert [len({*found[start : start + 6].tolist()}) for start in range(0, 24, 6)] == [1] * 4


def test_copies_are_one_group() -> None:
    assert find_clusters(find_neighbors(np.tile(np.float32([[1, 0]]), (30, 1)), 8), 40).max() <= 2
