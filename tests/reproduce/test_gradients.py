from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs vitrieve[train]")

from vitrieve.data.loader import Batch  # noqa: E402
from vitrieve.errors import ConfigError  # noqa: E402
from vitrieve.reproduce import analyze, gradients  # noqa: E402
from vitrieve.reproduce.gradients import (  # noqa: E402
    collect_gradients,
    normalize_directions,
    nuclear_norm_of_covariance,
)

MARGIN = 0.2


class Normalizer(torch.nn.Module):
    """An encoder whose pictures are embeddings already; its one weight tells where it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(pixels, dim=1)


embed = Normalizer()


def make_batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor([[0, 1, 2, 3], [4, 1, 5, 0]])
    labels = torch.tensor([0, 0, 1, 1, 0, 2])
    return [Batch(torch.randn(4, 5, generator=generator), labels[picked], picked) for picked in rows]


def test_a_file_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    """The run and the encoder are not there, and yet the message is about what is to be written."""
    for out, message in ((tmp_path, "is a folder"), (tmp_path / "nowhere" / "a.json", "there is no folder")):
        with pytest.raises(ConfigError, match=message):
            gradients.run(gradients.Arguments(run=tmp_path / "none", data="none", out=out))
        with pytest.raises(ConfigError, match=message):
            analyze.run(analyze.Arguments(encoder="none", data="none", out=out))


def test_collect_gradients_equals_a_double_loop() -> None:
    batches = make_batches()
    expected = []
    remembered: list[tuple[np.ndarray, int, int]] = []
    for batch in batches:
        z = embed(batch.pixels).double().numpy()
        labels, rows = batch.labels.tolist(), batch.rows.tolist()
        for i in range(len(z)):
            gradient = np.zeros(5)
            for j in range(len(z)):
                if i == j:
                    continue
                # Each pair is counted from both of its sides.
                if labels[i] == labels[j]:
                    gradient -= 2 * z[j]
                elif z[i] @ z[j] > MARGIN:
                    gradient += 2 * z[j]
            for embedding, label, row in remembered:
                if label == labels[i] and row != rows[i]:
                    gradient -= embedding
                elif label != labels[i] and z[i] @ embedding > MARGIN:
                    gradient += embedding
            expected.append(gradient / len(z))
        remembered += list(zip(z, labels, rows, strict=True))
    found = collect_gradients(embed, batches, MARGIN)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, np.array(expected), atol=1e-6)


def test_nuclear_norm_is_one_minus_the_squared_mean_direction() -> None:
    directions = normalize_directions(np.random.default_rng(0).normal(0.3, 1, (200, 7)))
    expected = 1 - np.sum(directions.mean(axis=0) ** 2)
    assert nuclear_norm_of_covariance(directions) == pytest.approx(expected, abs=1e-12)


def test_nuclear_norm_is_zero_for_one_direction_and_for_none() -> None:
    assert nuclear_norm_of_covariance(np.array([[0.6, 0.8]] * 5)) == pytest.approx(0, abs=1e-12)
    assert nuclear_norm_of_covariance(np.zeros((0, 3))) == 0.0


def test_normalize_directions_leaves_out_what_has_none() -> None:
    found = normalize_directions(np.array([[0.0, 0.0], [0.0, -2.0], [1e-9, 0.0]]))
    np.testing.assert_allclose(found, [[0, -1], [1, 0]])
