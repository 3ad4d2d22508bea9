"""What an engine is: the part of an encoder that computes. Next file: ``torch_engine.py``."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np

EngineName = Literal["torch", "onnx"]


class Engine(Protocol):
    """Computes embeddings of a few prepared pictures at a time.

    Attributes:
        name: Which engine it is.
        precision: Of its matrix products: ``fp32`` or ``bf16``; what it returns is always float32.
    """

    name: EngineName
    precision: str

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Turn ``(B, 3, S, S)`` float32 into ``(B, E)`` float32 rows of unit length; B is at least 1."""
        ...

    def patch_tokens(self, pixels: np.ndarray) -> np.ndarray:
        """Turn ``(B, 3, S, S)`` float32 into ``(B, N, D)`` float32 tokens of the patches; B is at least 1."""
        ...
