from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import NormalizedSoftmaxLoss as PublicNormalizedSoftmaxLoss
from torch.nn import functional

from tests.objective import reference
from tests.objective.test_contrastive import LABELS, at_degrees, unit_rows
from vitrieve.objective.normalized_softmax import NormalizedSoftmaxLoss


def build_loss(num_classes, dim=6, **values):
    torch.manual_seed(0)
    return NormalizedSoftmaxLoss(num_classes, dim, **values)


def test_normalized_softmax_hand_case():
    loss = build_loss(2, 2, temperature=0.5)
    loss.class_weights.data = at_degrees(0, 90).float() * 3
    # One embedding on its own weight, at right angles to the other: cosines 1 and 0, over 0.5.
    assert loss(at_degrees(0), torch.tensor([0])).item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_normalized_softmax_equals_double_loop():
    loss, embeddings = build_loss(5), unit_rows(8)
    expected = reference.normalized_softmax(embeddings, LABELS, loss.class_weights.detach().double(), 0.05)
    assert loss(embeddings, LABELS).item() == pytest.approx(expected, rel=1e-6)


def test_normalized_softmax_equals_pytorch_metric_learning():
    loss, embeddings = build_loss(5), unit_rows(8, dtype=torch.float32)
    public = PublicNormalizedSoftmaxLoss(5, 6, temperature=0.05)
    public.W.data = loss.class_weights.data.T.clone()
    assert loss(embeddings, LABELS).item() == pytest.approx(public(embeddings, LABELS).item(), rel=1e-5)


def test_normalized_softmax_ignores_the_length_of_class_weights_and_the_order_of_the_batch():
    loss, embeddings = build_loss(5), unit_rows(8)
    before = loss(embeddings, LABELS).item()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    assert loss(embeddings[order], LABELS[order]).item() == pytest.approx(before)
    loss.class_weights.data *= 7
    assert loss(embeddings, LABELS).item() == pytest.approx(before, rel=1e-5)


def test_normalized_softmax_of_a_single_class_is_zero():
    assert build_loss(1)(unit_rows(3), torch.zeros(3, dtype=torch.int64)).item() == 0


def test_normalized_softmax_gradcheck():
    loss = build_loss(5, temperature=0.5).double()
    assert torch.autograd.gradcheck(
        lambda raw: loss(functional.normalize(raw, dim=1), LABELS), unit_rows(8, 4).requires_grad_()
    )
    loss(unit_rows(8), LABELS).backward()
    assert bool((loss.class_weights.grad.norm(dim=1) > 0).all())  # of classes that the batch does not show, too
