"""The coordinates of the descent, the dimensionless gradient, and the criteria of convergence."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from isodiff.geometry.convergence import Criteria, Diagnostics, default_criteria, shape_diagnostics
from isodiff.geometry.path_descent import PathProblem
from isodiff.geometry.pullback_metrics import EncoderMetric, EuclideanMetric, TangentialMetric


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(metric: object, path: Tensor) -> PathProblem:
    return PathProblem(metric, path, 2, None, Criteria())


def curved(x: Tensor) -> Tensor:
    return torch.cat([x.sin(), x[:, :1] * x[:, 1:]], 1)


@given(st.integers(2, 20), st.integers(0, 2**31))
def test_coordinates_measure_what_a_path_has_over_the_straight_line(num_segments: int, seed: int) -> None:
    """‖z‖² = N Σ‖Δx‖² − ‖b − a‖²; the flat energy is (‖z‖² + ‖b − a‖²)/2, and its gradient in z is z itself."""
    path = noise(1, num_segments + 1, 2, 2, seed=seed)
    flat = problem(EuclideanMetric(), path)
    torch.testing.assert_close(flat.path(flat.z), path, rtol=0, atol=1e-11)
    steps, chord = path.diff(dim=1).square().sum(), (path[:, -1] - path[:, 0]).square().sum()
    torch.testing.assert_close(flat.z.square().sum(), num_segments * steps - chord)
    energy, gradient = flat.evaluate(flat.z)
    assert energy == pytest.approx((flat.z.square().sum() + chord).item() / 2)
    torch.testing.assert_close(gradient, flat.z, rtol=0, atol=1e-10)


def test_gradients_in_the_coordinates_agree_with_finite_differences() -> None:
    bent = problem(EncoderMetric(curved, 0.1), noise(1, 6, 3))
    _, gradient = bent.evaluate(bent.z)
    direction, step = noise(*bent.z.shape, seed=2), 1e-5
    above, below = (bent.evaluate(bent.z + sign * step * direction)[0] for sign in (1, -1))
    assert (above - below) / (2 * step) == pytest.approx((gradient * direction).sum().item(), rel=1e-7)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_the_gradient_norm_has_no_units(unit: float, scale: float) -> None:
    """Neither the units of x nor those of the metric's map change it."""
    path = noise(1, 6, 3)
    here = problem(EncoderMetric(curved), path).slope()
    there = problem(EncoderMetric(lambda x: scale * curved(x / unit)), unit * path).slope()
    assert there == pytest.approx(here, rel=1e-9)


def test_the_gradient_norm_is_the_largest_relative_change_of_energy() -> None:
    """dE/E ≤ 2 · norm · ‖dx‖_L/‖x‖_L, with equality along the gradient: so the flat zigzag's is computed by hand."""
    zigzag = torch.tensor([[[0.0, 0.0], [0.5, 1.0], [1.0, 0.0]]], dtype=torch.float64)
    flat = problem(EuclideanMetric(), zigzag)
    # N Σ‖Δx‖² = 2 · 2 · 1.25 = 5, ‖z‖² = 5 − 1 = 4, E = 2.5, ∇_z E = z
    assert flat.slope() == pytest.approx(2 * math.sqrt(5) / 5)


def test_shape_diagnostics_by_hand() -> None:
    """A path that doubles its step: gaps 1, 2; and a map that only a fine look sees move."""
    path = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]]], dtype=torch.float64)
    refinement, gap, speed = shape_diagnostics(EuclideanMetric(), path, 2, None)
    assert refinement.item() == pytest.approx(1)
    assert gap.item() == pytest.approx(2 / 1.5)
    assert speed.item() == pytest.approx(0.5 / 1.5)
    hidden = EncoderMetric(lambda x: torch.stack([x[:, 0], (math.pi * x[:, 0]).sin()], 1))
    refinement, _, _ = shape_diagnostics(hidden, path, 1, None)
    # of the nodes, sin πx is 0: length 3; quarters of the first segment show a wave, those of the second half a period
    quarter = math.sin(math.pi / 4)
    fine = 2 * (math.hypot(0.25, quarter) + math.hypot(0.25, 1 - quarter)) + 4 * math.hypot(0.5, 1)
    assert refinement.item() == pytest.approx(fine / 3)


def test_rounding_of_single_precision_ends_the_descent() -> None:
    """An energy that no longer falls counts as settled only where the gradient is small."""
    line = torch.linspace(0, 1, 6)[None, :, None].expand(1, 6, 2).contiguous()
    straight = problem(TangentialMetric(lambda x: -x, 1.0), line)
    energy, gradient = straight.evaluate(straight.z)
    assert straight.settled(straight.z, energy, gradient)
    bent = problem(TangentialMetric(lambda x: -x, 1.0), noise(1, 6, 2))
    assert not bent.settled(bent.z, bent.energies[0], bent.gradient)


def test_criteria_name_what_they_reject() -> None:
    good = Diagnostics(*(torch.tensor(value, dtype=torch.float64) for value in (1e-6, 1e-7, 1.01, 1.5, 0.05)))
    assert Criteria().violations(good) == ""
    for field, value, text in (
        ("gradient", 0.02, "gradient norm 0.02, accepted at most 1e-05"),
        ("decrease", 0.5, "relative decrease over 20 iterations 0.5, accepted at most 1e-06"),
        ("refinement", 1.2, "fine/node length 1.2, accepted 0.95 to 1.05"),
        ("refinement", 0.9, "fine/node length 0.9, accepted 0.95 to 1.05"),
        ("gap", 3.5, "max/mean gap 3.5, accepted below 3"),
        ("speed", math.nan, "speed variation nan, accepted below 0.1"),
    ):
        assert Criteria().violations(good._replace(**{field: torch.tensor(value)})) == text
    both = Criteria().violations(good._replace(gap=torch.tensor(4.0), speed=torch.tensor(1.0)))
    assert both == "max/mean gap 4, accepted below 3; speed variation 1, accepted below 0.1"
    assert default_criteria(torch.float64) == Criteria()
    assert default_criteria(torch.float32).gradient > Criteria().gradient


@pytest.mark.parametrize("field", ["gradient", "decrease", "refinement", "gap", "speed"])
def test_criteria_that_nothing_meets_are_refused(field: str) -> None:
    for value in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"{field} must be positive, got {value}"):
            Criteria(**{field: value})
