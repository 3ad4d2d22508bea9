"""One encoder under one protocol, measured in memory: what other ways of measuring are compared with."""

from __future__ import annotations

from vitrieve.data.records import Dataset
from vitrieve.embed.collection import EmbedSettings
from vitrieve.evaluation.measure import EvaluationResult
from vitrieve.evaluation.run import measure_protocols
from vitrieve.runtime.encoder import Encoder


def evaluate_encoder(
    encoder: Encoder, dataset: Dataset, *, settings: EmbedSettings | None = None, has_intervals: bool = True
) -> EvaluationResult:
    """Measure an encoder on the test split of a data set."""
    return measure_protocols(encoder, [dataset], encoder.name, settings=settings, has_intervals=has_intervals)[0].result
