"""Hutchinson's estimator against exact traces, its variance law, and its standard error."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from isodiff.geometry import hutchinson, sample_probes

from .tensors import noise


def matrix(n: int, *, symmetric: bool) -> Tensor:
    a = noise(n, n, seed=1234)
    return a @ a.mT if symmetric else a


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("num_probes", [100, 1000, 10_000])
@pytest.mark.parametrize("symmetric", [True, False])
def test_estimate_is_within_three_standard_errors(
    distribution: str, num_probes: int, symmetric: bool, generator: torch.Generator
) -> None:
    a = matrix(12, symmetric=symmetric)
    probes = sample_probes((num_probes, 12), distribution=distribution, generator=generator, dtype=torch.float64)
    estimate = hutchinson(lambda v: v @ a.mT, probes)
    assert abs(estimate.mean - a.trace()) < 3 * estimate.standard_error


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_variance_of_one_probe_obeys_its_law(distribution: str, generator: torch.Generator) -> None:
    a = matrix(6, symmetric=True)
    off_diagonal = a - a.diag().diag() if distribution == "rademacher" else a
    variance = 2 * off_diagonal.square().sum()
    probes = sample_probes((200_000, 6), distribution=distribution, generator=generator, dtype=torch.float64)
    measured = hutchinson(lambda v: v @ a, probes).standard_error.square() * len(probes)
    assert measured == pytest.approx(variance.item(), rel=0.03)


def test_estimate_is_differentiable(generator: torch.Generator) -> None:
    scale = torch.tensor(2.0, requires_grad=True)
    probes = sample_probes((50, 3), distribution="rademacher", generator=generator)
    hutchinson(lambda v: scale * v, probes).mean.backward()
    assert scale.grad.item() == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hutchinson(lambda v: v, torch.ones(3)), r"\(N, n\), got shape \(3,\)"),
        (lambda: hutchinson(lambda v: v[:, :1], torch.ones(2, 3)), r"keep the shape \(2, 3\), got \(2, 1\)"),
        (lambda: sample_probes((2, 3), distribution="uniform"), "'gaussian', 'rademacher'.*'uniform'"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
