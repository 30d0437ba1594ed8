r"""The diffusion process: denoising score matching and the deterministic sampler, on diffusers' schedulers.

Notation, fixed for the whole floor: x_t = √ᾱ_t x₀ + √(1−ᾱ_t) ε with ε ~ N(0, I) and t = 0 … T−1 a DDPM step (Ho et al.
2020); ε_θ(x_t, t) is the model's estimate of the noise, v = √ᾱ_t ε − √(1−ᾱ_t) x₀ the velocity of v-prediction (Salimans
and Ho 2022). Images and latents are (B, C, H, W), images in [−1, 1]. The scheduler computes every coefficient.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import SchedulerMixin, UNet2DModel


def dsm_loss(unet: UNet2DModel, scheduler: SchedulerMixin, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Denoising score matching with the simple weighting (Eq. 1, Hahm et al. 2024; Eq. 14, Ho et al. 2020).

    E‖ε_θ(x_t, t) − ε‖² for ε-prediction, E‖v_θ(x_t, t) − v‖² for v-prediction: the mean over rows (t is (B,)), channels
    and pixels, in float32 or better.
    """
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(f"prediction_type must be 'epsilon' or 'v_prediction'; got {kind!r}")
    if x_0.shape != eps.shape or t.shape != x_0.shape[:1]:
        raise ValueError(
            "x_0 and eps must have one shape (B, C, H, W) and t the shape (B,); "
            f"got {tuple(x_0.shape)}, {tuple(eps.shape)} and {tuple(t.shape)}"
        )
    check_steps(scheduler, t)
    target = eps if kind == "epsilon" else scheduler.get_velocity(x_0, eps, t)
    prediction = unet(scheduler.add_noise(x_0, eps, t), t).sample
    return F.mse_loss(prediction.to(target.dtype), target)


def ddim_sample(unet: UNet2DModel, scheduler: SchedulerMixin, x_T: Tensor, num_steps: int) -> Tensor:
    """Sample with DDIM at η = 0: the deterministic map x_T → x₀ (Eq. 12, Song et al. 2020), in `num_steps` evaluations.

    Noise schedule, prediction type, spacing of the 1 … T steps and clipping of the estimates of x₀ are the scheduler's.
    Gradients are recorded; where an estimate is clipped, its derivative is zero.
    """
    return _last(ddim_trajectory(unet, scheduler, x_T, num_steps))


def ddim_trajectory(
    unet: UNet2DModel, scheduler: SchedulerMixin, x_T: Tensor, num_steps: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (t, x_t, x_s) at every step t → s of `ddim_sample`.

    The model has been evaluated at x_t when a step is yielded: a hook on one of its modules has seen that x_t.
    """
    yield from _integrate(unet, ddim_scheduler(scheduler, num_steps), x_T)


def ddim_invert(unet: UNet2DModel, scheduler: SchedulerMixin, x_0: Tensor, num_steps: int) -> Tensor:
    """Run DDIM backwards, x₀ → x_T, as if ε_θ changed little over a step (Dhariwal and Nichol 2021).

    The result lies near the shell of radius √n. No estimate of x₀ is clipped, as a clipped step cannot be undone.
    """
    return _last(_integrate(unet, ddim_scheduler(scheduler, num_steps, DDIMInverseScheduler, clip_sample=False), x_0))


def check_steps(scheduler: SchedulerMixin, t: Tensor | int) -> None:
    """Raise ValueError unless every step lies in 0 … T−1."""
    last = scheduler.config.num_train_timesteps - 1
    steps = torch.as_tensor(t)
    if steps.is_floating_point() or steps.numel() == 0 or steps.min() < 0 or steps.max() > last:
        raise ValueError(f"t must hold integer steps 0 to {last}; got {t}")


def ddim_scheduler(
    scheduler: SchedulerMixin, num_steps: int, kind: type = DDIMScheduler, *, clip_sample: bool | None = None
) -> SchedulerMixin:
    """Return a DDIM scheduler of one kind with the settings of another, clipping included, and its steps set."""
    horizon = scheduler.config.num_train_timesteps
    if not 1 <= num_steps <= horizon:
        raise ValueError(f"num_steps must be 1 to {horizon}; got {num_steps}")
    clip = scheduler.config.get("clip_sample", False) if clip_sample is None else clip_sample
    ddim = kind.from_config(scheduler.config, clip_sample=clip, thresholding=False)
    ddim.set_timesteps(num_steps)
    return ddim


def _integrate(unet: UNet2DModel, ddim: SchedulerMixin, x: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    if x.ndim != 4 or not torch.isfinite(x).all():
        raise ValueError(
            f"expected finite images or latents (B, C, H, W); got shape {tuple(x.shape)}, finite: {x.isfinite().all()}"
        )
    for t in ddim.timesteps.to(x.device):
        x_t, x = x, ddim.step(unet(x, t).sample, t, x).prev_sample
        yield t, x_t, x


def _last(steps: Iterator[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    for _, _, x in steps:  # noqa: B007 - only where the last step leads counts
        pass
    return x
