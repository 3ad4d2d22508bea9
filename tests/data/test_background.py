"""Drawings and catalogue pictures in front of other pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitrieve.config import LoaderConfig
from vitrieve.data.background import find_cutout, paste
from vitrieve.data.loader import TrainingLoader
from vitrieve.data.preprocess import build_preprocessing
from vitrieve.data.records import ImageRecord

RED, BLUE, OFF_WHITE = (200, 10, 10), (10, 10, 200), (250, 252, 248)


def draw_ring(color: tuple[int, int, int] = RED, background: tuple[int, int, int] = OFF_WHITE) -> np.ndarray:
    """A ring of 20 px with a hole of 8 px in the middle of 40 px; the hole has the color of the background."""
    pixels = np.full((40, 40, 3), background, np.uint8)
    pixels[10:30, 10:30] = color
    pixels[16:24, 16:24] = background
    return pixels


def test_find_cutout_takes_what_the_border_does_not_reach() -> None:
    expected = np.zeros((40, 40), bool)
    expected[10:30, 10:30] = True  # with the hole, which the border does not reach
    noisy = draw_ring().astype(np.int16) + np.random.default_rng(0).integers(-4, 5, (40, 40, 3))
    for pixels in (draw_ring(), np.clip(noisy, 0, 255).astype(np.uint8)):
        cutout = find_cutout(Image.fromarray(pixels))
        assert cutout is not None
        assert np.array_equal(cutout, expected)


def test_find_cutout_leaves_photographs_specks_and_plain_pictures_alone() -> None:
    photograph = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    speck, plain, full, cut_off = draw_ring(), np.full((40, 40, 3), 255, np.uint8), draw_ring(), draw_ring()
    speck[10:30, 10:30] = OFF_WHITE
    speck[20:22, 20:22] = RED
    full[1:-1, 1:-1] = RED
    cut_off[:, :20] = RED  # touches the border, and may go on behind it
    for pixels in (photograph, speck, plain, full, cut_off):
        assert find_cutout(Image.fromarray(pixels)) is None


def test_paste_keeps_the_object_and_shows_a_part_of_the_other_picture_around_it() -> None:
    image, other = Image.fromarray(draw_ring()), Image.fromarray(np.full((30, 90, 3), BLUE, np.uint8))
    cutout = find_cutout(image)
    assert cutout is not None
    pasted = np.asarray(paste(image, cutout, other, np.random.default_rng(0)))
    assert np.array_equal(pasted[cutout], draw_ring()[cutout])
    assert (pasted[~cutout] == BLUE).all()
    gradient = Image.fromarray(np.tile(np.linspace(0, 255, 90, dtype=np.uint8)[None, :, None], (30, 1, 3)))
    shown = [np.asarray(paste(image, cutout, gradient, np.random.default_rng(seed)))[0] for seed in range(20)]
    assert len({tuple(row[:, 0].tolist()) for row in shown}) == 20
    assert all(np.ptp(row) < 256 and np.ptp(row) > 255 * 0.2 for row in shown)  # a tenth of the area or more


@pytest.fixture
def records(tmp_path: Path) -> list[ImageRecord]:
    made = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        pixels = draw_ring() if number % 2 else np.full((40, 40, 3), BLUE, np.uint8)
        Image.fromarray(pixels).save(path)
        made.append(ImageRecord(image_id=path.name, path=path, label=number, split="train"))
    return made


def draw_batches(records: list[ImageRecord], start: int = 0, **changes: float) -> list[torch.Tensor]:
    config = LoaderConfig(crop_scale_min=1.0, flip=False, **changes)  # type: ignore[arg-type]
    loader = TrainingLoader(records, config, build_preprocessing(16), batch_size=4, seed=0)
    return [batch.pixels for batch in loader.batches(start, 6)]


def test_batches_show_drawings_on_other_pictures_in_their_share(records: list[ImageRecord]) -> None:
    plain, all_pasted = draw_batches(records), draw_batches(records, background_share=1.0)
    assert all(torch.equal(a, b) for a, b in zip(plain, draw_batches(records, background_share=0.0), strict=True))
    resumed = draw_batches(records, start=4, background_share=1.0)
    assert all(torch.equal(a, b) for a, b in zip(all_pasted[4:], resumed, strict=True))

    def count_blue_corners(batches: list[torch.Tensor]) -> int:
        corners = torch.cat([batch[:, :, 0, 0] for batch in batches])
        return int((corners[:, 1] < 0).sum())  # white is high in green, blue low

    assert count_blue_corners(plain) == 12  # the blue pictures alone, half of 24
    assert 12 < count_blue_corners(draw_batches(records, background_share=0.5)) < count_blue_corners(all_pasted)
