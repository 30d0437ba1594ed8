"""The dimension of data near a point, from the score alone: FLIPD (Kamkari et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from isodiff.geometry.jacobian import Linearisation
from isodiff.geometry.riemann import Score
from isodiff.geometry.sphere import require_at_least
from isodiff.geometry.trace import sample_probes


@torch.no_grad()
def local_dimension(
    score: Score, x: Tensor, *, sigma: float, num_probes: int | None = None, generator: torch.Generator | None = None
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
