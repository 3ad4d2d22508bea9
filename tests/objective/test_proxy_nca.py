from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import ProxyNCALoss as PublicProxyNcaLoss
from torch.nn import functional

from tests.objective import reference
from tests.objective.test_contrastive import LABELS, at_degrees, unit_rows
from vitrieve.objective.normalized_softmax import normalized_softmax_loss
from vitrieve.objective.proxy_nca import PROXY_SPREAD, ProxyNcaConfig, proxy_nca_loss
from vitrieve.objective.term import Sizes


def draw_proxies(num_classes, dim=6):
    torch.manual_seed(0)
    return ProxyNcaConfig().build(Sizes(num_classes, 9, dim)).get_parameter("proxies")


def test_proxy_nca_hand_case():
    # Squared distances 0 and 2, over 0.5; the own proxy stands in the denominator too.
    value = proxy_nca_loss(at_degrees(0), torch.tensor([0]), at_degrees(0, 90).float() * 3, temperature=0.5)
    assert value.item() == pytest.approx(math.log(1 + math.exp(-4)))


def test_proxy_nca_equals_double_loop():
    proxies, embeddings = draw_proxies(5), unit_rows(8)
    expected = reference.proxy_nca(embeddings, LABELS, proxies.detach().double(), 1 / 9)
    assert proxy_nca_loss(embeddings, LABELS, proxies).item() == pytest.approx(expected, rel=1e-6)


def test_proxy_nca_equals_pytorch_metric_learning():
    proxies, embeddings = draw_proxies(5), unit_rows(8, dtype=torch.float32)
    public = PublicProxyNcaLoss(5, 6, softmax_scale=9)
    public.proxies.data = proxies.data.clone()
    expected = public(embeddings, LABELS).item()
    assert proxy_nca_loss(embeddings, LABELS, proxies).item() == pytest.approx(expected, rel=1e-4)


def test_proxy_nca_is_the_normalized_softmax_at_half_the_temperature():
    proxies, embeddings = draw_proxies(5), unit_rows(8)
    softmax = normalized_softmax_loss(embeddings, LABELS, proxies, temperature=1 / 18)
    assert proxy_nca_loss(embeddings, LABELS, proxies).item() == pytest.approx(softmax.item())


def test_proxy_nca_draws_proxies_of_the_stated_length():
    assert draw_proxies(200, 100).std().item() == pytest.approx(PROXY_SPREAD, rel=0.02)


def test_proxy_nca_gradcheck():
    proxies = draw_proxies(5).detach().double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda raw, proxies: proxy_nca_loss(functional.normalize(raw, dim=1), LABELS, proxies),
        (unit_rows(8, 4).requires_grad_(), proxies),
    )
