"""``vitrieve export`` reads the flags and prints the result; ``evaluation/export.py`` exports."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from vitrieve.cli.arguments import Exclude, Json, Switch
from vitrieve.cli.console import print_json, print_result


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write an encoder as ONNX (embedding and patch tokens, any batch size), checked against torch.

    With --delta-rank write what its weights differ in from those it started from: some hundredth of its size.
    """

    encoder: str
    """A run, an encoder's folder, or a weights name."""
    image_size: int | None = None
    """Side of the square input in pixels; by default the encoder's own."""
    scales: tuple[float, ...] = ()
    """Shares of that side whose embeddings are combined, for convnets: 1 0.7071 0.5. By default the encoder's own."""
    out: Path | None = None
    """Folder of a new encoder with the graph. By default the graph is added to the encoder's own folder, and for a
    weights name the encoder goes into the cache, where the name finds it."""
    delta_rank: int | None = None
    """Rank of the difference of each matrix: 8 keeps nearly all of a fine-tuning. Vectors, head and reduction are kept
    whole. Everything that takes an encoder takes the folder, with torch and without."""
    data: str | None = None
    """Pictures on which the difference is compared with the whole encoder: a folder, or a source (grocery:DIR, …); with
    labels, Recall@1 and MAP@R before and after."""
    exclude: Exclude = ()
    overwrite: Switch = False
    """Replace what is in --out."""
    json: Json = False


def run(arguments: Arguments) -> int:
    """Export an encoder, and print where it is."""
    from vitrieve.data.sources import read_collection
    from vitrieve.evaluation.export import describe_cost, export

    dataset = None if arguments.data is None else read_collection(arguments.data, exclude=arguments.exclude)
    made = export(
        arguments.encoder,
        arguments.out,
        image_size=arguments.image_size,
        scales=arguments.scales,
        overwrite=arguments.overwrite,
        delta_rank=arguments.delta_rank,
        data=dataset,
    )
    if arguments.json:
        values = {name: value for name, value in asdict(made).items() if value is not None}
        del values["file"]
        print_json({**values, "folder": str(made.folder), "onnx" if made.delta is None else "file": made.file.name})
        return 0
    if made.delta is not None:
        share = made.delta.full_bytes / made.num_bytes
        print_result(
            f"{made.file}: {made.num_bytes / 1e6:.2f} MB, 1/{share:.0f} of the weights", describe_cost(made.delta)
        )
        return 0
    print_result(
        f"{made.file}: {made.num_bytes / 1e6:.1f} MB, {made.image_size} px, {made.embedding_dim} dimensions, cosine "
        f"to torch {made.cosine:.6f}"
    )
    return 0
