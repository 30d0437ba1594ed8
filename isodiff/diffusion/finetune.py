r"""Training and isometric fine-tuning of a diffusion model, which minimises Eq. 7 of Hahm et al. 2024.

    L = L_dsm + λ_iso · 1[t + 1 > pT] · L_iso(e_θ, t),    L_iso = N / D²,    D = mean ‖Jv‖²,    N = mean ‖P JᵀJv‖²,

P the projection onto the tangent space of the noise sphere, for each probe v in it. L_dsm draws a t for every row, and
each step one more t for L_iso (Eq. 6) of the whole batch, which is Eq. 7 in expectation. D and N are averaged over all
processes and passes, and each adds its share of the exact gradient (`isometry_loss_share`). The term may be taken at
every k-th step only, k times as strong (lazy regularisation, Karras et al. 2020), on a part of the rows, or of another
map than the encoder e_θ. The two terms, and what λ multiplies, are in `terms`.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Unpack

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.utils.data import Dataset

from isodiff.diffusion.config import FinetuneConfig
from isodiff.diffusion.latent import autoencoder_of, image_shape, images_to_latents
from isodiff.diffusion.models import load_pipeline, save_pipeline
from isodiff.diffusion.run_folder import train_into
from isodiff.diffusion.terms import Terms
from isodiff.diffusion.training import RunOptions, Training


@dataclass(frozen=True)
class TrainingState:
    """What the loop yields after each step, the same on every process."""

    step: int  # steps done, from 1
    dsm: float  # L_dsm of the step's batch
    isometry: float | None  # L_iso of the target's map; these three are None where the step was not regularised
    anisotropy: float | None  # L_iso · rank, 1 for a scaled isometry; None for the target smooth
    t: int | None  # the diffusion step of the term, if it has one
    grad_norm: float  # before clipping


def finetune(
    pipeline: DiffusionPipeline, images: Dataset[Tensor], config: FinetuneConfig, **options: Unpack[RunOptions]
) -> Iterator[TrainingState]:
    """Minimise Eq. 7 step by step; the caller owns the loop and the logging. The options are those of `RunOptions`.

    The U-Net is trained in place: it holds the raw weights during the run, their moving average afterwards. Images are
    (C, R, R) in [−1, 1]; an autoencoder takes them to latents and stays as it is.
    """
    run = Training(pipeline.unet, images, image_shape(pipeline), config, options)
    if (autoencoder := autoencoder_of(pipeline)) is not None:
        autoencoder.requires_grad_(False).eval().to(run.accelerator.device)
    flip = getattr(images, "horizontal_flip", False) if config.horizontal_flip is None else config.horizontal_flip
    lengths = tuple(state["length"] for state in run.log if state.get("length") is not None)
    terms = Terms(pipeline.unet, pipeline.scheduler, config, run.accelerator.num_processes, lengths)
    for step, x_0 in run.steps():
        if flip:
            mirrored = step.rows(torch.rand(config.batch_size, generator=step.generator("flip")) < 0.5)
            x_0 = torch.where(mirrored.view(-1, 1, 1, 1), x_0.flip(3), x_0)
        with torch.no_grad():
            x_0 = images_to_latents(autoencoder, x_0).to(pipeline.unet.dtype)
        dsm = terms.add_denoising(step, x_0)
        term, t = terms.add_isometry(step, x_0)
        grad_norm = run.update(step, {"L_dsm": dsm, "L_iso": term, "t": t})
        smooth = config.target == "smooth"
        relative = None if term is None or smooth else term * terms.rank
        seen = {"dsm": dsm, "anisotropy": relative, "grad_norm": grad_norm}
        run.log.append(seen | ({"penalty": term, "length": terms.length} if smooth else {}))
        yield TrainingState(step.number + 1, dsm, term, relative, t, grad_norm)


def train(
    pipeline: DiffusionPipeline,
    images: Dataset[Tensor],
    config: FinetuneConfig,
    output: str | Path,
    *,
    half: bool = False,
    **options: object,
) -> DiffusionPipeline:
    """Train into a diffusers pipeline of the averaged weights; go on with a run that is there, or load what it made.

    Weights are stored in float16 if `half`; the options are those of `train_into`. Of a base that learned its variance
    too, that half of the output stays as it is.
    """
    if pipeline.unet.config.out_channels != pipeline.unet.config.in_channels:
        warnings.warn("the base learned its variance too: that half of its output stays as it is", stacklevel=2)
    steps, save = partial(finetune, pipeline, images, config), partial(save_pipeline, pipeline, half=half)
    ran = train_into(output, config, pipeline.unet, steps, save, **options)
    return pipeline if ran else load_pipeline(output)
