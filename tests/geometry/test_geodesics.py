"""Geodesics against closed forms, their symmetries, the three traps, the descent, and what counts as converged."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import Tensor

from isodiff.geometry import (
    AnalyticScore,
    DensityMetric,
    GaussianMixture,
    GeodesicResult,
    LowRankGaussian,
    NoisyShell,
    PullbackMetric,
    TangentialMetric,
    c_arc,
    continue_geodesic,
    graph_path,
    initial_path,
    slerp,
    solve_geodesic,
)
from isodiff.geometry.geodesics import Diagnostics, _Descent, shape_diagnostics, violations

from .tensors import noise, refusals


def polar(degrees: float, radius: float = 1.0) -> Tensor:
    turn = math.radians(degrees)
    return radius * torch.tensor([[math.cos(turn), math.sin(turn)]], dtype=torch.float64)


def mixture(d: int = 2) -> GaussianMixture:
    return GaussianMixture(means=noise(4, d, seed=9), sigma=0.9)


def solve(score: AnalyticScore, a: Tensor, b: Tensor, num_segments: int = 20, **options: object) -> GeodesicResult:
    return solve_geodesic(score, a, b, sigma=score.sigma, num_segments=num_segments, **options)


@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_geodesics_of_gaussian_data_are_straight_and_have_the_energy_of_the_bound(rho: float) -> None:
    basis, variances = torch.linalg.qr(noise(5, 2))[0], torch.tensor([1.0, 3.0], dtype=torch.float64)
    score, (a, b) = LowRankGaussian(sigma=0.6, basis=basis, variances=variances), noise(2, 3, 5, seed=1)
    found = solve(score, a, b, 8, rho=rho, num_subsamples=2, max_iterations=300)
    assert found.reason == ["", "", ""]
    torch.testing.assert_close(found.energy, found.lower_bound, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.length.square() / 2, found.lower_bound, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.path, initial_path("lerp", a, b, 8), rtol=0, atol=1e-3)


def curved_ends() -> tuple[NoisyShell, Tensor, Tensor]:
    score = NoisyShell(sigma=0.2)
    radius = score.ridge_radius + 0.15
    return score, polar(0, radius), polar(70, radius)


def test_the_curved_geodesic_outside_the_noisy_circle() -> None:
    """The score runs along the chord c(u): ‖f(r)‖ = ‖c‖ gives the radius, −c the direction; E = ½‖c(1) − c(0)‖²."""
    score, a, b = curved_ends()
    exact = (score(b) - score(a)).square().sum().item() / 2
    assert exact == pytest.approx(8.914587, abs=1e-6)

    def closed(u: float) -> Tensor:
        chord = ((1 - u) * score(a) + u * score(b))[0]
        outward = lambda r: float(score(torch.tensor([[r, 0.0]], dtype=torch.float64))[0, 0]) + chord.norm().item()  # noqa: E731
        return -chord / chord.norm() * brentq(outward, score.ridge_radius, 3.0, xtol=1e-14)

    expected = torch.stack([closed(i / 40) for i in range(41)])
    once = solve(score, a, b, 40, rho=0.0, num_subsamples=1)
    assert once.energy.item() / score.sigma**4 == pytest.approx(exact, rel=1e-6)
    torch.testing.assert_close(once.path[0], expected, rtol=0, atol=1e-4)
    assert (once.path[0].norm(dim=1) - slerp(a, b, 0.5).norm()).abs().max() > 0.02  # it is not the circle
    midpoint = TangentialMetric(score, score.sigma, 0.0, "midpoint")
    for metric, pieces, share in (("tangential", 4, 0.0038), (midpoint, 1, -0.0016)):
        found = solve(score, a, b, 40, rho=0.0, num_subsamples=pieces, metric=metric)
        assert found.converged.all(), found.reason
        assert found.energy.item() / score.sigma**4 / exact - 1 == pytest.approx(share, abs=1e-4)
        torch.testing.assert_close(found.path[0], expected, rtol=0, atol=3e-3)


def test_on_the_ridge_the_geodesic_leaves_the_great_circle_by_the_ridge_term_alone() -> None:
    """To first order in ρ the radius falls by (ρ r*/λ²)(1 − cosh θ/cosh θ₀), θ from the middle and 2θ₀ = 100° apart.

    With x = r − r*, the metric there is (λ² + ρ) dr² + (λ²x² + ρ(r* + x)²) dθ², of which this is the geodesic.
    """
    score = NoisyShell(sigma=0.2)
    r, half = score.ridge_radius, math.radians(50)
    slope = 1 - (1 - r**2 - score.sigma**2) / score.sigma**2
    deviations = []
    for rho in (0.01, 0.005):
        found = solve(score, polar(-50, r), polar(50, r), 50, rho=rho, num_subsamples=2)
        assert found.converged.all(), found.reason
        x, y = found.path[0].unbind(1)
        closed = r - rho * r / slope**2 * (1 - torch.atan2(y, x).cosh() / math.cosh(half))
        deviations.append((r - x.hypot(y)).max().item())
        torch.testing.assert_close(x.hypot(y), closed, rtol=0, atol=0.02 * deviations[-1] + 1e-6)
    assert deviations[0] / deviations[1] == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("name", ["tangential", "density"])
def test_rotations_and_swapped_ends(name: str) -> None:
    data, rotation = mixture(3), torch.linalg.qr(noise(3, 3, seed=4))[0]
    turned = GaussianMixture(means=data.means @ rotation.mT, sigma=data.sigma)
    a, b = noise(2, 1, 3, seed=6)

    def find(score: AnalyticScore, *ends: Tensor) -> GeodesicResult:
        metric = "tangential" if name == "tangential" else DensityMetric(score.log_density)
        return solve(score, *ends, 10, metric=metric, rho=0.1)

    found, rotated, swapped = find(data, a, b), find(turned, a @ rotation.mT, b @ rotation.mT), find(data, b, a)
    assert found.converged.all(), found.reason
    close = {"rtol": 0, "atol": 2e-3}  # of a path, at a gradient of 1e-5; its energy is known to the square of that
    torch.testing.assert_close(rotated.path, found.path @ rotation.mT, **close)
    torch.testing.assert_close(rotated.energy, found.energy, rtol=1e-7, atol=0)
    torch.testing.assert_close(swapped.path, found.path.flip(1), **close)
    torch.testing.assert_close(swapped.energy, found.energy, rtol=1e-7, atol=0)


def test_a_pair_does_not_depend_on_the_other_pairs_or_on_the_chunks() -> None:
    score = c_arc(0.4)
    a, b = noise(2, 3, 2, seed=7)
    together = solve(score, a, b, 10)
    for row in range(3):
        alone = solve(score, a[row : row + 1], b[row : row + 1], 10)
        assert torch.equal(alone.path[0], together.path[row])
        assert alone.reason[0] == together.reason[row]
    chunked = solve(score, a, b, 10, batch_size=7)
    torch.testing.assert_close(chunked.energy, together.energy, rtol=1e-8, atol=0)
    fold = lambda x: score(x.flatten(1)).reshape(x.shape)  # noqa: E731
    folded = solve_geodesic(fold, a.view(3, 2, 1, 1), b.view(3, 2, 1, 1), sigma=0.4, num_segments=10)
    torch.testing.assert_close(folded.path.flatten(2), together.path)


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 1e-3, 0.1]), st.integers(1, 3))
def test_solutions_lie_between_the_bound_and_the_initial_path(seed: int, rho: float, pieces: int) -> None:
    a, b = noise(2, 2, 2, seed=seed)
    score = (c_arc(0.5), NoisyShell(sigma=0.5), mixture())[seed % 3]
    found = solve(score, a, b, 6, rho=rho, num_subsamples=pieces, max_iterations=200)
    metric = TangentialMetric(score, score.sigma, rho)
    assert (found.energy >= found.lower_bound * (1 - 1e-12)).all()
    assert (found.energy <= metric.energy(initial_path("slerp", a, b, 6), num_subsamples=pieces) * (1 + 1e-12)).all()
    torch.testing.assert_close(metric.energy(found.path, num_subsamples=pieces), found.energy, rtol=1e-12, atol=0)
    assert torch.equal(found.path[:, [0, -1]], torch.stack([a, b], 1))


def test_a_path_that_jumps_over_a_ridge_between_its_nodes_is_rejected() -> None:
    """Two modes: true ½L² = 160.7 in units of s, L the total variation of the score along the line; K = 1 finds 0."""
    a, b = ends = torch.tensor([[[-1.5, 0.0]], [[1.5, 0.0]]], dtype=torch.float64)
    score = GaussianMixture(means=ends[:, 0], sigma=0.5)
    slope = lambda x: score(torch.tensor([[x, 0.0]], dtype=torch.float64))[0, 0].item()  # noqa: E731
    turn = brentq(lambda x: 1 - 9 * (1 - math.tanh(6 * x) ** 2), 0, 1.5)  # where ds/dx = 0
    exact = (2 * (abs(slope(turn) - slope(0)) + abs(slope(1.5) - slope(turn)))) ** 2 / 2
    assert exact == pytest.approx(160.7, abs=0.05)

    jumped = solve(score, a, b, rho=0.0, num_subsamples=1, initial="lerp")
    assert jumped.energy.item() / score.sigma**4 < 5e-4
    assert not jumped.converged.any()
    assert "fine/node length" in jumped.reason[0]
    assert jumped.diagnostics.refinement.item() > 100
    found = solve(score, a, b, rho=0.0, num_subsamples=4, initial="lerp")
    assert found.energy.item() / score.sigma**4 == pytest.approx(167.3, abs=0.1)
    assert found.diagnostics.refinement.item() < 1.1


def test_graph_and_continuation_follow_the_arc_where_the_line_stays_in_the_gap() -> None:
    score = c_arc(0.1)
    a, b = polar(60), polar(300)
    stuck = solve(score, a, b, 40, initial="lerp")
    assert score.distance(stuck.path[0]).max() > 0.4
    assert stuck.length.item() > 2
    samples = score.sample(500, torch.Generator().manual_seed(0), clean=True)
    walked = solve(score, a, b, 40, initial=graph_path(a, b, samples, 40))
    levels = [(score.with_sigma(sigma), sigma) for sigma in (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.14, 0.1)]
    continued = continue_geodesic(levels, a, b, num_segments=40, initial="lerp")
    for found in (walked, continued[-1]):
        assert score.distance(found.path[0]).max() < 0.1
        assert found.length.item() < stuck.length.item() / 5
    torch.testing.assert_close(walked.energy, continued[-1].energy, rtol=1e-4, atol=0)


def test_single_precision_meets_its_own_criteria() -> None:
    score, a, b = curved_ends()
    double, single = solve(score, a, b), solve(score, a.float(), b.float())
    assert single.path.dtype == torch.float32
    assert single.converged.all(), single.reason
    torch.testing.assert_close(single.energy.double(), double.energy, rtol=2e-3, atol=0)
    assert solve(score, a.half(), b.half(), 4).path.dtype == torch.float32


def test_a_path_that_runs_out_of_iterations_is_a_result_with_a_reason() -> None:
    found = solve(*curved_ends(), max_iterations=3)
    assert found.iterations.tolist() == [3]
    assert not found.converged.any()
    assert "gradient norm" in found.reason[0]
    assert "relative decrease over 20 iterations" in found.reason[0]


def test_a_score_that_is_not_finite_off_the_path_only_shortens_the_steps() -> None:
    """A wall of NaN that the first steps of the search would cross, and the geodesic does not reach."""
    score, a, b = curved_ends()

    def walled(x: Tensor) -> Tensor:
        radius = x.norm(dim=1, keepdim=True)
        return torch.where((radius < 1.0) | (radius > 1.18), math.nan, score(x))

    found = solve_geodesic(walled, a, b, sigma=0.2, num_segments=40, rho=0.0)
    assert found.energy.item() == pytest.approx(solve(score, a, b, 40, rho=0.0).energy.item(), rel=1e-6)
    assert torch.isfinite(found.path).all()


@given(unit=st.floats(1e-3, 1e3), scale=st.floats(1e-3, 1e3))
def test_the_gradient_norm_is_the_relative_change_of_energy_in_any_unit(unit: float, scale: float) -> None:
    """dE/E ≤ 2 · norm · ‖dx‖_L/‖x‖_L, with equality along the gradient: so the flat zigzag's is computed by hand."""
    slope = lambda f, path: _Descent(PullbackMetric(f), path, 2, None).slope()  # noqa: E731
    zigzag = torch.tensor([[[0.0, 0.0], [0.5, 1.0], [1.0, 0.0]]], dtype=torch.float64)
    # N Σ‖Δx‖² = 2 · 2 · 1.25 = 5, ‖z‖² = 5 − 1 = 4, E = 2.5, ∇_z E = z
    assert slope(lambda x: scale * x, unit * zigzag) == pytest.approx(2 * math.sqrt(5) / 5)
    curved, path = lambda x: torch.cat([x.sin(), x[:, :1] * x[:, 1:]], 1), noise(1, 6, 3)
    assert slope(lambda x: scale * curved(x / unit), unit * path) == pytest.approx(slope(curved, path), rel=1e-9)


def test_shape_diagnostics_by_hand() -> None:
    """A path that doubles its step: gaps 1, 2; and a map that only a fine look sees move."""
    path = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]]], dtype=torch.float64)
    flat = PullbackMetric(lambda x: x)
    assert [*map(float, shape_diagnostics(flat, path, 2, None))] == pytest.approx([1, 2 / 1.5, 0.5 / 1.5])
    hidden = PullbackMetric(lambda x: torch.stack([x[:, 0], (math.pi * x[:, 0]).sin()], 1))
    refinement, _, _ = shape_diagnostics(hidden, path, 1, None)
    # of the nodes, sin πx is 0: length 3; quarters of the first segment show a wave, those of the second half a period
    quarter = math.sin(math.pi / 4)
    fine = 2 * (math.hypot(0.25, quarter) + math.hypot(0.25, 1 - quarter)) + 4 * math.hypot(0.5, 1)
    assert refinement.item() == pytest.approx(fine / 3)


def test_criteria_name_what_they_reject() -> None:
    good = Diagnostics(1e-6, 1e-7, 1.01, 1.5, 0.05)
    assert violations(good, torch.float64) == ""
    for bad, text in (
        ({"decrease": 0.5}, "relative decrease over 20 iterations 0.5, accepted at most 1e-06"),
        ({"refinement": 0.9}, "fine/node length 0.9, accepted 0.95 to 1.05"),
        ({"gap": 4.0, "speed": math.nan}, "max/mean gap 4, accepted below 3; speed variation nan, accepted below 0.1"),
    ):
        assert violations(good._replace(**bad), torch.float64) == text
    loose = good._replace(gradient=0.005)
    assert violations(loose, torch.float64) == "gradient norm 0.005, accepted at most 1e-05"
    assert violations(loose, torch.float32) == ""


A, B = noise(2, 2, 2)


def attempt(**options: object) -> Callable[[], GeodesicResult]:
    return lambda: solve_geodesic(**{"score": mixture(), "a": A, "b": B, "sigma": 0.9, "num_segments": 4, **options})


test_bad_input_is_refused = refusals(
    (attempt(num_segments=1), "num_segments must be at least 2, got 1"),
    (attempt(metric="fisher"), "metric must be \"tangential\" or a NoiseMetric, got 'fisher'"),
    (attempt(b=torch.stack([B[0], A[1]])), "a and b must differ, as a point is no path; they are equal in row 1"),
    (attempt(a=A * math.nan), "a must be finite"),
    (attempt(score=lambda x: x[:, :1]), r"score must return the shape \(17, 2\) of its argument, got \(17, 1\)"),
    (attempt(score=lambda x: x * math.nan), "the energy of the initial path must be finite, got nan"),
    (lambda: continue_geodesic([(mixture(), 0.5)] * 2, A, B, num_segments=4), "sigma falling; got sigma ="),
)
