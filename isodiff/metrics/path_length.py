r"""Perceptual path length: how fast the image moves, to a network's eye, along a path between two latents.

    PPL = E[ d(G(x(t)), G(x(t + ε))) / ε² ],    x(t) = slerp(a, b; t),    a, b ~ N(0, I),    t ~ U(0, 1),

with ε a share of the arc (Karras et al. 2019). d is LPIPS or another distance that grows as the square of a small
change, so d/ε² tends to the squared speed of the image, while d/ε, which Sec. 4.1 of Hahm et al. 2024 prints, tends to
zero with ε. Both points are decoded in the same row of batches of one size, and in float32.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from isodiff.datasets import check_images
from isodiff.geometry import slerp
from isodiff.metrics.generator import Generate, Generator, draw_latents, number_generator
from isodiff.metrics.measure import GROUPS, Arrays, Measurement, full_precision, leave_groups_out, over_units

# two batches of images (B, C, H, W) to their distances (B,), with a name or, as LPIPS has, a `protocol`
Distance = Callable[[Tensor, Tensor], Tensor]
Shape, Distances = tuple[int, ...], Mapping[str, Distance]
Mode = Literal["full", "end"]  # where on the path: anywhere, t ~ U(0, 1), or at its start, t = 0
_PERCENTILES = (1, 99)  # outside of which Karras et al. leave values out


def squared_l2(a: Tensor, b: Tensor) -> Tensor:
    """Return ``‖a − b‖²`` of each row, (B,): the distance whose path length is known in closed form."""
    return (a - b).flatten(1).square().sum(dim=1)


def path_speed(
    generate: Generate, distance: Distance, a: Tensor, b: Tensor, t: float | Tensor, epsilon: float, *, power: int = 2
) -> Tensor:
    """Return ``d(G(x(t)), G(x(t + ε))) / ε^power`` of pairs (B, *S), (B,): Karras's power is 2, Hahm's as printed 1."""
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2; got {power}")
    x, y = _points(a, b, t, epsilon, a.dtype)
    return measure(distance, generate(x), generate(y)) / epsilon**power


def percentile_mean(values: ArrayLike) -> float:
    """Return the mean from the 1st to the 99th percentile (Karras et al. 2019); up to n = 100 nothing is left out."""
    values = np.asarray(values, dtype=float)
    low, high = (np.percentile(values, p, method=m) for p, m in zip(_PERCENTILES, ("lower", "higher"), strict=True))
    return float(values[(values >= low) & (values <= high)].mean())


def perceptual_path_length(
    generate: Generate, shape: Shape, distance: Distance, *, num_pairs: int, **options: float | str
) -> Measurement:
    """Measure the perceptual path length of a generator by one distance; options of `path_lengths`."""
    return path_lengths(generate, shape, {"distance": distance}, num_pairs=num_pairs, **options)["distance"]


def path_lengths(
    generate: Generate,
    shape: Shape,
    distances: Distances,
    *,
    num_pairs: int,
    epsilon: float = 1e-4,
    mode: Mode = "full",
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, Measurement]:
    """Measure the perceptual path length of a generator by several distances on the same images.

    Path i of the P ≥ 40 runs from latent 2i to latent 2i + 1 of the stream "pairs". Each value is a `percentile_mean`,
    below E[d/ε²] of a skewed law. Bias of ε itself: O(ε²) in the mode "full", O(ε) in "end". Where all pairs differ,
    ``log_<distance>`` is the mean of log d/ε²: of two models on the same pairs, its difference is that of log(d/d′).
    """
    if num_pairs < 2 * GROUPS:
        raise ValueError(f"num_pairs must be at least {2 * GROUPS}, two for each of {GROUPS} groups; got {num_pairs}")
    sizes = {"num_pairs": num_pairs, "batch_size": batch_size, "seed": seed}
    found, described = _distances(generate, shape, distances, epsilon, mode=mode, **sizes), describe(distances)
    shared = {"epsilon": float(epsilon), "power": 2, "mode": mode, "percentiles": [*_PERCENTILES]}
    shared |= {"path": "slerp with radius"}
    shared |= {"num_steps": generate.num_steps} if isinstance(generate, Generator) else {}
    measured = {}
    for name in distances:
        speed = found[name] / epsilon**2
        value, replicates = leave_groups_out(percentile_mean, speed)
        details = {"unfiltered": float(speed.mean()), "median": float(np.median(speed))}
        fields = {"unit": "pairs", "seed": seed, "protocol": {**described[name], **shared}, "details": details}
        measured[name] = Measurement.from_jackknife("ppl", value, replicates, n=num_pairs, **fields)
        if (speed > 0).all():
            measured[f"log_{name}"] = Measurement.from_units("log_ppl", np.log(speed), **{**fields, "details": {}})
    return measured


def _distances(
    generate: Generate,
    shape: Shape,
    distances: Distances,
    epsilon: float,
    num_pairs: int,
    *,
    mode: Mode,
    batch_size: int,
    seed: int,
) -> Arrays:
    """Return how far x(t) is from x(t + ε) by each distance, (P,)."""
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}; got {mode!r}")

    def compute(start: int, stop: int) -> Arrays:
        ends = draw_latents(shape, 2 * start, 2 * stop, seed=seed, stream="pairs")
        t = torch.zeros(stop - start, dtype=torch.float64)
        if mode == "full":
            generators = (number_generator(seed, "positions", number) for number in range(start, stop))
            t = torch.stack([torch.rand((), generator=generator, dtype=t.dtype) for generator in generators])
        x, y = _points(ends[::2], ends[1::2], t, epsilon, torch.float32, start)
        return measure_all(distances, _decode(generate, x), _decode(generate, y))

    key = {"epsilon": float(epsilon), "mode": mode, "seed": seed, "distances": describe(distances)}
    with torch.no_grad(), full_precision():
        arrays = over_units(compute, num_pairs, size=batch_size, what="path length", version=3, **key)
    return {name: arrays[f"distance {name}"] for name in distances}


def _points(
    a: Tensor, b: Tensor, t: float | Tensor, epsilon: float, dtype: torch.dtype, start: int = 0
) -> tuple[Tensor, Tensor]:
    """Return x(t) and x(t + ε), rounded once: in float32 a step of 1e-4 would be wrong by 6e-4 of itself."""
    if not 0 < epsilon <= 1:
        raise ValueError(f"epsilon must be in (0, 1], a share of the path; got {epsilon}")
    a, b, t = a.double(), b.double(), torch.as_tensor(t, dtype=torch.float64, device=a.device)
    x, y = (slerp(a, b, t + step).to(dtype) for step in (0, epsilon))
    apart = torch.nn.functional.normalize(a.flatten(1)) - torch.nn.functional.normalize(b.flatten(1))
    if (apart.norm(dim=1) <= 8 * torch.finfo(dtype).eps).any():
        raise ValueError(f"pair {start + int(apart.norm(dim=1).argmin())} has no angle between its latents to walk")
    if (x == y).flatten(1).all(dim=1).any():
        raise ValueError(f"epsilon must be large enough to move a latent in {dtype}; got {epsilon}")
    return x, y


def _decode(generate: Generate, x: Tensor) -> Tensor:
    images = generate(x)
    if isinstance(images, Tensor) and images.dtype in (torch.float16, torch.bfloat16):
        raise TypeError(f"generate must give images in float32 or better; got {images.dtype}")
    return check_images(images, len(x))


def measure(distance: Distance, first: Tensor, second: Tensor) -> Tensor:
    """Return the distances of two batches, (B,), refusing what is not one finite number a row."""
    found = distance(first, second)
    if found.shape != first.shape[:1]:
        raise ValueError(f"distance must give one number a row, ({len(first)},); got shape {tuple(found.shape)}")
    if not torch.isfinite(found).all():
        raise ValueError(f"distance must be finite; got {int((~found.isfinite()).sum())} NaN or infinite values")
    return found


def measure_all(distances: Distances, first: Tensor, second: Tensor) -> Arrays:
    """Return as ``"distance <name>"`` the distances (B,) of two batches of images."""
    found = {name: measure(distance, first, second) for name, distance in distances.items()}
    return {f"distance {name}": column.double().cpu().numpy() for name, column in found.items()}


def describe(distances: Distances) -> dict[str, dict[str, Any]]:
    """Return what identifies each distance in results and in the cache."""
    described = {}
    for name, distance in distances.items():
        own = getattr(distance, "__name__", "<lambda>")
        described[name] = dict(getattr(distance, "protocol", {"distance": own}))
        if described[name] == {"distance": "<lambda>"}:
            raise ValueError(f"distance {name!r} must be a named function or have a `protocol`, as results state it")
    return described
