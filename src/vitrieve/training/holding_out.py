"""The measurement on held-out classes that chooses the state of a run, on one process or on several."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import numpy as np

from vitrieve.config import Config
from vitrieve.data.records import Dataset
from vitrieve.embed.collection import EmbedSettings, describe_source, embed_images
from vitrieve.embed.embeddings import Embeddings
from vitrieve.evaluation.examples import NUM_QUERIES, QueryExample, list_examples
from vitrieve.evaluation.measure import Measurement, measure
from vitrieve.evaluation.protocols import select_records
from vitrieve.evaluation.run import measure_protocols
from vitrieve.model.encoder import ImageEncoder
from vitrieve.runtime.encoder import Encoder, wrap_encoder
from vitrieve.training.loop import Evaluate, TrainingResult
from vitrieve.training.ranks import Ranks, current_ranks, share_places


def build_evaluate(held_out: Dataset, config: Config, shown: list[QueryExample] | None = None) -> Evaluate:
    """Build the measurement on held-out classes that the training loop calls.

    Args:
        held_out: Images of the held-out classes.
        config: The complete settings.
        shown: List that gets some queries with what they find, at each measurement; None: nobody looks at them.
    """
    # Every image was readable when the run began. Were some left out later, the states would not be comparable.
    settings = EmbedSettings(max_bad_fraction=0.0)

    def evaluate(encoder: ImageEncoder) -> dict[str, float]:
        wrapped = wrap_encoder(encoder, name="training", precision=config.train.precision)
        if current_ranks().size > 1:
            metrics = _evaluate_on_ranks(wrapped, held_out, current_ranks(), shown)
        else:
            measured = measure_protocols(wrapped, [held_out], wrapped.name, settings=settings)[0]
            metrics = _show(measured, shown)
        return {name: metrics[name] for name in ("recall_at_1", "map_at_r")}

    return evaluate


def _show(measured: Measurement, shown: list[QueryExample] | None) -> Mapping[str, float]:
    """Return the figures, and put examples where somebody looks at them."""
    if shown is not None and len(shown) < NUM_QUERIES:
        shown += list_examples(measured, NUM_QUERIES - len(shown))
    return measured.result.metrics


def _evaluate_on_ranks(
    encoder: Encoder, held_out: Dataset, ranks: Ranks, shown: list[QueryExample] | None
) -> Mapping[str, float]:
    """Measure an encoder on images that several processes divide; the first measures, for all of them."""
    records = select_records(held_out)
    shares = share_places(len(records), ranks.size)
    own = [records[row] for row in shares[ranks.rank]]
    empty = np.empty((0, encoder.embedding_dim), np.float32)
    vectors = ranks.try_together(lambda: embed_images(encoder, own, max_bad_fraction=0.0).vectors if own else empty)
    vectors = ranks.gather_arrays(vectors, shares)
    embeddings = Embeddings(
        vectors=vectors,
        records=tuple(records),
        failures=(),
        fingerprint=encoder.fingerprint,
        encoder_source=describe_source(encoder),
        image_size=encoder.preprocessing.image_size,
    )
    return ranks.share_first(
        lambda: dict(_show(measure(held_out, embeddings, encoder.name, has_intervals=False), shown))
    )


def build_mean_evaluate(
    held_out: Mapping[str, Dataset], config: Config, shown: list[QueryExample] | None = None
) -> Evaluate | None:
    """Build the measurement on held-out classes of several sources: its mean over them, and that of each.

    The mean counts every source once, so that a large one does not decide alone.

    Args:
        held_out: Held-out images of each source that has some, by its name.
        config: The complete settings.
        shown: List that gets examples, as in ``build_evaluate``.
    """
    evaluates = {name: build_evaluate(dataset, config, shown) for name, dataset in held_out.items()}
    if len(evaluates) < 2:
        return next(iter(evaluates.values()), None)

    def evaluate(encoder: ImageEncoder) -> dict[str, float]:
        found = {name: evaluate_one(encoder) for name, evaluate_one in evaluates.items()}
        metrics = next(iter(found.values()))
        means = {metric: fmean(values[metric] for values in found.values()) for metric in metrics}
        return means | {f"{metric}/{name}": found[name][metric] for name in found for metric in metrics}

    return evaluate


def describe_kept(result: TrainingResult, num_measured: int = 1) -> str:
    """Say in a sentence which state of a run is kept, and why.

    Args:
        result: End of the run.
        num_measured: Number of sources over which the measurements are means.
    """
    if not result.selection.values:
        return f"kept the last state, after step {result.num_steps} (nothing was held out to measure it)"
    mean = f" (the mean over {num_measured} sources)" if num_measured > 1 else ""
    return f"{result.selection.describe()}{mean}"
