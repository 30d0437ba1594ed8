r"""Training and isometric fine-tuning of a diffusion model.

The loss is (Eq. 7, Hahm et al. 2024)

    L = L_dsm + λ_iso · 1[t + 1 > pT] · L_iso(e_θ, t).

L_iso (Eq. 6) holds at one t, whereas L_dsm draws a t for every row. Each step therefore draws one more t for the whole
batch and adds the isometry term where t + 1 > pT: with probability 1 − p, at a t uniform on the steps that are
regularised. That is Eq. 7 in expectation.

Both losses are those of the global batch, however it is cut; see `regularizer` for the isometry term.

Randomness is a function of (seed, step, purpose) alone, drawn for the global batch and then sliced. So an interrupted
run resumes exactly; two runs that differ only in λ see the same images, steps and noise; and several processes train as
one.
"""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass
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
from isodiff.diffusion.execution import checkpointing, compiled
from isodiff.diffusion.global_batch import (
    GlobalBatches,
    any_process,
    average_gradients,
    generator_of,
    global_mean,
    layer_randomness,
    own_rows,
)
from isodiff.diffusion.hspace import check_encoder
from isodiff.diffusion.latent import autoencoder_of, image_shape, images_to_latents
from isodiff.diffusion.process import dsm_loss
from isodiff.diffusion.regularizer import IsometryTerm, draw_rows, regularised_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from diffusers import DiffusionPipeline, UNet2DModel

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
    pipeline: DiffusionPipeline,
    images: Dataset,
    config: FinetuneConfig,
    *,
    checkpoint: str | Path | None = None,
    accelerator: Accelerator | None = None,
    provenance: dict[str, str] | None = None,
    stop: Callable[[], int] | None = None,
) -> Iterator[TrainingState]:
    """Train a model on Eq. 7, step by step; the caller owns the loop and the logging.

    Args:
        pipeline: its U-Net is trained in place; an autoencoder it may have stays as it is, and the latents of the
            images take their place. During the run the U-Net holds the raw weights, afterwards their moving average.
            With several processes, all start from the main process's weights.
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
        A step costs one pass of the U-Net (L_dsm), forward and backward, and where it is regularised the products of
        `IsometryTerm`; nothing but the gradient is kept between passes. Several
        processes exchange one vector of the size of the gradient a step, and hold two copies of it meanwhile. Dropout,
        where a model has it, is drawn anew for each process and pass.
    """
    unet, scheduler = pipeline.unet, pipeline.scheduler
    accelerator = accelerator or Accelerator(mixed_precision=config.mixed_precision)
    _check_fit(pipeline, images, config, accelerator.num_processes)
    autoencoder = autoencoder_of(pipeline)
    if autoencoder is not None:
        autoencoder.requires_grad_(False).eval().to(accelerator.device)
    unet.requires_grad_(True).train().to(accelerator.device)
    if config.channels_last:
        unet.to(memory_format=torch.channels_last)
    if accelerator.num_processes > 1:
        for parameter in unet.parameters():
            parameter.data.copy_(broadcast(parameter.data))

    optimizer = torch.optim.Adam(unet.parameters(), lr=config.learning_rate)
    ema = EMAModel(unet.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=3 / 4, foreach=True)
    ema.to(accelerator.device)
    settings = {**config.defining(), "num_images": len(images), **(provenance or {})}
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
    sequential = getattr(images, "sequential", False)
    sampler = GlobalBatches(len(images), config, start, accelerator, sequential=sequential)
    loader = DataLoader(images, batch_sampler=sampler, num_workers=config.num_workers, generator=torch.Generator())
    flip = getattr(images, "horizontal_flip", False) if config.horizontal_flip is None else config.horizontal_flip
    passes, layout = config.gradient_accumulation_steps, torch.channels_last if config.channels_last else None
    term, denoiser = IsometryTerm(unet, scheduler, config, accelerator), compiled(unet) if config.compile else unet

    for step, batch in enumerate(loader, start=start):
        layers = partial(layer_randomness, config.seed, step, accelerator)
        x_0 = batch.to(accelerator.device, unet.dtype)
        if flip:
            mirrored = torch.rand(config.batch_size, generator=generator_of(config.seed, step, "flip")) < 0.5
            x_0 = torch.where(own_rows(mirrored, accelerator).view(-1, 1, 1, 1), x_0.flip(3), x_0)
        with torch.no_grad():
            x_0 = images_to_latents(autoencoder, x_0).to(unet.dtype)

        if layout:
            x_0 = x_0.contiguous(memory_format=layout)

        t, eps = draw_rows(x_0, scheduler, config, generator_of(config.seed, step, "dsm"), accelerator)
        losses = []
        for index, rows in enumerate(zip(*(z.chunk(passes) for z in (x_0, t, eps)), strict=True)):
            with accelerator.autocast(), layers(index), checkpointing(unet, config.gradient_checkpointing):
                loss = dsm_loss(denoiser, scheduler, *rows)
            accelerator.backward(loss / passes)
            losses.append(loss.detach())
        dsm = global_mean(torch.stack(losses).mean(), accelerator)
        regularised = term.backward(step, x_0, layers)

        average_gradients(unet, accelerator)
        grad_norm = accelerator.clip_grad_norm_(unet.parameters(), config.max_grad_norm)
        state = TrainingState(step + 1, dsm.item(), *regularised, float(grad_norm))
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
    unet.to(memory_format=torch.contiguous_format).eval()


def _check_fit(pipeline: DiffusionPipeline, images: Dataset, config: FinetuneConfig, num_processes: int) -> None:
    passes = config.gradient_accumulation_steps
    if config.batch_size % (num_processes * passes):
        raise ValueError(
            f"batch_size must be a multiple of processes × gradient_accumulation_steps = {num_processes} × {passes}; "
            f"got {config.batch_size}"
        )
    if len(images) < 1:
        raise ValueError("the dataset holds no image")
    shape, expected = tuple(images[0].shape), image_shape(pipeline)
    if shape != expected:
        raise ValueError(f"the images have shape {shape}; this model needs {expected} (channels, height, width)")
    if config.lambda_iso > 0:
        check_encoder(pipeline.unet)
        if config.estimator != "ratio" and num_processes > 1:
            raise ValueError(f"estimator {config.estimator!r} needs one process; got {num_processes}")
        if regularised_rows(config) % num_processes:
            raise ValueError(
                f"regularize_fraction × batch_size must be a multiple of the {num_processes} processes; "
                f"got {config.regularize_fraction} × {config.batch_size} = {regularised_rows(config)} rows"
            )


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
