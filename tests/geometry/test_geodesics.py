"""Geodesics against closed forms, their symmetries, the three traps, and what counts as converged."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import Tensor

from isodiff.geometry import lerp, slerp
from isodiff.geometry.convergence import Criteria, default_criteria
from isodiff.geometry.geodesics import GeodesicResult, continue_geodesic, solve_geodesic
from isodiff.geometry.initial_paths import graph_path, initial_path
from isodiff.geometry.manifold_scores import NoisyShell, c_arc
from isodiff.geometry.noise_metrics import DensityMetric, SphereMetric
from isodiff.geometry.pullback_metrics import EncoderMetric, EuclideanMetric, TangentialMetric
from isodiff.geometry.scores import AnalyticScore, GaussianMixture, LowRankGaussian

QUARTER = 20  # segments that resolve the toys below


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def polar(degrees: float, radius: float = 1.0) -> Tensor:
    turn = math.radians(degrees)
    return radius * torch.tensor([[math.cos(turn), math.sin(turn)]], dtype=torch.float64)


def gaussian(d: int = 5, sigma: float = 0.6) -> LowRankGaussian:
    basis = torch.linalg.qr(noise(d, 2))[0]
    return LowRankGaussian(sigma=sigma, basis=basis, variances=torch.tensor([1.0, 3.0], dtype=torch.float64))


def mixture(d: int = 2, sigma: float = 0.9) -> GaussianMixture:
    return GaussianMixture(means=noise(4, d, seed=9), sigma=sigma)


def two_modes() -> GaussianMixture:
    return GaussianMixture(means=torch.tensor([[-1.5, 0.0], [1.5, 0.0]], dtype=torch.float64), sigma=0.5)


def solve(score: AnalyticScore, a: Tensor, b: Tensor, num_segments: int = QUARTER, **options: object) -> GeodesicResult:
    return solve_geodesic(score, a, b, sigma=score.sigma, num_segments=num_segments, **options)


@pytest.mark.parametrize(("optimizer", "rho"), [("lbfgs", 0.0), ("lbfgs", 1e-3), ("lbfgs", 0.1), ("adam", 0.1)])
def test_geodesics_of_gaussian_data_are_straight_and_have_the_energy_of_the_bound(optimizer: str, rho: float) -> None:
    score, (a, b) = gaussian(), noise(2, 3, 5, seed=1)
    limit = 2000 if optimizer == "adam" else 300
    found = solve(score, a, b, 8, rho=rho, num_subsamples=2, optimizer=optimizer, max_iterations=limit)
    assert found.converged.all(), found.reason
    assert found.reason == ["", "", ""]
    torch.testing.assert_close(found.energy, found.lower_bound, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.length.square() / 2, found.lower_bound, rtol=1e-6, atol=0)
    straight = initial_path("lerp", a, b, 8)
    torch.testing.assert_close(found.path, straight, rtol=0, atol=1e-3)
    moved = score.sigma**2 * (score(b) - score(a))
    bound = (moved.square().sum(1) + rho * (b - a).square().sum(1)) / 2
    torch.testing.assert_close(found.lower_bound, bound, rtol=1e-12, atol=0)


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
    for metric, pieces, share in (("tangential", 2, 0.0031), ("tangential", 4, 0.0038), ("midpoint", 1, -0.0016)):
        if metric == "midpoint":
            metric = TangentialMetric(score, score.sigma, 0.0, "midpoint")
        found = solve(score, a, b, 40, rho=0.0, num_subsamples=pieces, metric=metric)
        assert found.converged.all(), found.reason
        assert found.energy.item() / score.sigma**4 / exact - 1 == pytest.approx(share, abs=1e-4)
        torch.testing.assert_close(found.path[0], expected, rtol=0, atol=3e-3)


@pytest.mark.parametrize(("quadrature", "pieces"), [("difference", 2), ("difference", 4), ("midpoint", 1)])
def test_the_curved_geodesic_is_approached_at_second_order(quadrature: str, pieces: int) -> None:
    score, a, b = curved_ends()
    metric = TangentialMetric(score, score.sigma, 0.0, quadrature)
    exact = metric.bound(a, b).item()
    errors = [
        abs(solve(score, a, b, n, metric=metric, num_subsamples=pieces).energy.item() - exact) for n in (10, 20, 40)
    ]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(2, abs=0.05)


def test_on_the_ridge_the_geodesic_leaves_the_great_circle_by_the_ridge_term_alone() -> None:
    """To first order in ρ the radius falls by (ρ r*/λ²)(1 − cosh θ/cosh θ₀), θ from the middle and 2θ₀ = 100° apart.

    With x = r − r*, the metric there is (λ² + ρ) dr² + (λ²x² + ρ(r* + x)²) dθ², of which this is the geodesic.
    """
    score = NoisyShell(sigma=0.2)
    r, half = score.ridge_radius, math.radians(50)
    slope = 1 - (1 - r**2 - score.sigma**2) / score.sigma**2
    deviations = []
    for rho in (0.02, 0.01, 0.005):
        found = solve(score, polar(-50, r), polar(50, r), 50, rho=rho, num_subsamples=2)
        assert found.converged.all(), found.reason
        nodes = found.path[0]
        turn = torch.atan2(nodes[:, 1], nodes[:, 0])
        closed = r - rho * r / slope**2 * (1 - turn.cosh() / math.cosh(half))
        deviations.append((r - nodes.norm(dim=1)).max().item())
        torch.testing.assert_close(nodes.norm(dim=1), closed, rtol=0, atol=0.02 * deviations[-1] + 1e-6)
    assert deviations[0] / deviations[1] == pytest.approx(2, rel=0.02)
    assert deviations[1] / deviations[2] == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("metric", ["euclidean", "sphere"])
def test_lerp_and_slerp_are_the_geodesics_of_their_metrics(metric: str) -> None:
    a, b = noise(2, 4, 3, seed=2)
    start = initial_path("slerp" if metric == "euclidean" else "lerp", a, b, 12)
    found = solve(mixture(3), a, b, 12, metric=metric, initial=start)
    assert found.converged.all(), found.reason
    curve = lerp if metric == "euclidean" else slerp
    expected = torch.stack([curve(a, b, i / 12) for i in range(13)], 1)
    torch.testing.assert_close(found.path, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.energy, found.lower_bound, rtol=1e-8, atol=0)


def test_the_density_metric_follows_the_ring_that_the_straight_line_leaves() -> None:
    score = NoisyShell(sigma=0.2)
    a, b = polar(0), polar(120)
    found = solve(score, a, b, 40, metric="density", initial="lerp")
    assert found.converged.all(), found.reason
    ridge = score.ridge_radius
    assert (found.path[0, 5:-5].norm(dim=1) - ridge).abs().max() < 0.1
    assert initial_path("lerp", a, b, 40).norm(dim=2).min() < 0.51
    metric = DensityMetric(score.log_density)
    assert found.energy.item() < 0.7 * metric.energy(initial_path("lerp", a, b, 40)).item()
    reference = DensityMetric(score.log_density, log_reference=-3.0)
    scaled = solve(score, a, b, 40, metric=reference, initial="lerp")
    torch.testing.assert_close(scaled.path, found.path, rtol=0, atol=1e-3)
    torch.testing.assert_close(scaled.energy, math.exp(-3) * found.energy, rtol=1e-6, atol=0)


def test_the_encoder_metric_moves_its_features_straight() -> None:
    """For a map of full rank and ρ = 0 the features of the nodes are equally spaced on a line."""
    encoder = lambda x: torch.stack([x[:, 0] + 0.3 * x[:, 1].sin(), x[:, 1] + 0.2 * x[:, 0] ** 2], 1)  # noqa: E731
    a, b = noise(2, 2, 2, seed=3)
    found = solve(mixture(), a, b, 10, metric=EncoderMetric(encoder), num_subsamples=1)
    assert found.converged.all(), found.reason
    steps = encoder(found.path.flatten(0, 1)).unflatten(0, (2, 11)).diff(dim=1)
    torch.testing.assert_close(steps, ((encoder(b) - encoder(a)) / 10)[:, None].expand_as(steps), rtol=0, atol=1e-4)


@pytest.mark.parametrize("metric", ["tangential", "score", "density", "sphere"])
def test_rotations_and_swapped_ends(metric: str) -> None:
    score, rotation = mixture(3), torch.linalg.qr(noise(3, 3, seed=4))[0]
    turned = GaussianMixture(means=score.means @ rotation.mT, sigma=score.sigma)
    a, b = noise(2, 1, 3, seed=6)
    found = solve(score, a, b, 10, metric=metric, rho=0.1)
    assert found.converged.all(), found.reason
    close = {"rtol": 0, "atol": 2e-3}  # of a path, at a gradient of 1e-5; its energy is known to the square of that
    rotated = solve(turned, a @ rotation.mT, b @ rotation.mT, 10, metric=metric, rho=0.1)
    torch.testing.assert_close(rotated.path, found.path @ rotation.mT, **close)
    torch.testing.assert_close(rotated.energy, found.energy, rtol=1e-7, atol=0)
    swapped = solve(score, b, a, 10, metric=metric, rho=0.1)
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
    folded = solve_geodesic(
        lambda x: score(x.flatten(1)).reshape(x.shape),
        a.view(3, 2, 1, 1),
        b.view(3, 2, 1, 1),
        sigma=0.4,
        num_segments=10,
    )
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
    assert torch.equal(found.path[:, 0], a)
    assert torch.equal(found.path[:, -1], b)


def test_a_path_that_jumps_over_a_ridge_between_its_nodes_is_rejected() -> None:
    """Two modes: true ½L² = 160.7 in units of s, L the total variation of the score along the line; K = 1 finds 0."""
    score = two_modes()
    a, b = score.means[:1], score.means[1:]
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
    assert found.energy.item() / score.sigma**4 == pytest.approx(exact, rel=0.06)
    assert found.energy.item() / score.sigma**4 == pytest.approx(167.3, abs=0.1)
    assert found.diagnostics.refinement.item() < 1.1


def test_graph_and_continuation_follow_the_arc_where_the_line_stays_in_the_gap() -> None:
    score = c_arc(0.1, num_points=120)
    a, b = polar(60), polar(300)
    stuck = solve(score, a, b, 40, initial="lerp")
    assert score.distance(stuck.path[0]).max() > 0.4
    assert stuck.length.item() > 2
    samples = score.sample(500, torch.Generator().manual_seed(0), clean=True)
    walked = solve(score, a, b, 40, initial=graph_path(a, b, samples, 40))
    levels = [(score.with_sigma(sigma), sigma) for sigma in (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.14, 0.1)]
    continued = continue_geodesic(levels, a, b, num_segments=40, initial="lerp")
    assert len(continued) == 8
    for found in (walked, continued[-1]):
        assert score.distance(found.path[0]).max() < 0.1
        assert found.length.item() < stuck.length.item() / 5
    torch.testing.assert_close(walked.energy, continued[-1].energy, rtol=1e-4, atol=0)


def test_enough_segments_resolve_the_arc() -> None:
    """At N = 40 chords leave the arc between the nodes, and the result says so; at N = 160 it is accepted."""
    score = c_arc(0.1, num_points=120)
    a, b = polar(60), polar(300)
    samples = score.sample(500, torch.Generator().manual_seed(0), clean=True)
    coarse, fine = (solve(score, a, b, n, num_subsamples=2, initial=graph_path(a, b, samples, n)) for n in (40, 160))
    assert not coarse.converged.any()
    assert coarse.reason[0].startswith("fine/node length 1.3")
    assert fine.converged.all(), fine.reason
    assert fine.length.item() == pytest.approx(0.143, abs=0.002)


def test_single_precision_meets_its_own_criteria() -> None:
    score, a, b = curved_ends()
    double = solve(score, a, b, 20, rho=1e-3)
    single = solve(score, a.float(), b.float(), 20, rho=1e-3)
    assert single.path.dtype == torch.float32
    assert single.converged.all(), single.reason
    torch.testing.assert_close(single.energy.double(), double.energy, rtol=2e-3, atol=0)
    half = solve(score, a.half(), b.half(), 4)
    assert half.path.dtype == torch.float32


def test_adam_finds_the_same_path() -> None:
    score, a, b = curved_ends()
    found = solve(
        score, a, b, 10, rho=0.01, optimizer="adam", max_iterations=1500, criteria=default_criteria(torch.float32)
    )
    assert found.converged.all(), found.reason
    torch.testing.assert_close(found.energy, solve(score, a, b, 10, rho=0.01).energy, rtol=1e-3, atol=0)


def test_a_path_that_runs_out_of_iterations_is_a_result_with_a_reason() -> None:
    score, a, b = curved_ends()
    for optimizer in ("lbfgs", "adam"):
        found = solve(score, a, b, max_iterations=3, optimizer=optimizer)
        assert found.iterations.tolist() == [3]
        assert not found.converged.any()
        assert "gradient norm" in found.reason[0]
        assert "relative decrease over 20 iterations" in found.reason[0]
        assert torch.isfinite(found.path).all()


def test_descent_ends_where_the_criteria_hold() -> None:
    score, a, b = curved_ends()
    loose = solve(score, a, b, criteria=Criteria(gradient=0.02, decrease=0.2))
    tight = solve(score, a, b)
    assert loose.converged.all()
    assert tight.converged.all()
    assert loose.iterations.item() < tight.iterations.item()
    assert loose.diagnostics.gradient.item() > 1e-5 >= tight.diagnostics.gradient.item()
    assert 0.2 >= loose.diagnostics.decrease.item() > 1e-6 >= tight.diagnostics.decrease.item()


def test_a_geodesic_to_start_from_is_recognised() -> None:
    a, b = noise(2, 1, 5, seed=1)
    found = solve(gaussian(), a, b, initial="lerp")
    assert found.converged.all()
    assert found.iterations.item() <= 2
    torch.testing.assert_close(found.path, initial_path("lerp", a, b, QUARTER))


def test_the_callback_sees_every_iteration_and_energies_that_fall() -> None:
    seen = []
    score, a, b = curved_ends()
    found = solve(score, torch.cat([a, b]), torch.cat([b, a]), callback=lambda *args: seen.append(args))
    for pair in (0, 1):
        own = [(iteration, energy) for number, iteration, energy in seen if number == pair]
        assert [iteration for iteration, _ in own] == list(range(1, found.iterations[pair].item() + 1))
        assert all(after <= before for (_, before), (_, after) in itertools.pairwise(own))
        assert own[-1][1] == pytest.approx(found.energy[pair].item(), rel=1e-12)


def test_a_score_that_is_not_finite_off_the_path_only_shortens_the_steps() -> None:
    """A wall of NaN that the first steps of the search would cross, and the geodesic does not reach."""
    score, a, b = curved_ends()
    crossed = []

    def walled(x: Tensor) -> Tensor:
        outside = (x.norm(dim=1, keepdim=True) < 1.0) | (x.norm(dim=1, keepdim=True) > 1.18)
        crossed.append(outside.any().item())
        return torch.where(outside, math.nan, score(x))

    found = solve_geodesic(walled, a, b, sigma=0.2, num_segments=40, rho=0.0)
    assert found.energy.item() == pytest.approx(solve(score, a, b, 40, rho=0.0).energy.item(), rel=1e-6)
    assert torch.isfinite(found.path).all()


def test_bad_input_is_refused() -> None:
    score, (a, b) = mixture(), noise(2, 2, 2)
    for sigma in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"sigma must be positive and finite, got {sigma}"):
            solve_geodesic(score, a, b, sigma=sigma, num_segments=4)
    for options, message in (
        ({"num_segments": 1}, "num_segments must be at least 2, got 1"),
        ({"num_subsamples": 0}, "num_subsamples must be at least 1, got 0"),
        ({"rho": -1e-3}, "rho must be finite and at least 0, got -0.001"),
        ({"metric": "fisher"}, r"metric must be one of \('euclidean', .*got 'fisher'"),
        ({"initial": "spline"}, r"initial must be one of \('slerp', 'lerp'\) or a path, got 'spline'"),
        ({"initial": noise(2, 4, 2)}, r"initial must have shape \(2, 5, 2\), got \(2, 4, 2\)"),
        ({"optimizer": "sgd"}, r"optimizer must be one of \('auto', 'lbfgs', 'adam'\), got 'sgd'"),
        ({"max_iterations": 0}, "max_iterations must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            solve(score, a, b, **{"num_segments": 4, **options})
    with pytest.raises(ValueError, match="a and b must differ, as a point is no path; they are equal in row 1"):
        solve(score, a, torch.stack([b[0], a[1]]))
    with pytest.raises(ValueError, match="b must have the shape of a"):
        solve(score, a, b[:1])
    with pytest.raises(ValueError, match="a must be finite"):
        solve(score, a * math.nan, b)
    with pytest.raises(ValueError, match="a must be a floating-point tensor"):
        solve(score, a.long(), b)
    with pytest.raises(ValueError, match=r"score must return the shape \(33, 2\) of its argument, got \(33, 1\)"):
        solve_geodesic(lambda x: x[:, :1], a, b, sigma=1.0, num_segments=8)
    with pytest.raises(ValueError, match="the energy of the initial path must be finite, got nan"):
        solve_geodesic(lambda x: x * math.nan, a, b, sigma=1.0, num_segments=8)
    with pytest.raises(ValueError, match="needs a score with a log_density"):
        solve_geodesic(lambda x: -x, a, b, sigma=1.0, num_segments=8, metric="density")
    for levels in ([], [(score, 0.5), (score, 0.5)], [(score, 0.3), (score, 0.5)]):
        with pytest.raises(ValueError, match="sigma falling; got sigma ="):
            continue_geodesic(levels, a, b, num_segments=4)


def test_metrics_given_as_objects_need_no_name() -> None:
    score, a, b = curved_ends()
    named = solve(score, a, b, 10, rho=0.1)
    given_as_object = solve(score, a, b, 10, metric=TangentialMetric(score, 0.2, 0.1))
    assert torch.equal(named.path, given_as_object.path)
    for name, metric in (("euclidean", EuclideanMetric()), ("sphere", SphereMetric(a.norm().item()))):
        torch.testing.assert_close(
            solve(score, a, b, 10, metric=name).energy, solve(score, a, b, 10, metric=metric).energy
        )
