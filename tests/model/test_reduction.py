from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from vitrieve.errors import ConfigError
from vitrieve.model.reduction import build_reduction, fit_pca, fit_supervised_whitening


@pytest.fixture
def features() -> np.ndarray:
    generator = np.random.default_rng(0)
    return (generator.standard_normal((200, 12)) @ generator.standard_normal((12, 12)) + 3).astype(np.float32)


def test_fit_pca_agrees_with_scikit_learn(features: np.ndarray) -> None:
    ours = fit_pca(features, 5, fitted_on="train")
    theirs = PCA(5, svd_solver="full").fit(features.astype(np.float64))
    np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-6)
    np.testing.assert_allclose(ours.variances, theirs.explained_variance_, rtol=1e-8)
    cosines = np.abs((ours.components * theirs.components_).sum(axis=1))
    np.testing.assert_allclose(cosines, 1, atol=1e-6)


def test_fit_pca_hand_case() -> None:
    features = np.array([[0, 0], [2, 2], [4, 4], [1, 3], [3, 1]], dtype=np.float32)
    pca = fit_pca(features, 1, fitted_on="train")
    np.testing.assert_allclose(pca.mean, [2, 2])
    np.testing.assert_allclose(pca.components, [[2**-0.5, 2**-0.5]], rtol=1e-6)
    assert pca.fitted_on == "train"


def test_fit_pca_components_are_orthonormal_and_their_sign_is_fixed(features: np.ndarray) -> None:
    pca = fit_pca(features, 12, fitted_on="train")
    np.testing.assert_allclose(pca.components @ pca.components.T, np.eye(12), atol=1e-5)
    assert (np.diff(pca.variances) <= 0).all()
    again = fit_pca(np.ascontiguousarray(features[::-1]), 12, fitted_on="train")
    np.testing.assert_allclose(again.components, pca.components, atol=1e-4)
    assert (pca.components[np.arange(12), np.abs(pca.components).argmax(axis=1)] > 0).all()


@pytest.mark.parametrize("num_images", [0, 1, 5])
def test_trap_pca_refuses_directions_without_variance(features: np.ndarray, num_images: int) -> None:
    with pytest.raises(ConfigError, match=r"vary in \d directions only"):
        fit_pca(features[:num_images], 5, fitted_on="train")


def test_trap_pca_of_a_singular_covariance_is_real_and_finite(features: np.ndarray) -> None:
    doubled = np.concatenate([features, features], axis=1)  # rank 12 of 24
    pca = fit_pca(doubled, 12, fitted_on="train")
    assert np.isrealobj(pca.components)
    assert np.isfinite(pca.components).all()
    with pytest.raises(ConfigError, match="vary in 12 directions only"):
        fit_pca(doubled, 13, fitted_on="train")


@pytest.mark.parametrize("num_components", [0, 13])
def test_fit_pca_refuses_impossible_dimensions(features: np.ndarray, num_components: int) -> None:
    with pytest.raises(ConfigError, match="choose 1 to 12"):
        fit_pca(features, num_components, fitted_on="train")


def test_build_reduction_projects_like_the_fit(features: np.ndarray) -> None:
    pca = fit_pca(features, 4, fitted_on="train")
    reduction = build_reduction(pca)
    projected = reduction(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(projected, (features - pca.mean) @ pca.components.T, atol=1e-4)
    np.testing.assert_allclose(projected.var(axis=0, ddof=1), pca.variances, rtol=1e-4)
    assert not list(reduction.parameters())


def test_fit_pca_whitened_features_vary_equally(features: np.ndarray) -> None:
    pca = fit_pca(features, 5, fitted_on="train", is_whitened=True)
    projected = (features.astype(np.float64) - pca.mean) @ pca.components.T.astype(np.float64)
    np.testing.assert_allclose(np.cov(projected.T), np.eye(5), atol=1e-4)
    plain = fit_pca(features, 5, fitted_on="train")
    np.testing.assert_allclose(pca.components * np.sqrt(pca.variances)[:, None], plain.components, atol=1e-5)
    assert (plain.kind, pca.kind) == ("pca", "pca_whitening")


def test_trap_whitening_divides_by_no_variance_below_the_floor() -> None:
    generator = np.random.default_rng(0)
    features = (generator.standard_normal((500, 3)) * [1.0, 0.1, 0.003]).astype(np.float32)  # variances 1, 1e-2, 9e-6
    lengths = np.linalg.norm(fit_pca(features, 3, fitted_on="train", is_whitened=True).components, axis=1)
    np.testing.assert_allclose(lengths / lengths[0], [1.0, 10.0, 100.0], rtol=0.1)  # not 333


def make_pairs(num_classes: int = 150, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Two images a class, which differ a lot along some directions and little along others; mixed by a matrix."""
    generator = np.random.default_rng(3)
    centers = generator.standard_normal((num_classes, width))
    noise = generator.standard_normal((2, num_classes, width)) * np.linspace(0.05, 2.0, width)
    mixing = generator.standard_normal((width, width))
    features = np.concatenate([centers + noise[0], centers + noise[1]]) @ mixing + 5
    return features, np.stack([np.arange(num_classes), np.arange(num_classes) + num_classes], axis=1)


def reference_whitenlearn(features: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Radenović's ``whitenlearn`` by Cholesky, with the mean of all features: the projected features, ``(N, D)``."""
    differences = (features[pairs[:, 0]] - features[pairs[:, 1]]).T
    root = np.linalg.inv(np.linalg.cholesky(differences @ differences.T / len(pairs)))
    whitened = root @ (features - features.mean(axis=0)).T
    _, _, rows = np.linalg.svd(whitened.T, full_matrices=False)
    return (rows @ whitened).T


def test_fit_supervised_whitening_agrees_with_the_cholesky_way() -> None:
    features, pairs = make_pairs()
    fitted = fit_supervised_whitening(features, pairs, 6, fitted_on="train")
    found = (features - fitted.mean) @ fitted.components.T
    expected = reference_whitenlearn(features, pairs)
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found, expected * signs, atol=1e-3)
    np.testing.assert_allclose(found.var(axis=0, ddof=1), fitted.variances, rtol=1e-3)
    assert fitted.kind == "supervised_whitening"
    assert (np.diff(fitted.variances) <= 0).all()


def test_fit_supervised_whitening_brings_pairs_together() -> None:
    features, pairs = make_pairs()
    held_out = 100
    fitted = fit_supervised_whitening(features, pairs[:held_out], 4, fitted_on="train")
    plain = fit_pca(features, 4, fitted_on="train")

    def recall(components: np.ndarray, mean: np.ndarray) -> float:
        embeddings = (features - mean) @ components.T
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        similarity = embeddings[pairs[held_out:, 0]] @ embeddings[pairs[held_out:, 1]].T
        return float((similarity.argmax(axis=1) == np.arange(len(similarity))).mean())

    assert recall(fitted.components, fitted.mean) > recall(plain.components, plain.mean) + 0.1


def test_trap_supervised_whitening_of_few_pairs_is_finite() -> None:
    features, pairs = make_pairs()
    fitted = fit_supervised_whitening(features, pairs[:2], 5, fitted_on="train")  # rank 2 of 6: the floor decides
    assert np.isrealobj(fitted.components)
    assert np.isfinite(fitted.components).all()


def test_fit_supervised_whitening_refuses_what_says_nothing() -> None:
    features, pairs = make_pairs()
    with pytest.raises(ConfigError, match="has no two images of the same thing"):
        fit_supervised_whitening(features, pairs[:0], 2, fitted_on="train")
    with pytest.raises(ConfigError, match="the 2 pairs of 'train' are of equal images"):
        fit_supervised_whitening(features, np.array([[0, 0], [1, 1]]), 2, fitted_on="train")
    with pytest.raises(ConfigError, match="choose 1 to 6"):
        fit_supervised_whitening(features, pairs, 7, fitted_on="train")
