from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional

from tests.objective.test_contrastive import LABELS, unit_rows
from vitrieve.config import ObjectiveConfig
from vitrieve.errors import ConfigError
from vitrieve.objective.contrastive import contrastive_loss
from vitrieve.objective.koleo import KoleoConfig, koleo_loss
from vitrieve.objective.normalized_softmax import normalized_softmax_loss
from vitrieve.objective.objective import Objective, similarity_statistics
from vitrieve.objective.proxy_nca import proxy_nca_loss
from vitrieve.objective.scalable_nca import build_slots, scalable_nca_loss, update_slots
from vitrieve.objective.tuple_contrastive import TupleContrastiveConfig, tuple_contrastive_loss
from vitrieve.settings import override_config

ROWS = torch.arange(8)


TEACHER = unit_rows(20, seed=4, dtype=torch.float32)


def build_objective(**values: float) -> Objective:
    """Build an objective of the contrastive loss and of what ``values`` name (``loss_setting``)."""
    torch.manual_seed(0)
    config = override_config(ObjectiveConfig(), {"contrastive.weight": 1.0, **values})
    return Objective(config, num_classes=4, num_images=20, embedding_dim=6, teacher=TEACHER)


def test_objective_is_the_weighted_sum_of_its_terms() -> None:
    embeddings = unit_rows(8, dtype=torch.float32)
    loss = build_objective(contrastive_margin=0.1, koleo_weight=0.7)(embeddings, LABELS, ROWS, step=0)
    expected = contrastive_loss(embeddings, LABELS, margin=0.1) + 0.7 * koleo_loss(embeddings)
    assert loss.total.item() == pytest.approx(expected.item())
    assert list(loss.terms) == ["contrastive", "koleo"]
    assert not loss.terms["koleo"].requires_grad


def test_objective_leaves_terms_of_weight_zero_out() -> None:
    loss = build_objective()(unit_rows(8, dtype=torch.float32), LABELS, ROWS, step=0)
    assert list(loss.terms) == ["contrastive"]


def test_trap_the_batch_enters_the_memory_after_its_loss() -> None:
    objective, embeddings = (
        build_objective(memory_fraction=1.0, contrastive_margin=0.1),
        unit_rows(8, dtype=torch.float32),
    )
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


def test_objective_names_its_state_as_the_states_of_older_runs_do() -> None:
    names = ("proxy_anchor", "normalized_softmax", "proxy_nca", "scalable_nca", "koleo", "multi_similarity")
    objective = build_objective(memory_fraction=1.0, **{f"{name}_weight": 1.0 for name in names})
    assert list(objective.state_dict()) == [
        *(f"memory.{name}" for name in ("embeddings", "labels", "rows", "num_enqueued")),
        *("proxy_anchor.proxies", "normalized_softmax.class_weights", "proxy_nca.proxies"),
        *(f"scalable_nca.{name}" for name in ("slots", "labels", "is_filled")),
    ]


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
    values = {
        "memory_fraction": 1.0,
        "contrastive_margin": 0.1,
        "multi_similarity_weight": 1.0,
        "proxy_anchor_weight": 1.0,
    }
    objective = build_objective(**values, koleo_weight=0.7)
    objective.enqueue(unit_rows(8, seed=1, dtype=torch.float32), LABELS, ROWS + 8)
    expected = objective(embeddings, LABELS, ROWS, step=1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(embeddings, LABELS, ROWS, step=1)
    assert loss.terms == expected.terms
    assert loss.total.dtype == torch.float32


def test_objective_adds_the_baselines_of_the_paper() -> None:
    names = ("normalized_softmax", "proxy_nca", "scalable_nca")
    objective, embeddings = build_objective(**{f"{name}_weight": 0.5 for name in names}), unit_rows(8).float()
    objective.enqueue(unit_rows(8, seed=1).float(), LABELS, ROWS + 8)
    loss = objective(embeddings, LABELS, ROWS, step=0)
    assert list(loss.terms) == ["contrastive", *names]
    expected = [
        contrastive_loss(embeddings, LABELS),
        *(0.5 * loss.terms[name] for name in names),
    ]
    assert loss.total.item() == pytest.approx(sum(value.item() for value in expected))
    assert all(value.item() > 0 for value in expected)


def test_objective_hands_settings_to_the_baselines() -> None:
    objective = build_objective(
        normalized_softmax_weight=1.0,
        normalized_softmax_temperature=0.1,
        proxy_nca_weight=1.0,
        proxy_nca_temperature=0.2,
        scalable_nca_weight=1.0,
        scalable_nca_temperature=0.3,
        scalable_nca_momentum=0.4,
    )
    embeddings, others = unit_rows(8).float(), unit_rows(8, seed=1).float()
    for _ in range(2):
        objective.enqueue(others, LABELS, ROWS)
    objective.enqueue(embeddings, LABELS, ROWS)
    terms = objective(embeddings, LABELS, ROWS + 8, step=1).terms
    class_weights = objective.get_parameter("normalized_softmax.class_weights")
    proxies = objective.get_parameter("proxy_nca.proxies")
    slots = build_slots(20, 6)
    update_slots(slots, others, LABELS, ROWS)
    update_slots(slots, embeddings, LABELS, ROWS, momentum=0.4)
    assert terms["normalized_softmax"] == normalized_softmax_loss(embeddings, LABELS, class_weights, temperature=0.1)
    assert terms["proxy_nca"] == proxy_nca_loss(embeddings, LABELS, proxies, temperature=0.2)
    expected = scalable_nca_loss(embeddings, LABELS, ROWS + 8, slots, temperature=0.3)
    assert terms["scalable_nca"].item() == pytest.approx(expected.item())
    assert (len(objective.get_buffer("scalable_nca.slots")), len(proxies)) == (20, 4)


def test_objective_fills_the_slots_of_scalable_nca_after_the_loss() -> None:
    objective, embeddings = build_objective(scalable_nca_weight=1.0), unit_rows(8).float()
    assert objective(embeddings, LABELS, ROWS, step=0).terms["scalable_nca"].item() == 0
    objective.enqueue(embeddings, LABELS, ROWS)
    assert objective(embeddings, LABELS, ROWS, step=1).terms["scalable_nca"].item() > 0


def test_objective_total_is_the_stacked_sum_in_the_order_of_the_terms() -> None:
    """The bits of a run depend on the order of the additions."""
    weights = {"multi_similarity_weight": 0.3, "proxy_anchor_weight": 0.1, "koleo_weight": 0.7}
    loss = build_objective(**weights, contrastive_margin=0.1)(unit_rows(8).float(), LABELS, ROWS, step=0)
    assert list(loss.terms) == ["contrastive", "multi_similarity", "proxy_anchor", "koleo"]
    weighted = [weight * value for weight, value in zip((1.0, 0.3, 0.1, 0.7), loss.terms.values(), strict=True)]
    assert torch.equal(loss.total.detach(), torch.stack(weighted).sum())


def test_objective_of_tuples_is_their_loss_and_koleo_over_different_images() -> None:
    embeddings = unit_rows(8, dtype=torch.float32)
    embeddings[6] = embeddings[3]
    rows, anchors = torch.tensor([0, 1, 2, 3, 4, 5, 3, 7]), torch.tensor([0, 0, 0, 0, 4, 4, 4, 4])
    labels = torch.tensor([0, 0, 1, 2, 1, 1, 2, 3])
    config = ObjectiveConfig(
        tuple_contrastive=TupleContrastiveConfig(weight=1.0, margin=1.2), koleo=KoleoConfig(weight=4.0)
    )
    objective = Objective(config, num_classes=4, num_images=8, embedding_dim=6)
    loss = objective(embeddings, labels, rows, step=0, anchors=anchors)
    different = embeddings[[0, 1, 2, 3, 4, 5, 7]]
    expected = tuple_contrastive_loss(embeddings, labels, anchors, margin=1.2) + 4 * koleo_loss(different)
    assert loss.total.item() == pytest.approx(expected.item())
    assert list(loss.terms) == ["tuple_contrastive", "koleo"]


EVERY_LOSS = [name for name, loss in ObjectiveConfig().losses.items() if not loss.needs_tuples]


def cut(embeddings: torch.Tensor, length: int) -> torch.Tensor:
    return functional.normalize(embeddings[:, :length], dim=1)


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_objective_with_prefixes_is_the_sum_of_separate_losses(name: str) -> None:
    """Each part has a state of its own; the memory is cut."""
    memory_fraction = 0.8 if ObjectiveConfig().losses[name].reads_memory else 0.0
    whole = build_objective(**{"contrastive.weight": 0.0, f"{name}.weight": 0.5, "memory_fraction": memory_fraction})
    config = dataclasses.replace(whole.config, prefixes=(2, 4))
    sizes = {"num_classes": 4, "num_images": 20}
    objective = Objective(config, **sizes, embedding_dim=6, teacher=TEACHER)
    separate = [Objective(whole.config, **sizes, embedding_dim=length, teacher=TEACHER) for length in (6, 2, 4)]
    for part, prefix in zip(separate, ("", "prefix2.", "prefix4."), strict=True):
        state = {
            key: value if key.startswith("memory.") else objective.state_dict()[prefix + key]
            for key, value in part.state_dict().items()
        }
        part.load_state_dict(state)
    embeddings, others = unit_rows(8, dtype=torch.float32), unit_rows(8, seed=1, dtype=torch.float32)
    objective.enqueue(others, LABELS, ROWS + 8)
    expected = 0.0
    for part, length in zip(separate, (6, 2, 4), strict=True):
        part.enqueue(cut(others, length), LABELS, ROWS + 8)
        expected += part(cut(embeddings, length), LABELS, ROWS, step=1).total.item()
    loss = objective(embeddings, LABELS, ROWS, step=1)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert list(loss.terms) == [name]
    assert loss.total.item() == pytest.approx(0.5 * loss.terms[name].item())


def test_objective_with_prefixes_gradcheck() -> None:
    config = dataclasses.replace(build_objective(contrastive_margin=0.1, koleo_weight=0.3).config, prefixes=(3, 4))
    objective = Objective(config, num_classes=4, num_images=20, embedding_dim=6)
    assert torch.autograd.gradcheck(
        lambda raw: objective(functional.normalize(raw, dim=1), LABELS, ROWS, step=0).total,
        unit_rows(8).requires_grad_(),
    )


def test_objective_refuses_a_prefix_as_long_as_the_embedding() -> None:
    config = dataclasses.replace(build_objective().config, prefixes=(2, 6))
    with pytest.raises(ConfigError, match=r"objective\.prefixes has 6; expected lengths below .* embedding, 6"):
        Objective(config, num_classes=4, num_images=20, embedding_dim=6)
