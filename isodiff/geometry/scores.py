r"""Scores known in closed form: noisy data whose manifold, density and every derivative are exact.

Clean data ``x₀`` lie on a manifold of ℝᵈ; noise makes of them ``x = x₀ + σ ε`` with density ``p_σ``. A *score* is the
callable ``x ↦ ∇ log p_σ(x)``. By Tweedie's formula and its derivative,

    s(x) = (E[x₀|x] − x) / σ²,        J(x) = ∂s/∂x = −I/σ² + Cov[x₀|x]/σ⁴,

so that ``Ĵ = −σ²J`` is near 1 along normals of the manifold and near 0 along its tangents. Here are what all such
scores share, and the two kinds that need no special function: data in a linear subspace, and points with weights.
Curves, circles and spheres are in `manifold_scores`. Everything is differentiable as often as needed, at the precision
of ``x``.
"""

from __future__ import annotations

import abc
import dataclasses
import math

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class AnalyticScore(abc.ABC):
    """A score ``∇ log p_σ`` in closed form, with its density, its samples and the manifold behind it.

    Attributes:
        sigma: Standard deviation σ > 0 of the noise a coordinate, in the units of x.

    Raises:
        ValueError: If σ is not a positive finite number; on calls, if ``x`` is not a floating-point (M, d).
    """

    sigma: float

    def __post_init__(self) -> None:
        """Refuse what is no standard deviation."""
        if not (self.sigma > 0 and math.isfinite(self.sigma)):
            raise ValueError(f"sigma must be a positive finite number, got {self.sigma}")

    def __call__(self, x: Tensor) -> Tensor:
        """Return the score ∇ log p_σ(x), (M, d) → (M, d)."""
        self._require(x)
        return self._score(x)

    def log_density(self, x: Tensor) -> Tensor:
        """Return log p_σ(x), normalised, (M, d) → (M,)."""
        self._require(x)
        return self._log_density(x)

    def distance(self, x: Tensor) -> Tensor:
        """Return the distance to the clean manifold, (M, d) → (M,)."""
        self._require(x)
        return self._distance(x)

    def sample(self, n: int, generator: torch.Generator | None = None, *, clean: bool = False) -> Tensor:
        """Draw n points of p_σ, or of the clean data; (n, d) in float64.

        Args:
            n: How many, at least 1.
            generator: Source of randomness; torch's global one if not given. Noisy points are the clean ones of the
                same generator plus noise.
            clean: Leave the noise out.

        Returns:
            Points, one a row.

        Raises:
            ValueError: If ``n < 1``.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        points = self._draw(n, generator)
        if clean:
            return points
        return points + self.sigma * torch.randn(points.shape, generator=generator, dtype=points.dtype)

    def with_sigma(self, sigma: float) -> AnalyticScore:
        """Return the score of the same clean data at another noise level: for continuation from high to low noise."""
        return dataclasses.replace(self, sigma=sigma)

    def _require(self, x: Tensor) -> None:
        # no check of values: it would break under vmap, and NaN comes out as NaN
        if x.ndim != 2 or x.shape[1] != self.dimension or not x.is_floating_point():
            raise ValueError(
                f"x must be a floating-point tensor of shape (M, {self.dimension}), got {x.dtype} {tuple(x.shape)}"
            )

    @property
    @abc.abstractmethod
    def dimension(self) -> int:
        """Dimension d of the space."""

    @abc.abstractmethod
    def _score(self, x: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def _log_density(self, x: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def _distance(self, x: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def _draw(self, n: int, generator: torch.Generator | None) -> Tensor: ...


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LowRankGaussian(AnalyticScore):
    """Gaussian data in a linear subspace, plus noise: ``Σ = α² U Λ Uᵀ + σ² I`` and ``s = −Σ⁻¹ x``.

    ``J = −Σ⁻¹`` is constant, and ``Ĵ`` has the eigenvalue ``σ²/(α²λᵢ + σ²)`` on tangents and 1 on normals.

    Attributes:
        basis: U, orthonormal columns, (d, k).
        variances: Diagonal of Λ, positive, (k,).
        alpha: Scale α of the clean data, 1 unless the process shrinks them.
    """

    basis: Tensor
    variances: Tensor
    alpha: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a basis that is not orthonormal, variances that do not fit, and α that is not positive."""
        super().__post_init__()
        gram = self.basis.mT @ self.basis
        if not torch.allclose(gram, torch.eye(len(gram)).to(gram), atol=1e-6):
            off = (gram - torch.eye(len(gram)).to(gram)).abs().max()
            raise ValueError(f"basis must have orthonormal columns, (d, k); UᵀU differs from I by {off:.3g}")
        if self.variances.shape != (len(gram),) or not (self.variances > 0).all():
            raise ValueError(f"variances must be {len(gram)} positive numbers, got {self.variances}")
        if not self.alpha > 0:
            raise ValueError(f"alpha must be positive, got {self.alpha}")

    @property
    def dimension(self) -> int:
        """Dimension d of the space."""
        return len(self.basis)

    def _score(self, x: Tensor) -> Tensor:
        basis, signal = self.basis.to(x), self._signal(x)
        return (x @ basis * (signal / (signal + self.sigma**2)) @ basis.mT - x) / self.sigma**2

    def _log_density(self, x: Tensor) -> Tensor:
        d, signal = self.dimension, self._signal(x)
        volume = (signal + self.sigma**2).log().sum() + (d - len(signal)) * math.log(self.sigma**2)
        return (x * self._score(x)).sum(1) / 2 - (d * math.log(2 * math.pi) + volume) / 2

    def _distance(self, x: Tensor) -> Tensor:
        return (x - x @ self.basis.to(x) @ self.basis.mT.to(x)).norm(dim=1)

    def _draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        z = torch.randn(n, len(self.variances), generator=generator, dtype=torch.float64)
        return (z * self._signal(z).sqrt()) @ self.basis.mT.to(z)

    def _signal(self, x: Tensor) -> Tensor:
        return self.alpha**2 * self.variances.to(x)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class GaussianMixture(AnalyticScore):
    """Weighted points plus noise: ``p_σ = Σᵢ wᵢ N(mᵢ, σ²I)`` and ``s = (Σᵢ πᵢ(x) mᵢ − x) / σ²``.

    ``πᵢ(x) ∝ wᵢ exp(−‖x − mᵢ‖²/2σ²)`` are the posterior weights. With ``edges`` the points are those of a curve.

    Attributes:
        means: m, (k, d).
        weights: w, not negative, (k,); scaled to sum to 1. Equal if not given.
        edges: Pairs of neighbouring means, (e, 2): the manifold is then made of the segments between them, and
            neighbours may be no further apart than σ. Without edges it is the set of means.
    """

    means: Tensor
    weights: Tensor | None = None
    edges: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse shapes and weights that do not fit, and curves whose points would show as single modes."""
        super().__post_init__()
        if self.means.ndim != 2 or not len(self.means) or not torch.isfinite(self.means).all():
            raise ValueError(f"means must be finite, (k, d) with k ≥ 1; got shape {tuple(self.means.shape)}")
        weights = self.weights
        if weights is not None and (
            weights.shape != self.means.shape[:1] or not ((weights >= 0).all() and 0 < weights.sum() < math.inf)
        ):
            raise ValueError(f"weights must be {len(self.means)} numbers ≥ 0, not all of them 0; got {weights}")
        if self.edges is not None and (spacing := self._segments[1].norm(dim=1).max()) > self.sigma:
            raise ValueError(
                f"sigma must be at least the spacing of the points of a curve, {spacing:.3g}, as the noise does not "
                f"bridge wider gaps; got {self.sigma}: give more points"
            )

    @property
    def dimension(self) -> int:
        """Dimension d of the space."""
        return self.means.shape[1]

    def _logits(self, x: Tensor) -> Tensor:
        """Return log wᵢ − ‖x − mᵢ‖²/2σ² up to −‖x‖²/2σ², (M, k)."""
        means = self.means.to(x)
        weights = torch.ones_like(means[:, 0]) if self.weights is None else self.weights.to(x)
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
        weights = torch.ones(len(self.means)) if self.weights is None else self.weights
        return self.means.double()[torch.multinomial(weights.double(), n, replacement=True, generator=generator)]

    @property
    def _segments(self) -> tuple[Tensor, Tensor]:
        start, end = self.means[self.edges].unbind(1)
        return start, end - start
