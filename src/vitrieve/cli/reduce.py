"""``vitrieve reduce`` reads the flags and prints the result; ``training/reduction.py`` reduces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitrieve.cli.arguments import DeviceFlag, Exclude, Json, Overwrite, Switch
from vitrieve.cli.console import print_json, print_message, print_result
from vitrieve.errors import ConfigError

if TYPE_CHECKING:
    from vitrieve.model.artifact import ReductionKind
    from vitrieve.training.reduction import ReducedEncoder


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Add a PCA or a whitening to an encoder, fitted on the training images of a data set; never on its test images."""

    encoder: str
    """A run, an encoder's folder, or a weights name; without a reduction."""
    data: str
    """The set it is fitted on: grocery:DIR, emoji, sop:DIR, table:FILE, … Its training split is used."""
    embedding_dim: int
    """Dimensions to keep."""
    out: Path
    """Folder of the new encoder."""
    protocol: str | None = None
    """One of the source's protocols; by default its first."""
    exclude: Exclude = ()
    whiten: Switch = False
    """Divide each direction of the PCA by its standard deviation."""
    supervised: Switch = False
    """Whiten by what varies within matching pairs: the data set's pairs, or images of one class."""
    image_size: int | None = None
    """Side of the square input in pixels; by default the encoder's own."""
    device: DeviceFlag = "auto"
    max_bad_fraction: float = 0.05
    """Largest share of training images that may be unreadable."""
    overwrite: Overwrite = False
    json: Json = False


def run(arguments: Arguments) -> int:
    """Fit the reduction, and print what was made."""
    from vitrieve.data.sources import read_source
    from vitrieve.runtime.engine import is_torch_installed

    kind = _choose_kind(arguments)
    dataset = read_source(arguments.data, protocol=arguments.protocol, exclude=arguments.exclude)
    if not is_torch_installed():
        raise ConfigError("reducing needs torch: install vitrieve[train], or reduce on another machine.")
    from vitrieve.training.reduction import reduce

    reduced = reduce(
        arguments.encoder,
        dataset,
        arguments.embedding_dim,
        arguments.out,
        kind=kind,
        overwrite=arguments.overwrite,
        image_size=arguments.image_size,
        max_bad_fraction=arguments.max_bad_fraction,
        device=arguments.device,
    )
    _print_result(arguments, reduced)
    return 0


def _choose_kind(arguments: Arguments) -> ReductionKind:
    if arguments.whiten and arguments.supervised:
        raise ConfigError("--whiten and --supervised are two ways to whiten; give one of them.")
    if arguments.supervised:
        return "supervised_whitening"
    return "pca_whitening" if arguments.whiten else "pca"


def _print_result(arguments: Arguments, reduced: ReducedEncoder) -> None:
    spec = reduced.spec
    if arguments.json:
        print_json(
            {
                "folder": str(arguments.out),
                "embedding_dim": spec.embedding_dim,
                "kind": spec.reduction_kind,
                "fitted_on": spec.reduction,
                "num_images": reduced.num_images,
                "num_pairs": reduced.num_pairs,
                "fingerprint": reduced.fingerprint,
            }
        )
        return
    print_result(
        f"{arguments.out}: {spec.embedding_dim} dimensions, {spec.reduction_kind} fitted on {reduced.num_images:,} "
        f"{spec.reduction}"
    )
    print_message(f"next: vitrieve evaluate --encoder {arguments.out} --data {arguments.data} --out EVALUATION")
