"""Small copies that are laid on each other: how well their tiles agree, and where their edges are moved to."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vitrieve.curation import placing
from vitrieve.curation.alignment import MAX_STEP, find_moves, multiply, resample
from vitrieve.curation.placing import measure_tiles, settle


def draw_smooth(num_pictures: int, shape: tuple[int, int]) -> np.ndarray:
    generator = np.random.default_rng(0)
    blocks = generator.uniform(0, 255, (num_pictures, 7, 7)).astype(np.float32)
    resized = [Image.fromarray(one).resize(shape[::-1], Image.Resampling.BICUBIC) for one in blocks]
    return np.stack([np.asarray(one) for one in resized])


def test_tiles_are_compared_as_a_slow_loop_does() -> None:
    generator = np.random.default_rng(1)
    wholes = generator.uniform(0, 255, (40, 13, 15)).astype(np.float32)
    noise = generator.uniform(0, 255, wholes.shape) * np.linspace(0, 1.5, len(wholes))[:, None, None]
    parts = (0.5 * wholes + noise).astype(np.float32)
    slow = [measure_slowly(*pair) for pair in zip(wholes, parts, strict=True)]
    assert measure_tiles(wholes, parts) == pytest.approx(slow, abs=1e-4)
    inside = np.zeros(wholes.shape, dtype=bool)
    inside[:, 2:11, 3:] = True
    slow = [measure_slowly(*pair) for pair in zip(wholes[:, 2:11, 3:], parts[:, 2:11, 3:], strict=True)]
    assert measure_tiles(wholes, parts, inside) == pytest.approx(slow, abs=1e-4)
    assert measure_tiles(wholes[:, :5], parts[:, :5]).tolist() == [1] * len(wholes)
    assert measure_tiles(wholes[:2], parts[:2], np.zeros((2, 13, 15), dtype=bool)).tolist() == [1, 1]


def measure_slowly(whole: np.ndarray, part: np.ndarray) -> float:
    """Compare tile by tile; so many of the worst as may differ do not count."""
    one, other = (picture.astype(float) - picture.mean() for picture in (whole, part))
    other *= np.linalg.norm(one) / np.linalg.norm(other)
    size, noise = placing.COARSE_TILE_PX, placing.COARSE_NOISE**2
    found = []
    for top in range(one.shape[0] - size + 1):
        for left in range(one.shape[1] - size + 1):
            first, second = (picture[top : top + size, left : left + size].ravel() for picture in (one, other))
            both = np.cov(first, second, bias=True)
            found.append((2 * both[0, 1] + noise) / (both[0, 0] + both[1, 1] + noise))
    return sorted(found)[int(len(found) * (1 - placing.COARSE_SHARE))]


def test_parts_are_laid_as_the_means_of_what_each_pixel_covers() -> None:
    parts = draw_smooth(3, (24, 36))
    frames = np.array([[0.0, 24.0, 0.0, 36.0], [0.0, 12.0, 0.0, 12.0], [2.25, 10.5, -3.0, 12.0]])
    laid = resample(parts, frames, (24, 36))
    assert laid[0] == pytest.approx(parts[0], abs=1e-3)
    assert laid[1, :12, :12] == pytest.approx(parts[1].reshape(12, 2, 12, 3).mean(axis=(1, 3)), abs=1e-3)
    assert not laid[1, 12:].any()
    large = np.repeat(np.repeat(parts[2], 33, axis=0), 15, axis=1)  # 24 pixels to 8.25 rows, 36 to 15 columns
    covered = large[96 * 11 // 4 : 96 * 15 // 4, 36 * 7 : 36 * 8]  # 96 rows to a pixel, 36 columns
    assert laid[2, 5, 4] == pytest.approx(covered.mean(), abs=1e-2)


def test_edges_move_to_where_the_part_is_and_many_move_as_each_alone() -> None:
    right = np.tile([0.0, 20.0, 0.0, 18.0], (8, 1)) + np.linspace(-0.5, 0.5, 8)[:, None] * [0, 0, 1, 1]
    parts = draw_smooth(8, (80, 72))
    wholes = resample(parts, right, (20, 18))
    wrong = right + np.array([0.4, -0.3, 0.2, 0.5])
    frames, agreements = settle(wholes, parts, wrong)
    assert np.abs(frames - right).max() < 0.15
    assert agreements.min() > 0.95
    alone = [settle(wholes[row : row + 1], parts[row : row + 1], wrong[row : row + 1])[0][0] for row in range(8)]
    assert frames == pytest.approx(np.array(alone), abs=1e-3)
    moves = find_moves(wholes, parts, wrong, 1.0)
    assert np.abs(moves).max() <= MAX_STEP * 20 + 1e-9
    assert moves == pytest.approx(
        np.array([moves_slowly(*one) for one in zip(wholes, parts, wrong, strict=True)]), abs=2e-3
    )


def moves_slowly(whole: np.ndarray, part: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Solve the weighted least squares of one pair, pixel by pixel, in float64."""
    laid = resample(part[None], frame[None], whole.shape)[0].astype(float)
    rows = [row for row in range(whole.shape[0]) if frame[0] + 1 <= row + 1e-3 and row + 1 <= frame[1] - 1 + 1e-3]
    columns = [one for one in range(whole.shape[1]) if frame[2] + 1 <= one + 1e-3 and one + 1 <= frame[3] - 1 + 1e-3]
    chosen = np.ix_(rows, columns)
    gain = whole[chosen].std() / laid[chosen].std()
    rest = whole[chosen] - whole[chosen].mean() - gain * (laid[chosen] - laid[chosen].mean())
    scale = 2 * np.abs(rest).mean() + 2
    down, across = np.gradient(laid)
    normal, wanted = np.zeros((6, 6)), np.zeros(6)
    for number, row in enumerate(rows):
        for place, column in enumerate(columns):
            below = (row + 0.5 - frame[0]) / (frame[1] - frame[0])
            beside = (column + 0.5 - frame[2]) / (frame[3] - frame[2])
            down_here, across_here = -gain * down[row, column], -gain * across[row, column]
            cause = np.array(
                [
                    down_here * (1 - below),
                    down_here * below,
                    across_here * (1 - beside),
                    across_here * beside,
                    laid[row, column],
                    1,
                ]
            )
            weight = 1 / (1 + (rest[number, place] / scale) ** 2)
            normal += weight * np.outer(cause, cause)
            wanted += weight * cause * rest[number, place]
    normal[range(4), range(4)] += 0.01 * len(rows) * len(columns)
    normal[range(4, 6), range(4, 6)] += 1e-6 * normal[4, 4] + 1e-6
    return np.clip(np.linalg.solve(normal, wanted)[:4], -MAX_STEP * max(whole.shape), MAX_STEP * max(whole.shape))


def test_products_in_pieces_are_products() -> None:
    generator = np.random.default_rng(0)
    left, right = generator.normal(size=(2, 97, 90)).astype(np.float32), generator.normal(size=(90, 80))
    assert multiply(left, right.astype(np.float32)) == pytest.approx(left @ right, abs=1e-3)
    assert multiply(left[0], right.astype(np.float32)).shape == (97, 80)
