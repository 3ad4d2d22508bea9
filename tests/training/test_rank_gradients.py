"""Two ranks have the loss and the gradients of one process, for every loss: compared directly, before any optimizer."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.ranks import run_ranks
from vitrieve.config import Config, ObjectiveConfig
from vitrieve.data.loader import TrainingLoader
from vitrieve.data.records import ImageRecord
from vitrieve.model.encoder import ImageEncoder, build_encoder
from vitrieve.objective.objective import Objective
from vitrieve.objective.own import read_own_terms
from vitrieve.objective.proxies import ProxyTermConfig
from vitrieve.settings import override_config
from vitrieve.training import compute, loop
from vitrieve.training.compute import GIB, MemoryPlan, plan_memory
from vitrieve.training.loop import fit_encoder
from vitrieve.training.optimizer import build_optimizer
from vitrieve.training.ranks import current_ranks, joining_ranks, share_places
from vitrieve.training.relations import TrainingImages, build_relations

NUM_STEPS = 3
BATCH_SIZE = 7
"""Not a multiple of the ranks: one has four images, the other three."""
STEP_LENGTH = 0.05
"""How far the weights move along the gradient between two steps, whatever the loss: short, so that they stay near."""
TOLERANCE = 1e-5
"""Relative difference of losses."""
GRADIENT_TOLERANCE = 5e-5
"""Difference relative to the largest value of a gradient: recall@k, whose sigmoids are steep, differs by 1.7e-5."""
SETTINGS: Mapping[str, Any] = {
    "model.backbone": "test_vit",
    "model.image_size": 32,
    "model.drop_path_rate": 0.3,
    "loader.images_per_class": 2,
    "train.batch_size": BATCH_SIZE,
    "train.microbatch_size": 2,
    "train.num_steps": NUM_STEPS,
    "train.precision": "fp32",
    "train.num_threads": 1,
    "train.device": "cpu",
}
TUPLES = {
    "loader.sampling": "tuples",
    "tuples.num_pairs": 4,
    "tuples.num_candidates": 13,
    "tuples.num_negatives": 2,
    "tuples.tuples_per_batch": 2,
}
MEMORY = {"objective.memory_fraction": 0.7, "objective.memory_start_step": 1}


class Case(NamedTuple):
    """A training of a few steps: what differs from ``SETTINGS``, and what settings cannot say."""

    settings: Mapping[str, Any]
    is_divided: bool = False
    has_relations: bool = False
    has_own_term: bool = False
    plan: MemoryPlan | None = None
    num_bytes: tuple[int, ...] = ()
    """Bytes that each rank holds; none: as the system says."""


class Trained(NamedTuple):
    """What a process has seen: of all steps the losses, plans and mined rows, of the last that moves the gradients."""

    losses: list[float]
    gradients: dict[str, Tensor]
    plans: list[MemoryPlan]
    mined: list[list[int]]
    tuples: list[np.ndarray]


class Pull(nn.Module):
    """A term of a user's own, with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(2.0))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        is_same = labels[:, None] == labels
        return (1 - embeddings @ embeddings.T).clamp_min(1e-3)[is_same].pow(self.power).mean()


def list_cases() -> dict[str, Case]:
    """List every loss of the table, whatever it is called, and each with all that its class says it can read."""
    cases = {}
    for name, loss in ObjectiveConfig().losses.items():
        own = {f"objective.{name}.weight": 1.0, **(TUPLES if loss.needs_tuples else {})}
        if name == "distillation":
            own["objective.distillation.teacher"] = "a teacher"
        cases[name] = Case(own)
        if loss.reads_memory:
            cases[f"{name}, memory"] = Case({**own, **MEMORY})
            cases[f"{name}, momentum memory"] = Case({**own, **MEMORY, "objective.memory_momentum": 0.5})
        if loss.reads_memory and not loss.needs_whole_memory:
            cases[f"{name}, divided memory"] = Case({**own, **MEMORY}, is_divided=True)
        if loss.takes_relations:
            cases[f"{name}, several labels"] = Case(own, has_relations=True)
        if isinstance(loss, ProxyTermConfig):
            cases[f"{name}, from images"] = Case({**own, f"objective.{name}.from_images": True})
    contrastive = {"objective.contrastive.weight": 1.0}
    sphere = {"objective.hyperbolic.curvature": 0.0, "objective.hyperbolic.projection_dim": None}
    centers = {"objective.margin_softmax.margin_on": "cosine", "objective.margin_softmax.num_centers": 2}
    convnet = {"model.backbone": "test_resnet", "model.image_size": 64, "model.pooling": "average"}
    convnet |= {"model.drop_path_rate": 0.0, "train.microbatch_size": BATCH_SIZE, "train.freeze_batch_norm": False}
    return cases | {
        "contrastive, mean": Case({**contrastive, "objective.contrastive.mean_nonzero": True}),
        "spherical": Case({"objective.hyperbolic.weight": 1.0, **sphere}),
        "cosface": Case({"objective.margin_softmax.weight": 1.0, **centers}),
        "prefixes": Case({"objective.multi_similarity.weight": 1.0, "objective.prefixes": (8, 24)}),
        "sum": Case({**contrastive, "objective.koleo.weight": 0.3, "objective.proxy_anchor.weight": 0.5, **MEMORY}),
        "a term of one's own": Case({}, has_own_term=True),
        "embedded twice": Case(contrastive, plan=MemoryPlan(2, is_encoded_twice=True)),
        "batch norm": Case({**contrastive, **convnet}),
        "patches are dropped": Case({**contrastive, "model.patch_drop_rate": 0.25}),
    }


CASES = list_cases()


def configure(case: Case) -> Config:
    config = Config(objective=ObjectiveConfig().without_terms())
    return override_config(config, {**SETTINGS, **case.settings})


def record_gradients(into: dict[str, Tensor]) -> Callable[..., torch.optim.Optimizer]:
    """Return what builds an optimizer that keeps the gradients of a step by name, and goes a short way along them."""

    def build(encoder: ImageEncoder, objective: Objective, *given: Any) -> torch.optim.Optimizer:
        named = {f"encoder.{name}": one for name, one in encoder.named_parameters()}
        named |= {f"objective.{name}": one for name, one in objective.named_parameters()}

        def descend() -> None:
            found = {name: one.grad.clone() for name, one in named.items() if one.grad is not None}
            length = torch.stack([gradient.norm() for gradient in found.values()]).norm().item()
            if length > 0:  # no triplet may be left that costs anything
                into.clear()
                into.update(found)
                with torch.no_grad():
                    for name, gradient in found.items():
                        named[name].sub_(gradient, alpha=STEP_LENGTH / length)

        optimizer = build_optimizer(encoder, objective, *given)
        optimizer.step = descend  # type: ignore[assignment, method-assign]
        return optimizer

    return build


def train_case(case: Case, records: Sequence[ImageRecord], run: Path) -> Trained:
    """Train with plain gradient descent, alone or as a rank, and keep what was seen."""
    run.mkdir(parents=True, exist_ok=True)
    config, trained = configure(case), Trained([], {}, [], [], [])
    step, plain_batches = loop.train_step, TrainingLoader.plain_batches

    def plan(*given: Any) -> MemoryPlan:
        trained.plans.append(plan_memory(*given) if case.plan is None else case.plan)
        return trained.plans[-1]

    def train_step(state: Any, *given: Any) -> Any:
        trained.plans.append(state.plan)
        if state.tuples is not None:
            trained.tuples.append(state.tuples.rows)
        values = step(state, *given)
        trained.losses.append(values["loss"])
        return values

    def note_rows(loader: TrainingLoader, rows: Sequence[int], *given: Any) -> Any:
        trained.mined.append(list(rows))
        return plain_batches(loader, rows, *given)

    teacher = functional.normalize(torch.randn(len(records), 9, generator=torch.Generator().manual_seed(5)), dim=1)
    more = {record.image_id: [(record.label + 1) % 5] for record in records[::3]}
    pairs = [(records[0].image_id, records[5].image_id)]
    relations = build_relations(records, more, pairs) if case.has_relations else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build_optimizer", record_gradients(trained.gradients))
        patch.setattr(loop, "train_step", train_step)
        patch.setattr(loop, "plan_memory", plan)
        patch.setattr(loop, "read_teacher", lambda config, *_: teacher)
        patch.setattr(TrainingLoader, "plain_batches", note_rows)
        if case.is_divided:
            patch.setattr("vitrieve.objective.objective.DIVIDED_ABOVE_BYTES", 0)
        if case.num_bytes:
            patch.setattr(compute, "_count_process_bytes", lambda: case.num_bytes[current_ranks().rank])
        own_terms = read_own_terms(Pull()) if case.has_own_term else ()
        encoder = build_encoder(config.model, is_pretrained=False, seed=0)
        fit_encoder(config, encoder, TrainingImages(records, (), relations), run, own_terms=own_terms)
    return trained


def train_all(cases: Mapping[str, Case], records: Sequence[ImageRecord], folder: Path) -> dict[str, Trained | str]:
    """Train each case; where one cannot be built, the traceback stands in place of its result."""
    found: dict[str, Trained | str] = {}
    with joining_ranks() as ranks:
        for name, case in cases.items():
            try:
                found[name] = train_case(case, records, folder / name.replace(" ", "_"))
            except Exception:  # alike on all ranks; else the run of the tests ends by its limit
                found[name] = f"rank {ranks.rank}: {traceback.format_exc()}"
    return found


class Compared(NamedTuple):
    """The cases on two ranks, and in one process."""

    ranks: list[dict[str, Trained | str]]
    alone: dict[str, Trained | str]
    limits: dict[str, Case]


@pytest.fixture(scope="module")
def compared(class_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    paths = sorted(class_folder.rglob("*.png"))
    records = tuple(  # hard: no class is of one color
        ImageRecord(image_id=path.name, path=path, label=number % 5, split="train") for number, path in enumerate(paths)
    )
    folder = tmp_path_factory.mktemp("gradients")
    limits = make_limits(len(records))
    cases = {**CASES, **limits}
    ended = run_ranks(2, folder, train_all, cases, records, folder / "together")
    assert [one.status for one in ended] == [0, 0], ended[0].printed + ended[1].printed
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = train_all(cases, records, folder / "alone")
    torch.set_num_threads(num_threads)
    return Compared([one.result for one in ended], alone, limits)


def make_limits(num_images: int) -> dict[str, Case]:
    """Make cases whose limit has room for the graph of a share of the batch, and not for that of all of it."""
    settings = {"objective.contrastive.weight": 1.0, "train.microbatch_size": 4, "loader.cache_bytes": 0}
    needs = {}
    for batch_size in (-(-BATCH_SIZE // 2), BATCH_SIZE):
        case = Case({**settings, "train.batch_size": batch_size, "train.memory_limit_gib": 100.0})
        config = configure(case)
        encoder = build_encoder(config.model, is_pretrained=False, seed=0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compute, "_count_process_bytes", lambda: 0)
            needs[batch_size] = plan_memory(encoder, config, 0, num_images, 5).bytes_needed
    part, whole = needs.values()
    assert part < whole
    limited = {**settings, "train.memory_limit_gib": (part + whole) / 2 / GIB}
    return {
        "limit": Case(limited, num_bytes=(0, 0)),
        "less room on one": Case(limited, num_bytes=(0, (whole - part) * 3 // 4)),
    }


def require(found: Trained | str) -> Trained:
    assert isinstance(found, Trained), found
    return found


def list_far(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the gradients that differ, with the difference over the largest value."""
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    far = {}
    for name, gradient in expected.items():
        # The gradient of a key's bias is zero but for rounding; what it is measured by is then that of all.
        scale = max(float(gradient.abs().max()), 0.01 * largest)
        far[name] = float((found[name] - gradient).abs().max()) / scale
    return {name: value for name, value in far.items() if not value <= GRADIENT_TOLERANCE}


@pytest.mark.parametrize("name", CASES)
def test_trap_two_ranks_have_the_loss_and_the_gradients_of_one_process(name: str, compared: Compared) -> None:
    first, second = (require(one[name]) for one in compared.ranks)
    alone = require(compared.alone[name])
    assert first.losses == second.losses
    assert len(first.losses) == NUM_STEPS
    # KoLeo may be near zero, as a mean of logarithms of both signs; what is rounded are these.
    np.testing.assert_allclose(first.losses, alone.losses, rtol=TOLERANCE, atol=1e-6)
    assert all(torch.equal(gradient, second.gradients[key]) for key, gradient in first.gradients.items())
    assert max(float(gradient.abs().max()) for gradient in alone.gradients.values()) > 1e-4
    assert list_far(first.gradients, alone.gradients) == {}
    # What the test is for: a factor of the number of ranks.
    doubled = {key: 2 * gradient for key, gradient in alone.gradients.items()}
    assert list_far(first.gradients, doubled).keys() >= {
        key for key, gradient in alone.gradients.items() if float(gradient.abs().max()) > 1e-4
    }


def test_each_rank_mines_its_part_of_the_images(compared: Compared) -> None:
    name = next(name for name in CASES if "tuples.num_pairs" in CASES[name].settings)
    alone, ranks = require(compared.alone[name]), [require(one[name]) for one in compared.ranks]
    assert len(alone.mined) > 1  # epochs
    for number, rows in enumerate(alone.mined):
        shares = [one.mined[number] for one in ranks]
        assert [len(share) for share in shares] == [len(share) for share in share_places(len(rows), 2)]
        assert min(len(share) for share in shares) > 0
        assert sorted(np.concatenate(shares).tolist()) == rows
    for one in ranks:
        assert [rows.tolist() for rows in one.tuples] == [rows.tolist() for rows in alone.tuples]


def test_a_limit_of_memory_counts_for_each_rank(compared: Compared) -> None:
    """The graph of a share of the batch fits; that of the whole does not, and its images are embedded twice."""
    alone = require(compared.alone["limit"])
    assert [plan.is_encoded_twice for plan in alone.plans] == [True] * (1 + NUM_STEPS)
    for one in compared.ranks:
        planned, *used = require(one["limit"]).plans
        assert not planned.is_encoded_twice
        assert planned.bytes_needed <= GIB * configure(compared.limits["limit"]).train.memory_limit_gib
        assert used == [planned] * NUM_STEPS


def test_the_rank_with_the_least_room_decides_for_all(compared: Compared) -> None:
    first, second = (require(one["less room on one"]).plans for one in compared.ranks)
    assert [plans[0].is_encoded_twice for plans in (first, second)] == [False, True]
    assert first[1:] == second[1:] == [second[0]] * NUM_STEPS
