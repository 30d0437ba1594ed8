r"""Training and isometric fine-tuning of a DDPM.

The loss is (Eq. 7, Hahm et al. 2024)

    L = L_dsm + λ_iso · 1[t + 1 > pT] · L_iso(e_θ, t).

L_iso (Eq. 6) holds at one t, whereas L_dsm draws a t for every row. Each step therefore draws one more t for the whole
batch and adds the isometry term where t + 1 > pT: with probability 1 − p, at a t uniform on the steps that are
regularised. That is Eq. 7 in expectation.

Both losses are those of the global batch, however it is cut. With D = mean ‖Jv‖² and N = mean ‖JᵀJv‖², L_iso = N / D²
is a ratio of means over all processes and passes, not a mean of ratios: there is one scale c. D and N are therefore
averaged first, and each part adds its share of the exact gradient (`isometry_loss_share`).

Randomness is a function of (seed, step, purpose) alone, drawn for the global batch and then sliced. So an interrupted
run resumes exactly; two runs that differ only in λ see the same images, steps and noise; and several processes train as
one.
"""

from __future__ import annotations

import math
import signal
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader, Dataset

from isodiff.diffusion.checkpoint import Checkpoint
from isodiff.diffusion.config import FinetuneConfig
from isodiff.diffusion.global_batch import (
    GlobalBatches,
    any_process,
    average_gradients,
    generator_of,
    global_mean,
    layer_randomness,
    own_rows,
)
from isodiff.diffusion.hspace import check_encoder, encode
from isodiff.diffusion.process import dsm_loss
from isodiff.geometry.isometry import isometry_loss_share, isotropy, trace_samples
from isodiff.geometry.trace import sample_probes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from diffusers import DDPMPipeline, SchedulerMixin, UNet2DModel

_REMEDY = "Lower learning_rate or lambda_iso, or use mixed_precision 'bf16' or 'no'"


@dataclass(frozen=True)
class TrainingState:
    """What the loop yields after each step.

    Attributes:
        step: steps done, from 1.
        dsm: L_dsm of this step's batch, over all processes.
        isometry: L_iso of the same, or None where the step was not regularised.
        isotropy: L_iso · rank, 1 for a scaled isometry, or None.
        t: the diffusion step of the isometry term, or None.
        grad_norm: norm of the gradient before clipping.
    """

    step: int
    dsm: float
    isometry: float | None
    isotropy: float | None
    t: int | None
    grad_norm: float


class TrainingInterrupted(RuntimeError):
    """The run was asked to stop and has written its checkpoint; `signal` is the number of the signal that asked."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


def finetune(
    pipeline: DDPMPipeline,
    images: Dataset,
    config: FinetuneConfig,
    *,
    checkpoint: str | Path | None = None,
    accelerator: Accelerator | None = None,
    provenance: dict[str, str] | None = None,
    stop: Callable[[], int] | None = None,
) -> Iterator[TrainingState]:
    """Train a DDPM on Eq. 7, step by step; the caller owns the loop and the logging.

    Args:
        pipeline: its U-Net is trained in place. During the run it holds the raw weights, afterwards their moving
            average. With several processes, all start from the main process's weights.
        images: map-style dataset of (C, R, R) images in [−1, 1], always the same image at the same index.
        config: the settings.
        checkpoint: file for checkpoints; the one before is kept beside it, and only the main process writes. If it
            exists the run goes on from there, to the same result as if never interrupted: bit for bit on a CPU with the
            same number of processes, to rounding with another.
        accelerator: for devices, processes and precision; made from `config` by default.
        provenance: facts, such as the dataset, that a checkpoint must share besides the settings.
        stop: asked after each step for a signal's number, 0 to go on. Once any process answers with one, the checkpoint
            is written and all end.

    Yields:
        A `TrainingState` after each step, the same on every process.

    Raises:
        ValueError: images and model do not fit, the batch cannot be cut evenly, the checkpoint was written with other
            settings, or no checkpoint is whole.
        FloatingPointError: a loss, a gradient or a weight is not finite; the message says where, and which checkpoint
            is the last good one.
        OSError: a checkpoint could not be written; those before are whole.
        TrainingInterrupted: `stop` said so.

    Note:
        A regularised step costs one pass of the U-Net (L_dsm) and one Jacobian-vector and one vector-Jacobian product
        of its encoder. With `gradient_accumulation_steps` > 1 the encoder's products are computed twice, first without
        graph, as every share needs D and N; in return nothing but the gradient is kept between passes. Several
        processes exchange one vector of the size of the gradient a step, and hold two copies of it meanwhile. Dropout,
        where a model has it, is drawn anew for each process and pass.
    """
    unet, scheduler = pipeline.unet, pipeline.scheduler
    horizon = scheduler.config.num_train_timesteps
    accelerator = accelerator or Accelerator(mixed_precision=config.mixed_precision)
    _check_fit(unet, images, config, accelerator.num_processes)
    unet.requires_grad_(True).train().to(accelerator.device)
    if accelerator.num_processes > 1:
        for parameter in unet.parameters():
            parameter.data.copy_(broadcast(parameter.data))

    optimizer = torch.optim.Adam(unet.parameters(), lr=config.learning_rate)
    ema = EMAModel(unet.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=3 / 4, foreach=True)
    ema.to(accelerator.device)
    settings = {**asdict(config), "num_images": len(images), **(provenance or {})}
    store = Checkpoint(checkpoint, unet, ema, optimizer, settings, accelerator) if checkpoint else None
    start = store.restore() if store else 0

    for group in optimizer.param_groups:
        group["initial_lr"] = config.learning_rate
    learning_rate = get_scheduler(
        "constant_with_warmup" if config.lr_scheduler == "constant" else "cosine",
        optimizer,
        num_warmup_steps=config.warmup_steps,
        num_training_steps=config.num_steps,
        last_epoch=start - 1,
    )
    optimizer = accelerator.prepare(optimizer)
    optimizer.zero_grad()
    sampler = GlobalBatches(len(images), config, start, accelerator)
    loader = DataLoader(images, batch_sampler=sampler, num_workers=config.num_workers, generator=torch.Generator())
    flip = getattr(images, "horizontal_flip", False) if config.horizontal_flip is None else config.horizontal_flip
    passes = config.gradient_accumulation_steps

    for step, batch in enumerate(loader, start=start):
        layers = partial(layer_randomness, config.seed, step, accelerator)
        x_0 = batch.to(accelerator.device, unet.dtype)
        if flip:
            mirrored = torch.rand(config.batch_size, generator=generator_of(config.seed, step, "flip")) < 0.5
            x_0 = torch.where(own_rows(mirrored, accelerator).view(-1, 1, 1, 1), x_0.flip(3), x_0)

        t, eps = _draw_rows(x_0, scheduler, config, generator_of(config.seed, step, "dsm"), accelerator)
        losses = []
        for index, rows in enumerate(zip(*(z.chunk(passes) for z in (x_0, t, eps)), strict=True)):
            with accelerator.autocast(), layers(index):
                loss = dsm_loss(unet, scheduler, *rows)
            accelerator.backward(loss / passes)
            losses.append(loss.detach())
        dsm, iso, scaled = global_mean(torch.stack(losses).mean(), accelerator), None, None

        generator = generator_of(config.seed, step, "isometry")
        t_iso = draw_regularised_step(horizon, config.p, generator) if config.lambda_iso > 0 else None
        if t_iso is not None:
            _, eps = _draw_rows(x_0, scheduler, config, generator, accelerator)
            x_t = scheduler.add_noise(x_0, eps, t.new_full(t.shape, t_iso))
            shape = (config.batch_size, *x_t.shape[1:])
            drawn = [sample_probes(shape, generator=generator) for _ in range(config.num_probes)]
            probes = torch.stack([own_rows(probe, accelerator) for probe in drawn])
            rank = isotropy(1, x_t[0].numel(), _bottleneck_size(unet), metric=config.metric)
            weight = config.lambda_iso * (rank if config.normalize else 1)
            traces = partial(trace_samples, partial(encode, unet, t=t_iso), metric=config.metric)
            parts = list(zip(x_t.chunk(passes), probes.chunk(passes, 1), strict=True))
            iso = _isometry_backward(traces, parts, weight, layers, accelerator).item()
            scaled = iso * rank

        average_gradients(unet, accelerator)
        grad_norm = accelerator.clip_grad_norm_(unet.parameters(), config.max_grad_norm)
        state = TrainingState(step + 1, dsm.item(), iso, scaled, t_iso, float(grad_norm))
        _guard(state, store, scaled_gradients=accelerator.scaler is not None)
        optimizer.step()
        learning_rate.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        yield state
        # Saved once the caller has seen the step, so that what the caller logs never lags behind the checkpoint.
        number = any_process(stop(), accelerator) if stop else 0
        if number or state.step % config.checkpoint_every == 0 or state.step == config.num_steps:
            _require_finite_weights(unet, state.step, store)
            if store:
                store.save(state.step)
        if number:
            raise TrainingInterrupted(
                f"stopped by {signal.Signals(number).name} after step {state.step} of {config.num_steps}; "
                + (f"{store.path} is written, run the same again to go on" if store else "no checkpoint was asked for"),
                number,
            )

    ema.copy_to(unet.parameters())
    unet.eval()


def _isometry_backward(
    traces: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    parts: list[tuple[torch.Tensor, torch.Tensor]],
    weight: float,
    layers: Callable[[int], AbstractContextManager],
    accelerator: Accelerator,
) -> torch.Tensor:
    """Add this process's share of the gradient of weight · L_iso, given (x_t, probes) a pass; return L_iso of all."""
    alone = len(parts) == 1  # then the graph that gives the means gives the gradient too
    means, samples = [], None
    for index, (x_t, probes) in enumerate(parts):
        with torch.set_grad_enabled(alone), layers(index):
            samples = traces(x_t, probes=probes)
        means.append(torch.stack([sample.detach().mean() for sample in samples]))
    mean_first, mean_second = global_mean(torch.stack(means).mean(0), accelerator)
    for index, (x_t, probes) in enumerate(parts):
        if not alone:
            with layers(index):
                samples = traces(x_t, probes=probes)
        share = isometry_loss_share(*samples, mean_first, mean_second)
        accelerator.backward(weight / len(parts) * share)
    return mean_second / mean_first.square()


def _draw_rows(
    x_0: torch.Tensor,
    scheduler: SchedulerMixin,
    config: FinetuneConfig,
    generator: torch.Generator,
    accelerator: Accelerator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps and noise of the global batch, this process's rows of them."""
    t = torch.randint(scheduler.config.num_train_timesteps, (config.batch_size,), generator=generator)
    eps = torch.randn(config.batch_size, *x_0.shape[1:], generator=generator).to(x_0.dtype)
    return own_rows(t, accelerator), own_rows(eps, accelerator)


def draw_regularised_step(num_train_timesteps: int, p: float, generator: torch.Generator) -> int | None:
    """Draw the step of the isometry term: uniform on 0 … T−1, or None where t + 1 ≤ pT (the indicator of Eq. 7)."""
    t = int(torch.randint(num_train_timesteps, (), generator=generator))
    return t if t + 1 > p * num_train_timesteps else None


def _check_fit(unet: UNet2DModel, images: Dataset, config: FinetuneConfig, num_processes: int) -> None:
    passes = config.gradient_accumulation_steps
    if config.batch_size % (num_processes * passes):
        raise ValueError(
            f"batch_size must be a multiple of processes × gradient_accumulation_steps = {num_processes} × {passes}; "
            f"got {config.batch_size}"
        )
    if len(images) < 1:
        raise ValueError("the dataset holds no image")
    shape, expected = (
        tuple(images[0].shape),
        (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size),
    )
    if shape != expected:
        raise ValueError(f"the images have shape {shape}; this model needs {expected} (channels, height, width)")
    if config.lambda_iso > 0:
        check_encoder(unet)


def _bottleneck_size(unet: UNet2DModel) -> int:
    """Number m of entries of h."""
    side = unet.config.sample_size // 2 ** (len(unet.config.block_out_channels) - 1)
    return unet.config.block_out_channels[-1] * side**2


def _require_finite_weights(unet: UNet2DModel, step: int, store: Checkpoint | None) -> None:
    """Refuse to keep weights that a finite gradient has taken out of range."""
    if not all(parameter.isfinite().all() for parameter in unet.parameters()):
        kept = store.kept if store else "no checkpoint was asked for"
        raise FloatingPointError(f"step {step} left weights that are not finite; {kept}. {_REMEDY}")


def _guard(state: TrainingState, store: Checkpoint | None, *, scaled_gradients: bool) -> None:
    """Stop before a step that is not finite touches the weights."""
    values = [state.dsm, 0.0 if state.isometry is None else state.isometry]
    if not scaled_gradients:  # the scaler of fp16 skips a step whose gradient overflows, and scales down
        values.append(state.grad_norm)
    if all(map(math.isfinite, values)):
        return
    raise FloatingPointError(
        f"step {state.step}: L_dsm = {state.dsm}, L_iso = {state.isometry} at t = {state.t}, "
        f"gradient norm {state.grad_norm}; {store.kept if store else 'no checkpoint was asked for'}. {_REMEDY}"
    )
