"""Hutchinson's estimator: the trace of a matrix from products with random vectors; and a dimension told by a trace.

For a matrix ``A`` and a random vector ``v`` with ``E[v vᵀ] = I``, ``E[vᵀ A v] = Tr A`` (Hutchinson 1989). For symmetric
``A``, one probe has variance ``2‖A‖²`` (Frobenius) if Gaussian, and ``2(‖A‖² − Σᵢ Aᵢᵢ²)`` if Rademacher.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from isodiff.geometry.jacobian import Linearisation, Map
from isodiff.geometry.sphere import require_at_least, require_option

Distribution = Literal["gaussian", "rademacher"]


class TraceEstimate(NamedTuple):
    """The mean over the probes and its standard error, scalars; the error falls as 1/√N and is NaN for one probe."""

    mean: Tensor
    standard_error: Tensor


def hutchinson(matvec: Callable[[Tensor], Tensor], probes: Tensor) -> TraceEstimate:
    """Estimate ``Tr A ≈ 1/N Σᵢ vᵢᵀ A vᵢ``, differentiable; ``matvec`` is ``v ↦ A v`` on all probes at once, (N, n).

    >>> hutchinson(lambda v: v * torch.tensor([1.0, 2.0, 3.0]), sample_probes((9, 3), distribution="rademacher")).mean
    tensor(6.)
    """
    if probes.ndim != 2 or len(probes) == 0:
        raise ValueError(f"probes must be a non-empty tensor of shape (N, n), got shape {tuple(probes.shape)}")
    products = matvec(probes)
    if products.shape != probes.shape:
        raise ValueError(f"matvec must keep the shape {tuple(probes.shape)}, got {tuple(products.shape)}")
    samples = (probes * products).sum(dim=1)
    mean, count = samples.mean(), len(samples)
    variance = (samples - mean).square().sum() / (count - 1 or math.nan)
    return TraceEstimate(mean, (variance / count).sqrt())


def sample_probes(
    shape: Sequence[int],
    *,
    distribution: Distribution = "gaussian",
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw random vectors with zero mean and unit covariance: standard normal, or fair signs.

    They are drawn where the generator is, so that one on the CPU gives the same probes on every device.
    """
    require_option(distribution, Distribution, "distribution")
    source = {"generator": generator, "device": generator.device if generator is not None else device}
    if distribution == "gaussian":
        return torch.randn(tuple(shape), dtype=dtype, **source).to(device)
    return (2.0 * torch.randint(0, 2, tuple(shape), **source).to(dtype) - 1.0).to(device)


@torch.no_grad()
def local_dimension(
    score: Map, x: Tensor, *, sigma: float, num_probes: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Return n + σ² (tr ∂s/∂x + ‖s‖²) at x = αx₀, no noise added (Kamkari et al. 2024), (B, *S) → (B,).

    `score` is that of α x₀ + σ ε. At the mean of a Gaussian with variances λᵢ it is Σ α²λᵢ/(α²λᵢ + σ²): a direction
    counts as far as it is wider than the noise. At noisy points its mean is n whatever the data are. The trace is exact
    by n products, or Hutchinson's estimate with so many Rademacher probes.
    """
    at_x = Linearisation(score, x)
    n = x[0].numel()
    if num_probes is None:
        units = torch.eye(n, dtype=x.dtype, device=x.device)
        probes = (u.expand(len(x), -1).reshape(x.shape) for u in units)
    else:
        require_at_least(1, num_probes=num_probes)
        options = {"distribution": "rademacher", "generator": generator, "dtype": x.dtype, "device": x.device}
        probes = (sample_probes(x.shape, **options) for _ in range(num_probes))
    products = sum((v * at_x.jvp(v)).flatten(1).sum(1) for v in probes)
    trace = products if num_probes is None else products / num_probes
    return n + sigma**2 * (trace + at_x.value.flatten(1).square().sum(1))
