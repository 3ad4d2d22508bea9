"""An engine that is asked twice at once."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np

from vitrieve.runtime.device import DeviceName
from vitrieve.runtime.encoder import Encoder
from vitrieve.runtime.engine import Engine, EngineName


class TwoAtOnce:
    """An engine of which every call waits for a second one, and fails after a minute without."""

    name: EngineName = "onnx"
    precision = "fp32"
    num_parallel = 2
    device: DeviceName = "cpu"

    def __init__(self, inner: Engine) -> None:
        self.inner, self.batch_size = inner, inner.batch_size
        self._barrier = threading.Barrier(2, timeout=60)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        self._barrier.wait()
        return self.inner.encode(pixels)

    def encode_squares(self, squares: np.ndarray) -> np.ndarray:
        self._barrier.wait()
        return self.inner.encode_squares(squares)

    def patch_tokens(self, pixels: np.ndarray) -> np.ndarray:
        self._barrier.wait()
        return self.inner.patch_tokens(pixels)


def make_two_at_once(encoder: Encoder) -> Encoder:
    return replace(encoder, runner=TwoAtOnce(encoder.runner))
