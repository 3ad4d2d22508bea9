"""ONNX export: an encoder as a graph that runs without torch, checked against torch."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vitrieve.errors import ArtifactError
from vitrieve.model.artifact import (
    EMBEDDING_OUTPUT,
    ONNX_NAME,
    PATCH_TOKENS_OUTPUT,
    PIXELS_INPUT,
    forget_export,
    note_export,
)
from vitrieve.model.backbone import evaluation_mode
from vitrieve.model.blocks import forward_both_apart
from vitrieve.model.encoder import ImageEncoder, read_encoder
from vitrieve.writing import removing_unfinished, replacing_durably

OPSET = 17
"""The first with LayerNormalization as one operator."""
MIN_COSINE = 0.9999
CHECKED_BATCH_SIZES = (1, 2, 5)
"""Not the traced batch size only: a graph with a fixed batch would pass that."""
TRACED_BATCH_SIZE = 2
SMALLEST_NORM = 1e-12
_QUIET_LOGGERS = {"torch.onnx": logging.ERROR, "coremltools": logging.CRITICAL}
"""torch warns of its own age and of every Python value it makes a constant; coremltools logs each operator that it
does not know as an error before it raises one."""


class _AllOutputs(nn.Module):
    """What is traced: embedding and patch tokens of one pass; of a backbone that puts none out, the embedding alone."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.names = [EMBEDDING_OUTPUT, *([PATCH_TOKENS_OUTPUT] if encoder.layout.has_patches else [])]

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs, in the order of ``names``."""
        has_patches = self.encoder.layout.has_patches
        return forward_both_apart(self.encoder, pixels) if has_patches else (self.encoder(pixels),)


def export_folder(folder: Path) -> float:
    """Add ``encoder.onnx`` to an encoder's folder, or replace it, and note it in the manifest.

    Returns:
        The smallest cosine between torch's and the graph's results, at least 0.9999.

    Raises:
        ArtifactError: The folder is not a complete encoder, or the graph differs from torch.
        DiskFullError: The disk has no room for the graph.
    """
    encoder = read_encoder(folder)
    num_bytes = sum(tensor.nbytes for tensor in encoder.state_dict().values())
    with replacing_durably(folder / ONNX_NAME, num_bytes=num_bytes) as temporary:
        cosine = export_onnx(encoder, temporary)
        forget_export(folder, (ONNX_NAME,))
    note_export(folder, (ONNX_NAME,))
    return cosine


def export_onnx(encoder: ImageEncoder, path: Path) -> float:
    """Write an encoder as an ONNX graph and check it with ONNX Runtime against torch in fp32.

    Input ``pixels`` ``(B, 3, S, S)``; outputs ``embedding`` ``(B, E)`` and, where the backbone puts them out,
    ``patch_tokens`` ``(B, N, D)``; B is free.

    Args:
        encoder: Left in the mode it was in.
        path: File to write.

    Returns:
        The smallest cosine between torch's and the graph's results, at least 0.9999.

    Raises:
        ArtifactError: The graph differs from torch; the file is removed.
    """
    size = encoder.spec.preprocessing.image_size
    with evaluation_mode(encoder):
        traced = _AllOutputs(encoder)
        with torch.inference_mode(), quiet_export():
            torch.onnx.export(
                traced.eval(),
                (torch.zeros(TRACED_BATCH_SIZE, 3, size, size),),
                str(path),
                input_names=[PIXELS_INPUT],
                output_names=traced.names,
                dynamic_axes={name: {0: "B"} for name in (PIXELS_INPUT, *traced.names)},
                opset_version=OPSET,
                dynamo=False,  # the newer exporter needs onnxscript; to change when torch removes this one
            )
        cosine = _compare(encoder, traced.names, path)
    with removing_unfinished(path):
        require_equal(
            cosine, f"the exported graph of {encoder.spec.backbone}", advice="Use the engine torch for this encoder."
        )
    return cosine


def require_equal(cosine: float, what: str, *, advice: str, other: str = "torch") -> None:
    """Refuse an export that computes something else than what it was made of.

    Args:
        cosine: Smallest cosine between rows of the two.
        what: The export, for the message.
        advice: What to do instead, as a sentence.
        other: What it was compared with.

    Raises:
        ArtifactError: The cosine is less than 0.9999, or NaN.
    """
    if not cosine >= MIN_COSINE:
        raise ArtifactError(
            f"{what} differs from {other} (cosine {cosine:.6f}; expected at least {MIN_COSINE}); nothing was kept. "
            f"{advice}"
        )


@contextmanager
def quiet_export() -> Iterator[None]:
    """Silence an exporter for the whole process: what it warns of, logs and prints."""
    with ExitStack() as stack:
        for name, level in _QUIET_LOGGERS.items():
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(level)
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(redirect_stderr(io.StringIO()))
        warnings.simplefilter("ignore")
        yield


def _compare(encoder: ImageEncoder, names: list[str], path: Path) -> float:
    """Return the smallest cosine over several batch sizes, of all outputs, row by row."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    size, generator = encoder.spec.preprocessing.image_size, torch.Generator().manual_seed(0)
    cosines = []
    for batch_size in CHECKED_BATCH_SIZES:
        pixels = torch.randn(batch_size, 3, size, size, generator=generator)
        with torch.inference_mode():
            expected = encoder.forward_both(pixels) if len(names) > 1 else (encoder(pixels),)
        found = session.run(names, {PIXELS_INPUT: pixels.numpy()})
        cosines += [compare_rows(ours.numpy(), theirs) for ours, theirs in zip(expected, found, strict=True)]
    return min(cosines)


def compare_rows(a: np.ndarray, b: np.ndarray) -> float:
    """Return the smallest cosine between rows of the last dimension; -1 for different shapes."""
    if a.shape != b.shape:
        return -1.0
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosines = (a * b).sum(axis=-1) / np.maximum(norms, SMALLEST_NORM)
    are_zero = (np.abs(a).max(axis=-1) < SMALLEST_NORM) & (np.abs(b).max(axis=-1) < SMALLEST_NORM)
    return float(np.where(are_zero, 1.0, cosines).min())  # a ReLU can make a position of a feature map all zero
