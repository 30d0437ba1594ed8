r"""Whether the noisy images of a data set lie on the sphere that the paper puts them on (Hahm et al. 2024, Sec. 3.1).

    x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε,   r_t = √(1 − ᾱ_t) E‖ε‖.

The paper takes x_t for a point of the sphere of radius r_t about the origin. Two numbers say how far that holds at a
step t: the mean of ‖x_t‖ / r_t over images and noise, which is 1 on that sphere, and the coefficient of variation
std‖x_t‖ / mean‖x_t‖, the thickness of the shell, which for noise alone is that of the chi law,

    √(n / E‖ε‖² − 1) ≈ 1 / √(2n).

Images add √(1 + q ᾱ_t / (1 − ᾱ_t)) to the first, with q = E‖x₀‖² / n, and their differences in norm to the second.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from isodiff.geometry.sphere import expected_radius
from isodiff.metrics.intervals import bootstrap_interval

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

TIMES = (*range(0, 1000, 100), 999)
_RADIUS_TOLERANCE, _THICKNESS_TOLERANCE = 0.01, 0.1
_READ_AT_ONCE = 64


@dataclass(frozen=True)
class ShellPoint:
    """The shell at one step; intervals are of 95 % over images with their noise.

    Attributes:
        t: The step.
        radius: r_t.
        ratio: Mean of ‖x_t‖ / r_t.
        ratio_interval: Of that.
        variation: std‖x_t‖ / mean‖x_t‖.
        variation_interval: Of that.
        noise_variation: The same for noise alone, exactly.
    """

    t: int
    radius: float
    ratio: float
    ratio_interval: tuple[float, float]
    variation: float
    variation_interval: tuple[float, float]
    noise_variation: float

    @property
    def has_the_radius(self) -> bool:
        """Whether the mean norm is within 1 % of the paper's radius."""
        return abs(self.ratio - 1) <= _RADIUS_TOLERANCE

    @property
    def is_as_thin_as_noise(self) -> bool:
        """Whether the shell is at most 10 % thicker than that of noise."""
        return self.variation <= (1 + _THICKNESS_TOLERANCE) * self.noise_variation


@dataclass(frozen=True)
class Shell:
    """The shell of a data set over the steps of a schedule.

    Attributes:
        n: Number of images.
        dimension: Numbers in an image.
        seed: Of the choice of images and of the noise.
        protocol: Everything else that decides the numbers, as plain JSON values.
        points: One a step, ascending.
    """

    n: int
    dimension: int
    seed: int
    protocol: Mapping[str, Any]
    points: tuple[ShellPoint, ...]

    @property
    def radius_holds_from(self) -> int | None:
        """First measured step from which the mean norm is within 1 % of the paper's radius to the end, or None."""
        return _holds_from(self.points, [point.has_the_radius for point in self.points])

    @property
    def thinness_holds_from(self) -> int | None:
        """First measured step from which the shell is at most 10 % thicker than noise's to the end, or None."""
        return _holds_from(self.points, [point.is_as_thin_as_noise for point in self.points])

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {
            "radius_holds_from": self.radius_holds_from,
            "thinness_holds_from": self.thinness_holds_from,
        }


def shell_points(
    norms: NDArray[np.floating], times: Sequence[int], noise_left: Sequence[float], dimension: int
) -> tuple[ShellPoint, ...]:
    """Compare norms of noisy images with the shell of pure noise.

    Args:
        norms: ‖x_t‖, (T, N), N ≥ 2 images at each of T steps.
        times: The T steps.
        noise_left: √(1 − ᾱ_t) at them, each in (0, 1].
        dimension: Numbers n in an image, at least 2.

    Returns:
        T points.

    Raises:
        ValueError: If shapes do not fit, norms are not finite and positive, or a step has no noise.
    """
    norms = np.asarray(norms, dtype=float)
    if norms.ndim != 2 or norms.shape[1] < 2 or not len(norms) == len(times) == len(noise_left):
        raise ValueError(
            f"norms must be (T, N) with N ≥ 2 images, and times and noise_left have T entries; got {norms.shape}, "
            f"{len(times)} and {len(noise_left)}"
        )
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise ValueError("norms must be finite and positive")
    if not all(0 < sigma <= 1 for sigma in noise_left):
        raise ValueError(f"noise_left must lie in (0, 1]; got {list(noise_left)}")
    mean_norm = expected_radius(dimension)
    noise_variation = math.sqrt(dimension / mean_norm**2 - 1)
    points = []
    for t, sigma, row in zip(times, noise_left, norms, strict=True):
        radius = float(sigma) * mean_norm
        ratios = row / radius
        points.append(
            ShellPoint(
                t=int(t),
                radius=radius,
                ratio=float(ratios.mean()),
                ratio_interval=bootstrap_interval(ratios),
                variation=float(_variation(row)),
                variation_interval=bootstrap_interval(row, _variation),
                noise_variation=noise_variation,
            )
        )
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
    """Noise images of a data set at each step, once with independent noise, and measure the shell they fill.

    Args:
        images: (C, R, R) in [−1, 1] each, as `isodiff.datasets.open_dataset` opens them under any name. A random choice
            is taken; of a stream, its first images, as it is shuffled by itself.
        scheduler: A diffusers scheduler with ``alphas_cumprod``, the schedule ᾱ.
        num_images: How many.
        times: The steps t, 0 … T−1, ascending.
        seed: Of the choice and of the noise; the result does not depend on how images are batched.
        dataset: What the protocol calls the data set.

    Returns:
        The shell, with intervals over images.

    Raises:
        ValueError: If there are fewer images than asked for, or fewer than 2, or a step is out of range.
    """
    times = list(times)
    horizon = len(scheduler.alphas_cumprod)
    if not times or times != sorted(set(times)) or not 0 <= times[0] <= times[-1] < horizon:
        raise ValueError(f"times must be ascending steps of 0 … {horizon - 1}; got {times}")
    if not 2 <= num_images <= len(images):
        raise ValueError(f"num_images must be 2 … {len(images):,}, the images there are; got {num_images:,}")
    alpha_bar = scheduler.alphas_cumprod.double()[times]
    signal, noise_left = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    norms, dimension = [], 0
    generator = torch.Generator().manual_seed(seed)
    for x_0 in _chosen(images, num_images, seed):
        dimension = x_0.numel()
        eps = torch.randn(len(times), dimension, generator=generator).double()
        norms.append((signal[:, None] * x_0.double().flatten() + noise_left[:, None] * eps).norm(dim=1))
    betas = {key: scheduler.config.get(key) for key in ("beta_schedule", "beta_start", "beta_end")}
    protocol = {
        "dataset": dataset,
        "shape": [int(side) for side in x_0.shape],
        "schedule": {"num_train_timesteps": horizon, **betas},
        "choice": "first of the shuffled stream" if getattr(images, "sequential", False) else "random",
        "noise": "independent for each image and step",
        "interval": "95 % percentile bootstrap over images, 2,000 resamples",
        "radius": "sqrt(1 - alpha_bar_t) E|eps|",
        "radius_tolerance": _RADIUS_TOLERANCE,
        "thickness_tolerance": _THICKNESS_TOLERANCE,
    }
    points = shell_points(torch.stack(norms, 1).numpy(), times, noise_left.tolist(), dimension)
    return Shell(num_images, dimension, seed, protocol, points)


def _chosen(images: Dataset[Tensor], count: int, seed: int) -> Iterator[Tensor]:
    """Yield the images to measure."""
    if getattr(images, "sequential", False):
        positions = list(range(count))
    else:
        positions = np.sort(np.random.default_rng(seed).permutation(len(images))[:count]).tolist()
    for first in range(0, count, _READ_AT_ONCE):
        yield from images.__getitems__(positions[first : first + _READ_AT_ONCE])


def _variation(norms: NDArray[np.floating], axis: int = -1) -> NDArray[np.floating]:
    return norms.std(axis=axis) / norms.mean(axis=axis)


def _holds_from(points: Sequence[ShellPoint], holds: Sequence[bool]) -> int | None:
    """Return the first step from which a condition holds at all that follow."""
    first = None
    for point, held in zip(reversed(points), reversed(holds), strict=True):
        if not held:
            break
        first = point.t
    return first
