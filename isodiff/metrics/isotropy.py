"""How isometric the encoder of a diffusion model is, step by step."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from isodiff.diffusion.hspace import encode
from isodiff.diffusion.process import check_steps
from isodiff.geometry.isometry import isometry_loss, isotropy

if TYPE_CHECKING:
    from diffusers import SchedulerMixin, UNet2DModel


@torch.no_grad()
def encoder_isotropy(
    unet: UNet2DModel,
    scheduler: SchedulerMixin,
    x_0: torch.Tensor,
    t: int,
    *,
    num_batches: int = 8,
    num_probes: int = 1,
    seed: int = 0,
) -> np.ndarray:
    """Estimate L_iso · rank (Eq. 6, Hahm et al. 2024) of X_t → H at one step, once for each of several batches.

    Args:
        unet: the model.
        scheduler: its noise schedule.
        x_0: (N, C, H, W) images in [−1, 1], split evenly over the batches; their noise and probes are drawn from
            `seed`, so that models can be compared pair by pair.
        t: the step.
        num_batches: number of batches.
        num_probes: random directions a row.
        seed: of noise and probes.

    Returns:
        (num_batches,) estimates; 1 is a scaled isometry. Their mean has a bias of O(1/(rows · probes of a batch)).

    Raises:
        ValueError: t out of range, or fewer images than batches.
    """
    check_steps(scheduler, t)
    if not 1 <= num_batches <= len(x_0):
        raise ValueError(f"num_batches must be 1 to the number of images, {len(x_0)}; got {num_batches}")
    values = []
    for index, batch in enumerate(x_0.tensor_split(num_batches)):
        generator = torch.Generator().manual_seed(1000 * seed + index)
        eps = torch.randn(batch.shape, generator=generator).to(batch)
        x_t = scheduler.add_noise(batch, eps, torch.full((len(batch),), t, device=batch.device))
        encoder = partial(encode, unet, t=t)
        loss = isometry_loss(encoder, x_t, num_probes=num_probes, generator=generator)
        values.append(isotropy(loss.item(), x_t[0].numel(), encoder(x_t[:1]).numel()))
    return np.array(values)
