"""The torch engine: on the processor or on a GPU, bf16 where it has that, without gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vitrieve.choices import Precision
from vitrieve.data.preprocess import to_pixels
from vitrieve.model.blocks import share_for_embedding
from vitrieve.model.encoder import ImageEncoder, evaluation_mode
from vitrieve.runtime.device import DeviceName, resolve_precision
from vitrieve.runtime.engine import EngineName, choose_batch_size


class TorchEngine:
    """Runs an encoder with torch, on the device it is on.

    Args:
        encoder: Run in evaluation mode; left in the mode it was in.
        num_threads: CPU threads, set for the whole process; None: torch's choice.
        precision: ``auto``: bf16 where the processor has instructions for it.
    """

    name: EngineName = "torch"
    num_parallel: int = 1

    def __init__(self, encoder: ImageEncoder, *, num_threads: int | None = None, precision: Precision = "auto") -> None:
        self.encoder = encoder
        self.device: DeviceName = "cuda" if next(encoder.parameters()).device.type == "cuda" else "cpu"
        self.batch_size = choose_batch_size(self.device)
        self.precision: str = resolve_precision(precision, self.device)
        if num_threads is not None:
            torch.set_num_threads(num_threads)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Turn ``(B, 3, S, S)`` float32 into ``(B, E)`` float32 rows of unit length."""
        return self._run(self._embed, pixels)

    def encode_squares(self, squares: np.ndarray) -> np.ndarray:
        """Turn ``(B, S, S, 3)`` uint8, not yet normalized, into ``(B, E)`` float32 rows of unit length."""
        return self.encode(to_pixels(squares, self.encoder.spec.preprocessing))

    def patch_tokens(self, pixels: np.ndarray) -> np.ndarray:
        """Turn ``(B, 3, S, S)`` float32 into ``(B, N, D)`` float32 tokens of the patches."""
        return self._run(self.encoder.patch_tokens, pixels)

    def _embed(self, pixels: Tensor) -> Tensor:
        embeddings: Tensor = share_for_embedding(self.encoder)(pixels)  # anew: its parts may have been replaced
        return embeddings

    def _run(self, function: Callable[[Tensor], Tensor], pixels: np.ndarray) -> np.ndarray:
        is_bf16 = self.precision == "bf16"
        device = next(self.encoder.parameters()).device
        with (
            evaluation_mode(self.encoder),
            torch.inference_mode(),
            torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16),
        ):
            result = function(torch.from_numpy(np.require(pixels, np.float32, ["C", "W"])).to(device))
        return result.cpu().numpy()
