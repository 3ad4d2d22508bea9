from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrieve.errors import InputError
from vitrieve.rerank.neighbors import augment_database, expand_queries, k_reciprocal_distances, superglobal_scores
from vitrieve.similarity import normalize, similarity


def draw_embeddings(num_rows: int, dim: int = 4, seed: int = 0) -> np.ndarray:
    """Directions all over the sphere: about half of the similarities are negative."""
    return normalize(np.random.default_rng(seed).normal(size=(num_rows, dim)))


def expand_slowly(query: np.ndarray, neighbors: np.ndarray, alpha: float) -> list[float]:
    total = [float(value) for value in query]
    for neighbor in neighbors:
        cosine = sum(float(a) * float(b) for a, b in zip(query, neighbor, strict=True))
        if cosine > 0:
            total = [value + cosine**alpha * float(part) for value, part in zip(total, neighbor, strict=True)]
    length = math.sqrt(sum(value * value for value in total))
    return [value / length for value in total]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0, 3.0])
def test_expand_queries_equals_a_slow_reference(alpha: float) -> None:
    queries, neighbors = draw_embeddings(6), draw_embeddings(30, seed=1).reshape(6, 5, 4)
    expected = [expand_slowly(query, near, alpha) for query, near in zip(queries, neighbors, strict=True)]
    np.testing.assert_allclose(expand_queries(queries, neighbors, alpha=alpha), expected, atol=1e-6)


def test_expand_queries_by_hand() -> None:
    # Similarity 0.6, alpha 2: (1, 0) + 0.36 * (0.6, 0.8) = (1.216, 0.288), of length 1.2496
    expanded = expand_queries([[1.0, 0.0]], [[[0.6, 0.8]]], alpha=2)
    np.testing.assert_allclose(expanded, [[0.97308, 0.23047]], atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_expand_queries_gives_neighbors_that_point_away_no_weight(alpha: float) -> None:
    query = [[1.0, 0.0]]
    np.testing.assert_array_equal(expand_queries(query, [[[-1.0, 0.0], [-0.6, 0.8], [0.0, 1.0]]], alpha=2), query)
    assert np.isfinite(expand_queries(query, [[[-1.0, 0.0], [-0.6, 0.8]]], alpha=alpha)).all()


def test_expand_queries_without_neighbors_or_queries() -> None:
    queries = draw_embeddings(3)
    np.testing.assert_allclose(expand_queries(queries, np.empty((3, 0, 4))), queries, atol=1e-7)
    assert expand_queries(np.empty((0, 4)), np.empty((0, 2, 4))).shape == (0, 4)
    np.testing.assert_array_equal(expand_queries([[0.0, 0.0]], [[[1.0, 0.0]]]), [[0.0, 0.0]])


@pytest.mark.parametrize(
    ("neighbors", "alpha"),
    [
        (np.ones((2, 1, 4)), 1.0),
        (np.ones((3, 4)), 1.0),
        (np.full((3, 1, 4), np.nan), 1.0),
        (np.ones((3, 1, 4)), -1.0),
        (np.ones((3, 1, 4)), math.nan),
    ],
)
def test_expand_queries_refuses(neighbors: np.ndarray, alpha: float) -> None:
    with pytest.raises(InputError):
        expand_queries(draw_embeddings(3), neighbors, alpha=alpha)


@pytest.mark.parametrize("num_neighbors", [0, 1, 3, 100])
def test_augment_database_equals_a_slow_reference(num_neighbors: int) -> None:
    vectors = draw_embeddings(20)
    vectors[7] = vectors[3]  # an exact duplicate stands before the image itself
    expected = []
    for row, vector in enumerate(vectors):
        others = [other for other in range(20) if other != row]
        others.sort(key=lambda other: (-float(similarity(vector[None], vectors[other][None])[0, 0]), other))
        expected.append(expand_slowly(vector, vectors[others[:num_neighbors]], 3.0))
    np.testing.assert_allclose(augment_database(vectors, num_neighbors=num_neighbors), expected, atol=1e-6)


def test_augment_database_of_one_of_none_and_of_duplicates() -> None:
    one = draw_embeddings(1)
    np.testing.assert_array_equal(augment_database(one), one)
    assert augment_database(np.empty((0, 4), np.float32)).shape == (0, 4)
    same = np.repeat(one, 6, axis=0)
    np.testing.assert_allclose(augment_database(same), same, atol=1e-6)
    with pytest.raises(InputError, match="num_neighbors is -1"):
        augment_database(one, num_neighbors=-1)


def test_augment_database_changes_nothing_it_is_given() -> None:
    vectors = draw_embeddings(9)
    before = vectors.copy()
    augment_database(vectors)
    np.testing.assert_array_equal(vectors, before)


def re_rank_slowly(similarities: np.ndarray, num_queries: int, k1: int, k2: int, weight: float) -> np.ndarray:
    """Sets and loops, after the text of Zhong et al."""
    num_images = len(similarities)
    distance = [
        [0.0 if i == j else max(2 - 2 * float(similarities[i, j]), 0) for j in range(num_images)]
        for i in range(num_images)
    ]
    distance = [[value / (max(row) or 1) for value in row] for row in distance]
    order = [sorted(range(num_images), key=lambda j, i=i: (j != i, distance[i][j], j)) for i in range(num_images)]

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    encoded = []
    for i in range(num_images):
        members = reciprocal(i, k1)
        enlarged = set(members)
        for member in members:
            small = reciprocal(member, max(1, round(k1 / 2)))
            if len(small & members) > 2 / 3 * len(small) + 1e-9:
                enlarged |= small
        total = sum(math.exp(-distance[i][j]) for j in enlarged)
        encoded.append([math.exp(-distance[i][j]) / total if j in enlarged else 0.0 for j in range(num_images)])
    averaged = [
        [sum(encoded[j][n] for j in order[i][:k2]) / len(order[i][:k2]) for n in range(num_images)]
        for i in range(num_images)
    ]
    result = np.empty((num_queries, num_images - num_queries))
    for i in range(num_queries):
        for j in range(num_queries, num_images):
            low = sum(map(min, averaged[i], averaged[j]))
            high = sum(map(max, averaged[i], averaged[j]))
            result[i, j - num_queries] = (1 - weight) * (1 - low / high) + weight * distance[i][j]
    return result


@pytest.mark.parametrize(("k1", "k2", "weight"), [(5, 3, 0.3), (1, 1, 0.0), (4, 1, 0.5), (50, 50, 0.3), (2, 6, 1.0)])
def test_k_reciprocal_equals_a_slow_reference(k1: int, k2: int, weight: float) -> None:
    vectors = draw_embeddings(24)
    vectors[11] = vectors[4]
    similarities = similarity(vectors, vectors)
    found = k_reciprocal_distances(similarities, 5, k1=k1, k2=k2, distance_weight=weight)
    np.testing.assert_allclose(found, re_rank_slowly(similarities, 5, k1, k2, weight), atol=1e-9)


def test_k_reciprocal_by_hand() -> None:
    # Angles in degrees. The query at 0 is nearest to 30; but the images at -40 and -50 are each other's nearest, and
    # the one at 30 is nearest to 40. With k1 = 1 no image is reciprocal with the query, so that no set is shared:
    # every Jaccard distance is 1; 30 and 40 share theirs.
    angles = np.radians([0, 30, 40, -40, -50])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    distances = k_reciprocal_distances(vectors @ vectors.T, 1, k1=1, k2=1, distance_weight=0)
    np.testing.assert_allclose(distances, [[1, 1, 1, 1]], atol=1e-12)
    among = k_reciprocal_distances(vectors[1:] @ vectors[1:].T, 1, k1=1, k2=1, distance_weight=0)[0]
    # {30, 40} with weights 1 and exp(-d), d the squared distance over the row's largest
    near = (2 - 2 * math.cos(math.radians(10))) / (2 - 2 * math.cos(math.radians(80)))
    other = (2 - 2 * math.cos(math.radians(10))) / (2 - 2 * math.cos(math.radians(90)))
    own, theirs = math.exp(-near), math.exp(-other)
    low = theirs / (1 + theirs) + own / (1 + own)
    np.testing.assert_allclose(among, [1 - low / (2 - low), 1, 1], atol=1e-6)


def test_k_reciprocal_promotes_the_query_s_own_cluster() -> None:
    # 19 is nearer to the query at 0 than -20, but its own four nearest are others.
    angles = np.radians([0, 19, -20, -10, -15, -5, 26, 28, 30, 32])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    distances = k_reciprocal_distances(vectors @ vectors.T, 1, k1=4, k2=1)[0]
    assert distances[1] < distances[0]


def test_k_reciprocal_with_all_of_the_weight_on_the_distance_keeps_the_order() -> None:
    vectors = draw_embeddings(30)
    similarities = similarity(vectors, vectors)
    distances = k_reciprocal_distances(similarities, 3, distance_weight=1)
    np.testing.assert_array_equal(
        np.argsort(distances, axis=1, kind="stable"), np.argsort(-similarities[:3, 3:], axis=1, kind="stable")
    )


@given(st.integers(0, 12), st.integers(0, 5), st.integers(0, 10**6))
def test_k_reciprocal_is_finite_and_in_range(num_images: int, num_copies: int, seed: int) -> None:
    vectors = draw_embeddings(num_images + 1, 2, seed)
    vectors = np.concatenate([vectors, -vectors[: num_copies % 2], np.repeat(vectors[:1], num_copies, axis=0)])
    distances = k_reciprocal_distances(similarity(vectors, vectors), 1)
    assert distances.shape == (1, len(vectors) - 1)
    assert ((distances >= -1e-9) & (distances <= 1 + 1e-9)).all()


def test_k_reciprocal_follows_a_permutation_of_the_gallery() -> None:
    vectors = draw_embeddings(20)
    order = np.concatenate([[0], 1 + np.random.default_rng(5).permutation(19)])
    plain = k_reciprocal_distances(similarity(vectors, vectors), 1)[0]
    moved = k_reciprocal_distances(similarity(vectors[order], vectors[order]), 1)[0]
    np.testing.assert_allclose(moved, plain[order[1:] - 1], atol=1e-9)


@pytest.mark.parametrize(
    "settings", [{"k1": 0}, {"k2": 0}, {"distance_weight": 1.5}, {"distance_weight": math.nan}, {"num_queries": 9}]
)
def test_k_reciprocal_refuses(settings: dict[str, float]) -> None:
    with pytest.raises(InputError):
        k_reciprocal_distances(**{"similarities": np.eye(4), "num_queries": 1, **settings})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="square"):
        k_reciprocal_distances(np.ones((3, 4)), 1)


def score_superglobal_slowly(query: np.ndarray, images: np.ndarray, k: int, weight: float, pooled: int) -> list[float]:
    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    asked, rows = [float(value) for value in query], [[float(value) for value in row] for row in images]
    refined = []
    for number, row in enumerate(rows):
        others = sorted(
            ((dot(row, other), place) for place, other in enumerate(rows) if place != number),
            key=lambda pair: (-pair[0], pair[1]),
        )
        total, mass = list(row), 1.0
        for cosine, place in others[:k]:
            part = weight * max(cosine, 0.0)
            total = [value + part * other for value, other in zip(total, rows[place], strict=True)]
            mass += part
        refined.append([value / mass for value in total])
    first = [dot(asked, row) for row in refined]
    best = sorted(range(len(rows)), key=lambda place: -first[place])[:pooled]
    second = [max(refined[place][column] for place in best) for column in range(len(asked))]
    return [(one + dot(second, row)) / 2 for one, row in zip(first, rows, strict=True)]


@pytest.mark.parametrize(("num_images", "k", "weight", "pooled"), [(25, 9, 0.15, 10), (25, 3, 0.5, 1), (4, 9, 1.0, 10)])
def test_superglobal_equals_a_slow_reference(num_images: int, k: int, weight: float, pooled: int) -> None:
    query, images = draw_embeddings(1)[0], draw_embeddings(num_images, seed=1)
    found = superglobal_scores(query, images, num_neighbors=k, weight=weight, num_pooled=pooled)
    np.testing.assert_allclose(found, score_superglobal_slowly(query, images, k, weight, pooled), atol=1e-6)


def test_superglobal_by_hand() -> None:
    # s = 0.96, weight 0.48: refined (1.088, 0.984) / 1.48 and (0.984, 1.088) / 1.48; the first is the second query.
    images = [[0.8, 0.6], [0.6, 0.8]]
    found = superglobal_scores([1.0, 0.0], images, num_neighbors=1, weight=0.5, num_pooled=1)
    np.testing.assert_allclose(found, [0.861081, 0.818919], atol=1e-6)


def test_superglobal_of_none_one_and_duplicates() -> None:
    query = [1.0, 0.0]
    assert superglobal_scores(query, np.empty((0, 2))).shape == (0,)
    np.testing.assert_allclose(superglobal_scores(query, [[0.6, 0.8]]), [(0.6 + 1.0) / 2])
    same = superglobal_scores(query, [[0.6, 0.8]] * 3)
    assert np.ptp(same) < 1e-12
    away = superglobal_scores(query, [[0.6, 0.8], [-0.6, -0.8]], num_pooled=1)  # of no weight for each other
    np.testing.assert_allclose(away, [(0.6 + 1.0) / 2, (-0.6 - 1.0) / 2], atol=1e-6)


@pytest.mark.parametrize("settings", [{"num_neighbors": -1}, {"weight": -0.1}, {"num_pooled": 0}])
def test_superglobal_refuses_wrong_settings(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected"):
        superglobal_scores([1.0, 0.0], [[0.6, 0.8]], **settings)
    with pytest.raises(InputError, match="expected"):
        superglobal_scores([1.0, 0.0, 0.0], [[0.6, 0.8]])
