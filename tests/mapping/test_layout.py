"""The places of pictures: good on real pictures, the same for one seed, and there for one, two and equal pictures."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from vitrieve.errors import ConfigError
from vitrieve.mapping.layout import find_principal_components, lay_out, measure_layout
from vitrieve.mapping.neighbors import find_neighbors
from vitrieve.similarity import FloatArray, normalize

needs_tsne = pytest.mark.skipif(importlib.util.find_spec("openTSNE") is None, reason="needs vitrieve[map]")


@pytest.fixture(scope="module")
def digits() -> tuple[FloatArray, np.ndarray]:
    """Scans of 900 written digits of 8 x 8 pixels, as unit vectors, and which digit each is."""
    loaded: Any = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn").load_digits()
    return normalize(loaded.data[:900].astype(np.float32)), loaded.target[:900]


@needs_tsne
def test_layout_of_real_pictures_keeps_their_neighbors(digits: tuple[FloatArray, np.ndarray]) -> None:
    from sklearn.manifold import trustworthiness

    vectors, labels = digits
    places = lay_out(vectors, find_neighbors(vectors, 30))
    assert places.shape == (900, 2)
    assert places.dtype == np.float32
    assert np.abs(places).max() == pytest.approx(1)
    assert trustworthiness(vectors, places, n_neighbors=10, metric="cosine") > 0.98
    nearest = find_nearest_places(places, 1)[:, 0]
    assert np.mean(labels[nearest] == labels) > 0.95
    components = find_principal_components(vectors)
    assert measure_layout(vectors, places)["neighbor_recall"] > 0.5
    assert measure_layout(vectors, components.astype(np.float32))["neighbor_recall"] < 0.3


@needs_tsne
def test_one_seed_gives_one_layout_bit_for_bit(digits: tuple[FloatArray, np.ndarray]) -> None:
    vectors = digits[0][:200]
    neighbors = find_neighbors(vectors, 30)
    first = lay_out(vectors, neighbors, seed=3)
    assert np.array_equal(first, lay_out(vectors, neighbors, seed=3))
    assert not np.array_equal(first, lay_out(vectors, neighbors, seed=4))


@needs_tsne
def test_copies_get_places_of_their_own() -> None:
    vectors = normalize(np.repeat(np.random.default_rng(0).normal(size=(5, 6)), 4, axis=0).astype(np.float32))
    places = lay_out(vectors, find_neighbors(vectors, 30))
    assert np.isfinite(places).all()
    assert len(np.unique(places, axis=0)) == 20


@pytest.mark.parametrize("num_images", [1, 2, 3, 7])
def test_few_pictures_are_placed_without_a_library(num_images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrieve.mapping.layout.find_spec", lambda _: None)
    vectors = np.eye(8, dtype=np.float32)[:num_images]
    places = lay_out(vectors, find_neighbors(vectors, 30))
    assert places.shape == (num_images, 2)
    assert np.abs(places).max() == (0 if num_images == 1 else pytest.approx(1))


def test_equal_pictures_are_placed_in_the_middle() -> None:
    vectors = np.tile(np.float32([[0.6, 0.8]]), (3, 1))
    assert lay_out(vectors, find_neighbors(vectors, 30)).tolist() == [[0, 0]] * 3


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrieve.mapping.layout.find_spec", lambda _: None)
    vectors = np.eye(9, dtype=np.float32)
    with pytest.raises(ConfigError, match=r"pip install 'vitrieve\[map\]'"):
        lay_out(vectors, find_neighbors(vectors, 30))


def test_principal_components_equal_those_of_the_singular_value_decomposition() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    centered = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    left, sizes, _ = np.linalg.svd(centered, full_matrices=False)
    assert np.allclose(np.abs(find_principal_components(vectors)), np.abs(left[:, :2] * sizes[:2]))


def test_vectors_of_one_dimension_have_one_component() -> None:
    assert find_principal_components(np.float32([[1], [3]])).tolist() == [[-1, 0], [1, 0]]


@pytest.mark.parametrize("num_images", [8, 60])
def test_measure_layout_equals_plain_definitions(num_images: int) -> None:
    manifold: Any = pytest.importorskip("sklearn.manifold", reason="needs scikit-learn")
    generator = np.random.default_rng(0)
    vectors = normalize(generator.normal(size=(num_images, 5)).astype(np.float32))
    places = generator.normal(size=(num_images, 2)).astype(np.float32)
    k = min(10, (num_images - 2) // 2)
    found = measure_layout(vectors, places)
    expected = manifold.trustworthiness(vectors, places, n_neighbors=k, metric="cosine")
    assert found["trustworthiness"] == pytest.approx(expected, abs=1e-6)
    near, alike = find_nearest_places(places, k), find_neighbors(vectors, k).rows
    shares = [len({*one} & {*other}) / k for one, other in zip(near.tolist(), alike.tolist(), strict=True)]
    assert found["neighbor_recall"] == pytest.approx(np.mean(shares))


def test_measure_layout_says_nothing_of_three_pictures() -> None:
    assert measure_layout(np.eye(3, dtype=np.float32), np.zeros((3, 2), dtype=np.float32)) == {}


def find_nearest_places(places: np.ndarray, k: int) -> np.ndarray:
    distances = np.square(places[:, None] - places[None], dtype=np.float64).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    return np.argsort(distances, axis=1, kind="stable")[:, :k]
