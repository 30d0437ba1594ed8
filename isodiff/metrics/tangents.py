r"""Leading directions of a model against the true tangent space of the manifold of faces.

At a face x = render(z) the tangent space is spanned by the ten columns of T = ∂render/∂z. The leading left singular
vectors of x_T → x₀ are the changes of the generated face that latents make most easily, the leading right ones of
X_t → H the changes of a noisy face that the bottleneck sees most. With Q an orthonormal basis of T's columns and uᵢ the
model's directions,

    alignment = 1/k Σᵢ ‖Qᵀuᵢ‖² = 1/k Σⱼ cos² θⱼ

is the mean over the principal angles θⱼ: 1 if every leading direction is a possible change of the face, and 10/n for k
random directions of ℝⁿ.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import subspace_angles
from torch import Tensor

from isodiff.datasets import check_images
from isodiff.datasets.face_factors import estimate_factors
from isodiff.datasets.faces import FACTORS, render, sample_factors
from isodiff.diffusion import check_steps, ddim_sample, encode, latent_shape
from isodiff.geometry import Linearisation, Map, project_to_tangent, singular_vectors
from isodiff.metrics.generator import draw_latents, number_generator
from isodiff.metrics.measure import Arrays, Measurement, over_units
from isodiff.metrics.truth import means

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from diffusers import SchedulerMixin, UNet2DModel


def principal_angles(a: ArrayLike, b: ArrayLike) -> NDArray[np.floating]:
    """Return the principal angles between the spans of the columns of a (…, n, p) and of b (…, n, q), by scipy.

    (…, min(p, q)) radians, ascending, to 10⁻⁷ (Björck and Golub 1973); columns of any lengths, but independent.
    """
    a, b = _unit_columns(a), _unit_columns(b)
    if a.shape[:-1] != b.shape[:-1]:
        raise ValueError(f"both spans must lie in one space; got shapes {a.shape} and {b.shape}")
    return np.vectorize(subspace_angles, signature="(n,p),(n,q)->(k)")(a, b)[..., ::-1]


def _unit_columns(columns: ArrayLike) -> NDArray[np.floating]:
    given = np.asarray(columns)
    matrix = given.astype(float)
    if matrix.ndim < 2 or not 1 <= matrix.shape[-1] <= matrix.shape[-2]:
        raise ValueError(f"expected (…, n, p) with 1 ≤ p ≤ n columns; got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError("columns must be finite; got NaN or infinite values")
    length = np.linalg.norm(matrix, axis=-2, keepdims=True)
    matrix = matrix / np.where(length > 0, length, 1)
    precision = np.finfo(given.dtype if given.dtype.kind == "f" else float).eps
    if (np.linalg.matrix_rank(matrix, rtol=precision * matrix.shape[-2]) < matrix.shape[-1]).any():
        raise ValueError(
            f"the {matrix.shape[-1]} columns must be linearly independent; their span has fewer dimensions"
        )
    return matrix


def tangent_space(factors: Tensor, resolution: int) -> Tensor:
    """Return the columns ∂render/∂z_k that span the manifold's tangent space, (B, 10) → (B, 3R², 10), without graph."""
    with torch.no_grad():
        at_z = Linearisation(partial(render, resolution=resolution), factors)
        directions = torch.eye(len(FACTORS), dtype=factors.dtype, device=factors.device)
        return torch.stack([at_z.jvp(row.expand_as(factors)).flatten(1) for row in directions], dim=2)


def decoder_alignment(
    f: Map,
    shape: tuple[int, ...],
    *,
    num_latents: int,
    k: int = len(FACTORS),
    tolerance: float = 3e-3,
    batch_size: int = 4,
    seed: int = 0,
    device: torch.device | str = "cpu",
    protocol: Mapping[str, Any] | None = None,
) -> Measurement:
    """Compare what latents (B, *shape) change most in faces f(x_T), (B, 3, R, R), with what can change in a face.

    The directions are the k leading left singular vectors of ∂f/∂x_T within the tangent space of the latents' sphere,
    to a largest residual of `tolerance` · σ₁ (at 0.03 the last of ten can still be wrong); the true tangent space is
    that of the fitted face, as a generated one lies near the manifold, not on it. Details: ``chance``, mean principal
    angles in degrees, ascending, mean energy ‖Qᵀuᵢ‖² of each direction and mean σᵢ, and the re-rendering ``error``.
    """

    def compute(start: int, stop: int) -> Arrays:
        x_T = draw_latents(shape, start, stop, seed=seed, stream="tangent").to(device)
        sigma, right = _leading(f, x_T, k, tolerance)
        with torch.no_grad():
            at_x = Linearisation(f, x_T)
            left = torch.stack([at_x.jvp(v).flatten(1) for v in right.unbind(1)], dim=2)
        faces = check_images(at_x.value.clamp(-1, 1), stop - start, name="f")
        fit = estimate_factors(faces)
        true = tangent_space(fit.factors.double(), faces.shape[-1])
        return _compare(left, true, sigma, left.shape[1]) | {"error": fit.error.cpu().numpy()}

    key = {"k": k, "tolerance": tolerance, **(protocol or {})}
    return _alignment("decoder_alignment", compute, num_latents, "latents", batch_size, seed, key)


def encoder_alignment(
    f: Map,
    scheduler: SchedulerMixin,
    t: int,
    resolution: int,
    *,
    num_faces: int,
    k: int = len(FACTORS),
    tolerance: float = 3e-3,
    batch_size: int = 8,
    seed: int = 0,
    device: torch.device | str = "cpu",
    protocol: Mapping[str, Any] | None = None,
) -> Measurement:
    """Compare what a map such as X_t → H sees most in noisy faces, √ᾱ_t render(z) + √(1−ᾱ_t) ε, with what can change.

    As `decoder_alignment`, with leading right singular vectors of ∂f/∂x_t; these and the faces' tangent space are both
    taken within the tangent space at x_t of the sphere through it. These faces lie on the manifold: no ``error``.
    """
    check_steps(scheduler, t)

    def compute(start: int, stop: int) -> Arrays:
        draws = [number_generator(seed, "tangent faces", index) for index in range(start, stop)]
        factors = torch.cat([sample_factors(1, generator=draw) for draw in draws])
        faces = render(factors, resolution)
        noise = draw_latents(faces.shape[1:], start, stop, seed=seed, stream="tangent noise")
        x_t = scheduler.add_noise(faces, noise, torch.full((len(faces),), t)).to(device)
        sigma, right = _leading(f, x_t, k, tolerance)
        columns, at_x = tangent_space(factors.double(), resolution), x_t.flatten(1).double().cpu()
        true = torch.stack([project_to_tangent(column, at_x) for column in columns.unbind(2)], dim=2)
        return _compare(right.flatten(2).mT, true, sigma, true.shape[1] - 1)

    key = {"t": t, "k": k, "tolerance": tolerance, **(protocol or {})}
    return _alignment("encoder_alignment", compute, num_faces, "faces", batch_size, seed, key)


def tangent_alignment(
    unet: UNet2DModel,
    scheduler: SchedulerMixin,
    *,
    num_latents: int,
    t: int,
    num_steps: int,
    batch_size: int = 4,
    **options: Any,  # noqa: ANN401 - k, tolerance and seed of both
) -> dict[str, Measurement]:
    """Measure both ends of a model of faces: `decoder_alignment` of `num_steps` of DDIM, `encoder_alignment` at t."""
    shape = latent_shape(unet)
    if shape[0] != 3 or shape[1] != shape[2]:
        raise ValueError(f"tangent spaces are known of faces only, (3, R, R); this model makes images {shape}")
    options |= {"batch_size": batch_size, "device": unet.device}
    sampler, encoder = partial(ddim_sample, unet, scheduler, num_steps=num_steps), partial(encode, unet, t=t)
    decoded = decoder_alignment(sampler, shape, num_latents=num_latents, protocol={"num_steps": num_steps}, **options)
    encoded = encoder_alignment(encoder, scheduler, t, shape[1], num_faces=num_latents, **options)
    return {"decoder_alignment": decoded, "encoder_alignment": encoded}


def _leading(f: Map, x: Tensor, k: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Singular values and right vectors within the sphere; small blocks take the fewest products."""
    return singular_vectors(f, x, k, tangent=True, tolerance=tolerance, block_size=min(k, 4))


def _compare(directions: Tensor, true: Tensor, sigma: Tensor, dimension: int) -> Arrays:
    """Angles, and energies in the true space (B, n, 10), of directions (B, n, k), leading ones first."""
    model, space = directions.double().cpu().numpy(), true.cpu().numpy()
    basis = np.linalg.qr(space / np.linalg.norm(space, axis=1, keepdims=True))[0]
    unit = model / np.linalg.norm(model, axis=1, keepdims=True)
    return {
        "angles": np.rad2deg(principal_angles(model, space)),
        "energy": np.square(np.swapaxes(basis, 1, 2) @ unit).sum(axis=1),
        "sigma": sigma.cpu().numpy(),
        "dimension": np.full(len(model), dimension),
    }


def _alignment(
    name: str, compute: Callable[[int, int], Arrays], count: int, unit: str, size: int, seed: int, key: dict[str, Any]
) -> Measurement:
    if count < 2 or size < 1:
        raise ValueError(f"at least 2 latents and a batch of 1 are needed; got {count} and {size}")
    arrays = over_units(compute, count, size=size, what=name, seed=seed, **key)
    details = {field: means(arrays[field]) for field in ("angles", "energy", "sigma")}
    details["chance"] = len(FACTORS) / int(arrays["dimension"][0])
    if "error" in arrays:
        details["error"] = float(arrays["error"].mean())
    aligned = arrays["energy"].mean(axis=1)
    return Measurement.from_units(name, aligned, unit=unit, seed=seed, protocol=key, details=details)
