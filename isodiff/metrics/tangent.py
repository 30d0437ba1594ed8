r"""Leading directions of a model against the true tangent space of the manifold of faces.

At a face x = render(z) the tangent space is spanned by the ten columns of T = ∂render/∂z. A model has its own idea of
where faces can go: the leading left singular vectors of x_T → x₀ are the changes of the generated face that latents
make most easily, the leading right singular vectors of X_t → H the changes of a noisy face that the bottleneck sees
most. With Q an orthonormal basis of T's columns and uᵢ the model's directions,

    alignment = 1/k Σᵢ ‖Qᵀuᵢ‖² = 1/k Σⱼ cos² θⱼ

is the mean over the principal angles θⱼ: 1 if every leading direction is a possible change of the face, and 10/n for k
random directions of ℝⁿ.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from isodiff.datasets.face_factors import estimate_factors
from isodiff.datasets.faces import FACTORS, render, sample_factors
from isodiff.diffusion.hspace import encode
from isodiff.diffusion.process import check_steps, ddim_sample
from isodiff.geometry import project_to_tangent, singular_vectors
from isodiff.geometry.jacobian import Linearisation, Map
from isodiff.metrics.generator import check_images, draw_latents, number_generator
from isodiff.metrics.intervals import bootstrap_interval
from isodiff.metrics.measurement import Measurement
from isodiff.metrics.store import Arrays, Store
from isodiff.metrics.subspaces import orthonormal_basis, principal_angles

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diffusers import SchedulerMixin, UNet2DModel
    from torch import Tensor


def tangent_space(factors: Tensor, resolution: int) -> Tensor:
    """Return the columns ∂render/∂z_k that span the tangent space of the manifold of faces.

    Args:
        factors: (B, 10) in [−1, 1].
        resolution: Side R of the images in pixels.

    Returns:
        (B, 3R², 10), without graph, in the precision of `factors`.

    Raises:
        ValueError: As `isodiff.datasets.faces.render`.
    """
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
    store: Store | None = None,
) -> Measurement:
    """Compare what latents change most in generated faces with what can change in a face.

    Args:
        f: Differentiable map from latents (B, *shape) to faces (B, 3, R, R).
        shape: Shape of one latent.
        num_latents: Number of latents, at least 2, from the stream ``"tangent"``.
        k: Leading left singular vectors of ∂f/∂x_T, restricted to the tangent space of the latents' sphere.
        tolerance: Largest residual of the singular vectors relative to σ₁, see
            `isodiff.geometry.jacobian.singular_vectors`; at 0.03 the last of ten directions can still be wrong.
        batch_size: Latents at once.
        seed: Seed of the latents.
        device: Where `f` computes.
        protocol: What else decides the number: the steps of a sampler, for example.
        store: Where finished latents are kept; scoped by the caller with the model.

    Returns:
        ``decoder_alignment``, mean over latents of the mean squared cosine, 0 to 1. Details: ``chance``, mean principal
        angles in degrees, ascending, mean energy ‖Qᵀuᵢ‖² of each direction in the tangent space and mean σᵢ, all with
        intervals; ``error``, the mean re-rendering error of the faces at which tangent spaces are taken.

    Raises:
        ValueError: If a size is out of range, or `f` does not return faces.
        RuntimeError: If the singular vectors do not converge.

    Note:
        The tangent space is the one at the fitted face, as a generated face lies near the manifold, not on it. Cost:
        of the order of 100 Jacobian products through `f` for the ten directions of a faces32 model.
    """
    _check_sizes(num_latents, batch_size)
    key = {"k": k, "tolerance": tolerance, **(protocol or {})}

    def compute(start: int, stop: int) -> Arrays:
        x_T = draw_latents(shape, start, stop, seed=seed, stream="tangent").to(device)
        sigma, right = _leading(f, x_T, k, tolerance)
        with torch.no_grad():
            at_x = Linearisation(f, x_T)
            left = torch.stack([at_x.jvp(v).flatten(1) for v in right.unbind(1)], dim=2)
        faces = check_images(at_x.value.clamp(-1, 1), stop - start, name="f")
        fit = estimate_factors(faces)
        true = tangent_space(fit.factors.double(), faces.shape[-1])
        return _compare(left, true, sigma) | {"error": fit.error.cpu().numpy()}

    arrays = (store or Store()).chunks(
        compute, num_latents, size=batch_size, what="decoder alignment", version=1, seed=seed, **key
    )
    size = int(arrays["dimension"][0])
    details = {"chance": len(FACTORS) / size, "error": float(arrays["error"].mean())}
    return _measurement("decoder_alignment", arrays, "latents", seed, key, details)


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
    store: Store | None = None,
) -> Measurement:
    """Compare what an encoder sees most in noisy faces with what can change in a face.

    Args:
        f: Differentiable map from noisy faces x_t (B, 3, R, R) to features, such as X_t → H.
        scheduler: The noise schedule: x_t = √ᾱ_t render(z) + √(1−ᾱ_t) ε.
        t: The step.
        resolution: Side R of the faces.
        num_faces: Number of faces, at least 2; the factors of face i are drawn by
            ``number_generator(seed, "tangent faces", i)``.
        k: Leading right singular vectors of ∂f/∂x_t. These and the tangent space of the faces are both taken within the
            tangent space at x_t of the sphere through it.
        tolerance: As `decoder_alignment`.
        batch_size: Faces at once.
        seed: Seed of faces and noise.
        device: As `decoder_alignment`.
        protocol: What else decides the number.
        store: As `decoder_alignment`.

    Returns:
        ``encoder_alignment``, as `decoder_alignment`, without ``error``: these faces lie on the manifold.

    Raises:
        ValueError: If a size or the step is out of range.
        RuntimeError: If the singular vectors do not converge.
    """
    _check_sizes(num_faces, batch_size)
    check_steps(scheduler, t)
    key = {"t": t, "k": k, "tolerance": tolerance, **(protocol or {})}

    def compute(start: int, stop: int) -> Arrays:
        draws = [number_generator(seed, "tangent faces", index) for index in range(start, stop)]
        factors = torch.cat([sample_factors(1, generator=draw) for draw in draws])
        faces = render(factors, resolution)
        noise = draw_latents(faces.shape[1:], start, stop, seed=seed, stream="tangent noise")
        x_t = scheduler.add_noise(faces, noise, torch.full((len(faces),), t)).to(device)
        sigma, right = _leading(f, x_t, k, tolerance)
        columns = tangent_space(factors.double(), resolution)
        at_x = x_t.flatten(1).double().cpu()
        true = torch.stack([project_to_tangent(column, at_x) for column in columns.unbind(2)], dim=2)
        return _compare(right.flatten(2).mT, true, sigma)

    arrays = (store or Store()).chunks(
        compute, num_faces, size=batch_size, what="encoder alignment", version=1, seed=seed, **key
    )
    details = {"chance": len(FACTORS) / (int(arrays["dimension"][0]) - 1)}
    return _measurement("encoder_alignment", arrays, "faces", seed, key, details)


def tangent_alignment(
    unet: UNet2DModel,
    scheduler: SchedulerMixin,
    *,
    num_latents: int,
    t: int,
    num_steps: int,
    k: int = len(FACTORS),
    tolerance: float = 3e-3,
    batch_size: int = 4,
    seed: int = 0,
    store: Store | None = None,
) -> dict[str, Measurement]:
    """Compare both ends of a diffusion model of faces with the renderer's tangent spaces.

    Args:
        unet: The model.
        scheduler: Its noise schedule.
        num_latents: Latents and faces, at least 2.
        t: Step of the encoder X_t → H.
        num_steps: Steps of DDIM in the map x_T → x₀.
        k: As `decoder_alignment` and `encoder_alignment`; so are the others.
        tolerance: Of the singular vectors.
        batch_size: Latents or faces at once.
        seed: Of every draw.
        store: Where finished work is kept; scoped by the caller with the model.

    Returns:
        ``decoder_alignment`` and ``encoder_alignment``.

    Raises:
        ValueError: As the two, or for a model of other images than square ones with 3 channels.
        RuntimeError: If the singular vectors do not converge.
    """
    side = unet.config.sample_size
    shape = (unet.config.in_channels, *((side, side) if isinstance(side, int) else side))
    if shape[0] != 3 or shape[1] != shape[2]:
        raise ValueError(f"tangent spaces are known of faces only, (3, R, R); this model makes images {shape}")
    shared = {"k": k, "tolerance": tolerance, "batch_size": batch_size, "seed": seed, "store": store}
    shared["device"] = unet.device
    sampler = partial(ddim_sample, unet, scheduler, num_steps=num_steps)
    encoder = partial(encode, unet, t=t)
    steps = {"num_steps": num_steps}
    decoded = decoder_alignment(sampler, shape, num_latents=num_latents, protocol=steps, **shared)
    encoded = encoder_alignment(encoder, scheduler, t, shape[1], num_faces=num_latents, **shared)
    return {"decoder_alignment": decoded, "encoder_alignment": encoded}


def _leading(f: Map, x: Tensor, k: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Singular values and right vectors within the sphere; small blocks take the fewest products."""
    return singular_vectors(f, x, k, tangent=True, tolerance=tolerance, block_size=min(k, 4))


def _compare(directions: Tensor, true: Tensor, sigma: Tensor) -> Arrays:
    """Angles, and energies in the true space (B, n, 10), of directions (B, n, k), leading ones first."""
    model, space = directions.double().cpu().numpy(), true.cpu().numpy()
    unit = model / np.linalg.norm(model, axis=1, keepdims=True)
    energy = np.square(np.swapaxes(orthonormal_basis(space), 1, 2) @ unit).sum(axis=1)
    return {
        "angles": np.rad2deg(principal_angles(model, space)),
        "energy": energy,
        "sigma": sigma.cpu().numpy(),
        "dimension": np.full(len(model), model.shape[1]),
    }


def _measurement(
    name: str, arrays: Arrays, unit: str, seed: int, protocol: dict[str, Any], details: dict[str, Any]
) -> Measurement:
    for field in ("angles", "energy", "sigma"):
        columns = arrays[field]
        intervals = [list(bootstrap_interval(column)) for column in columns.T]
        details[field] = {"value": columns.mean(axis=0).tolist(), "interval": intervals}
    aligned = arrays["energy"].mean(axis=1)
    return Measurement.from_units(name, aligned, unit=unit, seed=seed, protocol=protocol, details=details)


def _check_sizes(count: int, batch_size: int) -> None:
    if count < 2 or batch_size < 1:
        raise ValueError(f"at least 2 latents and a batch of 1 are needed; got {count} and {batch_size}")
