"""The ONNX Runtime engine: an exported encoder without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitrieve.data.preprocess import Preprocessing, to_pixels
from vitrieve.errors import ArtifactError, ConfigError
from vitrieve.model.artifact import EMBEDDING_OUTPUT, PATCH_TOKENS_OUTPUT, PIXELS_INPUT
from vitrieve.runtime.device import DeviceName
from vitrieve.runtime.engine import CPU_BATCH_SIZE, NO_PATCHES, EngineName

LOG_ERRORS_ONLY = 3


class OnnxEngine:
    """Runs an exported encoder with ONNX Runtime on the CPU, in fp32.

    Args:
        path: The graph; its checksum is already checked.
        preprocessing: Mean and standard deviation, for ``encode_squares``.
        num_threads: CPU threads of this engine; None: one for each core.

    Raises:
        ArtifactError: The graph cannot be loaded.
    """

    name: EngineName = "onnx"
    device: DeviceName = "cpu"
    batch_size: int = CPU_BATCH_SIZE
    precision: str = "fp32"
    num_parallel: int = 1

    def __init__(self, path: Path, preprocessing: Preprocessing, *, num_threads: int | None = None) -> None:
        import onnxruntime

        self._preprocessing = preprocessing
        options = onnxruntime.SessionOptions()
        options.log_severity_level = LOG_ERRORS_ONLY
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no public base class
            raise ArtifactError(f"ONNX Runtime cannot load {path} ({error}); export the encoder again.") from error

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Turn ``(B, 3, S, S)`` float32 into ``(B, E)`` float32 rows of unit length."""
        return self._run(EMBEDDING_OUTPUT, pixels)

    def encode_squares(self, squares: np.ndarray) -> np.ndarray:
        """Turn ``(B, S, S, 3)`` uint8, not yet normalized, into ``(B, E)`` float32 rows of unit length."""
        return self.encode(to_pixels(squares, self._preprocessing))

    def patch_tokens(self, pixels: np.ndarray) -> np.ndarray:
        """Turn ``(B, 3, S, S)`` float32 into ``(B, N, D)`` float32 tokens of the patches."""
        if PATCH_TOKENS_OUTPUT not in {output.name for output in self._session.get_outputs()}:
            raise ConfigError(NO_PATCHES)
        return self._run(PATCH_TOKENS_OUTPUT, pixels)

    def _run(self, output: str, pixels: np.ndarray) -> np.ndarray:
        feeds = {PIXELS_INPUT: np.ascontiguousarray(pixels, dtype=np.float32)}
        return np.asarray(self._session.run([output], feeds)[0], dtype=np.float32)
