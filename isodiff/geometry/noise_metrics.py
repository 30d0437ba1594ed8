r"""Metrics on noise space: what it costs to move x_t a little, in each of several geometries.

| metric | G(x) | its geodesics |
|---|---|---|
| `EuclideanMetric` | I | lerp |
| `SphereMetric` | dr² + R² dθ², radius and angle | slerp |
| `DensityMetric` | p^{−2a} I | through high density |
| `ScoreMetric` | s sᵀ + I | along the level sets of p, where they can |
| `TangentialMetric` | ĴᵀĴ + ρI | along the data manifold (arXiv 2510.05509) |
| `EncoderMetric` | J_hᵀ J_h + ρI | straight in the features h, where they can |

p is the noisy density, s = ∇ log p its score and Ĵ = −σ² ∂s/∂x; those made from a Jacobian are in `pullback_metrics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from isodiff.geometry.path_energy import NoiseMetric, row_squares
from isodiff.geometry.pullback_metrics import EuclideanMetric, Score, TangentialMetric, scaled_score

MetricName = Literal["euclidean", "sphere", "density", "score", "tangential"]


@dataclass(frozen=True)
class SphereMetric(NoiseMetric):
    """The metric dr² + R² dθ² of radius and angle, whose geodesics are the curves of `slerp`, whatever R.

    It is that of a cylinder over the sphere of radius R: great arcs at constant speed, and the radius linear in u.

    Args:
        radius: R, positive, in the units of x.
    """

    radius: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.radius) and self.radius > 0):
            raise ValueError(f"radius must be positive and finite, got {self.radius}")

    def knots(self, path: Tensor, num_subsamples: int) -> Tensor:
        """Return the nodes: pieces are great arcs between them, and cutting those changes nothing."""
        return path

    def features(self, points: Tensor) -> Tensor:
        """Return the points; nothing costly is needed."""
        return points

    def squares(self, knots: Tensor, values: Tensor) -> Tensor:
        """Return (Δr)² + R² θ², (B, P), with θ the angle between neighbours."""
        flat = values.flatten(2)
        radius = flat.norm(dim=2, keepdim=True)
        unit = flat / radius
        # Kahan's formula: exact for small and for obtuse angles, where the arc cosine loses half the digits
        angle = 2 * torch.atan2(unit.diff(dim=1).norm(dim=2), (unit[:, 1:] + unit[:, :-1]).norm(dim=2))
        return radius.diff(dim=1).squeeze(2).square() + self.radius**2 * angle.square()

    def product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return (v·x̂)x̂ + (R²/‖x‖²)(v − (v·x̂)x̂)."""
        flat, direction = x.flatten(1), v.flatten(1)
        square = flat.square().sum(1, keepdim=True)
        radial = (flat * direction).sum(1, keepdim=True) / square * flat
        return (radial + self.radius**2 / square * (direction - radial)).reshape(v.shape)

    def bound(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the energy of the geodesic itself, (B,)."""
        ends = torch.stack([a, b], 1)
        return self.squares(ends, ends)[:, 0] / 2


@dataclass(frozen=True)
class DensityMetric(NoiseMetric):
    """The conformal metric (p/p₀)^{−2a} I, short where data are dense.

    Args:
        log_density: log p_σ, row by row, (M, *S) → (M,).
        exponent: a, positive; ½ and 1 are customary.
        log_reference: log p₀. It scales the energy and changes no geodesic; in high dimension choose log p near the
            ends, or the power overflows.
    """

    log_density: Callable[[Tensor], Tensor]
    exponent: float = 0.5
    log_reference: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.exponent) and self.exponent > 0):
            raise ValueError(f"exponent must be positive and finite, got {self.exponent}")

    def points(self, knots: Tensor) -> Tensor:
        """Return the midpoints of the pieces."""
        return (knots[:, :-1] + knots[:, 1:]) / 2

    def features(self, points: Tensor) -> Tensor:
        """Return log p, (M,)."""
        values = self.log_density(points)
        if values.shape != points.shape[:1]:
            raise ValueError(f"log_density must return shape ({len(points)},), got {tuple(values.shape)}")
        return values

    def squares(self, knots: Tensor, values: Tensor) -> Tensor:
        """Return (p/p₀)^{−2a} ‖Δy‖² with p at the midpoint, (B, P)."""
        return self._factor(values) * row_squares(knots.diff(dim=1))

    def product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return (p/p₀)^{−2a} v."""
        return self._factor(self.features(x)).view(-1, *[1] * (x.ndim - 1)) * v

    def _factor(self, log_density: Tensor) -> Tensor:
        return torch.exp(-2 * self.exponent * (log_density - self.log_reference))


@dataclass(frozen=True)
class ScoreMetric(NoiseMetric):
    """The metric s sᵀ + I, dear across the level sets of the density and Euclidean along them.

    As s·ẋ is the rate at which log p changes, E = ½ ∫ (d log p/du)² + ‖ẋ‖² du.

    Args:
        score: ∇ log p_σ, (M, *S) → (M, *S).
    """

    score: Score

    def points(self, knots: Tensor) -> Tensor:
        """Return the midpoints of the pieces."""
        return (knots[:, :-1] + knots[:, 1:]) / 2

    def features(self, points: Tensor) -> Tensor:
        """Return the score."""
        return scaled_score(self.score, 1.0)(points)

    def squares(self, knots: Tensor, values: Tensor) -> Tensor:
        """Return (s·Δy)² + ‖Δy‖² with s at the midpoint, (B, P)."""
        step = knots.diff(dim=1)
        return (step * values).flatten(2).sum(2).square() + row_squares(step)

    def product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return s (s·v) + v."""
        s = self.features(x)
        return s * (s * v).flatten(1).sum(1).view(-1, *[1] * (x.ndim - 1)) + v

    def bound(self, a: Tensor, b: Tensor) -> Tensor:
        """Return ½‖b − a‖², (B,)."""
        return _squares(b - a) / 2


def named_metric(name: str, score: Score, *, sigma: float, rho: float, radius: float) -> NoiseMetric:
    """Build a metric by name.

    Args:
        name: ``"euclidean"``, ``"sphere"``, ``"density"`` (p^{−1} I; the score must offer ``log_density``), ``"score"``
            or ``"tangential"``.
        score: ∇ log p_σ.
        sigma: σ of the tangential metric.
        rho: ρ of the tangential metric.
        radius: R of the sphere.

    Raises:
        ValueError: If the name is unknown, the score has no ``log_density`` where one is needed, or a number is out of
            range.
    """
    if name not in get_args(MetricName):
        raise ValueError(f"metric must be one of {get_args(MetricName)} or a NoiseMetric, got {name!r}")
    if name == "density":
        if not callable(getattr(score, "log_density", None)):
            raise ValueError(
                'metric "density" needs a score with a log_density; pass DensityMetric(log_density) instead'
            )
        return DensityMetric(score.log_density)
    if name == "sphere":
        return SphereMetric(radius)
    if name == "euclidean":
        return EuclideanMetric()
    return ScoreMetric(score) if name == "score" else TangentialMetric(score, sigma, rho)


def _squares(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1)
