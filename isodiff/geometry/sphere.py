r"""The sphere that Gaussian noise lives on: its radius, a chart, its tangent spaces, and curves upon it.

For ``x ~ N(0, Iₙ)`` the norm concentrates at ``r ≈ √n`` with a spread of about ``1/√2`` whatever ``n``, so noise is, to
good approximation, a point of the sphere ``S(r)`` in ℝⁿ. Throughout, ``x`` is a point of ℝⁿ with ``‖x‖ = r``,
``x̂ = x / ‖x‖``, ``x'`` its first ``n − 1`` coordinates, and ``z`` in ℝⁿ⁻¹ its stereographic coordinates,

    z = Π(x) = r x' / (r − xₙ),        G(z) = 4 r⁴ / (‖z‖² + r²)² · I,

the projection from the pole ``(0, …, 0, r)`` and the metric of the sphere in that chart (Eq. 3 of Hahm et al. 2024).

Note:
    Eq. 2 of the paper prints the chart as ``x' / (r − xₙ)``, whose metric would be ``4 r² / (1 + ‖z‖²)² · I``. The
    metric of Eq. 3, used here, belongs to the chart that carries the factor ``r``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Coefficients of E‖x‖ / √n in powers of 1/n, from Stirling's series of the log-gamma function (DLMF 5.11.13).
_RADIUS_SERIES = (1.0, -1 / 4, 1 / 32, 5 / 128, -21 / 2048, -399 / 8192)
_LARGEST_GAMMA = 300  # math.gamma overflows above 171, that is for n above 341


def expected_radius(n: int) -> float:
    r"""Return the mean distance of Gaussian noise from the origin, ``E‖x‖`` for ``x ~ N(0, Iₙ)``.

    ``E‖x‖ = √2 Γ((n+1)/2) / Γ(n/2)``, the mean of the chi law. Differences of log-gamma values lose digits as ``n``
    grows (they are of size ``n log n``), so large ``n`` uses the asymptotic series of the same quotient.

    Args:
        n: Dimension, an integer of at least 2.

    Returns:
        The radius, to about 1e-15 relative for every ``n``.

    Raises:
        TypeError: If ``n`` is not an integer.
        ValueError: If ``n < 2``.
    """
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n must be an integer of at least 2, got {n!r}")
    if n < 2:
        raise ValueError(f"n must be at least 2, as noise in fewer dimensions has no sphere to live on; got {n}")
    if n <= _LARGEST_GAMMA:
        return math.sqrt(2.0) * math.gamma((n + 1) / 2) / math.gamma(n / 2)
    return math.sqrt(n) * sum(c * float(n) ** -k for k, c in enumerate(_RADIUS_SERIES))


def stereographic(x: Tensor, radius: float | Tensor) -> Tensor:
    """Map points of the sphere to the plane, ``z = r x' / (r − xₙ)``.

    Args:
        x: Points with ``‖x‖ = radius``, (B, n) with ``n ≥ 2``.
        radius: Radius of the sphere, a positive number or one per row, (B,).

    Returns:
        Chart coordinates ``z``, (B, n − 1).

    Raises:
        ValueError: If ``x`` is not of rank 2, has ``n < 2``, holds NaN or infinity, lies off the sphere (beyond the
            square root of the machine precision) or at the pole ``(0, …, 0, r)``, or if ``radius`` does not fit.
    """
    _require_points(x, "x", minimum=2)
    r = _column(radius, x)
    off = (x.norm(dim=1, keepdim=True) / r - 1).abs().max().item()
    if off > math.sqrt(torch.finfo(x.dtype).eps):
        raise ValueError(
            f"x must lie on the sphere of the given radius; its norm is off by up to {off:.3g} of the radius"
        )
    height = r - x[:, -1:]
    # Rounding can put the pole an ulp inside the sphere, where the quotient is finite but meaningless.
    if (height <= 4 * torch.finfo(x.dtype).eps * r).any():
        raise ValueError("x must not hold the pole (0, …, 0, r), which the stereographic chart sends to infinity")
    return r * x[:, :-1] / height


def inverse_stereographic(z: Tensor, radius: float | Tensor) -> Tensor:
    """Map chart coordinates back to the sphere, ``x = r (2 r z, ‖z‖² − r²) / (‖z‖² + r²)``.

    Args:
        z: Chart coordinates, (B, n − 1).
        radius: Radius of the sphere, a positive number or one per row, (B,).

    Returns:
        Points of the sphere, (B, n).

    Raises:
        ValueError: If ``z`` is not of rank 2, is empty or holds NaN or infinity, or if ``radius`` does not fit.
    """
    _require_points(z, "z", minimum=1)
    r = _column(radius, z)
    square = z.square().sum(dim=1, keepdim=True)
    return r * torch.cat([2 * r * z, square - r**2], dim=1) / (square + r**2)


def conformal_factor(z: Tensor, radius: float | Tensor) -> Tensor:
    """Return the factor ``4 r⁴ / (‖z‖² + r²)²`` by which the chart's metric scales the flat one (Eq. 3).

    Args:
        z: Chart coordinates, (B, n − 1).
        radius: Radius of the sphere, a positive number or one per row, (B,).

    Returns:
        ``G`` at each point, (B,), between 0 (at the pole) and 4 (opposite it).

    Raises:
        ValueError: As `inverse_stereographic`.
    """
    _require_points(z, "z", minimum=1)
    r = _column(radius, z)
    return (4 * r**4 / (z.square().sum(dim=1, keepdim=True) + r**2) ** 2).squeeze(1)


def project_to_tangent(v: Tensor, x: Tensor) -> Tensor:
    """Remove the radial part of a vector, ``v − (v·x̂) x̂``: what is left is tangent to the sphere at ``x``.

    Args:
        v: Vectors, (B, *S).
        x: Points to be tangent at, (B, *S), none of them zero.

    Returns:
        Tangent vectors, (B, *S).

    Raises:
        ValueError: If the shapes differ, the rank is below 2, or ``x`` holds zero rows, NaN or infinity.
    """
    require_batch(x, "x")
    require_same_shape(v, x, "v", "x")
    unit = _unit(x.flatten(1), "x")
    flat = v.flatten(1)
    return (flat - (flat * unit).sum(dim=1, keepdim=True) * unit).reshape(v.shape)


def lerp(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """Interpolate along the chord, ``(1 − t) a + t b``.

    Args:
        a: Start, (B, *S).
        b: End, (B, *S).
        t: Position, 0 at ``a`` and 1 at ``b``; a number or one per row, (B,).

    Returns:
        Points of the chord, (B, *S).

    Raises:
        ValueError: If shapes do not fit or values are not finite.
    """
    flat_a, flat_b, position = _endpoints(a, b, t)
    return ((1 - position) * flat_a + position * flat_b).reshape(a.shape).to(a.dtype)


def slerp(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """Interpolate along the great arc, and between the two radii (Shoemake 1985).

    With ``θ`` the angle between ``a`` and ``b`` and ``q`` the unit vector of their plane orthogonal to ``â``, the path
    is ``((1 − t)‖a‖ + t‖b‖) (cos(tθ) â + sin(tθ) q)``. Collinear input has ``θ = 0`` and needs no ``q``. Antipodal
    input has no unique arc: ``q`` is then the coordinate axis least aligned with ``a``, made orthogonal to it, so the
    answer is deterministic. Gradients are finite everywhere.

    Args:
        a: Start, (B, *S), no row zero.
        b: End, (B, *S), no row zero.
        t: Position, 0 at ``a`` and 1 at ``b``; a number or one per row, (B,).

    Returns:
        Points of the arc, (B, *S), in the precision of ``a``; computed in float32 or better.

    Raises:
        ValueError: If shapes do not fit, values are not finite, or a row is zero.
    """
    flat_a, flat_b, position = _endpoints(a, b, t)
    eps = torch.finfo(flat_a.dtype).eps
    unit_a, unit_b = _unit(flat_a, "a"), _unit(flat_b, "b")
    cosine = (unit_a * unit_b).sum(dim=1, keepdim=True)
    across = unit_b - cosine * unit_a
    across = across - (across * unit_a).sum(dim=1, keepdim=True) * unit_a  # twice is enough to be orthogonal
    sine_squared = across.square().sum(dim=1, keepdim=True)

    # Near θ = 0, cos(tθ) and sin(tθ)/sin(θ) are smooth in sin²θ while θ itself is not: hence the series.
    collinear = (sine_squared < math.sqrt(eps)) & (cosine > 0)
    antipodal = (sine_squared < (8 * eps) ** 2) & (cosine < 0)
    generic = ~(collinear | antipodal)
    sine = torch.where(generic, sine_squared, 1.0).sqrt()
    angle = torch.where(generic, torch.atan2(sine, cosine), math.pi)
    along = torch.where(collinear, 1 - position**2 * sine_squared / 2, torch.cos(position * angle))
    sideways = torch.where(
        collinear, position * (1 + (1 - position**2) * sine_squared / 6), torch.sin(position * angle) / sine
    )
    axis = torch.nn.functional.one_hot(unit_a.abs().argmin(dim=1), unit_a.shape[1]).to(unit_a)
    aside = axis - (axis * unit_a).sum(dim=1, keepdim=True) * unit_a
    aside = aside / aside.norm(dim=1, keepdim=True).clamp_min(eps)
    across = torch.where(antipodal, aside, across)
    radius = (1 - position) * flat_a.norm(dim=1, keepdim=True) + position * flat_b.norm(dim=1, keepdim=True)
    return (radius * (along * unit_a + sideways * across)).reshape(a.shape).to(a.dtype)


def require_batch(x: Tensor, name: str) -> None:
    """Refuse anything but a finite floating-point batch (B, *S) with at least two numbers a row."""
    if not x.is_floating_point():
        raise ValueError(f"{name} must be a floating-point tensor, got {x.dtype}")
    if x.ndim < 2 or x.shape[0] == 0:
        raise ValueError(
            f"{name} must be a non-empty batch of shape (B, *S), rank 2 or more; got shape {tuple(x.shape)}"
        )
    if x[0].numel() < 2:
        raise ValueError(f"{name} must have at least n = 2 dimensions a row, got shape {tuple(x.shape)}")
    _require_finite(x, name)


def require_same_shape(a: Tensor, b: Tensor, name_a: str, name_b: str) -> None:
    """Refuse two tensors of different shapes, naming both."""
    if a.shape != b.shape:
        raise ValueError(f"{name_a} must have the shape of {name_b}, {tuple(b.shape)}; got {tuple(a.shape)}")


def _require_points(x: Tensor, name: str, *, minimum: int) -> None:
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"{name} must be of rank 2, one point a row and at least one; got shape {tuple(x.shape)}")
    if x.shape[1] < minimum:
        raise ValueError(f"{name} must have at least {minimum} columns, got shape {tuple(x.shape)}")
    _require_finite(x, name)


def _require_finite(x: Tensor, name: str) -> None:
    if not torch.isfinite(x).all():
        raise ValueError(f"{name} must be finite, got {int((~torch.isfinite(x)).sum())} NaN or infinite values")


def _column(radius: float | Tensor, x: Tensor) -> Tensor:
    """Return the radius as a (B, 1) or scalar tensor in the precision of ``x``."""
    r = torch.as_tensor(radius, dtype=x.dtype, device=x.device)
    if r.ndim > 1 or (r.ndim == 1 and len(r) != len(x)):
        raise ValueError(f"radius must be a number or of shape ({len(x)},), got shape {tuple(r.shape)}")
    if not bool((torch.isfinite(r) & (r > 0)).all()):
        raise ValueError(f"radius must be positive and finite, got {radius!r}")
    return r.reshape(-1, 1)


def _unit(flat: Tensor, name: str) -> Tensor:
    norm = flat.norm(dim=1, keepdim=True)
    if (norm == 0).any():
        raise ValueError(f"{name} must have no zero rows, as zero has no direction; row {int(norm.argmin())} is zero")
    return flat / norm


def _endpoints(a: Tensor, b: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Check the arguments of an interpolation; return (B, n), (B, n) and (B, 1) or (1, 1) in float32 or better."""
    require_batch(a, "a")
    require_batch(b, "b")
    require_same_shape(b, a, "b", "a")
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    position = torch.as_tensor(t, dtype=dtype, device=a.device)
    if position.ndim > 1 or (position.ndim == 1 and len(position) != len(a)):
        raise ValueError(f"t must be a number or of shape ({len(a)},), got shape {tuple(position.shape)}")
    _require_finite(position, "t")
    return a.flatten(1).to(dtype), b.flatten(1).to(dtype), position.reshape(-1, 1)
