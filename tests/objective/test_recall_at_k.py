from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.objective import reference
from tests.objective.test_contrastive import LABELS, at_degrees, unit_rows
from vitrieve.objective.memory import MemoryRows
from vitrieve.objective.recall_at_k import recall_at_k_loss

ROWS = torch.arange(8)
KS = (1, 2, 4, 8, 16)


@pytest.fixture
def memory():
    return MemoryRows(unit_rows(11, seed=5), torch.arange(11) % 4, torch.arange(11) + 3)


def test_recall_at_k_hand_case():
    # The stranger at 30° stands above the mate of both 0° and 80°, so each mate has rank 2; the stranger has no mate.
    # Recall@1 is nearly 0 and Recall@4 nearly 1, up to the second sigmoid: σ(-1) and σ(2), with temperature 1.
    loss = recall_at_k_loss(at_degrees(0, 80, 30), torch.tensor([0, 0, 1]), ks=(1, 4), temperature=1e-3)
    below, above = torch.tensor([-1.0, 2.0]).sigmoid().tolist()
    assert loss.item() == pytest.approx(2 / 3 * (1 - (below + above) / 2))


@pytest.mark.parametrize(("temperature", "rank_temperature"), [(0.01, 1.0), (0.3, 0.5)])
def test_recall_at_k_equals_double_loop(temperature, rank_temperature):
    embeddings = unit_rows(8)
    loss = recall_at_k_loss(embeddings, LABELS, temperature=temperature, rank_temperature=rank_temperature)
    expected = reference.recall_at_k(embeddings, LABELS, KS, temperature, rank_temperature)
    assert loss.item() == pytest.approx(expected)


def test_recall_at_k_with_memory_equals_double_loop_and_leaves_the_own_image_out(memory):
    embeddings = unit_rows(8)
    loss = recall_at_k_loss(embeddings, LABELS, temperature=0.1, rows=ROWS, memory=memory)
    expected = reference.recall_at_k(embeddings, LABELS, KS, 0.1, 1.0, ROWS, memory)
    assert loss.item() == pytest.approx(expected)
    assert loss.item() != pytest.approx(
        recall_at_k_loss(embeddings, LABELS, temperature=0.1, rows=ROWS + 99, memory=memory).item()
    )


def test_recall_at_k_tends_to_recall():
    embeddings = unit_rows(8)
    similarity = (embeddings @ embeddings.T).fill_diagonal_(-2)
    nearest = similarity.argmax(dim=1)
    has_mate = torch.tensor([(label == LABELS).sum() > 1 for label in LABELS])
    missed = ((LABELS[nearest] != LABELS) & has_mate).double().mean().item()
    # A rank of exactly k counts by half, so k lies between two ranks here.
    loss = recall_at_k_loss(embeddings, LABELS, ks=(1,), temperature=1e-5, rank_temperature=1e-3)
    found = 1 - has_mate.logical_not().double().mean().item() - missed
    assert loss.item() == pytest.approx(missed + found / 2, abs=1e-6)


def test_recall_at_k_gradcheck(memory):
    assert torch.autograd.gradcheck(
        lambda raw: recall_at_k_loss(
            functional.normalize(raw, dim=1), LABELS, temperature=0.3, rows=ROWS, memory=memory
        ),
        unit_rows(8).requires_grad_(),
    )
