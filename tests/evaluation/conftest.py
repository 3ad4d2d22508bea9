"""Labelled pictures and an encoder without weights, so that a report can be made in a second."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrieve.data.preprocess import build_preprocessing, to_pixels
from vitrieve.data.records import Dataset, GroundTruth, ImageRecord
from vitrieve.runtime.device import DeviceName
from vitrieve.runtime.encoder import Encoder
from vitrieve.runtime.engine import EngineName
from vitrieve.similarity import normalize

CLASS_NAMES = ("apple", "<img src=x onerror=alert(1)>", "Crème & 'brûlée'", "plum")
COLORS = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (190, 60, 160))
IMAGES_PER_CLASS = 4


@dataclass
class GridEngine:
    """Embeds a picture as the mean colors of a grid; counts the pictures, and stops after some when told to."""

    side: int
    num_seen: int = 0
    stop_after: int | None = None
    name: EngineName = "onnx"
    precision: str = "fp32"
    num_parallel: int = 1
    device: DeviceName = "cpu"
    batch_size = 16

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        self.num_seen += len(pixels)
        if self.stop_after is not None and self.num_seen > self.stop_after:
            raise KeyboardInterrupt
        cell = pixels.shape[2] // self.side
        grid = pixels.reshape(len(pixels), 3, self.side, cell, self.side, cell).mean(axis=(3, 5))
        return normalize(grid.reshape(len(pixels), -1))

    def encode_squares(self, squares: np.ndarray) -> np.ndarray:
        return self.encode(to_pixels(squares, build_preprocessing(16)))

    def patch_tokens(self, pixels: np.ndarray) -> np.ndarray:
        raise NotImplementedError


MakeEncoder = Callable[..., Encoder]


@pytest.fixture
def make_encoder() -> MakeEncoder:
    def make(name: str, side: int = 2, stop_after: int | None = None) -> Encoder:
        preprocessing = build_preprocessing(16)
        engine = GridEngine(side=side, stop_after=stop_after)
        return Encoder(
            name=name,
            source=name,
            fingerprint=str(side) * 64,
            embedding_dim=3 * side * side,
            preprocessing=preprocessing,
            runner=engine,
        )

    return make


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Four classes of four noisy pictures under nasty names, among them training pictures that nobody must read."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    records = []
    for label, color in enumerate(COLORS):
        for number in range(IMAGES_PER_CLASS):
            noise = generator.normal(0, 60, (24, 30, 3))
            path = folder / f"{label}-{number}.png"
            Image.fromarray(np.clip(noise + color, 0, 255).astype(np.uint8)).save(path)
            image_id = f"{label}/<b>{number}</b>.png"
            metadata = {"artist": str(number)}
            records.append(ImageRecord(image_id=image_id, path=path, label=label, split="test", metadata=metadata))
    records.append(ImageRecord(image_id="training", path=folder / "missing.png", label=0, split="train"))
    return Dataset(
        name="colors",
        protocol="all",
        records=tuple(records),
        label_names=CLASS_NAMES,
        ks=(1, 2),
        notes=("Made <i>here</i>.",),
        license="CC0 <script>alert(2)</script>",
    )


@pytest.fixture
def judged(dataset: Dataset) -> Dataset:
    """Three queries that only ask, with lists of what they should find: easy and hard, easy only, nothing."""
    records = tuple(
        dataclasses.replace(record, is_query=number in (0, 4, 8), is_gallery=number not in (0, 4, 8), label=0)
        for number, record in enumerate(dataset.records)
    )
    ids = [record.image_id for record in records]
    truths = {
        ids[0]: GroundTruth(easy=(ids[1],), hard=(ids[2],), junk=(ids[3], ids[13])),
        ids[4]: GroundTruth(easy=(ids[5], ids[6]), junk=(ids[7],)),
        ids[8]: GroundTruth(junk=(ids[9],)),
    }
    return dataclasses.replace(
        dataset,
        name="judged",
        protocol="medium",
        records=records,
        label_names=("image",),
        ks=(1, 5, 10),
        ground_truth=truths,
    )
