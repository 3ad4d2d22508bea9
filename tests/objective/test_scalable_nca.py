from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import NCALoss
from torch.nn import functional

from tests.objective import reference
from tests.objective.test_contrastive import LABELS, at_degrees, unit_rows
from vitrieve.objective.scalable_nca import ScalableNcaConfig, build_slots, scalable_nca_loss, update_slots
from vitrieve.objective.term import LossBatch, Sizes

ROWS = torch.arange(8)
SLOT_LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 0, 1, 2, 3])


def fill_slots(rows=None):
    """Twelve slots, those of ``rows`` filled (by default all)."""
    slots = build_slots(12, 6)
    rows = torch.arange(12) if rows is None else rows
    update_slots(slots, unit_rows(12, seed=3)[rows], SLOT_LABELS[rows], rows)
    return slots


def test_scalable_nca_hand_case():
    slots = build_slots(3, 2)
    update_slots(slots, at_degrees(0, 0, 90), torch.tensor([0, 0, 1]), torch.arange(3))
    # Of image 0, the own slot is left out: cosine 1 with its class, 0 with the other, over 0.5.
    loss = scalable_nca_loss(at_degrees(0), torch.tensor([0]), torch.tensor([0]), slots, temperature=0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))


@pytest.mark.parametrize("filled", [range(12), [0, 1, 2, 5, 9, 11], []])
def test_scalable_nca_equals_double_loop(filled):
    slots, embeddings = fill_slots(torch.tensor(list(filled), dtype=torch.int64)), unit_rows(8)
    by_row = {row: (slots.slots[row].double(), int(slots.labels[row])) for row in filled}
    expected = reference.scalable_nca(embeddings, LABELS, ROWS, by_row, 0.05)
    assert scalable_nca_loss(embeddings, LABELS, ROWS, slots).item() == pytest.approx(expected, rel=1e-6)


def test_scalable_nca_equals_pytorch_metric_learning():
    slots, embeddings = fill_slots(), unit_rows(8, dtype=torch.float32)
    public = NCALoss(softmax_scale=1 / 0.05, distance=CosineSimilarity())
    # Images that have no slot: the public loss leaves none out.
    value = scalable_nca_loss(embeddings, LABELS, ROWS + 100, slots)
    expected = public(embeddings, LABELS, ref_emb=slots.slots, ref_labels=slots.labels)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_scalable_nca_leaves_the_own_slot_out():
    slots, embeddings = fill_slots(), unit_rows(8)
    before = scalable_nca_loss(embeddings[:1], LABELS[:1], ROWS[:1], slots).item()
    slots.slots[0] = -slots.slots[0]
    assert scalable_nca_loss(embeddings[:1], LABELS[:1], ROWS[:1], slots).item() == before


def test_scalable_nca_without_neighbors_of_the_class_is_zero_with_zero_gradient():
    slots = build_slots(12, 6)
    for rows in ([], [2, 3]):  # nothing is filled; only another class is
        rows = torch.tensor(rows, dtype=torch.int64)
        update_slots(slots, unit_rows(12)[rows], SLOT_LABELS[rows], rows)
        embeddings = unit_rows(2).requires_grad_()
        value = scalable_nca_loss(embeddings, torch.tensor([0, 0]), torch.tensor([0, 1]), slots)
        value.backward()
        assert value.item() == 0
        assert bool((embeddings.grad == 0).all())


def test_scalable_nca_gradcheck():
    slots = fill_slots(torch.tensor([0, 1, 2, 3, 4, 9]))
    slots = slots._replace(slots=slots.slots.double())
    assert torch.autograd.gradcheck(
        lambda raw: scalable_nca_loss(functional.normalize(raw, dim=1), LABELS, ROWS, slots, temperature=0.5),
        unit_rows(8).requires_grad_(),
    )


def test_update_moves_a_slot_by_its_momentum_and_leaves_the_others():
    slots = build_slots(3, 2)
    update_slots(slots, at_degrees(0, 0), torch.tensor([4, 5]), torch.tensor([1, 2]), momentum=0.75)
    torch.testing.assert_close(slots.slots[1], torch.tensor([1.0, 0.0]))  # the first view fills the slot
    update_slots(slots, at_degrees(90), torch.tensor([4]), torch.tensor([1]), momentum=0.75)
    expected = torch.tensor([0.75, 0.25]) / math.hypot(0.75, 0.25)
    torch.testing.assert_close(slots.slots, torch.stack([torch.zeros(2), expected, torch.tensor([1.0, 0.0])]))
    assert slots.is_filled.tolist() == [False, True, True]
    assert slots.labels.tolist() == [0, 4, 5]


def test_update_takes_several_views_of_an_image_in_any_order():
    views, labels, rows = at_degrees(0, 90, 30), torch.tensor([1, 1, 2]), torch.tensor([0, 0, 2])
    both = [build_slots(3, 2), build_slots(3, 2)]
    for slots, order in zip(both, ([0, 1, 2], [2, 1, 0]), strict=True):
        update_slots(slots, views[order], labels[order], rows[order])
        torch.testing.assert_close(slots.slots[0], at_degrees(45)[0].float())
    torch.testing.assert_close(both[0].slots, both[1].slots)


def test_update_keeps_no_gradient():
    slots = build_slots(12, 6)
    update_slots(slots, unit_rows(8).requires_grad_(), LABELS, ROWS)
    assert not slots.slots.requires_grad


def test_trap_label_zero_is_a_label_like_any_other():
    slots = build_slots(2, 2)
    update_slots(slots, at_degrees(0), torch.tensor([0]), torch.tensor([1]))
    # Slot 0 is empty, and empty slots hold the label 0, too.
    assert scalable_nca_loss(at_degrees(90), torch.tensor([0]), torch.tensor([5]), slots).item() == 0


def test_trap_scalable_nca_state_dict_carries_all_of_it():
    config = ScalableNcaConfig(weight=1.0)
    state, restored = config.build(Sizes(4, 12, 6)), config.build(Sizes(4, 12, 6))
    config.update(unit_rows(3, seed=3), SLOT_LABELS[:3], torch.tensor([0, 3, 7]), state)
    restored.load_state_dict(state.state_dict())
    batch = LossBatch(unit_rows(8), LABELS, ROWS, 1, None, None)
    for each in (state, restored):
        config.update(unit_rows(8, seed=5), LABELS, ROWS, each)
    assert all(torch.equal(value, restored.state_dict()[name]) for name, value in state.state_dict().items())
    assert config.compute(batch, state).item() == config.compute(batch, restored).item() > 0
