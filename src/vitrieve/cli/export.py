"""``vitrieve export`` reads the flags and prints the result; ``runtime/export.py`` exports."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from vitrieve.cli.arguments import Json, Switch
from vitrieve.cli.console import print_json, print_result


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write an encoder as ONNX (embedding and patch tokens, any batch size), checked against torch."""

    encoder: str
    """A run, an encoder's folder, or a weights name."""
    image_size: int | None = None
    """Side of the square input in pixels; by default the encoder's own."""
    scales: tuple[float, ...] = ()
    """Shares of that side whose embeddings are combined, for convnets: 1 0.7071 0.5. By default the encoder's own."""
    out: Path | None = None
    """Folder of a new encoder with the graph. By default the graph is added to the encoder's own folder, and for a
    weights name the encoder goes into the cache, where the name finds it."""
    overwrite: Switch = False
    """Replace what is in --out."""
    json: Json = False


def run(arguments: Arguments) -> int:
    """Export an encoder, and print where it is."""
    from vitrieve.runtime.export import export

    made = export(
        arguments.encoder,
        arguments.out,
        image_size=arguments.image_size,
        scales=arguments.scales,
        overwrite=arguments.overwrite,
    )
    if arguments.json:
        values = {**asdict(made), "folder": str(made.folder), "onnx": made.graph.name}
        del values["graph"]
        print_json(values)
        return 0
    print_result(
        f"{made.graph}: {made.num_bytes / 1e6:.1f} MB, {made.image_size} px, {made.embedding_dim} dimensions, cosine "
        f"to torch {made.cosine:.6f}"
    )
    return 0
