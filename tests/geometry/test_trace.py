"""Hutchinson's estimator against exact traces, its variance law, and its standard error."""

import pytest
import torch

from isodiff.geometry import hutchinson, sample_probes

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
