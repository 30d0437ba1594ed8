"""Maps whose Jacobians are measured, and the points to measure them at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from isodiff.diffusion.hspace import encode
from isodiff.diffusion.process import check_steps
from isodiff.geometry.jacobian import Map
from isodiff.metrics.generator import draw_latents

if TYPE_CHECKING:
    from diffusers import SchedulerMixin, UNet2DModel

    from isodiff.metrics.generator import Generator


@dataclasses.dataclass(frozen=True)
class DescribedMap:
    """A map with what decides it, apart from the model's weights.

    Attributes:
        f: The map.
        protocol: Plain JSON values, which go into the protocol of whatever is measured on the map.
    """

    f: Map
    protocol: Mapping[str, Any]

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``f(x)``."""
        return self.f(x)


def noisy_images(scheduler: SchedulerMixin, x_0: Tensor, t: int, *, seed: int, start: int = 0) -> Tensor:
    """Draw true noisy images, ``x_t ~ p(x_t | x₀)``; the noise of an image depends on the seed and its number alone.

    Args:
        scheduler: The noise schedule.
        x_0: Images in [−1, 1], (n, C, H, W).
        t: The step.
        seed: Of the noise.
        start: Number of the first image.

    Returns:
        (n, C, H, W).

    Raises:
        ValueError: If t is out of range.
    """
    check_steps(scheduler, t)
    eps = draw_latents(tuple(x_0.shape[1:]), start, start + len(x_0), seed=seed, stream="noise").to(x_0)
    return scheduler.add_noise(x_0, eps, torch.full((len(x_0),), t, device=x_0.device))


def encoder_map(unet: UNet2DModel, t: int, *, pooling: Literal["mean"] | int | None = None) -> DescribedMap:
    """Return the encoder X_t → H at one step.

    Args:
        unet: The model.
        t: The step.
        pooling: None for the whole bottleneck; ``"mean"`` averages it over its pixels; a number p over blocks, to
            p × p. The authors' code pools, and the paper does not say so; it changes the spectrum.
    """
    if not (pooling in (None, "mean") or (isinstance(pooling, int) and pooling >= 1)):
        raise ValueError(f"pooling must be None, 'mean' or a number of at least 1, got {pooling!r}")

    def f(x: Tensor) -> Tensor:
        h = encode(unet, x, t)
        return h if pooling is None else torch.nn.functional.adaptive_avg_pool2d(h, 1 if pooling == "mean" else pooling)

    return DescribedMap(f, {"map": "encoder", "t": t, "pooling": pooling})


def sampler_map(generate: Generator) -> DescribedMap:
    """Return the whole sampler x_T → x₀, a decoder included, before the last clamp.

    Note:
        Where the scheduler clips an estimate of x₀ on the way, the derivative is zero there: that is part of the map.
    """
    return DescribedMap(
        generate.unclamped,
        {"map": "sampler", "num_steps": generate.num_steps},
    )
