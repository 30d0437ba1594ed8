r"""Recover the factors of a face by fitting the renderer: ẑ = argmin_z ‖render(z) − x‖², z ∈ [−1, 1]¹⁰.

Levenberg–Marquardt from a linear first guess; the Jacobian's ten columns are forward-mode products of the renderer.
"""

import warnings
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from isodiff.datasets.faces import FACTORS, render, sample_factors

_GUESS_RESOLUTION = 16
_NUM_ITERATIONS, _STEP_TOLERANCE = 10, 1e-4  # in factors
_CHUNK = 64  # faces fitted at once


class FactorEstimate(NamedTuple):
    """The best fit; 3 R² times its error is the squared distance to the manifold of faces, if the fit is global."""

    factors: Tensor  # (B, 10)
    error: Tensor  # (B,): mean squared difference of the rendered face to the image


@torch.no_grad()
def estimate_factors(images: Tensor) -> FactorEstimate:
    """Fit the renderer to images (B, 3, R, R), nominally in [−1, 1]; of faces at 32 pixels the error is ≤ 10⁻⁴."""
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or not images.is_floating_point():
        raise ValueError(f"images must be floating-point (B, 3, R, R); got {images.dtype} of shape {shape}")
    if not torch.isfinite(images).all():
        raise ValueError("images must be finite; got NaN or infinite values")
    return FactorEstimate(*map(torch.cat, zip(*map(_fit, images.split(_CHUNK)), strict=True)))


def _fit(images: Tensor) -> FactorEstimate:
    resolution, target = images.shape[-1], images.flatten(1)
    z = (_features(images) @ _regression().to(images)).clamp(-0.95, 0.95)
    error = _error(z, target, resolution)
    damping = torch.full_like(error, 1e-2)
    rows = torch.arange(len(z), device=z.device)  # still moving; each face stops by itself
    for _ in range(_NUM_ITERATIONS):
        if not len(rows):
            break
        picture, jacobian = _linearise(z[rows], resolution)
        gradient = torch.bmm(jacobian, (target[rows] - picture).unsqueeze(2))
        curvature = torch.bmm(jacobian, jacobian.mT)
        scale = torch.diag_embed(curvature.diagonal(dim1=1, dim2=2) + 1e-4)
        step = torch.linalg.solve(curvature + damping[rows].view(-1, 1, 1) * scale, gradient).squeeze(2)
        proposal = (z[rows] + step).clamp(-1, 1)
        proposed = _error(proposal, target[rows], resolution)
        better = proposed < error[rows]
        moved = (proposal - z[rows]).abs().amax(dim=1)
        z[rows] = torch.where(better.unsqueeze(1), proposal, z[rows])
        error[rows] = torch.where(better, proposed, error[rows])
        damping[rows] = torch.where(better, damping[rows] / 4, damping[rows] * 6).clamp(1e-7, 1e6)
        rows = rows[moved >= _STEP_TOLERANCE]
    return FactorEstimate(z, error)


def _error(z: Tensor, target: Tensor, resolution: int) -> Tensor:
    return (render(z, resolution).flatten(1) - target).square().mean(dim=1)


def _linearise(z: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """Return pictures (B, P) and ∂picture/∂z_k, (B, 10, P): one forward-mode pass that all ten directions share."""

    def along(direction: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(lambda factors: render(factors, resolution).flatten(1), (z,), (direction.expand_as(z),))

    directions = torch.eye(len(FACTORS), dtype=z.dtype, device=z.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's forward mode still loads its own deprecated scripts
        return torch.func.vmap(along, out_dims=(None, 1))(directions)


def _features(images: Tensor) -> Tensor:
    small = torch.nn.functional.interpolate(images, (_GUESS_RESOLUTION,) * 2, mode="bilinear", antialias=True)
    return torch.nn.functional.pad(small.flatten(1), (0, 1), value=1.0)


@cache
def _regression() -> Tensor:
    """Ridge regression from small images to factors, learned once from 4,000 rendered faces."""
    factors = sample_factors(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = _features(render(factors, 2 * _GUESS_RESOLUTION))
    gram = features.T @ features + torch.eye(features.shape[1], dtype=torch.float64)
    return torch.linalg.solve(gram, features.T @ factors)
