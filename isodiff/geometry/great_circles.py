r"""Steps along great circles, and parallel transport between the points of the sphere.

A point x lies on the sphere of radius r = ‖x‖ in ℝⁿ. A *direction* at x is a unit tangent vector d, d·x = 0. The step
of arc length γ along it is the exponential map of the sphere,

    x(γ) = cos(γ/r) x + r sin(γ/r) d,

so that ‖x(γ)‖ = r, γ = π r/2 is a quarter of a great circle, and γ ≪ r is x + γ d. γ is in the units of x: where noise
has one unit a coordinate, r ≈ √n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from isodiff.geometry.sphere import require_batch, require_same_shape


def move(x: Tensor, direction: Tensor, gamma: float | Tensor) -> Tensor:
    """Step the arc length γ along the great circle through x in a direction: cos(γ/r) x + r sin(γ/r) d, r = ‖x‖.

    Args:
        x: latents, (B, *S).
        direction: (B, *S). What of it is radial at x is removed, and the rest scaled to a unit vector d.
        gamma: γ, in the units of x; a number or one per row, (B,), from −πr to πr. Negative steps go back.

    Returns:
        Latents of the same radius, (B, *S), in the precision of x; computed in float32 or better.

    Raises:
        ValueError: shapes do not fit, a direction has no tangent part, or γ is not finite or beyond half a circle.
    """
    require_batch(x, "x")
    require_same_shape(direction, x, "direction", "x")
    gamma = torch.as_tensor(gamma)
    if gamma.ndim > 1 or (gamma.ndim == 1 and len(gamma) != len(x)):
        raise ValueError(f"gamma must be a number or of shape ({len(x)},); got shape {tuple(gamma.shape)}")
    return combine(x, direction[:, None], gamma.expand(len(x))[:, None])


def combine(x: Tensor, directions: Tensor, gammas: Sequence[float] | Tensor) -> Tensor:
    """Step along a linear combination of directions: the arc of the tangent vector Σᵢ γᵢ dᵢ, as long as that vector.

    Args:
        x: latents, (B, *S).
        directions: (B, k, *S); each is made a unit tangent vector dᵢ, as in `move`.
        gammas: γᵢ, in the units of x; (k,) for all rows or (B, k).

    Returns:
        Latents of the same radius, (B, *S). Steps along orthogonal directions commute to first order only: one arc is
        taken, not one after the other.

    Raises:
        ValueError: as `move`; the length of Σᵢ γᵢ dᵢ is at most πr.
    """
    require_batch(x, "x")
    units = _unit_tangents(directions, x)
    weights = torch.as_tensor(gammas, dtype=units.dtype, device=x.device)
    if weights.shape not in (units.shape[1:2], units.shape[:2]):
        raise ValueError(
            f"gammas must have shape {tuple(units.shape[1:2])} or {tuple(units.shape[:2])}; got {tuple(weights.shape)}"
        )
    flat = x.flatten(1).to(units.dtype)
    step = (weights.expand(units.shape[:2])[..., None] * units).sum(1)
    radius, arc = flat.norm(dim=1, keepdim=True), step.norm(dim=1, keepdim=True)
    if not (arc <= math.pi * radius * (1 + 1e-6)).all():  # false for NaN
        raise ValueError(
            f"gamma must be finite and at most half a great circle, π‖x‖ = {math.pi * radius.min():.4g}; "
            f"got an arc of length {arc.max():.4g}"
        )
    angle = arc / radius
    return (torch.cos(angle) * flat + torch.sinc(angle / math.pi) * step).reshape(x.shape).to(x.dtype)


def transport(direction: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Carry tangent vectors from x to y by parallel transport along the shorter great arc.

    Along it, the part of a vector in the plane of x and y turns with the arc and the rest stays as it is. On tangent
    vectors at x that is the reflection that takes x̂ to −ŷ,

        P v = v − 2 (v·s) s / ‖s‖²,        s = x̂ + ŷ,

    so that norms and angles are kept, and P y→x undoes P x→y. The two radii may differ.

    Args:
        direction: tangent at x; one per row, (B, *S), or several, (B, k, *S), for example a `LocalBasis`'s.
        x: from, (B, *S).
        y: to, (B, *S).

    Returns:
        Vectors tangent at y, in the shape and precision of `direction`.

    Raises:
        ValueError: shapes do not fit; a vector is not tangent at x, by more than a thousandth of its length; or y is
            opposite to x (within 0.001 rad), where no arc is the shorter one.
    """
    require_batch(x, "x")
    require_batch(y, "y")
    require_same_shape(y, x, "y", "x")
    vectors = _vectors(direction, x)
    unit_x, unit_y = (_unit(point.flatten(1).to(vectors.dtype))[:, None] for point in (x, y))
    slope = ((vectors @ unit_x.mT).abs() / vectors.norm(dim=2, keepdim=True).clamp_min(_tiny(vectors))).max()
    if not slope <= 1e-3:  # false for NaN
        raise ValueError(
            f"direction must be tangent at x; {slope:.3g} of its length is radial: apply project_to_tangent first"
        )
    between = unit_x + unit_y
    square = between.square().sum(2, keepdim=True)
    if (square < 1e-6).any():
        raise ValueError("y must not be opposite to x, as no great arc between them is the shorter one")
    carried = vectors - 2 * (vectors @ between.mT) * between / square
    return carried.reshape(direction.shape).to(direction.dtype)


def _vectors(direction: Tensor, x: Tensor) -> Tensor:
    """Return (B, k, n) in float32 or better, of (B, *S) with k = 1 or (B, k, *S)."""
    several = direction.ndim == x.ndim + 1
    expected = (len(x), *direction.shape[1:2], *x.shape[1:]) if several else tuple(x.shape)
    if tuple(direction.shape) != expected or direction.numel() == 0:
        raise ValueError(
            f"direction must have the shape {tuple(x.shape)} of x, or {(len(x), 'k', *x.shape[1:])}; "
            f"got {tuple(direction.shape)}"
        )
    flat = direction.reshape(len(x), -1, x[0].numel())
    return flat.to(torch.promote_types(torch.promote_types(flat.dtype, x.dtype), torch.float32))


def _unit_tangents(directions: Tensor, x: Tensor) -> Tensor:
    """Return the unit tangent vectors (B, k, n) at x along directions (B, k, *S)."""
    vectors = _vectors(directions, x)
    radial = _unit(x.flatten(1).to(vectors.dtype))[:, None]
    tangent = vectors
    for _ in range(2):  # the second time removes what rounding left of a long radial part
        tangent = tangent - (tangent @ radial.mT) * radial
    length, whole = tangent.norm(dim=2, keepdim=True), vectors.norm(dim=2, keepdim=True)
    if not (length > math.sqrt(torch.finfo(vectors.dtype).eps) * whole).all():  # false for zero and for NaN
        raise ValueError("direction must have a part tangent at x; got one that is zero, radial or not finite")
    return tangent / length


def _unit(flat: Tensor) -> Tensor:
    norm = flat.norm(dim=1, keepdim=True)
    if not (norm > 0).all():
        raise ValueError("latents must not be zero, as zero lies on no sphere")
    return flat / norm


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny
