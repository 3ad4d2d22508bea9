"""The PCA at the end of a run, fitted on the images it trained on. Next folder: ``embed``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from vitrieve.config import Precision
from vitrieve.data.decode import read_image
from vitrieve.data.preprocess import preprocess
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ConfigError
from vitrieve.model.encoder import ImageEncoder, add_reduction
from vitrieve.model.reduction import fit_pca
from vitrieve.progress import track
from vitrieve.runtime.precision import resolve_precision

BATCH_SIZE = 16
"""Small batches stay in the processor's cache."""


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
            f"model.embedding_dim is {embedding_dim}; expected at most {num_most}, for an encoder of {width} "
            f"dimensions and {num_images} training images."
        )


def reduce_encoder(
    encoder: ImageEncoder,
    records: Sequence[ImageRecord],
    embedding_dim: int,
    *,
    fitted_on: str,
    precision: Precision = "auto",
) -> ImageEncoder:
    """Fit a PCA on training images, without augmentation, and put it into the encoder.

    Args:
        encoder: In evaluation mode; shared with the result.
        records: Readable training images, more than ``embedding_dim``; never test images.
        embedding_dim: Dimensions to keep.
        fitted_on: Name of the set, recorded in the encoder.
        precision: Of the matrix products.

    Raises:
        ConfigError: The images vary in fewer directions than asked for.
    """
    batches = track(_prepare(encoder, records), "fit PCA", total=len(records), weight=BATCH_SIZE)
    is_bf16 = resolve_precision(precision) == "bf16"
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        features = [encoder.pool(pixels).float().numpy() for pixels in batches]
    return add_reduction(encoder, fit_pca(np.concatenate(features), embedding_dim, fitted_on=fitted_on)).eval()


def _prepare(encoder: ImageEncoder, records: Sequence[ImageRecord]) -> Iterator[torch.Tensor]:
    preprocessing = encoder.spec.preprocessing
    for start in range(0, len(records), BATCH_SIZE):
        images = [read_image(record) for record in records[start : start + BATCH_SIZE]]
        yield torch.from_numpy(np.stack([preprocess(image, preprocessing) for image in images]))
