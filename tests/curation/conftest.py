"""A folder with copies, and an encoder that needs no network to see what is alike."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrieve.runtime.encoder import Encoder, load_encoder


@pytest.fixture(scope="session")
def encoder(tiny_encoder_folder: Path) -> Encoder:
    return load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Eight pictures of random blocks; of 0 a copy of the file, the same pixels, and a smaller one; one unreadable."""
    folder = tmp_path / "album"
    (folder / "more").mkdir(parents=True)
    generator = np.random.default_rng(1)
    for number in range(8):
        blocks = Image.fromarray(generator.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        blocks.resize((60, 48), Image.Resampling.NEAREST).save(folder / f"{number}.png")
    shutil.copy(folder / "0.png", folder / "more" / "same_file.png")
    with Image.open(folder / "0.png") as image:
        image.save(folder / "more" / "same_pixels.bmp")
        image.resize((40, 32), Image.Resampling.LANCZOS).save(folder / "more" / "smaller.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    return folder
