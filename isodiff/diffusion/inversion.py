r"""DDIM inversion: the latent from which the sampler makes a given image, and how nearly it does.

A step t → s of the sampler is linear in the sample and in the model's prediction o_θ (noise or velocity),

    x_s = a x_t + b o_θ(x_t, t),

with a and b read off the scheduler. Its inverse is the solution of x_t = (x_s − b o_θ(x_t, t)) / a. DDIM inversion
(Dhariwal and Nichol 2021) puts o_θ(x_s, t) for the unknown o_θ(x_t, t). A *refinement* puts in the x_t just found: one
fixed-point iteration, as in Pan et al. 2023. It contracts where |b/a| times the Lipschitz constant of o_θ is below one.
That holds for short steps, and often fails at the one next to the image: there the sampler removes all the noise that
is left, and maps many x_t to nearly one image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from isodiff.diffusion.hspace import check_latents
from isodiff.diffusion.process import ddim_sample, ddim_scheduler

if TYPE_CHECKING:
    from diffusers import SchedulerMixin, UNet2DModel


@dataclass(frozen=True)
class Inversion:
    """What `invert` found.

    Attributes:
        latents: x_T, (B, C, H, W).
        reconstruction: what the sampler makes of them, (B, C, H, W), not clamped.
        error: mean squared error of the reconstruction per image, (B,), over channels and pixels in [−1, 1].
        residuals: (B, num_steps), mean squared distance between where the unclipped sampler's step leads from the x_t
            found and the x_s it should lead to; in the order of inversion, from x₀ to x_T.
    """

    latents: Tensor
    reconstruction: Tensor
    error: Tensor
    residuals: Tensor


@torch.no_grad()
def invert(
    unet: UNet2DModel, scheduler: SchedulerMixin, x_0: Tensor, num_steps: int, *, refinements: int = 0
) -> Inversion:
    """Find the latents of images under `ddim_sample`, and sample from them again.

    Args:
        unet: the model.
        scheduler: its diffusers scheduler, as for `ddim_sample`.
        x_0: (B, C, H, W) images in [−1, 1], of the size that the model was made for.
        num_steps: 1 … T, of the inversion and of the sampler.
        refinements: fixed-point iterations a step, ≥ 0; 0 is plain DDIM inversion (`ddim_invert`).

    Returns:
        An `Inversion`. Each row keeps, at each step, the iterate with the smallest residual: where the iteration does
        not contract, more refinements cannot make a step worse, and `residuals` show that they did not help.

    Raises:
        ValueError: images and model do not fit, a number is out of range, or a step of the sampler forgets its sample
            (a = 0, for example where ᾱ_T = 0), so that it has no inverse.
        FloatingPointError: no iterate is finite.

    Note:
        The steps inverted are those without clipping, as a clipped estimate of x₀ has forgotten what was cut off. The
        reconstruction comes from the sampler that the scheduler describes. If that one clips (`clip_sample`), it takes
        other steps wherever an estimate of x₀ leaves the clipping range, early ones above all: that part of the error
        neither more steps nor refinements remove, though every residual vanishes. To measure the inversion alone, pass
        `DDPMScheduler.from_config(scheduler.config, clip_sample=False)`. Cost: (refinements + 2) · num_steps
        evaluations to invert, num_steps to reconstruct.
    """
    if refinements < 0:
        raise ValueError(f"refinements must be at least 0; got {refinements}")
    check_latents(unet, x_0, "x_0")
    sampler = ddim_scheduler(DDIMScheduler, scheduler, num_steps, x_0, clip_sample=False)
    x, residuals = x_0, []
    for t in sampler.timesteps.flip(0):
        x, residual = invert_step(unet, sampler, t, x, refinements)
        residuals.append(residual)
    reconstruction = ddim_sample(unet, scheduler, x, num_steps)
    error = (reconstruction - x_0).square().flatten(1).mean(1)
    return Inversion(x, reconstruction, error, torch.stack(residuals, 1))


def invert_step(
    unet: UNet2DModel, sampler: DDIMScheduler, t: Tensor, x_s: Tensor, refinements: int
) -> tuple[Tensor, Tensor]:
    """Solve x_s = step(x_t) for x_t; return the best iterate and its residual (B,)."""
    one, zero = x_s.new_ones(1, 1, 1, 1), x_s.new_zeros(1, 1, 1, 1)
    a = sampler.step(zero, t, one).prev_sample
    b = sampler.step(one, t, zero).prev_sample
    if not (a.isfinite() and b.isfinite() and a > 0):
        raise ValueError(
            f"the step from t = {int(t)} has no inverse: it multiplies its sample by {a.item():.3g}; "
            "accepted is a positive, finite factor"
        )
    x_t = (x_s - b * unet(x_s, t).sample) / a
    best, least = x_t, torch.full_like(x_s[:, 0, 0, 0], torch.inf)
    for _ in range(refinements + 1):
        prediction = unet(x_t, t).sample
        residual = (a * x_t + b * prediction - x_s).square().flatten(1).mean(1)
        better = residual < least  # false for NaN: an iterate that overflowed is never kept
        best = torch.where(better.view(-1, 1, 1, 1), x_t, best)
        least = torch.where(better, residual, least)
        x_t = (x_s - b * prediction) / a
    if not least.isfinite().all():
        raise FloatingPointError(f"the inversion of the step from t = {int(t)} is not finite; check model and images")
    return best, least
