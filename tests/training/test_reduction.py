from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.errors import ConfigError
from vitrieve.training.reduction import find_pairs, require_reducible


def test_require_reducible_accepts_what_a_pca_can_give() -> None:
    require_reducible(64, 64, 65)
    require_reducible(1, 64, 2)


@pytest.mark.parametrize(("width", "num_images"), [(63, 1000), (1000, 64)])
def test_require_reducible_refuses_more_dimensions_than_there_can_be(width: int, num_images: int) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 63, for"):
        require_reducible(64, width, num_images)
    with pytest.raises(ConfigError, match="embedding_dim is -3; expected 1 to 63, for"):
        require_reducible(-3, width, num_images)


def test_require_reducible_asks_for_two_images() -> None:
    with pytest.raises(ConfigError, match="embedding_dim is 1; a PCA needs two images or more, and 1 train"):
        require_reducible(1, 64, 1)


def make_records(labels: list[int]) -> tuple[ImageRecord, ...]:
    return tuple(
        ImageRecord(image_id=f"{row}.png", path=Path(f"{row}.png"), label=label, split="train")
        for row, label in enumerate(labels)
    )


def test_find_pairs_makes_a_ring_of_each_class() -> None:
    records = make_records([0, 1, 0, 2, 1, 0, 0])
    dataset = Dataset(name="toy", protocol="p", records=records, label_names=("a", "b", "c"))
    pairs = find_pairs(dataset, records)
    labels = np.array([record.label for record in records])
    assert (labels[pairs[:, 0]] == labels[pairs[:, 1]]).all()
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert np.bincount(labels[pairs[:, 0]]).tolist() == [4, 1]  # four of a kind: four pairs; two: one; one: none
    assert len({frozenset(pair) for pair in pairs.tolist()}) == len(pairs)
    assert np.array_equal(pairs, find_pairs(dataset, records))


def test_find_pairs_takes_the_listed_ones_among_training_images() -> None:
    records = make_records([0, 0, 1, 1])
    listed = (("2.png", "0.png"), ("1.png", "of_test.png"), ("3.png", "1.png"))
    dataset = Dataset(name="toy", protocol="p", records=records, label_names=("a", "b"), positive_pairs=listed)
    assert find_pairs(dataset, records).tolist() == [[2, 0], [3, 1]]
    assert find_pairs(dataset, ()).shape == (0, 2)
