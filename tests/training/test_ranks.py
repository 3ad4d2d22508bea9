"""Several processes train as one does: torchrun's ranks equal a single process, and end together."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.ranks import EndedRank, run_ranks
from vitrieve.config import Config
from vitrieve.data.records import ImageRecord
from vitrieve.model.encoder import build_encoder
from vitrieve.recipes import find_recipe
from vitrieve.settings import override_config
from vitrieve.training import loop
from vitrieve.training.compute import MemoryPlan
from vitrieve.training.ranks import joining_ranks, share_places
from vitrieve.training.relations import TrainingImages
from vitrieve.training.state import STATE_NAME

NUM_STEPS = 20


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def records(class_folder: Path) -> tuple[ImageRecord, ...]:
    paths = sorted(class_folder.rglob("*.png"))
    return tuple(
        ImageRecord(image_id=path.name, path=path, label=number % 5, split="train")  # hard: no class is of one color
        for number, path in enumerate(paths)
    )


class Job(NamedTuple):
    """A training: its settings, its folder, where Ctrl-C stops it, the plan of its memory, whether ranks divide it."""

    config: Config
    run: Path
    stop_step: int | None = None
    plan: MemoryPlan | None = None
    is_divided: bool = False


def fit(jobs: tuple[Job, ...], records: tuple[ImageRecord, ...]) -> int:
    """Train, alone or as one of the ranks that torchrun's variables tell of."""
    with joining_ranks() as ranks, pytest.MonkeyPatch.context() as patch:
        for config, run, stop_step, plan, is_divided in jobs:
            if is_divided:
                patch.setattr("vitrieve.objective.objective.DIVIDED_ABOVE_BYTES", 0)
            if plan is not None:
                patch.setattr(loop, "plan_memory", lambda *_, plan=plan: plan)
            step = loop.train_step

            def train_step(state: Any, *given: Any, stop_step: int | None = stop_step, step: Any = step) -> Any:
                values = step(state, *given)
                if state.step == stop_step and ranks.rank == ranks.size - 1:
                    os.kill(os.getpid(), signal.SIGINT)
                return values

            patch.setattr(loop, "train_step", train_step)
            try:
                encoder = build_encoder(config.model, is_pretrained=config.model.weights is not None, seed=0)
                loop.fit_encoder(config, encoder, TrainingImages(records), run)
            except KeyboardInterrupt:
                assert stop_step is not None
            patch.undo()
    return 0


TINY = {
    "model.backbone": "test_vit",
    "model.image_size": 32,
    "train.batch_size": 6,
    "train.microbatch_size": 6,
    "train.num_steps": NUM_STEPS,
    "train.precision": "fp32",
    # Adam divides by the size of a gradient: of one that is zero but for rounding, it would make a whole step.
    "optimizer.epsilon": 1e-4,
}
CONVNET = {
    "model.backbone": "test_resnet",
    "model.weights": None,
    "model.image_size": 64,
    "train.freeze_batch_norm": False,
    "train.microbatch_size": 4,
}
CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "small": ("small", {"loader.images_per_class": 2, "model.drop_path_rate": 0.3}),
    "patches are dropped": ("small", {"model.patch_drop_rate": 0.25, "train.ema_decay": 0.9}),
    "embedded twice": ("small", {"model.drop_path_rate": 0.3}),
    "full memory": ("irt_r", {"objective.memory_fraction": 1.0}),
    "divided memory": ("irt_r", {"objective.memory_fraction": 0.7}),
    "momentum memory": ("irt_l_inshop", {"objective.memory_fraction": 0.5, "objective.memory_start_step": 3}),
    "tuples": ("irt_r_sfm120k", {"tuples.num_pairs": 8, "tuples.num_candidates": 12, "optimizer.learning_rate": 3e-5}),
    "proxies": (
        "proxynca_pp_cub200",
        {**CONVNET, "train.freeze_batch_norm": True, "optimizer.learning_rate": 1e-3, "optimizer.epsilon": 1.0},
    ),
    "batch norm": ("contrastive", {**CONVNET, "model.pooling": "average", "optimizer.learning_rate": 1e-5}),
}
RESUMED = ("on as many ranks", "on others", "divided on others")
RESUMED_LONG = ("tuples", "momentum memory") if os.environ.get("VITRIEVE_LONG_TESTS") == "1" else ()
"""Cases that are resumed on other ranks by the long tests only."""


class Trained(NamedTuple):
    """The runs of all cases, on two ranks and alone, and what the ranks printed."""

    together: Path
    alone: Path
    ended: list[EndedRank]


@pytest.fixture(scope="module")
def trained(records: tuple[ImageRecord, ...], tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("ranks")
    jobs = {}
    for place in ("together", "alone"):
        jobs[place] = [
            Job(
                configure(*CASES[name], tiny_weights),
                make(folder / place / name),
                plan=find_plan(name),
                is_divided=name.startswith("divided"),
            )
            for name in CASES
        ]
    config = configure(*CASES["small"], tiny_weights)
    uneven = override_config(config, {"train.batch_size": 7})
    same, other, divided = (make(folder / "together" / name) for name in RESUMED)
    jobs["together"] += [Job(config, same, 7), Job(config, same), Job(uneven, other, 7)]
    memory = override_config(configure(*CASES["divided memory"], tiny_weights), {"train.batch_size": 7})
    jobs["together"] += [Job(memory, divided, 7, is_divided=True)]
    later = {name: configure(*CASES[name], tiny_weights) for name in RESUMED_LONG}
    runs = {name: make(folder / "together" / f"{name} on others") for name in RESUMED_LONG}
    jobs["together"] += [Job(later[name], runs[name], 7) for name in RESUMED_LONG]
    ended = run_ranks(2, folder, fit, tuple(jobs["together"]), records)
    whole = [Job(memory, make(folder / "alone" / "divided on others")), Job(memory, divided, 13)]
    whole += [Job(later[name], runs[name], 13) for name in RESUMED_LONG]
    fit((*jobs["alone"], Job(uneven, make(folder / "alone" / "on others")), Job(uneven, other, 13), *whole), records)
    last = [Job(uneven, other), Job(memory, divided, is_divided=True)]
    last += [Job(later[name], runs[name]) for name in RESUMED_LONG]
    ended += run_ranks(3, folder, fit, tuple(last), records)
    return Trained(folder / "together", folder / "alone", ended)


def configure(recipe: str, changes: Mapping[str, Any], weights: Path) -> Config:
    return override_config(find_recipe(recipe)(), {**TINY, "model.weights": str(weights), **changes})


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def find_plan(name: str) -> MemoryPlan | None:
    return MemoryPlan(2, is_encoded_twice=True) if name == "embedded twice" else None


def read_run(run: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line], load_file(max((run / STATE_NAME).iterdir()))


def assert_equal_runs(run: Path, expected: Path, tolerance: float = 1e-5) -> None:
    """Compare losses and weights; above one the tolerance is relative, as float32 is."""
    losses, weights = read_run(run)
    expected_losses, expected_weights = read_run(expected)
    assert len(losses) == NUM_STEPS
    assert losses[0] != losses[-1]
    np.testing.assert_allclose(losses, expected_losses, rtol=tolerance, atol=tolerance)
    assert weights.keys() == expected_weights.keys()
    far = {
        name: float((tensor.double() - expected_weights[name].double()).abs().max())
        for name, tensor in weights.items()
        # The moments of the optimizer are as large as gradients are, and decide nothing that weights do not show.
        if not (tolerance and name.startswith("optimizer."))
        and not torch.allclose(tensor, expected_weights[name], rtol=tolerance, atol=tolerance)
    }
    assert far == {}


def test_ranks_tell_what_they_do_once(trained: Trained) -> None:
    first, second, *three = trained.ended
    assert [one.status for one in trained.ended] == [0] * 5, first.printed + second.printed
    assert "2 ranks (gloo): each encodes 3 of the 6 images of a batch" in first.printed
    assert "2 ranks (gloo): each encodes 3 or 4 of the 7 images of a batch" in first.printed
    assert "going on from the state after step 13" in three[0].printed
    assert [one.printed for one in three[1:]] == ["", ""]


@pytest.mark.parametrize("name", CASES)
def test_trap_two_ranks_equal_one(name: str, trained: Trained) -> None:
    assert_equal_runs(trained.together / name, trained.alone / name)


def test_resume_on_as_many_ranks_gives_the_same_bits(trained: Trained) -> None:
    assert_equal_runs(trained.together / "on as many ranks", trained.together / "small", 0.0)


@pytest.mark.parametrize("name", RESUMED[1:])
def test_resume_on_two_then_one_then_three_ranks_equals_one(name: str, trained: Trained) -> None:
    assert_equal_runs(trained.together / name, trained.alone / name)


@pytest.mark.parametrize("name", RESUMED_LONG)
def test_resume_of_the_other_states_on_two_then_one_then_three_ranks_equals_one(name: str, trained: Trained) -> None:
    """The tuples of an epoch, whose middle each stop lies in, and the momentum encoder with its memory."""
    assert_equal_runs(trained.together / f"{name} on others", trained.alone / name)


def test_share_places_gives_each_rank_its_part_of_every_piece() -> None:
    shares = share_places(10, 3, piece_size=6)
    assert [share.tolist() for share in shares] == [[0, 1, 6], [2, 3, 7], [4, 5, 8, 9]]
    assert sorted(np.concatenate(share_places(64, 7)).tolist()) == list(range(64))
