from __future__ import annotations

import pytest
import torch
from pytorch_metric_learning.losses import SmoothAPLoss
from torch.nn import functional

from tests.objective import reference
from tests.objective.test_contrastive import LABELS, at_degrees, unit_rows
from vitrieve.objective.smooth_ap import smooth_ap_loss


def test_smooth_ap_hand_case():
    # The query at 0° ranks itself, the stranger at 30°, its mate at 80°: average precision (1 + 2/3) / 2. The mate
    # ranks itself, the stranger, the query: the same. The stranger is alone, and perfect.
    loss = smooth_ap_loss(at_degrees(0, 80, 30), torch.tensor([0, 0, 1]), temperature=1e-3)
    assert loss.item() == pytest.approx((1 / 6 + 1 / 6 + 0) / 3)


@pytest.mark.parametrize("temperature", [0.01, 0.3])
def test_smooth_ap_equals_double_loop(temperature):
    embeddings = unit_rows(8)
    loss = smooth_ap_loss(embeddings, LABELS, temperature=temperature)
    assert loss.item() == pytest.approx(reference.smooth_ap(embeddings, LABELS, temperature))


def test_smooth_ap_equals_pytorch_metric_learning():
    # Version 2.9.0 mixes up the number of classes and of images a class, so both are 5 here.
    embeddings, labels = unit_rows(25, dtype=torch.float32), torch.arange(25) // 5
    expected = SmoothAPLoss(temperature=0.05)(embeddings, labels).item()
    assert smooth_ap_loss(embeddings, labels, temperature=0.05).item() == pytest.approx(expected, rel=1e-5)


def test_smooth_ap_tends_to_average_precision():
    embeddings = unit_rows(8)
    similarity = embeddings @ embeddings.T
    total = 0.0
    for query in range(8):
        order = similarity[query].argsort(descending=True)
        hits = (LABELS[order] == LABELS[query]).double()
        total += ((hits.cumsum(0) / torch.arange(1, 9)) * hits).sum().item() / hits.sum().item()
    loss = smooth_ap_loss(embeddings, LABELS, temperature=1e-5)
    assert loss.item() == pytest.approx(1 - total / 8, abs=1e-6)


def test_smooth_ap_gradcheck():
    assert torch.autograd.gradcheck(
        lambda raw: smooth_ap_loss(functional.normalize(raw, dim=1), LABELS, temperature=0.2),
        unit_rows(8, 4).requires_grad_(),
    )
