r"""DDIM inversion, x₀ → x_T → x̂₀: how well images come back, and whether their latents look like noise.

What comes back is judged on images, ‖x̂₀ − x₀‖² and LPIPS. The latents are compared with N(0, Iₙ), from which the model
was trained to start: their norm with E‖x‖, the product of neighbouring pixels with 0, the kurtosis with the Gaussian's.
A latent that is too short, blotchy or heavy-tailed may still decode to its own image, but edits of it start where the
model has seen no noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import kurtosis

from isodiff.diffusion.inversion import invert
from isodiff.geometry.sphere import expected_radius
from isodiff.metrics.generator import check_images
from isodiff.metrics.measurement import Measurement
from isodiff.metrics.path_steps import describe, measure_all
from isodiff.metrics.precision import full_precision
from isodiff.metrics.store import Arrays, Store, content_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diffusers import SchedulerMixin, UNet2DModel
    from numpy.typing import NDArray
    from torch import Tensor

    from isodiff.metrics.path_steps import Distance


def neighbour_correlation(latents: Tensor) -> NDArray[np.float64]:
    """Return the lag-1 spatial autocorrelation of each latent, mean of the horizontal and the vertical one.

    ``ρ = mean(x_{i,j} x_{i,j+1}) / mean(x²)`` over channels and pixels, and likewise downwards. The mean that noise has
    is known, 0, and is not estimated: a constant offset counts as correlation.

    Args:
        latents: (B, C, H, W) with H, W ≥ 2.

    Returns:
        (B,) in about [−1, 1]; 0 is expected of white noise, with a standard deviation of about 1/√(2 C H W).

    Raises:
        ValueError: If the shape is another, or a latent is zero.
    """
    x = _check_latents(latents, 2)
    power = np.square(x).mean(axis=(1, 2, 3))
    if (power == 0).any():
        raise ValueError(f"latents must not be zero; number {int(power.argmin())} is")
    across = (x[..., :, 1:] * x[..., :, :-1]).mean(axis=(1, 2, 3))
    down = (x[..., 1:, :] * x[..., :-1, :]).mean(axis=(1, 2, 3))
    return (across + down) / 2 / power


def excess_kurtosis(latents: Tensor) -> NDArray[np.float64]:
    """Return the excess kurtosis of the numbers of each latent (B, C, H, W), (B,); unbiased for noise, where it is 0.

    Its standard deviation for white noise is about √(24/n).
    """
    x = _check_latents(latents, 1)
    return kurtosis(x.reshape(len(x), -1), axis=1, bias=False)


def norm_ratio(latents: Tensor) -> NDArray[np.float64]:
    """Return the norm of each latent (B, C, H, W) over that of noise, ``‖x‖ / E‖N(0, Iₙ)‖``, (B,)."""
    x = _check_latents(latents, 1)
    return np.linalg.norm(x.reshape(len(x), -1), axis=1) / expected_radius(x[0].size)


def inversion_error(
    unet: UNet2DModel,
    scheduler: SchedulerMixin,
    images: Tensor,
    num_steps: int,
    *,
    distances: Mapping[str, Distance],
    refinements: int = 0,
    batch_size: int = 16,
    seed: int = 0,
    store: Store | None = None,
) -> dict[str, Measurement]:
    """Invert images, sample them again, and measure what came back and the latents in between.

    Args:
        unet: The model.
        scheduler: Its noise schedule.
        images: (n, C, H, W) in [−1, 1], n ≥ 2, of the model's own size.
        num_steps: Steps of DDIM, down and up.
        distances: Perceptual distances by name, such as ``{"lpips": perceptual_distance()}``.
        refinements: Fixed-point refinements of each step, see `isodiff.diffusion.inversion.invert`.
        batch_size: Images at once.
        seed: With which the images were drawn, for the record; nothing is drawn here.
        store: Where finished batches are kept; scoped by the caller with the model.

    Returns:
        Means over images:

        - ``inversion_mse``: mean squared difference over channels and pixels, of images in [−1, 1]. The reconstruction
          is clamped to that range first. Details: median, maximum, and the mean residual of each step of the inversion,
          from x₀ to x_T.
        - ``inversion_<name>`` for each distance.
        - ``latent_norm_ratio``, ``latent_correlation``, ``latent_kurtosis``: of x_T, see `norm_ratio`,
          `neighbour_correlation` and `excess_kurtosis`; 1, 0 and 0 for noise. The details give that expectation and
          the standard deviation of one latent that is noise.

    Raises:
        ValueError: If `images` are not images of the model's size, fewer than two, or a size is out of range.

    Note:
        Cost: (3 + refinements) · num_steps evaluations an image. Compare models on the same images: the protocol holds
        their digest. A sampler that clips its estimates of x₀ adds an error that no inversion can remove; to measure
        the inversion alone, pass a scheduler with ``clip_sample=False``.
    """
    size = unet.config.sample_size
    shape = (unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
    if images.ndim != 4 or tuple(images.shape[1:]) != shape or len(images) < 2:
        raise ValueError(f"images must have shape (n, {', '.join(map(str, shape))}), n ≥ 2; got {tuple(images.shape)}")
    images = check_images(images, len(images), name="images")
    protocol = {
        "num_steps": num_steps,
        "refinements": refinements,
        "clip_sample": bool(scheduler.config.get("clip_sample", False)),
        "images": content_digest(images.cpu().numpy()),
    }
    described = describe(distances) if distances else {}

    def compute(start: int, stop: int) -> Arrays:
        x_0 = images[start:stop].to(unet.device)
        inversion = invert(unet, scheduler, x_0, num_steps, refinements=refinements)
        back = inversion.reconstruction.clamp(-1, 1)
        return {
            "mse": (back - x_0).flatten(1).square().mean(dim=1).double().cpu().numpy(),
            "residuals": inversion.residuals.double().cpu().numpy(),
            "norm_ratio": norm_ratio(inversion.latents),
            "correlation": neighbour_correlation(inversion.latents),
            "kurtosis": excess_kurtosis(inversion.latents),
            **measure_all(distances, x_0, [back]),
        }

    with torch.no_grad(), full_precision():
        arrays = (store or Store()).chunks(
            compute,
            len(images),
            size=batch_size,
            what="inversion",
            version=1,
            distances=described,
            **protocol,
        )
    shared = {"unit": "images", "seed": seed}
    spread = {
        "median": float(np.median(arrays["mse"])),
        "maximum": float(arrays["mse"].max()),
        "residuals": arrays["residuals"].mean(axis=0).tolist(),
    }
    measured = {
        "inversion_mse": Measurement.from_units(
            "inversion_mse", arrays["mse"], protocol=protocol, details=spread, **shared
        )
    }
    for name, own in described.items():
        measured[f"inversion_{name}"] = Measurement.from_units(
            f"inversion_{name}", arrays[f"distance {name}"][:, 0], protocol={**own, **protocol}, **shared
        )
    n = images[0].numel()
    noise = {
        "norm_ratio": (1.0, (2 * n) ** -0.5),
        "correlation": (0.0, (2 * n) ** -0.5),
        "kurtosis": (0.0, (24 / n) ** 0.5),
    }
    for name, (mean, deviation) in noise.items():
        details = {"noise": {"mean": mean, "standard_deviation": deviation}}
        measured[f"latent_{name}"] = Measurement.from_units(
            f"latent_{name}", arrays[name], protocol=protocol, details=details, **shared
        )
    return measured


def _check_latents(latents: Tensor, smallest: int) -> NDArray[np.float64]:
    if latents.ndim != 4 or min(latents.shape) < 1 or min(latents.shape[2:]) < smallest:
        raise ValueError(f"latents must have shape (B, C, H, W) with H, W ≥ {smallest}; got {tuple(latents.shape)}")
    if not torch.isfinite(latents).all():
        raise ValueError(f"latents must be finite; got {int((~latents.isfinite()).sum())} NaN or infinite values")
    return latents.detach().double().cpu().numpy()
