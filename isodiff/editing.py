"""Moving in latent space: paths between latents, and arcs of length γ along directions found at a latent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import index
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from isodiff.datasets import check_images
from isodiff.diffusion import check_latents, encode
from isodiff.geometry import move, require_batch, require_same_shape, singular_vectors, slerp

if TYPE_CHECKING:
    from diffusers import UNet2DModel

Generate = Callable[[Tensor], Tensor]  # latents (B, C, H, W) to images (B, C', H', W') in [−1, 1]: a `Generator`
Path = Callable[[Tensor, Tensor, float], Tensor]  # a, b and tau to the points (P, *S) at that share of the way: `slerp`


class LocalBasis(NamedTuple):
    """Leading directions at each latent, and how fast h changes along each."""

    sigma: Tensor  # (B, k), descending
    directions: Tensor  # (B, k, C, H, W), orthonormal tangent vectors of arbitrary sign


@torch.no_grad()
def traverse(
    generate: Generate, a: Tensor, b: Tensor, num_points: int, *, path: Path = slerp, batch_size: int = 64
) -> Tensor:
    """Decode `num_points` equally spaced points of the paths from a to b, both ends included, (P, num_points, …)."""
    require_batch(a, "a")
    require_batch(b, "b")
    require_same_shape(b, a, "b", "a")
    if num_points < 2:
        raise ValueError(f"num_points must be at least 2, for the two ends; got {num_points}")
    points = [path(a, b, tau) for tau in torch.linspace(0, 1, num_points, dtype=torch.float64).tolist()]
    for point in points:
        require_same_shape(point, a, "a point of the path", "a")
    return _decode(generate, torch.stack(points, 1), batch_size)


def gamma_traversal(
    generate: Generate, x: Tensor, direction: Tensor, gammas: Sequence[float] | Tensor, *, batch_size: int = 64
) -> Tensor:
    """Decode moves of x (B, C, H, W) by arc lengths γ along a direction each (Fig. 7, Hahm et al. 2024): (B, G, …)."""
    lengths = torch.as_tensor(gammas).flatten().tolist()
    return _decode(generate, torch.stack([move(x, direction, gamma) for gamma in lengths], 1), batch_size)


def local_basis(unet: UNet2DModel, x_t: Tensor, t: int, k: int, *, tolerance: float = 1e-3) -> LocalBasis:
    """Find the k leading right singular vectors of ∂h/∂x_t on the sphere's tangent space (Park et al. 2023).

    The U-Net is an unconditional one of 1000 steps. `tolerance` bounds the sine of the largest principal angle by which
    the subspace turns while the search space grows by a tenth; RuntimeError if it does not settle.
    """
    check_latents(unet, x_t, "x_t")
    if not 0 <= index(t) < 1000:
        raise ValueError(f"t must be a step 0 to 999; got {t}")
    options = {"criterion": "subspace", "tolerance": tolerance, "max_iterations": 200}
    return LocalBasis(*singular_vectors(partial(encode, unet, t=t), x_t, k, tangent=True, **options))


@torch.no_grad()
def _decode(generate: Generate, points: Tensor, batch_size: int) -> Tensor:
    """Decode points (P, N, C, H, W) in batches."""
    shape = getattr(generate, "shape", None)  # a `Generator` tells; of another map only its output is checked
    if shape is not None and tuple(shape) != tuple(points.shape[2:]):
        raise ValueError(f"latents must have the shape {tuple(shape)} of this model; got {tuple(points.shape[2:])}")
    batches = [check_images(generate(batch), len(batch)) for batch in points.flatten(0, 1).split(batch_size)]
    return torch.cat(batches).unflatten(0, points.shape[:2])
