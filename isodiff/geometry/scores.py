r"""Scores known in closed form: noisy data whose manifold, density and every derivative are exact.

Clean data ``x₀`` lie on a manifold of ℝᵈ; noise makes of them ``x = x₀ + σ ε`` with density ``p_σ``. A *score* is the
callable ``x ↦ ∇ log p_σ(x)``. By Tweedie's formula and its derivative,

    s(x) = (E[x₀|x] − x) / σ²,        J(x) = ∂s/∂x = −I/σ² + Cov[x₀|x]/σ⁴,

so that ``Ĵ = −σ²J`` is near 1 along normals of the manifold and near 0 along its tangents. Everything is
differentiable as often as needed, at the precision of ``x``.
"""

import dataclasses
import math
from typing import Self

import torch
from scipy.optimize import brentq
from torch import Tensor

from isodiff.geometry.sphere import require_at_least


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class AnalyticScore:
    """A score ``∇ log p_σ`` in closed form, with its density, its samples and the manifold behind it; σ > 0.

    A subclass gives the ``dimension`` d of the space and `_score`, `_log_density`, `_distance` and `_draw`.
    """

    sigma: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma must be a positive finite number, got {self.sigma}")

    def __call__(self, x: Tensor) -> Tensor:
        """Return the score ∇ log p_σ(x), (M, d) → (M, d)."""
        return self._score(self._points(x))

    def log_density(self, x: Tensor) -> Tensor:
        """Return log p_σ(x), normalised, (M, d) → (M,)."""
        return self._log_density(self._points(x))

    def distance(self, x: Tensor) -> Tensor:
        """Return the distance to the clean manifold, (M, d) → (M,)."""
        return self._distance(self._points(x))

    def sample(self, n: int, generator: torch.Generator | None = None, *, clean: bool = False) -> Tensor:
        """Draw n points of p_σ, (n, d) in float64: the clean ones of the same generator plus noise."""
        require_at_least(1, n=n)
        points = self._draw(n, generator)
        noise = 0 if clean else self.sigma * torch.randn(points.shape, generator=generator, dtype=points.dtype)
        return points + noise

    def with_sigma(self, sigma: float) -> Self:
        """Return the score of the same clean data at another noise level."""
        return dataclasses.replace(self, sigma=sigma)

    def _points(self, x: Tensor) -> Tensor:  # values stay unchecked: that would break under vmap
        if x.ndim != 2 or x.shape[1] != self.dimension or not x.is_floating_point():
            shape = f"(M, {self.dimension})"
            raise ValueError(f"x must be a floating-point tensor of shape {shape}, got {x.dtype} {tuple(x.shape)}")
        return x


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LowRankGaussian(AnalyticScore):
    """Gaussian data in a linear subspace, plus noise: ``Σ = U Λ Uᵀ + σ² I`` and ``s = −Σ⁻¹ x``.

    ``J = −Σ⁻¹`` is constant, and ``Ĵ`` has the eigenvalue ``σ²/(λᵢ + σ²)`` on tangents and 1 on normals. ``basis`` is U
    with orthonormal columns, (d, k), and ``variances`` the diagonal of Λ, positive, (k,).
    """

    basis: Tensor
    variances: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        gram = self.basis.mT @ self.basis
        if not torch.allclose(gram, identity := torch.eye(len(gram)).to(gram), atol=1e-6):
            off = (gram - identity).abs().max()
            raise ValueError(f"basis must have orthonormal columns, (d, k); UᵀU differs from I by {off:.3g}")
        if self.variances.shape != (len(gram),) or not (self.variances > 0).all():
            raise ValueError(f"variances must be {len(gram)} positive numbers, got {self.variances}")

    dimension = property(lambda self: len(self.basis))

    def _score(self, x: Tensor) -> Tensor:
        basis, signal = self.basis.to(x), self.variances.to(x)
        return (x @ basis * (signal / (signal + self.sigma**2)) @ basis.mT - x) / self.sigma**2

    def _log_density(self, x: Tensor) -> Tensor:
        d, signal = self.dimension, self.variances.to(x)
        volume = (signal + self.sigma**2).log().sum() + (d - len(signal)) * math.log(self.sigma**2)
        return (x * self._score(x)).sum(1) / 2 - (d * math.log(2 * math.pi) + volume) / 2

    def _distance(self, x: Tensor) -> Tensor:
        return (x - x @ self.basis.to(x) @ self.basis.mT.to(x)).norm(dim=1)

    def _draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        z = torch.randn(n, len(self.variances), generator=generator, dtype=torch.float64)
        return (z * self.variances.to(z).sqrt()) @ self.basis.mT.to(z)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class GaussianMixture(AnalyticScore):
    """Weighted points plus noise: ``p_σ = Σᵢ wᵢ N(mᵢ, σ²I)`` and ``s = (Σᵢ πᵢ(x) mᵢ − x) / σ²``.

    ``πᵢ(x) ∝ wᵢ exp(−‖x − mᵢ‖²/2σ²)`` are the posterior weights, w ≥ 0, (k,), scaled to sum to 1. The manifold is the
    set of means, (k, d), or made of the segments between pairs of them, ``edges``, (e, 2), no longer than σ.
    """

    means: Tensor
    weights: Tensor | None = None
    edges: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.means.ndim != 2 or not len(self.means) or not torch.isfinite(self.means).all():
            raise ValueError(f"means must be finite, (k, d) with k ≥ 1; got shape {tuple(self.means.shape)}")
        w = self.weights
        if w is not None and not (w.shape == self.means.shape[:1] and (w >= 0).all() and 0 < w.sum() < math.inf):
            raise ValueError(f"weights must be {len(self.means)} numbers ≥ 0, not all of them 0; got {w}")
        if self.edges is not None and (spacing := self._segments[1].norm(dim=1).max()) > self.sigma:
            least = f"at least the spacing of the points of a curve, {spacing:.3g}"
            raise ValueError(f"sigma must be {least}; got {self.sigma}")

    dimension = property(lambda self: self.means.shape[1])

    def _weights(self, like: Tensor) -> Tensor:
        return torch.ones(len(self.means)).to(like) if self.weights is None else self.weights.to(like)

    def _logits(self, x: Tensor) -> Tensor:
        """Return log wᵢ − ‖x − mᵢ‖²/2σ² up to −‖x‖²/2σ², (M, k)."""
        means, weights = self.means.to(x), self._weights(x)
        return (x @ means.mT - means.square().sum(1) / 2) / self.sigma**2 + (weights / weights.sum()).log()

    def _score(self, x: Tensor) -> Tensor:
        return (self._logits(x).softmax(1) @ self.means.to(x) - x) / self.sigma**2

    def _log_density(self, x: Tensor) -> Tensor:
        square = x.square().sum(1) / (2 * self.sigma**2)
        return self._logits(x).logsumexp(1) - square - self.dimension * math.log(2 * math.pi * self.sigma**2) / 2

    def _distance(self, x: Tensor) -> Tensor:
        if self.edges is None:
            return torch.cdist(x, self.means.to(x), compute_mode="donot_use_mm_for_euclid_dist").amin(1)
        start, along = (part.to(x) for part in self._segments)
        from_start = x[:, None] - start
        position = ((from_start * along).sum(2) / along.square().sum(1)).clamp(0, 1)
        return (from_start - position[..., None] * along).norm(dim=2).amin(1)

    def _draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        means = self.means.double()
        return means[torch.multinomial(self._weights(means), n, replacement=True, generator=generator)]

    @property
    def _segments(self) -> tuple[Tensor, Tensor]:
        start, end = self.means[self.edges].unbind(1)
        return start, end - start


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class NoisyShell(AnalyticScore):
    """Uniform data on the unit circle (d = 2) or sphere (d = 3), plus noise: the score is radial, ``s = f(r) r̂``.

    With ``κ = r/σ²`` and the mean cosine ``A(κ)`` of a von Mises–Fisher law,

        f(r) = (A(κ) − r)/σ²,        A = I₁/I₀ (d = 2),        A = coth κ − 1/κ (d = 3).

    ``J`` has the eigenvalue ``f′ = (A′/σ² − 1)/σ²`` along the radius and ``f/r`` on tangents, which vanishes on the
    *ridge*, where ``f = 0``: inside the sphere, and for large noise at the origin.
    """

    shell_dimension: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shell_dimension not in (2, 3):
            raise ValueError(f"shell_dimension must be 2 (a circle) or 3 (a sphere), got {self.shell_dimension}")

    dimension = property(lambda self: self.shell_dimension)

    @property
    def ridge_radius(self) -> float:
        """Radius r* of the ridge, where the density is largest; 0 if σ ≥ 1/√d, as the noise then fills the hole."""
        if self.sigma >= 1 / math.sqrt(self.dimension):
            return 0.0
        unit = torch.eye(1, self.dimension, dtype=torch.float64)
        return brentq(lambda r: float(self(unit * r)[0, 0]), 1e-9, 1.0, xtol=1e-15, rtol=1e-15)

    def _score(self, x: Tensor) -> Tensor:
        precision = 1 / self.sigma**2
        pull = precision**2 * _mean_cosine(x.square().sum(1) * precision**2, self.dimension)
        return x * (pull - precision)[:, None]

    def _log_density(self, x: Tensor) -> Tensor:
        decay = (x.square().sum(1) + 1) / (2 * self.sigma**2)
        volume = self.dimension * math.log(2 * math.pi * self.sigma**2) / 2
        square = x.square().sum(1) * (1 / self.sigma**2) ** 2  # κ²
        return _log_mean_exponential(square, self.dimension) - decay - volume

    def _distance(self, x: Tensor) -> Tensor:
        return (x.norm(dim=1) - 1).abs()

    def _draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        z = torch.randn(n, self.dimension, generator=generator, dtype=torch.float64)
        return z / z.norm(dim=1, keepdim=True)


def _log_mean_exponential(q: Tensor, d: int) -> Tensor:
    """Return log c(κ) of q = κ², with c the mean of exp(κ cos) over S^{d−1}: I₀ for d = 2, sinh κ/κ for d = 3."""
    small, kappa = q < 1, torch.where(q < 1, 1.0, q).sqrt()  # a root has no derivative in x at the origin
    tail = torch.special.i0e(kappa).log() if d == 2 else (-torch.expm1(-2 * kappa) / (2 * kappa)).log()
    return torch.where(small, _series(q, d, derivative=False).log(), kappa + tail)


def _mean_cosine(q: Tensor, d: int) -> Tensor:
    """Return A(κ)/κ = 2 ∂log c/∂q of q = κ², which runs from 1/d at 0 to 0 at infinity."""
    small, kappa = q < 1, torch.where(q < 1, 1.0, q).sqrt()
    cosine = torch.special.i1e(kappa) / torch.special.i0e(kappa) if d == 2 else 1 / kappa.tanh() - 1 / kappa
    return torch.where(small, 2 * _series(q, d, derivative=True) / _series(q, d, derivative=False), cosine / kappa)


def _series(q: Tensor, d: int, *, derivative: bool) -> Tensor:
    """Return c = ₀F₁(d/2; q/4), or ∂c/∂q, for q < 1 to the last digit (DLMF 16.2.1, 10.39.9)."""
    coefficient, q = torch.ones_like(q), torch.where(q < 1, q, 0.0)
    total = torch.zeros_like(q) if derivative else coefficient
    for k in range(1, 12):
        coefficient = coefficient / (4 * k * (d / 2 + k - 1))
        total = total + coefficient * (k * q ** (k - 1) if derivative else q**k)
    return total


def curve(points: Tensor, *, sigma: float, weights: Tensor | None = None, closed: bool = False) -> GaussianMixture:
    """Return the score of noisy data on a curve through points, (k, d), a `GaussianMixture` whose modes have merged.

    Points are in order, and at equal distances for a uniform density; ``weights``, (k,), are the density along the
    curve. Between points at distance h ≤ σ it ripples by a share of 2 exp(−2π²σ²/h²) < 1e-8, outside a bend by more.
    """
    k = len(points)
    if points.ndim != 2 or k < 2:
        raise ValueError(f"points must be at least two, (k, d); got shape {tuple(points.shape)}")
    edges = torch.stack([torch.arange(k), torch.arange(1, k + 1) % k], 1)
    return GaussianMixture(means=points, sigma=sigma, weights=weights, edges=edges if closed else edges[:-1])


def c_arc(sigma: float) -> GaussianMixture:
    """Return noisy data on the unit circle but for a gap on the right, |angle| < 50°: the letter C."""
    return curve(_circle(math.radians(50), math.radians(310), 400), sigma=sigma)


def two_moons(sigma: float) -> GaussianMixture:
    """Return noisy data on two half circles, (cos t, sin t), whose means come first, and (1 − cos t, ½ − sin t)."""
    upper = curve(_circle(0, math.pi, 300), sigma=sigma)
    lower = torch.tensor([1.0, 0.5], dtype=torch.float64) - upper.means
    edges = torch.cat([upper.edges, upper.edges + len(lower)])
    return GaussianMixture(means=torch.cat([upper.means, lower]), sigma=sigma, edges=edges)


def helix(sigma: float) -> GaussianMixture:
    """Return noisy data on (cos t, sin t, t/2π), |t| ≤ 3π/2, a curve in ℝ³ of constant curvature."""
    turn = math.pi * 1.5 * torch.linspace(-1, 1, 600, dtype=torch.float64)
    return curve(torch.stack([turn.cos(), turn.sin(), turn / (2 * math.pi)], 1), sigma=sigma)


def _circle(start: float, end: float, num_points: int) -> Tensor:
    turn = torch.linspace(start, end, num_points, dtype=torch.float64)
    return torch.stack([turn.cos(), turn.sin()], 1)
