"""``vitrieve reduce``: an encoder with fewer dimensions, by a PCA or a whitening."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrieve.artifacts import read_manifest
from vitrieve.cli.arguments import Exclude, Switch
from vitrieve.cli.console import print_json, print_message, print_result
from vitrieve.config import Device
from vitrieve.errors import ArtifactError, ConfigError, DataError
from vitrieve.replacing import replacing_folder

if TYPE_CHECKING:
    from vitrieve.data.records import Dataset, ImageRecord
    from vitrieve.model.encoder import ImageEncoder
    from vitrieve.model.spec import ReductionKind


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Add a PCA or a whitening to an encoder, fitted on the training images of a data set; never on its test images."""

    encoder: str
    """A run, an encoder's folder, or a weights name; without a reduction."""
    data: str
    """The set it is fitted on: grocery:DIR, emoji, sop:DIR, manifest:FILE, … Its training split is used."""
    embedding_dim: int
    """Dimensions to keep."""
    out: Path
    """Folder of the new encoder."""
    protocol: str | None = None
    """One of the source's protocols; by default its first."""
    exclude: Exclude = ()
    """Leave out of the folder, like a line of .vitrieveignore: --exclude drafts/ --exclude '*_small.jpg'."""
    whiten: Switch = False
    """Divide each direction of the PCA by its standard deviation."""
    supervised: Switch = False
    """Whiten by what varies within matching pairs: the data set's pairs, or images of one class."""
    image_size: int | None = None
    """Side of the square input in pixels; by default the encoder's own."""
    device: Device = "auto"
    """Where to compute; auto: on a GPU where torch sees one."""
    max_bad_fraction: float = 0.05
    """Largest share of training images that may be unreadable."""
    overwrite: Switch = False
    """Replace what --out holds."""
    json: Switch = False
    """Print one JSON object."""


def run(arguments: Arguments) -> int:
    """Fit the reduction and write the encoder; whatever may be refused comes before --out is touched."""
    from vitrieve.data.readable import find_readable
    from vitrieve.data.sources import read_source
    from vitrieve.runtime.device import resolve_device
    from vitrieve.training.reduce import find_pairs, reduce_encoder, require_reducible

    kind = _choose_kind(arguments)
    dataset = read_source(arguments.data, protocol=arguments.protocol, exclude=arguments.exclude)
    for note in dataset.notes:
        print_message(note)
    training = _select_training(dataset)
    encoder, config, origin = _load_encoder(arguments)
    encoder.to(resolve_device(arguments.device))
    require_reducible(arguments.embedding_dim, encoder.layout.width, len(training))
    readable = find_readable(training, max_bad_fraction=arguments.max_bad_fraction, show_progress=True)
    for image_id, reason in readable.failures:
        print_message(f"left out: {image_id}: {reason}")
    records = readable.records
    pairs = find_pairs(dataset, records) if kind == "supervised_whitening" else None
    fitted_on = f"training images of {dataset.name} ({dataset.protocol})"
    reduced = reduce_encoder(encoder, records, arguments.embedding_dim, fitted_on=fitted_on, kind=kind, pairs=pairs)
    num_pairs = 0 if pairs is None else len(pairs)
    fingerprint = _save(arguments, reduced, config, f"{origin} {_describe_fit(len(records), num_pairs)}")
    _print_result(arguments, reduced, len(records), num_pairs, fingerprint)
    return 0


def _choose_kind(arguments: Arguments) -> ReductionKind:
    if arguments.whiten and arguments.supervised:
        raise ConfigError("--whiten and --supervised are two ways to whiten; give one of them.")
    if arguments.supervised:
        return "supervised_whitening"
    return "pca_whitening" if arguments.whiten else "pca"


def _select_training(dataset: Dataset) -> Sequence[ImageRecord]:
    training = dataset.split("train")
    if not training:
        splits = ", ".join(sorted({record.split for record in dataset.records})) or "nothing"
        raise DataError(
            f"{dataset.name} ({dataset.protocol}) has no training images (it has: {splits}), and a reduction is never "
            "fitted on test images. Give a data set with a training split."
        )
    return training


def _load_encoder(arguments: Arguments) -> tuple[ImageEncoder, dict[str, Any], str]:
    """Load the encoder with the configuration behind it and a sentence about where it comes from."""
    from vitrieve.model.encoder import build_frozen_encoder, read_encoder
    from vitrieve.runtime.choice import is_torch_installed
    from vitrieve.runtime.encoder import find_source_folder

    if not is_torch_installed():
        raise ConfigError("reducing needs torch: install vitrieve[train], or reduce on another machine.")
    folder = find_source_folder(arguments.encoder)
    if folder is None:
        encoder = build_frozen_encoder(arguments.encoder, image_size=arguments.image_size)
        return encoder, {}, f"Made from the weights {arguments.encoder}."
    if folder.resolve().is_relative_to(arguments.out.resolve()):
        raise ArtifactError(f"--out {arguments.out} holds the encoder itself; give another folder.")
    encoder = read_encoder(folder, image_size=arguments.image_size)
    if encoder.spec.reduction is not None:
        raise ConfigError(
            f"{folder} has a reduction already, fitted on {encoder.spec.reduction}; give the encoder it was made from."
        )
    manifest = read_manifest(folder, "encoder")
    return encoder, manifest["config"], f"Made from the encoder with fingerprint `{manifest['fingerprint']}`."


def _describe_fit(num_images: int, num_pairs: int) -> str:
    pairs = f" and {num_pairs:,} pairs of them" if num_pairs else ""
    return f"The reduction was fitted on {num_images:,} images{pairs}."


def _save(arguments: Arguments, encoder: ImageEncoder, config: dict[str, Any], note: str) -> str:
    from vitrieve.model.card import ModelCard
    from vitrieve.model.encoder import save_encoder

    with replacing_folder(arguments.out, is_overwrite=arguments.overwrite, is_resumable=False) as folder:
        return save_encoder(encoder, folder, card=ModelCard(notes=(note,)), config=config)


def _print_result(
    arguments: Arguments, encoder: ImageEncoder, num_images: int, num_pairs: int, fingerprint: str
) -> None:
    spec = encoder.spec
    if arguments.json:
        print_json(
            {
                "folder": str(arguments.out),
                "embedding_dim": spec.embedding_dim,
                "kind": spec.reduction_kind,
                "fitted_on": spec.reduction,
                "num_images": num_images,
                "num_pairs": num_pairs,
                "fingerprint": fingerprint,
            }
        )
        return
    print_result(
        f"{arguments.out}: {spec.embedding_dim} dimensions, {spec.reduction_kind} fitted on {num_images:,} "
        f"{spec.reduction}"
    )
    print_message(f"next: vitrieve evaluate --encoder {arguments.out} --data {arguments.data} --out EVALUATION")
