from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from torch.nn import functional

from tests.objective import reference
from tests.objective.test_contrastive import LABELS, at_degrees, unit_rows
from vitrieve.objective.multi_similarity import multi_similarity_loss


def test_multi_similarity_hand_case():
    # One pair at 60° (similarity 0.5) and one stranger at 30° from both, all of them mined.
    loss = multi_similarity_loss(at_degrees(0, 60, 30), torch.tensor([0, 0, 1]), alpha=2, beta=50, base=0.5)
    near = math.cos(math.radians(30))
    anchor = math.log(1 + 1) / 2 + math.log(1 + math.exp(50 * (near - 0.5))) / 50
    assert loss.item() == pytest.approx(2 * anchor / 3)


def test_multi_similarity_equals_double_loop():
    embeddings = unit_rows(8)
    loss = multi_similarity_loss(embeddings, LABELS)
    assert loss.item() == pytest.approx(reference.multi_similarity(embeddings, LABELS, 2, 50, 0.5, 0.1))


def test_multi_similarity_equals_pytorch_metric_learning():
    embeddings, labels = unit_rows(32, dtype=torch.float32), torch.arange(32) // 4
    public = MultiSimilarityLoss(alpha=2, beta=50, base=0.5)
    expected = public(embeddings, labels, MultiSimilarityMiner(epsilon=0.1)(embeddings, labels))
    assert multi_similarity_loss(embeddings, labels).item() == pytest.approx(expected.item(), rel=1e-4)


def test_multi_similarity_gradcheck():
    assert torch.autograd.gradcheck(
        lambda raw: multi_similarity_loss(functional.normalize(raw, dim=1), LABELS), unit_rows(8, 4).requires_grad_()
    )


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [0]])
def test_multi_similarity_without_positives_or_negatives_is_finite(labels):
    embeddings = unit_rows(len(labels)).requires_grad_()
    loss = multi_similarity_loss(embeddings, torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(embeddings.grad).all()
