"""``vitrieve reduce`` reads the flags and prints the result; ``training/reduction.py`` reduces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitrieve.cli.arguments import DeviceFlag, Exclude, Json, Overwrite, ProtocolName
from vitrieve.cli.console import print_json, print_message, print_result
from vitrieve.errors import ConfigError
from vitrieve.model.artifact import AppliedKind

if TYPE_CHECKING:
    from vitrieve.training.reduction import ReducedEncoder


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Shorten the embeddings of an encoder, by what is fitted on training images or by cutting, and export it.

    Nothing is ever fitted on test images.
    """

    encoder: str
    """A run, an encoder's folder, or a weights name; without a reduction, but for a prefix."""
    data: str | None = None
    """The set it is fitted on: grocery:DIR, emoji, sop:DIR, table:FILE, … Its training split is used. A prefix needs
    none; with one, what it costs is measured on the test classes."""
    embedding_dim: int
    """Dimensions to keep."""
    out: Path
    """Folder of the new encoder."""
    kind: AppliedKind = "pca"
    """pca_whitening: divide each direction of the PCA by its standard deviation. supervised_whitening: whiten by what
    varies within matching pairs: the data set's pairs, or images of one class. prefix: the first dimensions as they
    are, for encoders that were trained with --objective.prefixes."""
    protocol: ProtocolName = None
    exclude: Exclude = ()
    image_size: int | None = None
    """Side of the square input in pixels; by default the encoder's own."""
    device: DeviceFlag = "auto"
    max_bad_fraction: float = 0.05
    """Largest share of training images that may be unreadable."""
    overwrite: Overwrite = False
    json: Json = False


def run(arguments: Arguments) -> int:
    """Make the shorter encoder, and print what was made and what it costs."""
    from vitrieve.data.sources import read_source
    from vitrieve.runtime.engine import require_torch

    dataset = None
    if arguments.exclude and arguments.data is None:
        raise ConfigError("--exclude leaves files out of the folder of --data; give both or none.")
    if arguments.data is not None:
        dataset = read_source(arguments.data, protocol=arguments.protocol, exclude=arguments.exclude)
    require_torch("reducing", "reduce")
    from vitrieve.training.reduction import reduce

    reduced = reduce(
        arguments.encoder,
        dataset,
        arguments.embedding_dim,
        arguments.out,
        kind=arguments.kind,
        overwrite=arguments.overwrite,
        image_size=arguments.image_size,
        max_bad_fraction=arguments.max_bad_fraction,
        device=arguments.device,
    )
    _print_result(arguments, reduced)
    return 0


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
                "results": [one.to_json() for one in reduced.results],
            }
        )
        return
    if arguments.kind != "prefix":
        print_result(
            f"{arguments.out}: {spec.embedding_dim} dimensions, {spec.reduction_kind} fitted on "
            f"{reduced.num_images:,} {spec.reduction}"
        )
        print_message(f"next: vitrieve evaluate --encoder {arguments.out} --data {arguments.data} --out EVALUATION")
        return
    print_result(f"{arguments.out}: the first {spec.embedding_dim} dimensions")
    if reduced.results:
        from vitrieve.evaluation.measure import format_results

        print_result(*format_results(reduced.results).split("\n"))
