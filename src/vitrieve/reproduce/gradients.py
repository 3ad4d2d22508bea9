"""``python -m vitrieve.reproduce.gradients`` measures in how many ways the contrastive gradient points (figure 4)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import tyro
from torch import Tensor

from vitrieve.artifacts import read_manifest
from vitrieve.config import Config, Device
from vitrieve.data.check import find_readable
from vitrieve.data.holdout import split_for_training
from vitrieve.data.loader import Batch, TrainingLoader
from vitrieve.data.sources import read_source
from vitrieve.model.encoder import ImageEncoder, read_encoder
from vitrieve.objective.contrastive import contrastive_loss
from vitrieve.objective.memory import MemoryRows
from vitrieve.runtime.device import resolve_device
from vitrieve.settings import config_from_json
from vitrieve.training.compute import move_batch
from vitrieve.writing import check_files, write_text_durably

NUM_BATCHES = 16
"""With 64 images a batch these are about a thousand gradients: more than an embedding has dimensions."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure the nuclear norm of the covariance of the contrastive gradient's directions, after training."""

    run: Path
    """A run of an IRT recipe; its margin, sampling and seed are taken."""
    data: str
    """The source that it was trained on; training images are embedded."""
    out: Path
    """JSON file to write."""
    device: Device = "auto"
    """Device to compute on; auto: a GPU where torch sees one."""
    num_batches: int = NUM_BATCHES
    """Training batches whose gradients are taken."""


def run(arguments: Arguments) -> None:
    """Compute the gradients and write the file.

    Raises:
        ConfigError: The file cannot be written; as ``check_files``, before anything is read.
        ArtifactError: As ``check_files``.
    """
    check_files(arguments.out)
    config = config_from_json(Config, read_manifest(arguments.run, "run")["config"])
    encoder = read_encoder(arguments.run / "encoder").to(resolve_device(arguments.device))
    split = split_for_training(read_source(arguments.data), is_holdout=config.train.holdout)
    readable = find_readable(split.fit, max_bad_fraction=config.train.max_bad_fraction)
    loader = TrainingLoader(
        readable.records,
        config.loader,
        encoder.spec.preprocessing,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
    )
    margin = config.objective.contrastive.margin
    gradients = collect_gradients(encoder, loader.batches(0, arguments.num_batches), margin)
    directions = normalize_directions(gradients)
    content = {
        "nuclear_norm": nuclear_norm_of_covariance(directions),
        "num_directions": len(directions),
        "num_without_gradient": len(gradients) - len(directions),
        "margin": margin,
    }
    write_text_durably(arguments.out, json.dumps(content) + "\n")


def collect_gradients(encoder: ImageEncoder, batches: Iterable[Batch], margin: float) -> npt.NDArray[np.float64]:
    """Compute the gradient of Eq. 1 with respect to each embedding of some training batches.

    The memory holds the batches before, embedded with the same weights, as it does once training moves little.

    Args:
        encoder: Encoder in evaluation mode, on any device; not changed.
        batches: Training batches, in order.
        margin: β of Eq. 1.

    Returns:
        ``(N, E)``, a row for each image, with zeros where no pair of it costs anything.
    """
    remembered: list[tuple[Tensor, Tensor, Tensor]] = []
    gradients = []
    device = next(encoder.parameters()).device
    for batch in batches:
        batch = move_batch(batch, device)
        with torch.inference_mode():
            embedded = encoder(batch.pixels)
        embeddings = embedded.clone().double().requires_grad_()
        memory = None
        if remembered:
            vectors, labels, rows = (torch.cat(parts) for parts in zip(*remembered, strict=True))
            memory = MemoryRows(vectors, labels, rows)
        loss = contrastive_loss(embeddings, batch.labels, margin=margin, rows=batch.rows, memory=memory)
        (gradient,) = torch.autograd.grad(loss, embeddings)
        gradients.append(gradient.cpu().numpy())
        remembered.append((embeddings.detach(), batch.labels, batch.rows))
    return np.concatenate(gradients)


def normalize_directions(gradients: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scale gradients to unit length; those of length zero have no direction and are left out.

    >>> normalize_directions(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8]]
    """
    lengths = np.linalg.norm(gradients, axis=1)
    return np.asarray(gradients[lengths > 0] / lengths[lengths > 0, None])


def nuclear_norm_of_covariance(directions: npt.NDArray[np.float64]) -> float:
    """Compute the nuclear norm, the sum of singular values, of the covariance of unit directions.

    Args:
        directions: ``(N, E)``, rows of unit length.

    Returns:
        A number in [0, 1]: 0 where all point the same way (or there is none), 1 where they cancel. A covariance is
        positive semi-definite, so this is its trace, and for unit directions 1 minus the squared length of their mean.

    Source: El-Nouby et al., arXiv:2102.05644, figure 4, whose normalization is not stated.

    >>> nuclear_norm_of_covariance(np.array([[1.0, 0.0], [-1.0, 0.0]]))
    1.0
    """
    if not len(directions):
        return 0.0
    centered = directions - directions.mean(axis=0)
    return float(np.linalg.svd(centered.T @ centered / len(directions), compute_uv=False).sum())


if __name__ == "__main__":
    run(tyro.cli(Arguments, prog="python -m vitrieve.reproduce.gradients"))
