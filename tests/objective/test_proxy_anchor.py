from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import ProxyAnchorLoss as PublicProxyAnchorLoss
from torch.nn import functional

from tests.objective import reference
from tests.objective.test_contrastive import LABELS, at_degrees, unit_rows
from vitrieve.objective.proxy_anchor import ProxyAnchorLoss


def build_loss(num_classes, dim=6):
    torch.manual_seed(0)
    return ProxyAnchorLoss(num_classes, dim)


def test_proxy_anchor_hand_case():
    loss = ProxyAnchorLoss(2, 2, margin=0.1, alpha=1)
    loss.proxies.data = at_degrees(0, 90) * 3
    # One embedding on its own proxy, at right angles to the other.
    value = loss(at_degrees(0), torch.tensor([0]))
    assert value.item() == pytest.approx(math.log(1 + math.exp(-0.9)) + math.log(1 + math.exp(0.1)) / 2)


def test_proxy_anchor_equals_double_loop():
    loss, embeddings = build_loss(5), unit_rows(8)
    expected = reference.proxy_anchor(embeddings, LABELS, loss.proxies.detach().double(), 0.1, 32)
    assert loss(embeddings, LABELS).item() == pytest.approx(expected, rel=1e-6)


def test_proxy_anchor_equals_pytorch_metric_learning():
    loss, embeddings = build_loss(5), unit_rows(8, dtype=torch.float32)
    public = PublicProxyAnchorLoss(5, 6, margin=0.1, alpha=32)
    public.proxies.data = loss.proxies.data.clone()
    assert loss(embeddings, LABELS).item() == pytest.approx(public(embeddings, LABELS).item(), rel=1e-4)


def test_proxy_anchor_gradcheck():
    loss = build_loss(5).double()
    assert torch.autograd.gradcheck(
        lambda raw: loss(functional.normalize(raw, dim=1), LABELS), unit_rows(8, 4).requires_grad_()
    )
