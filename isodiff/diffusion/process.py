r"""The diffusion process: denoising score matching and the deterministic sampler, on diffusers' schedulers.

Notation, fixed for the whole floor: x_t = √ᾱ_t x₀ + √(1−ᾱ_t) ε with ε ~ N(0, I) and t = 0 … T−1 a DDPM step (Ho et al.
2020); ε_θ(x_t, t) is the model's estimate of the noise, v = √ᾱ_t ε − √(1−ᾱ_t) x₀ the velocity of v-prediction (Salimans
and Ho 2022). The scheduler computes every coefficient; nothing here repeats its formulas.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from diffusers import DDIMInverseScheduler, DDIMScheduler

if TYPE_CHECKING:
    from diffusers import SchedulerMixin, UNet2DModel


def dsm_loss(
    unet: UNet2DModel, scheduler: SchedulerMixin, x_0: torch.Tensor, t: torch.Tensor, eps: torch.Tensor
) -> torch.Tensor:
    """Denoising score matching with the simple weighting (Eq. 1, Hahm et al. 2024; Eq. 14, Ho et al. 2020).

    E‖ε_θ(x_t, t) − ε‖² for ε-prediction, E‖v_θ(x_t, t) − v‖² for v-prediction.

    Args:
        unet: predicts noise or velocity, as `scheduler.config.prediction_type` says.
        scheduler: any diffusers scheduler with `add_noise`.
        x_0: (B, C, H, W) images in [−1, 1].
        t: (B,) integer steps 0 … T−1.
        eps: (B, C, H, W) standard normal noise.

    Returns:
        Mean over rows, channels and pixels, a scalar in float32 or better.

    Raises:
        ValueError: a prediction type other than epsilon and v_prediction, shapes that do not match, or steps out of
            range.
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


def ddim_sample(unet: UNet2DModel, scheduler: SchedulerMixin, x_T: torch.Tensor, num_steps: int) -> torch.Tensor:
    """Sample with DDIM at η = 0: the deterministic map x_T → x₀ (Eq. 12, Song et al. 2020).

    Args:
        unet: the model.
        scheduler: its diffusers scheduler; the noise schedule, the prediction type, the spacing of steps and the
            clipping of the estimates of x₀ are read from it.
        x_T: (B, C, H, W) standard normal noise.
        num_steps: 1 … T.

    Returns:
        (B, C, H, W) images, nominally in [−1, 1].

    Note:
        Gradients are recorded; wrap the call in `torch.no_grad()` when they are not wanted. Where an estimate of x₀ is
        clipped, its derivative is zero. Cost: `num_steps` evaluations.
    """
    return _last(ddim_trajectory(unet, scheduler, x_T, num_steps))


def ddim_trajectory(
    unet: UNet2DModel, scheduler: SchedulerMixin, x_T: torch.Tensor, num_steps: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield (t, x_t, x_s) at every step t → s of `ddim_sample`, whose arguments and errors it shares.

    The model has been evaluated at x_t when a step is yielded: a hook on one of its modules has seen that x_t.
    """
    clip = scheduler.config.get("clip_sample", False)
    yield from _integrate(unet, ddim_scheduler(DDIMScheduler, scheduler, num_steps, x_T, clip_sample=clip), x_T)


def ddim_invert(unet: UNet2DModel, scheduler: SchedulerMixin, x_0: torch.Tensor, num_steps: int) -> torch.Tensor:
    """Run DDIM backwards, x₀ → x_T, as if ε_θ changed little over a step (Dhariwal and Nichol 2021).

    Args and cost as `ddim_sample`; x_0 are images in [−1, 1], the result is a latent near the shell of radius √n. No
    estimate of x₀ is clipped on the way, as a clipped step cannot be undone.
    """
    return _last(
        _integrate(unet, ddim_scheduler(DDIMInverseScheduler, scheduler, num_steps, x_0, clip_sample=False), x_0)
    )


def check_steps(scheduler: SchedulerMixin, t: torch.Tensor | int) -> None:
    """Raise ValueError unless every step lies in 0 … T−1."""
    last = scheduler.config.num_train_timesteps - 1
    steps = torch.as_tensor(t)
    if steps.is_floating_point() or steps.numel() == 0 or steps.min() < 0 or steps.max() > last:
        raise ValueError(f"t must hold integer steps 0 to {last}; got {t}")


def ddim_scheduler(
    kind: type, scheduler: SchedulerMixin, num_steps: int, x: torch.Tensor, *, clip_sample: bool
) -> SchedulerMixin:
    """Return a DDIM scheduler of one kind with the settings of another and its steps set."""
    horizon = scheduler.config.num_train_timesteps
    if not 1 <= num_steps <= horizon:
        raise ValueError(f"num_steps must be 1 to {horizon}; got {num_steps}")
    if x.ndim != 4 or not torch.isfinite(x).all():
        raise ValueError(
            f"expected finite images or latents (B, C, H, W); got shape {tuple(x.shape)}, finite: {x.isfinite().all()}"
        )
    ddim = kind.from_config(scheduler.config, clip_sample=clip_sample, thresholding=False)
    ddim.set_timesteps(num_steps, device=x.device)
    return ddim


def _integrate(
    unet: UNet2DModel, scheduler: SchedulerMixin, x: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    for t in scheduler.timesteps:
        x_t, x = x, scheduler.step(unet(x, t).sample, t, x).prev_sample
        yield t, x_t, x


def _last(steps: Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    for _, _, x in steps:  # noqa: B007 - only where the last step leads counts
        pass
    return x
