"""Reduction: PCA to fewer dimensions, with or without whitening, or a linear head, before the L2 normalization.

Every eigendecomposition is of a symmetric matrix, in float64, by the symmetric solver (``eigh``): the general one can
return complex values. No eigenvalue is divided by below a floor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vitrieve.errors import ConfigError
from vitrieve.model.artifact import ReductionKind

MIN_VARIANCE_FRACTION = 1e-6
"""Directions with less than this share of the largest variance are noise of the arithmetic: they are not kept."""
WHITENING_FLOOR_FRACTION = 1e-4
"""Whitening divides by no variance below this share of the largest, so that no direction grows more than a hundredfold
against another (assumed, not measured)."""


@dataclass(frozen=True, kw_only=True)
class Pca:
    """A linear reduction fitted on a set of features.

    Attributes:
        mean: Mean of the set, ``(D,)`` float32.
        components: Rows by falling variance, ``(E, D)`` float32: orthonormal for ``pca``, the same divided by their
            standard deviations for ``pca_whitening``, of any length and angle for ``supervised_whitening`` and
            ``linear_head``, and rows of the identity for ``prefix``.
        variances: Variance that orders the rows, ``(E,)`` float64: before the division by ``pca_whitening``, after
            the whitening within pairs by ``supervised_whitening``; of ``linear_head`` the squared length of each row.
        fitted_on: Name of the set.
        kind: Kind of the linear map.
    """

    mean: np.ndarray
    components: np.ndarray
    variances: np.ndarray
    fitted_on: str
    kind: ReductionKind = "pca"


def fit_pca(features: np.ndarray, num_components: int, *, fitted_on: str, is_whitened: bool = False) -> Pca:
    """Find the principal components by the eigenvectors of the covariance.

    Each row's sign is fixed (its largest entry is positive), so that machines agree.

    Args:
        features: ``(N, D)``, pooled and *not* normalized; of training images, never of the test set.
        num_components: Dimensions to keep, E.
        fitted_on: Name of the set, recorded in the encoder.
        is_whitened: Divide each row by the standard deviation along it, so that all directions vary equally.

    Returns:
        The components.

    Raises:
        ConfigError: Fewer directions with variance than ``num_components``.
    """
    _check_num_components(num_components, features.shape[1])
    centered, mean = _center(features)
    directions, variances = _find_directions(centered, num_components, fitted_on)
    if is_whitened:
        directions = directions / np.sqrt(_raise_to_floor(variances))[:, None]
    return Pca(
        mean=mean.astype(np.float32),
        components=np.ascontiguousarray(directions, dtype=np.float32),
        variances=variances,
        fitted_on=fitted_on,
        kind="pca_whitening" if is_whitened else "pca",
    )


def fit_supervised_whitening(features: np.ndarray, pairs: np.ndarray, num_components: int, *, fitted_on: str) -> Pca:
    """Learn a whitening from matching pairs: undo what varies within pairs, then keep what varies most of the rest.

    With the covariance of matching pairs ``C = mean (x_i - x_j)(x_i - x_j)'``, features are multiplied by
    ``C^(-1/2)`` and a PCA follows. Where pairs vary in fewer directions than there are, the floor decides.

    Args:
        features: ``(N, D)``, pooled and *not* normalized; of training images, never of the test set.
        pairs: ``(P, 2)`` rows of ``features`` that show the same thing.
        num_components: Dimensions to keep, E.
        fitted_on: Name of the set, recorded in the encoder.

    Returns:
        The mean, and the whitening and projection as one matrix.

    Raises:
        ConfigError: No pair, pairs that do not differ, or fewer directions with variance than ``num_components``.

    Source:
        Radenović, Tolias and Chum, arXiv:1711.02512, section 3.4, after Mikolajczyk and Matas 2007; their
        ``whitenlearn``. Differs in the symmetric root by ``eigh`` with a floor, where they factorise by Cholesky and
        add to the diagonal until that works (the results agree up to signs), and in the mean of all features, where
        their code takes that of the queries.
    """
    _check_num_components(num_components, features.shape[1])
    if len(pairs) == 0:
        raise ConfigError(
            f"{fitted_on!r} has no two images of the same thing, from which supervised whitening learns; give a set "
            "with classes of several images, or whiten without supervision (--kind pca_whitening)."
        )
    centered, mean = _center(features)
    differences = centered[pairs[:, 0]] - centered[pairs[:, 1]]  # (P, D)
    variances, vectors = np.linalg.eigh(differences.T @ differences / len(pairs))
    if not variances[-1] > 0:
        raise ConfigError(
            f"the {len(pairs)} pairs of {fitted_on!r} are of equal images: nothing to learn from. Remove the copies "
            "(vitrieve data check finds them), or whiten without supervision (--kind pca_whitening)."
        )
    whitening = (vectors / np.sqrt(_raise_to_floor(variances))) @ vectors.T  # (D, D), symmetric
    directions, variances = _find_directions(centered @ whitening, num_components, fitted_on)
    return Pca(
        mean=mean.astype(np.float32),
        components=fix_signs(directions @ whitening).astype(np.float32),  # (E, D)
        variances=variances,
        fitted_on=fitted_on,
        kind="supervised_whitening",
    )


def _check_num_components(num_components: int, width: int) -> None:
    if not 1 <= num_components <= width:
        raise ConfigError(f"cannot reduce {width} dimensions to {num_components}; choose 1 to {width}.")


def _center(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the features without their mean, and the mean, in float64."""
    values = features.astype(np.float64)
    mean = values.mean(axis=0) if len(values) else np.zeros(values.shape[1])
    return values - mean, mean


def _find_directions(centered: np.ndarray, num_components: int, fitted_on: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the orthonormal directions of largest variance ``(E, D)``, and the variances ``(E,)``, falling."""
    num_images = len(centered)
    variances, vectors = np.linalg.eigh(centered.T @ centered / max(num_images - 1, 1))  # rising
    variances, vectors = variances[::-1], vectors[:, ::-1]
    num_usable = int((variances > max(MIN_VARIANCE_FRACTION * variances[0], 0.0)).sum())
    if num_components > num_usable:
        raise ConfigError(
            f"{num_images} features of {fitted_on!r} vary in {num_usable} directions only; fit the reduction to "
            f"{num_components} dimensions on more images, or choose fewer dimensions."
        )
    return fix_signs(vectors[:, :num_components].T), variances[:num_components].copy()


def fix_signs(rows: np.ndarray) -> np.ndarray:
    """Turn each row so that its largest entry is positive."""
    largest = rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)]
    return np.ascontiguousarray(rows * np.sign(largest)[:, None])


def _raise_to_floor(variances: np.ndarray) -> np.ndarray:
    floor: float = WHITENING_FLOOR_FRACTION * variances.max()
    return variances.clip(min=floor)


class Reduction(nn.Module):
    """A fitted PCA, whitening or head as part of an encoder: ``(B, D)`` to ``(B, E)``, float32, not trained with it.

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
