"""``python -m vitrieve.reproduce.analyze`` writes what figures 2, 3 and 5 show of one encoder into a small JSON file.

These are the energy of the principal components and the histograms of the similarities of the test images of a data
set. So no embeddings need to be kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from vitrieve.choices import Device
from vitrieve.evaluation.analysis import SimilarityHistogram, count_similarities, cumulative_energy
from vitrieve.evaluation.measure import Measurement
from vitrieve.writing import check_files, write_text_durably

DECIMALS = 6


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure the energy of an encoder's principal components and its similarities, for the paper's figures."""

    encoder: str
    """A run, an encoder folder or a weights name."""
    data: str
    """A source; its test split is embedded."""
    out: Path
    """JSON file to write."""
    device: Device = "auto"
    """Device to compute on; auto: a GPU where torch sees one."""
    image_size: int | None = None
    """Side of the square input in pixels; None: the encoder's own."""


def run(arguments: Arguments) -> None:
    """Embed the test images and write the file.

    Raises:
        ConfigError: The file cannot be written; as ``check_files``, before anything is read.
        ArtifactError: As ``check_files``.
    """
    from vitrieve.data.sources import read_source
    from vitrieve.embed.collection import embed_images
    from vitrieve.evaluation.measure import measure
    from vitrieve.evaluation.protocols import select_records
    from vitrieve.runtime.encoder import load_encoder

    check_files(arguments.out)
    dataset = read_source(arguments.data)
    encoder = load_encoder(arguments.encoder, image_size=arguments.image_size, device=arguments.device)
    embeddings = embed_images(encoder, select_records(dataset), show_progress=True)
    content = describe_measurement(measure(dataset, embeddings, encoder.name))
    write_text_durably(arguments.out, json.dumps(content) + "\n")


def describe_measurement(measurement: Measurement) -> dict[str, Any]:
    """Compute the energy and the histograms, as plain JSON values."""
    energy = cumulative_energy(np.asarray(measurement.vectors))
    histogram = count_similarities(measurement)
    return {
        "energy": np.round(energy, DECIMALS).tolist(),
        "positive": np.round(histogram.positive, DECIMALS).tolist(),
        "negative": np.round(histogram.negative, DECIMALS).tolist(),
        "positive_mean": histogram.positive_mean,
        "negative_mean": histogram.negative_mean,
    }


def read_histogram(analysis: Mapping[str, Any]) -> SimilarityHistogram:
    """Read the histograms back from ``describe_measurement``."""
    return SimilarityHistogram(
        edges=np.linspace(-1, 1, len(analysis["positive"]) + 1),
        positive=np.array(analysis["positive"]),
        negative=np.array(analysis["negative"]),
        positive_mean=analysis["positive_mean"],
        negative_mean=analysis["negative_mean"],
    )


if __name__ == "__main__":
    run(tyro.cli(Arguments, prog="python -m vitrieve.reproduce.analyze"))
