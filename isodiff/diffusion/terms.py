r"""The two terms of Eq. 7, L_dsm and what regularises a map of the model, with gradients over passes and processes.

The map is the `target`: the encoder X_t → H of the paper, its mean over positions (`pooled`), x_t → x̂₀ in one pass
(`denoiser`), the whole map from noise to image in a few steps of DDIM (`sampler`), each with Eq. 6; or ε → x̂₀ with the
penalty of Smooth Diffusion (`smooth`), as published: at a t of every row's own, with δ = σ_t N(0, I)/√n.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from diffusers import SchedulerMixin, UNet2DModel
from torch import Tensor

from isodiff import geometry
from isodiff.diffusion.config import FinetuneConfig
from isodiff.diffusion.hspace import bottleneck_shape, encode
from isodiff.diffusion.latent import latent_shape
from isodiff.diffusion.process import NoiseSchedule, ddim_step, dsm_loss, predict
from isodiff.diffusion.training import TrainingStep


class Terms:
    """Each method adds a gradient on this process's rows, and returns the loss of all rows.

    `lengths` are the means of ‖Jᵀδ‖ of the steps done, which the target `smooth` goes on from.
    """

    def __init__(
        self, unet: UNet2DModel, scheduler: SchedulerMixin, config: FinetuneConfig, processes: int, lengths: tuple = ()
    ) -> None:
        self.unet, self.schedule, self.config = unet, NoiseSchedule.of(scheduler), config
        self.rows = config.regularised_rows // processes
        self.length, self.average = None, 0.0
        for mean in lengths:
            self.average = geometry.updated_average(mean, self.average)
        if config.lambda_iso == 0:
            return
        if config.estimator != "ratio" and processes > 1:
            raise ValueError(f"estimator {config.estimator!r} needs one process; got {processes}")
        if config.regularised_rows % processes:
            needed = f"regularize_fraction × batch_size must be a multiple of the {processes} processes"
            raise ValueError(f"{needed}; got {config.regularize_fraction} × {config.batch_size} rows")
        n = math.prod(latent_shape(unet))
        m = n
        if config.target in ("encoder", "pooled"):
            h = bottleneck_shape(unet)
            m = math.prod(h) if config.target == "encoder" else h[0]
        self.rank = geometry.anisotropy(1, n, m, metric=config.metric)
        self.steps = self.schedule.steps(config.sampler_steps) if config.target == "sampler" else []

    def add_denoising(self, step: TrainingStep, x_0: Tensor) -> float:
        """Add L_dsm, at a t of its own for every row, pass by pass."""
        passes, losses = self.config.gradient_accumulation_steps, []
        drawn = (x_0, *self._draw(step, x_0, step.generator("dsm")))
        for index, rows in enumerate(zip(*(z.chunk(passes) for z in drawn), strict=True)):
            recomputed = checkpointing(self.unet, self.config.gradient_checkpointing)
            with step.accelerator.autocast(), step.layers(index), recomputed:
                loss = dsm_loss(self.unet, self.schedule, *rows)
            step.accelerator.backward(loss / passes)
            losses.append(loss.detach())
        return step.mean(torch.stack(losses).mean()).item()

    def add_isometry(self, step: TrainingStep, x_0: Tensor) -> tuple[float | None, int | None]:
        """Add λ times the target's term, and return the term and its t; both None at a step that is not regularised.

        Passes are no larger than those of L_dsm; if several, products are computed twice, as each share of the gradient
        needs the means of all.
        """
        config, rows, t = self.config, self.rows, None
        if config.lambda_iso == 0 or step.number % config.regularize_every:
            return None, None
        generator, early = step.generator("isometry"), config.regularize_times == "early"
        if config.target in ("encoder", "pooled", "denoiser"):
            t = draw_regularised_step(self.schedule.horizon, config.p, generator, early=early)
            if t is None:
                return None, None
        # these too of the whole batch, whatever part is regularised
        times, eps = (drawn[:rows] for drawn in self._draw(step, x_0, generator))
        draw = partial(geometry.sample_probes, (config.batch_size, *x_0.shape[1:]), generator=generator)
        probes = [step.rows(draw())[:rows] for _ in range(config.num_probes)]

        weight = config.regularize_every * config.lambda_iso * (self.rank if config.normalize else 1)
        if config.regularize_times == "variance":
            weight *= 1 - float(self.schedule.alphas_cumprod[t])
        largest = len(x_0) // config.gradient_accumulation_steps
        passes = next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= largest)
        rowwise = [z.chunk(passes) for z in (x_0[:rows], times, eps)]
        parts = zip(*rowwise, torch.stack(probes).chunk(passes, 1), strict=True)
        # Double backward needs the graph itself: only first-order passes, and the sampler's steps, can be recomputed.
        inside = config.isometry_route == "differences" and config.target != "sampler"
        with checkpointing(self.unet, config.gradient_checkpointing and inside):
            return self._add_shares(step, [partial(self._samples, t, *part) for part in parts], weight).item(), t

    def _samples(self, t: int | None, x_0: Tensor, times: Tensor, eps: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
        """Return samples of Tr R and Tr R² of the target's map, or of ‖Jᵀδ‖ and its square."""
        target = self.config.target
        if target == "smooth":
            delta = self.schedule.coefficients(times, eps)[1] * probes[0] / math.sqrt(eps[0].numel())
            lengths = geometry.pulled_lengths(
                lambda z: self._denoised(self.schedule.add_noise(x_0, z, times), times), eps, delta
            )
            return lengths, lengths.square()
        at_t = None if t is None else torch.tensor(t, device=x_0.device)
        encoder = partial(encode, self.unet, t=at_t)
        maps = {"encoder": encoder, "pooled": lambda x_t: encoder(x_t).mean((-2, -1))}
        maps["denoiser"] = partial(self._denoised, t=at_t)
        f, x = (self._sampler, eps) if t is None else (maps[target], self.schedule.add_noise(x_0, eps, t))
        return geometry.trace_samples(f, x, probes=probes, metric=self.config.metric, route=self.config.isometry_route)

    def _denoised(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.schedule.split(predict(self.unet, x_t, t), x_t, t)[0]

    def _sampler(self, x: Tensor) -> Tensor:
        for t, s in self.steps:
            step = partial(self._step, t, s)
            x = geometry.recomputed(step, x) if self.config.gradient_checkpointing else step(x)
        return x

    def _step(self, t: int, s: int | None, x: Tensor) -> Tensor:
        return ddim_step(self.schedule, predict(self.unet, x, t), x, t, s)

    def _draw(self, step: TrainingStep, x_0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw t and noise of the global batch and return this process's rows of them."""
        t = torch.randint(self.schedule.horizon, (self.config.batch_size,), generator=generator)
        eps = torch.randn(self.config.batch_size, *x_0.shape[1:], generator=generator).to(x_0.dtype)
        return step.rows(t), step.rows(eps)

    def _add_shares(self, step: TrainingStep, passes: list[partial], weight: float) -> Tensor:
        """Add this process's share of the gradient, given what makes the samples of a pass; return the term of all."""
        alone = len(passes) == 1  # then the graph that gives the means gives the gradient too
        means, samples = [], None
        for index, sample in enumerate(passes):
            with torch.set_grad_enabled(alone), step.layers(index):
                samples = sample()
            means.append(torch.stack([values.detach().mean() for values in samples]))
        if self.config.estimator != "ratio":  # no share of a part is known of these: there is one, as the settings ask
            loss = geometry.estimate_loss(*samples, estimator=self.config.estimator)
            step.accelerator.backward(weight * loss)
            return loss.detach()
        first, second = step.mean(torch.stack(means).mean(0))
        smooth, before = self.config.target == "smooth", self.average
        for index, sample in enumerate(passes):
            if not alone:
                with step.layers(index):
                    samples = sample()
            if smooth:
                share = geometry.smooth_loss_share(samples[0], first, before)
            else:
                share = geometry.isometry_loss_share(*samples, first, second)
            step.accelerator.backward(weight / len(passes) * share)
        if not smooth:
            return second / first.square()
        self.length = first.item()
        self.average = geometry.updated_average(self.length, before)
        return second - 2 * self.average * first + self.average**2


def draw_regularised_step(horizon: int, p: float, generator: torch.Generator, *, early: bool = False) -> int | None:
    """Draw t uniformly from 0 … T−1; None where t + 1 ≤ pT, the indicator of Eq. 7, or where T − t ≤ pT if `early`."""
    t = int(torch.randint(horizon, (), generator=generator))
    return t if (horizon - t if early else t + 1) > p * horizon else None


@contextmanager
def checkpointing(unet: UNet2DModel, enabled: bool) -> Iterator[None]:
    """Recompute activations inside the `with` block, if enabled: the same gradients, in less memory and more time."""
    unet = getattr(unet, "unet", unet)  # of a fixed prompt
    if enabled == (before := getattr(unet, "is_gradient_checkpointing", False)):
        yield
        return
    switch = (unet.disable_gradient_checkpointing, unet.enable_gradient_checkpointing)
    switch[enabled]()
    try:
        yield
    finally:
        switch[before]()
