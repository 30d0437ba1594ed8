r"""Paths of generated faces against the truth: do the factors move straight from one end to the other?

The renderer is fitted to every frame of a path: z₀, …, z_N ∈ [−1, 1]ᴷ are its factors, and what the fit leaves over is
its distance to the manifold of faces. No network judges here, but the fit has errors of its own: the floor is what the
same measurement finds on paths that are straight by construction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from isodiff.datasets.face_factors import estimate_factors
from isodiff.datasets.faces import FACTORS, render
from isodiff.editing import traverse
from isodiff.geometry import slerp
from isodiff.metrics.generator import draw_latents, number_generator
from isodiff.metrics.measure import Arrays, Measurement, bootstrap_interval, over_units

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isodiff.editing import Path
    from isodiff.metrics.generator import Generate


def excess_variation(factors: ArrayLike) -> NDArray[np.floating]:
    """Return how far each factor travels beyond what its ends require, ``Σⱼ |zⱼ₊₁ − zⱼ| − |z_N − z₀|``.

    Factors (P, N + 1, K) → (P, K), zero for a factor that never turns back: a path between two smiles that stops
    smiling on the way travels down and up again. Errors of the factors only ever add, independent ones of standard
    deviation s up to 1.13 s a step.
    """
    z = _check_factors(factors)
    return np.maximum(np.abs(np.diff(z, axis=1)).sum(axis=1) - np.abs(z[:, -1] - z[:, 0]), 0)


def overshoot(factors: ArrayLike) -> NDArray[np.floating]:
    """Return how far each factor leaves the range between its ends, (P, N + 1, K) → (P, K).

    At most half the excess variation. Errors of the factors hardly add: it is the robust companion of the excess, blind
    to wiggles between the ends.
    """
    z = _check_factors(factors)
    ends = z[:, [0, -1]]
    return np.maximum(z.max(axis=1) - ends.max(axis=1), ends.min(axis=1) - z.min(axis=1))


def straightness(factors: ArrayLike) -> NDArray[np.floating]:
    """Return chord over length, ``‖z_N − z₀‖ / Σⱼ ‖zⱼ₊₁ − zⱼ‖``, (P, N + 1, K) → (P,): 1 is straight, at any speed."""
    z = _check_factors(factors)
    length = np.linalg.norm(np.diff(z, axis=1), axis=2).sum(axis=1)
    if (length == 0).any():
        raise ValueError(f"path {int(length.argmin())} has length zero in factor space; expected paths that move")
    return np.minimum(np.linalg.norm(z[:, -1] - z[:, 0], axis=1) / length, 1)


def factor_path_length(factors: ArrayLike) -> NDArray[np.floating]:
    """Return the mean squared speed of each path, ``N Σⱼ ‖zⱼ₊₁ − zⱼ‖²``, (P, N + 1, K) → (P,).

    What the perceptual path length is to LPIPS, with the true factors in its place: at least the squared length, with
    equality at constant speed.
    """
    steps = np.diff(_check_factors(factors), axis=1)
    return steps.shape[1] * np.square(steps).sum(axis=(1, 2))


def path_truth(
    generate: Generate,
    shape: tuple[int, ...],
    *,
    num_pairs: int,
    num_points: int,
    interpolate: Path = slerp,
    floor: bool = True,
    batch_size: int = 64,
    seed: int = 0,
    protocol: Mapping[str, Any] | None = None,
) -> dict[str, Measurement]:
    """Measure paths of generated faces, (B, *shape) → (B, 3, R, R) in [−1, 1], by their factors of range [−1, 1].

    Path i runs from latent 2i to latent 2i + 1 of the stream ``"paths"`` in `num_points` ≥ 3 frames, by a named
    function of start, end and position. `protocol` holds what else decides the numbers, such as the sampler's steps.

    Returns means over pairs: ``factor_excess`` (mean over factors; details by factor, `overshoot`, and the excess at
    fewer points, which stays put only if errors of the fit do not matter), ``factor_straightness``,
    ``factor_path_length`` and ``manifold_distance``, the mean squared re-rendering error of a frame. The details of
    each hold its value on the ``floor``: for every path, the straight line between the factors of its ends, with white
    noise of the path's own mean re-rendering error. That noise is drawn anew for every frame, where what a model leaves
    over varies smoothly (less excess) and looks more like faces (more): read it as a scale, and subtract nothing.

    The fit errs most where a factor hardly shows. At 32 pixels and 13 points, white noise of standard deviation 0.02,
    0.05 and 0.1 gives a straight path an excess of about 0.004, 0.03 and 0.1: compare models at equal distance from the
    manifold, or by `overshoot`, whose floor is eight times lower.
    """
    if num_pairs < 2 or num_points < 3:
        raise ValueError(f"num_pairs must be at least 2 and num_points at least 3; got {num_pairs} and {num_points}")
    if (name := getattr(interpolate, "__name__", "<lambda>")) == "<lambda>":
        raise ValueError(f"interpolate must be a named function, as its name is in the protocol; got {interpolate!r}")
    key = {"num_points": num_points, "interpolate": name, **(protocol or {})}

    def compute(start: int, stop: int) -> Arrays:
        ends = draw_latents(shape, 2 * start, 2 * stop, seed=seed, stream="paths")
        frames = traverse(generate, ends[::2], ends[1::2], num_points, path=interpolate, batch_size=batch_size)
        if frames.shape[2] != 3 or frames.shape[3] != frames.shape[4]:
            raise ValueError(
                "the truth is known of rendered faces only, square images with 3 channels; "
                f"got images of shape {tuple(frames.shape[2:])}"
            )
        if (same := (frames[:, 0] - frames[:, -1]).flatten(1).abs().amax(dim=1) < 1e-5).any():
            raise ValueError(
                f"path {start + int(same.int().argmax())} begins and ends in the same image; expected images that "
                "differ where latents do"
            )
        arrays = fit_faces(frames)
        if floor:
            straight = _straight_paths(arrays, frames.shape[-1], start, seed).to(frames.device)
            arrays |= {f"floor_{name}": array for name, array in fit_faces(straight).items()}
        return arrays

    size = max(1, batch_size // num_points)
    arrays = over_units(compute, num_pairs, size=size, what="path truth", floor=floor, seed=seed, **key)
    units = _summaries(arrays["factors"], arrays["error"])
    details: dict[str, dict[str, Any]] = {name: {} for name in units}
    if floor:
        for name, values in _summaries(arrays["floor_factors"], arrays["floor_error"]).items():
            details[name]["floor"] = {"value": float(values.mean()), "interval": list(bootstrap_interval(values))}
        details["factor_excess"]["floor"] |= _by_factor(arrays["floor_factors"])
    strides = [stride for stride in range(1, (num_points - 1) // 2 + 1) if (num_points - 1) % stride == 0]
    by_points = {  # the same paths seen at every second frame, every third, …
        "num_points": [(num_points - 1) // stride + 1 for stride in strides],
        "value": [float(excess_variation(arrays["factors"][:, ::stride]).mean()) for stride in strides],
    }
    details["factor_excess"] |= {"by_points": by_points, **_by_factor(arrays["factors"])}
    shared = {"unit": "pairs", "seed": seed, "protocol": key}
    return {
        name: Measurement.from_units(name, values, details=details[name], **shared) for name, values in units.items()
    }


def fit_faces(frames: Tensor) -> Arrays:
    """Return the factors (P, N, K) and re-rendering errors (P, N) of frames (P, N, 3, R, R), as arrays."""
    fit = estimate_factors(frames.flatten(0, 1))
    return {name: part.unflatten(0, frames.shape[:2]).cpu().numpy() for name, part in fit._asdict().items()}


def means(columns: NDArray[np.floating]) -> dict[str, list]:
    """Return the means of columns over rows, with their bootstrap intervals."""
    intervals = [list(bootstrap_interval(column)) for column in columns.T]
    return {"value": columns.mean(axis=0).tolist(), "interval": intervals}


def _summaries(factors: np.ndarray, error: np.ndarray) -> dict[str, np.ndarray]:
    """One number a path for each measurement."""
    return {
        "factor_excess": excess_variation(factors).mean(axis=1),
        "factor_straightness": straightness(factors),
        "factor_path_length": factor_path_length(factors),
        "manifold_distance": error.mean(axis=1),
    }


def _by_factor(factors: np.ndarray) -> dict[str, Any]:
    excess, beyond = means(excess_variation(factors)), means(overshoot(factors))
    return {"factors": list(FACTORS), "by_factor": excess, "overshoot": beyond}


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


def _check_factors(factors: ArrayLike) -> NDArray[np.floating]:
    z = np.asarray(factors, dtype=float)
    if z.ndim != 3 or z.shape[1] < 2 or 0 in z.shape:
        raise ValueError(f"factors must be (paths, at least 2 points, factors); got shape {z.shape}")
    if not np.isfinite(z).all():
        raise ValueError(f"factors must be finite; got {np.count_nonzero(~np.isfinite(z))} NaN or infinite values")
    return z
