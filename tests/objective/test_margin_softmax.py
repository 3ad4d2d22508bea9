from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import CosFaceLoss, SubCenterArcFaceLoss
from torch.nn import functional

from tests.objective import reference
from tests.objective.test_contrastive import LABELS, at_degrees, unit_rows
from vitrieve.objective.margin_softmax import MarginSoftmaxConfig, margin_softmax_loss
from vitrieve.objective.normalized_softmax import normalized_softmax_loss
from vitrieve.objective.term import Sizes


def draw_centers(num_centers, num_classes=5, dim=6):
    torch.manual_seed(1)
    config = MarginSoftmaxConfig(num_centers=num_centers)
    return config.build(Sizes(num_classes, 9, dim)).get_parameter("centers")


def test_margin_softmax_hand_case():
    # 60° from the nearer of its own two centers, 90° from that of the other class.
    centers = torch.stack([at_degrees(0, 200), at_degrees(150, 150)])
    given = {"margin": math.radians(30), "temperature": 0.5}
    loss = margin_softmax_loss(at_degrees(60), torch.tensor([0]), centers * 3, margin_on="angle", **given)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(0)))  # 60° + 30° is 90°, too
    given = {"margin": 0.25, "temperature": 0.5}
    loss = margin_softmax_loss(at_degrees(60), torch.tensor([0]), centers * 3, margin_on="cosine", **given)
    assert loss.item() == pytest.approx(math.log(1 + math.exp((0 - 0.25) / 0.5)))


@pytest.mark.parametrize("margin_on", ["cosine", "angle"])
@pytest.mark.parametrize("num_centers", [1, 3])
@pytest.mark.parametrize("margin", [0.0, 0.35, 2.0])
def test_margin_softmax_equals_double_loop(margin_on, num_centers, margin):
    centers, embeddings = draw_centers(num_centers), unit_rows(8)
    loss = margin_softmax_loss(embeddings, LABELS, centers, margin_on=margin_on, margin=margin, temperature=0.1)
    expected = reference.margin_softmax(embeddings, LABELS, centers.detach().double(), margin_on, margin, 0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_margin_softmax_equals_pytorch_metric_learning():
    embeddings = unit_rows(8, dtype=torch.float32)
    centers = draw_centers(1)
    cosface = CosFaceLoss(5, 6, margin=0.35, scale=16)
    cosface.W.data = centers.detach()[:, 0].T.clone()
    loss = margin_softmax_loss(embeddings, LABELS, centers, margin_on="cosine", margin=0.35, temperature=1 / 16)
    assert loss.item() == pytest.approx(cosface(embeddings, LABELS).item(), rel=1e-5)
    centers = draw_centers(3)
    arcface = SubCenterArcFaceLoss(num_classes=5, embedding_size=6, margin=math.degrees(0.5), scale=16, sub_centers=3)
    arcface.W.data = centers.detach().flatten(0, 1).T.clone()
    loss = margin_softmax_loss(embeddings, LABELS, centers, margin_on="angle", margin=0.5, temperature=1 / 16)
    assert loss.item() == pytest.approx(arcface(embeddings, LABELS).item(), rel=1e-5)


def test_margin_softmax_without_margin_is_the_normalized_softmax():
    centers, embeddings = draw_centers(1), unit_rows(8)
    loss = margin_softmax_loss(embeddings, LABELS, centers, margin=0.0, temperature=0.05)
    assert loss.item() == pytest.approx(normalized_softmax_loss(embeddings, LABELS, centers[:, 0]).item())


@pytest.mark.parametrize("margin_on", ["cosine", "angle"])
def test_margin_softmax_gradcheck(margin_on):
    centers = draw_centers(2).detach().double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda raw, centers: margin_softmax_loss(
            functional.normalize(raw, dim=1), LABELS, centers, margin_on=margin_on, margin=0.4, temperature=0.3
        ),
        (unit_rows(8, 4).requires_grad_(), centers),
    )


def test_trap_an_embedding_on_its_center_or_opposite_has_a_finite_gradient():
    for sign in (1, -1):
        centers = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]], requires_grad=True)
        embeddings = torch.tensor([[1.0 * sign, 0.0]], requires_grad=True)
        margin_softmax_loss(embeddings, torch.tensor([0]), centers).backward()
        assert torch.isfinite(embeddings.grad).all()
        assert torch.isfinite(centers.grad).all()
