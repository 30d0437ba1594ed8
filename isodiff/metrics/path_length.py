r"""Perceptual path length: how fast the image moves, to a network's eye, along a path between two latents.

    PPL = E[ d(G(x(t)), G(x(t + ε))) / ε² ],    x(t) = slerp(a, b; t),    a, b ~ N(0, I),    t ~ U(0, 1),

with ε a share of the arc (Karras et al. 2019). d is LPIPS or another distance that grows as the square of a small
change; LPIPS does, as a sum of squared differences of features. So d/ε² tends to the squared speed of the image, while
d/ε, which Sec. 4.1 of Hahm et al. 2024 prints, tends to zero with ε. Which power is used is part of every result.

Each pair keeps its own angle and its radii. Both points are decoded in batches of one size and in the same row, and in
float32, as ε = 10⁻⁴ asks for differences that lower precision does not carry; `epsilon_sweep` shows where rounding
begins to count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from isodiff.metrics.generator import Generator
from isodiff.metrics.measurement import Measurement
from isodiff.metrics.path_noise import epsilon_sweep
from isodiff.metrics.path_steps import (
    Distance,
    Mode,
    check_step,
    decode,
    describe,
    draw_paths,
    measure,
    measure_all,
    path_points,
    squared_l2,
)
from isodiff.metrics.precision import full_precision
from isodiff.metrics.store import Arrays, Store

if TYPE_CHECKING:
    from isodiff.metrics.generator import Generate

__all__ = [
    "Distance",
    "epsilon_sweep",
    "path_distances",
    "path_length",
    "path_lengths",
    "percentile_mean",
    "perceptual_path_length",
    "squared_l2",
]

_GROUPS = 20  # of the jackknife; pair i is in group i % 20
MINIMUM_PAIRS = 2 * _GROUPS


def path_length(
    generate: Callable[[Tensor], Tensor],
    distance: Distance,
    a: Tensor,
    b: Tensor,
    t: float | Tensor,
    epsilon: float,
    *,
    power: int = 2,
) -> Tensor:
    """Return ``d(G(x(t)), G(x(t + ε))) / ε^power`` of given pairs.

    Args:
        generate: G, any map of rows.
        distance: d.
        a: Starts of the paths, (B, *S).
        b: Their ends.
        t: Position in [0, 1], a number or (B,).
        epsilon: ε, in (0, 1]; t + ε may pass the end by as much.
        power: 2 (Karras) or 1 (the text of Hahm et al.).

    Returns:
        (B,).

    Raises:
        ValueError: If a number is out of range; if a pair has no angle, or ε is below the resolution of its type; or
            if the distance is not (B,) or not finite.

    Note:
        The points are computed in float64 and rounded once, to the precision of ``a``.
    """
    check_step(epsilon, power=power)
    x, y = path_points(a, b, t, [epsilon], dtype=a.dtype)
    return measure(distance, generate(x), generate(y)) / epsilon**power


def perceptual_path_length(
    generate: Generate,
    shape: tuple[int, ...],
    distance: Distance,
    *,
    num_pairs: int,
    epsilon: float = 1e-4,
    power: int = 2,
    mode: Mode = "full",
    percentiles: tuple[float, float] | None = (1, 99),
    batch_size: int = 32,
    seed: int = 0,
    store: Store | None = None,
) -> Measurement:
    """Measure the perceptual path length of a generator.

    Args:
        generate: Map from latents (B, *shape) to images in [−1, 1], at their own size.
        shape: Shape of one latent.
        distance: d; see `isodiff.metrics.networks.perceptual_distance` for LPIPS.
        num_pairs: Number of paths P, at least 40; path i runs from latent 2i to latent 2i + 1 of the stream "pairs".
        epsilon: ε, in (0, 1].
        power: 2 (Karras) or 1 (the text of Hahm et al.).
        mode: Where on the path.
        percentiles: Pairs outside these percentiles are left out, as in Karras; None keeps all.
        batch_size: Pairs at a time; two batches of as many images.
        seed: Seed of latents and positions.
        store: Where finished distances are kept; scoped by the caller with the model.

    Returns:
        The mean of the pairs kept, with a delete-a-group jackknife that filters each replicate anew.

    Raises:
        ValueError: As `path_length`, for fewer pairs than 40, percentiles out of order, or what are no images (see
            `check_images`).
        TypeError: If the images are in half precision.

    Note:
        The filter removes both tails of a skewed law, so the value lies below E[d/ε²]; with P ≤ 100 it removes
        nothing. Bias of ε itself: O(ε²) in the mode "full", O(ε) in "end". Cost: 2 P images and P distances.
    """
    return path_lengths(
        generate,
        shape,
        {"distance": distance},
        num_pairs=num_pairs,
        epsilon=epsilon,
        power=power,
        mode=mode,
        percentiles=percentiles,
        batch_size=batch_size,
        seed=seed,
        store=store,
    )["distance"]


def path_lengths(
    generate: Generate,
    shape: tuple[int, ...],
    distances: Mapping[str, Distance],
    *,
    num_pairs: int,
    epsilon: float = 1e-4,
    power: int = 2,
    mode: Mode = "full",
    percentiles: tuple[float, float] | None = (1, 99),
    batch_size: int = 32,
    seed: int = 0,
    store: Store | None = None,
) -> dict[str, Measurement]:
    """Measure `perceptual_path_length` with several distances on the same images; arguments as there."""
    check_step(epsilon, power=power)
    _check_percentiles(percentiles)
    if num_pairs < MINIMUM_PAIRS:
        raise ValueError(
            f"num_pairs must be at least {MINIMUM_PAIRS}, two for each of the {_GROUPS} groups behind the interval; "
            f"got {num_pairs}"
        )
    found = path_distances(
        generate,
        shape,
        distances,
        num_pairs=num_pairs,
        epsilon=epsilon,
        mode=mode,
        batch_size=batch_size,
        seed=seed,
        store=store,
    )
    shared = {
        "epsilon": float(epsilon),
        "power": power,
        "mode": mode,
        "percentiles": None if percentiles is None else list(percentiles),
        "path": "slerp with radius",
    }
    if isinstance(generate, Generator):
        shared["num_steps"] = generate.num_steps
    described, group = describe(distances), np.arange(num_pairs) % _GROUPS
    measured = {}
    for name, distance in found.items():
        speed = distance / epsilon**power
        measured[name] = Measurement.from_jackknife(
            "ppl",
            percentile_mean(speed, percentiles),
            np.array([percentile_mean(speed[group != left_out], percentiles) for left_out in range(_GROUPS)]),
            n=num_pairs,
            unit="pairs",
            seed=seed,
            protocol={**described[name], **shared},
            details={"unfiltered": float(speed.mean()), "median": float(np.median(speed))},
        )
    return measured


def path_distances(
    generate: Generate,
    shape: tuple[int, ...],
    distances: Mapping[str, Distance],
    *,
    num_pairs: int,
    epsilon: float = 1e-4,
    mode: Mode = "full",
    batch_size: int = 32,
    seed: int = 0,
    store: Store | None = None,
) -> dict[str, NDArray[np.floating]]:
    """Return ``d(G(x(t)), G(x(t + ε)))`` of every pair by every distance, (P,) each; arguments as the path length's.

    What is kept depends on neither power nor percentiles, and all distances share the images.
    """
    check_step(epsilon, mode=mode)

    def compute(start: int, stop: int) -> Arrays:
        x, y = path_points(*draw_paths(shape, start, stop, mode, seed), [epsilon], start=start)
        return measure_all(distances, decode(generate, x), [decode(generate, y)])

    key = {"epsilon": float(epsilon), "mode": mode, "seed": seed, "distances": describe(distances)}
    with torch.no_grad(), full_precision():
        arrays = (store or Store()).chunks(compute, num_pairs, size=batch_size, what="path length", version=1, **key)
    return {name: arrays[f"distance {name}"][:, 0] for name in distances}


def percentile_mean(values: ArrayLike, percentiles: tuple[float, float] | None = (1, 99)) -> float:
    """Return the mean of the values between two percentiles, both included (Karras et al. 2019).

    Args:
        values: (n,) with n ≥ 1.
        percentiles: Two numbers 0 ≤ low < high ≤ 100, or None for the plain mean. Each falls on a value: the low one
            on the next below, the high one on the next above.

    Returns:
        The mean.

    Raises:
        ValueError: If the percentiles are out of order or there are no values.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"values must be of shape (n,) with n ≥ 1; got {values.shape}")
    _check_percentiles(percentiles)
    if percentiles is None:
        return float(values.mean())
    low = np.percentile(values, percentiles[0], method="lower")
    high = np.percentile(values, percentiles[1], method="higher")
    return float(values[(values >= low) & (values <= high)].mean())


def _check_percentiles(percentiles: tuple[float, float] | None) -> None:
    if percentiles is None:
        return
    if len(percentiles) != 2 or not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(f"percentiles must be None or two numbers 0 ≤ low < high ≤ 100; got {percentiles}")
