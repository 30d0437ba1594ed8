r"""Energy and length of discrete paths in noise space, in any Riemannian metric.

A path is N + 1 nodes x₀ … x_N. Each of its N straight segments is cut into K equal pieces, P = NK in all, between the
knots y₀ … y_P. A metric G says how long a piece is, q_j ≈ (y_{j+1} − y_j)ᵀ G (y_{j+1} − y_j), and

    E = ½ P Σⱼ q_j ≈ ½ ∫ ẋᵀ G ẋ du,        L = Σⱼ √q_j,        E ≥ ½ L²,

with equality exactly if all pieces are equally long (Cauchy and Schwarz). A geodesic minimises E between its ends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from isodiff.geometry.sphere import require_batch


class NoiseMetric(ABC):
    """A Riemannian metric on noise space.

    A subclass names a map that is costly to evaluate (`features`), the points at which a path needs it (`points`), and
    the squared lengths of the pieces that follow from its values (`squares`).
    """

    @abstractmethod
    def features(self, points: Tensor) -> Tensor:
        """Evaluate the map that the metric is made of, row by row, (M, *Q) → (M, *F)."""

    @abstractmethod
    def squares(self, knots: Tensor, values: Tensor) -> Tensor:
        """Return the squared lengths q of pieces, (B, P), from knots (B, P+1, *S) and `features` at `points`."""

    @abstractmethod
    def product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return G v at every row, for x and v of shape (B, *S)."""

    def bound(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a lower bound on the energy of every path between the rows of a and b, (B,); zero if none is known."""
        return torch.zeros(len(a), dtype=a.dtype, device=a.device)

    def knots(self, path: Tensor, num_subsamples: int) -> Tensor:
        """Cut the segments of a path (B, N+1, *S) into pieces; return their ends, (B, P+1, *S)."""
        return subdivide(path, num_subsamples)

    def points(self, knots: Tensor) -> Tensor:
        """Return where `features` is needed, (B, Q, *Q): at the knots, unless overridden."""
        return knots

    def energy(self, path: Tensor, *, num_subsamples: int = 4) -> Tensor:
        """Return the energy ½ P Σ q of each path.

        Args:
            path: Nodes, (B, N+1, *S).
            num_subsamples: K, pieces a segment.

        Returns:
            (B,), differentiable in the path.

        Raises:
            ValueError: If the path is no finite batch of at least one segment each, or K < 1.

        Note:
            With K = 1 a path may jump over what lies between its nodes at no cost; see `solve_geodesic`.
        """
        return _energy(self._squares(path, num_subsamples))

    def length(self, path: Tensor, *, num_subsamples: int = 4, batch_size: int | None = None) -> Tensor:
        """Return the length Σ √q of each path, (B,), without graph; arguments as `energy_and_gradient`."""
        return self.segment_lengths(path, num_subsamples=num_subsamples, batch_size=batch_size).sum(1)

    @torch.no_grad()
    def segment_lengths(self, path: Tensor, *, num_subsamples: int = 4, batch_size: int | None = None) -> Tensor:
        """Return the length of every segment of each path, (B, N), without graph; see `energy_and_gradient`."""
        squares = self._squares(path, num_subsamples, batch_size)
        return squares.sqrt().unflatten(1, (path.shape[1] - 1, -1)).sum(2)

    def energy_and_gradient(
        self, path: Tensor, *, num_subsamples: int = 4, batch_size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the energy of each path and its gradient in the nodes, in memory bounded by a batch of `features`.

        The values f of the map are found without a graph, then ∂E/∂f, which is cheap (for differences of scores it is
        P(2f_j − f_{j−1} − f_{j+1})), and a vector-Jacobian product of one batch at a time brings that back to the path.

        Args:
            path: Nodes, (B, N+1, *S).
            num_subsamples: K, pieces a segment.
            batch_size: Most points given to `features` at once; all if not given.

        Returns:
            Energies (B,) and gradients (B, N+1, *S), ends included, both without graph.

        Raises:
            ValueError: As `energy`, or if ``batch_size < 1``.

        Note:
            Costs a forward and a backward pass at each point, and a second forward pass if they need several batches.
        """
        require_path(path)
        with torch.enable_grad():
            path = path.detach().requires_grad_()
            knots = self.knots(path, num_subsamples)
            points = self.points(knots)
            flat = points.flatten(0, 1)
            chunks = _split(flat, batch_size)
            if len(chunks) == 1:
                energy = _energy(self.squares(knots, self.features(flat).unflatten(0, points.shape[:2])))
                return energy.detach(), torch.autograd.grad(energy.sum(), path)[0]
            with torch.no_grad():
                values = torch.cat([self.features(chunk) for chunk in chunks])
            values.requires_grad_()
            energy = _energy(self.squares(knots, values.unflatten(0, points.shape[:2])))
            covectors = torch.autograd.grad(energy.sum(), values, retain_graph=True)[0].split(len(chunks[0]))
            pulled = torch.cat([_pull(self, c, u) for c, u in zip(chunks, covectors, strict=True)])
            gradient = torch.autograd.grad((energy.sum(), flat), path, (torch.ones_like(energy[0]), pulled))[0]
        return energy.detach(), gradient

    def _squares(self, path: Tensor, num_subsamples: int, batch_size: int | None = None) -> Tensor:
        require_path(path)
        knots = self.knots(path, num_subsamples)
        points = self.points(knots)
        values = torch.cat([self.features(chunk) for chunk in _split(points.flatten(0, 1), batch_size)])
        return self.squares(knots, values.unflatten(0, points.shape[:2]))


def subdivide(path: Tensor, num_subsamples: int) -> Tensor:
    """Cut every straight segment of a path into equal pieces.

    Args:
        path: Nodes, (B, N+1, *S).
        num_subsamples: K, pieces a segment, at least 1.

    Returns:
        The ends of the pieces, (B, NK+1, *S), of which every K-th is a node.

    Raises:
        ValueError: If ``num_subsamples < 1``.
    """
    if num_subsamples < 1:
        raise ValueError(f"num_subsamples must be at least 1, got {num_subsamples}")
    if num_subsamples == 1:
        return path
    start, step = path[:, :-1, None], path.diff(dim=1)[:, :, None]
    share = torch.arange(num_subsamples, dtype=path.dtype, device=path.device) / num_subsamples
    pieces = start + share.view(-1, *[1] * (path.ndim - 2)) * step
    return torch.cat([pieces.flatten(1, 2), path[:, -1:]], 1)


def row_squares(x: Tensor) -> Tensor:
    """Return the sum of squares of each of the vectors in (B, P, *S), (B, P)."""
    return x.flatten(2).square().sum(2)


def require_path(path: Tensor) -> None:
    """Refuse anything but a finite floating-point batch of paths (B, N+1, *S) with at least one segment."""
    if path.ndim < 3 or path.shape[1] < 2:
        raise ValueError(f"path must have shape (B, N+1, *S) with N ≥ 1 segments, got {tuple(path.shape)}")
    require_batch(path.flatten(0, 1), "path")


def _energy(squares: Tensor) -> Tensor:
    return squares.shape[1] / 2 * squares.sum(1)


def _split(points: Tensor, batch_size: int | None) -> tuple[Tensor, ...]:
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return points.split(batch_size or len(points))


def _pull(metric: NoiseMetric, points: Tensor, covector: Tensor) -> Tensor:
    points = points.detach().requires_grad_()
    return torch.autograd.grad(metric.features(points), points, covector, materialize_grads=True)[0]
