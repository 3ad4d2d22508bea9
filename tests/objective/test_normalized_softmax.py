from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import NormalizedSoftmaxLoss as PublicNormalizedSoftmaxLoss
from torch.nn import functional

from tests.objective import reference
from tests.objective.test_contrastive import LABELS, at_degrees, unit_rows
from vitrieve.objective.normalized_softmax import NormalizedSoftmaxConfig, normalized_softmax_loss
from vitrieve.objective.term import Sizes


def draw_weights(num_classes, dim=6):
    torch.manual_seed(0)
    return NormalizedSoftmaxConfig().build(Sizes(num_classes, 9, dim)).get_parameter("class_weights")


def test_normalized_softmax_hand_case():
    # One embedding on its own weight, at right angles to the other: cosines 1 and 0, over 0.5.
    value = normalized_softmax_loss(at_degrees(0), torch.tensor([0]), at_degrees(0, 90).float() * 3, temperature=0.5)
    assert value.item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_normalized_softmax_equals_double_loop():
    weights, embeddings = draw_weights(5), unit_rows(8)
    expected = reference.normalized_softmax(embeddings, LABELS, weights.detach().double(), 0.05)
    assert normalized_softmax_loss(embeddings, LABELS, weights).item() == pytest.approx(expected, rel=1e-6)


def test_normalized_softmax_equals_pytorch_metric_learning():
    weights, embeddings = draw_weights(5), unit_rows(8, dtype=torch.float32)
    public = PublicNormalizedSoftmaxLoss(5, 6, temperature=0.05)
    public.W.data = weights.data.T.clone()
    expected = public(embeddings, LABELS).item()
    assert normalized_softmax_loss(embeddings, LABELS, weights).item() == pytest.approx(expected, rel=1e-5)


def test_normalized_softmax_ignores_the_length_of_class_weights_and_the_order_of_the_batch():
    weights, embeddings = draw_weights(5), unit_rows(8)
    before = normalized_softmax_loss(embeddings, LABELS, weights).item()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    assert normalized_softmax_loss(embeddings[order], LABELS[order], weights).item() == pytest.approx(before)
    assert normalized_softmax_loss(embeddings, LABELS, weights * 7).item() == pytest.approx(before, rel=1e-5)


def test_normalized_softmax_of_a_single_class_is_zero():
    assert normalized_softmax_loss(unit_rows(3), torch.zeros(3, dtype=torch.int64), draw_weights(1)).item() == 0


def test_normalized_softmax_gradcheck():
    weights = draw_weights(5).detach().double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda raw, weights: normalized_softmax_loss(
            functional.normalize(raw, dim=1), LABELS, weights, temperature=0.5
        ),
        (unit_rows(8, 4).requires_grad_(), weights),
    )
    normalized_softmax_loss(unit_rows(8), LABELS, weights).backward()
    assert bool((weights.grad.norm(dim=1) > 0).all())  # of classes that the batch does not show, too
