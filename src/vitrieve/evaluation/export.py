"""``export``: an encoder as a graph that runs without torch, or as a small difference to the weights it started from.

``vitrieve export`` calls it. What the difference costs is measured here, on pictures of the user's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vitrieve.artifacts import MANIFEST_NAME, check_replacing, read_manifest, replacing_folder
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.data.sources import read_collection
from vitrieve.embed.collection import embed_images
from vitrieve.errors import ConfigError, DataError, WeightsError
from vitrieve.evaluation.measure import measure
from vitrieve.evaluation.metrics import short_name
from vitrieve.evaluation.protocols import select_records
from vitrieve.folders import copy_folder
from vitrieve.model.artifact import (
    CARD_NAME,
    ONNX_NAME,
    EncoderContents,
    ModelCard,
    compute_fingerprint,
    format_card,
    read_card,
    read_contents,
    read_spec,
    require_apart,
    write_contents,
)
from vitrieve.model.delta import DELTA_NAME, Delta, compute_parts, restore_states
from vitrieve.model.pretrained import BACKBONE_PREFIX, find_weights, pull_weights
from vitrieve.model.tensors import hash_arrays, read_arrays
from vitrieve.model.text import carry_text_part, divide_card, find_text_part
from vitrieve.progress import print_message
from vitrieve.quoting import quote_name
from vitrieve.runtime.encoder import Encoder, find_source_folder, load_encoder
from vitrieve.runtime.engine import is_torch_installed, require_torch
from vitrieve.writing import explaining_full_disk, write_bytes_durably, write_text_durably

NUM_COMPARED = 256
"""Pictures whose embeddings by the whole encoder and by the difference are compared."""


@dataclass(frozen=True, kw_only=True)
class DeltaCost:
    """What an encoder loses when it is kept as a low-rank difference.

    Attributes:
        base: Name of the weights that it is a difference to.
        rank: Rank of the factors.
        full_bytes: Size of the encoder's weights before.
        weight_error: Length of what the weights lose, as a share of the length of all weights.
        lost_fraction: The same as a share of the length of the difference: 0 keeps all of the fine-tuning.
        num_images: Pictures that were embedded by both; 0 where none were given.
        mean_cosine: Mean of the cosines between the two embeddings of a picture; None without pictures.
        min_cosine: The smallest of them.
        before: Figures of the whole encoder on the test classes of the pictures, by name of the metric, in [0, 1];
            empty without labels.
        after: Figures of the encoder that was restored.
    """

    base: str
    rank: int
    full_bytes: int
    weight_error: float
    lost_fraction: float
    num_images: int = 0
    mean_cosine: float | None = None
    min_cosine: float | None = None
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ExportedEncoder:
    """An encoder that has a graph, or is kept as a difference.

    Attributes:
        folder: Folder of the encoder.
        file: File of the graph, or of the difference.
        num_bytes: Size of that file.
        cosine: Smallest cosine between torch's and the graph's results, at least 0.9999; None of a difference.
        fingerprint: Fingerprint of the encoder.
        embedding_dim: Length of an embedding.
        image_size: Side of the square input in pixels.
        delta: Cost of keeping it as a difference; None of a graph.
    """

    folder: Path
    file: Path
    num_bytes: int
    cosine: float | None
    fingerprint: str
    embedding_dim: int
    image_size: int
    delta: DeltaCost | None = None


def export(
    encoder: str | Path,
    out: str | Path | None = None,
    *,
    image_size: int | None = None,
    scales: tuple[float, ...] = (),
    overwrite: bool = False,
    delta_rank: int | None = None,
    data: Dataset | str | Path | None = None,
) -> ExportedEncoder:
    """Write an encoder as ONNX (embedding and patch tokens, any batch size), and check it against torch.

    With ``delta_rank`` it is written as a low-rank difference to the weights that it started from instead: some
    hundredth of its size, read by everything that reads encoders, with torch and without. Writing it needs no torch. Of
    a transformer that was trained the embeddings then differ a little, so the fingerprint is another; of frozen weights
    with a head or a reduction (``adapt``, ``reduce``) nothing is lost, and it is the same.

    Args:
        encoder: A run, an encoder's folder, or a weights name.
        out: Folder of a new encoder with the graph; None: the graph is added to the encoder's own folder, and for a
            weights name the encoder goes into the cache, where the name finds it.
        image_size: Side of the square input in pixels; None: the encoder's own.
        scales: Shares of that side whose embeddings are combined, for convnets; none: the encoder's own.
        overwrite: Replace what ``out`` holds.
        delta_rank: Rank of the difference of each matrix; vectors, head and reduction are kept whole.
        data: Pictures on which the difference is measured: a data set, or a source as ``read_collection`` takes it.
            With labels, Recall@1 and MAP@R before and after are measured too.

    Raises:
        ConfigError: torch is not installed, or it is another encoder and there is no ``out`` for it; or the rank does
            not fit, or the encoder did not start from weights with a name.
        ArtifactError: The encoder cannot be read, ``out`` is not free, or the graph differs from torch.
        WeightsError: The weights that it started from cannot be had.
    """
    if delta_rank is not None:
        if image_size is not None or scales:
            raise ConfigError("a difference has the encoder's own image size and scales; leave both away.")
        return _export_delta(encoder, out, delta_rank, data, overwrite)
    if data is not None:
        raise ConfigError("data is what a difference is measured on; give it with a delta rank (--delta-rank 8).")
    require_torch("exporting", "export")
    from vitrieve.model.export import export_folder

    source = find_source_folder(encoder)
    out = None if out is None else Path(out)
    with ExitStack() as stack:  # what out holds is replaced when all is done
        if source is None:
            folder, beside = _write_named(str(encoder), out, image_size, scales, overwrite, stack)
        else:
            folder, beside = _copy_folder(source, out, image_size, scales, overwrite, stack)
        print_message(f"exporting {encoder} …")
        cosine = export_folder(beside)
    return _describe_graph(folder, cosine)


def import_encoder(
    backbone: str,
    weights: str | Path,
    out: str | Path,
    *,
    image_size: int | None = None,
    overwrite: bool = False,
) -> ExportedEncoder:
    """Make an encoder of weights that others trained for timm or open_clip, with its graph; nothing in them is run.

    Args:
        backbone: A timm model name, which tells the layers, and how pictures are prepared.
        weights: A safetensors file, a checkpoint of torch, or a folder with ``model.safetensors``. Of a checkpoint of
            open_clip the tower of pictures is taken, with its projection.
        out: Folder of the new encoder.
        image_size: Side of the square input in pixels; None: the model's own. Positions are resampled.
        overwrite: Replace what ``out`` holds.

    Raises:
        ConfigError: torch is not installed, the image size does not fit, or the weights are an encoder already.
        WeightsError: The name is unknown; or the file is missing, damaged, holds more than tensors, or fits another
            model.
        ArtifactError: ``out`` is not free, or the graph differs from torch.
    """
    require_torch("reading weights", "do it")
    from vitrieve.model.encoder import save_encoder
    from vitrieve.model.export import export_folder
    from vitrieve.model.foreign import build_foreign_encoder

    out = Path(out)
    check_replacing(out, kind="encoder", is_overwrite=overwrite)
    encoder, notes = build_foreign_encoder(backbone, Path(weights), image_size=image_size)
    print_message(*notes)
    with replacing_folder(out, kind="encoder", is_overwrite=overwrite, is_resumable=False) as beside:
        save_encoder(encoder, beside)
        print_message(f"exporting {backbone} with the weights {weights} …")
        cosine = export_folder(beside)
    return _describe_graph(out, cosine)


def _describe_graph(folder: Path, cosine: float) -> ExportedEncoder:
    manifest = read_manifest(folder, "encoder")
    return ExportedEncoder(
        folder=folder,
        file=folder / ONNX_NAME,
        num_bytes=(folder / ONNX_NAME).stat().st_size,
        cosine=cosine,
        fingerprint=manifest["fingerprint"],
        embedding_dim=manifest["embedding_dim"],
        image_size=manifest["image_size"],
    )


def _write_named(
    name: str, out: Path | None, image_size: int | None, scales: tuple[float, ...], overwrite: bool, stack: ExitStack
) -> tuple[Path, Path]:
    """Write the encoder of a weights name for ``out`` or the cache; return where it will be, and where it is now."""
    from vitrieve.model.encoder import build_frozen_encoder, save_encoder
    from vitrieve.model.pretrained import get_export_folder

    if scales and out is None:
        raise ConfigError("with other scales it is another encoder: give it a folder with --out.")
    if out is not None:
        check_replacing(out, kind="encoder", is_overwrite=overwrite)
    encoder = build_frozen_encoder(name, image_size=image_size, scales=scales or None)
    folder = out or get_export_folder(name, encoder.spec.preprocessing.image_size)
    beside = stack.enter_context(
        replacing_folder(folder, kind="encoder", is_overwrite=overwrite or out is None, is_resumable=False)
    )
    save_encoder(encoder, beside)
    return folder, beside


def _copy_folder(
    source: Path, out: Path | None, image_size: int | None, scales: tuple[float, ...], overwrite: bool, stack: ExitStack
) -> tuple[Path, Path]:
    """Copy an encoder to ``out``, at another image size or scales if asked; without ``out`` it stays where it is.

    Returns:
        Where it will be, and where it is now.
    """
    manifest = read_manifest(source, "encoder")
    is_resized = image_size not in (None, manifest["image_size"])
    is_rescaled = scales not in ((), read_spec(source).scales)
    if out is None:
        if is_rescaled:
            raise ConfigError(f"with other scales than {source} it is another encoder: give it a folder with --out.")
        if is_resized:
            raise ConfigError(
                f"{source} is an encoder for {manifest['image_size']} px; at {image_size} px it is another encoder: "
                "give it a folder with --out."
            )
        return source, source
    if source.resolve().is_relative_to(out.resolve()):
        raise ConfigError(f"--out {out} holds the encoder itself; leave --out away to add the graph to it.")
    if is_resized or is_rescaled:
        from vitrieve.model.encoder import fingerprint_encoder, read_encoder, save_encoder

        check_replacing(out, kind="encoder", is_overwrite=overwrite)
        encoder = read_encoder(source, image_size=image_size, scales=scales or None)
        note = f"Made from an encoder for {manifest['image_size']} px (fingerprint `{manifest['fingerprint']}`)."
        beside = stack.enter_context(replacing_folder(out, kind="encoder", is_overwrite=overwrite, is_resumable=False))
        carry_text_part(source, beside, fingerprint=fingerprint_encoder(encoder))
        save_encoder(encoder, beside, card=ModelCard(notes=(note,)), config=manifest["config"])
        return out, beside
    beside = stack.enter_context(replacing_folder(out, kind="encoder", is_overwrite=overwrite, is_resumable=False))
    num_bytes = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    with explaining_full_disk(out, num_bytes=num_bytes, advice="Make room and pass --overwrite."):
        copy_folder(source, beside, left_out=(MANIFEST_NAME,))
    write_bytes_durably(beside / MANIFEST_NAME, (source / MANIFEST_NAME).read_bytes())  # it is whole now
    return out, beside


def _export_delta(
    encoder: str | Path, out: str | Path | None, rank: int, data: Dataset | str | Path | None, overwrite: bool
) -> ExportedEncoder:
    """Write an encoder as a difference, and measure what it costs."""
    source = find_source_folder(encoder)
    if source is None:
        raise ConfigError(f"{encoder} is a weights name, which needs no difference: whoever has vitrieve can fetch it.")
    if out is None:
        raise ConfigError("a difference is another encoder: give it a folder with --out.")
    out = Path(out)
    require_apart(source, out)
    check_replacing(out, kind="encoder", is_overwrite=overwrite)
    dataset = data if data is None or isinstance(data, Dataset) else read_collection(str(data))
    contents = read_contents(source)
    base = _find_base(contents, source)
    print_message(f"decomposing what {encoder} differs in from {base} …")
    starts = read_arrays(pull_weights(base))
    named = {BACKBONE_PREFIX + name: array for name, array in starts.items()}
    parts = compute_parts(contents.states, named, rank)
    delta = Delta(base=base, base_sha256=hash_arrays(starts), rank=rank, parts=parts)
    restored = restore_states(parts, named)
    cost = _compare_weights(delta, contents.states, restored, named)
    with replacing_folder(out, kind="encoder", is_overwrite=overwrite, is_resumable=False) as beside:
        carry_text_part(source, beside, fingerprint=compute_fingerprint(contents.spec, restored))
        card = read_card(source) or format_card(contents.spec, ModelCard(), contents.fingerprint)
        if find_text_part(beside) is None:
            card, _ = divide_card(card)
        config = read_manifest(source, "encoder")["config"]
        fingerprint = write_contents(beside, contents.spec, restored, card, config, delta)
        if dataset is not None:
            print_message(*dataset.notes)
            cost = _compare_embeddings(cost, _load_exactly(source), _load_exactly(beside), dataset)
        card = read_card(beside).replace(contents.fingerprint, fingerprint)
        write_text_durably(beside / CARD_NAME, f"{card}\n{describe_cost(cost)}\n")
    return ExportedEncoder(
        folder=out,
        file=out / DELTA_NAME,
        num_bytes=(out / DELTA_NAME).stat().st_size,
        cosine=None,
        fingerprint=fingerprint,
        embedding_dim=contents.spec.embedding_dim,
        image_size=contents.spec.preprocessing.image_size,
        delta=cost,
    )


def _find_base(contents: EncoderContents, folder: Path) -> str:
    """Return the name of the weights that an encoder started from.

    Raises:
        ConfigError: It started from a file, at random, from a name that is unknown here, or from weights that have
            other names on the hub than in an encoder.
    """
    spec = contents.spec
    try:
        entry = find_weights(spec.backbone)
    except WeightsError as error:
        raise ConfigError(f"{folder} started from {quote_name(spec.backbone)}, and {error}") from error
    source = entry.source
    if entry.hub_id is not None and not entry.hub_id.startswith("timm/"):
        raise ConfigError(
            f"the weights {spec.backbone}, from which {folder} started, have other names on the hub than here, "
            "so no difference to them can be taken. Share the whole encoder."
        )
    if spec.weights_source != source and not spec.weights_source.startswith(f"{source}, trained on"):
        raise ConfigError(
            f"{folder} started from {quote_name(spec.weights_source)} and not from the weights {spec.backbone}, so "
            "nobody else can restore it from a difference. Share the whole encoder."
        )
    return spec.backbone


def _compare_weights(
    delta: Delta,
    states: Mapping[str, np.ndarray],
    restored: Mapping[str, np.ndarray],
    starts: Mapping[str, np.ndarray],
) -> DeltaCost:
    """Compare weights before and after; the length of their difference counts where the start has the same shape.

    The statistics of batch norm are no weights: they are kept whole, and so large that they would hide all others.
    """
    error = total = kept = change = 0.0
    for name, array in states.items():
        if array.dtype != np.float32 or name.endswith((".running_mean", ".running_var")):
            continue
        lost = float(np.square(array.astype(np.float64) - restored[name]).sum())
        error, total = error + lost, total + float(np.square(array, dtype=np.float64).sum())
        start = starts.get(name)
        if start is not None and start.shape == array.shape:
            kept, change = kept + lost, change + float(np.square(array.astype(np.float64) - start).sum())
    return DeltaCost(
        base=delta.base,
        rank=delta.rank,
        full_bytes=sum(array.nbytes for array in states.values()),
        weight_error=float(np.sqrt(error / total)),
        lost_fraction=float(np.sqrt(kept / change)) if change else 0.0,
    )


def _load_exactly(folder: Path) -> Encoder:
    return load_encoder(folder, engine="torch" if is_torch_installed() else "auto", precision="fp32", device="cpu")


def _compare_embeddings(cost: DeltaCost, whole: Encoder, small: Encoder, dataset: Dataset) -> DeltaCost:
    """Embed pictures by both encoders, a sample of the training split; with labels measure on the test split, too."""
    records = dataset.split("train") or dataset.records
    chosen = np.random.default_rng(0).permutation(len(records))[:NUM_COMPARED]
    sample = [records[row] for row in sorted(chosen)]
    print_message(f"comparing the embeddings of {len(sample)} pictures")
    before, after = (embed_images(encoder, sample, show_progress=True).vectors for encoder in (whole, small))
    cosines = (before * after).sum(axis=1)
    figures: list[Mapping[str, float]] = [{}, {}]
    wanted = _select_tests(dataset)
    if wanted:
        print_message(f"measuring both encoders on {len(wanted)} pictures of {quote_name(dataset.name)}")
        figures = [
            measure(
                dataset, embed_images(encoder, wanted, show_progress=True), encoder.name, has_intervals=False
            ).result.metrics
            for encoder in (whole, small)
        ]
    return dataclasses.replace(
        cost,
        num_images=len(cosines),
        mean_cosine=float(cosines.mean()),
        min_cosine=float(cosines.min()),
        before=figures[0],
        after=figures[1],
    )


def _select_tests(dataset: Dataset) -> tuple[ImageRecord, ...]:
    """Select what Recall@1 is measured on; nothing without labels, and where no image is to be found."""
    if len({record.label for record in dataset.records}) < 2:
        return ()
    try:
        return tuple(select_records(dataset))
    except DataError as error:
        print_message(f"no Recall@1: {error}")
        return ()


def describe_cost(cost: DeltaCost) -> str:
    """Say in a few sentences what a difference costs, for the model card and the command line."""
    text = (
        f"Kept as a difference of rank {cost.rank} to the weights {cost.base}. Of the fine-tuning "
        f"{100 * cost.lost_fraction:.1f} % is lost, {100 * cost.weight_error:.3f} % of the length of all weights."
    )
    if cost.mean_cosine is None:
        return text
    text += (
        f" The embeddings of {cost.num_images} pictures have a cosine of {cost.mean_cosine:.4f} to those of the whole "
        f"encoder, at least {cost.min_cosine:.4f}."
    )
    shown = [name for name in ("recall_at_1", "map_at_r", "mean_average_precision") if name in cost.before]
    figures = [f"{short_name(name)} {100 * cost.before[name]:.1f} → {100 * cost.after[name]:.1f} %" for name in shown]
    return f"{text} {', '.join(figures)}." if figures else text
