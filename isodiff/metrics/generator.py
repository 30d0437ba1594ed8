"""The map that a metric looks at: latents x_T by number, and the deterministic sampler x_T → x₀."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from isodiff.diffusion.latent import autoencoder_of, latent_shape, latents_to_images
from isodiff.diffusion.process import ddim_sample
from isodiff.metrics.store import content_digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusers import DiffusionPipeline

    Generate = Callable[[Tensor], Tensor]
    """A map from latents (B, C, H, W) to images (B, C', H', W'), nominally in [−1, 1]."""


class Generator:
    """The sampler of one model, x_T ↦ x₀ by DDIM at η = 0, with gradients only where they are asked for.

    Of a latent-diffusion model, what it samples is decoded: x₀ is an image.

    Args:
        pipeline: A diffusers DDPM, latent-diffusion model, or Stable Diffusion with its prompt fixed.
        num_steps: Steps of DDIM; the paper takes 20 for FID and 100 for PPL.

    Attributes:
        shape: Shape (C, H, W) of a latent.
        digest: SHA-256 of weights, scheduler settings and number of steps: what every image depends on.
    """

    def __init__(self, pipeline: DiffusionPipeline, num_steps: int = 20) -> None:
        self.unet, self.scheduler, self.num_steps = pipeline.unet, pipeline.scheduler, num_steps
        self.autoencoder = autoencoder_of(pipeline)
        self.shape = latent_shape(self.unet)
        self.digest = content_digest(model_digest(pipeline), str(num_steps))

    def __call__(self, x_T: Tensor) -> Tensor:
        """Return the images of a batch of latents, clamped to [−1, 1] as diffusers' pipelines do."""
        return self.unclamped(x_T).clamp(-1, 1)

    def unclamped(self, x_T: Tensor) -> Tensor:
        """Return the images before the last clamp."""
        x_0 = ddim_sample(self.unet, self.scheduler, x_T.to(self.unet.device), self.num_steps)
        return latents_to_images(self.autoencoder, x_0)


def model_digest(pipeline: DiffusionPipeline) -> str:
    """Return the SHA-256 of a model's weights, an autoencoder's and a prompt among them, and of its settings."""
    state = dict(pipeline.unet.state_dict())
    autoencoder = autoencoder_of(pipeline)
    if autoencoder is not None:
        state |= {f"autoencoder.{name}": tensor for name, tensor in autoencoder.state_dict().items()}
        state["autoencoder.scale"] = torch.tensor(autoencoder.config.scaling_factor)
    for name in ("embedding", "negative", "guidance_scale"):  # of a fixed prompt
        if getattr(pipeline.unet, name, None) is not None:
            state[f"prompt.{name}"] = torch.as_tensor(getattr(pipeline.unet, name))
    settings = {k: v for k, v in sorted(pipeline.scheduler.config.items()) if not k.startswith("_")}
    parts = (part for name, tensor in sorted(state.items()) for part in (name, tensor.float().cpu().numpy()))
    return content_digest(json.dumps(settings, default=str), *parts)


def draw_latents(
    shape: tuple[int, ...],
    start: int,
    stop: int,
    *,
    seed: int,
    stream: str = "latents",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw the standard normal latents with the numbers ``start … stop − 1``.

    Each latent is a function of (seed, stream, number) alone: whatever the batch size, two models see the same, and a
    larger sample begins with a smaller one.

    Args:
        shape: Shape of one latent.
        start: First number.
        stop: One past the last.
        seed: Seed of the evaluation.
        stream: Name of an independent sequence, such as ``"pairs"``.
        dtype: Of the result; float32 by default. The draw itself is always made in float32.

    Returns:
        (stop − start, *shape), on the CPU.

    Raises:
        ValueError: If there is no number between start and stop.
    """
    if not 0 <= start < stop:
        raise ValueError(f"start and stop must satisfy 0 ≤ start < stop; got {start} and {stop}")
    rows = [torch.randn(shape, generator=number_generator(seed, stream, index)) for index in range(start, stop)]
    return torch.stack(rows).to(dtype or torch.float32)


def number_generator(seed: int, stream: str, index: int) -> torch.Generator:
    """Return the CPU generator of one unit of a stream: independent of every other unit's."""
    words = np.random.SeedSequence([seed, index, *stream.encode()]).generate_state(2, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))


def check_images(images: Tensor, rows: int, *, name: str = "generate") -> Tensor:
    """Return images in float32 if they are what a metric can measure.

    Args:
        images: What a generator returned.
        rows: Number of latents it got.
        name: Its name, for the error.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If the shape is not (rows, 1 or 3, H, W), or values are NaN, infinite, or further outside [−1, 1]
            than rounding explains.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"{name} must give a floating-point tensor of images; got {got}")
    if images.ndim != 4 or len(images) != rows or images.shape[1] not in (1, 3):
        raise ValueError(f"{name} must give images ({rows}, 1 or 3, H, W); got shape {tuple(images.shape)}")
    images = images.detach().float()
    if not torch.isfinite(images).all():
        raise ValueError(
            f"{name} must give finite images; got {int((~images.isfinite()).sum())} NaN or infinite values"
        )
    if images.abs().max() > 1 + 1e-3:
        raise ValueError(
            f"{name} must give images in [−1, 1]; got values from {images.min():.4g} to {images.max():.4g}; "
            "clamp them, or rescale from [0, 1] or [0, 255]"
        )
    return images


def to_uint8(images: Tensor) -> Tensor:
    """Round images in [−1, 1] to the 256 levels of a file: ``round(127.5 (x + 1))``, as diffusers writes them."""
    return (127.5 * (images.clamp(-1, 1) + 1)).round().to(torch.uint8)
