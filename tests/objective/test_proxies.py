from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.objective.test_contrastive import LABELS, at_degrees, unit_rows
from vitrieve.objective.losses import ObjectiveConfig
from vitrieve.objective.margin_softmax import MarginSoftmaxConfig
from vitrieve.objective.proxies import CENTER_SPREAD, ProxyTermConfig, imprint_classes
from vitrieve.objective.proxy_anchor import ProxyAnchorConfig, proxy_anchor_loss
from vitrieve.objective.term import LossBatch, Sizes

PROXY_LOSSES = {name: loss for name, loss in ObjectiveConfig().losses.items() if isinstance(loss, ProxyTermConfig)}


def make_batch(embeddings, labels):
    return LossBatch(embeddings, labels, torch.arange(len(labels)), 0, None, None)


def test_the_losses_with_vectors_of_classes_share_how_these_begin():
    assert list(PROXY_LOSSES) == ["proxy_anchor", "normalized_softmax", "proxy_nca", "margin_softmax"]


def test_imprint_classes_sets_new_classes_to_the_mean_direction_of_their_images():
    vectors, is_met = at_degrees(180, 180, 180), torch.tensor([False, True, False])
    imprint_classes(vectors, is_met, at_degrees(10, 50, 90), torch.tensor([0, 0, 1]))
    torch.testing.assert_close(vectors, at_degrees(30, 180, 180))  # class 1 has been met, class 2 is not shown
    assert is_met.tolist() == [True, True, False]


def test_imprint_classes_keeps_several_vectors_of_a_class_apart():
    torch.manual_seed(0)
    centers, is_met = torch.randn(2, 3, 6), torch.zeros(2, dtype=torch.bool)
    before = torch.nn.functional.normalize(centers, dim=2)
    mean = unit_rows(1).float()
    imprint_classes(centers, is_met, mean, torch.tensor([1]))
    torch.testing.assert_close(centers[1], mean + CENTER_SPREAD * before[1])
    assert (centers[0] - before[0]).abs().max() > 0


@pytest.mark.parametrize("name", PROXY_LOSSES)
def test_vectors_of_classes_that_were_not_met_take_no_part(name):
    torch.manual_seed(0)
    loss = dataclasses.replace(PROXY_LOSSES[name], weight=1.0, from_images=True)
    state = loss.build(Sizes(9, 8, 6))
    (vectors,) = state.parameters()
    value = loss.compute(make_batch(unit_rows(8).float(), LABELS), state)
    value.backward()
    assert state.get_buffer("is_met").tolist() == [True] * 4 + [False] * 5
    assert bool((vectors.grad[4:] == 0).all())
    assert bool((vectors.grad[:4].flatten(1).norm(dim=1) > 0).all())
    with torch.no_grad():
        vectors[4:] = unit_rows(1).float().expand_as(vectors[4:])
    assert loss.compute(make_batch(unit_rows(8).float(), LABELS), state).item() == value.item()


def test_proxy_anchor_of_new_classes_equals_the_loss_with_their_means():
    torch.manual_seed(0)
    loss = ProxyAnchorConfig(weight=1.0, from_images=True, margin=0.2, alpha=16.0)
    state, embeddings = loss.build(Sizes(9, 8, 6)), unit_rows(8).float()
    labels = LABELS * 2 + 1  # not all positions are taken
    means = torch.stack([embeddings[labels == label].mean(dim=0) for label in (1, 3, 5, 7)])
    expected = proxy_anchor_loss(embeddings, LABELS, means, margin=0.2, alpha=16.0)
    assert loss.compute(make_batch(embeddings, labels), state).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_batch_that_is_not_finite_leaves_nothing_behind():
    loss = MarginSoftmaxConfig(weight=1.0, from_images=True)
    state, embeddings = loss.build(Sizes(4, 8, 6)), unit_rows(8).float()
    loss.compute(make_batch(embeddings[:2], LABELS[:2]), state)
    before = {name: tensor.clone() for name, tensor in state.state_dict().items()}
    embeddings[7] = torch.nan
    assert loss.compute(make_batch(embeddings, LABELS), state).isnan()
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.state_dict().items())


def test_at_random_the_state_is_that_of_older_runs():
    state = ProxyAnchorConfig(weight=1.0).build(Sizes(4, 8, 6))
    assert list(state.state_dict()) == ["proxies"]
