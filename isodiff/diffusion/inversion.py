r"""DDIM inversion: the latent, or the point at a noise level, from which the sampler makes a given image.

A step t → s of the sampler is linear in the sample and in the model's prediction o_θ (noise or velocity),

    x_s = a x_t + b o_θ(x_t, t),

whose inverse solves x_t = (x_s − b o_θ(x_t, t)) / a. DDIM inversion (Dhariwal and Nichol 2021) puts o_θ(x_s, t) for the
unknown o_θ(x_t, t). A *refinement* puts in the x_t just found: one fixed-point iteration, as in Pan et al. 2023. It
contracts where |b/a| times the Lipschitz constant of o_θ is below one, which often fails at the step next to the image.
"""

from dataclasses import dataclass

import torch
from diffusers import SchedulerMixin, UNet2DModel
from torch import Tensor

from isodiff.diffusion.hspace import check_latents
from isodiff.diffusion.process import NoiseSchedule, ddim_sample, linear_prediction, predict, step_factors


@dataclass(frozen=True)
class Inversion:
    """Latents of images, what the sampler makes of them, and how nearly; mean squares over channels and pixels."""

    latents: Tensor
    reconstruction: Tensor  # not clamped
    error: Tensor  # (B,), mean square of the reconstruction's
    residuals: Tensor  # (B, num_steps), from x₀ to x_T: of the unclipped step from the x_t found, against its x_s


def invert(
    unet: UNet2DModel, scheduler: SchedulerMixin, x_0: Tensor, num_steps: int, *, refinements: int = 0
) -> Inversion:
    """Find the latents x_T of images (B, C, H, W) in [−1, 1] under `ddim_sample`, and sample from them again.

    Each row keeps, at each step, the iterate with the smallest residual; with no `refinements` it is `ddim_invert`. The
    steps inverted are those without clipping; if the scheduler clips, the reconstruction errs wherever an estimate of
    x₀ leaves the range, whatever the refinements. Cost: (refinements + 3) · num_steps evaluations.
    """
    return NoiseLevel(unet, scheduler, share=1.0, num_steps=num_steps).invert(x_0, refinements=refinements)


def _invert_step(
    unet: UNet2DModel, schedule: NoiseSchedule, t: int, s: int | None, x_s: Tensor, refinements: int
) -> tuple[Tensor, Tensor]:
    """Solve x_s = a x_t + b o(x_t, t) for x_t; return the best iterate and its residual (B,)."""
    a, b = step_factors(schedule, t, s, x_s)
    x_t = (x_s - b * linear_prediction(unet, schedule, x_s, t)) / a
    best, least = x_t, torch.full_like(x_s[:, 0, 0, 0], torch.inf)
    for _ in range(refinements + 1):
        prediction = linear_prediction(unet, schedule, x_t, t)
        residual = (a * x_t + b * prediction - x_s).square().flatten(1).mean(1)
        better = residual < least  # false for NaN: an iterate that overflowed is never kept
        best = torch.where(better.view(-1, 1, 1, 1), x_t, best)
        least = torch.where(better, residual, least)
        x_t = (x_s - b * prediction) / a
    if not least.isfinite().all():
        raise FloatingPointError(f"the inversion of the step from t = {t} is not finite; check model and images")
    return best, least


class NoiseLevel:
    """One step t of a model's sampler, with α = √ᾱ_t and σ = √(1 − ᾱ_t), and the maps to and from it.

    The level is the first of the `num_steps` steps of DDIM that lies within `share` of the T steps (Saito and Matsubara
    2025 draw paths between images at 0.6 T); `num_steps_below` of them are left from there to the image. Points are
    (M, C, H, W), for any M.
    """

    def __init__(
        self, unet: UNet2DModel, scheduler: SchedulerMixin, *, share: float = 0.6, num_steps: int = 20
    ) -> None:
        self.unet, self.scheduler, self.num_steps = unet, scheduler, num_steps
        self.schedule = NoiseSchedule.of(scheduler)
        horizon, steps = self.schedule.horizon, self.schedule.steps(num_steps)
        if not 0 < share <= 1:
            raise ValueError(f"share must lie in (0, 1], as a share of the T = {horizon} steps; got {share}")
        self._steps = [(t, s) for t, s in steps if t <= round(share * horizon) - 1]
        if not self._steps:
            last = f"its last is {steps[-1][0]} of {horizon}; take a larger share or more steps"
            raise ValueError(f"none of the sampler's {num_steps} steps lies within share {share:g}; {last}")
        self.t, self.num_steps_below = self._steps[0][0], len(self._steps)
        alpha_bar = self.schedule.alphas_cumprod[self.t]
        self.alpha, self.sigma = float(alpha_bar**0.5), float((1 - alpha_bar) ** 0.5)

    def eps(self, x: Tensor) -> Tensor:
        """Return the model's estimate of the noise ε_θ(x, t), with gradients."""
        return self.schedule.split(predict(self.unet, x, self.t), x, self.t)[1]

    def score(self, x: Tensor) -> Tensor:
        """Return −ε_θ(x, t)/σ ≈ ∇ log p_t(x), the score of the noisy data, with gradients."""
        return -self.eps(x) / self.sigma

    def filtered(self, x: Tensor) -> Tensor:
        """Return α x̂₀ = x − σ ε_θ(x, t), with gradients; its Jacobian is the tangent filter I − Ĵ, Ĵ = σ ∂ε_θ/∂x."""
        return x - self.sigma * self.eps(x)

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Sample the images of points by DDIM at η = 0, clamped to [−1, 1]."""
        check_latents(self.unet, x, "x")
        decoded = [ddim_sample(self.unet, self.schedule, rows, self._steps) for rows in x.split(64)]
        return torch.cat(decoded).clamp(-1, 1)

    @torch.no_grad()
    def invert(self, x_0: Tensor, *, refinements: int = 0) -> Inversion:
        """Find the points from which `decode` makes images in [−1, 1]; they are the `latents` of the `Inversion`."""
        check_latents(self.unet, x_0, "x_0")
        if refinements < 0:
            raise ValueError(f"refinements must be at least 0; got {refinements}")
        x, residuals = x_0, []
        for t, s in reversed(self._steps):
            x, residual = _invert_step(self.unet, self.schedule, t, s, x, refinements)
            residuals.append(residual)
        reconstruction = ddim_sample(self.unet, self.schedule, x, self._steps)
        error = (reconstruction - x_0).square().flatten(1).mean(1)
        return Inversion(x, reconstruction, error, torch.stack(residuals, 1))
