"""Analytic scores: gradients of their densities, scipy's densities, integrals, symmetries, samples, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from isodiff.geometry import AnalyticScore, GaussianMixture, LowRankGaussian, NoisyShell, c_arc, curve, helix, two_moons

KINDS: dict[str, Callable[[float], AnalyticScore]] = {
    "low rank": lambda sigma: LowRankGaussian(
        basis=rotation(5)[:, :2], variances=torch.tensor([0.25, 1.0]), sigma=sigma
    ),
    "mixture": lambda sigma: GaussianMixture(means=noise(4, 3), weights=torch.tensor([1.0, 2, 3, 0]), sigma=sigma),
    "circle": lambda sigma: NoisyShell(sigma=sigma),
    "sphere": lambda sigma: NoisyShell(sigma=sigma, shell_dimension=3),
    "arc": c_arc,
    "moons": two_moons,
    "helix": helix,
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(d: int, seed: int = 7) -> Tensor:
    return torch.linalg.qr(noise(d, d, seed=seed))[0]


def jacobian(score: AnalyticScore, x: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.jacrev(lambda row: score(row[None])[0]))(x)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Callable[[float], AnalyticScore]:
    return KINDS[request.param]


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_the_score_is_the_gradient_of_the_log_density(kind: Callable, sigma: float) -> None:
    score = kind(sigma)
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
    J = jacobian(score, x.detach())
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


@pytest.mark.parametrize(
    ("d", "sigma", "ridge"),
    [(2, 0.1, 0.99496), (2, 0.2, 0.97936), (2, 0.4, 0.90687), (3, 0.1, 0.98990), (3, 0.2, 0.95826), (3, 0.4, 0.80012)],
)
def test_ridge_and_eigenvalues_of_the_shell(d: int, sigma: float, ridge: float) -> None:
    shell = NoisyShell(sigma=sigma, shell_dimension=d)
    assert shell.ridge_radius == pytest.approx(ridge, abs=5e-6)
    edge = 1 / math.sqrt(d)  # beyond it noise fills the hole
    assert NoisyShell(sigma=1.001 * edge, shell_dimension=d).ridge_radius == 0
    assert 0 < NoisyShell(sigma=0.99 * edge, shell_dimension=d).ridge_radius < 0.3
    turned = rotation(d)[0]
    assert shell(shell.ridge_radius * turned[None]).norm() < 1e-12 / sigma**2
    for r in (0.3, 0.8, shell.ridge_radius, 1.2):
        kappa = r / sigma**2
        A = scipy.special.ive(1, kappa) / scipy.special.ive(0, kappa) if d == 2 else 1 / np.tanh(kappa) - 1 / kappa
        radial = ((1 - A**2 - (d - 1) * A / kappa) / sigma**2 - 1) / sigma**2
        tangent = (A - r) / sigma**2 / r
        J = jacobian(shell, r * turned[None])[0]
        torch.testing.assert_close(J @ turned, radial * turned, rtol=1e-8, atol=1e-9)
        across = torch.linalg.svd(turned[None])[2][1]
        torch.testing.assert_close(J @ across, tangent * across, rtol=1e-8, atol=1e-9)


@given(seed=st.integers(0, 1000), d=st.sampled_from([2, 3]), sigma=st.floats(0.05, 2))
def test_shells_are_rotation_equivariant(seed: int, d: int, sigma: float) -> None:
    shell, Q, x = NoisyShell(sigma=sigma, shell_dimension=d), rotation(d, seed), noise(10, d, seed=seed)
    torch.testing.assert_close(shell(x @ Q.T), shell(x) @ Q.T, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(shell.log_density(x @ Q.T), shell.log_density(x))


def test_a_fine_mixture_on_the_circle_is_the_noisy_circle_up_to_a_known_ripple() -> None:
    """Of k points on a circle, p_mixture/p − 1 = 2 I_k(κ)/I₀(κ) cos kθ + …, where points σ apart give k = 2π/σ."""
    exact, turn = NoisyShell(sigma=0.1), torch.linspace(0, 1, 50, dtype=torch.float64)
    for k, r in ((63, 0.8), (63, 1.0), (63, 1.5), (200, 1.5)):
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
    for value, expected in ((s, torch.zeros(score.dimension)), (pairs, -torch.eye(score.dimension))):
        error = value.std(0) / math.sqrt(len(x))
        assert ((value.mean(0) - expected).abs() < 4.5 * error).all()
    noisy = score.sample(5, torch.Generator().manual_seed(3))
    clean = score.sample(5, torch.Generator().manual_seed(3), clean=True)
    torch.testing.assert_close(score.distance(clean), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)
    twice = score.with_sigma(0.4).sample(5, torch.Generator().manual_seed(3))
    torch.testing.assert_close(twice - clean, 2 * (noisy - clean))


def test_distances_to_the_manifolds() -> None:
    x = torch.tensor([[0.3, 0.4], [1.2, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(NoisyShell(sigma=0.1).distance(x), torch.tensor([0.5, 0.2]).double())
    # from (1.2, 0), in the gap of the arc, to the ends at ±50°
    gap = math.dist((1.2, 0), (math.cos(math.radians(50)), math.sin(math.radians(50))))
    torch.testing.assert_close(c_arc(0.1).distance(x), torch.tensor([0.5, gap]).double(), atol=1e-4, rtol=0)
    beside, below = torch.tensor([[0.0, 1.3], [1.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(
        two_moons(0.1).distance(torch.stack([beside, below])), torch.tensor([0.3, 0.5]).double(), atol=1e-4, rtol=0
    )
    # on the axis of the helix the nearest point is at the same height, one radius away
    torch.testing.assert_close(
        helix(0.1).distance(torch.tensor([[0.0, 0.0, 0.2]]).double()), torch.ones(1).double(), atol=1e-4, rtol=0
    )
    low_rank = KINDS["low rank"](0.1)
    U = rotation(5)
    torch.testing.assert_close(low_rank.distance((3 * U[:, 0] + 4 * U[:, 2])[None]), torch.full((1,), 4.0).double())
    assert GaussianMixture(means=torch.zeros(1, 2), sigma=1.0).distance(torch.tensor([[3.0, 4.0]])).item() == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_overflows_fifty_sigma_away(kind: Callable, dtype: torch.dtype) -> None:
    for sigma in (0.05, 1.0):
        score = kind(sigma)
        x = (score.sample(20, clean=True) + 50 * sigma * torch.nn.functional.normalize(noise(20, score.dimension))).to(
            dtype
        )
        assert score(x).dtype == dtype
        J = jacobian(score, x)
        for value in (score(x), score.log_density(x), J, score.distance(x)):
            assert torch.isfinite(value).all()
        # towards the data, and no steeper than that
        assert (score(x).norm(dim=1) * sigma**2 <= x.norm(dim=1) + 2).all()
        torch.testing.assert_close(score(x).double(), score(x.double()), rtol=1e-3, atol=1e-3 / sigma**2)


EYE = torch.eye(3)
REFUSED = [
    (lambda: NoisyShell(sigma=0.0), "sigma must be a positive finite number, got 0"),
    (lambda: NoisyShell(sigma=0.1, shell_dimension=4), r"2 \(a circle\) or 3 \(a sphere\), got 4"),
    (lambda: LowRankGaussian(basis=2 * EYE[:, :1], variances=EYE[0, :1], sigma=0.1), "orthonormal.* from I by 3"),
    (lambda: LowRankGaussian(basis=EYE[:, :1], variances=torch.zeros(1), sigma=0.1), "must be 1 positive numbers"),
    (lambda: GaussianMixture(means=torch.zeros(3), sigma=0.1), r"means must be finite, \(k, d\) .* got shape \(3,\)"),
    (lambda: GaussianMixture(means=EYE, weights=torch.ones(2), sigma=0.1), "weights must be 3 numbers ≥ 0"),
    (lambda: GaussianMixture(means=EYE, weights=EYE[0] / 0, sigma=0.1), "weights must be 3 numbers ≥ 0"),
    (lambda: c_arc(0.1).with_sigma(0.01), "sigma must be at least the spacing of the points of a curve"),
    (lambda: curve(torch.zeros(1, 2), sigma=0.1), r"points must be at least two, \(k, d\); got shape \(1, 2\)"),
    (lambda: helix(0.1).distance(torch.zeros(2, 3, dtype=torch.int64)), r"of shape \(M, 3\), got torch.int64"),
    (lambda: helix(0.1).sample(0), "n must be at least 1, got 0"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_bad_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
