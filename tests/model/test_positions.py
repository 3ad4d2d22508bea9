from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from timm.layers import resample_abs_pos_embed

from vitrieve.model.positions import resample_positions


def draw_table(side: int, num_prefix: int = 1, width: int = 6) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, num_prefix + side * side, width)).astype(np.float32)


@pytest.mark.parametrize("num_prefix", [0, 1, 2])
@pytest.mark.parametrize("side", [1, 2, 8, 9, 16, 24, 36, 38, 45, 74])
def test_resample_positions_equals_timm(side: int, num_prefix: int) -> None:
    table = draw_table(37, num_prefix)
    expected = resample_abs_pos_embed(torch.from_numpy(table), [side, side], num_prefix_tokens=num_prefix)
    found = resample_positions(table, num_prefix, side)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-4)  # torch finds the places in float32


def test_resample_positions_keeps_prefix_and_constants() -> None:
    table = draw_table(5, 2)
    table[:, 2:] = 3.0
    found = resample_positions(table, 2, 3)
    np.testing.assert_array_equal(found[:, :2], table[:, :2])
    np.testing.assert_allclose(found[:, 2:], 3.0, rtol=1e-6)


def test_resample_positions_by_hand() -> None:
    # From 1 to 2 patches every weight falls on the only one; from 2 to 1 both count alike.
    one = np.float32([[[7.0], [2.0]]])
    np.testing.assert_array_equal(resample_positions(one, 1, 2), np.float32([[[7.0], [2.0], [2.0], [2.0], [2.0]]]))
    four = np.float32([[[1.0], [2.0], [3.0], [6.0]]])
    np.testing.assert_allclose(resample_positions(four, 0, 1), [[[3.0]]], rtol=1e-6)


def test_trap_positions_have_the_same_bits_on_every_machine() -> None:
    found = resample_positions(draw_table(7), 1, 4)
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == "f326b172099f3850"
