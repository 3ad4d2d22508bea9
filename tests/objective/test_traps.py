"""What every loss of the table must do with inputs that have broken losses elsewhere."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional

from tests.objective.test_contrastive import unit_rows
from vitrieve.objective.losses import ObjectiveConfig
from vitrieve.objective.memory import MemoryRows
from vitrieve.objective.proxies import ProxyTermConfig
from vitrieve.objective.term import LossBatch, Sizes, TermConfig

LOSSES = {name: dataclasses.replace(loss, weight=1.0) for name, loss in ObjectiveConfig().losses.items()}
LOSSES |= {
    "contrastive, mean": dataclasses.replace(LOSSES["contrastive"], mean_nonzero=True),
    "spherical": dataclasses.replace(LOSSES["hyperbolic"], curvature=0.0, projection_dim=None),
    "cosface": dataclasses.replace(LOSSES["margin_softmax"], margin_on="cosine", num_centers=2),
    **{
        f"{name}, from images": dataclasses.replace(loss, from_images=True)
        for name, loss in LOSSES.items()
        if isinstance(loss, ProxyTermConfig)
    },
}
NUM_CLASSES, NUM_IMAGES, WIDTH = 6, 40, 6
LABELS = {
    "several classes": [0, 0, 1, 1, 1, 2, 3, 0],
    "one class": [2] * 8,
    "one image a class": [0, 1, 2, 3, 4, 5],
    "one image": [3],
}


def build(loss: TermConfig):
    """Build the state of a loss; slots are filled with images that no batch shows."""
    torch.manual_seed(0)
    state = loss.build(Sizes(NUM_CLASSES, NUM_IMAGES, WIDTH, unit_rows(NUM_IMAGES, seed=5, dim=9, dtype=torch.float32)))
    rows = torch.arange(20, NUM_IMAGES)
    loss.update(unit_rows(20, seed=7, dtype=torch.float32), rows % NUM_CLASSES, rows, state)
    return state


def make_batch(embeddings, labels, *, has_memory=False):
    """Make a batch in which every three images are a tuple, and half of whose images the memory shows, too."""
    positions = torch.arange(len(labels))
    memory = None
    if has_memory:
        others = torch.arange(4, 12)
        memory = MemoryRows(unit_rows(8, seed=9, dtype=torch.float32), others % NUM_CLASSES, others)
    return LossBatch(embeddings, torch.tensor(labels), positions, 3, positions // 3 * 3, memory)


def compute_with_gradient(loss, embeddings, labels, *, has_memory=False):
    raw = embeddings.detach().clone().requires_grad_()
    value = loss.compute(make_batch(raw, labels, has_memory=has_memory), build(loss))
    value.backward()
    assert raw.grad is not None
    return value.item(), raw.grad


@pytest.mark.parametrize("name", LOSSES)
def test_trap_half_precision_gives_the_loss_and_gradient_of_float32(name):
    for dtype in (torch.bfloat16, torch.float16):
        half = unit_rows(8, dtype=torch.float32).to(dtype)
        value, gradient = compute_with_gradient(LOSSES[name], half, LABELS["several classes"])
        expected, expected_gradient = compute_with_gradient(LOSSES[name], half.float(), LABELS["several classes"])
        assert value == expected
        assert gradient.dtype == dtype
        assert torch.equal(gradient, expected_gradient.to(dtype))
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", LOSSES)
def test_trap_autocast_around_a_loss_changes_nothing(name):
    embeddings = unit_rows(8, dtype=torch.float32)
    expected, _ = compute_with_gradient(LOSSES[name], embeddings, LABELS["several classes"])
    with torch.autocast("cpu", torch.bfloat16):
        value, _ = compute_with_gradient(LOSSES[name], embeddings, LABELS["several classes"])
    assert value == expected


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("labels", LABELS)
def test_trap_batches_of_all_kinds_have_a_finite_loss_and_gradient(name, labels):
    """Different images, or one image many times; several classes, one, as many as images, or one image."""
    different = unit_rows(len(LABELS[labels]), dtype=torch.float32)
    for embeddings in (different, different[:1].expand_as(different)):
        for has_memory in {False, LOSSES[name].reads_memory}:
            value, gradient = compute_with_gradient(LOSSES[name], embeddings, LABELS[labels], has_memory=has_memory)
            assert torch.isfinite(torch.tensor(value))
            assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", LOSSES)
def test_trap_near_duplicates_have_a_bounded_gradient(name):
    """Images that differ by rounding: a distance of nearly zero must not make a step of nearly infinite length."""
    embeddings = functional.normalize(unit_rows(8, dtype=torch.float32)[:4].repeat(2, 1), dim=1)
    noise = 1e-6 * unit_rows(8, seed=3, dtype=torch.float32)
    labels = [0, 0, 1, 1, 0, 2, 1, 3]  # two copies of an image agree, two do not
    _, gradient = compute_with_gradient(LOSSES[name], functional.normalize(embeddings + noise, dim=1), labels)
    limit = 1e7 if name == "koleo" else 1e3  # of the logarithm it is one over the distance
    assert gradient.norm() < limit


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("labels", LABELS)
def test_trap_an_embedding_that_is_not_finite_is_never_a_finite_loss(name, labels):
    loss = LOSSES[name]
    for value in (torch.nan, torch.inf):
        embeddings = unit_rows(len(LABELS[labels]), dtype=torch.float32)
        embeddings[-1, 2] = value
        assert not torch.isfinite(loss.compute(make_batch(embeddings, LABELS[labels]), build(loss)))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_do_not_depend_on_the_order_of_the_batch(name):
    embeddings, labels = unit_rows(8, dtype=torch.float32), LABELS["several classes"]
    loss = LOSSES[name]
    if loss.needs_tuples:
        pytest.skip("the order makes the tuples")
    before = loss.compute(make_batch(embeddings, labels), build(loss)).item()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    batch = make_batch(embeddings[order], torch.tensor(labels)[order].tolist())._replace(rows=order)
    assert loss.compute(batch, build(loss)).item() == pytest.approx(before, rel=1e-4, abs=1e-6)
