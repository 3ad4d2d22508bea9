"""``vitrieve export``: flags and result; ``evaluation/export.py`` and ``evaluation/formats.py`` export."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from vitrieve.cli.arguments import MAY_BE_EMPTY, Exclude, Json, Switch
from vitrieve.cli.console import print_json, print_result
from vitrieve.errors import ConfigError

if TYPE_CHECKING:
    from vitrieve.evaluation.export import ExportedEncoder

FormatChoice = Literal["onnx", "sentence-transformers", "torch-export", "coreml", "tflite"]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write an encoder as ONNX (embedding and patch tokens, any batch size), or for another library, checked by torch.

    With --delta-rank write what its weights differ in from those it started from: some hundredth of its size.
    """

    encoder: str
    """A run, an encoder's folder, or a weights name."""
    weights: Path | None = None
    """Weights that others trained, which --encoder gets instead of its own: a .safetensors or .pth file, or a folder,
    for the timm model of that name, or of open_clip. No code in it is run."""
    image_size: int | None = None
    """Side of the square input in pixels; by default the encoder's own."""
    scales: Annotated[tuple[float, ...], MAY_BE_EMPTY] = ()
    """Shares of that side whose embeddings are combined, for convnets: 1 0.7071 0.5. By default the encoder's own."""
    format: FormatChoice = "onnx"
    """What is written. sentence-transformers: a folder that it, transformers and timm open. torch-export: a program for
    torch alone. coreml, tflite: for Apple's devices and Android, by the packages coremltools and litert-torch."""
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
    if arguments.exclude and arguments.data is None:
        raise ConfigError("--exclude leaves files out of the folder of --data; give both or none.")
    if arguments.format != "onnx":
        return _run_other(arguments)
    from vitrieve.data.sources import read_collection
    from vitrieve.evaluation.export import describe_cost, export

    if arguments.weights is not None:
        made = _import(arguments, arguments.weights)
    else:
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


def _import(arguments: Arguments, weights: Path) -> ExportedEncoder:
    """Make an encoder of weights of others."""
    from vitrieve.evaluation.export import import_encoder

    if arguments.out is None:
        raise ConfigError("--weights makes a new encoder: name its folder with --out.")
    if arguments.scales or arguments.delta_rank is not None or arguments.data is not None:
        raise ConfigError("--weights makes an encoder, and --scales, --delta-rank and --data change one: export again.")
    return import_encoder(
        arguments.encoder,
        weights,
        arguments.out,
        image_size=arguments.image_size,
        overwrite=arguments.overwrite,
    )


def _run_other(arguments: Arguments) -> int:
    """Export for another library or device."""
    from vitrieve.evaluation.formats import export_as

    if arguments.weights is not None:
        raise ConfigError("--weights makes an encoder of vitrieve: export that with --format afterwards.")
    if arguments.out is None:
        raise ConfigError(f"--format {arguments.format} writes a folder of its own: name it with --out.")
    if arguments.delta_rank is not None or arguments.data is not None:
        raise ConfigError(
            f"--delta-rank and --data are for a difference of vitrieve's; --format {arguments.format} has none."
        )
    assert arguments.format != "onnx", "which run exports"
    made = export_as(
        arguments.encoder,
        arguments.out,
        arguments.format,
        image_size=arguments.image_size,
        scales=arguments.scales,
        overwrite=arguments.overwrite,
    )
    if arguments.json:
        print_json({**asdict(made), "folder": str(made.folder), "files": list(made.files)})
        return 0
    cosine = "not run here" if made.cosine is None else f"cosine to torch {made.cosine:.6f}"
    print_result(
        f"{made.folder}: {made.num_bytes / 1e6:.1f} MB for {made.format}, {made.image_size} px, {made.embedding_dim} "
        f"dimensions, {cosine}; its README.md shows the use"
    )
    if made.needs_code:
        print_result("the pooling is code in that folder: who opens it passes trust_remote_code=True")
    return 0
