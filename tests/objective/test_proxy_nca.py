from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import ProxyNCALoss as PublicProxyNcaLoss
from torch.nn import functional

from tests.objective import reference
from tests.objective.test_contrastive import LABELS, at_degrees, unit_rows
from vitrieve.objective.normalized_softmax import NormalizedSoftmaxLoss
from vitrieve.objective.proxy_nca import PROXY_SPREAD, ProxyNcaLoss


def build_loss(num_classes, dim=6, **values):
    torch.manual_seed(0)
    return ProxyNcaLoss(num_classes, dim, **values)


def test_proxy_nca_hand_case():
    loss = build_loss(2, 2, temperature=0.5)
    loss.proxies.data = at_degrees(0, 90).float() * 3
    # Squared distances 0 and 2, over 0.5; the own proxy stands in the denominator too.
    assert loss(at_degrees(0), torch.tensor([0])).item() == pytest.approx(math.log(1 + math.exp(-4)))


def test_proxy_nca_equals_double_loop():
    loss, embeddings = build_loss(5), unit_rows(8)
    expected = reference.proxy_nca(embeddings, LABELS, loss.proxies.detach().double(), 1 / 9)
    assert loss(embeddings, LABELS).item() == pytest.approx(expected, rel=1e-6)


def test_proxy_nca_equals_pytorch_metric_learning():
    loss, embeddings = build_loss(5), unit_rows(8, dtype=torch.float32)
    public = PublicProxyNcaLoss(5, 6, softmax_scale=9)
    public.proxies.data = loss.proxies.data.clone()
    assert loss(embeddings, LABELS).item() == pytest.approx(public(embeddings, LABELS).item(), rel=1e-4)


def test_proxy_nca_is_the_normalized_softmax_at_half_the_temperature():
    loss, embeddings = build_loss(5), unit_rows(8)
    softmax = NormalizedSoftmaxLoss(5, 6, temperature=1 / 18)
    softmax.class_weights.data = loss.proxies.data.clone()
    assert loss(embeddings, LABELS).item() == pytest.approx(softmax(embeddings, LABELS).item())


def test_proxy_nca_draws_proxies_of_the_stated_length():
    assert build_loss(200, 100).proxies.std().item() == pytest.approx(PROXY_SPREAD, rel=0.02)


def test_proxy_nca_gradcheck():
    loss = build_loss(5).double()
    assert torch.autograd.gradcheck(
        lambda raw: loss(functional.normalize(raw, dim=1), LABELS), unit_rows(8, 4).requires_grad_()
    )
