r"""Products with a Jacobian that is never formed, and its leading singular values.

``f`` maps (B, *S) to (B, *M) row by row; ``J`` is its Jacobian at one row, ``m × n`` with ``n`` the size of S and ``m``
of M. Reverse mode gives ``Jᵀ u``. As ``Jᵀ u`` is linear in ``u``, reverse mode through *that* map gives
``(d(Jᵀu)/du)ᵀ v = J v``: a Jacobian-vector product by double backward. Both products, and any number of them, share
one forward graph of ``f``, and both can be differentiated in the parameters of ``f``.

Note:
    ``f`` always receives exactly the rows of ``x``, never a tiled batch, so that a caller may close over a per-row
    quantity such as the diffusion step. Attention runs with its plain kernel here: the fused ones have no second
    derivative.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from isodiff.geometry.convolution import TrilinearConvolutions
from isodiff.geometry.krylov import Criterion, leading_triplets
from isodiff.geometry.sphere import require_batch, require_same_shape

Map = Callable[[Tensor], Tensor]


class Linearisation:
    """Evaluate ``f`` once at ``x``; then multiply by its Jacobian as often as needed.

    Products can be differentiated in the parameters of ``f`` (and in ``x``, if ``x`` requires a gradient) when
    gradients are enabled at construction, and come detached otherwise.

    Args:
        f: Map from (B, *S) to (B, *M), row by row.
        x: Where to linearise, (B, *S).

    Attributes:
        y: The value ``f(x)``, (B, *M).

    Raises:
        ValueError: If ``x`` is not a finite batch, if ``f`` changes the number of rows, or if its output does not
            depend on ``x``.
    """

    def __init__(self, f: Map, x: Tensor) -> None:
        """Run ``f`` and keep its graph."""
        require_batch(x, "x")
        self._create_graph = torch.is_grad_enabled()
        self._convolutions = TrilinearConvolutions()
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), self._convolutions:
            self.x = x.view_as(x) if x.requires_grad and self._create_graph else x.detach().requires_grad_()
            self.y = f(self.x)
        if self.y.ndim == 0 or len(self.y) != len(x):
            raise ValueError(f"f must map {len(x)} rows to {len(x)} rows, got output of shape {tuple(self.y.shape)}")
        if not self.y.requires_grad:
            raise ValueError("f(x) must depend on x differentiably, got an output detached from x")
        self._covector: Tensor | None = None

    def vjp(self, u: Tensor) -> Tensor:
        """Return ``Jᵀ u`` for ``u`` of shape (B, *M), in the shape (B, *S)."""
        require_same_shape(u, self.y, "u", "f(x)")
        return self._gradient(self.y, self.x, u, create_graph=self._create_graph)

    def jvp(self, v: Tensor) -> Tensor:
        """Return ``J v`` for ``v`` of shape (B, *S), in the shape (B, *M)."""
        require_same_shape(v, self.x, "v", "x")
        if self._covector is None:
            self._covector = torch.zeros_like(self.y, requires_grad=True)
            self._pulled_back = self._gradient(self.y, self.x, self._covector, create_graph=True)
        return self._gradient(self._pulled_back, self._covector, v, create_graph=self._create_graph)

    def _gradient(self, output: Tensor, argument: Tensor, covector: Tensor, *, create_graph: bool) -> Tensor:
        self._convolutions.inputs_only = True
        self._convolutions.zero_covector = covector is self._covector
        try:
            with torch.enable_grad():
                return torch.autograd.grad(
                    output, argument, covector, create_graph=create_graph, retain_graph=True, materialize_grads=True
                )[0]
        finally:
            self._convolutions.inputs_only = self._convolutions.zero_covector = False

    @property
    def value(self) -> Tensor:
        """``f(x)``, attached to the graph only if gradients were enabled at construction."""
        return self.y if self._create_graph else self.y.detach()


def jvp(f: Map, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``f(x)`` and ``J v``, differentiable in the parameters of ``f``.

    Args:
        f: Map from (B, *S) to (B, *M), row by row.
        x: Point, (B, *S).
        v: Direction, (B, *S).

    Returns:
        Value and product, both (B, *M).

    Raises:
        ValueError: If the shapes do not fit (see `Linearisation`).
    """
    at_x = Linearisation(f, x)
    return at_x.value, at_x.jvp(v)


def vjp(f: Map, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``f(x)`` and ``Jᵀ u``, differentiable in the parameters of ``f``.

    Args:
        f: Map from (B, *S) to (B, *M), row by row.
        x: Point, (B, *S).
        u: Covector, (B, *M).

    Returns:
        Value (B, *M) and product (B, *S).

    Raises:
        ValueError: If the shapes do not fit (see `Linearisation`).
    """
    at_x = Linearisation(f, x)
    return at_x.value, at_x.vjp(u)


def pullback_vp(f: Map, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``f(x)``, ``J v`` and ``Jᵀ J v``, differentiable in the parameters of ``f``.

    ``JᵀJ`` is the Euclidean metric of the output pulled back to the input.

    Args:
        f: Map from (B, *S) to (B, *M), row by row.
        x: Point, (B, *S).
        v: Direction, (B, *S).

    Returns:
        Value (B, *M), push-forward (B, *M) and pull-back (B, *S).

    Raises:
        ValueError: If the shapes do not fit (see `Linearisation`).
    """
    at_x = Linearisation(f, x)
    pushed = at_x.jvp(v)
    return at_x.value, pushed, at_x.vjp(pushed)


@torch.no_grad()
def dense_jacobian(f: Map, x: Tensor, *, tangent: bool = False) -> Tensor:
    """Return the whole Jacobian at every row, (B, m, n), without graph; ``J P`` with ``tangent``. For small maps.

    Args:
        f: Map from (B, *S) to (B, *M), row by row.
        x: Points, (B, *S).
        tangent: Restrict it to the tangent space at ``x`` of the sphere through ``x``.

    Note:
        Costs min(n, m) products with all rows.
    """
    at_x = Linearisation(f, x)
    n, m = x[0].numel(), at_x.y[0].numel()
    if m <= n:
        units = torch.eye(m, dtype=at_x.y.dtype, device=x.device)
        rows = [at_x.vjp(u.expand(len(x), -1).reshape(at_x.y.shape)).flatten(1) for u in units]
        jacobian = torch.stack(rows, 1)
    else:
        units = torch.eye(n, dtype=x.dtype, device=x.device)
        jacobian = torch.stack([at_x.jvp(v.expand(len(x), -1).reshape(x.shape)).flatten(1) for v in units], 2)
    if not tangent:
        return jacobian
    flat = at_x.x.detach().flatten(1)
    radial = (flat / flat.norm(dim=1, keepdim=True))[:, None]
    return jacobian - (jacobian @ radial.mT) * radial


def singular_values(
    f: Map,
    x: Tensor,
    k: int,
    *,
    tangent: bool = False,
    criterion: Criterion = "residual",
    tolerance: float | None = None,
    block_size: int | None = None,
    max_iterations: int = 50,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the ``k`` leading singular values of the Jacobian at every row.

    Args:
        f: Map from (B, *S) to (B, *M), row by row.
        x: Points, (B, *S).
        k: How many, 1 to min(n, m), or min(n − 1, m) with ``tangent``.
        tangent: Restrict the Jacobian to the tangent space at ``x`` of the sphere through ``x``.
        criterion: When to stop: ``"residual"``, exact to many digits; ``"values"``, to about a per cent at a fraction
            of the cost; ``"subspace"``, when the principal angles have settled. See `krylov`.
        tolerance: Of the criterion; the square root of the machine precision for ``"residual"``, relative to σ₁, 0.005
            for ``"values"`` and 0.01 for ``"subspace"`` if not given.
        block_size: Vectors by which the search space grows; ``k`` for ``"residual"`` and 4 for the other two if not
            given. Of a value more often degenerate than that, copies may be missed.
        max_iterations: Largest dimension of the search space, in multiples of ``k``.
        generator: Source of the random start, the same for every row; a fixed seed if not given.

    Returns:
        Singular values, (B, k), descending, without graph. A row's do not depend on the other rows of the batch.

    Raises:
        ValueError: If an option is unknown or out of range, or ``x`` does not fit.
        RuntimeError: If the criterion does not hold after ``max_iterations``, or a product is not finite.

    Note:
        Costs two products a dimension of the search space: with ``"values"`` and ``k = 50`` it ends at about 2.6 k on a
        decaying spectrum and at 5.5 k on a flat one. A product multiplies all rows at once: give many.
    """
    return _triplets(f, x, k, tangent, False, criterion, tolerance, block_size, max_iterations, generator)[0]


def singular_vectors(
    f: Map,
    x: Tensor,
    k: int,
    *,
    tangent: bool = False,
    criterion: Criterion = "residual",
    tolerance: float | None = None,
    block_size: int | None = None,
    max_iterations: int = 50,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the ``k`` leading singular values and right singular vectors of the Jacobian at every row.

    Args and Raises as `singular_values`.

    Returns:
        Singular values (B, k), descending, and unit right singular vectors (B, k, *S), both without graph. Vectors are
        determined up to sign, and within degenerate subspaces up to a rotation.
    """
    return _triplets(f, x, k, tangent, True, criterion, tolerance, block_size, max_iterations, generator)


@torch.no_grad()
def _triplets(f: Map, x: Tensor, k: int, tangent: bool, vectors: bool, *options: object) -> tuple[Tensor, Tensor]:
    at_x = Linearisation(f, x)
    flat = at_x.x.detach().flatten(1)
    radial = (flat / flat.norm(dim=1, keepdim=True))[:, None] if tangent else None

    def project(rows: Tensor) -> Tensor:
        return rows - (rows @ radial.mT) * radial if tangent else rows

    def push(rows: Tensor) -> Tensor:
        return torch.stack([at_x.jvp(v.reshape(x.shape)).flatten(1) for v in rows.unbind(1)], 1)

    def pull(rows: Tensor) -> Tensor:
        return project(torch.stack([at_x.vjp(u.reshape(at_x.y.shape)).flatten(1) for u in rows.unbind(1)], 1))

    dimensions = {"dimension": flat.shape[1] - tangent, "num_outputs": at_x.y[0].numel()}
    names = ("criterion", "tolerance", "block_size", "max_iterations", "generator")
    settings = dict(zip(names, options, strict=True))
    sigma, right = leading_triplets(push, pull, project, flat, k, vectors=vectors, **dimensions, **settings)
    return sigma, right.reshape(len(x), right.shape[1], *x.shape[1:])
