r"""Training and isometric fine-tuning of a diffusion model, which minimises Eq. 7 of Hahm et al. 2024.

    L = L_dsm + λ_iso · 1[t + 1 > pT] · L_iso(e_θ, t),    L_iso = N / D²,    D = mean ‖Jv‖²,    N = mean ‖P JᵀJv‖²,

P the projection onto the tangent space of the noise sphere, for each probe v in it. L_iso (Eq. 6) holds at one t,
whereas L_dsm draws a t for every row: each step draws one more t for the whole batch, which is Eq. 7 in expectation.
The ratio is one of means over all processes and passes: D and N are averaged first, and each part adds its share of the
exact gradient (`isometry_loss_share`). The term costs less, with the same expectation up to the bias of the ratio, at
every k-th step only, k times as strong (lazy regularisation, Karras et al. 2020), or on a part of the rows.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DModel
from torch import Tensor
from torch.utils.data import Dataset

from isodiff.diffusion.config import FinetuneConfig
from isodiff.diffusion.hspace import bottleneck_shape, encode
from isodiff.diffusion.latent import autoencoder_of, image_shape, images_to_latents, latent_shape
from isodiff.diffusion.models import load_pipeline, save_pipeline
from isodiff.diffusion.process import NoiseSchedule, dsm_loss
from isodiff.diffusion.run_folder import train_into
from isodiff.diffusion.training import RunOptions, Training, TrainingStep
from isodiff.geometry import anisotropy, estimate_loss, isometry_loss_share, sample_probes, trace_samples


@dataclass(frozen=True)
class TrainingState:
    """What the loop yields after each step, the same on every process."""

    step: int  # steps done, from 1
    dsm: float  # L_dsm of the step's batch
    isometry: float | None  # L_iso of the same; these three are None where the step was not regularised
    anisotropy: float | None  # L_iso · rank, 1 for a scaled isometry
    t: int | None  # the diffusion step of the isometry term
    grad_norm: float  # before clipping


def finetune(
    pipeline: DiffusionPipeline, images: Dataset[Tensor], config: FinetuneConfig, **options: Unpack[RunOptions]
) -> Iterator[TrainingState]:
    """Minimise Eq. 7 step by step; the caller owns the loop and the logging. The options are those of `RunOptions`.

    The U-Net is trained in place: it holds the raw weights during the run, their moving average afterwards. Images are
    (C, R, R) in [−1, 1]; an autoencoder takes them to latents and stays as it is. A loss, gradient or weight that is
    not finite is a FloatingPointError that names the last good checkpoint.
    """
    run = Training(pipeline.unet, images, image_shape(pipeline), config, options)
    if (autoencoder := autoencoder_of(pipeline)) is not None:
        autoencoder.requires_grad_(False).eval().to(run.accelerator.device)
    flip = getattr(images, "horizontal_flip", False) if config.horizontal_flip is None else config.horizontal_flip
    terms = Terms(pipeline.unet, pipeline.scheduler, config, run.accelerator.num_processes)
    for step, x_0 in run.steps():
        if flip:
            mirrored = step.rows(torch.rand(config.batch_size, generator=step.generator("flip")) < 0.5)
            x_0 = torch.where(mirrored.view(-1, 1, 1, 1), x_0.flip(3), x_0)
        with torch.no_grad():
            x_0 = images_to_latents(autoencoder, x_0).to(pipeline.unet.dtype)
        dsm = terms.add_denoising(step, x_0)
        isometry, t = terms.add_isometry(step, x_0)
        grad_norm = run.update(step, {"L_dsm": dsm, "L_iso": isometry, "t": t})
        relative = None if isometry is None else isometry * terms.rank
        run.log.append({"dsm": dsm, "anisotropy": relative, "grad_norm": grad_norm})
        yield TrainingState(step.number + 1, dsm, isometry, relative, t, grad_norm)


class Terms:
    """The two terms of Eq. 7; each method adds a gradient on this process's rows, and returns the loss of all rows."""

    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin, config: FinetuneConfig, processes: int) -> None:
        self.unet, self.schedule, self.config = unet, NoiseSchedule.of(scheduler), config
        self.rows = config.regularised_rows // processes
        if config.lambda_iso == 0:
            return
        if config.estimator != "ratio" and processes > 1:
            raise ValueError(f"estimator {config.estimator!r} needs one process; got {processes}")
        if config.regularised_rows % processes:
            needed = f"regularize_fraction × batch_size must be a multiple of the {processes} processes"
            raise ValueError(f"{needed}; got {config.regularize_fraction} × {config.batch_size} rows")
        n, m = math.prod(latent_shape(unet)), math.prod(bottleneck_shape(unet))
        self.rank = anisotropy(1, n, m, metric=config.metric)

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

    def add_isometry(self, step: TrainingStep, x_0: Tensor) -> tuple[float, int] | tuple[None, None]:
        """Add λ_iso · L_iso(e_θ, t) at one t with t + 1 > pT, and return t too; both None where there is no such t.

        Passes are no larger than those of L_dsm; if several, Jv and Jᵀu are computed twice, as a share needs D and N.
        """
        config, rows = self.config, self.rows
        if config.lambda_iso == 0 or step.number % config.regularize_every:
            return None, None
        generator, early = step.generator("isometry"), config.regularize_times == "early"
        if (t := draw_regularised_step(self.schedule.horizon, config.p, generator, early=early)) is None:
            return None, None
        _, eps = self._draw(step, x_0, generator)  # these too of the whole batch, whatever part is regularised
        shape = (config.batch_size, *x_0.shape[1:])
        probes = [step.rows(sample_probes(shape, generator=generator))[:rows] for _ in range(config.num_probes)]
        x_t = self.schedule.add_noise(x_0[:rows], eps[:rows], t)

        weight = config.regularize_every * config.lambda_iso * (self.rank if config.normalize else 1)
        if config.regularize_times == "variance":
            weight *= 1 - float(self.schedule.alphas_cumprod[t])
        at_t = partial(encode, self.unet, t=torch.tensor(t, device=x_0.device))
        traces = partial(trace_samples, at_t, metric=config.metric, route=config.isometry_route)
        largest = len(x_0) // config.gradient_accumulation_steps
        passes = next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= largest)
        parts = list(zip(x_t.chunk(passes), torch.stack(probes).chunk(passes, 1), strict=True))
        # Only first-order passes can be recomputed: double backward needs the graph itself.
        with checkpointing(self.unet, config.gradient_checkpointing and config.isometry_route == "differences"):
            return self._add_shares(step, traces, parts, weight).item(), t

    def _draw(self, step: TrainingStep, x_0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw t and noise of the global batch and return this process's rows of them."""
        t = torch.randint(self.schedule.horizon, (self.config.batch_size,), generator=generator)
        eps = torch.randn(self.config.batch_size, *x_0.shape[1:], generator=generator).to(x_0.dtype)
        return step.rows(t), step.rows(eps)

    def _add_shares(self, step: TrainingStep, traces: Callable, parts: list[tuple], weight: float) -> Tensor:
        """Add this process's share of weight · ∇L_iso, given (x_t, probes) a pass; return L_iso of all rows."""
        alone = len(parts) == 1  # then the graph that gives the means gives the gradient too
        means, samples = [], None
        for index, (x_t, probes) in enumerate(parts):
            with torch.set_grad_enabled(alone), step.layers(index):
                samples = traces(x_t, probes=probes)
            means.append(torch.stack([sample.detach().mean() for sample in samples]))
        if self.config.estimator != "ratio":  # no share of a part is known of these: there is one, as the settings ask
            step.accelerator.backward(weight * (loss := estimate_loss(*samples, estimator=self.config.estimator)))
            return loss.detach()
        mean_first, mean_second = step.mean(torch.stack(means).mean(0))
        for index, (x_t, probes) in enumerate(parts):
            if not alone:
                with step.layers(index):
                    samples = traces(x_t, probes=probes)
            step.accelerator.backward(weight / len(parts) * isometry_loss_share(*samples, mean_first, mean_second))
        return mean_second / mean_first.square()


def draw_regularised_step(horizon: int, p: float, generator: torch.Generator, *, early: bool = False) -> int | None:
    """Draw t uniformly from 0 … T−1; None where t + 1 ≤ pT, the indicator of Eq. 7, or where T − t ≤ pT if `early`."""
    t = int(torch.randint(horizon, (), generator=generator))
    return t if (horizon - t if early else t + 1) > p * horizon else None


@contextmanager
def checkpointing(unet: UNet2DModel, enabled: bool) -> Iterator[None]:
    """Recompute activations inside the `with` block, if enabled: the same gradients, in less memory and more time."""
    unet = getattr(unet, "unet", unet)  # of a fixed prompt
    switch = (unet.disable_gradient_checkpointing, unet.enable_gradient_checkpointing)
    if enabled == (before := unet.is_gradient_checkpointing):
        yield
        return
    switch[enabled]()
    try:
        yield
    finally:
        switch[before]()


def train(
    pipeline: DiffusionPipeline,
    images: Dataset[Tensor],
    config: FinetuneConfig,
    output: str | Path,
    *,
    provenance: Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    half: bool = False,
    progress: bool = True,
    overwrite: bool = False,
) -> DiffusionPipeline:
    """Train into a diffusers pipeline of the averaged weights; go on with a run that is there, or load what it made.

    A folder with anything else in it is refused, unless it is to `overwrite` files of the same names. Of a model that
    learned its variance too, the variance stays that of the base: L_dsm has no gradient in it.
    """

    def save(folder: Path) -> dict[str, int]:
        save_pipeline(pipeline, folder, half=half)
        return {"parameters": pipeline.unet.num_parameters()}

    accelerator = accelerator or Accelerator(mixed_precision=config.mixed_precision)
    channels, made = (getattr(pipeline.unet.config, f"{way}_channels") for way in ("in", "out"))
    if made != channels:
        warnings.warn("the base learned its variance too: that half of its output stays as it is", stacklevel=2)
    options = {"steps": partial(finetune, pipeline, images, config), "save": save}
    options |= {"progress": progress, "overwrite": overwrite}
    return pipeline if train_into(output, config, provenance, accelerator, **options) else load_pipeline(output)
