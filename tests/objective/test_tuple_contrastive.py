from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import ContrastiveLoss
from pytorch_metric_learning.reducers import DoNothingReducer
from torch.nn import functional

from tests.objective.test_contrastive import at_degrees, unit_rows
from vitrieve.objective.koleo import find_first_showings
from vitrieve.objective.tuple_contrastive import tuple_contrastive_loss, tuple_statistics

LABELS = torch.tensor([0, 0, 1, 2, 1, 1, 0, 2, 3])
"""Two tuples: an anchor, a positive, and two or three negatives."""
ANCHORS = torch.tensor([0, 0, 0, 0, 4, 4, 4, 4, 4])


def double_loop(embeddings, tuples, margin):
    """Sum over tuples, each a list of places: anchor, positive, negatives."""
    total = 0.0
    for anchor, positive, *negatives in tuples:
        total += distance(embeddings[anchor], embeddings[positive]) ** 2 / 2
        for negative in negatives:
            total += max(0.0, margin - distance(embeddings[anchor], embeddings[negative])) ** 2 / 2
    return total


def distance(a, b):
    return math.sqrt(sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)))


def test_tuple_contrastive_loss_hand_case():
    # On the unit circle 60° are distance 1 and 90° are √2. Negatives: 1 apart and √2 apart, with a margin of 1.2.
    loss = tuple_contrastive_loss(
        at_degrees(0, 60, -60, 90), torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 0, 0]), margin=1.2
    )
    assert loss.item() == pytest.approx(0.5 * 1 + 0.5 * (1.2 - 1) ** 2 + 0)


@pytest.mark.parametrize("margin", [0.3, 0.85, 1.4, 2.5])
def test_tuple_contrastive_loss_equals_double_loop(margin):
    embeddings = unit_rows(9, seed=3)
    expected = double_loop(embeddings, [[0, 1, 2, 3], [4, 5, 6, 7, 8]], margin)
    assert tuple_contrastive_loss(embeddings, LABELS, ANCHORS, margin=margin).item() == pytest.approx(expected)


def test_tuple_contrastive_loss_is_a_sum_over_tuples_not_a_mean():
    embeddings = unit_rows(9, seed=3)
    whole = tuple_contrastive_loss(embeddings, LABELS, ANCHORS, margin=1.4)
    first = tuple_contrastive_loss(embeddings[:4], LABELS[:4], ANCHORS[:4], margin=1.4)
    second = tuple_contrastive_loss(embeddings[4:], LABELS[4:], ANCHORS[4:] - 4, margin=1.4)
    assert whole.item() == pytest.approx(first.item() + second.item())
    assert min(first, second) > 0


def test_tuple_contrastive_loss_equals_pytorch_metric_learning():
    embeddings = unit_rows(9, seed=4)
    is_positive = (LABELS[ANCHORS] == LABELS) & (torch.arange(9) != ANCHORS)
    is_negative = LABELS[ANCHORS] != LABELS
    pairs = (
        ANCHORS[is_positive],
        torch.nonzero(is_positive)[:, 0],
        ANCHORS[is_negative],
        torch.nonzero(is_negative)[:, 0],
    )
    public = ContrastiveLoss(
        pos_margin=0,
        neg_margin=1.4,
        distance=LpDistance(normalize_embeddings=False, p=2, power=1),
        reducer=DoNothingReducer(),
    )
    parts = public(embeddings, LABELS, indices_tuple=pairs)  # of each pair D, and margin - D: theirs is not squared
    expected = sum(part["losses"].square().sum() / 2 for part in parts.values())
    assert tuple_contrastive_loss(embeddings, LABELS, ANCHORS, margin=1.4).item() == pytest.approx(
        expected.item(), abs=1e-6
    )


def test_tuple_contrastive_loss_gradcheck():
    assert torch.autograd.gradcheck(
        lambda raw: tuple_contrastive_loss(functional.normalize(raw, dim=1), LABELS, ANCHORS, margin=1.4),
        unit_rows(9, seed=2).requires_grad_(),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tuple_contrastive_loss_is_finite_where_anchor_positive_and_negative_are_equal(dtype):
    embeddings = unit_rows(1, dtype=dtype).repeat(3, 1).requires_grad_()
    loss = tuple_contrastive_loss(embeddings, torch.tensor([0, 0, 1]), torch.zeros(3, dtype=torch.int64))
    loss.backward()
    assert loss.item() == pytest.approx(0.85**2 / 2, rel=1e-5)
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


def test_tuple_contrastive_loss_pushes_a_near_negative_away_on_both_sides():
    embeddings = at_degrees(0, 2).requires_grad_()
    tuple_contrastive_loss(embeddings, torch.tensor([0, 1]), torch.tensor([0, 0])).backward()
    assert torch.allclose(embeddings.grad[0], -embeddings.grad[1])
    assert embeddings.grad[1, 1] < 0  # descent raises its angle
    assert embeddings.grad[0, 1] > 0


def test_tuple_contrastive_loss_of_an_anchor_alone_is_zero():
    embeddings = unit_rows(1).requires_grad_()
    loss = tuple_contrastive_loss(embeddings, torch.tensor([4]), torch.tensor([0]))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(embeddings.grad).all()


def test_tuple_statistics_of_known_angles():
    embeddings = at_degrees(0, 60, -60, 90, 180, 180, 120)
    labels, anchors = torch.tensor([0, 0, 1, 2, 3, 3, 4]), torch.tensor([0, 0, 0, 0, 4, 4, 4])
    values = tuple_statistics(embeddings, labels, anchors, margin=1.1)
    assert values["mean_positive_distance"] == pytest.approx((1 + 0) / 2)
    assert values["mean_negative_distance"] == pytest.approx((1 + math.sqrt(2) + 1) / 3)
    assert values["active_negatives_fraction"] == pytest.approx(2 / 3)
    assert values["hardest_negative_similarity"] == pytest.approx((0.5 + 0.5) / 2)


def test_tuple_statistics_leaves_out_what_there_is_none_of():
    values = tuple_statistics(unit_rows(2), torch.tensor([0, 0]), torch.tensor([0, 0]), margin=0.85)
    assert list(values) == ["mean_positive_distance"]
    assert tuple_statistics(unit_rows(1), torch.tensor([0]), torch.tensor([0]), margin=0.85) == {}


def test_find_first_showings_of_different_images_is_every_place():
    assert find_first_showings(torch.tensor([5, 1, 9])).tolist() == [0, 1, 2]
    assert find_first_showings(torch.tensor([2, 2, 2])).tolist() == [0]
