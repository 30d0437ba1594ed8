r"""Moving in latent space: paths between latents, and steps along directions found at a latent.

The steps themselves are those of `geometry.great_circles`: arcs of length γ, in the units of the latents, that keep the
radius. Directions come from the *local basis* (Park et al. 2023): the leading right singular vectors of ∂h/∂x, h the
bottleneck of the U-Net, among the tangent vectors at x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import index
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from isodiff.diffusion.hspace import check_latents, encode
from isodiff.geometry.great_circles import combine, move, transport
from isodiff.geometry.jacobian import singular_vectors
from isodiff.geometry.sphere import require_batch, require_same_shape, slerp
from isodiff.metrics.generator import check_images

if TYPE_CHECKING:
    from diffusers import UNet2DModel

__all__ = ["LocalBasis", "combine", "gamma_traversal", "local_basis", "move", "transport", "traverse"]

Generate = Callable[[Tensor], Tensor]
Path = Callable[[Tensor, Tensor, float], Tensor]
"""Points (P, *S) at the share tau of the way from a to b, both (P, *S): `lerp`, `slerp`, or any such object."""


@dataclass(frozen=True)
class LocalBasis:
    """Leading directions at each latent.

    Attributes:
        sigma: singular values, (B, k), descending: how fast h changes along each direction.
        directions: orthonormal tangent vectors, (B, k, C, H, W). Their signs are arbitrary.
    """

    sigma: Tensor
    directions: Tensor


@torch.no_grad()
def traverse(
    generate: Generate, a: Tensor, b: Tensor, num_points: int, *, path: Path = slerp, batch_size: int = 64
) -> Tensor:
    """Decode equally spaced points of the paths from a to b, both ends included.

    Args:
        generate: a map from latents (B, C, H, W) to images in [−1, 1], for example a `Generator`.
        a: starts, (P, C, H, W).
        b: ends, (P, C, H, W).
        num_points: N, at least 2.
        path: `slerp`, `lerp`, or any callable (a, b, tau) → points with tau from 0 to 1.
        batch_size: latents decoded at once; it does not change the images.

    Returns:
        Images, (P, N, C', H', W').

    Raises:
        ValueError: endpoints of different shape, latents that do not match the model, or a number out of range.
    """
    require_batch(a, "a")
    require_batch(b, "b")
    require_same_shape(b, a, "b", "a")
    if num_points < 2:
        raise ValueError(f"num_points must be at least 2, for the two ends; got {num_points}")
    frames = []
    for tau in torch.linspace(0, 1, num_points, dtype=torch.float64).tolist():
        frames.append(path(a, b, tau))
        require_same_shape(frames[-1], a, "a point of the path", "a")
    return _decode(generate, torch.stack(frames, 1), batch_size)


def local_basis(
    unet: UNet2DModel,
    x_t: Tensor,
    t: int,
    k: int,
    *,
    tolerance: float = 1e-3,
    max_iterations: int = 200,
    num_train_timesteps: int = 1000,
    generator: torch.Generator | None = None,
) -> LocalBasis:
    """Find the k leading right singular vectors of ∂h/∂x_t on the sphere's tangent space (Park et al. 2023).

    Args:
        unet: an unconditional `UNet2DModel`.
        x_t: (B, C, H, W) noisy images; at t = T−1 these are the latents x_T.
        t: the step, 0 … T−1.
        k: 1 to the smaller of n − 1 and the size of h.
        tolerance: on the sine of the largest principal angle by which the subspace turns while the search space grows
            by a tenth.
        max_iterations: largest dimension of the search space, in multiples of k.
        num_train_timesteps: T, which the U-Net itself does not know.
        generator: of the random start; a fixed seed if not given.

    Returns:
        A `LocalBasis`, without graph; a row's does not depend on the other rows.

    Raises:
        TypeError: t is not an integer, or the model not a `UNet2DModel`.
        ValueError: model and x_t do not fit, or t or k is out of range.
        RuntimeError: the angles have not settled; see the note.

    Note:
        The subspace is determined only as far as σ_k and σ_{k+1} differ. On a flat spectrum, at which isometry aims,
        its basis is a choice among many equally good ones, and takes many products to settle.
    """
    check_latents(unet, x_t, "x_t")
    if not 0 <= index(t) < num_train_timesteps:
        raise ValueError(f"t must be a step 0 to {num_train_timesteps - 1}; got {t}")
    sigma, directions = singular_vectors(
        partial(encode, unet, t=t),
        x_t,
        k,
        tangent=True,
        criterion="subspace",
        tolerance=tolerance,
        max_iterations=max_iterations,
        generator=generator,
    )
    return LocalBasis(sigma, directions)


def gamma_traversal(
    generate: Generate, x: Tensor, direction: Tensor, gammas: Sequence[float] | Tensor, *, batch_size: int = 64
) -> Tensor:
    """Decode the steps of several lengths along one direction (Fig. 7, Hahm et al. 2024).

    Args:
        generate: as for `traverse`.
        x: latents x_T, (B, C, H, W).
        direction: (B, C, H, W), as for `move`.
        gammas: (G,) arc lengths in the units of x; 0 gives the image itself.
        batch_size: latents decoded at once; it does not change the images.

    Returns:
        Images, (B, G, C', H', W').

    Raises:
        ValueError: as `traverse` and `move`, or there is no γ.
    """
    lengths = torch.as_tensor(gammas).flatten().tolist()
    if not lengths:
        raise ValueError("gammas must hold at least one arc length; got none")
    return _decode(generate, torch.stack([move(x, direction, gamma) for gamma in lengths], 1), batch_size)


def _decode(generate: Generate, points: Tensor, batch_size: int) -> Tensor:
    """Decode points (P, N, C, H, W) in batches."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    shape = getattr(generate, "shape", None)  # a `Generator` tells; of another map only its output is checked
    if shape is not None and tuple(shape) != tuple(points.shape[2:]):
        raise ValueError(f"latents must have the shape {tuple(shape)} of this model; got {tuple(points.shape[2:])}")
    with torch.no_grad():
        batches = [check_images(generate(batch), len(batch)) for batch in points.flatten(0, 1).split(batch_size)]
    return torch.cat(batches).unflatten(0, points.shape[:2])
