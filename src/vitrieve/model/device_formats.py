"""An encoder as one file for torch without this package, for Apple's devices, and for Android and small computers.

Each takes prepared pictures, ``pixels`` ``(B, 3, S, S)`` float32, and gives ``embedding`` ``(B, E)`` of unit length;
``preprocessor_config.json`` beside it tells how a picture is prepared. The converters are packages of their own, which
are looked for when they are needed: ``coremltools`` and ``litert-torch``.

Each function leaves the encoder in the mode it was in, writes to a folder that exists, and returns the smallest cosine
between the encoder and what was written, where that runs here. A converter that is missing or fails is a
``ConfigError``, and a program that computes something else an ``ArtifactError``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrieve.errors import ConfigError, first_line
from vitrieve.model.artifact import EMBEDDING_OUTPUT, PIXELS_INPUT
from vitrieve.model.backbone import evaluation_mode
from vitrieve.model.encoder import ImageEncoder
from vitrieve.model.export import CHECKED_BATCH_SIZES, compare_rows, quiet_export, require_equal
from vitrieve.model.preprocessor import PREPROCESSOR_NAME, describe_preprocessing
from vitrieve.writing import write_text_durably

PROGRAM_NAME, COREML_NAME, TFLITE_NAME = "encoder.pt2", "encoder.mlpackage", "encoder.tflite"
MAX_BATCH_SIZE = 1 << 16
"""Most pictures of a batch that a program of ``torch.export`` takes; the exporter wants a bound."""
MAX_REASON_LENGTH = 200


def write_program(encoder: ImageEncoder, folder: Path) -> float:
    """Write a program of ``torch.export``, for batches of any size, and compare it when it is read again."""
    pixels = _draw_pixels(encoder, 2)
    sizes = {PIXELS_INPUT: {0: torch.export.Dim("batch", min=1, max=MAX_BATCH_SIZE)}}
    path = str(folder / PROGRAM_NAME)
    with _converting(encoder, "torch.export"):
        program = torch.export.export(encoder, (pixels,), dynamic_shapes=sizes, strict=False)
        torch.export.save(program, path)
        read = torch.export.load(path).module()
    _describe_input(encoder, folder)
    return _compare(encoder, "torch.export", CHECKED_BATCH_SIZES, lambda given: read(given).numpy())


def write_coreml(encoder: ImageEncoder, folder: Path) -> None:
    """Write a program of Core ML (from iOS 16 and macOS 13 on), for one picture, in float32.

    It is converted on Linux and macOS; it runs, and so can be compared, on macOS alone, which is not done here.
    """
    tools = _require("coremltools", "coremltools")
    pixels = _draw_pixels(encoder, 1)
    with _converting(encoder, "coremltools"):
        # What is left of the shapes becomes numbers, which the converter does not compute.
        traced = torch.jit.freeze(torch.jit.trace(encoder, pixels))  # type: ignore[no-untyped-call]
        model = tools.convert(
            traced,
            inputs=[tools.TensorType(name=PIXELS_INPUT, shape=tuple(pixels.shape), dtype=np.float32)],
            outputs=[tools.TensorType(name=EMBEDDING_OUTPUT, dtype=np.float32)],
            minimum_deployment_target=tools.target.iOS16,
            compute_precision=tools.precision.FLOAT32,
            skip_model_load=True,
        )
        model.save(str(folder / COREML_NAME))
    _describe_input(encoder, folder)


def write_tflite(encoder: ImageEncoder, folder: Path) -> float:
    """Write a graph of LiteRT, which was TensorFlow Lite, for one picture, and compare it."""
    converter = _require("litert_torch", "litert-torch")
    runtime = _require("ai_edge_litert.interpreter", "litert-torch")
    path = folder / TFLITE_NAME
    with _converting(encoder, "litert-torch"):
        converter.convert(encoder, (_draw_pixels(encoder, 1),)).export(str(path))
        interpreter = runtime.Interpreter(model_path=str(path))
        interpreter.allocate_tensors()

    def run(pixels: Tensor) -> np.ndarray:
        (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
        rows = []
        for row in pixels.numpy():
            interpreter.set_tensor(source["index"], row[None])
            interpreter.invoke()
            rows.append(interpreter.get_tensor(target["index"]))
        return np.concatenate(rows)

    _describe_input(encoder, folder)
    return _compare(encoder, "litert-torch", (3,), run)


def _draw_pixels(encoder: ImageEncoder, batch_size: int) -> Tensor:
    size = encoder.spec.preprocessing.image_size
    return torch.randn(batch_size, 3, size, size, generator=torch.Generator().manual_seed(batch_size))


def _compare(
    encoder: ImageEncoder, name: str, batch_sizes: tuple[int, ...], run: Callable[[Tensor], np.ndarray]
) -> float:
    cosines = []
    with evaluation_mode(encoder), torch.inference_mode():
        for batch_size in batch_sizes:
            pixels = _draw_pixels(encoder, batch_size)
            cosines.append(compare_rows(encoder(pixels).numpy(), run(pixels)))
    cosine = min(cosines)
    require_equal(cosine, f"what {name} made of {encoder.spec.backbone}", advice="Export it as onnx.")
    return cosine


def _describe_input(encoder: ImageEncoder, folder: Path) -> None:
    told = json.dumps(describe_preprocessing(encoder.spec.preprocessing), indent=2)
    write_text_durably(folder / PREPROCESSOR_NAME, told + "\n")


def _require(module: str, package: str) -> Any:
    try:
        with quiet_export():
            return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"this format needs the package {package} ({error.name or error}): pip install {package}."
        ) from None


@contextmanager
def _converting(encoder: ImageEncoder, name: str) -> Iterator[None]:
    """Silence a converter, and turn what it raises (each its own) into one message."""
    try:
        with evaluation_mode(encoder), torch.no_grad(), quiet_export():
            yield
    except Exception as error:
        raise ConfigError(
            f"{name} cannot convert {encoder.spec.backbone} ({first_line(error)[:MAX_REASON_LENGTH]}); export it as "
            "onnx."
        ) from error
