"""The scaled-isometry loss: identities, the oracle, bias and gradient, both routes, and what may not be passed."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from isodiff.diffusion import build_unet, encode
from isodiff.geometry import (
    anisotropy,
    estimate_loss,
    exact_isometry_loss,
    inverse_stereographic,
    isometry_loss,
    isometry_loss_share,
    stereographic,
    trace_samples,
)

from .tensors import noise, refusals, slopes, times

METRICS = ("stereographic", "chart_identity", "as_printed", "euclidean")
ESTIMATORS = ("ratio", "unbiased", "jackknife")
ROUTES = ("double_backward", "differences")


def generator(seed: int = 0) -> torch.Generator:
    """Return a source of probes, never in the state that drew the points."""
    return torch.Generator().manual_seed(1000 + seed)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).double()


def gradient(loss: Tensor, module: nn.Module) -> Tensor:
    found = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("metric", METRICS[:3])
def test_tangent_projection_equals_the_chart(network: nn.Module, metric: str) -> None:
    """The paper's definition: autograd through Π⁻¹, and G by autograd too, but for two that are wrong on purpose."""
    x, traces, jacobian = noise(5, 6), [], torch.autograd.functional.jacobian
    for row in x:
        radius = row.norm()
        scale = radius if metric == "as_printed" else 1.0  # Eq. 2 has x'/(r − xₙ), without the factor r
        embed = lambda p, r=radius, s=scale: inverse_stereographic(s * p[None], r)[0]  # noqa: E731
        z = stereographic(row[None], radius)[0] / scale
        j = jacobian(lambda p, e=embed: network(e(p)[None])[0], z, create_graph=True)
        d, eye = jacobian(embed, z), torch.eye(5, dtype=x.dtype)
        eq_3 = 4 * radius**4 / (z.square().sum() + radius**2) ** 2 * eye
        r = torch.linalg.solve({"chart_identity": eye, "as_printed": eq_3}.get(metric, d.mT @ d), j.mT @ j)
        traces.append(torch.stack([r.trace(), (r @ r).trace()]))
    first, second = torch.stack(traces, 1)
    chart, ours = second.mean() / first.mean().square(), exact_isometry_loss(network, x, metric=metric)
    torch.testing.assert_close(ours, chart, rtol=0, atol=1e-10)
    torch.testing.assert_close(gradient(ours, network), gradient(chart, network), rtol=0, atol=1e-10)


def test_chart_identity_inflates_the_loss_by_the_spread_of_its_factor() -> None:
    # For an isometry R = G·I, so the loss is mean G² / (mean G)² / (n − 1).
    x = noise(50, 4)
    factor = (1 - x[:, -1] / x.norm(dim=1)) ** 2
    expected = factor.square().mean() / factor.mean().square() / 3
    torch.testing.assert_close(exact_isometry_loss(lambda z: z, x, metric="chart_identity"), expected)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_a_scaled_isometry_attains_the_bound(scale: float) -> None:
    q, x = scale * torch.linalg.qr(noise(8, 5))[0], noise(6, 5, seed=1)
    for metric, rank in (("stereographic", 4), ("euclidean", 5)):
        loss = exact_isometry_loss(lambda z: z @ q.mT, x, metric=metric)
        assert loss.item() == pytest.approx(1 / rank, abs=1e-10)
        assert anisotropy(loss, 5, 8, metric=metric).item() == pytest.approx(1.0, abs=1e-10)
    # onto fewer dimensions it is one over their number: rows of J orthonormal and orthogonal to x, R a projection
    along = torch.eye(6, dtype=torch.float64)[5:]
    assert exact_isometry_loss(lambda z: scale * z[:, :3], along).item() == pytest.approx(1 / 3, abs=1e-10)
    assert anisotropy(1 / 3, 6, 3) == 1.0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_scaling_the_output_changes_nothing(network: nn.Module, metric: str, estimator: str) -> None:
    x, maps = noise(4, 6), (network, lambda z: -37.5 * network(z))
    options = {"metric": metric, "estimator": estimator, "num_probes": 3}
    exact = [exact_isometry_loss(f, x, metric=metric) for f in maps]
    torch.testing.assert_close(*exact, rtol=0, atol=1e-10)
    ours = [isometry_loss(f, x, **options, generator=generator()) for f in maps]
    torch.testing.assert_close(*ours, rtol=0, atol=1e-10)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_gradient_is_in_expectation_that_of_the_exact_loss(network: nn.Module, metric: str, estimator: str) -> None:
    """2,400 probes leave a few per cent of noise; and it is the slope of the estimate itself by finite differences."""
    x, options = noise(8, 6), {"metric": metric, "estimator": estimator, "num_probes": 300}
    loss = lambda: isometry_loss(network, x, **options, generator=generator())  # noqa: E731
    parameters = list(network.parameters())
    ours = torch.autograd.grad(loss(), parameters, allow_unused=True, materialize_grads=True)
    oracle = gradient(exact_isometry_loss(network, x, metric=metric), network)
    assert (torch.cat([g.flatten() for g in ours]) - oracle).norm() < 0.15 * oracle.norm()
    said, measured = slopes(lambda: loss().item(), parameters, ours)
    assert said == pytest.approx(measured, rel=1e-5)


def samples_of_traces(jacobians: Tensor, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return q₁ = ‖J P v‖² and q₂ = ‖P JᵀJ P v‖² by dense algebra, (B, K), for J (B, m, n) and v (B, K, n)."""
    unit = (x / x.norm(dim=1, keepdim=True))[:, None]
    project = lambda w: w - (w @ unit.mT) * unit  # noqa: E731
    pushed = project(v) @ jacobians.mT
    return pushed.square().sum(2), project(pushed @ jacobians).square().sum(2)


def test_bias_falls_as_one_over_rows_times_probes() -> None:
    """Compare with the delta method, over 12,000 repetitions a point; the loss itself is the ratio of such samples.

    With N and D the means of q₂ and q₁ over B·K samples, the bias of N / D² is to first order
    L (3 Var D / D² − 2 Cov(N, D) / (N D)) = L c / (B·K).
    """
    x, jacobians, repeats = noise(4, 12, seed=1), noise(4, 6, 12, seed=7), 12_000
    exact = exact_isometry_loss(lambda z: times(jacobians, z), x)
    q1, q2 = samples_of_traces(jacobians, x, noise(4, repeats * 32, 12, seed=2))
    covariance = ((q1 - q1.mean(1, keepdim=True)) * (q2 - q2.mean(1, keepdim=True))).mean()
    constant = (3 * q1.var(dim=1).mean() / q1.mean() ** 2 - 2 * covariance / (q1.mean() * q2.mean())).item()
    for num_probes in (2, 8, 32):
        draws = [q[:, : repeats * num_probes].reshape(4, repeats, num_probes).transpose(0, 1) for q in (q1, q2)]
        off = {e: torch.vmap(partial(estimate_loss, estimator=e))(*draws) / exact - 1 for e in ESTIMATORS}
        error = {name: r.std().item() / math.sqrt(repeats) for name, r in off.items()}
        first_order = constant / (4 * num_probes)
        assert abs(off["ratio"].mean() - first_order) < 3 * error["ratio"] + first_order**2
        assert abs(off["jackknife"].mean()) < 3 * error["jackknife"] + first_order**2
        assert error["ratio"] < 0.5 * first_order, "too few repetitions to see the bias"
    v = torch.randn(4, 12, generator=generator(), dtype=torch.float64)
    q1, q2 = samples_of_traces(jacobians, x, v[:, None])
    ours = isometry_loss(lambda z: times(jacobians, z), x, generator=generator())
    torch.testing.assert_close(ours, q2.mean() / q1.mean() ** 2)


def test_autocast_does_not_touch_the_traces(network: nn.Module) -> None:
    network, x = network.float(), noise(4, 6).float()
    expected = isometry_loss(network, x, generator=generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, exact = isometry_loss(network, x, generator=generator()), exact_isometry_loss(network, x)
    assert torch.equal(loss, expected)
    assert torch.equal(gradient(loss, network), gradient(expected, network))
    assert torch.equal(exact, exact_isometry_loss(network, x))


def test_large_activations_do_not_overflow() -> None:
    loss = isometry_loss(lambda z: 1e4 * z, noise(4, 100).half(), num_probes=100, generator=generator())
    assert loss.item() == pytest.approx(1 / 99, rel=0.1)


def test_shares_of_equal_parts_have_the_loss_and_gradient_of_the_whole(network: nn.Module) -> None:
    """The parts' own ratios have not."""
    x, probes = noise(6, 6), noise(3, 6, 6, seed=1)
    whole = trace_samples(network, x, probes=probes)
    loss, means = estimate_loss(*whole), [sample.mean() for sample in whole]
    parts = [trace_samples(network, x[i : i + 2], probes=probes[:, i : i + 2]) for i in (0, 2, 4)]
    mean = sum(isometry_loss_share(*part, *means) for part in parts) / 3
    torch.testing.assert_close(mean, loss)
    torch.testing.assert_close(gradient(mean, network), gradient(loss, network))
    assert abs(sum(estimate_loss(*part) for part in parts) / 3 / loss - 1) > 0.01
    torch.testing.assert_close(isometry_loss_share(*whole, *means), loss)


def routes_differ(f: Callable[[Tensor], Tensor], x: Tensor, module: nn.Module, **options: object) -> list[float]:
    """Return by which share the differences' loss and gradient are off those of double backward."""
    found = []
    for route in ROUTES:
        torch.manual_seed(3)
        loss = isometry_loss(f, x, **options, generator=torch.Generator().manual_seed(9), route=route)
        found.append((loss.detach(), gradient(loss, module)))
    (exact, expected), (loss, ours) = found
    assert expected.norm() > 0
    return [abs(loss / exact - 1).item(), ((ours - expected).norm() / expected.norm()).item()]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("estimator", "num_probes"), [("ratio", 1), ("unbiased", 2), ("jackknife", 2)])
def test_both_routes_agree(network: nn.Module, metric: str, estimator: str, num_probes: int) -> None:
    options = {"metric": metric, "estimator": estimator, "num_probes": num_probes}
    value, slope = routes_differ(network, noise(5, 6), network, **options)
    assert value < 1e-8
    assert slope < 1e-7


@pytest.mark.parametrize("route", ROUTES)
def test_loss_and_gradient_are_those_of_the_dense_oracle(network: nn.Module, route: str) -> None:
    """All unit vectors of ℝⁿ, times √n, are probes whose mean is the trace itself."""
    x, n = noise(3, 6), 6
    probes = n**0.5 * torch.eye(n, dtype=torch.float64)[:, None].expand(n, 3, n)
    first, second = trace_samples(network, x, metric="euclidean", probes=probes, route=route)
    loss, exact = second.mean() / first.mean().square(), exact_isometry_loss(network, x, metric="euclidean")
    torch.testing.assert_close(loss, exact, rtol=1e-8, atol=0)
    expected = gradient(exact, network)
    assert (gradient(loss, network) - expected).norm() < 1e-7 * expected.norm()


def test_the_routes_agree_on_the_course_s_encoder_in_float32() -> None:
    """About 10⁻³, as the documentation states, with room."""
    unet = build_unet("digits16", resolution=8, channels=3)
    value, slope = routes_differ(lambda z: encode(unet, z, 600), noise(4, 3, 8, 8).float(), unet)
    assert value < 2e-3
    assert 0 < slope < 5e-3


def test_layers_draw_alike_at_every_evaluation() -> None:
    """Were dropout drawn anew, a difference would divide a change of order one by the step."""
    network = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, 4)).double().train()
    assert routes_differ(network, noise(5, 6), network)[1] < 1e-6


def test_without_gradients_the_values_are_the_same(network: nn.Module) -> None:
    options = {"probes": noise(2, 5, 6, seed=1), "route": "differences"}
    with torch.no_grad():
        detached = trace_samples(network, noise(5, 6), **options)
    for a, b in zip(trace_samples(network, noise(5, 6), **options), detached, strict=True):
        assert torch.equal(a, b)
        assert (a.requires_grad, b.requires_grad) == (True, False)


def test_a_map_that_is_flat_somewhere_gives_no_nan(network: nn.Module) -> None:
    mask = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    loss = isometry_loss(lambda z: mask * network(z), noise(2, 6), generator=generator(), route="differences")
    assert gradient(loss, network).isfinite().all()


NET, X = nn.Tanh(), noise(2, 6, seed=1)
test_bad_input_is_refused = refusals(
    (lambda: isometry_loss(NET, X, metric="spherical"), r"metric must be one of .*'stereographic'.*got 'spherical'"),
    (lambda: exact_isometry_loss(NET, X, metric="spherical"), "metric must be one of"),
    (lambda: isometry_loss(NET, X, estimator="median"), r"estimator must be one of .*'ratio'.*got 'median'"),
    (lambda: isometry_loss(NET, X, route="forward"), r"route must be one of .*'differences'.*got 'forward'"),
    (lambda: isometry_loss(NET, X, num_probes=0), "at least 1 for the ratio estimator, got 0"),
    (lambda: isometry_loss(NET, X, estimator="jackknife"), "at least 2 for the jackknife estimator, got 1"),
    (lambda: isometry_loss(NET, X / 0), "x must be finite, got 12 NaN"),
    (lambda: isometry_loss(NET, X, generator=torch.Generator().manual_seed(1)), "another seed"),
    (lambda: isometry_loss(NET, 0 * X, metric="euclidean", route="differences"), "zero in row 0"),
    (lambda: isometry_loss(NET, torch.eye(6)[5:], metric="chart_identity"), "pole"),
    (lambda: isometry_loss(NET, X[:, :1]), "at least n = 2 dimensions"),
    (lambda: trace_samples(NET, X, probes=noise(1, 3, 6)), r"\(K, 2, 6\), got \(1, 3, 6\)"),
    (lambda: anisotropy(0.5, 1, 3), "n = 1 and m = 3"),
    *((lambda r=r: isometry_loss(lambda z: NET(z).detach(), X, route=r), "detached") for r in ROUTES),
    *((lambda r=r: isometry_loss(lambda z: NET(z)[:1], X, route=r), "2 rows to 2 rows") for r in ROUTES),
)
