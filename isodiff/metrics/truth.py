r"""Paths of generated faces against the truth: do the factors move straight from one end to the other?

A path is decoded from latents, x(τⱼ) = generate(slerp(a, b; τⱼ)) at τⱼ = j/N, j = 0 … N, and the renderer is fitted to
every frame: z(τⱼ) ∈ [−1, 1]ᴷ are its factors and what the fit leaves over is its distance to the manifold of faces. No
network judges here, but the fit has errors of its own: the floor is what the same measurement finds on paths that are
straight by construction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from isodiff.datasets.face_factors import estimate_factors
from isodiff.datasets.faces import FACTORS, render
from isodiff.geometry import slerp
from isodiff.metrics.factor_paths import excess_variation, factor_path_length, overshoot, straightness
from isodiff.metrics.generator import check_images, draw_latents, number_generator
from isodiff.metrics.intervals import bootstrap_interval
from isodiff.metrics.measurement import Measurement
from isodiff.metrics.store import Arrays, Store
from isodiff.metrics.tangent import tangent_alignment

__all__ = [
    "excess_variation",
    "factor_path_length",
    "overshoot",
    "path_images",
    "path_truth",
    "straightness",
    "tangent_alignment",
]

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from isodiff.metrics.generator import Generate

    Interpolate = Callable[[Tensor, Tensor, float | Tensor], Tensor]


def path_images(
    generate: Generate,
    shape: tuple[int, ...],
    *,
    num_pairs: int,
    num_points: int,
    interpolate: Interpolate = slerp,
    batch_size: int = 64,
    seed: int = 0,
    store: Store | None = None,
) -> np.ndarray:
    """Decode the frames of the paths that `path_truth` measures, of any kind of image.

    Args:
        generate: Map from latents (B, *shape) to images in [−1, 1].
        shape: Shape of one latent.
        num_pairs: Number of paths P; path i runs from latent 2i to latent 2i + 1 of the stream ``"paths"``.
        num_points: Frames N + 1 of each path, at least 3, ends included.
        interpolate: Function of start, end and position in [0, 1], with a name, such as `slerp` or `lerp`.
        batch_size: Images made at once.
        seed: Seed of the latents.
        store: Where finished paths are kept.

    Returns:
        (P, N + 1, C, R, R).

    Raises:
        ValueError: If a size is out of range, or `generate` does not return images (see `check_images`).
    """
    key = _path_key(num_pairs, num_points, interpolate, seed)

    def compute(start: int, stop: int) -> Arrays:
        frames = _decode(generate, shape, start, stop, num_points, interpolate, batch_size, seed)
        return {"images": frames.cpu().numpy()}

    size = max(1, batch_size // num_points)
    return (store or Store()).chunks(compute, num_pairs, size=size, what="path images", version=1, **key)["images"]


def path_truth(
    generate: Generate,
    shape: tuple[int, ...],
    *,
    num_pairs: int,
    num_points: int,
    interpolate: Interpolate = slerp,
    floor: bool = True,
    batch_size: int = 64,
    seed: int = 0,
    protocol: Mapping[str, Any] | None = None,
    store: Store | None = None,
) -> dict[str, Measurement]:
    """Measure paths of generated faces in the factors that a renderer of the same faces has.

    Args:
        generate: Map from latents (B, *shape) to faces (B, 3, R, R) in [−1, 1].
        shape: Shape of one latent.
        num_pairs: Number of paths, at least 2.
        num_points: As `path_images`.
        interpolate: As `path_images`.
        floor: Whether to measure the floor as well: for every path, the straight line between the factors of its ends,
            rendered at as many points, with white noise of the path's own mean re-rendering error.
        batch_size: As `path_images`.
        seed: Seed of the latents and of the floor's noise.
        protocol: What else decides the numbers, such as the steps of the sampler.
        store: Where finished paths are kept; scoped by the caller with the model.

    Returns:
        Means over pairs, in factors of range [−1, 1]:

        - ``factor_excess``: `excess_variation`, mean over factors. Details: by factor with intervals, `overshoot`, and
          the excess of the same paths at fewer points, which stays put only if errors of the fit do not matter.
        - ``factor_straightness``: `straightness`.
        - ``factor_path_length``: `factor_path_length`.
        - ``manifold_distance``: mean squared re-rendering error of a frame, images in [−1, 1]. Details: median, worst
          frame, and the profile along the path.

        The details of each hold its value on the ``floor``, with an interval.

    Raises:
        ValueError: As `path_images`; if the images are not square with 3 channels; or if a path begins and ends in the
            same image.

    Note:
        The fit errs most where a factor hardly shows (glasses that are almost clear, hair behind the head). At 32
        pixels and 13 points, white noise of standard deviation 0.02, 0.05 and 0.1 gives a straight path an excess of
        about 0.004, 0.03 and 0.1: compare models at equal distance from the manifold, or by `overshoot`, whose floor is
        eight times lower. The floor's noise is white and drawn anew for every frame; what a model leaves over varies
        smoothly along a path (less excess) and looks more like faces (more): read the floor as a scale, and subtract
        nothing. Cost: P (N + 1) images and as many fits; the floor doubles the fits.
    """
    if num_pairs < 2:
        raise ValueError(f"num_pairs must be at least 2 for an interval; got {num_pairs}")
    key = {**_path_key(num_pairs, num_points, interpolate, seed), **(protocol or {})}

    def compute(start: int, stop: int) -> Arrays:
        frames = _decode(generate, shape, start, stop, num_points, interpolate, batch_size, seed)
        _check_faces(frames, start)
        arrays = _fit(frames)
        if floor:
            straight = _straight_paths(arrays, frames.shape[-1], start, seed).to(frames.device)
            arrays |= {f"floor_{name}": array for name, array in _fit(straight).items()}
        return arrays

    size = max(1, batch_size // num_points)
    arrays = (store or Store()).chunks(compute, num_pairs, size=size, what="path truth", version=1, floor=floor, **key)
    units = _summaries(arrays["factors"], arrays["error"])
    details: dict[str, dict[str, Any]] = {name: {} for name in units}
    details["factor_excess"] = _by_factor(arrays["factors"]) | {"by_points": _by_points(arrays["factors"])}
    details["manifold_distance"] = {
        "median": float(np.median(arrays["error"])),
        "maximum": float(arrays["error"].max()),
        "profile": _means(arrays["error"]),
    }
    if floor:
        for name, values in _summaries(arrays["floor_factors"], arrays["floor_error"]).items():
            mean, (interval,) = _means(values[:, None]).values()
            details[name]["floor"] = {"value": mean[0], "interval": interval}
        details["factor_excess"]["floor"] |= _by_factor(arrays["floor_factors"])
    shared = {"unit": "pairs", "seed": key.pop("seed"), "protocol": key}
    return {
        name: Measurement.from_units(name, values, details=details[name], **shared) for name, values in units.items()
    }


def _summaries(factors: np.ndarray, error: np.ndarray) -> dict[str, np.ndarray]:
    """One number a path for each measurement."""
    return {
        "factor_excess": excess_variation(factors).mean(axis=1),
        "factor_straightness": straightness(factors),
        "factor_path_length": factor_path_length(factors),
        "manifold_distance": error.mean(axis=1),
    }


def _by_factor(factors: np.ndarray) -> dict[str, Any]:
    return {
        "factors": list(FACTORS),
        "by_factor": _means(excess_variation(factors)),
        "overshoot": _means(overshoot(factors)),
    }


def _by_points(factors: np.ndarray) -> dict[str, list[float]]:
    """Mean excess of the same paths seen at every second frame, every third, …, as far as they divide."""
    steps = factors.shape[1] - 1
    strides = [stride for stride in range(1, steps // 2 + 1) if steps % stride == 0]
    excess = [float(excess_variation(factors[:, ::stride]).mean()) for stride in strides]
    return {"num_points": [steps // stride + 1 for stride in strides], "value": excess}


def _means(columns: np.ndarray) -> dict[str, list]:
    """Means of columns over rows, with their intervals."""
    intervals = [list(bootstrap_interval(column)) for column in columns.T]
    return {"value": columns.mean(axis=0).tolist(), "interval": intervals}


def _path_key(num_pairs: int, num_points: int, interpolate: Interpolate, seed: int) -> dict[str, Any]:
    if num_pairs < 1 or num_points < 3:
        raise ValueError(f"num_pairs must be at least 1 and num_points at least 3; got {num_pairs} and {num_points}")
    name = getattr(interpolate, "__name__", "<lambda>")
    if name == "<lambda>":
        raise ValueError(f"interpolate must be a named function, as its name is in the protocol; got {interpolate!r}")
    return {"num_points": num_points, "interpolate": name, "seed": seed}


@torch.no_grad()
def _decode(
    generate: Generate,
    shape: tuple[int, ...],
    start: int,
    stop: int,
    num_points: int,
    interpolate: Interpolate,
    batch_size: int,
    seed: int,
) -> Tensor:
    """Frames of the paths ``start … stop − 1``, (stop − start, num_points, C, R, R)."""
    ends = draw_latents(shape, 2 * start, 2 * stop, seed=seed, stream="paths")
    positions = torch.linspace(0, 1, num_points)
    latents = torch.stack([interpolate(ends[::2], ends[1::2], float(tau)) for tau in positions], dim=1).flatten(0, 1)
    frames = [check_images(generate(piece), len(piece)) for piece in latents.split(batch_size)]
    return torch.cat(frames).unflatten(0, (stop - start, num_points))


def _check_faces(frames: Tensor, start: int) -> None:
    channels, height, width = frames.shape[2:]
    if channels != 3 or height != width:
        raise ValueError(
            "the truth is known of rendered faces only, square images with 3 channels; "
            f"got images of shape {(channels, height, width)}"
        )
    same = (frames[:, 0] - frames[:, -1]).flatten(1).abs().amax(dim=1) < 1e-5
    if same.any():
        raise ValueError(
            f"path {start + int(same.int().argmax())} begins and ends in the same image; expected a generator whose "
            "images differ where latents do"
        )


def _fit(frames: Tensor) -> Arrays:
    estimate = estimate_factors(frames.flatten(0, 1))
    return {
        "factors": estimate.factors.unflatten(0, frames.shape[:2]).cpu().numpy(),
        "error": estimate.error.unflatten(0, frames.shape[:2]).cpu().numpy(),
    }


def _straight_paths(fitted: Arrays, resolution: int, start: int, seed: int) -> Tensor:
    """Frames (P, N + 1, 3, R, R) of straight lines between the same ends, with as much white noise as was left over."""
    factors = torch.from_numpy(fitted["factors"])
    weights = torch.linspace(0, 1, factors.shape[1]).view(1, -1, 1)
    lines = (1 - weights) * factors[:, :1] + weights * factors[:, -1:]
    frames = render(lines.flatten(0, 1), resolution).unflatten(0, lines.shape[:2])
    for row, error in enumerate(fitted["error"]):
        noise = torch.randn(frames[row].shape, generator=number_generator(seed, "path floor", start + row))
        frames[row] += float(error.mean()) ** 0.5 * noise
    return frames
