r"""Training and isometric fine-tuning of a DDPM.

The loss is (Eq. 7, Hahm et al. 2024)

    L = L_dsm + λ_iso · 1[t + 1 > pT] · L_iso(e_θ, t).

L_iso (Eq. 6) holds at one t, whereas L_dsm draws a t for every row. Each step therefore draws one more t for the whole
batch and adds the isometry term where t + 1 > pT: with probability 1 − p, at a t uniform on the steps that are
regularised. That is Eq. 7 in expectation.

Randomness is a function of (seed, step, purpose) alone. So an interrupted run resumes exactly; two runs that differ
only in λ see the same images, steps and noise; and several processes, each taking its slice of the global batch, train
as one.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader, Dataset, Sampler

from isodiff.diffusion.checkpoint import Checkpoint
from isodiff.diffusion.config import FinetuneConfig
from isodiff.diffusion.hspace import check_encoder, encode
from isodiff.diffusion.process import dsm_loss
from isodiff.geometry.isometry import isometry_loss, isotropy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from diffusers import DDPMPipeline, SchedulerMixin, UNet2DModel

_STREAMS = ("epoch", "flip", "dsm", "isometry")


@dataclass(frozen=True)
class TrainingState:
    """What the loop yields after each step.

    Attributes:
        step: steps done, from 1.
        dsm: L_dsm of this step's batch.
        isometry: L_iso, or None where the step was not regularised.
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


def finetune(
    pipeline: DDPMPipeline,
    images: Dataset,
    config: FinetuneConfig,
    *,
    checkpoint: str | Path | None = None,
    accelerator: Accelerator | None = None,
) -> Iterator[TrainingState]:
    """Train a DDPM on Eq. 7, step by step; the caller owns the loop and the logging.

    Args:
        pipeline: its U-Net is trained in place. During the run it holds the raw weights, afterwards their moving
            average.
        images: map-style dataset of (C, R, R) images in [−1, 1].
        config: the settings.
        checkpoint: file for checkpoints. If it exists the run goes on from there, to the same result as if never
            interrupted.
        accelerator: for devices, processes and precision; made from `config` by default.

    Yields:
        A `TrainingState` after each step.

    Raises:
        ValueError: images and model do not fit, or the checkpoint was written with other settings.
        FloatingPointError: a loss or gradient is not finite; the message says where, and which checkpoint is the last
            good one.

    Note:
        A regularised step costs one pass of the U-Net (L_dsm) and one Jacobian-vector and one vector-Jacobian product
        of its encoder.
    """
    unet, scheduler = pipeline.unet, pipeline.scheduler
    horizon = scheduler.config.num_train_timesteps
    _check_fit(unet, images, config)
    accelerator = accelerator or Accelerator(mixed_precision=config.mixed_precision)
    unet.requires_grad_(True).train().to(accelerator.device)

    optimizer = torch.optim.Adam(unet.parameters(), lr=config.learning_rate)
    ema = EMAModel(unet.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=3 / 4, foreach=True)
    ema.to(accelerator.device)
    store = Checkpoint(checkpoint, unet, ema, optimizer, asdict(config)) if checkpoint else None
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
    model, optimizer = accelerator.prepare(unet, optimizer)
    sampler = _GlobalBatches(len(images), config, start, accelerator)
    loader = DataLoader(images, batch_sampler=sampler, num_workers=config.num_workers)
    flip = getattr(images, "horizontal_flip", False) if config.horizontal_flip is None else config.horizontal_flip

    for step, batch in enumerate(loader, start=start):
        x_0 = batch.to(accelerator.device)
        if flip:
            mirrored = torch.rand(config.batch_size, generator=_generator(config.seed, step, "flip")) < 0.5
            x_0 = torch.where(_mine(mirrored, accelerator).view(-1, 1, 1, 1), x_0.flip(3), x_0)

        t, eps = _draw_rows(x_0, scheduler, config, _generator(config.seed, step, "dsm"), accelerator)
        with accelerator.autocast():
            dsm = dsm_loss(model, scheduler, x_0, t, eps)
        loss, iso, scaled = dsm, None, None

        generator = _generator(config.seed, step, "isometry")
        t_iso = draw_regularised_step(horizon, config.p, generator) if config.lambda_iso > 0 else None
        if t_iso is not None:
            _, eps = _draw_rows(x_0, scheduler, config, generator, accelerator)
            x_t = scheduler.add_noise(x_0, eps, t.new_full(t.shape, t_iso))
            iso = isometry_loss(
                partial(encode, unet, t=t_iso),
                x_t,
                metric=config.metric,
                num_probes=config.num_probes,
                generator=generator,
            )
            scaled = isotropy(iso, x_t[0].numel(), _bottleneck_size(unet), metric=config.metric)
            loss = dsm + config.lambda_iso * (scaled if config.normalize else iso)

        accelerator.backward(loss)
        grad_norm = accelerator.clip_grad_norm_(unet.parameters(), config.max_grad_norm)
        numbers = (None if value is None else value.item() for value in (iso, scaled))
        state = TrainingState(step + 1, dsm.item(), *numbers, t_iso, float(grad_norm))
        _guard(state, store, scaled_gradients=accelerator.scaler is not None)
        optimizer.step()
        learning_rate.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        yield state
        # Saved once the caller has seen the step, so that what the caller logs never lags behind the checkpoint.
        due = state.step % config.checkpoint_every == 0 or state.step == config.num_steps
        if store and due and accelerator.is_main_process:
            store.save(state.step)

    ema.copy_to(unet.parameters())
    unet.eval()


class _GlobalBatches(Sampler[list[int]]):
    """This process's slice of each global batch: every image once an epoch, in an order set by the seed alone."""

    def __init__(self, num_images: int, config: FinetuneConfig, start: int, accelerator: Accelerator) -> None:
        self.num_images, self.config, self.start, self.accelerator = num_images, config, start, accelerator

    def __len__(self) -> int:
        return self.config.num_steps - self.start

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, torch.empty(0)
        for step in range(self.start, self.config.num_steps):
            positions = range(step * self.config.batch_size, (step + 1) * self.config.batch_size)
            batch = []
            for position in positions:
                if position // self.num_images != epoch:
                    epoch = position // self.num_images
                    order = torch.randperm(self.num_images, generator=_generator(self.config.seed, epoch, "epoch"))
                batch.append(int(order[position % self.num_images]))
            yield batch[self.accelerator.process_index :: self.accelerator.num_processes]


def _generator(seed: int, step: int, stream: str) -> torch.Generator:
    """Independent random numbers for each (seed, step, purpose)."""
    entropy = np.random.SeedSequence([seed, step, _STREAMS.index(stream)]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(entropy >> np.uint64(1)))


def _mine(rows: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Take this process's rows of a tensor drawn for the global batch."""
    return rows[accelerator.process_index :: accelerator.num_processes].to(accelerator.device)


def _draw_rows(
    x_0: torch.Tensor,
    scheduler: SchedulerMixin,
    config: FinetuneConfig,
    generator: torch.Generator,
    accelerator: Accelerator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps and noise of the global batch, this process's rows of them."""
    t = torch.randint(scheduler.config.num_train_timesteps, (config.batch_size,), generator=generator)
    eps = torch.randn(config.batch_size, *x_0.shape[1:], generator=generator)
    return _mine(t, accelerator), _mine(eps, accelerator)


def draw_regularised_step(num_train_timesteps: int, p: float, generator: torch.Generator) -> int | None:
    """Draw the step of the isometry term: uniform on 0 … T−1, or None where t + 1 ≤ pT (the indicator of Eq. 7)."""
    t = int(torch.randint(num_train_timesteps, (), generator=generator))
    return t if t + 1 > p * num_train_timesteps else None


def _check_fit(unet: UNet2DModel, images: Dataset, config: FinetuneConfig) -> None:
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


def _guard(state: TrainingState, store: Checkpoint | None, *, scaled_gradients: bool) -> None:
    """Stop before a step that is not finite touches the weights."""
    values = [state.dsm, 0.0 if state.isometry is None else state.isometry]
    if not scaled_gradients:  # the scaler of fp16 skips a step whose gradient overflows, and scales down
        values.append(state.grad_norm)
    if all(map(math.isfinite, values)):
        return
    known = store is not None and store.saved_step > 0
    kept = f"the last good checkpoint is step {store.saved_step}" if known else "there is no checkpoint yet"
    raise FloatingPointError(
        f"step {state.step}: L_dsm = {state.dsm}, L_iso = {state.isometry} at t = {state.t}, "
        f"gradient norm {state.grad_norm}; {kept}. "
        "Lower learning_rate or lambda_iso, or use mixed_precision 'bf16' or 'no'"
    )
