"""Metrics against closed forms, their own dense matrices, and the lower bound on the energy of any path."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor

from isodiff.geometry import jvp, slerp
from isodiff.geometry.manifold_scores import NoisyShell, c_arc
from isodiff.geometry.noise_metrics import DensityMetric, ScoreMetric, SphereMetric, named_metric
from isodiff.geometry.path_energy import NoiseMetric
from isodiff.geometry.pullback_metrics import EncoderMetric, EuclideanMetric, TangentialMetric
from isodiff.geometry.scores import GaussianMixture, LowRankGaussian


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(d: int, k: int, sigma: float = 0.5) -> LowRankGaussian:
    basis = torch.linalg.qr(noise(d, k))[0]
    return LowRankGaussian(sigma=sigma, basis=basis, variances=torch.linspace(0.5, 2, k, dtype=torch.float64))


def mixture(d: int, sigma: float = 0.7) -> GaussianMixture:
    return GaussianMixture(means=noise(4, d, seed=9), sigma=sigma, weights=torch.tensor([1.0, 2.0, 3.0, 4.0]))


def dense(f: object, x: Tensor) -> Tensor:
    return torch.stack([torch.autograd.functional.jacobian(lambda z: f(z[None])[0], row) for row in x])


def encoder(x: Tensor) -> Tensor:
    return torch.cat([x.sin(), (x[:, :1] * x[:, 1:]).tanh()], 1)


def dense_metrics(d: int) -> dict[str, tuple[NoiseMetric, object]]:
    """Return metrics in ℝᵈ, each with its matrix at points (B, d) from the definition."""
    score = mixture(d)
    eye = torch.eye(d, dtype=torch.float64)

    def tangential(x: Tensor) -> Tensor:
        jacobian = -(score.sigma**2) * dense(score, x)
        return jacobian.mT @ jacobian + 0.01 * eye

    def pulled_back(x: Tensor) -> Tensor:
        jacobian = dense(encoder, x)
        return jacobian.mT @ jacobian + 0.3 * eye

    def spherical(x: Tensor) -> Tensor:
        unit = (x / x.norm(dim=1, keepdim=True))[:, :, None]
        radial = unit @ unit.mT
        return radial + (1.7 / x.norm(dim=1)).square()[:, None, None] * (eye - radial)

    return {
        "euclidean": (EuclideanMetric(), lambda x: eye.expand(len(x), d, d)),
        "sphere": (SphereMetric(1.7), spherical),
        "density": (
            DensityMetric(score.log_density, 0.4, -2.0),
            lambda x: torch.exp(-0.8 * (score.log_density(x) + 2))[:, None, None] * eye,
        ),
        "score": (ScoreMetric(score), lambda x: score(x)[:, :, None] * score(x)[:, None] + eye),
        "tangential": (TangentialMetric(score, score.sigma, 0.01), tangential),
        "encoder": (EncoderMetric(encoder, 0.3), pulled_back),
    }


@pytest.mark.parametrize("d", [2, 5, 20])
@pytest.mark.parametrize("name", list(dense_metrics(2)))
def test_products_agree_with_the_dense_matrix(name: str, d: int) -> None:
    metric, matrix = dense_metrics(d)[name]
    x, v = noise(3, d, seed=1), noise(3, d, seed=2)
    expected = (matrix(x) @ v[..., None])[..., 0]
    torch.testing.assert_close(metric.product(x, v), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", list(dense_metrics(2)))
def test_short_paths_are_as_long_as_the_matrix_says(name: str) -> None:
    metric, matrix = dense_metrics(5)[name]
    x, v = noise(3, 5, seed=1), noise(3, 5, seed=2)
    step = 1e-4
    path = torch.stack([x - step / 2 * v, x + step / 2 * v], 1)
    expected = (v[:, None] @ matrix(x) @ v[..., None]).flatten().sqrt()
    torch.testing.assert_close(metric.length(path, num_subsamples=1) / step, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("quadrature", ["difference", "midpoint", "left"])
@pytest.mark.parametrize("num_subsamples", [1, 3])
def test_the_energy_of_a_straight_path_under_gaussian_data_is_the_bound(quadrature: str, num_subsamples: int) -> None:
    """The score is linear, Ĵ constant: E = ½ ΔᵀĴĴΔ + ½ρ‖Δ‖², however the path is cut."""
    score, (a, b) = gaussian(6, 3), noise(2, 2, 6, seed=3)
    line = torch.stack([a + i / 5 * (b - a) for i in range(6)], 1)
    metric = TangentialMetric(score, score.sigma, 0.02, quadrature)
    energy = metric.energy(line, num_subsamples=num_subsamples)
    torch.testing.assert_close(energy, metric.bound(a, b), rtol=1e-12, atol=0)
    eigenvalues = score.sigma**2 / (score.variances + score.sigma**2)
    tangent = (b - a) @ score.basis
    square = (b - a).square().sum(1)
    closed = (tangent * eigenvalues).square().sum(1) + square - tangent.square().sum(1) + 0.02 * square
    torch.testing.assert_close(energy, closed / 2, rtol=1e-12, atol=0)


def walk(shape: tuple[int, ...], seed: int, spread: float) -> Tensor:
    return spread * noise(*shape, seed=seed).cumsum(1)


@settings(max_examples=40)
@given(
    st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 4), st.floats(0.01, 3), st.sampled_from([0.0, 1e-3, 1.0])
)
def test_no_path_violates_the_lower_bound(seed: int, segments: int, subsamples: int, spread: float, rho: float) -> None:
    """1,600 random paths for each of three metrics: 40 examples of 40 paths."""
    path = walk((40, segments + 1, 2), seed, spread)
    score = (c_arc(0.3), NoisyShell(sigma=0.4), mixture(2))[seed % 3]
    metrics = (
        TangentialMetric(score, score.sigma, rho),
        SphereMetric(1.2),
        ScoreMetric(score),
        EncoderMetric(encoder, rho),
    )
    for metric in metrics:
        bound = metric.bound(path[:, 0], path[:, -1])
        energy = metric.energy(path, num_subsamples=subsamples)
        assert (energy >= bound * (1 - 1e-9) - 1e-12).all()
        assert (bound > 0).all()


def test_the_bound_is_met_where_the_score_moves_straight_and_only_there() -> None:
    """Along a ray of the noisy circle the score moves straight, but not at constant speed: then E > ½L² = bound."""
    score = NoisyShell(sigma=0.2)
    r = torch.linspace(1.0, 1.6, 31, dtype=torch.float64)
    ray = torch.stack([r, torch.zeros_like(r)], 1)[None]
    metric = TangentialMetric(score, 0.2, 0.0)
    bound = metric.bound(ray[:, 0], ray[:, -1])
    torch.testing.assert_close(metric.length(ray).square() / 2, bound, rtol=1e-10, atol=0)
    assert bound.item() < metric.energy(ray).item() < 1.001 * bound.item()
    half_circle = torch.linspace(0, math.pi, 31, dtype=torch.float64)
    circle = 1.3 * torch.stack([half_circle.cos(), half_circle.sin()], 1)[None]
    assert metric.energy(circle) > 2 * metric.bound(circle[:, 0], circle[:, -1])


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(2, 6), st.floats(0.1, 10))
def test_slerp_has_the_energy_of_the_sphere_metric_in_closed_form(
    seed: int, segments: int, d: int, radius: float
) -> None:
    a, b = noise(2, 3, d, seed=seed)
    path = torch.stack([slerp(a, b, i / segments) for i in range(segments + 1)], 1)
    metric = SphereMetric(radius)
    angle = torch.arccos(torch.cosine_similarity(a, b).clamp(-1, 1))
    closed = ((b.norm(dim=1) - a.norm(dim=1)).square() + radius**2 * angle.square()) / 2
    torch.testing.assert_close(metric.energy(path), closed, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(metric.bound(a, b), closed, rtol=1e-6, atol=1e-9)


def test_the_length_of_a_ray_in_the_density_metric_is_an_integral() -> None:
    """p^{−a} integrated along the path, for a standard normal density times a constant."""
    metric = DensityMetric(lambda x: -x.square().sum(1) / 2 + 1.0, 0.5, 1.0)
    r = torch.linspace(0.3, 2.1, 401, dtype=torch.float64)
    ray = torch.stack([r, torch.zeros_like(r)], 1)[None]
    exact = quad(lambda s: math.exp(s**2 / 4), 0.3, 2.1)[0]
    assert metric.length(ray).item() == pytest.approx(exact, rel=1e-6)
    flat = DensityMetric(lambda x: torch.zeros_like(x[:, 0]), 1.0)
    torch.testing.assert_close(flat.energy(ray), EuclideanMetric().energy(ray))


def test_the_score_metric_charges_for_changes_of_log_density() -> None:
    """E → ½∫ (d log p/du)² + ‖ẋ‖² du: on a circle about the centre of a Gaussian only the second term is left."""
    metric = ScoreMetric(lambda x: -x)
    turn = torch.linspace(0, 1, 201, dtype=torch.float64)
    circle = torch.stack([turn.cos(), turn.sin()], 1)[None]
    assert metric.energy(circle).item() == pytest.approx(0.5, rel=1e-5)
    ray = torch.stack([turn + 1, torch.zeros_like(turn)], 1)[None]  # d log p/du = −(1 + u), ∫ (1 + u)² du = 7/3
    assert metric.energy(ray).item() == pytest.approx((7 / 3 + 1) / 2, rel=1e-5)


def test_jacobian_forms_are_differentiable_and_agree_with_the_products() -> None:
    score = mixture(3)
    path = noise(1, 4, 3)
    for quadrature, base in (("left", path[0, :-1]), ("midpoint", (path[0, 1:] + path[0, :-1]) / 2)):
        metric = TangentialMetric(score, score.sigma, 0.0, quadrature)
        pushed = score.sigma**2 * jvp(score, base, path[0].diff(dim=0))[1]
        torch.testing.assert_close(metric.energy(path, num_subsamples=1), 1.5 * pushed.square().sum()[None])


def test_rotations_of_data_and_path_change_no_energy() -> None:
    score, rotation = mixture(3), torch.linalg.qr(noise(3, 3, seed=4))[0]
    turned = GaussianMixture(means=score.means @ rotation.mT, sigma=score.sigma, weights=score.weights)
    path = noise(5, 7, 3)
    for make in (
        lambda s: TangentialMetric(s, s.sigma, 0.1),
        ScoreMetric,
        lambda s: DensityMetric(s.log_density),
        lambda s: SphereMetric(s.sigma),
    ):
        torch.testing.assert_close(make(turned).energy(path @ rotation.mT), make(score).energy(path))


def test_named_metrics() -> None:
    score = c_arc(0.3)
    options = {"sigma": 0.3, "rho": 0.1, "radius": 2.0}
    assert named_metric("euclidean", score, **options) == EuclideanMetric()
    assert named_metric("sphere", score, **options) == SphereMetric(2.0)
    assert named_metric("score", score, **options) == ScoreMetric(score)
    assert named_metric("tangential", score, **options) == TangentialMetric(score, 0.3, 0.1)
    x = noise(4, 2)
    torch.testing.assert_close(named_metric("density", score, **options).features(x), score.log_density(x))
    with pytest.raises(ValueError, match='"density" needs a score with a log_density'):
        named_metric("density", lambda x: -x, **options)
    with pytest.raises(ValueError, match=r"metric must be one of \('euclidean', .* got 'riemannian'"):
        named_metric("riemannian", score, **options)


def test_bad_metrics_are_refused() -> None:
    for sigma in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"sigma must be positive and finite, got {sigma}"):
            TangentialMetric(mixture(2), sigma)
    for rho in (-1e-9, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"rho must be finite and at least 0, got {rho}"):
            TangentialMetric(mixture(2), 1.0, rho)
        with pytest.raises(ValueError, match="rho must be finite"):
            EncoderMetric(encoder, rho)
    with pytest.raises(ValueError, match=r"quadrature must be one of .* got 'right'"):
        TangentialMetric(mixture(2), 1.0, 0.0, "right")
    with pytest.raises(ValueError, match="radius must be positive and finite, got 0"):
        SphereMetric(0)
    with pytest.raises(ValueError, match="exponent must be positive and finite, got 0"):
        DensityMetric(lambda x: x[:, 0], 0)
    with pytest.raises(ValueError, match=r"log_density must return shape \(4,\), got \(4, 1\)"):
        DensityMetric(lambda x: x[:, :1]).energy(noise(1, 3, 2), num_subsamples=2)
