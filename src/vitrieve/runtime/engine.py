"""What an engine is: the part of an encoder that computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NoReturn, Protocol

from vitrieve.errors import ConfigError
from vitrieve.runtime.device import DeviceName

if TYPE_CHECKING:
    import numpy as np  # not otherwise: commands import this for the names of their flags

EngineName = Literal["openvino", "onnx", "torch"]
CPU_BATCH_SIZE = 16
"""Pictures in one call of an engine: 8 to 16 stay in the cache of a CPU (torch in bf16: 50 images/s, 35 for 64)."""
GPU_BATCH_SIZE = 128
"""The same on a GPU, which has thousands of cores to keep busy (assumed, not measured)."""
NO_PATCHES = (
    "this encoder puts out no tokens of patches, which explanations need; choose an encoder of a plain vision "
    "transformer or a convnet for them."
)


def choose_batch_size(device_type: str) -> int:
    """Choose the pictures in one forward pass on a device: as many as keep it busy, and its caches warm."""
    return CPU_BATCH_SIZE if device_type == "cpu" else GPU_BATCH_SIZE


class Engine(Protocol):
    """Computes embeddings of a few prepared pictures at a time.

    Attributes:
        name: Which engine it is.
        precision: Of its matrix products: ``fp32``, ``bf16`` or ``int8``; what it returns is always float32.
        num_parallel: Calls that it computes side by side, from as many threads; others wait for their turn.
        device: Where it computes.
        batch_size: Pictures in one call with which it is fastest.
    """

    name: EngineName
    precision: str
    num_parallel: int
    device: DeviceName
    batch_size: int

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Turn ``(B, 3, S, S)`` float32 into ``(B, E)`` float32 rows of unit length; B is at least 1."""
        ...

    def encode_squares(self, squares: np.ndarray) -> np.ndarray:
        """Turn ``(B, S, S, 3)`` uint8, not yet normalized, into what ``encode`` gives; B is at least 1."""
        ...

    def patch_tokens(self, pixels: np.ndarray) -> np.ndarray:
        """Turn ``(B, 3, S, S)`` float32 into ``(B, N, D)`` float32 tokens of the patches; B is at least 1."""
        ...


class ClosedEngine:
    """What stands in the place of an engine that was let go: it says so to whoever still uses it."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.precision, self.num_parallel = engine.name, engine.precision, engine.num_parallel
        self.device, self.batch_size = engine.device, engine.batch_size

    def encode(self, pixels: np.ndarray) -> NoReturn:
        """Refuse."""
        raise ConfigError("this encoder is closed; load it again (load_encoder).")

    def encode_squares(self, squares: np.ndarray) -> NoReturn:
        """Refuse."""
        self.encode(squares)

    def patch_tokens(self, pixels: np.ndarray) -> NoReturn:
        """Refuse."""
        self.encode(pixels)
