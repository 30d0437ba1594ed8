r"""Scores of noisy data on curved manifolds: the circle and the sphere exactly, other curves as fine mixtures.

Notation as in `scores`. Where the clean data are uniform on a sphere, the integral over them is a Bessel function; on
any other curve it is a sum over points so close together that the noise leaves no trace of them.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from scipy.optimize import brentq
from torch import Tensor

from isodiff.geometry.scores import AnalyticScore, GaussianMixture


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class NoisyShell(AnalyticScore):
    """Uniform data on the circle or sphere ``S^{d−1}(R)``, plus noise: the score is radial, ``s = f(r) r̂``.

    With ``κ = rR/σ²`` and the mean cosine ``A(κ)`` of a von Mises–Fisher law,

        f(r) = (R A(κ) − r)/σ²,        A = I₁/I₀ (d = 2),        A = coth κ − 1/κ (d = 3).

    ``J`` has the eigenvalue ``f′ = (R²A′/σ² − 1)/σ²`` along the radius and ``f/r`` on tangents, which vanishes on the
    *ridge*, where ``f = 0``: inside the sphere, and for large noise at the origin.

    Attributes:
        radius: R > 0.
        shell_dimension: d, 2 for the circle in the plane or 3 for the sphere in space.
    """

    radius: float = 1.0
    shell_dimension: int = 2

    def __post_init__(self) -> None:
        """Refuse a radius that is not positive and dimensions other than 2 and 3."""
        super().__post_init__()
        if not (self.radius > 0 and math.isfinite(self.radius)):
            raise ValueError(f"radius must be a positive finite number, got {self.radius}")
        if self.shell_dimension not in (2, 3):
            raise ValueError(
                f"shell_dimension must be 2 (a circle) or 3 (a sphere), got {self.shell_dimension}; "
                "use GaussianMixture for other shells"
            )

    @property
    def dimension(self) -> int:
        """Dimension d of the space."""
        return self.shell_dimension

    @property
    def ridge_radius(self) -> float:
        """Radius r* of the ridge, where the density is largest; 0 if σ ≥ R/√d, as the noise then fills the hole."""
        R, d = self.radius, self.dimension
        if self.sigma >= R / math.sqrt(d):
            return 0.0
        outward = lambda r: float(self(torch.eye(1, d, dtype=torch.float64) * r)[0, 0])  # noqa: E731
        return brentq(outward, 1e-9 * R, R, xtol=1e-15 * R, rtol=1e-15)

    def _score(self, x: Tensor) -> Tensor:
        pull = (self.radius / self.sigma**2) ** 2 * _mean_cosine(self._squared_kappa(x), self.dimension)
        return x * (pull - 1 / self.sigma**2)[:, None]

    def _log_density(self, x: Tensor) -> Tensor:
        decay = (x.square().sum(1) + self.radius**2) / (2 * self.sigma**2)
        volume = self.dimension * math.log(2 * math.pi * self.sigma**2) / 2
        return _log_mean_exponential(self._squared_kappa(x), self.dimension) - decay - volume

    def _squared_kappa(self, x: Tensor) -> Tensor:
        return x.square().sum(1) * (self.radius / self.sigma**2) ** 2

    def _distance(self, x: Tensor) -> Tensor:
        return (x.norm(dim=1) - self.radius).abs()

    def _draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        z = torch.randn(n, self.dimension, generator=generator, dtype=torch.float64)
        return self.radius * z / z.norm(dim=1, keepdim=True)


def _log_mean_exponential(q: Tensor, d: int) -> Tensor:
    """Return log c(κ) of q = κ², with c the mean of exp(κ cos) over S^{d−1}: I₀ for d = 2, sinh κ/κ for d = 3."""
    small, kappa = _split(q)
    tail = torch.special.i0e(kappa).log() if d == 2 else (-torch.expm1(-2 * kappa) / (2 * kappa)).log()
    return torch.where(small, _series(q, d, derivative=False).log(), kappa + tail)


def _mean_cosine(q: Tensor, d: int) -> Tensor:
    """Return A(κ)/κ = 2 ∂log c/∂q of q = κ², which runs from 1/d at 0 to 0 at infinity."""
    small, kappa = _split(q)
    cosine = torch.special.i1e(kappa) / torch.special.i0e(kappa) if d == 2 else 1 / kappa.tanh() - 1 / kappa
    return torch.where(small, 2 * _series(q, d, derivative=True) / _series(q, d, derivative=False), cosine / kappa)


def _split(q: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the power series serves, and κ elsewhere: it has no derivative in x at the origin."""
    small = q < 1
    return small, torch.where(small, 1.0, q).sqrt()


def _series(q: Tensor, d: int, *, derivative: bool) -> Tensor:
    """Return c = ₀F₁(d/2; q/4), or ∂c/∂q, for q < 1 to the last digit (DLMF 16.2.1, 10.39.9)."""
    term = coefficient = torch.ones_like(q)
    q = torch.where(q < 1, q, 0.0)
    total = torch.zeros_like(q) if derivative else term
    for k in range(1, 12):
        coefficient = coefficient / (4 * k * (d / 2 + k - 1))
        total = total + coefficient * (k * q ** (k - 1) if derivative else q**k)
    return total


def curve(points: Tensor, *, sigma: float, weights: Tensor | None = None, closed: bool = False) -> GaussianMixture:
    """Return the score of noisy data on a curve through points, a `GaussianMixture` whose modes have merged.

    Between points at distance h the density ripples by a share of 2 exp(−2π²σ²/h²), below 1e-8 for h ≤ σ. Beyond the
    outer side of a bend of radius R the ripple is larger: at a distance δ from the curve, σ² is to be read as
    σ² R/(R + δ).

    Args:
        points: Along the curve, in order and at equal distances for a uniform density, (k, d) with k ≥ 2.
        sigma: Noise σ, at least the distance of neighbours.
        weights: Density along the curve, at each point, (k,); uniform if not given.
        closed: Join the last point to the first.

    Returns:
        The score, whose `distance` is that to the polygon.

    Raises:
        ValueError: If there are fewer than two points, or neighbours are further apart than σ.
    """
    k = len(points)
    if points.ndim != 2 or k < 2:
        raise ValueError(f"points must be at least two, (k, d); got shape {tuple(points.shape)}")
    edges = torch.stack([torch.arange(k), torch.arange(1, k + 1) % k], 1)
    return GaussianMixture(means=points, sigma=sigma, weights=weights, edges=edges if closed else edges[:-1])


def c_arc(sigma: float, *, opening: float = 50.0, num_points: int = 400) -> GaussianMixture:
    """Return noisy data on the unit circle but for a gap on the right, |angle| < opening: the letter C.

    Args:
        sigma: Noise σ.
        opening: Half the gap, in degrees, between 0 and 180.
        num_points: Points along the arc.

    Returns:
        The score in the plane. Points at 60° and 300° are clean data on either side of the gap.

    Raises:
        ValueError: If the opening is out of range, or σ below the spacing of the points.
    """
    if not 0 < opening < 180:
        raise ValueError(f"opening must lie between 0 and 180 degrees, got {opening}")
    turn = torch.linspace(math.radians(opening), math.radians(360 - opening), num_points, dtype=torch.float64)
    return curve(torch.stack([turn.cos(), turn.sin()], 1), sigma=sigma)


def two_moons(sigma: float, *, num_points: int = 300) -> GaussianMixture:
    """Return noisy data on two interlocking half circles, (cos t, sin t) and (1 − cos t, ½ − sin t).

    Args:
        sigma: Noise σ.
        num_points: Points along each moon.

    Returns:
        The score in the plane; the first half of its means lies on the upper moon.
    """
    upper = curve(_half_circle(num_points), sigma=sigma)
    lower = torch.tensor([1.0, 0.5], dtype=torch.float64) - upper.means
    return GaussianMixture(
        means=torch.cat([upper.means, lower]), sigma=sigma, edges=torch.cat([upper.edges, upper.edges + num_points])
    )


def helix(sigma: float, *, turns: float = 1.5, pitch: float = 1.0, num_points: int = 600) -> GaussianMixture:
    """Return noisy data on (cos t, sin t, pitch·t/2π), a curve of codimension 2 whose curvature is the same all along.

    Args:
        sigma: Noise σ.
        turns: Length of the helix in turns, centred at height 0.
        pitch: Height of one turn.
        num_points: Points along it.

    Returns:
        The score in ℝ³.
    """
    turn = math.pi * turns * torch.linspace(-1, 1, num_points, dtype=torch.float64)
    return curve(torch.stack([turn.cos(), turn.sin(), pitch * turn / (2 * math.pi)], 1), sigma=sigma)


def _half_circle(num_points: int) -> Tensor:
    turn = torch.linspace(0, math.pi, num_points, dtype=torch.float64)
    return torch.stack([turn.cos(), turn.sin()], 1)
