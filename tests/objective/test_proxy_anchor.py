from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import ProxyAnchorLoss as PublicProxyAnchorLoss
from torch.nn import functional

from tests.objective import reference
from tests.objective.test_contrastive import LABELS, at_degrees, unit_rows
from vitrieve.objective.proxy_anchor import ProxyAnchorConfig, proxy_anchor_loss
from vitrieve.objective.term import Sizes


def draw_proxies(num_classes, dim=6):
    torch.manual_seed(0)
    return ProxyAnchorConfig().build(Sizes(num_classes, 9, dim)).get_parameter("proxies")


def test_proxy_anchor_hand_case():
    # One embedding on its own proxy, at right angles to the other.
    value = proxy_anchor_loss(at_degrees(0), torch.tensor([0]), at_degrees(0, 90) * 3, margin=0.1, alpha=1)
    assert value.item() == pytest.approx(math.log(1 + math.exp(-0.9)) + math.log(1 + math.exp(0.1)) / 2)


def test_proxy_anchor_equals_double_loop():
    proxies, embeddings = draw_proxies(5), unit_rows(8)
    expected = reference.proxy_anchor(embeddings, LABELS, proxies.detach().double(), 0.1, 32)
    assert proxy_anchor_loss(embeddings, LABELS, proxies).item() == pytest.approx(expected, rel=1e-6)


def test_proxy_anchor_around_another_similarity_equals_double_loop():
    proxies, embeddings = draw_proxies(5), unit_rows(8)
    given = {"margin": 0.2, "alpha": 16.0, "base": 0.4}
    expected = reference.proxy_anchor(embeddings, LABELS, proxies.detach().double(), **given)
    assert proxy_anchor_loss(embeddings, LABELS, proxies, **given).item() == pytest.approx(expected, rel=1e-6)


def test_proxy_anchor_equals_pytorch_metric_learning():
    proxies, embeddings = draw_proxies(5), unit_rows(8, dtype=torch.float32)
    public = PublicProxyAnchorLoss(5, 6, margin=0.1, alpha=32)
    public.proxies.data = proxies.data.clone()
    expected = public(embeddings, LABELS).item()
    assert proxy_anchor_loss(embeddings, LABELS, proxies).item() == pytest.approx(expected, rel=1e-4)


def test_proxy_anchor_gradcheck():
    proxies = draw_proxies(5).detach().double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda raw, proxies: proxy_anchor_loss(functional.normalize(raw, dim=1), LABELS, proxies),
        (unit_rows(8, 4).requires_grad_(), proxies),
    )
