from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import TripletMarginMiner
from torch.nn import functional

from tests.objective import reference
from tests.objective.test_contrastive import LABELS, at_degrees, unit_rows
from vitrieve.objective.triplet import triplet_loss


def test_triplet_hand_case():
    # Squared distances 2 - 2 cos: of the pair at 60° 1, of the negative at 70° 1.316, of that at 10° 0.03.
    labels = torch.tensor([0, 0, 1, 2])
    loss = triplet_loss(at_degrees(0, 60, -70, 10), labels, margin=0.5)
    far = 2 - 2 * math.cos(math.radians(70))
    # From 0° the negative at -70° is semi-hard, that at 10° is nearer than the positive. From 60° it is 50° away:
    # nearer than the positive, too.
    assert loss.item() == pytest.approx(1 - far + 0.5)


@pytest.mark.parametrize("margin", [0.2, 1.0])
def test_triplet_equals_double_loop(margin):
    embeddings = unit_rows(8)
    loss = triplet_loss(embeddings, LABELS, margin=margin)
    assert loss.item() == pytest.approx(reference.triplet(embeddings, LABELS, margin))
    assert loss.item() > 0


def test_triplet_equals_pytorch_metric_learning():
    embeddings, labels = unit_rows(32, dtype=torch.float32), torch.arange(32) // 4
    distance = LpDistance(power=2)
    mined = TripletMarginMiner(margin=0.2, type_of_triplets="semihard", distance=distance)(embeddings, labels)
    expected = TripletMarginLoss(margin=0.2, distance=distance)(embeddings, labels, mined)
    assert triplet_loss(embeddings, labels).item() == pytest.approx(expected.item(), rel=1e-4)


def test_triplet_gradcheck():
    assert torch.autograd.gradcheck(
        lambda raw: triplet_loss(functional.normalize(raw, dim=1), LABELS, margin=1.0), unit_rows(8).requires_grad_()
    )
