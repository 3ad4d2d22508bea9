"""Texts inside pictures, read by RapidOCR on ONNX Runtime (the extra ``ocr``), whose weights are in its wheel."""

from __future__ import annotations

import threading
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

from vitrieve.errors import ConfigError

MAX_SIDE_PX = 1_600
"""Larger pictures are shrunk to this side before they are read: small print of a photographed package stays legible."""
MIN_SIDE_PX = 12
"""Smaller pictures have no legible text."""
MAX_RATIO = 2
"""Longer or taller pictures are padded to this ratio of their sides: the detector enlarges the shorter side to 736 px,
whatever becomes of the longer one."""
MAX_LINE_RATIO = 40
"""Lines that are longer for their height are not read: some hundred characters, or no text at all."""
MAX_LINES = 64
"""Lines of text that are read of one picture, the largest first; each takes about as long as the next."""
MAX_CHARACTERS = 2_000
"""Characters that are kept of one picture."""
MIN_CONFIDENCE = 0.5
"""Lines that RapidOCR is less sure of are left out, as it does by itself."""


class PictureReader:
    """Reads the text in pictures; threads may share it, each has a recognizer of its own with one thread.

    Raises:
        ConfigError: RapidOCR is not installed.
    """

    def __init__(self) -> None:
        if find_spec("rapidocr_onnxruntime") is None:
            raise ConfigError(
                "reading the text in pictures needs rapidocr-onnxruntime: pip install 'vitrieve[ocr]'; "
                "or read no more of it with --no-ocr."
            )
        self._local = threading.local()

    def __call__(self, picture: Image.Image) -> str:
        """Read the lines of a picture.

        Args:
            picture: Upright RGB picture.

        Returns:
            The lines from top to bottom, joined by line breaks; empty where there is none.

        Raises:
            Exception: OpenCV or ONNX Runtime fails, for want of memory for example; they share no base class.
        """
        if min(picture.size) < MIN_SIDE_PX:
            return ""
        small = picture.convert("RGB")
        small.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
        width_px, height_px = small.size
        padded = Image.new("RGB", (max(width_px, height_px // MAX_RATIO), max(height_px, width_px // MAX_RATIO)))
        padded.paste(small)
        pixels = np.ascontiguousarray(np.asarray(padded)[:, :, ::-1])  # OpenCV's order of colors
        return "\n".join(self._read(pixels))[:MAX_CHARACTERS]

    def _read(self, pixels: np.ndarray) -> list[str]:
        engine = self._find_engine()
        boxes, _ = engine.text_det(pixels)
        if boxes is None or not len(boxes):
            return []
        order = sorted(range(len(boxes)), key=lambda row: -_measure(boxes[row]))[:MAX_LINES]
        boxes = engine.sorted_boxes(np.asarray(boxes)[sorted(order)])
        crops = [
            crop for crop in engine.get_crop_img_list(pixels, boxes) if crop.shape[1] <= MAX_LINE_RATIO * crop.shape[0]
        ]
        if not crops:
            return []
        crops, _, _ = engine.text_cls(crops)
        found, _ = engine.text_rec(crops)
        return [text for text, confidence, *_ in found if float(confidence) >= MIN_CONFIDENCE and text.strip()]

    def _find_engine(self) -> Any:
        engine = getattr(self._local, "engine", None)
        if engine is None:
            from rapidocr_onnxruntime import RapidOCR

            engine = RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1)
            self._local.engine = engine
        return engine


def _measure(box: np.ndarray) -> float:
    """Return the height of a line in pixels."""
    return float(np.linalg.norm(box[0] - box[3]))
