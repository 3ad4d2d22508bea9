from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import ContrastiveLoss
from pytorch_metric_learning.reducers import AvgNonZeroReducer
from torch.nn import functional

from tests.objective import reference
from vitrieve.objective.contrastive import contrastive_loss
from vitrieve.objective.memory import MEMORY_BLOCK_SIZE, MemoryRows


def unit_rows(num_rows, seed=0, dim=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(num_rows, dim, generator=generator, dtype=dtype), dim=1)


def at_degrees(*angles):
    radians = [math.radians(angle) for angle in angles]
    return torch.tensor([[math.cos(r), math.sin(r)] for r in radians], dtype=torch.float64)


LABELS = torch.tensor([0, 0, 1, 1, 1, 2, 3, 0])


@pytest.fixture
def memory():
    return MemoryRows(unit_rows(11, seed=5), torch.arange(11) % 4, torch.arange(11) + 3)


def test_contrastive_hand_case():
    # 0° and 60° are a pair: 1 - 0.5 from both sides. 0° and 30°: cos 30° - 0.5; 60° and 30° the same; both sides.
    loss = contrastive_loss(at_degrees(0, 60, 30), torch.tensor([0, 0, 1]), margin=0.5)
    expected = (2 * 0.5 + 4 * (math.cos(math.radians(30)) - 0.5)) / 3
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("margin", [-0.2, 0.0, 0.5])
def test_contrastive_equals_double_loop(margin):
    embeddings = unit_rows(8)
    loss = contrastive_loss(embeddings, LABELS, margin=margin)
    assert loss.item() == pytest.approx(reference.contrastive(embeddings, LABELS, margin))


def test_contrastive_with_memory_equals_double_loop(memory):
    embeddings, rows = unit_rows(8), torch.arange(8)
    loss = contrastive_loss(embeddings, LABELS, margin=0.1, rows=rows, memory=memory)
    assert loss.item() == pytest.approx(reference.contrastive(embeddings, LABELS, 0.1, rows, memory))


@pytest.mark.parametrize("is_mean_nonzero", [False, True])
def test_a_memory_of_another_precision_is_read(memory, is_mean_nonzero):
    embeddings, rows = unit_rows(8).requires_grad_(), torch.arange(8)
    single = memory._replace(embeddings=memory.embeddings.float())
    losses = [
        contrastive_loss(embeddings, LABELS, margin=0.1, rows=rows, memory=kept, is_mean_nonzero=is_mean_nonzero)
        for kept in (single, memory)
    ]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    gradients = [torch.autograd.grad(loss, embeddings)[0] for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_trap_mean_over_nonzero_pairs_is_a_named_option_not_the_default(memory):
    embeddings, rows = unit_rows(8), torch.arange(8)
    loss = contrastive_loss(embeddings, LABELS, margin=0.1, rows=rows, memory=memory, is_mean_nonzero=True)
    expected = reference.contrastive_mean_nonzero(embeddings, LABELS, 0.1, rows, memory)
    assert loss.item() == pytest.approx(expected)
    assert contrastive_loss(embeddings, LABELS, margin=0.1).item() != pytest.approx(
        contrastive_loss(embeddings, LABELS, margin=0.1, is_mean_nonzero=True).item()
    )


def test_contrastive_mean_nonzero_equals_pytorch_metric_learning():
    embeddings = unit_rows(8, dtype=torch.float32)
    public = ContrastiveLoss(pos_margin=1, neg_margin=0.1, distance=CosineSimilarity(), reducer=AvgNonZeroReducer())
    loss = contrastive_loss(embeddings, LABELS, margin=0.1, is_mean_nonzero=True)
    assert loss.item() == pytest.approx(public(embeddings, LABELS).item(), rel=1e-5)


def test_contrastive_sum_equals_pytorch_metric_learning_with_sum_reducer():
    from pytorch_metric_learning.reducers import SumReducer

    embeddings = unit_rows(8, dtype=torch.float32)
    public = ContrastiveLoss(pos_margin=1, neg_margin=0.1, distance=CosineSimilarity(), reducer=SumReducer())
    loss = contrastive_loss(embeddings, LABELS, margin=0.1)
    assert loss.item() == pytest.approx(public(embeddings, LABELS).item() / 8, rel=1e-5)


@pytest.mark.parametrize("is_mean_nonzero", [False, True])
def test_contrastive_gradcheck(memory, is_mean_nonzero):
    def loss(raw):
        embeddings = functional.normalize(raw, dim=1)
        return contrastive_loss(
            embeddings, LABELS, margin=0.1, rows=torch.arange(8), memory=memory, is_mean_nonzero=is_mean_nonzero
        )

    assert torch.autograd.gradcheck(loss, unit_rows(8, seed=1).requires_grad_())


def test_trap_own_earlier_embedding_is_no_positive(memory):
    embeddings = unit_rows(8)
    own = MemoryRows(embeddings.flip(0), LABELS.flip(0), torch.arange(8).flip(0))
    # Every anchor's own image is in the memory; without the rule each would add 1 - 1 = 0 as a positive, but
    # an earlier, different embedding of the same image must add nothing either.
    moved = own._replace(embeddings=unit_rows(8, seed=9))
    loss = contrastive_loss(embeddings, torch.arange(8), margin=0.99, rows=torch.arange(8), memory=moved)
    distinct = contrastive_loss(embeddings, torch.arange(8), margin=0.99)
    same_label = moved._replace(labels=moved.rows)
    with_own = contrastive_loss(embeddings, torch.arange(8), margin=0.99, rows=torch.arange(8), memory=same_label)
    assert with_own.item() == pytest.approx(distinct.item())
    assert loss.item() >= distinct.item()


def test_trap_gradient_reaches_both_sides_of_a_pair_of_the_batch_and_one_side_of_a_pair_with_the_memory():
    # Two of a class: ((1 - a·b) + (1 - b·a)) / 2, whose gradient in a is -b; from one side alone it would be -b / 2.
    embeddings = at_degrees(0, 60).requires_grad_()
    (alone,) = torch.autograd.grad(contrastive_loss(embeddings, torch.tensor([0, 0])), embeddings)
    torch.testing.assert_close(alone, -embeddings.detach().flip(0))
    memory = MemoryRows(at_degrees(90), torch.tensor([0]), torch.tensor([7]))
    loss = contrastive_loss(embeddings, torch.tensor([0, 0]), rows=torch.arange(2), memory=memory)
    (both,) = torch.autograd.grad(loss, embeddings)
    torch.testing.assert_close(both - alone, -memory.embeddings.expand(2, -1) / 2)


def test_contrastive_single_embedding_costs_nothing():
    embeddings = unit_rows(1).requires_grad_()
    loss = contrastive_loss(embeddings, torch.tensor([7]))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(embeddings.grad).all()


def test_contrastive_is_invariant_to_order():
    embeddings, order = unit_rows(8), torch.randperm(8, generator=torch.Generator().manual_seed(3))
    before = contrastive_loss(embeddings, LABELS, margin=0.1)
    assert contrastive_loss(embeddings[order], LABELS[order], margin=0.1).item() == pytest.approx(before.item())


def dense_contrastive(embeddings, labels, rows, memory, margin):
    """The whole (B, B) and (B, M) matrices, differentiated by autograd."""
    others = torch.cat([embeddings, memory.embeddings])
    is_same = labels[:, None] == torch.cat([labels, memory.labels])
    is_counted = torch.cat([~torch.eye(len(labels), dtype=torch.bool), rows[:, None] != memory.rows], dim=1)
    similarity = embeddings @ others.T
    positive = torch.where(is_same & is_counted, 1 - similarity, 0)
    negative = torch.where(~is_same, (similarity - margin).clamp_min(0), 0)
    return (positive + negative).sum() / len(embeddings)


@pytest.mark.parametrize("num_classes", [1, 3, 500])
@pytest.mark.parametrize("num_kept", [1, MEMORY_BLOCK_SIZE - 1, MEMORY_BLOCK_SIZE, 2 * MEMORY_BLOCK_SIZE + 77])
def test_contrastive_with_a_large_memory_equals_the_dense_matrix(num_kept, num_classes):
    memory_rows = torch.randperm(num_kept, generator=torch.Generator().manual_seed(1))
    memory = MemoryRows(
        unit_rows(num_kept, seed=2, dim=16, dtype=torch.float32), memory_rows % num_classes, memory_rows
    )
    rows = torch.arange(24)  # of which many are in the memory
    found = []
    for loss in (contrastive_loss, dense_contrastive):
        embeddings = unit_rows(24, dim=16, dtype=torch.float32).requires_grad_()
        value = loss(embeddings, rows % num_classes, rows=rows, memory=memory, margin=0.2)
        value.backward()
        found.append((value.detach(), embeddings.grad))
    (value, gradient), (expected, expected_gradient) = found
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-5 * float(expected_gradient.abs().max()))


def test_contrastive_with_memory_without_gradient_has_the_same_value(memory):
    embeddings, rows = unit_rows(8), torch.arange(8)
    plain = contrastive_loss(embeddings, LABELS, margin=0.1, rows=rows, memory=memory)
    tracked = contrastive_loss(embeddings.clone().requires_grad_(), LABELS, margin=0.1, rows=rows, memory=memory)
    assert plain.item() == tracked.item()
    assert not plain.requires_grad
