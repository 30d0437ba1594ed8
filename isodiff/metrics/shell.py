r"""Whether the noisy images of a data set lie on the sphere that the paper puts them on (Hahm et al. 2024, Sec. 3.1).

    x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε,   r_t = √(1 − ᾱ_t) E‖ε‖.

The paper takes x_t for a point of the sphere of radius r_t about the origin. Two numbers say how far that holds at a
step t: the mean of ‖x_t‖ / r_t over images and noise, which is 1 on that sphere, and the coefficient of variation
std‖x_t‖ / mean‖x_t‖, the thickness of the shell, which for noise alone is √(n / E‖ε‖² − 1) ≈ 1 / √(2n).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import SchedulerMixin
from numpy.typing import NDArray
from scipy.stats import variation
from torch import Tensor
from torch.utils.data import Dataset

from isodiff.diffusion import NoiseSchedule
from isodiff.geometry import expected_radius
from isodiff.metrics.measure import bootstrap_interval

TIMES = (*range(0, 1000, 100), 999)
_RADIUS, _THICKNESS = 0.01, 0.1  # tolerances of the two conditions
_PROTOCOL = {
    "noise": "independent for each image and step",
    "interval": "95 % percentile bootstrap over images, 2,000 resamples",
    "radius": "sqrt(1 - alpha_bar_t) E|eps|",
    "radius_tolerance": _RADIUS,
    "thickness_tolerance": _THICKNESS,
}


@dataclass(frozen=True)
class ShellPoint:
    """The shell at one step; intervals are of 95 % over images with their noise."""

    t: int
    radius: float  # r_t
    ratio: float  # mean of ‖x_t‖ / r_t
    ratio_interval: tuple[float, float]
    variation: float  # std‖x_t‖ / mean‖x_t‖
    variation_interval: tuple[float, float]
    noise_variation: float  # the same for noise alone, exactly


@dataclass(frozen=True)
class Shell:
    """The shell of n images of `dimension` numbers at the steps of a schedule, ascending."""

    n: int
    dimension: int
    seed: int  # of the choice of images and of the noise
    protocol: Mapping[str, Any]
    points: tuple[ShellPoint, ...]
    radius_holds_from: int | None  # first step from which the mean norm is within 1 % of r_t to the end
    thinness_holds_from: int | None  # first step from which it is at most 10 % thicker than noise's to the end


def shell_points(
    norms: NDArray[np.floating], times: Sequence[int], noise_left: Sequence[float], dimension: int
) -> tuple[ShellPoint, ...]:
    """Compare norms ‖x_t‖ of noisy images, (T, N), N ≥ 2, with the shell of pure noise; `noise_left` is √(1 − ᾱ_t)."""
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise ValueError("norms must be finite and positive")
    mean_norm = expected_radius(dimension)
    noise, points = math.sqrt(dimension / mean_norm**2 - 1), []
    for t, sigma, row in zip(times, noise_left, norms, strict=True):
        radius = float(sigma) * mean_norm
        mean = float((row / radius).mean()), bootstrap_interval(row / radius)
        thickness = float(variation(row)), bootstrap_interval(row, variation)
        points.append(ShellPoint(int(t), radius, *mean, *thickness, noise))
    return tuple(points)


def measure_shell(
    images: Dataset[Tensor],
    scheduler: SchedulerMixin,
    *,
    num_images: int = 2000,
    times: Sequence[int] = TIMES,
    seed: int = 0,
    dataset: str = "",
) -> Shell:
    """Noise images (C, R, R) of a data set, chosen at random, at each step independently, and measure their shell."""
    alphas_cumprod, times = NoiseSchedule.of(scheduler).alphas_cumprod.double(), list(times)
    horizon = len(alphas_cumprod)
    if not times or times != sorted(set(times)) or not 0 <= times[0] <= times[-1] < horizon:
        raise ValueError(f"times must be ascending steps of 0 … {horizon - 1}; got {times}")
    if not 2 <= num_images <= len(images):
        raise ValueError(f"num_images must be 2 … {len(images):,}, the images there are; got {num_images:,}")
    signal, noise_left = alphas_cumprod[times].sqrt(), (1 - alphas_cumprod[times]).sqrt()
    sequential, generator = getattr(images, "sequential", False), torch.Generator().manual_seed(seed)
    chosen = np.arange(len(images)) if sequential else np.random.default_rng(seed).permutation(len(images))
    positions, norms = np.sort(chosen[:num_images]).tolist(), []
    for first in range(0, num_images, 64):
        for x_0 in images.__getitems__(positions[first : first + 64]):
            eps = torch.randn(len(times), x_0.numel(), generator=generator).double()
            norms.append((signal[:, None] * x_0.double().flatten() + noise_left[:, None] * eps).norm(dim=1))
    schedule = {key: scheduler.config.get(key) for key in ("beta_schedule", "beta_start", "beta_end")}
    protocol = {"dataset": dataset, "choice": "first of the shuffled stream" if sequential else "random"}
    protocol |= {"shape": list(x_0.shape), "schedule": {"num_train_timesteps": horizon, **schedule}}
    points = shell_points(torch.stack(norms, 1).numpy(), times, noise_left.tolist(), x_0.numel())
    radius = holds_from(times, [abs(point.ratio - 1) <= _RADIUS for point in points])
    thinness = holds_from(times, [point.variation <= (1 + _THICKNESS) * point.noise_variation for point in points])
    return Shell(num_images, x_0.numel(), seed, protocol | _PROTOCOL, points, radius, thinness)


def holds_from(times: Sequence[int], holds: Sequence[bool]) -> int | None:
    """Return the first step from which a condition holds to the end."""
    return next((t for i, t in enumerate(times) if all(holds[i:])), None)
