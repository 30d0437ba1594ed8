"""Hutchinson's estimator against exact traces, its variance law, and its standard error."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from isodiff.geometry import hutchinson, sample_probes


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matrix(n: int, *, symmetric: bool) -> Tensor:
    a = torch.randn(n, n, generator=generator(1234), dtype=torch.float64)
    return a @ a.mT if symmetric else a


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("num_probes", [100, 1000, 10_000])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_estimate_is_within_three_standard_errors(
    distribution: str, num_probes: int, symmetric: bool, seed: int
) -> None:
    a = matrix(12, symmetric=symmetric)
    probes = sample_probes((num_probes, 12), distribution=distribution, generator=generator(seed), dtype=torch.float64)
    estimate = hutchinson(lambda v: v @ a.mT, probes)
    assert abs(estimate.mean - a.trace()) < 3 * estimate.standard_error


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_variance_of_one_probe_obeys_its_law(distribution: str) -> None:
    a = matrix(6, symmetric=True)
    off_diagonal = a - a.diag().diag() if distribution == "rademacher" else a
    variance = 2 * off_diagonal.square().sum()
    probes = sample_probes((200_000, 6), distribution=distribution, generator=generator(0), dtype=torch.float64)
    measured = hutchinson(lambda v: v @ a, probes).standard_error.square() * len(probes)
    assert measured == pytest.approx(variance.item(), rel=0.03)


def test_rademacher_is_exact_for_a_diagonal() -> None:
    probes = sample_probes((5, 3), distribution="rademacher", generator=generator(0), dtype=torch.float64)
    estimate = hutchinson(lambda v: v * torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), probes)
    assert estimate.mean.item() == pytest.approx(7.0, abs=1e-12)
    assert estimate.standard_error.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_probes_have_zero_mean_and_unit_covariance(distribution: str) -> None:
    probes = sample_probes((100_000, 4), distribution=distribution, generator=generator(0), dtype=torch.float64)
    tolerance = 5 / math.sqrt(len(probes))
    assert probes.mean(0).abs().max() < tolerance
    assert (probes.mT @ probes / len(probes) - torch.eye(4)).abs().max() < math.sqrt(2) * tolerance


def test_probes_repeat_with_their_seed() -> None:
    first, second = (sample_probes((3, 4), generator=generator(7)) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_estimate_is_differentiable() -> None:
    scale = torch.tensor(2.0, requires_grad=True)
    probes = sample_probes((50, 3), distribution="rademacher", generator=generator(0))
    hutchinson(lambda v: scale * v, probes).mean.backward()
    assert scale.grad.item() == pytest.approx(3.0)


def test_one_probe_has_no_standard_error() -> None:
    assert hutchinson(lambda v: v, torch.ones(1, 3)).standard_error.isnan()


def test_hutchinson_refuses_other_ranks() -> None:
    with pytest.raises(ValueError, match=r"\(N, n\), got shape \(3,\)"):
        hutchinson(lambda v: v, torch.ones(3))


def test_hutchinson_refuses_an_empty_set() -> None:
    with pytest.raises(ValueError, match="non-empty"):
        hutchinson(lambda v: v, torch.ones(0, 3))


def test_hutchinson_refuses_a_product_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"keep the shape \(2, 3\), got \(2, 1\)"):
        hutchinson(lambda v: v[:, :1], torch.ones(2, 3))


def test_unknown_distribution_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'gaussian', 'rademacher'.*'uniform'"):
        sample_probes((2, 3), distribution="uniform")
