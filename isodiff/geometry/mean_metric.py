"""The metrics that a map pulls back at several points, on the leading directions that they share."""

from __future__ import annotations

import torch
from torch import Tensor

from isodiff.geometry.jacobian import Linearisation, Map, dense_jacobian
from isodiff.geometry.krylov import leading_triplets
from isodiff.geometry.sphere import project_to_tangent


@torch.no_grad()
def restrict_to_mean(
    f: Map,
    x: Tensor,
    k: int,
    *,
    tangent: bool = False,
    dense: bool = False,
    tolerance: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return ``V Gₙ Vᵀ`` at every point, the rows of ``V`` being the ``k`` leading eigenvectors of the mean of the Gₙ.

    ``Gₙ = Pₙ JₙᵀJₙ Pₙ`` is the metric pulled back at point n. The mean's eigenvectors are the right singular vectors of
    the Jacobians stacked on top of each other.

    Args:
        f: Map from (B, *S) to (B, *M), row by row.
        x: Points, (B, *S).
        k: Number of directions, 1 to min(n, B·m).
        tangent: Whether ``Pₙ`` projects onto the tangent space at point n of the sphere; it is the identity if not.
        dense: Whether to find the directions from dense Jacobians, exactly, rather than by iteration (see `krylov`).
        tolerance: Of the iteration's values, 0.005 if not given; the directions are then a space that holds nearly as
            much of the mean metric as the exact ones.
        generator: Source of the iteration's random start.

    Returns:
        Symmetric matrices, (B, k, k), in float64.

    Raises:
        ValueError: If ``k`` is out of range or ``x`` does not fit.
        RuntimeError: If the iteration does not converge.
    """
    if dense:
        jacobian = dense_jacobian(f, x, tangent=tangent)
        n, outputs = jacobian.shape[2], jacobian.shape[0] * jacobian.shape[1]
        if not 1 <= k <= min(n, outputs):
            raise ValueError(f"k must be between 1 and {min(n, outputs)}, got {k}")
        right = torch.linalg.svd(jacobian.flatten(0, 1), full_matrices=False)[2][:k]
        pushed = (jacobian @ right.mT).double()
        return pushed.mT @ pushed

    at_x = Linearisation(f, x)

    def restrict(v: Tensor) -> Tensor:
        return project_to_tangent(v, at_x.x.detach()) if tangent else v

    def push(rows: Tensor) -> Tensor:
        """Apply every point's Jacobian to the same vectors, (1, b, n) → (1, b, B·m)."""
        images = [at_x.jvp(restrict(v.reshape(x.shape[1:]).expand(x.shape))).flatten() for v in rows[0]]
        return torch.stack(images)[None]

    def pull(rows: Tensor) -> Tensor:
        return torch.stack([restrict(at_x.vjp(u.reshape(at_x.y.shape))).sum(0).flatten() for u in rows[0]])[None]

    _, right = leading_triplets(
        push,
        pull,
        lambda rows: rows,
        at_x.x.detach()[:1].flatten(1),
        k,
        dimension=x[0].numel(),
        num_outputs=at_x.y.numel(),
        criterion="values",
        tolerance=tolerance,
        generator=generator,
    )
    pushed = push(right)[0].reshape(k, len(x), -1).transpose(0, 1).double()  # (B, k, m)
    return pushed @ pushed.mT
