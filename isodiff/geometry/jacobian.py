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

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from isodiff.geometry.convolution import TrilinearConvolutions
from isodiff.geometry.sphere import project_to_tangent, require_batch, require_same_shape

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


def singular_values(
    f: Map,
    x: Tensor,
    k: int,
    *,
    tangent: bool = False,
    tolerance: float | None = None,
    max_iterations: int = 50,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the ``k`` leading singular values of the Jacobian at every row.

    Args:
        f: Map from (B, *S) to (B, *M), row by row.
        x: Points, (B, *S).
        k: How many, 1 to min(n, m), or min(n − 1, m) with ``tangent``.
        tangent: Restrict the Jacobian to the tangent space at ``x`` of the sphere through ``x``.
        tolerance: Largest residual ``‖Jᵀu − σv‖``, relative to σ₁; the square root of the machine precision if not
            given. The error of a singular value is at most this, and of the order of its square over the gap.
        max_iterations: Largest number of expansions of the search space.
        generator: Source of the random start; a fixed seed if not given.

    Returns:
        Singular values, (B, k), descending, without graph.

    Raises:
        ValueError: If ``k`` is out of range or ``x`` does not fit.
        RuntimeError: If the residual is still above the tolerance after ``max_iterations``.

    Note:
        Costs ``2k`` products an iteration; see `singular_vectors` for the method.
    """
    return singular_vectors(
        f, x, k, tangent=tangent, tolerance=tolerance, max_iterations=max_iterations, generator=generator
    )[0]


@torch.no_grad()
def singular_vectors(
    f: Map,
    x: Tensor,
    k: int,
    *,
    tangent: bool = False,
    tolerance: float | None = None,
    max_iterations: int = 50,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the ``k`` leading singular values and right singular vectors of the Jacobian at every row.

    Block Krylov iteration with full reorthogonalisation (Golub and Underwood 1977; Musco and Musco 2015), all rows at
    once: within an orthonormal basis ``Q`` the best triplets come from the singular value decomposition of ``J Q``;
    the residuals ``Jᵀu − σv`` of the ``k`` leading ones join the basis until they vanish.

    Args:
        f: Map from (B, *S) to (B, *M), row by row.
        x: Points, (B, *S).
        k: How many, 1 to min(n, m), or min(n − 1, m) with ``tangent``.
        tangent: Restrict the Jacobian to the tangent space at ``x`` of the sphere through ``x``.
        tolerance: As in `singular_values`.
        max_iterations: As in `singular_values`.
        generator: As in `singular_values`.

    Returns:
        Singular values (B, k), descending, and unit right singular vectors (B, k, *S), both without graph. Vectors are
        determined up to sign, and within degenerate subspaces up to a rotation.

    Raises:
        ValueError: If ``k`` is out of range or ``x`` does not fit.
        RuntimeError: If the residual is still above the tolerance after ``max_iterations``.
    """
    at_x = Linearisation(f, x)
    flat_x, num_outputs = at_x.x.detach().flatten(1), at_x.y[0].numel()
    rows, dimension = len(flat_x), flat_x.shape[1] - tangent
    if not 1 <= k <= min(dimension, num_outputs):
        raise ValueError(f"k must be between 1 and {min(dimension, num_outputs)}, got {k}")
    if tolerance is None:
        tolerance = math.sqrt(torch.finfo(x.dtype).eps)
    if generator is None:
        generator = torch.Generator().manual_seed(0)

    def restrict(columns: Tensor) -> Tensor:
        return torch.stack([project_to_tangent(c, flat_x) for c in columns.unbind(2)], 2) if tangent else columns

    def push(columns: Tensor) -> Tensor:
        return torch.stack([at_x.jvp(c.reshape(x.shape)).flatten(1) for c in columns.unbind(2)], 2)

    def pull(columns: Tensor) -> Tensor:
        return restrict(torch.stack([at_x.vjp(c.reshape(at_x.y.shape)).flatten(1) for c in columns.unbind(2)], 2))

    def random_columns(count: int) -> Tensor:
        noise = torch.randn(rows, flat_x.shape[1], count, generator=generator, device=generator.device, dtype=x.dtype)
        return noise.to(x.device)

    def orthonormal(columns: Tensor, others: Tensor) -> Tensor:
        for _ in range(2):  # what rounding leaves of the others, or of the radial direction, goes the second time
            columns = torch.linalg.qr(restrict(columns - others @ (others.mT @ columns)))[0]
        return columns

    basis = orthonormal(random_columns(k), flat_x.new_zeros(rows, flat_x.shape[1], 0))
    image = push(basis)
    for _ in range(max_iterations):
        left, sigma, weights = torch.linalg.svd(image, full_matrices=False)
        left, sigma, weights = left[:, :, :k], sigma[:, :k], weights[:, :k]
        right = basis @ weights.mT
        residual = pull(left) - right * sigma[:, None]
        size = residual.norm(dim=1, keepdim=True)
        worst = (size / sigma[:, None, :1].clamp_min(torch.finfo(x.dtype).tiny)).max().item()
        if worst <= tolerance or basis.shape[2] == dimension:
            return sigma, right.mT.reshape(rows, k, *x.shape[1:])
        # A vanished residual has no direction left to offer; a random one keeps the block full.
        vanished = size <= torch.finfo(x.dtype).eps * sigma[:, None, :1]
        block = torch.where(vanished, random_columns(k), residual / size.clamp_min(torch.finfo(x.dtype).tiny))
        block = block[:, :, : dimension - basis.shape[2]]
        block = orthonormal(block, basis)
        basis, image = torch.cat([basis, block], 2), torch.cat([image, push(block)], 2)
    raise RuntimeError(
        f"the {k} leading singular values did not converge: relative residual {worst:.2g} after {max_iterations} "
        f"iterations, accepted is {tolerance:.2g}; raise max_iterations or tolerance"
    )
