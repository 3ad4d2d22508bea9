"""``vitrieve quantize``: an exported encoder in int8, calibrated on the user's pictures."""

from __future__ import annotations

from dataclasses import dataclass

from vitrieve.cli.arguments import Exclude, Json
from vitrieve.cli.console import print_json, print_message, print_result
from vitrieve.runtime.int8 import Preset


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Add a graph in int8 to an encoder, for --precision int8, and tell how much faster it is here.

    What it costs in recall, embed --precision int8 and then evaluate --embeddings tell on pictures with labels.
    """

    encoder: str
    """A run, an encoder's folder, or a weights name; it must be exported (vitrieve export)."""
    data: str
    """Pictures like those to embed: a folder, or a source (grocery:DIR, emoji, …). Of a source with a training split
    only that is used."""
    exclude: Exclude = ()
    image_size: int | None = None
    """Image size of the export that a weights name stands for; by default its own."""
    num_images: int = 300
    """Pictures to calibrate on, drawn at random."""
    preset: Preset = "mixed"
    """performance: some percent faster, and less exact."""
    seed: int = 0
    """Seed of the draw."""
    json: Json = False


def run(arguments: Arguments) -> int:
    """Calibrate, and print where the graph is and how near it comes."""
    from vitrieve.data.sources import read_collection
    from vitrieve.model.artifact import INT8_NAMES
    from vitrieve.runtime.int8 import quantize

    dataset = read_collection(arguments.data, exclude=arguments.exclude)
    made = quantize(
        arguments.encoder,
        dataset,
        image_size=arguments.image_size,
        num_images=arguments.num_images,
        preset=arguments.preset,
        seed=arguments.seed,
    )
    if arguments.json:
        values = {"num_bytes": made.num_bytes, "num_images": made.num_images, "cosine": made.cosine}
        print_json({"folder": str(made.folder), **values, "images_per_second": made.speeds})
        return 0
    graph = made.folder / INT8_NAMES[0]
    print_result(f"{graph}: {made.num_bytes / 1e6:.1f} MB, smallest cosine to fp32 {made.cosine:.4f}")
    (usual, usual_speed), (_, speed) = made.speeds.items()
    print_result(
        f"here: {speed:.0f} images/s, {speed / usual_speed:.2f} times as many as in {usual} ({usual_speed:.0f})"
    )
    print_message("use it with --precision int8" if speed > usual_speed else f"stay with --precision {usual}")
    return 0
