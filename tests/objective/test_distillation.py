from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from tests.objective import reference
from tests.objective.test_contrastive import LABELS, at_degrees, unit_rows
from vitrieve.errors import ConfigError
from vitrieve.objective.distillation import DistillationConfig, distillation_loss
from vitrieve.objective.losses import ObjectiveConfig
from vitrieve.objective.objective import Objective


def test_distillation_hand_case():
    # Rows (1, 0) for the trained encoder and (1, 1) / sqrt 2 for a teacher that sees the same image twice.
    loss = distillation_loss(at_degrees(0, 90), at_degrees(30, 30))
    assert loss.item() == pytest.approx((1 - 1 / math.sqrt(2)) ** 2 + 1 / 2)


def test_distillation_equals_double_loop():
    embeddings, teacher = unit_rows(8), unit_rows(8, seed=2, dim=11)
    assert distillation_loss(embeddings, teacher).item() == pytest.approx(reference.distillation(embeddings, teacher))


def test_distillation_gradcheck():
    teacher = unit_rows(8, seed=2, dim=11)
    assert torch.autograd.gradcheck(
        lambda raw: distillation_loss(functional.normalize(raw, dim=1), teacher), unit_rows(8, 4).requires_grad_()
    )


def test_distillation_is_zero_for_a_rotated_teacher_and_has_no_gradient_in_it():
    embeddings = unit_rows(8).requires_grad_()
    rotation = torch.linalg.qr(unit_rows(6, seed=3)).Q
    teacher = (embeddings @ rotation).detach().requires_grad_()
    loss = distillation_loss(embeddings, teacher)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    loss.backward()
    assert teacher.grad is None


def test_distillation_takes_the_rows_of_the_images_and_leaves_labels_alone():
    teacher = unit_rows(20, seed=2, dim=11, dtype=torch.float32)
    config = ObjectiveConfig(distillation=DistillationConfig(weight=2.0))
    objective = Objective(config, num_classes=4, num_images=20, embedding_dim=6, teacher=teacher)
    embeddings, rows = unit_rows(8, dtype=torch.float32), torch.tensor([3, 19, 0, 7, 7, 2, 11, 5])
    values = [objective(embeddings, labels, rows, step=0).total.item() for labels in (LABELS, torch.zeros_like(LABELS))]
    assert values == [pytest.approx(2 * reference.distillation(embeddings, teacher[rows]), rel=1e-5)] * 2
    assert objective.state_dict() == {}  # read again when a run resumes
    with pytest.raises(ConfigError, match="needs the embeddings of a teacher"):
        Objective(config, num_classes=4, num_images=20, embedding_dim=6)
