r"""Metrics on noise space, and the energy of paths in them.

``s = ∇ log p_σ`` is the score of the noisy density p, (M, *S) → (M, *S) row by row for any M; ``ŝ = σ²s`` the same in
the units of x (``−σ ε_θ`` for a model of the noise) and ``Ĵ = −∂ŝ/∂x``, by Tweedie's formula ``I − Cov[αx₀|x]/σ²``: 1
along normals of the data manifold and 0 along tangents, as far as σ resolves it, and negative between modes.

A path is N + 1 nodes, (B, N+1, *S). Each of its N straight segments is cut into K equal pieces (``num_subsamples``),
P = NK in all, between the knots y₀ … y_P. With a metric G one has the squared length q_j ≈ Δy_jᵀ G Δy_j, and

    E = ½ P Σⱼ q_j ≈ ½ ∫ ẋᵀ G ẋ du,        L = Σⱼ √q_j,        E ≥ ½ L²,

with equality exactly if all pieces are equally long (Cauchy and Schwarz). A geodesic minimises E between its ends. With
K = 1 a path may jump over what lies between its nodes at no cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from isodiff.geometry.jacobian import Linearisation, Map
from isodiff.geometry.sphere import require_batch

Score = Callable[[Tensor], Tensor]
Quadrature = Literal["difference", "midpoint", "left"]


class NoiseMetric:
    """A Riemannian metric on noise space.

    A subclass gives a costly map (`features`), the points at which a path needs it (`points`), and the squared lengths
    of pieces that follow (`squares`). ``batch_size`` is the most points given to `features` at once, all if not given.
    """

    def points(self, knots: Tensor) -> Tensor:
        """Return where `features` is needed, (B, Q, *Q), for knots (B, P+1, *S)."""
        raise NotImplementedError

    def features(self, points: Tensor) -> Tensor:
        """Evaluate the map that the metric is made of, row by row, (M, *Q) → (M, *F)."""
        raise NotImplementedError

    def squares(self, knots: Tensor, values: Tensor) -> Tensor:
        """Return the squared lengths q of pieces, (B, P), from knots (B, P+1, *S) and `features` at `points`."""
        raise NotImplementedError

    def bound(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a lower bound on the energy of every path between rows of a and b, (B,); zero if none is known."""
        return torch.zeros(len(a), dtype=a.dtype, device=a.device)

    def energy(self, path: Tensor, *, num_subsamples: int = 4) -> Tensor:
        """Return the energy ½ P Σ q of each path, (B,), differentiable in the path."""
        return _energy(self._pieces(path, num_subsamples))

    def length(self, path: Tensor, *, num_subsamples: int = 4, batch_size: int | None = None) -> Tensor:
        """Return the length Σ √q of each path, (B,), without graph."""
        return self.segment_lengths(path, num_subsamples=num_subsamples, batch_size=batch_size).sum(1)

    @torch.no_grad()
    def segment_lengths(self, path: Tensor, *, num_subsamples: int = 4, batch_size: int | None = None) -> Tensor:
        """Return the length of every segment of each path, (B, N), without graph."""
        return self._pieces(path, num_subsamples, batch_size).sqrt().unflatten(1, (path.shape[1] - 1, -1)).sum(2)

    def energy_and_gradient(
        self, path: Tensor, *, num_subsamples: int = 4, batch_size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return energies (B,) and gradients in the nodes, (B, N+1, *S), in memory bounded by a batch; checks no path.

        The map's values f come without graph, then ∂E/∂f, which vector-Jacobian products, batch by batch, pull back.
        """
        with torch.enable_grad():
            path = path.detach().requires_grad_()
            knots = subdivide(path, num_subsamples)
            points = self.points(knots)
            flat = points.flatten(0, 1)
            chunks = _chunks(flat, batch_size)
            if len(chunks) == 1:
                energy = _energy(self.squares(knots, self.features(flat).unflatten(0, points.shape[:2])))
                return energy.detach(), torch.autograd.grad(energy.sum(), path)[0]
            with torch.no_grad():
                values = torch.cat([self.features(chunk) for chunk in chunks])
            values.requires_grad_()
            energy = _energy(self.squares(knots, values.unflatten(0, points.shape[:2])))
            covectors = torch.autograd.grad(energy.sum(), values, retain_graph=True)[0].split(len(chunks[0]))
            pulled = torch.cat([self._pull(c, u) for c, u in zip(chunks, covectors, strict=True)])
            gradient = torch.autograd.grad((energy.sum(), flat), path, (torch.ones_like(energy[0]), pulled))[0]
        return energy.detach(), gradient

    def _pieces(self, path: Tensor, num_subsamples: int, batch_size: int | None = None) -> Tensor:
        require_path(path)
        knots = subdivide(path, num_subsamples)
        points = self.points(knots)
        values = torch.cat([self.features(chunk) for chunk in _chunks(points.flatten(0, 1), batch_size)])
        return self.squares(knots, values.unflatten(0, points.shape[:2]))

    def _pull(self, points: Tensor, covector: Tensor) -> Tensor:
        points = points.detach().requires_grad_()
        return torch.autograd.grad(self.features(points), points, covector, materialize_grads=True)[0]


@dataclass(frozen=True)
class DensityMetric(NoiseMetric):
    """The conformal metric p^{−2a} I, short where data are dense; ``log_density`` is log p, (M, *S) → (M,)."""

    log_density: Callable[[Tensor], Tensor]
    exponent: float = 0.5

    def __post_init__(self) -> None:
        _require_positive(self.exponent, "exponent")

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
        """Return p^{−2a} ‖Δy‖² with p at the midpoint, (B, P)."""
        return torch.exp(-2 * self.exponent * values) * _row_squares(knots.diff(dim=1))


@dataclass(frozen=True)
class PullbackMetric(NoiseMetric):
    """JᵀJ + ρI, ρ ≥ 0, with J the Jacobian of a map f, (M, *S) → (M, *F): its geodesics are straight in f, if they can.

    The quadrature ``"difference"``, error O(1/N²), needs no Jacobian: q = ‖Δf‖² + ρ‖Δy‖². The others multiply J with a
    piece at its ``"midpoint"``, O(1/N²), or ``"left"`` end, O(1/N).
    """

    map: Map
    rho: float = 0.0
    quadrature: Quadrature = "difference"

    def __post_init__(self) -> None:
        if not 0 <= self.rho < math.inf:
            raise ValueError(f"rho must be finite and at least 0, got {self.rho}")
        if self.quadrature not in get_args(Quadrature):
            raise ValueError(f"quadrature must be one of {get_args(Quadrature)}, got {self.quadrature!r}")

    def points(self, knots: Tensor) -> Tensor:
        """Return the knots; or, for the forms with Jacobians, base point and step of each piece."""
        if self.quadrature == "difference":
            return knots
        base = knots[:, :-1] if self.quadrature == "left" else (knots[:, :-1] + knots[:, 1:]) / 2
        return torch.stack([base, knots.diff(dim=1)], 2)

    def features(self, points: Tensor) -> Tensor:
        """Return the map's values at points, or the products J Δy."""
        if self.quadrature == "difference":
            return self.map(points)
        return Linearisation(self.map, points[:, 0], checked=True).jvp(points[:, 1])

    def squares(self, knots: Tensor, values: Tensor) -> Tensor:
        """Return ‖Δf‖² + ρ‖Δy‖², or ‖J Δy‖² + ρ‖Δy‖², (B, P)."""
        pushed = values.diff(dim=1) if self.quadrature == "difference" else values
        return _row_squares(pushed) + self.rho * _row_squares(knots.diff(dim=1))

    @torch.no_grad()
    def bound(self, a: Tensor, b: Tensor) -> Tensor:
        """Return ½‖f(b) − f(a)‖² + ½ρ‖b − a‖², (B,); forms with Jacobians may fall short by their discretisation."""
        ends, values = torch.stack([a, b], 1), torch.stack([self.map(a), self.map(b)], 1)
        return (_row_squares(values.diff(dim=1)) + self.rho * _row_squares(ends.diff(dim=1)))[:, 0] / 2


class TangentialMetric(PullbackMetric):
    """The tangential metric ĴᵀĴ + ρI, the pullback of ŝ = σ²s (arXiv 2510.05509; that of s is σ⁻⁴ as much).

    Without the dimensionless ρ curves of zero length exist; the paper's value is not known to us, 1e-3 is our choice.
    """

    def __init__(self, score: Score, sigma: float, rho: float = 1e-3, quadrature: Quadrature = "difference") -> None:
        super().__init__(_scaled(score, sigma), rho, quadrature)


def subdivide(path: Tensor, num_subsamples: int) -> Tensor:
    """Cut every straight segment of a path (B, N+1, *S) into K equal pieces; return their ends, (B, NK+1, *S)."""
    if num_subsamples < 1:
        raise ValueError(f"num_subsamples must be at least 1, got {num_subsamples}")
    if num_subsamples == 1:
        return path
    start, step = path[:, :-1, None], path.diff(dim=1)[:, :, None]
    share = torch.arange(num_subsamples, dtype=path.dtype, device=path.device) / num_subsamples
    pieces = start + share.view(-1, *[1] * (path.ndim - 2)) * step
    return torch.cat([pieces.flatten(1, 2), path[:, -1:]], 1)


def require_path(path: Tensor) -> None:
    """Refuse anything but a finite floating-point batch of paths (B, N+1, *S) with at least one segment."""
    if path.ndim < 3 or path.shape[1] < 2:
        raise ValueError(f"path must have shape (B, N+1, *S) with N ≥ 1 segments, got {tuple(path.shape)}")
    require_batch(path.flatten(0, 1), "path")


def _scaled(score: Score, sigma: float) -> Score:
    """Return the map ŝ = σ²s, which refuses a score that changes the shape of its argument."""
    _require_positive(sigma, "sigma")

    def scaled(x: Tensor) -> Tensor:
        value = score(x)
        if value.shape != x.shape:
            raise ValueError(f"score must return the shape {tuple(x.shape)} of its argument, got {tuple(value.shape)}")
        return sigma**2 * value

    return scaled


def _require_positive(value: float, name: str) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


def _row_squares(x: Tensor) -> Tensor:
    """Return the sum of squares of each of the vectors in (B, P, *S), (B, P)."""
    return x.flatten(2).square().sum(2)


def _energy(squares: Tensor) -> Tensor:
    return squares.shape[1] / 2 * squares.sum(1)


def _chunks(points: Tensor, batch_size: int | None) -> tuple[Tensor, ...]:
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return points.split(batch_size or len(points))
