r"""The sphere that Gaussian noise lives on: its radius, a chart, its tangent spaces, and curves upon it.

The norm of ``x ~ N(0, Iₙ)`` concentrates at ``r ≈ √n``, spread by about ``1/√2`` whatever ``n``. Here ``‖x‖ = r``,
``x̂ = x / r``, ``x'`` holds the first ``n − 1`` coordinates of ``x``, and ``z`` in ℝⁿ⁻¹ are its stereographic
coordinates from the pole ``(0, …, 0, r)``, with the sphere's metric there (Eq. 3 of Hahm et al. 2024),

    z = Π(x) = r x' / (r − xₙ),        G(z) = 4 r⁴ / (‖z‖² + r²)² · I.

Eq. 2 of the paper prints the chart without the factor ``r``; its metric would be ``4 r² / (1 + ‖z‖²)² · I``.
A step of arc length γ, in the units of x, along a unit tangent vector d is the exponential map
``cos(γ/r) x + r sin(γ/r) d``. A radius, γ or t is a number or one per row, (B,).
"""

import math
from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor

# Coefficients of E‖x‖ / √n in powers of 1/n, from Stirling's series of the log-gamma function (DLMF 5.11.13).
_RADIUS_SERIES = (1.0, -1 / 4, 1 / 32, 5 / 128, -21 / 2048, -399 / 8192)


def expected_radius(n: int) -> float:
    """Return the mean norm of noise in ℝⁿ, ``E‖x‖ = √2 Γ((n+1)/2) / Γ(n/2)``, to 1e-15 for every n ≥ 2."""
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n must be an integer of at least 2, got {n!r}")
    if n < 2:
        raise ValueError(f"n must be at least 2, got {n}")
    if n <= 300:  # math.gamma overflows for n above 341
        return math.sqrt(2.0) * math.gamma((n + 1) / 2) / math.gamma(n / 2)
    # differences of log-gamma values, of size n log n, would lose digits
    return math.sqrt(n) * sum(c * float(n) ** -k for k, c in enumerate(_RADIUS_SERIES))


def stereographic(x: Tensor, radius: float | Tensor) -> Tensor:
    """Map points of the sphere, exact to √ε, to the plane, ``z = r x' / (r − xₙ)``, (B, n) → (B, n − 1)."""
    r = _chart_radius(radius, x, "x", 2)
    eps = torch.finfo(x.dtype).eps
    off = (x.norm(dim=1, keepdim=True) / r - 1).abs().max().item()
    if off > math.sqrt(eps):
        raise ValueError(f"x must lie on the sphere of the given radius; its norm is off by up to {off:.3g} of it")
    height = r - x[:, -1:]
    # Rounding can put the pole an ulp inside the sphere, where the quotient is finite but meaningless.
    if (height <= 4 * eps * r).any():
        raise ValueError("x must not hold the pole (0, …, 0, r), which the stereographic chart sends to infinity")
    return r * x[:, :-1] / height


def inverse_stereographic(z: Tensor, radius: float | Tensor) -> Tensor:
    """Map chart coordinates back, ``x = r (2 r z, ‖z‖² − r²) / (‖z‖² + r²)``, (B, n − 1) → (B, n)."""
    r = _chart_radius(radius, z, "z", 1)
    square = z.square().sum(dim=1, keepdim=True)
    return r * torch.cat([2 * r * z, square - r**2], dim=1) / (square + r**2)


def conformal_factor(z: Tensor, radius: float | Tensor) -> Tensor:
    """Return ``4 r⁴ / (‖z‖² + r²)²``, by which the chart's metric scales the flat one (Eq. 3), (B, n − 1) → (B,)."""
    r = _chart_radius(radius, z, "z", 1)
    return (4 * r**4 / (z.square().sum(dim=1, keepdim=True) + r**2) ** 2).squeeze(1)


def project_to_tangent(v: Tensor, x: Tensor) -> Tensor:
    """Remove the radial part of vectors, ``v − (v·x̂) x̂``, for v and x of one shape (B, *S), no row of x zero."""
    require_batch(x, "x")
    require_same_shape(v, x, "v", "x")
    return tangent_projection(x)(v)


def tangent_projection(x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return `project_to_tangent` at x, to be applied often: only zero rows are refused, and only here."""
    unit = _unit(x.flatten(1), "x")

    def project(v: Tensor) -> Tensor:
        flat = v.flatten(1)
        return (flat - (flat * unit).sum(dim=1, keepdim=True) * unit).reshape(v.shape)

    return project


def lerp(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """Interpolate along the chord, ``(1 − t) a + t b``, for a, b (B, *S)."""
    flat_a, flat_b, t = _endpoints(a, b, t)
    return ((1 - t) * flat_a + t * flat_b).reshape(a.shape).to(a.dtype)


def slerp(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """Interpolate along the great arc, and between the two radii (Shoemake 1985), for a, b (B, *S).

    With ``θ`` the angle between ``a`` and ``b`` and ``q`` the unit vector of their plane orthogonal to ``â``, the path
    is ``((1 − t)‖a‖ + t‖b‖) (cos(tθ) â + sin(tθ) q)``; for antipodes, ``q`` is the axis least aligned with ``a``, made
    orthogonal to it. Gradients are finite everywhere; half precision is computed in float32.
    """
    flat_a, flat_b, t = _endpoints(a, b, t)
    eps = torch.finfo(flat_a.dtype).eps
    unit_a, unit_b = _unit(flat_a, "a"), _unit(flat_b, "b")
    cosine = (unit_a * unit_b).sum(dim=1, keepdim=True)
    across = unit_b - cosine * unit_a
    across = across - (across * unit_a).sum(dim=1, keepdim=True) * unit_a  # twice is enough to be orthogonal
    sine_squared = across.square().sum(dim=1, keepdim=True)

    # Near θ = 0, cos(tθ) and sin(tθ)/sin(θ) are smooth in sin²θ while θ itself is not: hence the series.
    collinear = (sine_squared < math.sqrt(eps)) & (cosine > 0)
    antipodal = (sine_squared < (8 * eps) ** 2) & (cosine < 0)
    sine = torch.where(collinear | antipodal, 1.0, sine_squared).sqrt()
    angle = torch.where(collinear | antipodal, math.pi, torch.atan2(sine, cosine))
    along = torch.where(collinear, 1 - t**2 * sine_squared / 2, torch.cos(t * angle))
    sideways = torch.where(collinear, t * (1 + (1 - t**2) * sine_squared / 6), torch.sin(t * angle) / sine)
    axis = torch.nn.functional.one_hot(unit_a.abs().argmin(dim=1), unit_a.shape[1]).to(unit_a)
    aside = axis - (axis * unit_a).sum(dim=1, keepdim=True) * unit_a
    aside = aside / aside.norm(dim=1, keepdim=True).clamp_min(eps)
    radius = (1 - t) * flat_a.norm(dim=1, keepdim=True) + t * flat_b.norm(dim=1, keepdim=True)
    return (radius * (along * unit_a + sideways * torch.where(antipodal, aside, across))).reshape(a.shape).to(a.dtype)


def move(x: Tensor, direction: Tensor, gamma: float | Tensor) -> Tensor:
    """Step the arc length γ, from −πr to πr, along the great circle: ``cos(γ/r) x + r sin(γ/r) d``, x (B, *S).

    What of a direction, (B, *S), is radial is removed, and the rest scaled to the unit vector d.
    """
    require_same_shape(direction, x, "direction", "x")
    return combine(x, direction[:, None], _column(torch.as_tensor(gamma), x, "gamma").expand(len(x), 1))


def combine(x: Tensor, directions: Tensor, gammas: Sequence[float] | Tensor) -> Tensor:
    """Step along the one arc of the tangent vector Σᵢ γᵢ dᵢ, as long as that vector and at most πr.

    ``directions`` are (B, k, *S), each made a unit tangent vector; ``gammas`` (k,) for all rows or (B, k). Steps along
    orthogonal directions, one after the other, commute to first order only.
    """
    require_batch(x, "x")
    tangent = vectors = _vectors(directions, x)
    flat = x.flatten(1).to(vectors.dtype)
    radial = _unit(flat, "x")[:, None]
    for _ in range(2):  # the second time removes what rounding left of a long radial part
        tangent = tangent - (tangent @ radial.mT) * radial
    length, least = tangent.norm(dim=2, keepdim=True), math.sqrt(torch.finfo(vectors.dtype).eps)
    if not (length > least * vectors.norm(dim=2, keepdim=True)).all():  # false for zero and for NaN
        raise ValueError("direction must have a part tangent at x; got one that is zero, radial or not finite")
    each, all_rows = tuple(vectors.shape[:2]), tuple(vectors.shape[1:2])
    weights = torch.as_tensor(gammas, dtype=vectors.dtype, device=x.device)
    if weights.shape not in (all_rows, each):
        raise ValueError(f"gammas must have shape {all_rows} or {each}; got {tuple(weights.shape)}")
    step = (weights.expand(each)[..., None] * (tangent / length)).sum(1)
    radius, arc = flat.norm(dim=1, keepdim=True), step.norm(dim=1, keepdim=True)
    if not (arc <= math.pi * radius * (1 + 1e-6)).all():  # false for NaN
        most = f"at most half a great circle, π‖x‖ = {math.pi * radius.min():.4g}"
        raise ValueError(f"gamma must be finite and {most}; got an arc of length {arc.max():.4g}")
    angle = arc / radius
    return (torch.cos(angle) * flat + torch.sinc(angle / math.pi) * step).reshape(x.shape).to(x.dtype)


def transport(direction: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Carry vectors tangent at x, (B, *S) or several a row, (B, k, *S), to y along the shorter great arc, in parallel.

    On tangent vectors that is the reflection ``P v = v − 2 (v·s) s / ‖s‖²``, ``s = x̂ + ŷ``; the radii may differ.
    Refused are vectors more than a thousandth radial, and opposite points (within 0.001 rad).
    """
    require_pair(x, y, "x", "y")
    vectors = _vectors(direction, x)
    unit_x, unit_y = (_unit(p.flatten(1).to(vectors.dtype), name)[:, None] for p, name in ((x, "x"), (y, "y")))
    lengths = vectors.norm(dim=2, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
    slope = ((vectors @ unit_x.mT).abs() / lengths).max()
    if not slope <= 1e-3:  # false for NaN
        how = f"{slope:.3g} of its length is radial: apply project_to_tangent first"
        raise ValueError(f"direction must be tangent at x; {how}")
    s = unit_x + unit_y
    square = s.square().sum(2, keepdim=True)
    if (square < 1e-6).any():
        raise ValueError("y must not be opposite to x, as no great arc between them is the shorter one")
    return (vectors - 2 * (vectors @ s.mT) * s / square).reshape(direction.shape).to(direction.dtype)


def require_batch(x: Tensor, name: str) -> None:
    """Refuse all but a finite floating-point batch (B, *S) with at least two numbers a row."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must be a floating-point tensor, got {got}")
    if x.ndim < 2 or x.shape[0] == 0:
        raise ValueError(f"{name} must be a non-empty batch (B, *S), rank 2 or more; got shape {tuple(x.shape)}")
    if x[0].numel() < 2:
        raise ValueError(f"{name} must have at least n = 2 dimensions a row, got shape {tuple(x.shape)}")
    _require_finite(x, name)


def require_same_shape(a: Tensor, b: Tensor, name_a: str, name_b: str) -> None:
    """Refuse two tensors of different shapes, naming both."""
    if a.shape != b.shape:
        raise ValueError(f"{name_a} must have the shape of {name_b}, {tuple(b.shape)}; got {tuple(a.shape)}")


def require_pair(a: Tensor, b: Tensor, name_a: str = "a", name_b: str = "b") -> None:
    """Refuse all but two finite floating-point batches of one shape (B, *S)."""
    require_batch(a, name_a)
    require_batch(b, name_b)
    require_same_shape(b, a, name_b, name_a)


def require_option(value: str, options: object, name: str) -> None:
    """Refuse a string that is none of a Literal's."""
    if value not in get_args(options):
        raise ValueError(f"{name} must be one of {get_args(options)}, got {value!r}")


def require_at_least(minimum: int, **values: int) -> None:
    """Refuse numbers that are too small, by name."""
    for name, value in values.items():
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def _require_finite(x: Tensor, name: str) -> None:
    if not torch.isfinite(x).all():
        raise ValueError(f"{name} must be finite, got {int((~torch.isfinite(x)).sum())} NaN or infinite values")


def _column(value: Tensor, x: Tensor, name: str) -> Tensor:
    """Return a number or one per row as a tensor (1, 1) or (B, 1)."""
    if value.ndim > 1 or (value.ndim == 1 and len(value) != len(x)):
        raise ValueError(f"{name} must be a number or of shape ({len(x)},), got shape {tuple(value.shape)}")
    return value.reshape(-1, 1)


def _chart_radius(radius: float | Tensor, x: Tensor, name: str, columns: int) -> Tensor:
    """Check points and a radius of theirs; return it as (1, 1) or (B, 1)."""
    if x.ndim != 2 or len(x) == 0 or x.shape[1] < columns:
        need = f"rank 2, at least {columns} columns, one point a row and at least one"
        raise ValueError(f"{name} must be of {need}; got shape {tuple(x.shape)}")
    _require_finite(x, name)
    r = _column(torch.as_tensor(radius, dtype=x.dtype, device=x.device), x, "radius")
    if not (torch.isfinite(r) & (r > 0)).all():
        raise ValueError(f"radius must be positive and finite, got {radius!r}")
    return r


def _unit(flat: Tensor, name: str) -> Tensor:
    norm = flat.norm(dim=1, keepdim=True)
    if (norm == 0).any():
        raise ValueError(f"{name} must have no zero rows, as zero has no direction; row {int(norm.argmin())} is zero")
    return flat / norm


def _endpoints(a: Tensor, b: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Check the arguments of an interpolation; return (B, n), (B, n) and (B, 1) or (1, 1) in float32 or better."""
    require_pair(a, b)
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    t = _column(torch.as_tensor(t, dtype=dtype, device=a.device), a, "t")
    _require_finite(t, "t")
    return a.flatten(1).to(dtype), b.flatten(1).to(dtype), t


def _vectors(direction: Tensor, x: Tensor) -> Tensor:
    """Return (B, k, n) in float32 or better, of (B, *S) with k = 1 or (B, k, *S)."""
    one, shape = tuple(x.shape), tuple(direction.shape)
    if shape not in (one, (one[0], *shape[1:2], *one[1:])) or direction.numel() == 0:
        accepted = f"the shape {one} of x, or {(one[0], 'k', *one[1:])}"
        raise ValueError(f"direction must have {accepted}; got {shape}")
    dtype = torch.promote_types(torch.promote_types(direction.dtype, x.dtype), torch.float32)
    return direction.reshape(len(x), -1, x[0].numel()).to(dtype)
