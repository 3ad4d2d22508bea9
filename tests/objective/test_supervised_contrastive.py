from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss
from torch.nn import functional

from tests.objective import reference
from tests.objective.test_contrastive import LABELS, at_degrees, unit_rows
from vitrieve.objective.supervised_contrastive import supervised_contrastive_loss


def test_supervised_contrastive_hand_case():
    # A pair at 60° (similarity 0.5) and a stranger at right angles to one of them, cos 30° from the other.
    loss = supervised_contrastive_loss(at_degrees(0, 60, 90), torch.tensor([0, 0, 1]), temperature=0.5)
    near = math.cos(math.radians(30))
    first, second = math.log(1 + math.exp(-0.5 / 0.5)), math.log(1 + math.exp((near - 0.5) / 0.5))
    assert loss.item() == pytest.approx((first + second) / 3)


def test_supervised_contrastive_equals_double_loop():
    embeddings = unit_rows(8)
    loss = supervised_contrastive_loss(embeddings, LABELS)
    assert loss.item() == pytest.approx(reference.supervised_contrastive(embeddings, LABELS, 0.1))


def test_supervised_contrastive_equals_pytorch_metric_learning():
    embeddings, labels = unit_rows(32, dtype=torch.float32), torch.arange(32) // 4
    expected = SupConLoss(temperature=0.1)(embeddings, labels).item()
    assert supervised_contrastive_loss(embeddings, labels).item() == pytest.approx(expected, rel=1e-5)


def test_supervised_contrastive_gradcheck():
    assert torch.autograd.gradcheck(
        lambda raw: supervised_contrastive_loss(functional.normalize(raw, dim=1), LABELS),
        unit_rows(8, 4).requires_grad_(),
    )
