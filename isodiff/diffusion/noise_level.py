r"""A level between image and noise: x₀ → x_τ by DDIM inversion, x_τ → x₀ by sampling, and the score of p_τ.

At the step t of the sampler, x_t = √ᾱ_t x₀ + σ_t ε with σ_t = √(1 − ᾱ_t), and the model's estimate of the noise gives
the score of the noisy data, ∇ log p_t(x) ≈ −ε_θ(x, t)/σ_t. Paths between images are drawn at such a level (Saito and
Matsubara 2025, with 0.6 T): high enough to bridge two images, low enough to keep them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from isodiff.diffusion.hspace import check_latents
from isodiff.diffusion.inversion import Inversion, invert_step
from isodiff.diffusion.process import ddim_scheduler

if TYPE_CHECKING:
    from diffusers import SchedulerMixin, UNet2DModel


class NoiseLevel:
    """One step of a model's sampler, and the maps to and from it.

    Args:
        unet: The model, of noise or velocity.
        scheduler: Its diffusers scheduler. If it clips (`clip_sample`), so does `decode`, which `invert` cannot undo:
            pass one with ``clip_sample=False`` where images have to come back.
        share: τ as a share of the T steps, 0 to 1. The level is the first of the sampler's steps that lies within it.
        num_steps: Steps of DDIM from T to 0, of which those below the level are taken; 1 … T.

    Attributes:
        t: The step, 0 … T−1.
        sigma: σ_t, 0 to 1.
        alpha: √ᾱ_t, so that α² + σ² = 1.
        num_steps_below: Steps of the sampler from the level to the image.

    Raises:
        ValueError: If the share or the number of steps is out of range, none of the sampler's steps lies within the
            share, or the model predicts something else.
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
        self.unet, self.scheduler, self.num_steps = unet, scheduler, num_steps
        self._clip = bool(scheduler.config.get("clip_sample", False))
        steps = self._sampler(clip_sample=False).timesteps
        self._steps = steps[steps <= round(share * horizon) - 1]
        if len(self._steps) == 0:
            raise ValueError(
                f"none of the sampler's {num_steps} steps lies within share {share:g}; its last is {int(steps[-1])} "
                f"of {horizon}; take a larger share or more steps"
            )
        self.t, self.num_steps_below = int(self._steps[0]), len(self._steps)
        alpha_bar = scheduler.alphas_cumprod[self.t]
        self.alpha, self.sigma = float(alpha_bar**0.5), float((1 - alpha_bar) ** 0.5)

    def eps(self, x: Tensor) -> Tensor:
        """Return the model's estimate of the noise ε_θ(x, t), (M, C, H, W) for any M, with gradients."""
        prediction = self.unet(x, self.t).sample
        if self.scheduler.config.prediction_type == "epsilon":
            return prediction
        return self.alpha * prediction + self.sigma * x

    def score(self, x: Tensor) -> Tensor:
        """Return the score −ε_θ(x, t)/σ, (M, C, H, W) for any M, with gradients."""
        return -self.eps(x) / self.sigma

    def filtered(self, x: Tensor) -> Tensor:
        """Return α x̂₀ = x − σ ε_θ(x, t), with gradients; its Jacobian is the tangent filter I − Ĵ, Ĵ = σ ∂ε_θ/∂x."""
        return x - self.sigma * self.eps(x)

    @torch.no_grad()
    def decode(self, x: Tensor, *, batch_size: int = 64) -> Tensor:
        """Sample the images of points of the level by DDIM at η = 0.

        Args:
            x: (B, C, H, W).
            batch_size: Rows at once; it does not change the images.

        Returns:
            (B, C, H, W) images, clamped to [−1, 1].
        """
        check_latents(self.unet, x, "x")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        ddim = self._sampler(clip_sample=self._clip)
        return torch.cat([self._run(ddim, rows) for rows in x.split(batch_size)]).clamp(-1, 1)

    @torch.no_grad()
    def invert(self, x_0: Tensor, *, refinements: int = 0) -> Inversion:
        """Find the points of the level from which `decode` makes given images, as `isodiff.diffusion.inversion` does.

        Args:
            x_0: (B, C, H, W) images in [−1, 1].
            refinements: Fixed-point iterations a step, ≥ 0.

        Returns:
            An `Inversion`, whose latents are points of this level.
        """
        check_latents(self.unet, x_0, "x_0")
        if refinements < 0:
            raise ValueError(f"refinements must be at least 0; got {refinements}")
        sampler, x, residuals = self._sampler(clip_sample=False), x_0, []
        for t in self._steps.flip(0):
            x, residual = invert_step(self.unet, sampler, t, x, refinements)
            residuals.append(residual)
        reconstruction = self._run(self._sampler(clip_sample=self._clip), x)
        error = (reconstruction - x_0).square().flatten(1).mean(1)
        return Inversion(x, reconstruction, error, torch.stack(residuals, 1))

    def _run(self, ddim: DDIMScheduler, x: Tensor) -> Tensor:
        for t in self._steps:
            x = ddim.step(self.unet(x, t).sample, t, x).prev_sample
        return x

    def _sampler(self, *, clip_sample: bool) -> DDIMScheduler:
        anywhere = torch.zeros(1, 1, 1, 1)  # steps and schedule stay on the CPU
        return ddim_scheduler(DDIMScheduler, self.scheduler, self.num_steps, anywhere, clip_sample=clip_sample)
