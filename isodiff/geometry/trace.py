"""Hutchinson's estimator: the trace of a matrix from products with random vectors.

For a matrix ``A`` and a random vector ``v`` with ``E[v vᵀ] = I``, ``E[vᵀ A v] = Tr A`` (Hutchinson 1989). For symmetric
``A``, one probe has variance ``2‖A‖²`` (Frobenius) if Gaussian, and ``2(‖A‖² − Σᵢ Aᵢᵢ²)`` if Rademacher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Distribution = Literal["gaussian", "rademacher"]


class TraceEstimate(NamedTuple):
    """A trace and how far to trust it."""

    mean: Tensor
    """Mean over the probes, a scalar."""
    standard_error: Tensor
    """Standard deviation of that mean, estimated from the spread of the probes; NaN for a single probe."""


def hutchinson(matvec: Callable[[Tensor], Tensor], probes: Tensor) -> TraceEstimate:
    """Estimate ``Tr A ≈ 1/N Σᵢ vᵢᵀ A vᵢ``.

    Args:
        matvec: The product ``v ↦ A v``, applied to all probes at once, (N, n) → (N, n).
        probes: Random vectors with zero mean and unit covariance, (N, n).

    Returns:
        The mean over probes and its standard error, which falls as ``1/√N``; differentiable.

    Raises:
        ValueError: If ``probes`` is not of rank 2 or ``matvec`` changes its shape.

    Example:
        >>> probes = sample_probes((1000, 3), distribution="rademacher", generator=torch.Generator().manual_seed(0))
        >>> round(hutchinson(lambda v: v * torch.tensor([1.0, 2.0, 3.0]), probes).mean.item(), 4)
        6.0
    """
    if probes.ndim != 2 or len(probes) == 0:
        raise ValueError(f"probes must be a non-empty tensor of shape (N, n), got shape {tuple(probes.shape)}")
    products = matvec(probes)
    if products.shape != probes.shape:
        raise ValueError(f"matvec must keep the shape {tuple(probes.shape)}, got {tuple(products.shape)}")
    samples = (probes * products).sum(dim=1)
    deviations = samples - samples.mean()
    count = len(samples)
    variance = deviations.square().sum() / (count - 1) if count > 1 else samples.new_tensor(float("nan"))
    return TraceEstimate(samples.mean(), (variance / count).sqrt())


def sample_probes(
    shape: Sequence[int],
    *,
    distribution: Distribution = "gaussian",
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw random vectors with zero mean and unit covariance.

    Args:
        shape: Shape of the result.
        distribution: ``"gaussian"``, standard normal, or ``"rademacher"``, fair signs.
        generator: Source of randomness; torch's global one if not given. Its device is where the numbers are drawn,
            so that a generator on the CPU gives the same probes on every device.
        dtype: Precision of the result.
        device: Where the result goes.

    Returns:
        Probes of the given shape.

    Raises:
        ValueError: If the distribution is unknown.
    """
    source = generator.device if generator is not None else device
    if distribution == "gaussian":
        probes = torch.randn(tuple(shape), generator=generator, dtype=dtype, device=source)
    elif distribution == "rademacher":
        probes = 2.0 * torch.randint(0, 2, tuple(shape), generator=generator, device=source).to(dtype) - 1.0
    else:
        raise ValueError(f"distribution must be one of {get_args(Distribution)}, got {distribution!r}")
    return probes.to(device)
