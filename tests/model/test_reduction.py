from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from vitrieve.errors import ConfigError
from vitrieve.model.reduction import build_reduction, fit_pca


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
