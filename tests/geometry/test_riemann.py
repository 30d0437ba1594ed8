"""Metrics, energies and the score's Jacobian against closed forms, dense matrices, autograd and finite differences."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial.legendre import leggauss
from scipy.integrate import quad
from torch import Tensor

from isodiff.geometry import (
    DensityMetric,
    GaussianMixture,
    LowRankGaussian,
    NoisyShell,
    PullbackMetric,
    TangentialMetric,
    c_arc,
    dense_jacobian,
    initial_path,
)
from isodiff.geometry.riemann import NoiseMetric

from .tensors import noise, refusals

FLAT = PullbackMetric(lambda x: x)  # I, whose geodesics are straight lines


def mixture(d: int) -> GaussianMixture:
    return GaussianMixture(means=noise(4, d, seed=9), sigma=0.7, weights=torch.tensor([1.0, 2.0, 3.0, 4.0]))


def encoder(x: Tensor) -> Tensor:
    return torch.cat([x.sin(), (x[:, :1] * x[:, 1:]).tanh()], 1)


def score(x: Tensor) -> Tensor:
    """Return the score of two Gaussians of unit width at ±(1, 1, …)."""
    return x.sum(1, keepdim=True).tanh() - x


@pytest.mark.parametrize("name", ["euclidean", "density", "tangential", "encoder"])
def test_short_paths_are_as_long_as_the_metric_s_matrix_says(name: str) -> None:
    data, eye, x, v = mixture(5), torch.eye(5, dtype=torch.float64), noise(3, 5, seed=1), noise(3, 5, seed=2)
    J, J_h = -(data.sigma**2) * dense_jacobian(data, x), dense_jacobian(encoder, x)
    metric, matrix = {
        "euclidean": (FLAT, eye.expand(3, 5, 5)),
        "density": (DensityMetric(data.log_density, 0.4), torch.exp(-0.8 * data.log_density(x))[:, None, None] * eye),
        "tangential": (TangentialMetric(data, data.sigma, 0.01), J.mT @ J + 0.01 * eye),
        "encoder": (PullbackMetric(encoder, 0.3), J_h.mT @ J_h + 0.3 * eye),
    }[name]
    path = torch.stack([x - 5e-5 * v, x + 5e-5 * v], 1)
    expected = (v[:, None] @ matrix @ v[..., None]).flatten().sqrt()
    torch.testing.assert_close(metric.length(path, num_subsamples=1) / 1e-4, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("quadrature", ["difference", "midpoint", "left"])
def test_the_energy_of_a_straight_path_under_gaussian_data_is_the_bound(quadrature: str) -> None:
    """The score is linear, Ĵ constant: E = ½ ΔᵀĴĴΔ + ½ρ‖Δ‖², however the path is cut."""
    basis, variances = torch.linalg.qr(noise(6, 3))[0], torch.linspace(0.5, 2, 3, dtype=torch.float64)
    data, (a, b) = LowRankGaussian(sigma=0.5, basis=basis, variances=variances), noise(2, 2, 6, seed=3)
    metric = TangentialMetric(data, data.sigma, 0.02, quadrature)
    energy = metric.energy(initial_path("lerp", a, b, 5), num_subsamples=3)
    torch.testing.assert_close(energy, metric.bound(a, b), rtol=1e-12, atol=0)
    tangent, square = (b - a) @ basis, (b - a).square().sum(1)
    pushed = (tangent * 0.5**2 / (variances + 0.5**2)).square().sum(1) + square - tangent.square().sum(1)
    torch.testing.assert_close(energy, (pushed + 0.02 * square) / 2, rtol=1e-12, atol=0)


@given(st.integers(0, 2**31), st.integers(1, 12), st.floats(0.01, 3), st.sampled_from([0.0, 1e-3, 1.0]))
def test_no_path_violates_the_lower_bound(seed: int, segments: int, spread: float, rho: float) -> None:
    """1,200 random paths for each metric: 30 examples of 40 paths."""
    path = spread * noise(40, segments + 1, 2, seed=seed).cumsum(1)
    data = (c_arc(0.3), NoisyShell(sigma=0.4), mixture(2))[seed % 3]
    for metric in (TangentialMetric(data, data.sigma, rho), PullbackMetric(encoder, rho), FLAT):
        bound = metric.bound(path[:, 0], path[:, -1])
        energy = metric.energy(path, num_subsamples=1 + seed % 4)
        assert (energy >= bound * (1 - 1e-9) - 1e-12).all()
        assert (bound > 0).all()


def test_the_length_of_a_ray_in_the_density_metric_is_an_integral() -> None:
    """p^{−a} integrated along the path, for a standard normal density up to a constant."""
    r = torch.linspace(0.3, 2.1, 401, dtype=torch.float64)
    ray = torch.stack([r, 0 * r], 1)[None]
    exact = quad(lambda s: math.exp(s**2 / 4), 0.3, 2.1)[0]
    assert DensityMetric(lambda x: -x.square().sum(1) / 2).length(ray).item() == pytest.approx(exact, rel=1e-6)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31))
def test_flat_energy_and_length_of_a_polygon(num_segments: int, num_subsamples: int, seed: int) -> None:
    """½N Σ‖Δx‖² and Σ‖Δx‖, however finely the segments are cut."""
    path = noise(3, num_segments + 1, 2, 2, seed=seed)
    steps = path.diff(dim=1).flatten(2).norm(dim=2)
    energy = FLAT.energy(path, num_subsamples=num_subsamples)
    torch.testing.assert_close(energy, num_segments / 2 * steps.square().sum(1))
    torch.testing.assert_close(FLAT.length(path, num_subsamples=num_subsamples), steps.sum(1))
    torch.testing.assert_close(FLAT.segment_lengths(path, num_subsamples=num_subsamples), steps)


@pytest.mark.parametrize(
    "metric",
    [
        DensityMetric(lambda x: x.sum(1).cosh().log() - x.square().sum(1) / 2, 0.3),
        *(TangentialMetric(score, 0.8, 0.1, quadrature) for quadrature in ("difference", "midpoint", "left")),
        PullbackMetric(encoder, 0.2),
    ],
)
def test_gradients_in_chunks_agree_with_autograd_whatever_the_chunk(metric: NoiseMetric) -> None:
    path = noise(2, 5, 3).requires_grad_()
    energy = metric.energy(path, num_subsamples=3)
    expected = torch.autograd.grad(energy.sum(), path)[0]
    for batch_size in (None, 1, 7):
        got, gradient = metric.energy_and_gradient(path, num_subsamples=3, batch_size=batch_size)
        torch.testing.assert_close(got, energy.detach(), rtol=1e-13, atol=0)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_the_gradient_asks_for_at_most_a_batch_and_for_each_score_twice() -> None:
    asked = []

    def counted(x: Tensor) -> Tensor:
        asked.append((len(x), torch.is_grad_enabled()))
        return score(x)

    TangentialMetric(counted, 1.0).energy_and_gradient(noise(2, 5, 3), num_subsamples=3, batch_size=8)
    assert max(size for size, _ in asked) == 8
    assert [sum(size for size, graph in asked if graph == kind) for kind in (True, False)] == [26, 26]
    asked.clear()
    TangentialMetric(counted, 1.0).energy_and_gradient(noise(2, 5, 3), num_subsamples=3)
    assert asked == [(26, True)]


@pytest.mark.parametrize(("quadrature", "pieces", "order"), [("left", 1, 1), ("midpoint", 1, 2), ("difference", 4, 2)])
def test_orders_of_the_quadratures(quadrature: str, pieces: int, order: int) -> None:
    """Against ½∫‖d/du score(x(u))‖² du by Gauss's rule: half as long pieces divide the error by 2 to the order."""
    curve = lambda u: torch.stack([u.sin() + u, u.exp() - 1.5], 1)  # noqa: E731
    nodes, weights = map(torch.as_tensor, leggauss(60))
    velocity = torch.func.jvp(lambda u: score(curve(u)), ((nodes + 1) / 2,), (torch.ones_like(nodes),))[1]
    exact = (weights / 2 * velocity.square().sum(1)).sum().item() / 2
    metric, errors = TangentialMetric(score, 1.0, 0.0, quadrature), []
    for num_segments in (40, 80, 160):
        path = curve(torch.linspace(0, 1, num_segments + 1, dtype=torch.float64))[None]
        errors.append(abs(metric.energy(path, num_subsamples=pieces).item() - exact))
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


TANGENTIAL = TangentialMetric(score, 0.8)
test_bad_input_is_refused = refusals(
    (lambda: TangentialMetric(score, 0.0), "sigma must be positive and finite, got 0"),
    (lambda: TangentialMetric(score, 1.0, -1e-9), "rho must be finite and at least 0, got -1e-09"),
    (lambda: TangentialMetric(score, 1.0, 0.0, "right"), r"quadrature must be one of .* got 'right'"),
    (lambda: DensityMetric(lambda x: x[:, :1]).energy(noise(1, 3, 2)), r"must return shape \(8,\), got \(8, 1\)"),
    (lambda: TANGENTIAL.energy(noise(3, 1, 2)), r"path must have shape \(B, N\+1, \*S\) .* got \(3, 1, 2\)"),
    (lambda: TANGENTIAL.length(noise(1, 3, 2) * math.nan), "path must be finite, got 6 NaN"),
    (lambda: TANGENTIAL.energy(noise(3, 4, 2), num_subsamples=0), "num_subsamples must be at least 1, got 0"),
    (lambda: TangentialMetric(lambda x: x[:, :1], 1.0).energy(noise(2, 5, 2), num_subsamples=1),
     r"score must return the shape \(10, 2\) of its argument, got \(10, 1\)"),
)  # fmt: skip
