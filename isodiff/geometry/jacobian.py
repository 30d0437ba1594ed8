r"""Products with a Jacobian that is never formed, and its leading singular values.

``f`` maps (B, *S) to (B, *M) row by row; ``J`` is its Jacobian at one row, ``m × n``. Reverse mode gives ``Jᵀ u``; as
that is linear in ``u``, reverse mode through it gives ``(d(Jᵀu)/du)ᵀ v = J v``: a Jacobian-vector product by double
backward. Any number of products share one forward graph of ``f`` and can be differentiated in its parameters.

``f`` always receives exactly the rows of ``x``, never a tiled batch, so that a caller may close over a per-row quantity
such as the diffusion step. Attention runs with its plain kernel: the fused ones have no second derivative.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from isodiff.geometry.convolution import TrilinearConvolutions
from isodiff.geometry.spectrum import leading_triplets
from isodiff.geometry.sphere import require_batch, require_same_shape, tangent_projection

Map = Callable[[Tensor], Tensor]


class Linearisation:
    """Evaluate ``f`` once at ``x``, with value ``y``; then multiply by its Jacobian as often as needed.

    Products can be differentiated in the parameters of ``f`` (and in ``x``, if ``x`` requires a gradient) when
    gradients are enabled at construction, and come detached otherwise. ``checked`` says that x is a finite batch.
    """

    def __init__(self, f: Map, x: Tensor, *, checked: bool = False) -> None:
        if not checked:
            require_batch(x, "x")
        self._create_graph = torch.is_grad_enabled()
        self._convolutions = TrilinearConvolutions()
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), self._convolutions:
            self.x = x.view_as(x) if x.requires_grad and self._create_graph else x.detach().requires_grad_()
            self.y = f(self.x)
        require_rows(self.y, len(x))
        self._covector: Tensor | None = None

    def vjp(self, u: Tensor) -> Tensor:
        """Return ``Jᵀ u``, (B, *M) → (B, *S)."""
        require_same_shape(u, self.y, "u", "f(x)")
        return self._gradient(self.y, self.x, u, create_graph=self._create_graph)

    def jvp(self, v: Tensor) -> Tensor:
        """Return ``J v``, (B, *S) → (B, *M)."""
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
    """Return ``f(x)`` and ``J v``, both (B, *M), for x and v (B, *S); differentiable in the parameters of ``f``."""
    at_x = Linearisation(f, x)
    return at_x.value, at_x.jvp(v)


def vjp(f: Map, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``f(x)``, (B, *M), and ``Jᵀ u``, (B, *S), for u (B, *M); differentiable in the parameters of ``f``."""
    at_x = Linearisation(f, x)
    return at_x.value, at_x.vjp(u)


def pullback_vp(f: Map, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``f(x)``, ``J v`` and ``JᵀJ v``, the pulled-back metric times v; differentiable as `jvp`."""
    at_x = Linearisation(f, x)
    pushed = at_x.jvp(v)
    return at_x.value, pushed, at_x.vjp(pushed)


@torch.no_grad()
def dense_jacobian(f: Map, x: Tensor, *, tangent: bool = False) -> Tensor:
    """Return the Jacobian at every row, (B, m, n), without graph, by min(n, m) products; for small maps.

    With ``tangent`` it is restricted to the tangent space at ``x`` of the sphere through ``x``.
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
    return _restriction(at_x, tangent)(jacobian)


def singular_values(f: Map, x: Tensor, k: int, *, tangent: bool = False, **search: object) -> Tensor:
    """Return the ``k`` leading singular values of the Jacobian at every row, (B, k), descending: `singular_vectors`."""
    return _triplets(f, x, k, tangent, vectors=False, **search)[0]


def singular_vectors(f: Map, x: Tensor, k: int, *, tangent: bool = False, **search: object) -> tuple[Tensor, Tensor]:
    """Return leading singular values, (B, k), and right singular vectors, (B, k, *S), of the Jacobian at every row.

    Both come without graph, and a row's do not depend on the other rows; unit vectors are determined up to sign, and
    within degenerate subspaces up to a rotation. ``tangent`` restricts the Jacobian to the sphere's tangent space at
    ``x``. ``search`` are options of `leading_triplets`.
    """
    sigma, right = _triplets(f, x, k, tangent, vectors=True, **search)
    return sigma, right.reshape(len(x), k, *x.shape[1:])


@torch.no_grad()
def _triplets(f: Map, x: Tensor, k: int, tangent: bool, **options: object) -> tuple[Tensor, Tensor]:
    at_x = Linearisation(f, x)
    project = _restriction(at_x, tangent)

    def push(rows: Tensor) -> Tensor:
        return torch.stack([at_x.jvp(v.reshape(x.shape)).flatten(1) for v in rows.unbind(1)], 1)

    def pull(rows: Tensor) -> Tensor:
        return project(torch.stack([at_x.vjp(u.reshape(at_x.y.shape)).flatten(1) for u in rows.unbind(1)], 1))

    sizes = {"dimension": x[0].numel() - tangent, "num_outputs": at_x.y[0].numel()}
    return leading_triplets(push, pull, project, at_x.x.detach().flatten(1), k, **sizes, **options)


@torch.no_grad()
def restrict_to_mean(
    f: Map, x: Tensor, k: int, *, tangent: bool = False, dense: bool = False, **search: object
) -> Tensor:
    """Return ``V Gₙ Vᵀ`` at every point, (B, k, k) in float64, the rows of ``V`` being leading eigenvectors of mean Gₙ.

    ``Gₙ = Pₙ JₙᵀJₙ Pₙ`` is the metric pulled back at point n, ``Pₙ`` with ``tangent`` the tangent projection there. The
    mean's eigenvectors are the right singular vectors of the stacked Jacobians: exact from ``dense`` ones, else by
    iteration until values settle, with nearly as much of the mean metric.
    """
    if dense:
        jacobian = dense_jacobian(f, x, tangent=tangent)
        largest = min(jacobian.shape[2], jacobian.shape[0] * jacobian.shape[1])
        if not 1 <= k <= largest:
            raise ValueError(f"k must be between 1 and {largest}, got {k}")
        right = torch.linalg.svd(jacobian.flatten(0, 1), full_matrices=False)[2][:k]
        pushed = (jacobian @ right.mT).double()
        return pushed.mT @ pushed

    at_x = Linearisation(f, x)
    restrict = tangent_projection(at_x.x.detach()) if tangent else lambda v: v

    def push(rows: Tensor) -> Tensor:
        # every point's Jacobian times the same vectors, (1, b, n) → (1, b, B·m)
        images = [at_x.jvp(restrict(v.reshape(x.shape[1:]).expand(x.shape))).flatten() for v in rows[0]]
        return torch.stack(images)[None]

    def pull(rows: Tensor) -> Tensor:
        return torch.stack([restrict(at_x.vjp(u.reshape(at_x.y.shape))).sum(0).flatten() for u in rows[0]])[None]

    like, sizes = at_x.x.detach()[:1].flatten(1), {"dimension": x[0].numel(), "num_outputs": at_x.y.numel()}
    _, right = leading_triplets(push, pull, lambda rows: rows, like, k, criterion="values", **sizes, **search)
    pushed = push(right)[0].reshape(k, len(x), -1).transpose(0, 1).double()  # (B, k, m)
    return pushed @ pushed.mT


def _restriction(at_x: Linearisation, tangent: bool) -> Map:
    """Return the projection of rows (B, b, n) onto the tangent space, or the identity."""
    flat = at_x.x.detach().flatten(1)
    radial = (flat / flat.norm(dim=1, keepdim=True))[:, None]
    return (lambda rows: rows - (rows @ radial.mT) * radial) if tangent else (lambda rows: rows)


def require_rows(y: Tensor, count: int) -> None:
    """Refuse the output of a map that lost rows, or that does not depend on its input."""
    if y.ndim == 0 or len(y) != count:
        raise ValueError(f"f must map {count} rows to {count} rows, got output of shape {tuple(y.shape)}")
    if not y.requires_grad:
        raise ValueError("f(x) must depend on x differentiably, got an output detached from x")
