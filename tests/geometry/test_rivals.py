"""Rival interpolations: closed forms, oracles that transcribe the published objective, symmetries, what is refused."""

import math

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_bvp
from torch import Tensor

from isodiff.geometry import NoisyShell, density_path, lerp, noise_diffusion, norm_aware_path, slerp
from isodiff.geometry.rivals import chi_cost

from .tensors import noise, refusals


def pairs(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    return noise(*shape, seed=seed), noise(*shape, seed=seed + 1000)


def flat(x: Tensor) -> Tensor:
    """Stand in for the score of a constant density."""
    return torch.zeros_like(x)


def mixed(t: float | Tensor, **options: object) -> Tensor:
    a, b, image_a, image_b = noise(4, 2, 3, 4, 4)
    return noise_diffusion(a, b, t, **({"image_a": image_a, "image_b": image_b, "alpha_bar": 0.36} | options))


@given(st.floats(0, 1))
def test_noise_diffusion_is_the_published_sum(t: float) -> None:
    """So at its ends α = 1 and μ = 1.2: the latent plus a fifth of its image's share, and the ends are not kept."""
    a, b, image_a, image_b = noise(4, 2, 3, 4, 4)
    alpha, beta = math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)
    mu, nu = 1.2 * alpha / (alpha + beta), 1.2 * beta / (alpha + beta)
    images = 0.6 * ((mu - alpha) * image_a + (nu - beta) * image_b)
    expected = (alpha * a.clamp(-2, 2) + beta * b.clamp(-2, 2) + images).clamp(-2, 2)
    torch.testing.assert_close(mixed(t), expected)
    torch.testing.assert_close(mixed(torch.tensor([0.1, t], dtype=torch.float64))[1], expected[1])


def test_nothing_moves_where_the_density_is_flat() -> None:
    a, b = pairs(3, 2, 4)
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    line = torch.stack([lerp(a, b, s) for s in t], 1)
    torch.testing.assert_close(density_path(flat, a, b, sphere=False, num_levels=3), line)
    radius = (a.flatten(1).norm(dim=1) + b.flatten(1).norm(dim=1)) / 2
    ends = [x * (radius / x.flatten(1).norm(dim=1)).view(3, 1, 1) for x in (a, b)]
    arc = torch.stack([slerp(*ends, s) for s in t], 1)
    torch.testing.assert_close(density_path(flat, a, b, num_levels=3), arc)


def geodesic_of_density(shell: NoisyShell, alpha: float, radius: float, angle: float) -> Tensor:
    """Solve r″ = r + 2r′²/r + (r² + r′²) w′/w of the metric w², w = p^{−α}, by scipy."""

    def ode(theta: Tensor, y: Tensor) -> Tensor:
        r, slope = torch.as_tensor(y)
        pull = -alpha * shell(torch.stack([r, 0 * r], 1))[:, 0]
        return torch.stack([slope, r + 2 * slope**2 / r + (r**2 + slope**2) * pull]).numpy()

    theta = torch.linspace(0, angle, 101, dtype=torch.float64)
    guess = torch.stack([torch.full_like(theta, radius), 0 * theta]).numpy()
    found = solve_bvp(ode, lambda y0, y1: [y0[0] - radius, y1[0] - radius], theta.numpy(), guess, tol=1e-6)
    theta = torch.linspace(0, angle, 1001, dtype=torch.float64)
    r = torch.as_tensor(found.sol(theta.numpy())[0])
    return torch.stack([r * theta.cos(), r * theta.sin()], 1)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_the_high_density_arc_of_the_noisy_circle_is_found(alpha: float) -> None:
    """From the chord through the hole to the exact geodesic of p^{−2α} I, which runs a little inside the ridge."""
    shell, angle = NoisyShell(sigma=0.2), math.radians(100)
    r = shell.ridge_radius
    a, b = r * torch.tensor([[[1.0, 0.0]], [[math.cos(angle), math.sin(angle)]]], dtype=torch.float64)
    options = {"sphere": False, "iterations_per_level": 500, "learning_rate": 0.01}
    path = density_path(shell, a, b, alpha=alpha, **options)[0]
    exact = geodesic_of_density(shell, alpha, r, angle)
    assert torch.cdist(path, exact).amin(1).max() < 0.003
    assert torch.cdist(lerp(a, b, 0.5), exact).min() > 0.25
    torch.testing.assert_close(path[[0, -1]], torch.cat([a, b]))


def test_on_the_sphere_the_norm_is_kept_and_the_ends_are_scaled_to_it() -> None:
    a, b = noise(3, 4, 4, seed=1), 1.2 * noise(3, 4, 4, seed=2)
    score = lambda x: -30 * (x - 2 * noise(4, 4, seed=3)) / 10  # noqa: E731
    path = density_path(score, a, b, num_levels=3, iterations_per_level=20)
    radius = (a.flatten(1).norm(dim=1) + b.flatten(1).norm(dim=1)) / 2
    torch.testing.assert_close(path.flatten(2).norm(dim=2), radius[:, None].expand(3, 9))
    for end, x in ((path[:, 0], a), (path[:, -1], b)):
        torch.testing.assert_close(end, x * (radius / x.flatten(1).norm(dim=1)).view(3, 1, 1))
    assert (path - density_path(flat, a, b, num_levels=3)).abs().max() > 1e-3
    back = density_path(score, b, a, num_levels=3, iterations_per_level=20)
    torch.testing.assert_close(back.flip(1), path, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("n", [2, 196_608])
def test_the_cost_is_minus_the_log_density_of_the_chi_law(n: int) -> None:
    r = math.sqrt(n - 1) * torch.tensor([0.5, 0.9, 1.0, 1.1, 2.0], dtype=torch.float64)
    expected = -torch.as_tensor(scipy.stats.chi(n).logpdf(r.numpy()))
    torch.testing.assert_close(chi_cost(r, n), expected, rtol=1e-9, atol=1e-6)
    assert chi_cost(r, n).argmin() == 2


def cost_of(path: Tensor) -> float:
    """Integrate the cost along a polygon (K, n), finely."""
    steps = path[1:] - path[:-1]
    t = (torch.arange(50, dtype=path.dtype)[:, None] + 0.5) / 50
    points = path[:-1, None] + t * steps[:, None]
    return (chi_cost(points.norm(dim=2), path.shape[1]).mean(1) * steps.norm(dim=1)).sum().item()


def published_path(a: Tensor, b: Tensor, num_points: int = 50, iterations: int = 2500) -> Tensor:
    """Transcribe the released objective: Adam on the line integral from the chord, all n coordinates free."""
    t = torch.linspace(0, 1, num_points, dtype=a.dtype)[:, None]
    inner = (a + t * (b - a))[1:-1].clone().requires_grad_()
    longest = 2 * (a - b).norm() / num_points
    adam = torch.optim.Adam([inner], lr=0.01)
    for _ in range(iterations):
        path = torch.cat([a[None], inner, b[None]])
        step = (path[1:] - path[:-1]).norm(dim=1)
        cost = chi_cost(((path[1:] + path[:-1]) / 2).norm(dim=1), len(a))
        loss = (cost * step).sum() + (step - longest).relu().sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return path.detach()


@pytest.mark.parametrize("n", [3, 12])
def test_the_norm_aware_path_is_where_the_released_objective_leads(n: int) -> None:
    a, b = pairs(1, n, seed=4)
    ours, theirs = norm_aware_path(a, b, 64)[0], published_path(a[0], b[0])
    assert 0.99 < cost_of(ours) / cost_of(theirs) < 1.001
    assert torch.cdist(theirs, ours).amin(1).max() < 0.05 * (a - b).norm()
    for rival in (lerp, slerp):
        assert cost_of(ours) < cost_of(torch.cat([rival(a, b, t) for t in torch.linspace(0, 1, 65).double()]))


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), n=st.sampled_from([3, 20, 500, 3072]))
def test_norm_aware_paths_are_symmetric_planar_and_near_the_shell(seed: int, n: int) -> None:
    a, b = pairs(1, n, seed=seed)
    path = norm_aware_path(a, b, 12, num_nodes=64)
    torch.testing.assert_close(path[:, [0, -1]], torch.stack([a, b], 1))
    torch.testing.assert_close(norm_aware_path(b, a, 12, num_nodes=64).flip(1), path, rtol=1e-4, atol=1e-4)
    plane = torch.linalg.qr(torch.stack([a[0], b[0]], 1))[0]
    torch.testing.assert_close(path[0] @ plane @ plane.T, path[0])
    if n >= 500:  # the middle of the path hugs the smallest r·w(r), just inside √(n−1)
        assert (path[0, 4:9].norm(dim=1) - math.sqrt(n - 1)).abs().max() < 0.05
    step = (path[0, 1:] - path[0, :-1]).norm(dim=1)
    assert step.max() / step.min() < 1.5  # equal along the path, whose corners the steps cut


def test_the_norm_aware_path_in_the_plane_obeys_clairaut() -> None:
    """w(r) r cos(angle to the circle) is the same at all points of a geodesic of w(‖x‖)² I."""
    a, b = torch.tensor([[[1.5, 0.0]], [[-0.4, 0.9]]], dtype=torch.float64)
    path = norm_aware_path(a, b, 200, num_nodes=200)[0]
    middle, step = (path[1:] + path[:-1]) / 2, path[1:] - path[:-1]
    cross = middle[:, 0] * step[:, 1] - middle[:, 1] * step[:, 0]
    momentum = chi_cost(middle.norm(dim=1), 2) * cross / step.norm(dim=1)
    assert (momentum / momentum.mean() - 1).abs().max() < 0.02


def test_norm_aware_paths_of_degenerate_pairs() -> None:
    x = noise(1, 16)
    for y, within in ((x, 1e-7), (x + 1e-7 * noise(1, 16, seed=1), 1e-6)):
        torch.testing.assert_close(norm_aware_path(x, y, 4), x[:, None].expand(1, 5, 16), atol=within, rtol=0)
    # on a ray the path is straight, and between antipodes it takes the way round, not that through the origin
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    torch.testing.assert_close(norm_aware_path(x, 1.3 * x, 4)[0], (1 + 0.3 * t)[:, None] * x)
    assert norm_aware_path(x, -x, 8).norm(dim=2).min() > 3
    images = norm_aware_path(*(part.float() for part in pairs(2, 3, 8, 8)), 4)
    assert (images.shape, images.dtype) == ((2, 5, 3, 8, 8), torch.float32)


A, B = pairs(2, 8)
test_bad_input_is_refused = refusals(
    (lambda: mixed(0.5, alpha_bar=0.0), r"alpha_bar must lie in \(0, 1\], got 0"),
    (lambda: mixed(1.1), "t must be a number or 2 of them, from 0 to 1; got 1.1"),
    (lambda: mixed(0.5, image_a=torch.zeros(2, 3, 4, 5)), "image_a must have the shape of a"),
    (lambda: density_path(flat, A, B, alpha=0), r"alpha and learning_rate must be positive, got 0 and 0\.1"),
    (lambda: density_path(flat, A, B, num_levels=0), "num_levels must be at least 1, got 0"),
    (lambda: density_path(flat, A, 0 * B), "a and b must have no zero rows"),
    (lambda: density_path(lambda x: x[:, :2], A, B), r"score\(x\) must have the shape of x"),
    (lambda: density_path(lambda x: x / 0, A, B), r"score\(x\) must be finite"),
    (lambda: norm_aware_path(A, B, 0), "num_segments must be at least 1, got 0"),
    (lambda: norm_aware_path(A / 0, B, 4), "a must be finite"),
    (lambda: norm_aware_path(*pairs(1, 500), 4, num_nodes=8), "num_nodes = 8 leaves a step of .* rad, above 0.2"),
    errors=(ValueError, RuntimeError),
)
