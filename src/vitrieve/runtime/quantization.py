"""int8: an exported encoder, quantized after training on some of the user's pictures."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from vitrieve.artifacts import describe_full_disk
from vitrieve.data.preprocess import to_pixels
from vitrieve.errors import ArtifactError, ConfigError, DiskFullError
from vitrieve.model.artifact import (
    EMBEDDING_OUTPUT,
    INT8_NAMES,
    ONNX_NAME,
    PIXELS_INPUT,
    forget_export,
    note_export,
    read_contents,
)
from vitrieve.runtime.openvino_engine import import_openvino, no_telemetry

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
        ArtifactError: The folder is not an exported encoder, or int8 gives other embeddings.
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
    import_openvino()
    import openvino

    pixels = [to_pixels(square, contents.spec.preprocessing)[None] for square in squares]
    graph = openvino.Core().read_model(folder / ONNX_NAME)
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
            shutil.move(Path(scratch) / name, folder / name)
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
    with no_telemetry():
        import nncf
    with redirect_stdout(sys.stderr):  # its progress bars
        return nncf.quantize(
            graph,
            nncf.Dataset(pixels, lambda one: {PIXELS_INPUT: one}),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset(preset),
            subset_size=len(pixels),
        )


def _compare(graph: object, quantized: object, pixels: Sequence[np.ndarray]) -> float:
    """Return the smallest cosine between the embeddings of two graphs."""
    import openvino

    core, settings = openvino.Core(), {"INFERENCE_PRECISION_HINT": "f32"}
    exact, short = (core.compile_model(model, "CPU", settings) for model in (graph, quantized))
    return min(float((exact(one)[0] * short(one)[0]).sum()) for one in pixels)
