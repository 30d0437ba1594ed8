r"""DDIM inversion: the latent, or the point at a noise level, from which the sampler makes a given image.

A step t → s of the sampler is linear in the sample and in the model's prediction o_θ (noise or velocity),

    x_s = a x_t + b o_θ(x_t, t),

with a and b read off the scheduler. Its inverse is the solution of x_t = (x_s − b o_θ(x_t, t)) / a. DDIM inversion
(Dhariwal and Nichol 2021) puts o_θ(x_s, t) for the unknown o_θ(x_t, t). A *refinement* puts in the x_t just found: one
fixed-point iteration, as in Pan et al. 2023. It contracts where |b/a| times the Lipschitz constant of o_θ is below one.
That holds for short steps, and often fails at the one next to the image, where many x_t become nearly one image.

A *noise level* is a step t of the sampler: x_t = √ᾱ_t x₀ + σ_t ε with σ_t = √(1 − ᾱ_t), and the score of the noisy data
is ∇ log p_t(x) ≈ −ε_θ(x, t)/σ_t. Saito and Matsubara 2025 draw paths between images at 0.6 T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from isodiff.diffusion.hspace import check_latents
from isodiff.diffusion.process import ddim_sample, ddim_scheduler

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusers import DDIMScheduler, SchedulerMixin, UNet2DModel


@dataclass(frozen=True)
class Inversion:
    """Latents of images, what the sampler makes of them, and how nearly.

    Mean squares are over channels and pixels: `error` (B,) of the reconstruction, which is not clamped, `residuals`
    (B, num_steps) of where the unclipped step leads from the x_t found to the x_s it should lead to, from x₀ to x_T.
    """

    latents: Tensor
    reconstruction: Tensor
    error: Tensor
    residuals: Tensor


@torch.no_grad()
def invert(
    unet: UNet2DModel, scheduler: SchedulerMixin, x_0: Tensor, num_steps: int, *, refinements: int = 0
) -> Inversion:
    """Find the latents x_T of images (B, C, H, W) in [−1, 1] under `ddim_sample`, and sample from them again.

    Each row keeps, at each step, the iterate with the smallest residual: where the iteration does not contract, more
    `refinements` cannot make a step worse, and `residuals` show that they did not help. With none it is `ddim_invert`.

    The steps inverted are those without clipping, as a clipped estimate of x₀ has forgotten what was cut off. The
    reconstruction comes from the sampler that the scheduler describes. If that one clips (`clip_sample`), it takes
    other steps wherever an estimate of x₀ leaves the clipping range, early ones above all: that part of the error
    neither more steps nor refinements remove, though every residual vanishes. To measure the inversion alone, pass
    `DDPMScheduler.from_config(scheduler.config, clip_sample=False)`. Cost: (refinements + 2) · num_steps evaluations to
    invert, num_steps to reconstruct. A step that forgets its sample (a = 0, for example where ᾱ_T = 0) is refused.
    """
    ddim = ddim_scheduler(scheduler, num_steps, clip_sample=False)
    return _invert_steps(
        unet, ddim, ddim.timesteps, x_0, refinements, lambda x: ddim_sample(unet, scheduler, x, num_steps)
    )


def _invert_steps(
    unet: UNet2DModel,
    ddim: DDIMScheduler,
    steps: Tensor,
    x_0: Tensor,
    refinements: int,
    sample: Callable[[Tensor], Tensor],
) -> Inversion:
    """Invert the sampler's last steps, given from the noise to the image, and `sample` the images again."""
    check_latents(unet, x_0, "x_0")
    if refinements < 0:
        raise ValueError(f"refinements must be at least 0; got {refinements}")
    x, residuals = x_0, []
    for t in steps.flip(0):
        x, residual = _invert_step(unet, ddim, t, x, refinements)
        residuals.append(residual)
    reconstruction = sample(x)
    error = (reconstruction - x_0).square().flatten(1).mean(1)
    return Inversion(x, reconstruction, error, torch.stack(residuals, 1))


def _invert_step(
    unet: UNet2DModel, ddim: DDIMScheduler, t: Tensor, x_s: Tensor, refinements: int
) -> tuple[Tensor, Tensor]:
    """Solve x_s = step(x_t) for x_t; return the best iterate and its residual (B,)."""
    one, zero = x_s.new_ones(1, 1, 1, 1), x_s.new_zeros(1, 1, 1, 1)
    a, b = ddim.step(zero, t, one).prev_sample, ddim.step(one, t, zero).prev_sample
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


class NoiseLevel:
    """One step t of a model's sampler, with α = √ᾱ_t and σ_t, and the maps to and from it.

    The level is the first of the `num_steps` steps of DDIM that lies within `share` of the T steps; `num_steps_below`
    of them are left from there to the image. Where the scheduler clips, so does `decode`, which `invert` cannot undo:
    pass one with `clip_sample=False` where images have to come back. Points are (M, C, H, W), for any M.
    """

    def __init__(
        self, unet: UNet2DModel, scheduler: SchedulerMixin, *, share: float = 0.6, num_steps: int = 20
    ) -> None:
        horizon = scheduler.config.num_train_timesteps
        kind = scheduler.config.prediction_type
        if not 0 < share <= 1:
            raise ValueError(f"share must lie in (0, 1], as a share of the T = {horizon} steps; got {share}")
        if kind not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type must be 'epsilon' or 'v_prediction'; got {kind!r}")
        self.unet, self.scheduler = unet, scheduler
        self._sampler = ddim_scheduler(scheduler, num_steps)
        self._unclipped = ddim_scheduler(scheduler, num_steps, clip_sample=False)
        steps = self._sampler.timesteps
        self._steps = steps[steps <= round(share * horizon) - 1]
        if len(self._steps) == 0:
            raise ValueError(
                f"none of the sampler's {num_steps} steps lies within share {share:g}; its last is {int(steps[-1])} "
                f"of {horizon}; take a larger share or more steps"
            )
        self.num_steps = num_steps
        self.t, self.num_steps_below = int(self._steps[0]), len(self._steps)
        alpha_bar = scheduler.alphas_cumprod[self.t]
        self.alpha, self.sigma = float(alpha_bar**0.5), float((1 - alpha_bar) ** 0.5)

    def eps(self, x: Tensor) -> Tensor:
        """Return the model's estimate of the noise ε_θ(x, t), with gradients."""
        prediction = self.unet(x, self.t).sample
        if self.scheduler.config.prediction_type == "epsilon":
            return prediction
        return self.alpha * prediction + self.sigma * x

    def score(self, x: Tensor) -> Tensor:
        """Return the score −ε_θ(x, t)/σ, with gradients."""
        return -self.eps(x) / self.sigma

    def filtered(self, x: Tensor) -> Tensor:
        """Return α x̂₀ = x − σ ε_θ(x, t), with gradients; its Jacobian is the tangent filter I − Ĵ, Ĵ = σ ∂ε_θ/∂x."""
        return x - self.sigma * self.eps(x)

    @torch.no_grad()
    def decode(self, x: Tensor, *, batch_size: int = 64) -> Tensor:
        """Sample the images of points by DDIM at η = 0, `batch_size` rows at once, clamped to [−1, 1]."""
        check_latents(self.unet, x, "x")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        return torch.cat([self._sample(rows) for rows in x.split(batch_size)]).clamp(-1, 1)

    @torch.no_grad()
    def invert(self, x_0: Tensor, *, refinements: int = 0) -> Inversion:
        """Find the points from which `decode` makes images in [−1, 1]; they are the `latents` of the `Inversion`."""
        return _invert_steps(self.unet, self._unclipped, self._steps, x_0, refinements, self._sample)

    def _sample(self, x: Tensor) -> Tensor:
        for t in self._steps:
            x = self._sampler.step(self.unet(x, t).sample, t, x).prev_sample
        return x
