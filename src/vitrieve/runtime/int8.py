"""An exported encoder in int8: calibrated on pictures, added to its folder, and timed beside the usual precision.

The command ``vitrieve quantize`` calls ``quantize``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vitrieve.data.decode import describe_failure, read_image
from vitrieve.data.preprocess import Preprocessing, to_square
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.data.sources import read_collection
from vitrieve.errors import ConfigError, DecodeError
from vitrieve.model.artifact import INT8_NAMES, read_spec
from vitrieve.model.named_graph import has_named_graph, make_named_folder
from vitrieve.model.pretrained import find_weights, get_export_folder
from vitrieve.progress import print_message
from vitrieve.quoting import quote_name
from vitrieve.runtime.encoder import find_source_folder, load_encoder
from vitrieve.runtime.quantization import Preset, quantize_folder

NUM_TIMED, NUM_ROUNDS = 64, 3
"""Pictures whose embedding is timed, and how often."""


@dataclass(frozen=True, kw_only=True)
class Int8Graph:
    """A graph in int8 that was added to an encoder.

    Attributes:
        folder: Of the encoder.
        num_bytes: Size of the graph's files.
        num_images: Pictures that it was calibrated on.
        cosine: The smallest between an embedding in int8 and in fp32.
        speeds: Images a second here, in the usual precision and in int8, by name in this order.
    """

    folder: Path
    num_bytes: int
    num_images: int
    cosine: float
    speeds: dict[str, float]


def quantize(
    encoder: str | Path,
    data: Dataset | str | Path,
    *,
    image_size: int | None = None,
    num_images: int = 300,
    preset: Preset = "mixed",
    seed: int = 0,
) -> Int8Graph:
    """Add a graph in int8 to an exported encoder, and time it.

    Args:
        encoder: A run, an encoder's folder, or a weights name.
        data: Pictures like those to embed: a data set, or a source as ``read_collection`` takes it. Of a data set
            with a training split only that is used.
        image_size: Of a weights name, which of its exports; None: its own size.
        num_images: Pictures to calibrate on, drawn at random; at least 1.
        preset: ``performance`` is some percent faster, and less exact.
        seed: Seed of the draw.

    Raises:
        InputError: The encoder is not exported, or cannot be quantized.
    """
    if num_images < 1:
        raise ConfigError(f"num_images is {num_images}; expected 1 or more.")
    dataset = data if isinstance(data, Dataset) else read_collection(str(data))
    print_message(*dataset.notes)
    folder = _find_folder(str(encoder), image_size)
    records = dataset.records
    training = [record for record in records if record.split == "train"]
    squares = _read_squares(_draw(training or records, num_images, seed), read_spec(folder).preprocessing)
    print_message(f"quantizing {encoder} on {len(squares)} pictures")
    cosine = quantize_folder(folder, squares, preset)
    return Int8Graph(
        folder=folder,
        num_bytes=sum((folder / name).stat().st_size for name in INT8_NAMES),
        num_images=len(squares),
        cosine=cosine,
        speeds=_measure_speeds(folder, squares[:NUM_TIMED]),
    )


def _measure_speeds(folder: Path, squares: Sequence[np.ndarray]) -> dict[str, float]:
    """Return images a second in the usual precision and in int8, by name: medians of rounds that alternate."""
    pictures = [Image.fromarray(square) for square in squares]
    usual, short = load_encoder(folder, engine="openvino"), load_encoder(folder, precision="int8")
    seconds: dict[str, list[float]] = {usual.precision: [], short.precision: []}
    for _ in range(1 + NUM_ROUNDS):
        for encoder in (usual, short):
            start = time.perf_counter()
            encoder.encode(pictures)
            seconds[encoder.precision].append(time.perf_counter() - start)
    return {name: len(pictures) / statistics.median(rounds[1:]) for name, rounds in seconds.items()}  # less warm-up


def _find_folder(encoder: str, image_size: int | None) -> Path:
    folder = find_source_folder(encoder)
    if folder is not None:
        if image_size is not None:
            raise ConfigError(f"--image-size is for weights names; {encoder} has its own.")
        return folder
    entry = find_weights(encoder)
    size = image_size or entry.image_size
    if has_named_graph(entry):
        make_named_folder(entry, size)
    folder = get_export_folder(encoder, size)
    if not folder.is_dir():
        raise ConfigError(
            f"{encoder} at {size} px is not exported; run first: vitrieve export --encoder "
            f"{encoder} --image-size {size}"
        )
    return folder


def _draw(records: Sequence[ImageRecord], num_images: int, seed: int) -> list[ImageRecord]:
    order = np.random.default_rng(seed).permutation(len(records))
    return [records[place] for place in order[:num_images]]


def _read_squares(records: Sequence[ImageRecord], preprocessing: Preprocessing) -> list[np.ndarray]:
    """Prepare pictures as embedding does; those that cannot be read are said and left out."""
    squares = []
    for record in records:
        try:
            squares.append(to_square(read_image(record), preprocessing))
        except (DecodeError, MemoryError) as error:
            print_message(f"{quote_name(record.image_id)}: {describe_failure(error)}")
    return squares
