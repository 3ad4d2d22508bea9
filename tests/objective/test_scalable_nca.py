from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import NCALoss
from torch.nn import functional

from tests.objective import reference
from tests.objective.test_contrastive import LABELS, at_degrees, unit_rows
from vitrieve.objective.scalable_nca import ScalableNcaLoss

ROWS = torch.arange(8)
SLOT_LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 0, 1, 2, 3])


def build_loss(num_images=12, dim=6, **values):
    return ScalableNcaLoss(num_images, dim, **values)


def build_filled_loss(rows=None, **values):
    """Twelve slots, those of ``rows`` filled (by default all)."""
    loss = build_loss(**values)
    rows = torch.arange(12) if rows is None else rows
    loss.update(unit_rows(12, seed=3)[rows], SLOT_LABELS[rows], rows)
    return loss


def test_scalable_nca_hand_case():
    loss = build_loss(3, 2, temperature=0.5)
    loss.update(at_degrees(0, 0, 90), torch.tensor([0, 0, 1]), torch.arange(3))
    # Of image 0, the own slot is left out: cosine 1 with its class, 0 with the other, over 0.5.
    assert loss(at_degrees(0), torch.tensor([0]), torch.tensor([0])).item() == pytest.approx(math.log(1 + math.exp(-2)))


@pytest.mark.parametrize("filled", [range(12), [0, 1, 2, 5, 9, 11], []])
def test_scalable_nca_equals_double_loop(filled):
    loss, embeddings = build_filled_loss(torch.tensor(list(filled), dtype=torch.int64)), unit_rows(8)
    slots = {row: (loss.slots[row].double(), int(loss.labels[row])) for row in filled}
    expected = reference.scalable_nca(embeddings, LABELS, ROWS, slots, 0.05)
    assert loss(embeddings, LABELS, ROWS).item() == pytest.approx(expected, rel=1e-6)


def test_scalable_nca_equals_pytorch_metric_learning():
    loss, embeddings = build_filled_loss(), unit_rows(8, dtype=torch.float32)
    public = NCALoss(softmax_scale=1 / 0.05, distance=CosineSimilarity())
    value = loss(embeddings, LABELS, ROWS + 100)  # images that have no slot: the public loss leaves none out
    expected = public(embeddings, LABELS, ref_emb=loss.slots, ref_labels=loss.labels)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_scalable_nca_leaves_the_own_slot_out():
    loss, embeddings = build_filled_loss(), unit_rows(8)
    before = loss(embeddings[:1], LABELS[:1], ROWS[:1]).item()
    loss.slots[0] = -loss.slots[0]
    assert loss(embeddings[:1], LABELS[:1], ROWS[:1]).item() == before


def test_scalable_nca_without_neighbors_of_the_class_is_zero_with_zero_gradient():
    loss = build_loss()
    for rows in ([], [2, 3]):  # nothing is filled; only another class is
        rows = torch.tensor(rows, dtype=torch.int64)
        loss.update(unit_rows(12)[rows], SLOT_LABELS[rows], rows)
        embeddings = unit_rows(2).requires_grad_()
        value = loss(embeddings, torch.tensor([0, 0]), torch.tensor([0, 1]))
        value.backward()
        assert value.item() == 0
        assert bool((embeddings.grad == 0).all())


def test_scalable_nca_gradcheck():
    loss = build_filled_loss(torch.tensor([0, 1, 2, 3, 4, 9]), temperature=0.5).double()
    assert torch.autograd.gradcheck(
        lambda raw: loss(functional.normalize(raw, dim=1), LABELS, ROWS), unit_rows(8).requires_grad_()
    )


def test_update_moves_a_slot_by_its_momentum_and_leaves_the_others():
    loss = build_loss(3, 2, momentum=0.75)
    loss.update(at_degrees(0, 0), torch.tensor([4, 5]), torch.tensor([1, 2]))
    torch.testing.assert_close(loss.slots[1], torch.tensor([1.0, 0.0]))  # the first view fills the slot
    loss.update(at_degrees(90), torch.tensor([4]), torch.tensor([1]))
    expected = torch.tensor([0.75, 0.25]) / math.hypot(0.75, 0.25)
    torch.testing.assert_close(loss.slots, torch.stack([torch.zeros(2), expected, torch.tensor([1.0, 0.0])]))
    assert loss.is_filled.tolist() == [False, True, True]
    assert loss.labels.tolist() == [0, 4, 5]


def test_update_takes_several_views_of_an_image_in_any_order():
    views, labels, rows = at_degrees(0, 90, 30), torch.tensor([1, 1, 2]), torch.tensor([0, 0, 2])
    losses = [build_loss(3, 2), build_loss(3, 2)]
    for loss, order in zip(losses, ([0, 1, 2], [2, 1, 0]), strict=True):
        loss.update(views[order], labels[order], rows[order])
        torch.testing.assert_close(loss.slots[0], at_degrees(45)[0].float())
    torch.testing.assert_close(losses[0].slots, losses[1].slots)


def test_update_keeps_no_gradient():
    loss = build_loss()
    loss.update(unit_rows(8).requires_grad_(), LABELS, ROWS)
    assert not loss.slots.requires_grad


def test_trap_label_zero_is_a_label_like_any_other():
    loss = build_loss(2, 2)
    loss.update(at_degrees(0), torch.tensor([0]), torch.tensor([1]))
    # Slot 0 is empty, and empty slots hold the label 0, too.
    assert loss(at_degrees(90), torch.tensor([0]), torch.tensor([5])).item() == 0


def test_trap_scalable_nca_state_dict_carries_all_of_it():
    loss, restored = build_filled_loss(torch.tensor([0, 3, 7])), build_loss()
    restored.load_state_dict(loss.state_dict())
    for each in (loss, restored):
        each.update(unit_rows(8, seed=5), LABELS, ROWS)
    assert all(torch.equal(value, restored.state_dict()[name]) for name, value in loss.state_dict().items())
    assert loss(unit_rows(8), LABELS, ROWS).item() == restored(unit_rows(8), LABELS, ROWS).item()
