from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss

from tests.objective import reference
from tests.objective.test_contrastive import LABELS, at_degrees, unit_rows
from vitrieve.objective.hyperbolic import MAX_REACH, HyperbolicConfig, hyperbolic_loss, poincare_distances
from vitrieve.objective.term import LossBatch, Sizes

LENGTHS = torch.linspace(0.2, 4.0, 8, dtype=torch.float64)[:, None]


def test_hyperbolic_hand_case():
    # A point at the origin and one at length 1 of the tangent space lie 2 apart; the metric doubles lengths there.
    distances = poincare_distances(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]]), curvature=0.1, clip_radius=2.3)
    assert distances[0].tolist() == pytest.approx([0, 2, 2 * 2.3])
    # On the sphere: a pair at 60°, and a stranger at 90° from the one and 30° from the other.
    loss = hyperbolic_loss(at_degrees(0, 60, 90) * 7, torch.tensor([0, 0, 1]), curvature=0, temperature=0.5)
    near = math.cos(math.radians(30))
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp((near - 0.5) / 0.5))) / 2)


@pytest.mark.parametrize("curvature", [0.0, 0.1, 1.0])
def test_hyperbolic_equals_double_loop(curvature):
    vectors = unit_rows(8) * LENGTHS
    loss = hyperbolic_loss(vectors, LABELS, curvature=curvature)
    assert loss.item() == pytest.approx(reference.hyperbolic(vectors, LABELS, curvature, 0.2, 2.3))


def test_hyperbolic_of_small_curvature_tends_to_twice_the_euclidean_distance():
    vectors = unit_rows(8) * LENGTHS
    distances = poincare_distances(vectors, curvature=1e-9, clip_radius=99)
    torch.testing.assert_close(distances, 2 * torch.cdist(vectors, vectors), rtol=1e-6, atol=1e-6)


def measure_rounding(reach):
    """Return the largest error of float32 in distances of points half a unit of length apart, on rays to the rim."""
    directions = unit_rows(4)
    vectors = torch.cat([directions * (reach - 0.5), directions * reach])
    distances = [poincare_distances(one, curvature=1.0, clip_radius=reach) for one in (vectors, vectors.float())]
    return (distances[0] - distances[1].double()).abs().max().item()


def test_within_the_allowed_reach_float32_has_the_distances_of_float64():
    assert measure_rounding(MAX_REACH) < 1e-3
    assert measure_rounding(2 * MAX_REACH) > 0.1  # what the limit is for
    radius = MAX_REACH / math.sqrt(0.25)
    assert HyperbolicConfig(curvature=0.25, clip_radius=radius).describe_fault() is None
    assert "lower one of them" in str(HyperbolicConfig(curvature=0.25, clip_radius=1.01 * radius).describe_fault())
    assert HyperbolicConfig(curvature=0, clip_radius=99).describe_fault() is None


def test_spherical_equals_pytorch_metric_learning():
    """Its NTXentLoss is the same cross-entropy of each pair among the negatives of the anchor."""
    embeddings, labels = unit_rows(32, dtype=torch.float32), torch.arange(32) // 4
    expected = NTXentLoss(temperature=0.1)(embeddings, labels).item()
    loss = hyperbolic_loss(embeddings, labels, curvature=0, temperature=0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # geoopt, when it is imported
@pytest.mark.parametrize("curvature", [0.1, 1.0])
def test_poincare_distances_equal_those_of_geoopt(curvature):
    from geoopt import PoincareBall

    ball, vectors = PoincareBall(c=curvature), unit_rows(8) * LENGTHS
    points = ball.expmap0(vectors * (2.3 / LENGTHS).clamp(max=1))
    distances = poincare_distances(vectors, curvature=curvature, clip_radius=2.3)
    # Near the rim of the ball artanh loses digits; theirs is also kept away from the rim.
    torch.testing.assert_close(distances, ball.dist(points[:, None], points[None]), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("curvature", [0.0, 0.1])
def test_hyperbolic_gradcheck(curvature):
    assert torch.autograd.gradcheck(
        lambda vectors: hyperbolic_loss(vectors, LABELS, curvature=curvature),
        (unit_rows(8) * LENGTHS).requires_grad_(),
    )


def test_hyperbolic_term_projects_embeddings_as_long_as_a_layer_norm_makes_them():
    torch.manual_seed(0)
    embeddings = unit_rows(8).float()
    term = HyperbolicConfig(weight=1.0, projection_dim=4)
    state = term.build(Sizes(4, 8, 6))
    projection = state.get_parameter("projection")
    torch.testing.assert_close(projection @ projection.T, torch.eye(4))
    vectors = math.sqrt(6) * embeddings @ projection.T
    batch = LossBatch(embeddings, LABELS, torch.arange(8), 0, None, None)
    assert term.compute(batch, state).item() == pytest.approx(hyperbolic_loss(vectors, LABELS).item())
    term.compute(batch, state).backward()
    assert projection.grad is not None
    assert bool(projection.grad.abs().sum() > 0)
    plain = HyperbolicConfig(weight=1.0, curvature=0.0, projection_dim=None)
    loss = plain.compute(batch, plain.build(Sizes(4, 8, 6)))
    assert loss.item() == pytest.approx(hyperbolic_loss(embeddings, LABELS, curvature=0).item())
