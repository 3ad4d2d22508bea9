"""Terms of a user's own: what is accepted, what they are given, and what tells them apart."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from tests.objective.test_contrastive import LABELS, unit_rows
from vitrieve.config import Config, check_config
from vitrieve.errors import ConfigError
from vitrieve.objective.contrastive import contrastive_loss
from vitrieve.objective.losses import ObjectiveConfig
from vitrieve.objective.objective import Objective
from vitrieve.objective.own import read_own_terms
from vitrieve.settings import override_config

ROWS = torch.arange(8)


def plain(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return embeddings.square().mean()


def curious(embeddings: torch.Tensor, labels: torch.Tensor, rows: Any, *, step: int, power: int = 1) -> torch.Tensor:
    return (embeddings.sum() + rows.sum() * step) ** power


def eager(embeddings: torch.Tensor, labels: torch.Tensor, **given: Any) -> torch.Tensor:
    assert given.keys() == {"rows", "step", "anchors", "memory"}
    return embeddings.sum()


class Scaled(torch.nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.offset = torch.nn.Parameter(torch.ones(()))

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.scale * embeddings.mean() + self.offset


class Called:
    """A term that is neither a function nor a module."""

    def __init__(self, margin: float) -> None:
        self.margin = margin

    def __call__(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (embeddings.mean() - self.margin).abs()


def build_objective(given: Any, **values: Any) -> Objective:
    config = override_config(ObjectiveConfig(), values)
    return Objective(config, num_classes=4, num_images=20, embedding_dim=6, own_terms=read_own_terms(given))


def test_own_terms_are_given_what_their_parameters_name() -> None:
    embeddings = unit_rows(8, dtype=torch.float32)
    loss = build_objective([plain, (curious, 0.5), eager])(embeddings, LABELS, ROWS, step=3)
    assert loss.terms["curious"].item() == pytest.approx((embeddings.sum() + ROWS.sum() * 3).item())
    expected = loss.terms["plain"] + 0.5 * loss.terms["curious"] + loss.terms["eager"]
    assert loss.total.item() == pytest.approx(expected.item())


def test_own_terms_are_added_to_the_losses_that_have_a_weight() -> None:
    loss = build_objective(plain, koleo_weight=0.1)(unit_rows(8, dtype=torch.float32), LABELS, ROWS, step=0)
    assert list(loss.terms) == ["koleo", "plain"]


def test_a_loss_of_the_package_with_other_settings_is_a_term_and_reads_the_memory() -> None:
    embeddings = unit_rows(8, dtype=torch.float32)
    term = functools.partial(contrastive_loss, margin=0.1)
    objective = build_objective(term, memory_fraction=1.0)
    objective.enqueue(unit_rows(8, seed=1, dtype=torch.float32), LABELS, ROWS + 8)
    assert objective.memory is not None
    expected = contrastive_loss(embeddings, LABELS, margin=0.1, rows=ROWS, memory=objective.memory.contents())
    assert objective(embeddings, LABELS, ROWS, step=0).terms["contrastive_loss"] == expected
    check_config(override_config(Config(), {"memory_fraction": 1.0}), read_own_terms(term))
    with pytest.raises(ConfigError, match="no term reads the memory"):
        check_config(override_config(Config(), {"memory_fraction": 1.0}), read_own_terms(plain))


def test_a_module_is_copied_with_its_parameters() -> None:
    module = Scaled(2.0)
    first, second = build_objective(module), build_objective(module)
    assert [name for name, _ in first.named_parameters()] == ["own_Scaled.offset"]
    first.get_parameter("own_Scaled.offset").data += 1
    assert second.get_parameter("own_Scaled.offset").item() == module.offset.item() == 1


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (3, "3 is no term of an objective"),
        ("koleo", "'koleo' is no term"),
        (Scaled, "an object, not its class"),
        ([], "empty list"),
        ([plain, plain], "called 'plain'; expected a name of its own"),
        (lambda embeddings, labels: embeddings.mean(), "called '<lambda>'"),
        ((plain, 0.5, 1), r"0\.5 is no term"),
        ([(plain, -1)], "the weight of a term is -1; expected a number above 0"),
        ([(plain, "1")], "the weight of a term is '1'"),
        (lambda embeddings: embeddings.mean(), "does not take two arguments"),
        (lambda embeddings, labels, weight: weight, "needs weight; it is called with embeddings and labels, .*: rows,"),
    ],
)
def test_read_own_terms_refuses(given: Any, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        read_own_terms(given)


def test_a_name_of_a_loss_is_refused() -> None:
    def koleo(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return embeddings.mean()

    with pytest.raises(ConfigError, match="called 'koleo'; expected a name of its own"):
        read_own_terms(koleo)


@pytest.mark.parametrize(
    ("value", "part"), [(torch.ones(2), r"a tensor of shape \(2,\)"), (0.5, "returned 0.5; expected a scalar tensor")]
)
def test_a_term_that_returns_no_scalar_is_refused(value: Any, part: str) -> None:
    def wrong(embeddings: torch.Tensor, labels: torch.Tensor) -> Any:
        return value

    with pytest.raises(ConfigError, match=part):
        build_objective(wrong)(unit_rows(8, dtype=torch.float32), LABELS, ROWS, step=0)


def bind(margin: float) -> Any:
    def bound(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (embeddings.mean() - margin).abs()

    return bound


def test_describe_tells_terms_apart_by_weight_source_and_settings() -> None:
    def describe(given: Any) -> Any:
        (term,) = read_own_terms([given])
        return term.describe()

    for one, same, other in (
        (Scaled(1.0), Scaled(1.0), Scaled(2.0)),
        (Called(0.1), Called(0.1), Called(0.2)),
        (bind(0.1), bind(0.1), bind(0.2)),
        (functools.partial(curious, power=2), functools.partial(curious, power=2), functools.partial(curious, power=3)),
        ((plain, 0.5), (plain, 0.5), plain),
        (plain, plain, eager),
    ):
        assert describe(one) == describe(same)
        assert describe(one) != describe(other)
    namespace: dict[str, Any] = {}
    exec("def typed(embeddings, labels): return embeddings.mean()", namespace)  # as in a shell of Python
    assert describe(namespace["typed"])["source"] is None
