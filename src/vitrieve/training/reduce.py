"""The reduction of an encoder, fitted on training images: at the end of a run, or later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from vitrieve.config import Precision
from vitrieve.data.decode import read_image
from vitrieve.data.preprocess import preprocess
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.errors import ConfigError
from vitrieve.model.artifact import ReductionKind
from vitrieve.model.encoder import ImageEncoder, add_reduction
from vitrieve.model.reduction import fit_pca, fit_supervised_whitening
from vitrieve.progress import track
from vitrieve.runtime.device import resolve_precision
from vitrieve.runtime.engine import choose_batch_size

PAIRS_SEED = 0
"""Which images of a class become pairs is drawn from this."""


def require_reducible(embedding_dim: int, width: int, num_images: int) -> None:
    """Refuse before a run what its PCA would refuse at the end.

    Args:
        embedding_dim: Dimensions to keep.
        width: Dimensions that the encoder pools.
        num_images: Training images.

    Raises:
        ConfigError: More dimensions than there are, or than so few images can vary in.
    """
    num_most = min(width, num_images - 1)
    if embedding_dim > num_most:
        raise ConfigError(
            f"embedding_dim is {embedding_dim}; expected at most {num_most}, for an encoder of {width} "
            f"dimensions and {num_images} training images."
        )


def reduce_encoder(
    encoder: ImageEncoder,
    records: Sequence[ImageRecord],
    embedding_dim: int,
    *,
    fitted_on: str,
    precision: Precision = "auto",
    kind: ReductionKind = "pca",
    pairs: np.ndarray | None = None,
) -> ImageEncoder:
    """Fit a PCA or a whitening on training images, without augmentation, and put it into the encoder.

    Args:
        encoder: In evaluation mode, without a reduction, on any device; its backbone is shared with the result.
        records: Readable training images, more than ``embedding_dim``; never test images.
        embedding_dim: Dimensions to keep.
        fitted_on: Name of the set, recorded in the encoder.
        precision: Of the matrix products.
        kind: What to fit.
        pairs: ``(P, 2)`` rows of ``records`` that match (``find_pairs``), for ``supervised_whitening``.

    Raises:
        ConfigError: The images vary in fewer directions than asked for, no pairs, or a reduction that is there already.
    """
    device = next(encoder.parameters()).device
    batch_size = choose_batch_size(device.type)
    batches = track(_prepare(encoder, records, batch_size), "fit PCA", total=len(records), weight=batch_size)
    is_bf16 = resolve_precision(precision, device.type) == "bf16"
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
        features = [encoder.pool(pixels.to(device)).float().cpu().numpy() for pixels in batches]
    if kind == "supervised_whitening":
        assert pairs is not None
        fitted = fit_supervised_whitening(np.concatenate(features), pairs, embedding_dim, fitted_on=fitted_on)
    else:
        is_whitened = kind == "pca_whitening"
        fitted = fit_pca(np.concatenate(features), embedding_dim, fitted_on=fitted_on, is_whitened=is_whitened)
    return add_reduction(encoder, fitted).eval()


def find_pairs(dataset: Dataset, records: Sequence[ImageRecord]) -> np.ndarray:
    """List matching pairs among training images, for supervised whitening.

    The data set's own pairs where it lists them. Otherwise the images of each class in a random ring, each with the
    next: as many pairs as images (one for a class of two), so that a large class counts by its size, not its square.

    Args:
        dataset: May list ``positive_pairs``.
        records: Training images; pairs with any other image are left out.

    Returns:
        ``(P, 2)`` rows of ``records``; P may be 0.
    """
    rows = {record.image_id: row for row, record in enumerate(records)}
    if dataset.positive_pairs:
        pairs = [(rows[one], rows[other]) for one, other in dataset.positive_pairs if one in rows and other in rows]
    else:
        pairs = _ring_pairs(records)
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _ring_pairs(records: Sequence[ImageRecord]) -> list[tuple[int, int]]:
    of_label: dict[int, list[int]] = {}
    for row, record in enumerate(records):
        of_label.setdefault(record.label, []).append(row)
    generator = np.random.default_rng(PAIRS_SEED)
    pairs = []
    for label in sorted(of_label):
        ring = generator.permutation(of_label[label]).tolist()
        num_pairs = len(ring) if len(ring) > 2 else len(ring) - 1
        pairs += [(ring[place], ring[(place + 1) % len(ring)]) for place in range(num_pairs)]
    return pairs


def _prepare(encoder: ImageEncoder, records: Sequence[ImageRecord], batch_size: int) -> Iterator[torch.Tensor]:
    preprocessing = encoder.spec.preprocessing
    for start in range(0, len(records), batch_size):
        images = [read_image(record) for record in records[start : start + batch_size]]
        yield torch.from_numpy(np.stack([preprocess(image, preprocessing) for image in images]))
