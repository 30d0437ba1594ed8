r"""The Fisher–Rao metric on noisy points and their noise levels (Karczewski et al. 2025): lengths without simulation.

A point of spacetime is x with the log signal-to-noise ratio ρ = log α²/σ², α² + σ² = 1. It stands for what is then
known of the clean image, p(x₀ | x), an exponential family with natural and expectation parameters

    η = (α x/σ², −α²/2σ²),    μ = (E[x₀|x], E[‖x₀‖²|x]) = (x̂₀, ‖x̂₀‖² + σ²/α tr ∂x̂₀/∂x),

so that the length of a curve is ∫ √⟨dη, dμ⟩. The energy of N segments is N/2 Σ ⟨Δη, Δμ⟩. A clean image is a point of
large ρ; a geodesic between two rises to where they are not told apart any more.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from isodiff.geometry.sphere import require_at_least, require_batch, require_same_shape
from isodiff.geometry.trace import sample_probes

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""Noisy points (M, *S) and their ρ (M,) to E[x₀|x], (M, *S), twice differentiable."""


@dataclasses.dataclass(frozen=True)
class SpacetimeCurve:
    """Curves through spacetime and what they cost."""

    points: Tensor  # (B, N + 1, *S)
    rho: Tensor  # (B, N + 1), log signal-to-noise ratios
    energy: Tensor  # (B,)
    length: Tensor  # (B,), of segments whose squared length is not negative
    negative: int  # segments whose estimated squared length is; 0 where the estimates are stable
    converged: bool  # whether at the end no derivative of the energy is above a hundredth of it


def signal(rho: Tensor) -> tuple[Tensor, Tensor]:
    """Return α and σ of log signal-to-noise ratios."""
    return rho.sigmoid().sqrt(), (-rho).sigmoid().sqrt()


def posterior_parameters(
    denoiser: Denoiser, x: Tensor, rho: Tensor, probes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return η and μ of p(x₀|x), (M, n + 1) each, of x (M, *S) and ρ (M,); the trace by probes (K, M, *S), or exact."""
    shape = (-1, *[1] * (x.ndim - 1))
    alpha, sigma = (part.view(shape) for part in signal(rho))
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        x = x if x.requires_grad else x.detach().requires_grad_()
        clean = denoiser(x, rho)
        if probes is None:
            units = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
            probes = torch.stack([unit.expand(len(x), -1).reshape(x.shape) for unit in units])
            scale = 1.0
        else:
            scale = 1 / len(probes)
        pulled = (torch.autograd.grad(clean, x, v, create_graph=True)[0] for v in probes)
        trace = scale * sum((v * p).flatten(1).sum(1) for v, p in zip(probes, pulled, strict=True))
    alpha, sigma = alpha.flatten(), sigma.flatten()
    eta = torch.cat([(alpha / sigma**2).view(-1, 1) * x.flatten(1), (-(alpha**2) / (2 * sigma**2))[:, None]], 1)
    second = clean.flatten(1).square().sum(1) + sigma**2 / alpha * trace
    return eta, torch.cat([clean.flatten(1), second[:, None]], 1)


def squared_steps(denoiser: Denoiser, points: Tensor, rho: Tensor, probes: Tensor | None = None) -> Tensor:
    """Return ⟨Δη, Δμ⟩ of each segment of curves (B, N + 1, *S) with ρ (B, N + 1), (B, N).

    `probes` (K, *S) are shared by all nodes of all curves, so that the estimate of a difference is one of one quantity.
    """
    flat = points.flatten(0, 1)
    shared = None if probes is None else probes[:, None].expand(-1, len(flat), *probes.shape[1:])
    eta, mu = (z.unflatten(0, rho.shape) for z in posterior_parameters(denoiser, flat, rho.flatten(), shared))
    return (eta.diff(dim=1) * mu.diff(dim=1)).sum(2)


def spacetime_geodesic(
    denoiser: Denoiser,
    a: Tensor,
    b: Tensor,
    *,
    rho: float = 4.0,
    lowest: float = -4.0,
    num_segments: int = 16,
    num_probes: int | None = None,
    iterations: int = 500,
    generator: torch.Generator | None = None,
) -> SpacetimeCurve:
    """Search the shortest curve between rows of a and b (B, *S), both at the log signal-to-noise ratio `rho`.

    It begins as the straight line between them that dips halfway to `lowest`, a bound on ρ as well, and descends the
    energy in points and levels by L-BFGS. With `num_probes` traces are estimated, by the same probes throughout.
    """
    require_batch(a, "a")
    require_same_shape(b, a, "b", "a")
    require_at_least(2, num_segments=num_segments)
    if not lowest < rho:
        raise ValueError(f"lowest must be below rho; got {lowest} and {rho}")
    draw = {"distribution": "rademacher", "generator": generator, "dtype": a.dtype, "device": a.device}
    probes = None if num_probes is None else sample_probes((num_probes, *a.shape[1:]), **draw)
    u = torch.linspace(0, 1, num_segments + 1, dtype=a.dtype, device=a.device)[1:-1]
    along = u.view(1, -1, *[1] * (a.ndim - 1))
    inner = ((1 - along) * a[:, None] + along * b[:, None]).clone().requires_grad_()
    dip = (rho - (rho - lowest) / 2 * (torch.pi * u).sin()).repeat(len(a), 1)
    share = (dip - lowest) / (rho - lowest)  # in (0, 1]; kept there by a logistic function
    level = (share.clamp(1e-3, 1 - 1e-3)).logit().contiguous().requires_grad_()

    def curve() -> tuple[Tensor, Tensor]:
        ends = torch.full((len(a), 1), rho, dtype=a.dtype, device=a.device)
        levels = lowest + (rho - lowest) * level.sigmoid()
        return torch.cat([a[:, None], inner, b[:, None]], 1), torch.cat([ends, levels, ends], 1)

    search = {"max_iter": iterations, "history_size": 20, "line_search_fn": "strong_wolfe", "tolerance_change": 1e-12}
    optimizer = torch.optim.LBFGS([inner, level], **search)

    def descend() -> Tensor:
        optimizer.zero_grad()
        energy = num_segments / 2 * squared_steps(denoiser, *curve(), probes).sum()
        inner.grad, level.grad = (g.contiguous() for g in torch.autograd.grad(energy, (inner, level)))
        return energy.detach()

    optimizer.step(descend)
    points, levels = (part.detach() for part in curve())
    squares = squared_steps(denoiser, points, levels, probes).detach()
    energy, length = num_segments / 2 * squares.sum(1), squares.clamp_min(0).sqrt().sum(1)
    descend()
    rest = all(bool(part.grad.abs().max() <= 1e-2 * energy.abs().min()) for part in (inner, level))
    return SpacetimeCurve(points, levels, energy, length, int((squares < 0).sum()), rest)
