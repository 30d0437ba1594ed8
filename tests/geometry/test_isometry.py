"""The scaled-isometry loss: identities, the oracle, bias and gradient, and what may not be passed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from isodiff.geometry import (
    exact_isometry_loss,
    inverse_stereographic,
    isometry_loss,
    isotropy,
    stereographic,
)
from isodiff.geometry.isometry import _ESTIMATORS

METRICS = ("stereographic", "chart_identity", "euclidean")
ESTIMATORS = ("ratio", "unbiased", "jackknife")


def generator(seed: int = 0) -> torch.Generator:
    """Return a source of probes, never in the state that drew the points."""
    return torch.Generator().manual_seed(1000 + seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).double()


def traces_in_the_chart(f: Callable[[Tensor], Tensor], x: Tensor, *, flat: bool) -> tuple[Tensor, Tensor]:
    """Return Tr R and Tr R² by the paper's definition: autograd through Π⁻¹ and the metric G by autograd too."""
    first, second = [], []
    for row in x:
        radius = row.norm()
        z = stereographic(row[None], radius)[0]

        def embed(p: Tensor, radius: Tensor = radius) -> Tensor:
            return inverse_stereographic(p[None], radius)[0]

        j = torch.autograd.functional.jacobian(lambda p, e=embed: f(e(p)[None])[0], z, create_graph=True)
        d = torch.autograd.functional.jacobian(embed, z)
        metric = torch.eye(len(z), dtype=x.dtype) if flat else d.mT @ d
        r = torch.linalg.solve(metric, j.mT @ j)
        first.append(r.trace())
        second.append((r @ r).trace())
    return torch.stack(first), torch.stack(second)


@pytest.mark.parametrize("metric", ["stereographic", "chart_identity"])
def test_tangent_projection_equals_the_chart(network: nn.Module, metric: str) -> None:
    x = noise(5, 6)
    first, second = traces_in_the_chart(network, x, flat=metric == "chart_identity")
    chart = second.mean() / first.mean().square()
    ours = exact_isometry_loss(network, x, metric=metric)
    torch.testing.assert_close(ours, chart, rtol=0, atol=1e-10)
    parameters = [p for p in network.parameters() if p.ndim == 2]
    for one, other in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(chart, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_the_three_metrics_differ_on_the_two_sphere_and_agree_at_image_size() -> None:
    small = [exact_isometry_loss(nn.Tanh(), noise(8, 3), metric=m).item() for m in METRICS]
    assert max(small) / min(small) > 1.2
    x, weights = noise(8, 3072), noise(5, 3072, seed=1)
    large = [exact_isometry_loss(lambda z: z @ weights.mT, x, metric=m).item() for m in METRICS]
    assert max(large) / min(large) < 1.005


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_chart_identity_inflates_the_loss_by_the_spread_of_its_factor(estimator: str) -> None:
    # For an isometry R = G·I, so the loss is mean G² / (mean G)² / (n − 1).
    x = noise(50, 4)
    factor = (1 - x[:, -1] / x.norm(dim=1)) ** 2
    expected = factor.square().mean() / factor.mean().square() / 3
    torch.testing.assert_close(exact_isometry_loss(lambda z: z, x, metric="chart_identity"), expected)
    ours = isometry_loss(
        lambda z: z, x, metric="chart_identity", estimator=estimator, num_probes=400, generator=generator()
    )
    assert ours.item() == pytest.approx(expected.item(), rel=0.03)


@pytest.mark.parametrize(("n", "m"), [(3, 3), (5, 8), (8, 8)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_scaled_isometry_attains_the_bound(n: int, m: int, scale: float) -> None:
    q = scale * torch.linalg.qr(noise(m, n))[0]
    x = noise(6, n, seed=1)
    loss = exact_isometry_loss(lambda z: z @ q.mT, x)
    assert loss.item() == pytest.approx(1 / (n - 1), abs=1e-10)
    assert isotropy(loss, n, m).item() == pytest.approx(1.0, abs=1e-10)
    euclidean = exact_isometry_loss(lambda z: z @ q.mT, x, metric="euclidean")
    assert isotropy(euclidean, n, m, metric="euclidean").item() == pytest.approx(1.0, abs=1e-10)


def test_an_isometry_onto_fewer_dimensions_attains_one_over_their_number() -> None:
    # Rows of J orthonormal and orthogonal to x: R is a projection of rank m.
    x = torch.zeros(1, 6, dtype=torch.float64)
    x[0, 5] = -2.0
    assert exact_isometry_loss(lambda z: z[:, :3], x).item() == pytest.approx(1 / 3, abs=1e-10)
    assert isotropy(1 / 3, 6, 3) == 1.0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_scaling_the_output_changes_nothing(network: nn.Module, metric: str, estimator: str) -> None:
    x = noise(4, 6)
    exact = [exact_isometry_loss(lambda z, c=c: c * network(z), x, metric=metric) for c in (1.0, -37.5)]
    torch.testing.assert_close(*exact, rtol=0, atol=1e-10)
    options = {"metric": metric, "estimator": estimator, "num_probes": 3}
    ours = [isometry_loss(lambda z, c=c: c * network(z), x, **options, generator=generator()) for c in (1.0, -37.5)]
    torch.testing.assert_close(*ours, rtol=0, atol=1e-10)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_regulariser_reaches_the_parameters(network: nn.Module, metric: str, estimator: str) -> None:
    x, parameters = noise(8, 6), [p for p in network.parameters() if p.ndim == 2]
    direction = [noise(*p.shape, seed=3) for p in parameters]

    def ours() -> Tensor:
        return isometry_loss(network, x, metric=metric, estimator=estimator, num_probes=300, generator=generator())

    def exact() -> Tensor:
        return exact_isometry_loss(network, x, metric=metric)

    def by_differences(loss: Callable[[], Tensor], step: float = 1e-5) -> float:
        values = []
        for sign in (1, -2):
            with torch.no_grad():
                for p, d in zip(parameters, direction, strict=True):
                    p += sign * step * d
            values.append(loss().item())
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += step * d
        return (values[0] - values[1]) / (2 * step)

    gradients = torch.autograd.grad(ours(), parameters)
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True)).item()
    assert slope == pytest.approx(by_differences(ours), rel=1e-5)
    # Its expectation is the gradient of the exact loss: 2,400 probes leave a few per cent of noise.
    assert slope == pytest.approx(by_differences(exact), rel=0.15)
    oracle = torch.cat([g.flatten() for g in torch.autograd.grad(exact(), parameters)])
    found = torch.cat([g.flatten() for g in gradients])
    assert (found - oracle).norm() < 0.15 * oracle.norm()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_row_changes_the_loss(network: nn.Module, metric: str, estimator: str) -> None:
    x = noise(5, 6)
    options = {"metric": metric, "estimator": estimator, "num_probes": 2}
    before = isometry_loss(network, x, **options, generator=generator())
    exact_before = exact_isometry_loss(network, x, metric=metric)
    for row in range(5):
        moved = x.clone()
        moved[row] += 0.5 * noise(6, seed=9)
        after = isometry_loss(network, moved, **options, generator=generator())
        assert abs(after / before - 1) > 1e-6
        assert abs(exact_isometry_loss(network, moved, metric=metric) / exact_before - 1) > 1e-6


def linear_map(rows: int, n: int, m: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return Jacobians (B, m, n), one per row, and the map that has them."""
    jacobians = noise(rows, m, n, seed=7).requires_grad_()
    return jacobians, lambda z: torch.einsum("bmn,bn->bm", jacobians, z)


def samples_of_traces(jacobians: Tensor, x: Tensor, repeats: int) -> tuple[Tensor, Tensor]:
    """Draw q₁ = ‖J v‖² and q₂ = ‖P JᵀJ v‖² by dense algebra, (B, repeats) each."""
    unit = (x / x.norm(dim=1, keepdim=True))[:, None]
    v = noise(len(x), repeats, x.shape[1], seed=2)
    v = v - (v @ unit.mT) * unit
    pushed = v @ jacobians.detach().mT
    pulled = pushed @ jacobians.detach()
    pulled = pulled - (pulled @ unit.mT) * unit
    return pushed.square().sum(2), pulled.square().sum(2)


def test_bias_falls_as_one_over_rows_times_probes() -> None:
    """Compare with the delta method, over 12,000 repetitions a point.

    With N and D the means of q₂ and q₁ over B·K samples, the bias of N / D² is to first order
    L (3 Var D / D² − 2 Cov(N, D) / (N D)) = L c / (B·K).
    """
    x = noise(4, 12, seed=1)
    jacobians, f = linear_map(4, 12, 6)
    exact = exact_isometry_loss(f, x).detach()
    q1, q2 = samples_of_traces(jacobians, x, 12_000 * 32)
    covariance = ((q1 - q1.mean(1, keepdim=True)) * (q2 - q2.mean(1, keepdim=True))).mean()
    constant = (3 * q1.var(dim=1).mean() / q1.mean() ** 2 - 2 * covariance / (q1.mean() * q2.mean())).item()
    bias = {}
    for num_probes in (2, 8, 32):
        draws = [q[:, : 12_000 * num_probes].reshape(4, 12_000, num_probes).transpose(0, 1) for q in (q1, q2)]
        relative = {name: torch.vmap(_ESTIMATORS[name])(*draws) / exact - 1 for name in ESTIMATORS}
        error = {name: r.std().item() / math.sqrt(12_000) for name, r in relative.items()}
        samples = 4 * num_probes
        bias[samples] = relative["ratio"].mean().item()
        assert abs(bias[samples] - constant / samples) < 3 * error["ratio"] + (constant / samples) ** 2
        assert abs(relative["jackknife"].mean()) < 3 * error["jackknife"] + (constant / samples) ** 2
        assert error["ratio"] < 0.5 * constant / samples, "too few repetitions to see the bias"
    assert abs(bias[128]) < 0.02


def test_loss_is_the_ratio_of_its_samples() -> None:
    jacobians, f = linear_map(4, 12, 6)
    x = noise(4, 12, seed=1)
    v = torch.randn(4, 12, generator=generator(), dtype=torch.float64)
    v = v - (v * x).sum(1, keepdim=True) * x / x.square().sum(1, keepdim=True)
    pushed = torch.einsum("bmn,bn->bm", jacobians, v)
    pulled = torch.einsum("bmn,bm->bn", jacobians, pushed)
    pulled = pulled - (pulled * x).sum(1, keepdim=True) * x / x.square().sum(1, keepdim=True)
    expected = pulled.square().sum(1).mean() / pushed.square().sum(1).mean() ** 2
    torch.testing.assert_close(isometry_loss(f, x, generator=generator()), expected)


def test_squared_error_of_the_gradient_falls_as_one_over_rows_times_probes() -> None:
    jacobians, f = linear_map(4, 12, 6)
    x = noise(4, 12, seed=1)
    (oracle,) = torch.autograd.grad(exact_isometry_loss(f, x), jacobians)
    squared_error = {}
    for num_probes, repeats in ((2, 400), (8, 200), (32, 100)):
        source, squares = generator(num_probes), []
        for _ in range(repeats):
            loss = isometry_loss(f, x, num_probes=num_probes, generator=source)
            (gradient,) = torch.autograd.grad(loss, jacobians)
            squares.append(((gradient - oracle).norm() / oracle.norm()).square().item())
        squared_error[num_probes] = sum(squares) / repeats
    assert 2.5 < squared_error[2] / squared_error[8] < 8
    assert 2.5 < squared_error[8] / squared_error[32] < 8


def test_loss_and_gradient_at_4096_samples_are_within_two_and_five_per_cent(network: nn.Module) -> None:
    x = noise(64, 6)
    parameters = [p for p in network.parameters() if p.ndim == 2]
    exact = exact_isometry_loss(network, x)
    loss = isometry_loss(network, x, num_probes=64, generator=generator())
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    oracle = torch.cat([g.flatten() for g in torch.autograd.grad(exact, parameters)])
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    assert (gradient - oracle).norm() < 0.05 * oracle.norm()


@pytest.mark.parametrize("estimator", ["unbiased", "jackknife"])
def test_other_estimators_agree_with_the_oracle(network: nn.Module, estimator: str) -> None:
    x = noise(64, 6)
    loss = isometry_loss(network, x, estimator=estimator, num_probes=64, generator=generator())
    assert loss.item() == pytest.approx(exact_isometry_loss(network, x).item(), rel=0.02)


def test_probes_repeat_with_their_seed(network: nn.Module) -> None:
    x = noise(4, 6)
    one, same, other = (isometry_loss(network, x, generator=generator(s)).item() for s in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_touch_the_traces(network: nn.Module, dtype: torch.dtype) -> None:
    network, x = network.float(), noise(4, 6).float()
    expected = isometry_loss(network, x, generator=generator())
    expected_gradients = torch.autograd.grad(expected, list(network.parameters()), materialize_grads=True)
    with torch.autocast("cpu", dtype=dtype):
        assert network(x).dtype == dtype
        loss = isometry_loss(network, x, generator=generator())
        exact = exact_isometry_loss(network, x)
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    gradients = torch.autograd.grad(loss, list(network.parameters()), materialize_grads=True)
    torch.testing.assert_close(gradients, expected_gradients, rtol=0, atol=0)
    torch.testing.assert_close(exact, exact_isometry_loss(network, x), rtol=0, atol=0)


def test_half_precision_input_and_output_are_cast_up(network: nn.Module) -> None:
    network, x = network.float(), noise(4, 6).bfloat16()
    loss = isometry_loss(lambda z: network(z).bfloat16(), x, generator=generator())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(isometry_loss(network, x.float(), generator=generator()).item(), rel=0.05)


def test_large_activations_do_not_overflow() -> None:
    loss = isometry_loss(lambda z: 1e4 * z, noise(4, 100).half(), num_probes=100, generator=generator())
    assert loss.item() == pytest.approx(1 / 99, rel=0.1)


def test_double_precision_stays(network: nn.Module) -> None:
    assert isometry_loss(network, noise(4, 6), generator=generator()).dtype == torch.float64


def test_images_and_per_row_conditions_pass_through() -> None:
    weights, condition = noise(5, 3, 4, 4), noise(4, 1, seed=1)
    loss = isometry_loss(
        lambda z: condition * torch.einsum("bchw,mchw->bm", z, weights), noise(4, 3, 4, 4), generator=generator()
    )
    assert loss.isfinite()


def test_unknown_metric_is_refused_by_name(network: nn.Module) -> None:
    for loss in (isometry_loss, exact_isometry_loss):
        with pytest.raises(ValueError, match=r"metric must be one of .*'stereographic'.*got 'spherical'"):
            loss(network, noise(2, 6), metric="spherical")


def test_unknown_estimator_is_refused_by_name(network: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"estimator must be one of .*'ratio'.*got 'median'"):
        isometry_loss(network, noise(2, 6), estimator="median")


@pytest.mark.parametrize(("estimator", "num_probes"), [("ratio", 0), ("unbiased", 1), ("jackknife", 1)])
def test_too_few_probes_are_refused(network: nn.Module, estimator: str, num_probes: int) -> None:
    with pytest.raises(ValueError, match=f"at least {num_probes + 1} for the {estimator} estimator, got {num_probes}"):
        isometry_loss(network, noise(2, 6), estimator=estimator, num_probes=num_probes)


def test_nan_is_refused(network: nn.Module) -> None:
    x = noise(2, 6)
    x[1, 2] = torch.nan
    with pytest.raises(ValueError, match="x must be finite, got 1 NaN"):
        isometry_loss(network, x)


def test_probes_from_the_generator_that_drew_the_points_are_refused(network: nn.Module) -> None:
    with pytest.raises(ValueError, match="another seed"):
        isometry_loss(network, noise(2, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("metric", ["stereographic", "chart_identity"])
def test_zero_is_refused(network: nn.Module, metric: str) -> None:
    with pytest.raises(ValueError, match=r"row 0 is zero|radius must be positive"):
        isometry_loss(network, torch.zeros(2, 6, dtype=torch.float64), metric=metric)


def test_the_pole_is_refused_in_the_chart_only() -> None:
    x = torch.zeros(1, 3, dtype=torch.float64)
    x[0, 2] = 1.0
    with pytest.raises(ValueError, match="pole"):
        isometry_loss(nn.Tanh(), x, metric="chart_identity")
    assert isometry_loss(nn.Tanh(), x, metric="stereographic", generator=generator()).isfinite()


def test_a_vector_without_batch_is_refused(network: nn.Module) -> None:
    with pytest.raises(ValueError, match="rank 2 or more"):
        isometry_loss(network, noise(6))


def test_one_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match="at least n = 2 dimensions"):
        isometry_loss(nn.Tanh(), noise(4, 1))


@pytest.mark.parametrize(("n", "m"), [(1, 3), (3, 0)])
def test_isotropy_refuses_dimensions_out_of_range(n: int, m: int) -> None:
    with pytest.raises(ValueError, match=f"n = {n} and m = {m}"):
        isotropy(0.5, n, m)
