"""Losses over pairs, where an image has several labels or pairs are negatives whatever the labels say."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from tests.objective import reference
from tests.objective.test_contrastive import unit_rows
from vitrieve.errors import ConfigError
from vitrieve.objective.contrastive import contrastive_loss
from vitrieve.objective.distillation import DistillationConfig
from vitrieve.objective.koleo import KoleoConfig
from vitrieve.objective.losses import ObjectiveConfig
from vitrieve.objective.multi_similarity import MultiSimilarityConfig, multi_similarity_loss
from vitrieve.objective.objective import Objective
from vitrieve.objective.proxy_anchor import ProxyAnchorConfig
from vitrieve.objective.supervised_contrastive import supervised_contrastive_loss
from vitrieve.objective.term import Relations, mark_pairs


class Shown:
    """An image of the batch as the plain loops see it: equal to another where the two are positives."""

    def __init__(self, row: int, labels: set[int], negatives: set[int]) -> None:
        self.row, self.labels, self.negatives = row, labels, negatives

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Shown)
        return bool(self.labels & other.labels) and other.row not in self.negatives

    __hash__ = None  # type: ignore[assignment]


def draw_relations(seed: int, num_images: int = 6) -> tuple[Relations, list[int], list[Shown]]:
    """Draw further labels and negatives of some images; return the images as the loops see them."""
    draw = random.Random(seed)
    labels = [draw.randrange(3) for _ in range(num_images)]
    more = [draw.sample(range(3, 7), draw.randrange(3)) for _ in range(num_images)]
    pairs = {tuple(sorted(draw.sample(range(num_images), 2))) for _ in range(draw.randrange(4))}
    padded = torch.tensor([[*listed, *[-1] * (2 - len(listed))] for listed in more])
    both = [*pairs, *((second, first) for first, second in pairs)]
    relations = Relations(padded, torch.tensor(both, dtype=torch.int64).reshape(-1, 2))
    shown = [
        Shown(row, {labels[row], *more[row]}, {second for first, second in both if first == row})
        for row in range(num_images)
    ]
    return relations, labels, shown


@pytest.mark.parametrize("seed", range(8))
def test_losses_equal_double_loops(seed: int) -> None:
    relations, labels, shown = draw_relations(seed)
    rows = torch.tensor([0, 1, 2, 3, 4, 5, 1, 2])  # two images are in the batch twice
    embeddings, batch = unit_rows(8), [shown[row] for row in rows]
    pairs = relations.mark_pairs(torch.tensor(labels)[rows], rows)
    given = torch.tensor(labels)[rows]
    found = multi_similarity_loss(embeddings, given, pairs=pairs)
    assert found.item() == pytest.approx(reference.multi_similarity(embeddings, batch, 2, 50, 0.5, 0.1))
    found = contrastive_loss(embeddings, given, margin=0.2, pairs=pairs)
    assert found.item() == pytest.approx(reference.contrastive(embeddings, batch, 0.2))
    found = supervised_contrastive_loss(embeddings, given, temperature=0.5, pairs=pairs)
    assert found.item() == pytest.approx(reference.supervised_contrastive(embeddings, batch, 0.5))


def test_many_labels_of_an_image_are_found_in_the_memory_that_they_take() -> None:
    """A thousand labels of each of 64 images: comparing every label with every other would take four gigabytes."""
    draw = random.Random(0)
    more = [draw.sample(range(100, 20_000), 1000) for _ in range(64)]
    relations = Relations(torch.tensor(more), torch.empty(0, 2, dtype=torch.int64))
    positive, negative = relations.mark_pairs(torch.arange(64), torch.arange(64))
    expected = torch.tensor([[one is not other and not set(one).isdisjoint(other) for other in more] for one in more])
    assert torch.equal(positive, expected)
    assert torch.equal(negative, ~expected & ~torch.eye(64, dtype=torch.bool))


def test_nothing_known_is_one_label_each() -> None:
    labels, rows = torch.tensor([0, 1, 0, 2]), torch.arange(4)
    nothing = Relations(torch.full((4, 1), -1), torch.empty(0, 2, dtype=torch.int64))
    for found, expected in zip(nothing.mark_pairs(labels, rows), mark_pairs(labels), strict=True):
        assert torch.equal(found, expected)


def test_loss_that_needs_one_class_is_refused() -> None:
    relations = draw_relations(0)[0]
    sizes = {"num_classes": 3, "num_images": 6, "embedding_dim": 4}
    pairs_alone = ObjectiveConfig(multi_similarity=MultiSimilarityConfig(weight=1.0))
    Objective(pairs_alone, **sizes).use_relations(relations)
    without_classes = dataclasses.replace(
        pairs_alone, koleo=KoleoConfig(weight=1.0), distillation=DistillationConfig(weight=1.0, teacher="none")
    )
    Objective(without_classes, **sizes, teacher=torch.eye(6)).use_relations(relations)
    needing = Objective(ObjectiveConfig(proxy_anchor=ProxyAnchorConfig(weight=1.0)), **sizes)
    needing.use_relations(None)
    with pytest.raises(ConfigError, match=r"objective\.proxy_anchor needs one class of each image.*multi_similarity"):
        needing.use_relations(relations)
