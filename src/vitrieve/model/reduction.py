"""Reduction: PCA to fewer dimensions, before the L2 normalisation. Next file: ``encoder.py``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vitrieve.errors import ConfigError

MIN_VARIANCE_FRACTION = 1e-6
"""Directions with less than this share of the largest variance are noise of the arithmetic: they are not kept."""


@dataclass(frozen=True, kw_only=True)
class Pca:
    """The principal components of a set of features.

    Attributes:
        mean: Mean of the set, ``(D,)`` float32.
        components: Orthonormal rows, by falling variance, ``(E, D)`` float32.
        variances: Variance along each row, ``(E,)`` float64.
        fitted_on: Name of the set.
    """

    mean: np.ndarray
    components: np.ndarray
    variances: np.ndarray
    fitted_on: str


def fit_pca(features: np.ndarray, num_components: int, *, fitted_on: str) -> Pca:
    """Find the principal components by the eigenvectors of the covariance.

    The symmetric solver (``eigh``) in float64: the general one can return complex values for a symmetric matrix. Each
    row's sign is fixed (its largest entry is positive), so that machines agree.

    Args:
        features: ``(N, D)``, pooled and *not* normalised; of training images, never of the test set.
        num_components: Dimensions to keep, E.
        fitted_on: Name of the set, recorded in the encoder.

    Returns:
        The components.

    Raises:
        ConfigError: Fewer directions with variance than ``num_components``.
    """
    num_images, width = features.shape
    if not 1 <= num_components <= width:
        raise ConfigError(f"cannot reduce {width} dimensions to {num_components}; choose 1 to {width}.")
    values = features.astype(np.float64)
    mean = values.mean(axis=0) if num_images else np.zeros(width)
    covariance = (values - mean).T @ (values - mean) / max(num_images - 1, 1)  # (D, D)
    variances, vectors = np.linalg.eigh(covariance)  # rising
    variances, vectors = variances[::-1], vectors[:, ::-1]
    num_usable = int((variances > max(MIN_VARIANCE_FRACTION * variances[0], 0.0)).sum())
    if num_components > num_usable:
        raise ConfigError(
            f"{num_images} features of {fitted_on!r} vary in {num_usable} directions only; fit the reduction to "
            f"{num_components} dimensions on more images, or choose fewer dimensions."
        )
    components = vectors[:, :num_components].T  # (E, D)
    largest = components[np.arange(num_components), np.abs(components).argmax(axis=1)]
    components = components * np.sign(largest)[:, None]
    return Pca(
        mean=mean.astype(np.float32),
        components=np.ascontiguousarray(components, dtype=np.float32),
        variances=variances[:num_components].copy(),
        fitted_on=fitted_on,
    )


class Reduction(nn.Module):
    """A fitted PCA as part of an encoder: ``(B, D)`` to ``(B, E)``, float32, not trained.

    Args:
        width: Dimensions before, D.
        num_components: Dimensions after, E.
        fitted_on: Name of the set it was fitted on.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, width: int, num_components: int, fitted_on: str) -> None:
        super().__init__()
        self.fitted_on = fitted_on
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("components", torch.zeros(num_components, width))

    def forward(self, features: Tensor) -> Tensor:
        """Project features; must run outside autocast, which would make the product bf16."""
        return (features - self.mean) @ self.components.T  # (B, E)


def build_reduction(pca: Pca) -> Reduction:
    """Make a module of fitted components."""
    num_components, width = pca.components.shape
    reduction = Reduction(width, num_components, pca.fitted_on)
    reduction.mean.copy_(torch.from_numpy(pca.mean))
    reduction.components.copy_(torch.from_numpy(pca.components))
    return reduction
