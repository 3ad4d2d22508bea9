from __future__ import annotations

import pytest
import torch

from tests.objective.test_contrastive import LABELS, unit_rows
from vitrieve.config import ObjectiveConfig
from vitrieve.objective.contrastive import contrastive_loss
from vitrieve.objective.koleo import koleo_loss
from vitrieve.objective.objective import Objective, similarity_statistics

ROWS = torch.arange(8)


def build_objective(**values: float) -> Objective:
    torch.manual_seed(0)
    config = ObjectiveConfig(contrastive_weight=1.0, **values)  # type: ignore[arg-type]
    return Objective(config, num_classes=4, num_images=20, embedding_dim=6)


def test_objective_is_the_weighted_sum_of_its_terms() -> None:
    embeddings = unit_rows(8, dtype=torch.float32)
    loss = build_objective(margin=0.1, koleo_weight=0.7)(embeddings, LABELS, ROWS, step=0)
    expected = contrastive_loss(embeddings, LABELS, margin=0.1) + 0.7 * koleo_loss(embeddings)
    assert loss.total.item() == pytest.approx(expected.item())
    assert list(loss.terms) == ["contrastive", "koleo"]
    assert not loss.terms["koleo"].requires_grad


def test_objective_leaves_terms_of_weight_zero_out() -> None:
    loss = build_objective()(unit_rows(8, dtype=torch.float32), LABELS, ROWS, step=0)
    assert list(loss.terms) == ["contrastive"]


def test_trap_the_batch_enters_the_memory_after_its_loss() -> None:
    objective, embeddings = build_objective(memory_fraction=1.0, margin=0.1), unit_rows(8, dtype=torch.float32)
    first = objective(embeddings, LABELS, ROWS, step=0)
    assert first.total.item() == pytest.approx(contrastive_loss(embeddings, LABELS, margin=0.1).item())
    assert objective.memory is not None
    assert len(objective.memory) == 0
    objective.enqueue(embeddings, LABELS, ROWS)
    assert objective.memory_fill == 8 / 20
    later = objective(embeddings, LABELS, ROWS + 8, step=1)
    assert later.total.item() > first.total.item()


def test_objective_fills_the_memory_before_it_counts() -> None:
    objective, embeddings = build_objective(memory_fraction=1.0, memory_start_step=5), unit_rows(8, dtype=torch.float32)
    alone = objective(embeddings, LABELS, ROWS, step=0).total.item()
    objective.enqueue(embeddings, LABELS, ROWS)
    assert objective(embeddings, LABELS, ROWS + 8, step=4).total.item() == alone
    assert objective(embeddings, LABELS, ROWS + 8, step=5).total.item() > alone


@pytest.mark.parametrize(("fraction", "size"), [(1.0, 20), (0.2, 4), (0.001, 1)])
def test_objective_memory_size_is_a_share_of_the_training_set(fraction: float, size: int) -> None:
    memory = build_objective(memory_fraction=fraction).memory
    assert memory is not None
    assert memory.memory_size == size


def test_objective_state_dict_carries_memory_and_proxies() -> None:
    objective = build_objective(memory_fraction=1.0, proxy_anchor_weight=1.0)
    assert {"memory.num_enqueued", "memory.embeddings", "proxy_anchor.proxies"} <= set(objective.state_dict())


def test_similarity_statistics_of_known_angles() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    values = similarity_statistics(embeddings, torch.tensor([0, 0, 1]), margin=0.5)
    assert values == {
        "mean_positive_similarity": 1.0,
        "mean_negative_similarity": 0.0,
        "active_negatives_fraction": 0.0,
    }


def test_similarity_statistics_leaves_out_what_there_is_none_of() -> None:
    assert similarity_statistics(torch.ones(1, 2), torch.tensor([0]), margin=0.5) == {}


def test_trap_objective_computes_in_float32_under_autocast() -> None:
    embeddings = unit_rows(8, dtype=torch.float32)
    values = {"memory_fraction": 1.0, "margin": 0.1, "multi_similarity_weight": 1.0, "proxy_anchor_weight": 1.0}
    objective = build_objective(**values, koleo_weight=0.7)
    objective.enqueue(unit_rows(8, seed=1, dtype=torch.float32), LABELS, ROWS + 8)
    expected = objective(embeddings, LABELS, ROWS, step=1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(embeddings, LABELS, ROWS, step=1)
    assert loss.terms == expected.terms
    assert loss.total.dtype == torch.float32
