"""The map that a metric looks at: latents x_T by number, and the deterministic sampler x_T → x₀."""

import json
from collections.abc import Callable

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from isodiff.diffusion import autoencoder_of, ddim_sample, latent_shape, latents_to_images
from isodiff.metrics.measure import content_digest

Generate = Callable[[Tensor], Tensor]  # latents (B, C, H, W) to images (B, C', H', W'), nominally in [−1, 1]


class Generator:
    """The sampler of one model, x_T ↦ x₀ by DDIM at η = 0 in `num_steps` steps, through a decoder if there is one."""

    def __init__(self, pipeline: DiffusionPipeline, num_steps: int = 20) -> None:
        self.unet, self.scheduler, self.num_steps = pipeline.unet, pipeline.scheduler, num_steps
        self.autoencoder, self.shape = autoencoder_of(pipeline), latent_shape(pipeline.unet)
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
    state, autoencoder = dict(pipeline.unet.state_dict()), autoencoder_of(pipeline)
    if autoencoder is not None:
        state |= {f"autoencoder.{name}": tensor for name, tensor in autoencoder.state_dict().items()}
        state["autoencoder.scale"] = torch.tensor(autoencoder.config.scaling_factor)
    for name in ("embedding", "negative", "guidance_scale"):  # of a fixed prompt
        if getattr(pipeline.unet, name, None) is not None:
            state[f"prompt.{name}"] = torch.as_tensor(getattr(pipeline.unet, name))
    settings = {k: v for k, v in sorted(pipeline.scheduler.config.items()) if not k.startswith("_")}
    parts = (part for name, tensor in sorted(state.items()) for part in (name, tensor.float()))
    return content_digest(json.dumps(settings, default=str), *parts)


def draw_latents(shape: tuple[int, ...], start: int, stop: int, *, seed: int, stream: str = "latents") -> Tensor:
    """Draw the normal latents number start … stop − 1 on the CPU, each a function of (seed, stream, number) alone."""
    if not 0 <= start < stop:
        raise ValueError(f"start and stop must satisfy 0 ≤ start < stop; got {start} and {stop}")
    return torch.stack([torch.randn(shape, generator=number_generator(seed, stream, i)) for i in range(start, stop)])


def number_generator(seed: int, stream: str, index: int) -> torch.Generator:
    """Return the CPU generator of one unit of a stream: independent of every other unit's."""
    words = np.random.SeedSequence([seed, index, *stream.encode()]).generate_state(2, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))


def to_uint8(images: Tensor) -> Tensor:
    """Round images in [−1, 1] to the 256 levels of a file: ``round(127.5 (x + 1))``, as diffusers writes them."""
    return (127.5 * (images.clamp(-1, 1) + 1)).round().to(torch.uint8)
