"""Analytic scores: gradients of their densities, scipy's densities, integrals, symmetries, samples, bad input."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch

from isodiff.geometry import (
    AnalyticScore,
    GaussianMixture,
    LowRankGaussian,
    NoisyShell,
    c_arc,
    curve,
    dense_jacobian,
    helix,
    two_moons,
)

from .tensors import noise, refusals

ROTATION = torch.linalg.qr(noise(5, 5))[0]
KINDS: dict[str, Callable[[float], AnalyticScore]] = {
    "low rank": lambda s: LowRankGaussian(basis=ROTATION[:, :2], variances=torch.tensor([0.25, 1.0]), sigma=s),
    "mixture": lambda sigma: GaussianMixture(means=noise(4, 3), weights=torch.tensor([1.0, 2, 3, 0]), sigma=sigma),
    "circle": lambda sigma: NoisyShell(sigma=sigma),
    "sphere": lambda sigma: NoisyShell(sigma=sigma, shell_dimension=3),
    "arc": c_arc,
    "moons": two_moons,
    "helix": helix,
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request: pytest.FixtureRequest) -> Callable[[float], AnalyticScore]:
    return request.param


def test_the_score_is_the_gradient_of_the_log_density(kind: Callable) -> None:
    score = kind(0.1)
    x = torch.cat([score.sample(20), 2 * noise(20, score.dimension), torch.zeros(1, score.dimension)]).requires_grad_()
    (gradient,) = torch.autograd.grad(score.log_density(x).sum(), x)
    torch.testing.assert_close(score(x).detach(), gradient, rtol=1e-10, atol=1e-10)


def test_scores_can_be_differentiated_twice_and_their_jacobians_are_symmetric(kind: Callable) -> None:
    score = kind(0.3)
    # points on both sides of κ = 1, where series and Bessel functions of the shells meet
    scale = torch.tensor([0.0, 0.03, 0.07, 0.5, 1.0], dtype=torch.float64)
    x = scale[:, None] * noise(5, score.dimension)
    assert torch.autograd.gradcheck(score, (x.requires_grad_(),))
    assert torch.autograd.gradgradcheck(score, (x,))
    J = dense_jacobian(score, x)
    torch.testing.assert_close(J, J.mT)


def test_densities_are_those_of_scipy() -> None:
    low_rank, mixture = KINDS["low rank"](0.4), KINDS["mixture"](0.4)
    x = noise(10, 5)
    U, variances = low_rank.basis, low_rank.variances.double()
    covariance = U * variances @ U.T + 0.4**2 * torch.eye(5, dtype=torch.float64)
    expected = scipy.stats.multivariate_normal(cov=covariance.numpy()).logpdf(x.numpy())
    np.testing.assert_allclose(low_rank.log_density(x).numpy(), expected, rtol=1e-10)

    x = noise(10, 3)
    parts = [scipy.stats.multivariate_normal(m.numpy(), 0.16 * np.eye(3)).pdf(x.numpy()) for m in mixture.means[:3]]
    np.testing.assert_allclose(mixture.log_density(x).numpy(), np.log(np.array([1, 2, 3]) / 6 @ parts), rtol=1e-10)

    # ‖x‖ of a noisy shell: (r/σ)² is noncentral chi-squared, with noncentrality (R/σ)²
    for d in (2, 3):
        r = torch.linspace(0.2, 2, 10, dtype=torch.float64)
        shell = NoisyShell(sigma=0.4, shell_dimension=d)
        radial = scipy.stats.ncx2(d, 1 / 0.16).pdf((r / 0.4) ** 2) * 2 * r.numpy() / 0.16
        area = 2 * math.pi * r if d == 2 else 4 * math.pi * r**2
        ours = (shell.log_density(r[:, None] * torch.eye(1, d)).exp() * area).numpy()
        np.testing.assert_allclose(ours, radial, rtol=1e-8)


@pytest.mark.parametrize(("d", "sigma", "ridge"), [(2, 0.1, 0.99496), (3, 0.4, 0.80012)])
def test_ridge_and_eigenvalues_of_the_shell(d: int, sigma: float, ridge: float) -> None:
    shell = NoisyShell(sigma=sigma, shell_dimension=d)
    assert shell.ridge_radius == pytest.approx(ridge, abs=5e-6)
    edge = 1 / math.sqrt(d)  # beyond it noise fills the hole
    assert NoisyShell(sigma=1.001 * edge, shell_dimension=d).ridge_radius == 0
    assert 0 < NoisyShell(sigma=0.99 * edge, shell_dimension=d).ridge_radius < 0.3
    turned = torch.linalg.qr(noise(d, d))[0][0]
    assert shell(shell.ridge_radius * turned[None]).norm() < 1e-12 / sigma**2
    for r in (0.3, 0.8, shell.ridge_radius, 1.2):
        kappa = r / sigma**2
        A = scipy.special.ive(1, kappa) / scipy.special.ive(0, kappa) if d == 2 else 1 / np.tanh(kappa) - 1 / kappa
        radial = ((1 - A**2 - (d - 1) * A / kappa) / sigma**2 - 1) / sigma**2
        tangent = (A - r) / sigma**2 / r
        J = dense_jacobian(shell, r * turned[None])[0]
        torch.testing.assert_close(J @ turned, radial * turned, rtol=1e-8, atol=1e-9)
        across = torch.linalg.svd(turned[None])[2][1]
        torch.testing.assert_close(J @ across, tangent * across, rtol=1e-8, atol=1e-9)


def test_a_fine_mixture_on_the_circle_is_the_noisy_circle_up_to_a_known_ripple() -> None:
    """Of k points on a circle, p_mixture/p − 1 = 2 I_k(κ)/I₀(κ) cos kθ + …, where points σ apart give k = 2π/σ."""
    exact, turn = NoisyShell(sigma=0.1), torch.linspace(0, 1, 50, dtype=torch.float64)
    for k, r in ((63, 0.8), (63, 1.0), (200, 1.5)):
        angles = torch.arange(k, dtype=torch.float64) * 2 * math.pi / k
        ring = curve(torch.stack([angles.cos(), angles.sin()], 1), sigma=0.1, closed=True)
        x = r * torch.stack([turn.cos(), turn.sin()], 1)
        ripple = 2 * scipy.special.ive(k, r / 0.01) / scipy.special.ive(0, r / 0.01) * (k * turn).cos()
        measured = (ring.log_density(x) - exact.log_density(x)).expm1()
        torch.testing.assert_close(measured, ripple, rtol=1e-4, atol=1e-13)
        if r == 1:
            assert 1e-9 < measured.abs().max() < 1e-8
        torch.testing.assert_close(ring.distance(x), exact.distance(x), atol=2e-3, rtol=0)


def test_samples_have_the_moments_of_the_density(kind: Callable, generator: torch.Generator) -> None:
    """E[s(x)] = 0 and E[x s(x)ᵀ] = −I hold for every density (Stein); noise adds σ² d to the mean square."""
    score = kind(0.2)
    x = score.sample(10_000, generator)
    s = score(x)
    pairs = x[:, :, None] * s[:, None]
    for value, expected in ((s, 0), (pairs, -torch.eye(score.dimension))):
        assert ((value.mean(0) - expected).abs() < 4.5 * value.std(0) / math.sqrt(len(x))).all()
    noisy = score.sample(5, torch.Generator().manual_seed(3))
    clean = score.sample(5, torch.Generator().manual_seed(3), clean=True)
    torch.testing.assert_close(score.distance(clean), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)
    twice = score.with_sigma(0.4).sample(5, torch.Generator().manual_seed(3))
    torch.testing.assert_close(twice - clean, 2 * (noisy - clean))


# from (1.2, 0), in the gap of the arc, to the ends at ±50°
GAP = math.dist((1.2, 0), (math.cos(math.radians(50)), math.sin(math.radians(50))))


@pytest.mark.parametrize(
    ("score", "points", "distances", "within"),  # a curve's distance is that to its polygon
    [
        (NoisyShell(sigma=0.1), [[0.3, 0.4], [1.2, 0.0]], [0.5, 0.2], 1e-7),
        (c_arc(0.1), [[0.3, 0.4], [1.2, 0.0]], [0.5, GAP], 1e-4),
        (two_moons(0.1), [[0.0, 1.3], [1.0, -1.0]], [0.3, 0.5], 1e-4),
        (helix(0.1), [[0.0, 0.0, 0.2]], [1.0], 1e-4),  # on the axis the nearest point is at the same height
        (KINDS["low rank"](0.1), (3 * ROTATION[:, 0] + 4 * ROTATION[:, 2])[None].tolist(), [4.0], 1e-7),
        (GaussianMixture(means=torch.zeros(1, 2), sigma=1.0), [[3.0, 4.0]], [5.0], 0),
    ],
)
def test_distances_to_the_manifolds(score: AnalyticScore, points: list, distances: list, within: float) -> None:
    found = score.distance(torch.tensor(points, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor(distances, dtype=torch.float64), atol=within, rtol=0)


def test_nothing_overflows_fifty_sigma_away_in_single_precision(kind: Callable) -> None:
    for sigma in (0.05, 1.0):
        score = kind(sigma)
        away = 50 * sigma * torch.nn.functional.normalize(noise(20, score.dimension))
        x = (score.sample(20, clean=True) + away).float()
        assert score(x).dtype == torch.float32
        for value in (score(x), score.log_density(x), dense_jacobian(score, x), score.distance(x)):
            assert torch.isfinite(value).all()
        # towards the data, and no steeper than that
        assert (score(x).norm(dim=1) * sigma**2 <= x.norm(dim=1) + 2).all()
        torch.testing.assert_close(score(x).double(), score(x.double()), rtol=1e-3, atol=1e-3 / sigma**2)


EYE = torch.eye(3)
test_bad_input_is_refused = refusals(
    (lambda: NoisyShell(sigma=0.0), "sigma must be a positive finite number, got 0"),
    (lambda: NoisyShell(sigma=0.1, shell_dimension=4), r"2 \(a circle\) or 3 \(a sphere\), got 4"),
    (lambda: LowRankGaussian(basis=2 * EYE[:, :1], variances=EYE[0, :1], sigma=0.1), "orthonormal.* from I by 3"),
    (lambda: LowRankGaussian(basis=EYE[:, :1], variances=torch.zeros(1), sigma=0.1), "must be 1 positive numbers"),
    (lambda: GaussianMixture(means=torch.zeros(3), sigma=0.1), r"means must be finite, \(k, d\) .* got shape \(3,\)"),
    (lambda: GaussianMixture(means=EYE, weights=torch.ones(2), sigma=0.1), "weights must be 3 numbers ≥ 0"),
    (lambda: c_arc(0.1).with_sigma(0.01), "sigma must be at least the spacing of the points of a curve"),
    (lambda: curve(torch.zeros(1, 2), sigma=0.1), r"points must be at least two, \(k, d\); got shape \(1, 2\)"),
    (lambda: helix(0.1).distance(torch.zeros(2, 3, dtype=torch.int64)), r"of shape \(M, 3\), got torch.int64"),
)
