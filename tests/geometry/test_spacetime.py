"""Fisher–Rao in spacetime: the closed form for Gaussian data, by exact and by estimated traces."""

import math

import pytest
import torch
from torch import Tensor

from isodiff.geometry import spacetime_geodesic
from isodiff.geometry.spacetime import posterior_parameters, signal

from .tensors import noise, refusals

S = 1.5  # standard deviation of the data


def _denoiser(x: Tensor, rho: Tensor) -> Tensor:
    alpha, sigma = (part.view(-1, 1) for part in signal(rho))
    return alpha * S**2 * x / (alpha**2 * S**2 + sigma**2)


def _points(n: int) -> tuple[Tensor, Tensor]:
    return tuple(noise(2, 2, n, seed=n))


def _distance(a: Tensor, b: Tensor, rho: float) -> Tensor:
    """Between N(m, τ² I) and N(m′, τ² I), √(2n) arcosh(1 + ‖m − m′‖²/(4 n τ²)) (Atkinson and Mitchell 1981)."""
    n, level = a.shape[1], torch.full((len(a),), rho, dtype=a.dtype)
    alpha, sigma = (float(part) for part in signal(level[0]))
    tau2 = S**2 * sigma**2 / (alpha**2 * S**2 + sigma**2)
    gap = (_denoiser(a, level) - _denoiser(b, level)).square().sum(1)
    return math.sqrt(2 * n) * (1 + gap / (4 * n * tau2)).acosh()


def test_parameters_are_mean_and_second_moment_of_the_posterior() -> None:
    x, rho = _points(3)[0], torch.tensor([0.5, -1.0], dtype=torch.float64)
    alpha, sigma = signal(rho)
    eta, mu = posterior_parameters(_denoiser, x, rho)
    tau2 = S**2 * sigma**2 / (alpha**2 * S**2 + sigma**2)
    mean = _denoiser(x, rho)
    torch.testing.assert_close(mu[:, :3].detach(), mean)
    torch.testing.assert_close(mu[:, 3].detach(), mean.square().sum(1) + 3 * tau2)
    torch.testing.assert_close(eta.detach(), torch.cat([(alpha / sigma**2)[:, None] * x, (-rho.exp() / 2)[:, None]], 1))


@pytest.mark.parametrize("num_probes", [None, 3])
@pytest.mark.parametrize("n", [2, 4])
def test_the_geodesic_of_gaussian_data_has_the_closed_length(n: int, num_probes: int | None) -> None:
    a, b = _points(n)
    found = spacetime_geodesic(_denoiser, a, b, rho=2.0, lowest=-6.0, num_segments=40, num_probes=num_probes)
    coarse = spacetime_geodesic(_denoiser, a, b, rho=2.0, lowest=-6.0, num_segments=20, num_probes=num_probes)
    errors = [(curve.length / _distance(a, b, 2.0) - 1).abs().max() for curve in (coarse, found)]
    assert errors[1] < 0.007
    assert errors[1] < 0.5 * errors[0]
    assert found.negative == 0
    assert found.converged
    assert not spacetime_geodesic(_denoiser, a, b, rho=2.0, lowest=-6.0, num_probes=num_probes, iterations=3).converged
    assert (found.rho[:, 1:-1] < 2).all()  # it rises to where the two are told apart less
    torch.testing.assert_close(found.energy, found.length**2 / 2, rtol=5e-3, atol=0)  # at constant speed


A, B = _points(2)
test_bad_input_is_refused = refusals(
    (lambda: spacetime_geodesic(_denoiser, A, B, rho=1.0, lowest=2.0), "lowest must be below rho"),
    (lambda: spacetime_geodesic(_denoiser, A, B, num_segments=1), "num_segments must be at least 2"),
)
