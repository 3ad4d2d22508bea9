"""An exported encoder in int8: quantized on some of the user's pictures, and timed beside the usual precision.

The command ``vitrieve quantize`` calls ``add_int8``.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from vitrieve.data.decode import describe_failure, read_image
from vitrieve.data.preprocess import Preprocessing, to_pixels, to_square
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.data.sources import read_collection
from vitrieve.errors import ArtifactError, ConfigError, DecodeError, DiskFullError
from vitrieve.model.artifact import (
    EMBEDDING_OUTPUT,
    INT8_NAMES,
    ONNX_NAME,
    PIXELS_INPUT,
    forget_export,
    note_export,
    read_contents,
    read_spec,
)
from vitrieve.model.named_graph import has_named_graph, make_named_folder
from vitrieve.model.pretrained import find_weights, get_export_folder
from vitrieve.progress import print_message
from vitrieve.quoting import quote_name
from vitrieve.runtime.encoder import find_source_folder, load_encoder
from vitrieve.runtime.graph_engines import get_openvino_core, no_telemetry
from vitrieve.settings import check_seed
from vitrieve.writing import check_writable, describe_full_disk, replacing_durably

Preset = Literal["mixed", "performance"]
MIN_COSINE = 0.9
"""Below it between int8 and fp32, on any picture, something went wrong in quantizing: nothing is kept."""
NUM_COMPARED = 32


def quantize_folder(folder: Path, squares: Sequence[np.ndarray], preset: Preset = "mixed") -> float:
    """Add ``int8.xml`` and ``int8.bin`` to an exported encoder, or replace them, and note them in the manifest.

    Weights and activations of products become int8, with ranges that fit the pictures given; softmax and norms stay.
    The fingerprint stays too (``compute_fingerprint``).

    Args:
        folder: An exported encoder.
        squares: Pictures, ``(S, S, 3)`` uint8 from ``to_square``; some hundred.
        preset: ``performance``: activations symmetric, faster by some percent. ``mixed``: those of layers with signed
            values only.

    Returns:
        The smallest cosine between the embeddings in int8 and in fp32, over some of the pictures.

    Raises:
        ArtifactError: The folder is not an exported encoder or is read-only, or int8 gives other embeddings.
        ConfigError: NNCF or OpenVINO is not installed, or there is no picture.

    Source:
        Post-training quantization of NNCF with SmoothQuant (Xiao et al., arXiv:2211.10438), as it does for
        transformers.
    """
    if find_spec("nncf") is None or find_spec("openvino") is None:
        raise ConfigError("quantizing needs NNCF and OpenVINO; install vitrieve[int8].")
    if not squares:
        raise ConfigError("quantizing needs pictures to calibrate on; give at least one.")
    contents = read_contents(folder)
    if not contents.has_onnx:
        raise ArtifactError(f"{folder} is not exported; run first: vitrieve export --encoder {folder}")
    check_writable(folder)
    core = get_openvino_core()
    import openvino

    pixels = [to_pixels(square, contents.spec.preprocessing)[None] for square in squares]
    graph = core.read_model(folder / ONNX_NAME)
    graph = openvino.Model([graph.output(EMBEDDING_OUTPUT)], graph.get_parameters(), EMBEDDING_OUTPUT)
    quantized = _quantize(graph, pixels, preset)
    cosine = _compare(graph, quantized, pixels[:NUM_COMPARED])
    if not cosine >= MIN_COSINE:
        raise ArtifactError(f"in int8 an embedding has a cosine of {cosine:.3f} to that in fp32; nothing was kept.")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        with _explaining_stream_errors(folder / INT8_NAMES[0], (folder / ONNX_NAME).stat().st_size):
            openvino.save_model(quantized, Path(scratch) / INT8_NAMES[0], compress_to_fp16=False)
        forget_export(folder, INT8_NAMES)
        for name in INT8_NAMES:
            with replacing_durably(folder / name) as temporary:
                os.replace(Path(scratch) / name, temporary)
    note_export(folder, INT8_NAMES)
    return cosine


@contextmanager
def _explaining_stream_errors(path: Path, max_bytes: int) -> Iterator[None]:
    """Tell a full disk from other faults by the room that is left: OpenVINO says "iostream error" of all of them.

    Args:
        path: The file that is written in the block.
        max_bytes: What it needs at most.

    Raises:
        DiskFullError: There is less room than that.
    """
    try:
        yield
    except RuntimeError as error:
        if shutil.disk_usage(path.parent).free >= max_bytes:
            raise
        raise DiskFullError(describe_full_disk(path)) from error


def _quantize(graph: object, pixels: Sequence[np.ndarray], preset: Preset) -> object:
    with redirect_stdout(sys.stderr):  # its log and its progress bars
        with no_telemetry():
            import nncf
        return nncf.quantize(
            graph,
            nncf.Dataset(pixels, lambda one: {PIXELS_INPUT: one}),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset(preset),
            subset_size=len(pixels),
        )


def _compare(graph: object, quantized: object, pixels: Sequence[np.ndarray]) -> float:
    """Return the smallest cosine between the embeddings of two graphs."""
    core, settings = get_openvino_core(), {"INFERENCE_PRECISION_HINT": "f32"}
    exact, short = (core.compile_model(model, "CPU", settings) for model in (graph, quantized))
    return min(float((exact(one)[0] * short(one)[0]).sum()) for one in pixels)


NUM_TIMED, NUM_ROUNDS = 64, 3
"""Pictures whose embedding is timed, and how often."""


@dataclass(frozen=True, kw_only=True)
class Int8Graph:
    """A graph in int8 that was added to an encoder.

    Attributes:
        folder: Folder of the encoder.
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
        image_size: Image size of the export of a weights name; None: the name's own.
        num_images: Pictures to calibrate on, drawn at random; at least 1.
        preset: ``performance`` is some percent faster, and less exact.
        seed: Seed of the draw.

    Raises:
        InputError: The encoder is not exported, or cannot be quantized.
    """
    if num_images < 1:
        raise ConfigError(f"num_images is {num_images}; expected 1 or more.")
    check_seed(seed)
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
    return [records[row] for row in order[:num_images]]


def _read_squares(records: Sequence[ImageRecord], preprocessing: Preprocessing) -> list[np.ndarray]:
    """Prepare pictures as embedding does; those that cannot be read are said and left out."""
    squares = []
    for record in records:
        try:
            squares.append(to_square(read_image(record), preprocessing))
        except (DecodeError, MemoryError) as error:
            print_message(f"{quote_name(record.image_id)}: {describe_failure(error)}")
    return squares
