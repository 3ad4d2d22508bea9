from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import CircleLoss
from torch.nn import functional

from tests.objective import reference
from tests.objective.test_contrastive import LABELS, at_degrees, unit_rows
from vitrieve.objective.circle import circle_loss, weigh_pairs


def test_circle_hand_case():
    # A pair at 60°, and a stranger at 90° from the one and 30° from the other; margin 0.25, scale 1.
    loss = circle_loss(at_degrees(0, 60, 90), torch.tensor([0, 0, 1]), margin=0.25, temperature=1.0)
    near = math.cos(math.radians(30))
    pull = -(1.25 - 0.5) * (0.5 - 0.75)
    first = math.log(1 + math.exp(pull + 0.25 * (0 - 0.25)))
    second = math.log(1 + math.exp(pull + (near + 0.25) * (near - 0.25)))
    assert loss.item() == pytest.approx((first + second) / 3)  # the stranger has no positive


@pytest.mark.parametrize(("margin", "scale"), [(0.4, 80), (0.25, 4)])
def test_circle_equals_double_loop(margin, scale):
    embeddings = unit_rows(8)
    loss = circle_loss(embeddings, LABELS, margin=margin, temperature=1 / scale)
    assert loss.item() == pytest.approx(reference.circle(embeddings, LABELS, margin, scale))


def test_circle_equals_pytorch_metric_learning_in_value_and_gradient():
    labels = torch.arange(32) // 4
    ours, theirs = (unit_rows(32, dtype=torch.float32).requires_grad_() for _ in range(2))
    loss, expected = circle_loss(ours, labels), CircleLoss(m=0.4, gamma=80)(functional.normalize(theirs), labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    radial = (ours.grad * ours).sum(dim=1, keepdim=True) * ours  # theirs normalizes once more
    torch.testing.assert_close((ours.grad - radial).detach(), theirs.grad, rtol=1e-3, atol=1e-4)


def test_circle_gradcheck_with_the_weights_fixed():
    start = unit_rows(8)
    weights = weigh_pairs(start @ start.T, 0.4)
    assert torch.autograd.gradcheck(
        lambda raw: circle_loss(functional.normalize(raw, dim=1), LABELS, temperature=0.2, weights=weights),
        start.clone().requires_grad_(),
    )
