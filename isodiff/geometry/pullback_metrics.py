r"""Metrics that a map pulls back: the score, an encoder, or the identity.

A map f of noise space with Jacobian J pulls the flat metric of its values back to ``JᵀJ``. Where J is invertible that
is flat as well, and the geodesics are the curves along which f moves straight and at constant speed.

``s = ∇ₓ log p_σ`` is the score at noise level σ, ``ŝ = σ² s`` the same in the units of x (``−σ ε_θ`` for a model that
predicts the noise of variance-preserving diffusion), and ``Ĵ = −∂ŝ/∂x``. By Tweedie's formula Ĵ = I − Cov[αx₀|x]/σ²:
1 along the normals of the data manifold and 0 along its tangents, as far as σ resolves it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from isodiff.geometry.jacobian import Linearisation, Map, pullback_vp
from isodiff.geometry.path_energy import NoiseMetric, row_squares

Score = Callable[[Tensor], Tensor]
"""A score ∇ log p_σ, row by row, (M, *S) → (M, *S) for any M."""

Quadrature = Literal["difference", "midpoint", "left"]


class PullbackMetric(NoiseMetric):
    """JᵀJ + ρI, with J the Jacobian of `_map`.

    A piece is as long as the map's values at its ends are apart, which needs no Jacobian: q = ‖Δf‖² + ρ‖Δy‖². Hence
    E ≥ ½‖f(b) − f(a)‖² + ½ρ‖b − a‖² for every discrete path, and with ρ = 0 equality exactly where f moves along
    a straight line at constant speed.
    """

    rho: float = 0.0
    quadrature: Quadrature = "difference"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rho) and self.rho >= 0):
            raise ValueError(f"rho must be finite and at least 0, got {self.rho}")
        if self.quadrature not in get_args(Quadrature):
            raise ValueError(f"quadrature must be one of {get_args(Quadrature)}, got {self.quadrature!r}")

    def _map(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def points(self, knots: Tensor) -> Tensor:
        """Return the knots; or, for the two forms with Jacobians, base point and step of each piece."""
        if self.quadrature == "difference":
            return knots
        base = knots[:, :-1] if self.quadrature == "left" else (knots[:, :-1] + knots[:, 1:]) / 2
        return torch.stack([base, knots.diff(dim=1)], 2)

    def features(self, points: Tensor) -> Tensor:
        """Return the map's values at points, or the products J Δy."""
        if self.quadrature == "difference":
            return self._map(points)
        return Linearisation(self._map, points[:, 0]).jvp(points[:, 1])

    def squares(self, knots: Tensor, values: Tensor) -> Tensor:
        """Return ‖Δf‖² + ρ‖Δy‖², or ‖J Δy‖² + ρ‖Δy‖², (B, P)."""
        moved = values.diff(dim=1) if self.quadrature == "difference" else values
        return row_squares(moved) + self.rho * row_squares(knots.diff(dim=1))

    def product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return JᵀJ v + ρ v."""
        return pullback_vp(self._map, x, v)[2] + self.rho * v

    @torch.no_grad()
    def bound(self, a: Tensor, b: Tensor) -> Tensor:
        """Return ½‖f(b) − f(a)‖² + ½ρ‖b − a‖², (B,).

        Note:
            It binds sums of differences; the forms with Jacobians may fall short of it by their discretisation error.
        """
        moved = self._map(b) - self._map(a)
        return (_squares(moved) + self.rho * _squares(b - a)) / 2


@dataclass(frozen=True)
class TangentialMetric(PullbackMetric):
    """The tangential metric ĴᵀĴ + ρI: the pullback of the score ŝ = σ²s (arXiv 2510.05509), made definite by ρ.

    The metric without ridge is only semi-definite, and curves of zero length exist. The published metric is that of s,
    with σ⁻⁴ times the energy.

    Args:
        score: ∇ log p_σ, (M, *S) → (M, *S).
        sigma: σ, the standard deviation of the noise in x, positive.
        rho: ρ, dimensionless, at least 0. The paper's value is not known to us; 1e-3 is our choice.
        quadrature: How the length of a piece is found: ``"difference"`` of scores at its ends, error O(1/N²);
            or the Jacobian's product with it at its ``"midpoint"``, O(1/N²), or ``"left"`` end, O(1/N).

    Raises:
        ValueError: If σ is not positive, ρ is negative, the quadrature is unknown, or, when evaluated, the score
            changes the shape of its argument.
    """

    score: Score
    sigma: float
    rho: float = 1e-3
    quadrature: Quadrature = "difference"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_sigma(self.sigma)

    def _map(self, x: Tensor) -> Tensor:
        return scaled_score(self.score, self.sigma)(x)


@dataclass(frozen=True)
class EncoderMetric(PullbackMetric):
    """The metric that an encoder pulls back from its features, J_hᵀ J_h + ρI.

    Args:
        encoder: Any map, row by row, (M, *S) → (M, *F).
        rho: ρ, in squared units of features per unit of x, at least 0.
        quadrature: As in `TangentialMetric`.
    """

    encoder: Map
    rho: float = 0.0
    quadrature: Quadrature = "difference"

    def _map(self, x: Tensor) -> Tensor:
        return self.encoder(x)


@dataclass(frozen=True)
class EuclideanMetric(PullbackMetric):
    """The flat metric I, whose geodesics are straight lines at constant speed (lerp)."""

    def _map(self, x: Tensor) -> Tensor:
        return x


def scaled_score(score: Score, sigma: float) -> Score:
    """Return the map ŝ = σ²s, which refuses a score that changes the shape of its argument."""

    def scaled(x: Tensor) -> Tensor:
        value = score(x)
        if value.shape != x.shape:
            raise ValueError(f"score must return the shape {tuple(x.shape)} of its argument, got {tuple(value.shape)}")
        return sigma**2 * value

    return scaled


def require_sigma(sigma: float) -> None:
    """Refuse a noise level that is not a positive number."""
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be positive and finite, got {sigma}")


def _squares(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1)
