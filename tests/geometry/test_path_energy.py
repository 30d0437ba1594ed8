"""Energies, lengths and gradients of discrete paths against closed forms, plain autograd and finite differences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from isodiff.geometry.noise_metrics import (
    DensityMetric,
    EuclideanMetric,
    ScoreMetric,
    SphereMetric,
    TangentialMetric,
)
from isodiff.geometry.path_energy import NoiseMetric, subdivide
from isodiff.geometry.pullback_metrics import EncoderMetric


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def score(x: Tensor) -> Tensor:
    """Return the score of two Gaussians of unit width at ±(1, 1, …), whose density is `log_density`."""
    along = x.flatten(1).sum(1).tanh().view(-1, *[1] * (x.ndim - 1))
    return along - x


def log_density(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    return flat.sum(1).cosh().log() - flat.square().sum(1) / 2


METRICS: dict[str, NoiseMetric] = {
    "euclidean": EuclideanMetric(),
    "sphere": SphereMetric(1.3),
    "density": DensityMetric(log_density, 0.3),
    "score": ScoreMetric(score),
    "tangential": TangentialMetric(score, 0.8, 0.1),
    "midpoint": TangentialMetric(score, 0.8, 0.1, "midpoint"),
    "left": TangentialMetric(score, 0.8, 0.1, "left"),
    "encoder": EncoderMetric(lambda x: x.flatten(1)[:, :2].sin() * x.flatten(1)[:, 1:3], 0.2),
}

every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())


def test_every_k_th_knot_is_a_node_and_pieces_of_a_segment_are_equal() -> None:
    path = noise(2, 5, 3)
    knots = subdivide(path, 4)
    assert knots.shape == (2, 17, 3)
    torch.testing.assert_close(knots[:, ::4], path, rtol=0, atol=1e-15)
    steps = knots.diff(dim=1).unflatten(1, (4, 4))
    torch.testing.assert_close(steps, path.diff(dim=1)[:, :, None].expand_as(steps) / 4)
    assert subdivide(path, 1) is path


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31))
def test_flat_energy_and_length_of_a_polygon(num_segments: int, num_subsamples: int, seed: int) -> None:
    """½N Σ‖Δx‖² and Σ‖Δx‖, however finely the segments are cut; for a straight path ½‖b − a‖² and ‖b − a‖."""
    path = noise(3, num_segments + 1, 2, 2, seed=seed)
    steps = path.diff(dim=1).flatten(2).norm(dim=2)
    metric = EuclideanMetric()
    energy = metric.energy(path, num_subsamples=num_subsamples)
    torch.testing.assert_close(energy, num_segments / 2 * steps.square().sum(1))
    torch.testing.assert_close(metric.length(path, num_subsamples=num_subsamples), steps.sum(1))
    torch.testing.assert_close(metric.segment_lengths(path, num_subsamples=num_subsamples), steps)
    straight = torch.stack([path[:, 0] + i / 7 * (path[:, -1] - path[:, 0]) for i in range(8)], 1)
    torch.testing.assert_close(metric.energy(straight), metric.bound(path[:, 0], path[:, -1]))


@every_metric
@given(seed=st.integers(0, 2**31), num_subsamples=st.integers(1, 4))
def test_energy_is_at_least_half_the_squared_length(metric: NoiseMetric, seed: int, num_subsamples: int) -> None:
    path = noise(4, 6, 3, seed=seed)
    energy = metric.energy(path, num_subsamples=num_subsamples)
    assert (energy >= metric.length(path, num_subsamples=num_subsamples).square() / 2 * (1 - 1e-12)).all()


@every_metric
@pytest.mark.parametrize("num_subsamples", [1, 3])
def test_gradients_in_chunks_agree_with_autograd_whatever_the_chunk(metric: NoiseMetric, num_subsamples: int) -> None:
    path = noise(2, 5, 3).requires_grad_()
    energy = metric.energy(path, num_subsamples=num_subsamples)
    expected = torch.autograd.grad(energy.sum(), path)[0]
    for batch_size in (None, 1, 4, 7, 1000):
        got, gradient = metric.energy_and_gradient(path, num_subsamples=num_subsamples, batch_size=batch_size)
        torch.testing.assert_close(got, energy.detach(), rtol=1e-13, atol=0)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)
        assert not got.requires_grad
        assert not gradient.requires_grad


@every_metric
def test_gradients_agree_with_finite_differences(metric: NoiseMetric) -> None:
    path = noise(1, 4, 3)
    _, gradient = metric.energy_and_gradient(path, num_subsamples=2, batch_size=3)
    for seed in range(3):
        direction = noise(*path.shape, seed=seed + 1)
        step = 1e-5
        above, below = (metric.energy(path + sign * step * direction, num_subsamples=2) for sign in (1, -1))
        torch.testing.assert_close((above - below) / (2 * step), (gradient * direction).sum()[None], rtol=1e-7, atol=0)


def test_the_gradient_asks_for_at_most_a_batch_and_for_each_score_twice() -> None:
    asked = []

    def counted(x: Tensor) -> Tensor:
        asked.append((len(x), torch.is_grad_enabled()))
        return score(x)

    TangentialMetric(counted, 1.0).energy_and_gradient(noise(2, 5, 3), num_subsamples=3, batch_size=8)
    points = 2 * (4 * 3 + 1)
    assert max(size for size, _ in asked) == 8
    assert sum(size for size, graph in asked if graph) == sum(size for size, graph in asked if not graph) == points
    asked.clear()
    TangentialMetric(counted, 1.0).energy_and_gradient(noise(2, 5, 3), num_subsamples=3)
    assert asked == [(points, True)]


def test_paths_of_a_batch_do_not_depend_on_each_other() -> None:
    path = noise(3, 5, 2, 2)
    metric = METRICS["tangential"]
    energy, gradient = metric.energy_and_gradient(path, batch_size=5)
    for row in range(3):
        alone, gradient_alone = metric.energy_and_gradient(path[row : row + 1])
        torch.testing.assert_close(alone, energy[row : row + 1], rtol=1e-13, atol=0)
        torch.testing.assert_close(gradient_alone, gradient[row : row + 1], rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("quadrature", "order"), [("left", 1), ("midpoint", 2), ("difference", 2)], ids=["left", "midpoint", "difference"]
)
def test_orders_of_the_quadratures(quadrature: str, order: int) -> None:
    """Against ∫ of a curve on which the score is known: halving the pieces divides the error by 2 to the order."""
    metric = TangentialMetric(score, 1.0, 0.0, quadrature)

    def energy(num_segments: int, num_subsamples: int = 1) -> float:
        u = torch.linspace(0, 1, num_segments + 1, dtype=torch.float64)
        curve = torch.stack([u.sin() + u, u.exp() - 1.5], 1)
        return metric.energy(curve[None], num_subsamples=num_subsamples).item()

    # the integrand is ‖d/du score(x(u))‖²; Gauss-Legendre points make it exact to rounding
    nodes, weights = (torch.as_tensor(part) for part in leggauss(60))
    u = ((nodes + 1) / 2).requires_grad_()
    curve = torch.stack([u.sin() + u, u.exp() - 1.5], 1)
    velocity = torch.stack([torch.autograd.grad(c.sum(), u, retain_graph=True)[0] for c in score(curve).unbind(1)], 1)
    exact = (weights / 2 * velocity.square().sum(1)).sum().item() / 2
    errors = [abs(energy(n) - exact) for n in (40, 80, 160)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)
    if quadrature == "difference":
        cut = [abs(energy(n, 4) - exact) for n in (40, 80)]
        assert math.log2(cut[0] / cut[1]) == pytest.approx(2, abs=0.1)


def test_bad_paths_are_refused() -> None:
    metric = METRICS["tangential"]
    with pytest.raises(ValueError, match=r"path must have shape \(B, N\+1, \*S\) with N ≥ 1 segments, got \(3, 1, 2\)"):
        metric.energy(noise(3, 1, 2))
    with pytest.raises(ValueError, match=r"got \(3, 2\)"):
        metric.energy(noise(3, 2))
    with pytest.raises(ValueError, match="path must be finite, got 2 NaN"):
        metric.length(torch.stack([noise(3, 2), noise(3, 2) * math.nan], 1)[:1])
    with pytest.raises(ValueError, match="num_subsamples must be at least 1, got 0"):
        metric.energy(noise(3, 4, 2), num_subsamples=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        metric.energy_and_gradient(noise(3, 4, 2), batch_size=0)
    with pytest.raises(ValueError, match=r"score must return the shape \(10, 2\) of its argument, got \(10, 1\)"):
        TangentialMetric(lambda x: x[:, :1], 1.0).energy(noise(2, 5, 2), num_subsamples=1)
