r"""The diffusion process: noise schedule, denoising score matching, the deterministic sampler and its inverse.

Notation, fixed for the whole floor: x_t = α_t x₀ + σ_t ε with ε ~ N(0, I), α_t = √ᾱ_t, σ_t = √(1 − ᾱ_t) and t = 0 … T−1
a DDPM step (Ho et al. 2020). A model predicts the noise ε, the velocity v = α_t ε − σ_t x₀ (Salimans and Ho 2022) or
the sample x₀. Images and latents are (B, C, H, W), images in [−1, 1].

DDIM at η = 0 (Eq. 12, Song et al. 2020) takes Euler steps of the probability-flow ODE from t to the next entry s of its
list of steps, and from the last to the image: x_s = α_s x̂₀(x_t) + σ_s ε̂(x_t). diffusers takes t − T // n for s instead,
which is not the next entry wherever T // n is not the spacing.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, SchedulerMixin, UNet2DModel
from torch import Tensor

PREDICTIONS = ("epsilon", "v_prediction", "sample")
Steps = list[tuple[int, int | None]]  # t and the s it leads to, None for the image
_BETAS = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")


@dataclass(frozen=True)
class NoiseSchedule:
    """What a diffusers scheduler's configuration says, whatever its class: the only reader of schedulers.

    So a pipeline saved with an Euler scheduler is trained, sampled and measured as with a DDPM scheduler of its betas.
    """

    alphas_cumprod: Tensor  # ᾱ_t, (T,)
    prediction_type: str  # epsilon, v_prediction or sample
    clip: float | None  # the range to which the sampler clips its estimates of x₀
    spacing: str  # of the sampler's steps: leading, linspace or trailing
    steps_offset: int  # added to leading steps
    final_alpha_bar: Tensor  # ᾱ where the last step leads: 1, the image, unless the configuration says ᾱ_0

    @classmethod
    def of(cls, scheduler: SchedulerMixin | NoiseSchedule) -> NoiseSchedule:
        """Read a scheduler, or refuse by name what it asks for and is not done here."""
        if isinstance(scheduler, cls):
            return scheduler
        config, name = scheduler.config, type(scheduler).__name__
        if missing := [key for key in _BETAS if key not in config]:
            raise ValueError(f"{name} has no {', '.join(missing)}; expected a scheduler of DDPM's betas")
        named = (*_BETAS, "trained_betas", "rescale_betas_zero_snr")
        alphas_cumprod = DDPMScheduler(**{key: config[key] for key in named if key in config}).alphas_cumprod
        own = getattr(scheduler, "alphas_cumprod", None)
        if own is None or not torch.allclose(own.cpu().float(), alphas_cumprod, rtol=0, atol=1e-6):
            raise ValueError(f"{name} has a noise schedule that its betas do not give; expected one of DDPM's betas")
        predicted = "flow" if config.get("use_flow_sigmas") else config.get("prediction_type", "epsilon")
        if predicted not in PREDICTIONS:
            raise ValueError(f"prediction_type must be one of {', '.join(PREDICTIONS)}; got {predicted!r} of {name}")
        if config.get("thresholding"):
            raise ValueError(f"{name} asks for thresholding = True, which is not done here; expected False")
        clip = float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample") else None
        final = alphas_cumprod.new_ones(()) if config.get("set_alpha_to_one", True) else alphas_cumprod[0]
        spacing = config.get("timestep_spacing", "linspace")
        if spacing not in ("leading", "linspace", "trailing"):
            raise ValueError(f"timestep_spacing must be leading, linspace or trailing; got {spacing!r} of {name}")
        return cls(alphas_cumprod, predicted, clip, spacing, config.get("steps_offset", 0), final)

    @property
    def horizon(self) -> int:
        """T, the number of diffusion steps."""
        return len(self.alphas_cumprod)

    def check_steps(self, t: Tensor | int) -> None:
        """Raise ValueError unless every step lies in 0 … T−1."""
        steps = torch.as_tensor(t)
        if steps.is_floating_point() or steps.numel() == 0 or steps.min() < 0 or steps.max() >= self.horizon:
            raise ValueError(f"t must hold integer steps 0 to {self.horizon - 1}; got {t}")

    def coefficients(self, t: Tensor | int | None, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return α_t and σ_t, to be multiplied with x_t (B, …): of one t, of (B,) of them, or of the image (None)."""
        alpha_bar = self.final_alpha_bar if t is None else self.alphas_cumprod[torch.as_tensor(t).cpu()]
        alpha_bar = alpha_bar.to(like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def add_noise(self, x_0: Tensor, eps: Tensor, t: Tensor | int) -> Tensor:
        """Return x_t = α_t x₀ + σ_t ε."""
        alpha, sigma = self.coefficients(t, x_0)
        return alpha * x_0 + sigma * eps

    def target(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return what the model should predict at x_t: ε, v or x₀."""
        if self.prediction_type == "v_prediction":
            alpha, sigma = self.coefficients(t, x_0)
            return alpha * eps - sigma * x_0
        return eps if self.prediction_type == "epsilon" else x_0

    def split(self, prediction: Tensor, x_t: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """Return the estimates x̂₀ and ε̂ that a prediction at x_t amounts to, with x_t = α_t x̂₀ + σ_t ε̂."""
        alpha, sigma = self.coefficients(t, x_t)
        if self.prediction_type == "epsilon":
            return (x_t - sigma * prediction) / alpha, prediction
        if self.prediction_type == "sample":
            return prediction, (x_t - alpha * prediction) / sigma
        return alpha * x_t - sigma * prediction, alpha * prediction + sigma * x_t

    def steps(self, num_steps: int) -> Steps:
        """Return the sampler's steps (t, s) from noise to image, s being the t of the next and None after the last."""
        horizon, n = self.horizon, num_steps
        if not 1 <= n <= horizon:
            raise ValueError(f"num_steps must be 1 to {horizon}; got {n}")
        if self.spacing == "trailing":
            times = np.round(horizon - np.arange(n) * horizon / n).astype(int) - 1
        elif self.spacing == "linspace":
            times = np.linspace(horizon - 1, 0, n).round().astype(int)
        else:
            times = np.arange(n)[::-1] * (horizon // n) + self.steps_offset
        if times[0] >= horizon or times[-1] < 0:
            raise ValueError(f"steps_offset {self.steps_offset} takes {n} steps out of 0 to {horizon - 1}")
        if times[0] + 1 < 0.9 * horizon:
            told = f"{n} steps of leading spacing begin at t = {times[0]} of T = {horizon}, where x_t is not yet noise"
            warnings.warn(f"{told}; take a number that divides T, or timestep_spacing 'trailing'", stacklevel=3)
        if self.prediction_type == "epsilon" and not self.alphas_cumprod[times[0]] > 0:
            raise ValueError(f"a prediction of epsilon tells nothing at t = {times[0]}, where ᾱ_t = 0; expected v")
        return list(zip(times.tolist(), [*times[1:].tolist(), None], strict=True))


def predict(unet: UNet2DModel, x_t: Tensor, t: Tensor | int) -> Tensor:
    """Evaluate a model; of one that learned its variance too, with twice the channels, only the first half."""
    output, channels = unet(x_t, t).sample, x_t.shape[1]
    if output.shape[1] not in (channels, 2 * channels):
        raise ValueError(f"expected a model of {channels} or {2 * channels} output channels; got {output.shape[1]}")
    return output[:, :channels]


def dsm_loss(unet: UNet2DModel, scheduler: SchedulerMixin, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Denoising score matching with the simple weighting (Eq. 1, Hahm et al. 2024; Eq. 14, Ho et al. 2020).

    E‖ε_θ(x_t, t) − ε‖² for a model that predicts ε, and likewise of v or x₀: the mean over rows, channels and pixels.
    """
    if x_0.shape != eps.shape or t.shape != x_0.shape[:1]:
        got = f"{tuple(x_0.shape)}, {tuple(eps.shape)} and {tuple(t.shape)}"
        raise ValueError(f"x_0 and eps must have one shape (B, C, H, W) and t the shape (B,); got {got}")
    schedule = NoiseSchedule.of(scheduler)
    schedule.check_steps(t)
    target = schedule.target(x_0, eps, t)
    return F.mse_loss(predict(unet, schedule.add_noise(x_0, eps, t), t).to(target.dtype), target)


def ddim_sample(unet: UNet2DModel, scheduler: SchedulerMixin, x_T: Tensor, num_steps: int | Steps) -> Tensor:
    """Sample with DDIM at η = 0: the deterministic map x_T → x₀, in `num_steps` evaluations, or over the steps given.

    Gradients are recorded; where the scheduler clips an estimate of x₀, its derivative is zero.
    """
    return deque(ddim_trajectory(unet, scheduler, x_T, num_steps), maxlen=1)[0][2]


def ddim_trajectory(
    unet: UNet2DModel, scheduler: SchedulerMixin, x_T: Tensor, num_steps: int | Steps
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (t, x_t, x_s) at every step t → s of `ddim_sample`, once the model has been evaluated at x_t."""
    schedule, x = NoiseSchedule.of(scheduler), x_T
    _require_images(x)
    for t, s in num_steps if isinstance(num_steps, list) else schedule.steps(num_steps):
        x_t, x = x, ddim_step(schedule, predict(unet, x, t), x, t, s)
        yield t, x_t, x


def ddim_step(
    schedule: NoiseSchedule, prediction: Tensor, x_t: Tensor, t: int, s: int | None, clean: Tensor | None = None
) -> Tensor:
    """Return x_s = α_s x̂₀ + σ_s ε̂, with x̂₀ clipped where the schedule clips, and taken from `clean` if given."""
    x_0, eps = schedule.split(prediction, x_t, t)
    x_0 = x_0 if clean is None else clean
    alpha, sigma = schedule.coefficients(s, x_t)
    return alpha * (x_0 if schedule.clip is None else x_0.clamp(-schedule.clip, schedule.clip)) + sigma * eps


def ddim_invert(unet: UNet2DModel, scheduler: SchedulerMixin, x_0: Tensor, num_steps: int) -> Tensor:
    """Run DDIM backwards, x₀ → x_T, unclipped, as if predictions changed little over a step (Dhariwal, Nichol 2021)."""
    schedule, x = NoiseSchedule.of(scheduler), x_0
    _require_images(x)
    for t, s in reversed(schedule.steps(num_steps)):
        a, b = step_factors(schedule, t, s, x)
        x = (x - b * linear_prediction(unet, schedule, x, t)) / a
    return x


def linear_prediction(unet: UNet2DModel, schedule: NoiseSchedule, x_t: Tensor, t: int) -> Tensor:
    """Return o_θ(x_t, t) of the step x_s = a x_t + b o_θ(x_t, t): ε̂, or v of a model that predicts v."""
    prediction = predict(unet, x_t, t)
    return schedule.split(prediction, x_t, t)[1] if schedule.prediction_type == "sample" else prediction


def step_factors(schedule: NoiseSchedule, t: int, s: int | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return a and b of the unclipped step x_s = a x_t + b o_θ(x_t, t); refuse one that forgets x_t."""
    kind = "v_prediction" if schedule.prediction_type == "v_prediction" else "epsilon"
    linear, one, zero = replace(schedule, clip=None, prediction_type=kind), like.new_ones(1), like.new_zeros(1)
    a, b = ddim_step(linear, zero, one, t, s), ddim_step(linear, one, zero, t, s)
    if not (a.isfinite() and b.isfinite() and a > 0):
        raise ValueError(f"the step from t = {t} has no inverse: it multiplies x_t by {a.item():.3g}; expected above 0")
    return a, b


def _require_images(x: Tensor) -> None:
    if x.ndim != 4 or not x.isfinite().all():
        got = f"shape {tuple(x.shape)}, finite: {x.isfinite().all()}"
        raise ValueError(f"expected finite images or latents (B, C, H, W); got {got}")
