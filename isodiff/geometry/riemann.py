r"""Metrics on noise space, and the energy of paths in them.

``s = ∇ log p_σ`` is the score of the noisy density p, (M, *S) → (M, *S) row by row for any M; ``ŝ = σ²s`` the same in
the units of x (``−σ ε_θ`` for a model of the noise) and ``Ĵ = −∂ŝ/∂x``, by Tweedie's formula ``I − Cov[αx₀|x]/σ²``: 1
along normals of the data manifold and 0 along tangents, as far as σ resolves it, and negative between modes.

Each of the N straight segments of a path, (B, N+1, *S), is cut into K equal pieces (``num_subsamples``), P = NK in all,
between the knots y₀ … y_P. With the squared length q_j ≈ Δy_jᵀ G Δy_j of a piece in a metric G,

    E = ½ P Σⱼ q_j ≈ ½ ∫ ẋᵀ G ẋ du,        L = Σⱼ √q_j,        E ≥ ½ L²,

with equality exactly if all pieces are equally long. With K = 1 a path may jump over what lies between its nodes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isodiff.geometry.jacobian import Linearisation, Map
from isodiff.geometry.sphere import require_at_least, require_batch, require_option

Score = Callable[[Tensor], Tensor]
Quadrature = Literal["difference", "midpoint", "left"]


class NoiseMetric:
    """A Riemannian metric on noise space.

    A subclass gives the points at which a path needs a costly map, from knots (B, P+1, *S) to (B, Q, *Q) (`_points`),
    that map, row by row, (M, *Q) → (M, *F) (`_features`), and from knots and the map's values, (B, Q, *F), the squared
    lengths of the pieces, (B, P) (`_squares`). ``batch_size`` bounds the points mapped at once; all if not given.
    """

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

    @torch.enable_grad()
    def energy_and_gradient(
        self, path: Tensor, *, num_subsamples: int = 4, batch_size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return energies (B,) and gradients in the nodes, (B, N+1, *S), in memory bounded by a batch; checks no path.

        The map's values f come without graph, then ∂E/∂f, which vector-Jacobian products, batch by batch, pull back.
        """
        path = path.detach().requires_grad_()
        knots = subdivide(path, num_subsamples)
        points = self._points(knots)
        flat = points.flatten(0, 1)
        chunks = _chunks(flat, batch_size)
        if len(chunks) == 1:
            energy = _energy(self._squares(knots, self._features(flat).unflatten(0, points.shape[:2])))
            return energy.detach(), torch.autograd.grad(energy.sum(), path)[0]
        with torch.no_grad():
            values = torch.cat([self._features(chunk) for chunk in chunks])
        values.requires_grad_()
        energy = _energy(self._squares(knots, values.unflatten(0, points.shape[:2])))
        covectors = torch.autograd.grad(energy.sum(), values, retain_graph=True)[0].split(len(chunks[0]))
        pulled = torch.cat([self._pull(c, u) for c, u in zip(chunks, covectors, strict=True)])
        gradient = torch.autograd.grad((energy.sum(), flat), path, (torch.ones_like(energy[0]), pulled))[0]
        return energy.detach(), gradient

    def _pieces(self, path: Tensor, num_subsamples: int, batch_size: int | None = None) -> Tensor:
        require_path(path)
        knots = subdivide(path, num_subsamples)
        points = self._points(knots)
        values = torch.cat([self._features(chunk) for chunk in _chunks(points.flatten(0, 1), batch_size)])
        return self._squares(knots, values.unflatten(0, points.shape[:2]))

    def _pull(self, points: Tensor, covector: Tensor) -> Tensor:
        points = points.detach().requires_grad_()
        return torch.autograd.grad(self._features(points), points, covector, materialize_grads=True)[0]


@dataclass(frozen=True)
class DensityMetric(NoiseMetric):
    """The conformal metric p^{−2a} I, short where data are dense, with p in the middle of each piece.

    ``log_density`` is log p, (M, *S) → (M,).
    """

    log_density: Callable[[Tensor], Tensor]
    exponent: float = 0.5

    def __post_init__(self) -> None:
        _require_positive(self.exponent, "exponent")

    def _points(self, knots: Tensor) -> Tensor:
        return (knots[:, :-1] + knots[:, 1:]) / 2

    def _features(self, points: Tensor) -> Tensor:
        values = self.log_density(points)
        if values.shape != points.shape[:1]:
            raise ValueError(f"log_density must return shape ({len(points)},), got {tuple(values.shape)}")
        return values

    def _squares(self, knots: Tensor, values: Tensor) -> Tensor:
        return torch.exp(-2 * self.exponent * values) * _row_squares(knots.diff(dim=1))


@dataclass(frozen=True)
class PullbackMetric(NoiseMetric):
    """JᵀJ + ρI, ρ ≥ 0, with J the Jacobian of a map f, (M, *S) → (M, *F): its geodesics are straight in f, if they can.

    The quadrature ``"difference"``, error O(1/N²), needs no Jacobian: q = ‖Δf‖² + ρ‖Δy‖². The others multiply J with a
    piece at its ``"midpoint"``, O(1/N²), or ``"left"`` end, O(1/N): q = ‖J Δy‖² + ρ‖Δy‖².
    """

    map: Map
    rho: float = 0.0
    quadrature: Quadrature = "difference"

    def __post_init__(self) -> None:
        if not 0 <= self.rho < math.inf:
            raise ValueError(f"rho must be finite and at least 0, got {self.rho}")
        require_option(self.quadrature, Quadrature, "quadrature")

    def _points(self, knots: Tensor) -> Tensor:
        """Return the knots; or, for the forms with Jacobians, base point and step of each piece."""
        if self.quadrature == "difference":
            return knots
        base = knots[:, :-1] if self.quadrature == "left" else (knots[:, :-1] + knots[:, 1:]) / 2
        return torch.stack([base, knots.diff(dim=1)], 2)

    def _features(self, points: Tensor) -> Tensor:
        if self.quadrature == "difference":
            return self.map(points)
        return Linearisation(self.map, points[:, 0], checked=True).jvp(points[:, 1])

    def _squares(self, knots: Tensor, values: Tensor) -> Tensor:
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
        _require_positive(sigma, "sigma")

        def scaled(x: Tensor) -> Tensor:
            value = score(x)
            if value.shape != x.shape:
                got = f"{tuple(x.shape)} of its argument, got {tuple(value.shape)}"
                raise ValueError(f"score must return the shape {got}")
            return sigma**2 * value

        super().__init__(scaled, rho, quadrature)


def subdivide(path: Tensor, num_subsamples: int) -> Tensor:
    """Cut every straight segment of a path (B, N+1, *S) into K equal pieces; return their ends, (B, NK+1, *S)."""
    require_at_least(1, num_subsamples=num_subsamples)
    if num_subsamples == 1:
        return path
    start, step = path[:, :-1, None], path.diff(dim=1)[:, :, None]
    share = torch.arange(num_subsamples, dtype=path.dtype, device=path.device) / num_subsamples
    pieces = start + share.view(-1, *[1] * (path.ndim - 2)) * step
    return torch.cat([pieces.flatten(1, 2), path[:, -1:]], 1)


def require_path(path: Tensor) -> None:
    """Refuse all but a finite floating-point batch of paths (B, N+1, *S) with at least one segment."""
    if path.ndim < 3 or path.shape[1] < 2:
        raise ValueError(f"path must have shape (B, N+1, *S) with N ≥ 1 segments, got {tuple(path.shape)}")
    require_batch(path.flatten(0, 1), "path")


def _require_positive(value: float, name: str) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


def _row_squares(x: Tensor) -> Tensor:
    return x.flatten(2).square().sum(2)


def _energy(squares: Tensor) -> Tensor:
    return squares.shape[1] / 2 * squares.sum(1)


def _chunks(points: Tensor, batch_size: int | None) -> tuple[Tensor, ...]:
    batch_size = len(points) if batch_size is None else batch_size
    require_at_least(1, batch_size=batch_size)
    return points.split(batch_size)
