"""``vitrieve quantise``: an exported encoder in int8, calibrated on the user's pictures."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitrieve.cli.arguments import Exclude, Switch
from vitrieve.cli.console import print_json, print_message, print_result
from vitrieve.errors import ConfigError, DecodeError
from vitrieve.runtime.quantisation import Preset

if TYPE_CHECKING:
    import numpy as np

    from vitrieve.data.preprocess import Preprocessing
    from vitrieve.data.records import ImageRecord


NUM_TIMED, NUM_ROUNDS = 64, 3
"""Pictures whose embedding is timed, and how often."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Add a graph in int8 to an encoder, for --precision int8, and tell how much faster it is here.

    What it costs in recall, evaluate tells on pictures with labels.
    """

    encoder: str
    """A run, an encoder's folder, or a weights name; it must be exported (vitrieve export)."""
    images: str
    """Pictures like those to embed: a folder, or a source (grocery:DIR, emoji, …). Of a source with a training split
    only that is used."""
    exclude: Exclude = ()
    """Leave out of the folder, like a line of .vitrieveignore: --exclude drafts/ --exclude '*_small.jpg'."""
    image_size: int | None = None
    """Of a weights name: which of its exports; by default its own size."""
    num_images: int = 300
    """Pictures to calibrate on, drawn at random."""
    preset: Preset = "mixed"
    """performance: some percent faster, and less exact."""
    seed: int = 0
    """Of the draw."""
    json: Switch = False
    """Print one JSON object."""


def run(arguments: Arguments) -> int:
    """Calibrate, and print where the graph is and how near it comes."""
    from vitrieve.data.sources import read_collection
    from vitrieve.model.artefact import INT8_NAMES, read_spec
    from vitrieve.runtime.quantisation import quantise_folder

    if arguments.num_images < 1:
        raise ConfigError(f"num_images is {arguments.num_images}; expected 1 or more.")
    folder = _find_folder(arguments)
    dataset = read_collection(arguments.images, exclude=arguments.exclude)
    for note in dataset.notes:
        print_message(note)
    drawn = _draw(dataset.split("train") or dataset.records, arguments)
    squares = _read_squares(drawn, read_spec(folder).preprocessing)
    print_message(f"quantising {arguments.encoder} on {len(squares)} pictures")
    cosine = quantise_folder(folder, squares, arguments.preset)
    speeds = _measure_speeds(folder, squares[:NUM_TIMED])
    num_bytes = sum((folder / name).stat().st_size for name in INT8_NAMES)
    if arguments.json:
        made = {"folder": str(folder), "num_bytes": num_bytes, "num_images": len(squares), "cosine": cosine}
        print_json({**made, "images_per_second": speeds})
    else:
        print_result(f"{folder / INT8_NAMES[0]}: {num_bytes / 1e6:.1f} MB, smallest cosine to fp32 {cosine:.4f}")
        (usual, usual_speed), (_, speed) = speeds.items()
        print_result(
            f"here: {speed:.0f} images/s, {speed / usual_speed:.2f} times as many as in {usual} ({usual_speed:.0f})"
        )
        print_message("use it with --precision int8" if speed > usual_speed else f"stay with --precision {usual}")
    return 0


def _measure_speeds(folder: Path, squares: Sequence[np.ndarray]) -> dict[str, float]:
    """Return images a second in the usual precision and in int8, by name: medians of rounds that alternate."""
    from PIL import Image

    from vitrieve.runtime.encoder import load_encoder

    pictures = [Image.fromarray(square) for square in squares]
    usual, short = load_encoder(folder, engine="openvino"), load_encoder(folder, precision="int8")
    seconds: dict[str, list[float]] = {usual.precision: [], short.precision: []}
    for _ in range(1 + NUM_ROUNDS):
        for encoder in (usual, short):
            start = time.perf_counter()
            encoder.encode(pictures)
            seconds[encoder.precision].append(time.perf_counter() - start)
    return {name: len(pictures) / statistics.median(rounds[1:]) for name, rounds in seconds.items()}  # less warm-up


def _find_folder(arguments: Arguments) -> Path:
    from vitrieve.model.named_graph import has_named_graph, make_named_folder
    from vitrieve.model.pretrained import find_weights, get_export_folder
    from vitrieve.runtime.encoder import find_source_folder

    folder = find_source_folder(arguments.encoder)
    if folder is not None:
        if arguments.image_size is not None:
            raise ConfigError(f"--image-size is for weights names; {arguments.encoder} has its own.")
        return folder
    entry = find_weights(arguments.encoder)
    size = arguments.image_size or entry.image_size
    if has_named_graph(entry):
        make_named_folder(entry, size)
    folder = get_export_folder(arguments.encoder, size)
    if not folder.is_dir():
        raise ConfigError(
            f"{arguments.encoder} at {size} px is not exported; run first: vitrieve export --encoder "
            f"{arguments.encoder} --image-size {size}"
        )
    return folder


def _draw(records: Sequence[ImageRecord], arguments: Arguments) -> list[ImageRecord]:
    import numpy as np

    order = np.random.default_rng(arguments.seed).permutation(len(records))
    return [records[place] for place in order[: arguments.num_images]]


def _read_squares(records: Sequence[ImageRecord], preprocessing: Preprocessing) -> list[np.ndarray]:
    """Prepare pictures as embedding does; those that cannot be read are said and left out."""
    from vitrieve.data.decode import read_image
    from vitrieve.data.preprocess import to_square

    squares = []
    for record in records:
        try:
            squares.append(to_square(read_image(record), preprocessing))
        except DecodeError as error:
            print_message(str(error))
    return squares
