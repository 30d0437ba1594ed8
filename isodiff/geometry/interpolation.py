r"""Rival interpolations of diffusion latents, each as its authors state it.

Besides `lerp` and `slerp` these are what the tangential metric is compared with (Saito and Matsubara 2025):

| | path | source |
|---|---|---|
| `noise_diffusion` | a weighted sum of clipped latents and of the clean images | Zheng et al. 2024 (NoiseDiffusion) |
| `density_path` | descent towards a geodesic of ``p^{−2α} I`` on the sphere | Yu et al. 2025 (GeodesicDiffusion) |
| `norm_aware_path` | the geodesic of ``(log χₙ(‖x‖))² I``, in `norm_aware` | Samuel et al. 2023 (NAO) |

Where a paper leaves a choice open, the authors' released code decides; every departure is named in a Note.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from isodiff.geometry.jacobian import Map
from isodiff.geometry.sphere import require_batch, require_same_shape, slerp


def noise_diffusion(
    a: Tensor,
    b: Tensor,
    t: float | Tensor,
    *,
    image_a: Tensor,
    image_b: Tensor,
    alpha_bar: float,
    clip: float = 2.0,
    strength: float = 1.2,
    gamma: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Interpolate latents with their images mixed in (NoiseDiffusion, Zheng et al. 2024).

    With α, β = √(1 − γ²) (cos, sin)(πt/2), μ = 1.2 α/(α + β), ν = 1.2 β/(α + β) and latents clipped to ±2,

        x(t) = α x_a + β x_b + (μ − α) √ᾱ image_a + (ν − β) √ᾱ image_b + γ √(1 − ᾱ) ε,

    clipped again, as in the released code.

    Args:
        a: Latents that one image was inverted to, (B, *S).
        b: Those of the other, (B, *S).
        t: Position, from 0 at ``a`` to 1 at ``b``; a number or one per row, (B,).
        image_a: Clean images of ``a``, (B, *S).
        image_b: Clean images of ``b``, (B, *S).
        alpha_bar: ᾱ of the diffusion step of the latents, 0 < ᾱ ≤ 1.
        clip: Largest absolute value of a latent, ``inf`` for none.
        strength: μ + ν.
        gamma: Share γ of fresh noise, 0 ≤ γ < 1.
        generator: Source of ε; torch's global one if not given. Unused for γ = 0.

    Returns:
        Latents, (B, *S), in the precision of ``a``.

    Raises:
        ValueError: If shapes do not fit, values are not finite, or a number is out of its range.

    Note:
        The path does not keep its ends: at t = 0 it is clip(clip(a) + 0.2 √ᾱ image_a). The sum of squared weights of
        the latents is 1 − γ², so norms of independent latents are kept only as far as clipping and images allow.
    """
    for tensor, name in ((a, "a"), (b, "b"), (image_a, "image_a"), (image_b, "image_b")):
        require_batch(tensor, name)
        require_same_shape(tensor, a, name, "a")
    if not 0 < alpha_bar <= 1:
        raise ValueError(f"alpha_bar must lie in (0, 1], got {alpha_bar}")
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma must lie in [0, 1), got {gamma}")
    if not (clip > 0 and strength >= 0):
        raise ValueError(f"clip must be positive and strength not negative, got {clip} and {strength}")
    position = torch.as_tensor(t, dtype=a.dtype, device=a.device)
    if position.shape not in ((), a.shape[:1]) or not ((position >= 0) & (position <= 1)).all():
        raise ValueError(f"t must be a number or {len(a)} of them, from 0 to 1; got {t}")
    angle = position.reshape(-1, *[1] * (a.ndim - 1)) * (math.pi / 2)
    kept = math.sqrt(1 - gamma**2)
    alpha, beta = kept * angle.cos(), kept * angle.sin()
    mu, nu = (strength * weight / (alpha + beta) for weight in (alpha, beta))
    images = (mu - alpha) * image_a + (nu - beta) * image_b
    mixed = alpha * a.clamp(-clip, clip) + beta * b.clamp(-clip, clip) + math.sqrt(alpha_bar) * images
    if gamma > 0:
        noise = torch.randn(a.shape, generator=generator, dtype=a.dtype).to(a.device)
        mixed = mixed + gamma * math.sqrt(1 - alpha_bar) * noise
    return mixed.clamp(-clip, clip)


@torch.no_grad()
def density_path(
    score: Map,
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 0.002,
    sphere: bool = True,
    num_levels: int = 4,
    iterations_per_level: int = 100,
    learning_rate: float = 0.1,
) -> Tensor:
    r"""Bend a path towards high density (GeodesicDiffusion, Yu et al. 2025).

    A geodesic of ``p^{−2α} I`` has ``Π(A/‖V‖²) + α Π ∇log p = 0``, with velocity V, acceleration A and Π the projector
    off V. The control points of a spline take the steps

        X ← X + η Π(∇log p + A/(α ‖V‖²)),        η = lr (1 − k/K)/m   at iteration k of K,

    for all m of them at once; their number is doubled at every level. A level ends early once the second term is on
    average longer than the first. On the sphere the path is a chain of great arcs, ∇log p and A lose their
    radial part, and every step returns to the radius.

    Args:
        score: ∇log p, from (M, *S) to (M, *S) row by row for any M. The default α is for the authors' score, which is
            of the size of −ε_θ and not of −ε_θ/σ.
        a: Start, (B, *S); with ``sphere`` no row zero.
        b: End, (B, *S); likewise.
        alpha: Exponent α > 0 of the density.
        sphere: Stay on the sphere whose radius is the mean of ‖a‖ and ‖b‖, as published; else the spline is cubic.
        num_levels: Number of doublings: L levels leave N = 2ᴸ segments.
        iterations_per_level: K/L.
        learning_rate: lr > 0.

    Returns:
        Control points and ends, (B, 2ᴸ + 1, *S), in the precision of ``a``. On the sphere the ends are ``a`` and ``b``
        scaled to the common radius.

    Raises:
        ValueError: If shapes do not fit, values are not finite, a number is out of its range, or the score returns
            another shape or values that are not finite.

    Note:
        Steps are stable for lr < α ‖V‖²/(6·2ᴸ) and there is no test of convergence, only the rule above: the published
        constants, made for paths of length 100 and more, do not carry over to data of size 1. Text inversion
        and the averaging of the score over neighbouring diffusion steps are not part of this function.
        Costs at most K evaluations of the score a pair, on up to 2ᴸ − 1 rows each; pairs are solved one by one.
    """
    require_batch(a, "a")
    require_batch(b, "b")
    require_same_shape(b, a, "b", "a")
    if not (alpha > 0 and learning_rate > 0):
        raise ValueError(f"alpha and learning_rate must be positive, got {alpha} and {learning_rate}")
    if num_levels < 1 or iterations_per_level < 1:
        raise ValueError(
            f"num_levels and iterations_per_level must be at least 1, got {num_levels} and {iterations_per_level}"
        )
    norms = [x.flatten(1).norm(dim=1) for x in (a, b)]
    if sphere and not all((norm > 0).all() for norm in norms):
        raise ValueError("a and b must have no zero rows, as zero lies on no sphere")

    def flat_score(x: Tensor) -> Tensor:
        rows = x.reshape(-1, *a.shape[1:])
        value = score(rows)
        require_same_shape(value, rows, "score(x)", "x")
        if not torch.isfinite(value).all():
            raise ValueError("score(x) must be finite; it is not along the path: a smaller learning_rate may help")
        return value.flatten(1)

    paths = []
    for x, y, radius in zip(a.flatten(1), b.flatten(1), (norms[0] + norms[1]) / 2, strict=True):
        ends = torch.stack([x, y])
        path = _on_sphere(ends, radius) if sphere else ends
        total, iteration = num_levels * iterations_per_level, 0
        for level in range(1, num_levels + 1):
            path = _halve(path, sphere)
            while iteration < level * iterations_per_level:
                iteration += 1
                forces = _forces(flat_score(path[1:-1]), path, alpha, sphere)
                if forces[0].norm(dim=1).mean() < forces[1].norm(dim=1).mean():
                    break
                step = learning_rate * (1 - (iteration - 1) / total) / len(forces[0])
                moved = path[1:-1] + step * sum(forces)
                path = torch.cat([path[:1], _on_sphere(moved, radius) if sphere else moved, path[-1:]])
        paths.append(path)
    return torch.stack(paths).reshape(len(a), -1, *a.shape[1:])


def _forces(score: Tensor, path: Tensor, alpha: float, sphere: bool) -> tuple[Tensor, Tensor]:
    """Return Π∇log p and Π(A/(α‖V‖²)) at the inner knots of a path (N + 1, n) with knots at i/N."""
    velocity, acceleration = _derivatives(path, sphere)
    if sphere:
        score, acceleration = (_project_off(v, path[1:-1]) for v in (score, acceleration))
    acceleration = acceleration / (alpha * velocity.square().sum(1, keepdim=True))
    return _project_off(score, velocity), _project_off(acceleration, velocity)


def _derivatives(path: Tensor, sphere: bool) -> tuple[Tensor, Tensor]:
    """Return velocity and acceleration at the inner knots: of a natural cubic spline, or V of the two great arcs."""
    inner = len(path) - 2
    system = 4 * torch.eye(inner) + torch.ones(inner, inner).tril(1).triu(-1) - torch.eye(inner)
    second = path[2:] - 2 * path[1:-1] + path[:-2]
    acceleration = torch.linalg.solve(system.to(path), 6 * (inner + 1) ** 2 * second)
    if not sphere:
        padded = torch.nn.functional.pad(acceleration, (0, 0, 1, 1))
        slope = (path[2:] - path[:-2]) * (inner + 1) / 2 - (padded[2:] - padded[:-2]) / (12 * (inner + 1))
        return slope, acceleration
    unit = path / path.norm(dim=1, keepdim=True)
    cosine = (unit[1:] * unit[:-1]).sum(1, keepdim=True).clamp(-1, 1)
    speed = 1 / torch.sinc(cosine.acos() / math.pi)  # θ/sin θ of each arc
    leaving = speed * (path[1:] - cosine * path[:-1])
    arriving = speed * (cosine * path[1:] - path[:-1])
    return (leaving[1:] + arriving[:-1]) * (inner + 1) / 2, acceleration


def _halve(path: Tensor, sphere: bool) -> Tensor:
    """Put a knot into the middle of every segment, on the great arc or on the cubic spline."""
    if sphere:
        middle = slerp(path[:-1], path[1:], 0.5)
    else:
        middle = (path[1:] + path[:-1]) / 2
        if len(path) > 2:
            acceleration = torch.nn.functional.pad(_derivatives(path, False)[1], (0, 0, 1, 1))
            middle = middle - (acceleration[1:] + acceleration[:-1]) / (16 * (len(path) - 1) ** 2)
    return torch.cat([torch.stack([path[:-1], middle], 1).flatten(0, 1), path[-1:]])


def _on_sphere(x: Tensor, radius: Tensor) -> Tensor:
    return radius * x / x.norm(dim=1, keepdim=True)


def _project_off(v: Tensor, direction: Tensor) -> Tensor:
    unit = direction / direction.norm(dim=1, keepdim=True).clamp_min(torch.finfo(direction.dtype).tiny)
    return v - (v * unit).sum(1, keepdim=True) * unit
