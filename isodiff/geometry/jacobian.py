r"""Products with a Jacobian that is never formed, and its leading singular values.

``f`` maps (B, *S) to (B, *M) row by row; ``J`` is its Jacobian at one row, ``m × n``. Reverse mode gives ``Jᵀ u``; as
that is linear in ``u``, reverse mode through it gives ``(d(Jᵀu)/du)ᵀ v = J v``: a Jacobian-vector product by double
backward. Any number of products share one forward graph of ``f`` and can be differentiated in its parameters.

``f`` always receives exactly the rows of ``x``, never a tiled batch, so that a caller may close over a per-row quantity
such as the diffusion step. Attention runs with its plain kernel: the fused ones have no second derivative.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from isodiff.geometry.layers import TwiceDifferentiable, require_twice_differentiable
from isodiff.geometry.spectrum import leading_triplets
from isodiff.geometry.sphere import require_batch, require_same_shape, tangent_projection

Map = Callable[[Tensor], Tensor]


class Linearisation:
    """Evaluate ``f`` once at ``x``, with value ``y``; then multiply by its Jacobian as often as needed.

    Products can be differentiated in the parameters of ``f`` (and in ``x``, if ``x`` requires a gradient) when
    gradients are enabled at construction, and come detached otherwise. ``checked`` says that x is a finite batch.
    """

    def __init__(self, f: Map, x: Tensor, *, checked: bool = False, dtype: torch.dtype | None = None) -> None:
        if not checked:
            require_batch(x, "x")
        if torch.is_inference_mode_enabled():
            raise RuntimeError("torch.inference_mode keeps no graph for products; expected torch.no_grad, or neither")
        self._create_graph = torch.is_grad_enabled()
        self._layers = TwiceDifferentiable()
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), self._layers:
            self.x = x.view_as(x) if x.requires_grad and self._create_graph else x.detach().requires_grad_()
            self.y = f(self.x.clone())  # the copy is for layers that work in place
        require_rows(self.y, len(x))
        self.y = self.y if dtype is None else self.y.to(dtype)
        self.value = self.y if self._create_graph else self.y.detach()
        if self._create_graph:
            require_twice_differentiable(self.y)
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
        self._layers.inputs_only = True
        self._layers.zero_covector = covector is self._covector
        options = {"create_graph": create_graph, "retain_graph": True, "materialize_grads": True}
        try:
            with torch.enable_grad():
                return torch.autograd.grad(output, argument, covector, **options)[0]
        except RuntimeError as error:  # of fused attention, of layers recomputed, of an operation without derivative
            reason = str(error).partition("\n")[0].rstrip(".")
            raise RuntimeError(
                f"f has no products by double backward ({reason}); take the loss with route='differences'"
            ) from error
        finally:
            self._layers.inputs_only = self._layers.zero_covector = False


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
    by_rows = at_x.y[0].numel() <= x[0].numel()
    product, like = (at_x.vjp, at_x.y) if by_rows else (at_x.jvp, at_x.x)
    units = torch.eye(like[0].numel(), dtype=like.dtype, device=x.device)
    products = [product(u.expand(len(x), -1).reshape(like.shape)).flatten(1) for u in units]
    return _restriction(at_x, tangent)(torch.stack(products, 1 if by_rows else 2))


def singular_values(f: Map, x: Tensor, k: int, *, tangent: bool = False, **search: object) -> Tensor:
    """Return the ``k`` leading singular values of the Jacobian at every row, (B, k), descending: `singular_vectors`."""
    return _triplets(f, x, k, tangent, vectors=False, **search)[0]


def singular_vectors(f: Map, x: Tensor, k: int, *, tangent: bool = False, **search: object) -> tuple[Tensor, Tensor]:
    """Return leading singular values, (B, k), and right singular vectors, (B, k, *S), of the Jacobian at every row.

    Both come without graph; a row's do not depend on the other rows. Unit vectors are determined up to sign. With
    ``tangent`` the Jacobian is restricted to the sphere's tangent space at ``x``; ``search``: `leading_triplets`.
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
    mean's eigenvectors are the right singular vectors of the stacked Jacobians: exact if ``dense``, else by iteration.
    """
    if dense:
        jacobian = dense_jacobian(f, x, tangent=tangent)
        right = torch.linalg.svd(jacobian.flatten(0, 1), full_matrices=False)[2]
        if not 1 <= k <= len(right):
            raise ValueError(f"k must be between 1 and {len(right)}, got {k}")
        pushed = (jacobian @ right[:k].mT).double()
        return pushed.mT @ pushed

    at_x = Linearisation(f, x)
    restrict = tangent_projection(at_x.x.detach()) if tangent else lambda v: v

    def push(rows: Tensor) -> Tensor:  # every point's Jacobian times the same vectors, (1, b, n) → (1, b, B·m)
        everywhere = (restrict(v.reshape(x.shape[1:]).expand(x.shape)) for v in rows[0])
        return torch.stack([at_x.jvp(v).flatten() for v in everywhere])[None]

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


def require_rows(y: Tensor, count: int, *, differentiable: bool = True) -> None:
    """Refuse the output of a map that is no tensor, lost rows, or does not depend on its input."""
    if not isinstance(y, Tensor):
        hint = "; return its sample" if hasattr(y, "sample") else ""
        raise TypeError(f"f must return a tensor, got {type(y).__name__}{hint}")
    if y.ndim == 0 or len(y) != count:
        raise ValueError(f"f must map {count} rows to {count} rows, got output of shape {tuple(y.shape)}")
    if differentiable and not y.requires_grad:
        raise ValueError("f(x) must depend on x differentiably, got an output detached from x")
