"""Hutchinson's estimator: exact traces, its variance law, its standard error; FLIPD on Gaussians and the shell."""

import pytest
import torch

from isodiff.geometry import LowRankGaussian, NoisyShell, hutchinson, local_dimension, sample_probes

from .tensors import noise, refusals


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_mean_and_variance_of_one_probe_obey_their_laws(distribution: str, generator: torch.Generator) -> None:
    """The estimate is the trace whatever the matrix; 2 ‖·‖² of its symmetric part is its variance."""
    a = noise(6, 6, seed=1234)
    symmetric = (a + a.mT) / 2
    probes = sample_probes((200_000, 6), distribution=distribution, generator=generator, dtype=torch.float64)
    estimate = hutchinson(lambda v: v @ a.mT, probes)
    assert abs(estimate.mean - a.trace()) < 3 * estimate.standard_error
    counted = symmetric - symmetric.diag().diag() if distribution == "rademacher" else symmetric
    variance = estimate.standard_error.square() * len(probes)
    assert variance == pytest.approx(2 * counted.square().sum().item(), rel=0.03)


def test_estimate_is_differentiable(generator: torch.Generator) -> None:
    scale = torch.tensor(2.0, requires_grad=True)
    probes = sample_probes((50, 3), distribution="rademacher", generator=generator)
    hutchinson(lambda v: scale * v, probes).mean.backward()
    assert scale.grad.item() == pytest.approx(3.0)


test_bad_input_is_refused = refusals(
    (lambda: hutchinson(lambda v: v, torch.ones(3)), r"\(N, n\), got shape \(3,\)"),
    (lambda: hutchinson(lambda v: v[:, :1], torch.ones(2, 3)), r"keep the shape \(2, 3\), got \(2, 1\)"),
    (lambda: sample_probes((2, 3), distribution="uniform"), "'gaussian', 'rademacher'.*'uniform'"),
)


DRAW = torch.Generator().manual_seed(0)
BASIS = torch.linalg.qr(torch.randn(20, 4, generator=DRAW, dtype=torch.float64))[0]


def _gaussian(sigma: float) -> LowRankGaussian:
    return LowRankGaussian(sigma=sigma, basis=BASIS, variances=torch.tensor([4.0, 1.0, 0.25, 0.01]).double())


@pytest.mark.parametrize("sigma", [0.01, 0.3, 3.0])
def test_at_the_mean_of_a_gaussian_directions_count_as_far_as_they_are_wider_than_noise(sigma: float) -> None:
    score = _gaussian(sigma)
    found = local_dimension(score, torch.zeros(1, 20, dtype=torch.float64), sigma=sigma).item()
    assert found == pytest.approx((score.variances / (score.variances + sigma**2)).sum().item(), abs=1e-9)


def test_on_the_shell_it_is_that_of_the_radial_score() -> None:
    """It is n + σ² (f′ + (n − 1) f/r + f²), which tends to n − 1, the dimension of the sphere, as the noise falls."""
    for dimension in (2, 3):
        x = torch.eye(1, dimension, dtype=torch.float64)
        found = [
            local_dimension(NoisyShell(sigma=s, shell_dimension=dimension), x, sigma=s).item() for s in (0.3, 0.03)
        ]
        assert found[1] == pytest.approx(dimension - 1, abs=0.01)
        assert abs(found[0] - (dimension - 1)) > abs(found[1] - (dimension - 1))


def test_at_noisy_points_its_mean_is_n() -> None:
    score = _gaussian(0.3)
    x = score.sample(4000, torch.Generator().manual_seed(2))
    found = local_dimension(score, x, sigma=0.3)
    assert found.mean().item() == pytest.approx(20, abs=4 * found.std().item() / 4000**0.5)


def test_probes_estimate_the_exact_trace() -> None:
    score, x = _gaussian(0.3), torch.randn(3, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    exact, options = local_dimension(score, x, sigma=0.3), {"num_probes": 4000, "generator": torch.Generator()}
    torch.testing.assert_close(local_dimension(score, x, sigma=0.3, **options), exact, atol=0.1, rtol=0)
    with pytest.raises(ValueError, match="num_probes must be at least 1"):
        local_dimension(score, x, sigma=0.3, num_probes=0)
