"""A shorter embedding: a reduction fitted on training images, at the end of a run or as a run of its own, or a prefix.

The command ``vitrieve reduce`` calls ``reduce``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrieve.artifacts import check_replacing, read_manifest, replacing_folder
from vitrieve.choices import Device, Precision
from vitrieve.data.check import find_readable
from vitrieve.data.decode import read_image
from vitrieve.data.preprocess import preprocess
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.data.sources import read_source
from vitrieve.embed.collection import embed_images
from vitrieve.errors import ConfigError, DataError
from vitrieve.evaluation.measure import EvaluationResult, measure
from vitrieve.evaluation.protocols import select_records
from vitrieve.model.artifact import AppliedKind, EncoderSpec, ModelCard, require_apart
from vitrieve.model.encoder import (
    ImageEncoder,
    add_reduction,
    build_frozen_encoder,
    cut_to_prefix,
    fingerprint_encoder,
    read_encoder,
    save_encoder,
)
from vitrieve.model.export import export_folder
from vitrieve.model.reduction import fit_pca, fit_supervised_whitening
from vitrieve.model.seen import describe_seen
from vitrieve.model.text import carry_text_part
from vitrieve.progress import print_message, track
from vitrieve.runtime.device import resolve_device, resolve_precision
from vitrieve.runtime.encoder import find_source_folder, wrap_encoder
from vitrieve.runtime.engine import choose_batch_size
from vitrieve.similarity import normalize


@dataclass(frozen=True, kw_only=True)
class ReductionRun:
    """What is reduced, and how.

    Attributes:
        encoder: A run, an encoder's folder, or a weights name; without a reduction, but for a prefix.
        dataset: Its training split is what the reduction is fitted on. A prefix needs none: with one, its cost is
            measured on the test split.
        embedding_dim: Number of dimensions to keep.
        out: Folder of the new encoder.
        kind: What is fitted, or ``prefix``: nothing.
        image_size: Side of the square input in pixels; None: the encoder's own.
        max_bad_fraction: Largest share of training images that may be unreadable, in [0, 1].
        is_overwrite: What ``out`` holds is replaced.
        device: Where to compute; ``auto``: on a GPU where torch sees one.
    """

    encoder: str
    dataset: Dataset | None
    embedding_dim: int
    out: Path
    kind: AppliedKind = "pca"
    image_size: int | None = None
    max_bad_fraction: float = 0.05
    is_overwrite: bool = False
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class ReducedEncoder:
    """What a reduction ends with.

    Attributes:
        spec: Specification of the new encoder.
        num_images: Images that the reduction was fitted on; 0 of a prefix.
        num_pairs: Matching pairs among them that it was fitted on; 0 without supervision.
        fingerprint: Fingerprint of the new encoder.
        results: Figures of the whole embedding and of the prefix on the test classes; empty for other kinds, and where
            no data set was given.
    """

    spec: EncoderSpec
    num_images: int
    num_pairs: int
    fingerprint: str
    results: tuple[EvaluationResult, ...] = ()


def reduce(
    encoder: str | Path,
    data: Dataset | str | Path | None,
    embedding_dim: int,
    out: str | Path,
    *,
    kind: AppliedKind = "pca",
    overwrite: bool = False,
    **settings: Any,
) -> ReducedEncoder:
    """Add a PCA or a whitening to an encoder, fitted on the training images of a data set, or cut its embedding.

    Whatever may be refused comes before ``out`` is touched.

    Args:
        encoder: A run, an encoder's folder, or a weights name; without a reduction, but for a prefix.
        data: A data set, or a source as ``read_source`` takes it; its training split is what the reduction is fitted
            on, never its test images. A prefix needs none: with one, its cost is measured on the test images.
        embedding_dim: Number of dimensions to keep.
        out: Folder of the new encoder.
        kind: ``pca``; ``pca_whitening``, which divides each direction by its standard deviation;
            ``supervised_whitening``, by what varies within matching pairs; or ``prefix``, the first dimensions as they
            are, normalized again (encoders that were trained with ``objective.prefixes``).
        overwrite: Replace what ``out`` holds.
        settings: Further fields of ``ReductionRun``: ``image_size``, ``max_bad_fraction``, ``device``.

    Returns:
        What was fitted, and the fingerprint of the new encoder.

    Raises:
        InputError: The encoder, the data set or the folder cannot be used, or the images do not suffice.
    """
    check_replacing(Path(out), kind="encoder", is_overwrite=overwrite)
    run = ReductionRun(
        encoder=str(encoder),
        dataset=data if data is None or isinstance(data, Dataset) else read_source(str(data)),
        embedding_dim=embedding_dim,
        out=Path(out),
        kind=kind,
        is_overwrite=overwrite,
        **settings,
    )
    if kind == "prefix":
        return _cut(run)
    if run.dataset is None:
        raise ConfigError(f"a reduction by {kind} is fitted on training images: name them with --data.")
    return _fit(run, run.dataset)


def _cut(run: ReductionRun) -> ReducedEncoder:
    """Cut an encoder to its first dimensions, and measure what that costs where there is a data set to measure on."""
    encoder, config, origin = _load_encoder(run)
    encoder.to(resolve_device(run.device))
    cut = cut_to_prefix(encoder, run.embedding_dim)
    prefixes = config.get("objective", {}).get("prefixes", ())
    # A reduction by anything else has put the dimensions in order, whatever the training did.
    is_as_trained = encoder.spec.reduction in (None, "prefix")
    if is_as_trained and run.embedding_dim not in prefixes:
        otherwise = "; --kind pca chooses by your pictures" if encoder.spec.reduction is None else ""
        trained = f"trained for prefixes of {', '.join(map(str, prefixes))}" if prefixes else "not trained for prefixes"
        print_message(
            f"{run.encoder} was {trained}, so the first {run.embedding_dim} dimensions may be no better than any "
            f"others (vitrieve train --objective.prefixes){otherwise}."
        )
    results = () if run.dataset is None else _measure_cut(run.dataset, encoder, run)
    note = f"{origin} Of its {encoder.spec.embedding_dim} dimensions the first {run.embedding_dim} are kept."
    card = ModelCard(
        figures={one.encoder: one.metrics for one in results},
        measured_on=f"{results[0].dataset} ({results[0].protocol})" if results else "",
        notes=(note,),
    )
    fingerprint = _save(run, cut, config, card)
    return ReducedEncoder(spec=cut.spec, num_images=0, num_pairs=0, fingerprint=fingerprint, results=results)


def _measure_cut(dataset: Dataset, encoder: ImageEncoder, run: ReductionRun) -> tuple[EvaluationResult, ...]:
    """Embed the test images once, and measure whole and cut vectors, with intervals."""
    print_message(*dataset.notes, *describe_seen(run.encoder, encoder.spec.backbone, [dataset]))
    records = select_records(dataset)
    whole = embed_images(
        wrap_encoder(encoder, name="whole"), records, max_bad_fraction=run.max_bad_fraction, show_progress=True
    )
    cut = replace(whole, vectors=normalize(whole.vectors[:, : run.embedding_dim]))
    named = ((f"{encoder.spec.embedding_dim} dimensions", whole), (f"the first {run.embedding_dim}", cut))
    return tuple(measure(dataset, embeddings, name).result for name, embeddings in named)


def _fit(run: ReductionRun, dataset: Dataset) -> ReducedEncoder:
    print_message(*dataset.notes)
    training = _select_training(dataset)
    encoder, config, origin = _load_encoder(run)
    encoder.to(resolve_device(run.device))
    require_reducible(run.embedding_dim, encoder.spec.embedding_dim, len(training))
    readable = find_readable(training, max_bad_fraction=run.max_bad_fraction, show_progress=True)
    for image_id, reason in readable.failures:
        print_message(f"left out: {image_id}: {reason}")
    records = readable.records
    require_reducible(run.embedding_dim, encoder.spec.embedding_dim, len(records))
    pairs = find_pairs(dataset, records) if run.kind == "supervised_whitening" else None
    fitted_on = f"training images of {dataset.name} ({dataset.protocol})"
    reduced = reduce_encoder(encoder, records, run.embedding_dim, fitted_on=fitted_on, kind=run.kind, pairs=pairs)
    num_pairs = 0 if pairs is None else len(pairs)
    card = ModelCard(notes=(f"{origin} {_describe_fit(len(records), num_pairs)}",))
    fingerprint = _save(run, reduced, config, card)
    return ReducedEncoder(spec=reduced.spec, num_images=len(records), num_pairs=num_pairs, fingerprint=fingerprint)


def _select_training(dataset: Dataset) -> Sequence[ImageRecord]:
    training = dataset.split("train")
    if not training:
        splits = ", ".join(sorted({record.split for record in dataset.records})) or "nothing"
        raise DataError(
            f"{dataset.name} ({dataset.protocol}) has no training images (it has: {splits}), and a reduction is never "
            "fitted on test images. Give a data set with a training split."
        )
    return training


def _load_encoder(run: ReductionRun) -> tuple[ImageEncoder, dict[str, Any], str]:
    """Load the encoder with the configuration behind it and a sentence about where it comes from."""
    folder = find_source_folder(run.encoder)
    if folder is None:
        encoder = build_frozen_encoder(run.encoder, image_size=run.image_size)
        return encoder, {}, f"Made from the weights {run.encoder}."
    require_apart(folder, run.out)
    encoder = read_encoder(folder, image_size=run.image_size)
    if encoder.spec.reduction is not None and run.kind != "prefix":
        raise ConfigError(
            f"{folder} has a reduction already, fitted on {encoder.spec.reduction}; give the encoder it was made from."
        )
    manifest = read_manifest(folder, "encoder")
    return encoder, manifest["config"], f"Made from the encoder with fingerprint `{manifest['fingerprint']}`."


def _describe_fit(num_images: int, num_pairs: int) -> str:
    pairs = f" and {num_pairs:,} pairs of them" if num_pairs else ""
    return f"The reduction was fitted on {num_images:,} images{pairs}."


def _save(run: ReductionRun, encoder: ImageEncoder, config: dict[str, Any], card: ModelCard) -> str:
    with replacing_folder(run.out, kind="encoder", is_overwrite=run.is_overwrite, is_resumable=False) as folder:
        carry_text_part(find_source_folder(run.encoder), folder, fingerprint=fingerprint_encoder(encoder))
        fingerprint = save_encoder(encoder, folder, card=card, config=config)
        print_message("exporting to ONNX")
        export_folder(folder)
    return fingerprint


PAIRS_SEED = 0
"""The seed of the draw of which images of a class become pairs."""


def require_reducible(embedding_dim: int, width: int, num_images: int) -> None:
    """Refuse before a run an ``embedding_dim`` that its PCA would refuse at the end.

    Args:
        embedding_dim: Number of dimensions to keep.
        width: Dimensions that the encoder puts out without a reduction.
        num_images: Training images.

    Raises:
        ConfigError: None, more dimensions than there are, or than so few images can vary in.
    """
    num_most = min(width, num_images - 1)
    if num_most < 1:
        raise ConfigError(f"embedding_dim is {embedding_dim}; a PCA needs two images or more, and {num_images} train.")
    if not 1 <= embedding_dim <= num_most:
        raise ConfigError(
            f"embedding_dim is {embedding_dim}; expected 1 to {num_most}, for an encoder of {width} "
            f"dimensions and {num_images} training images."
        )


def reduce_encoder(
    encoder: ImageEncoder,
    records: Sequence[ImageRecord],
    embedding_dim: int,
    *,
    fitted_on: str,
    precision: Precision = "auto",
    kind: AppliedKind = "pca",
    pairs: np.ndarray | None = None,
) -> ImageEncoder:
    """Fit a PCA or a whitening on training images, without augmentation, and put it into the encoder.

    Args:
        encoder: Encoder in evaluation mode, without a reduction, on any device. Its backbone is shared with the result.
        records: Readable training images, more than ``embedding_dim``; never test images.
        embedding_dim: Number of dimensions to keep.
        fitted_on: Name of the set, recorded in the encoder.
        precision: Precision of the matrix products.
        kind: Kind of reduction to fit.
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

    The pairs are the data set's own where it lists them. Otherwise the images of a class form a random ring, and each
    is paired with the next: as many pairs as images (one for a class of two), so that a large class counts by its size,
    not its square.

    Args:
        dataset: Data set, which may list ``positive_pairs``.
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
        pairs += [(ring[position], ring[(position + 1) % len(ring)]) for position in range(num_pairs)]
    return pairs


def _prepare(encoder: ImageEncoder, records: Sequence[ImageRecord], batch_size: int) -> Iterator[torch.Tensor]:
    preprocessing = encoder.spec.preprocessing
    for start in range(0, len(records), batch_size):
        images = [read_image(record) for record in records[start : start + batch_size]]
        yield torch.from_numpy(np.stack([preprocess(image, preprocessing) for image in images]))
