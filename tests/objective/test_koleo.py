from __future__ import annotations

import importlib.metadata
import importlib.util
import math
from types import ModuleType

import pytest
import torch
from torch.nn import functional

from tests.objective import reference
from tests.objective.test_contrastive import at_degrees, unit_rows
from vitrieve.objective.koleo import KoleoConfig, koleo_loss
from vitrieve.objective.losses import ObjectiveConfig
from vitrieve.objective.objective import Objective


def test_koleo_hand_case():
    # On the unit circle the distance over an angle a is 2 sin(a / 2): nearest are 60°, 60° and 90° away.
    loss = koleo_loss(at_degrees(0, 60, 150))
    expected = -(math.log(1) + math.log(1) + math.log(math.sqrt(2))) / 3
    assert loss.item() == pytest.approx(expected)


def test_koleo_equals_double_loop():
    embeddings = unit_rows(9)
    assert koleo_loss(embeddings).item() == pytest.approx(reference.koleo(embeddings))


def test_koleo_equals_lightly() -> None:
    public = load_lightly_koleo()
    embeddings = unit_rows(9, dtype=torch.float32)
    assert koleo_loss(embeddings).item() == pytest.approx(public.KoLeoLoss()(embeddings).item(), abs=1e-4)


def load_lightly_koleo() -> ModuleType:
    """Load the one file of lightly: importing the package drags in its trainers, and their warnings."""
    folder = importlib.metadata.distribution("lightly").locate_file("lightly/loss/koleo_loss.py")
    spec = importlib.util.spec_from_file_location("lightly_koleo_loss", str(folder))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_koleo_gradcheck():
    assert torch.autograd.gradcheck(
        lambda raw: koleo_loss(functional.normalize(raw, dim=1)), unit_rows(6, seed=2).requires_grad_()
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_trap_koleo_is_finite_for_duplicates_in_every_precision(dtype):
    embeddings = unit_rows(4).to(dtype)
    embeddings = torch.cat([embeddings, embeddings[:2]]).requires_grad_()
    loss = koleo_loss(embeddings)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(embeddings.grad).all()


def test_trap_koleo_one_embedding_is_zero_with_zero_gradient():
    embeddings = unit_rows(1).requires_grad_()
    koleo_loss(embeddings).backward()
    assert koleo_loss(embeddings).item() == 0
    assert (embeddings.grad == 0).all()


def test_trap_koleo_computes_in_float32_under_autocast():
    embeddings = unit_rows(16, dtype=torch.float32)
    expected = koleo_loss(embeddings)
    with torch.autocast("cpu", torch.bfloat16):
        loss = koleo_loss(embeddings)
    assert loss.dtype == torch.float32
    assert loss.item() == expected.item()


def test_koleo_keeps_float64():
    assert koleo_loss(unit_rows(4)).dtype == torch.float64


def test_trap_koleo_nearest_is_never_the_embedding_itself():
    assert koleo_loss(at_degrees(0, 180)).item() == pytest.approx(-math.log(2))


def test_trap_koleo_gradient_is_the_same_every_time_on_several_threads():
    # Many nearest neighbors are the same few rows; added up by threads as they come, their last bits would differ.
    hubs = unit_rows(4, dim=384, dtype=torch.float32)
    near = hubs.repeat(62, 1) + unit_rows(248, seed=1, dim=384, dtype=torch.float32) / 2
    embeddings = torch.cat([hubs, functional.normalize(near, dim=1)]).requires_grad_()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradients = [torch.autograd.grad(koleo_loss(embeddings), embeddings)[0] for _ in range(6)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_trap_an_image_that_a_batch_shows_twice_is_not_spread_from_itself() -> None:
    objective = Objective(ObjectiveConfig(koleo=KoleoConfig(weight=1.0)), num_classes=3, num_images=6, embedding_dim=6)
    different = unit_rows(6, seed=3).float()
    shown = torch.cat([different, functional.normalize(different[:4] + 1e-3, dim=1)])  # four a second time, augmented
    rows = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2, 3])
    loss = objective(shown, torch.zeros(10, dtype=torch.int64), rows, step=0)
    assert loss.total.item() == pytest.approx(koleo_loss(different).item())
