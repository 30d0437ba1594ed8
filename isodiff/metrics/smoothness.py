r"""How evenly images change along a path: the distances between adjacent frames (the plot under Fig. 6 of Hahm et al.).

A path that is merely longer has larger steps throughout; one that hides its change in a few frames has a large step
among small ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from isodiff.editing import traverse
from isodiff.geometry import slerp
from isodiff.metrics.generator import draw_latents
from isodiff.metrics.intervals import bootstrap_interval
from isodiff.metrics.measurement import Measurement
from isodiff.metrics.path_steps import describe, measure
from isodiff.metrics.precision import full_precision
from isodiff.metrics.store import Arrays, Store

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from isodiff.editing import Path
    from isodiff.metrics.generator import Generate
    from isodiff.metrics.path_steps import Distance


class Smoothness(NamedTuple):
    """Summary of the distances between adjacent frames, one number a path, (P,) each.

    Attributes:
        mean: Mean distance; times N, the length of the path.
        maximum: Largest distance.
        variance: Over the N steps of a path, N in the denominator; in squared units of the distance.
        jerkiness: ``maximum / mean``, 1 for a path at constant speed and N for one that jumps once. It has no unit, so
            a path is not called jerky for being long.
    """

    mean: NDArray[np.float64]
    maximum: NDArray[np.float64]
    variance: NDArray[np.float64]
    jerkiness: NDArray[np.float64]


@torch.no_grad()
def adjacent_distances(frames: Tensor, distance: Distance) -> Tensor:
    """Return the distances between adjacent frames of paths.

    Args:
        frames: (P, N + 1, C, H, W), N ≥ 1.
        distance: Of two batches of images, such as LPIPS.

    Returns:
        (P, N).

    Raises:
        ValueError: If the shape is another, or `distance` does not give one finite number a row.
    """
    if frames.ndim != 5 or frames.shape[1] < 2 or 0 in frames.shape:
        raise ValueError(f"frames must have shape (P, N + 1, C, H, W), N ≥ 1; got {tuple(frames.shape)}")
    found = measure(distance, frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1))
    return found.unflatten(0, (frames.shape[0], frames.shape[1] - 1))


def smoothness(distances: ArrayLike) -> Smoothness:
    """Summarise the distances between adjacent frames of each path.

    Args:
        distances: (P, N), not negative.

    Returns:
        The summary.

    Raises:
        ValueError: If the shape is another, a distance is negative or not finite, or a path never changes.
    """
    d = np.asarray(distances, dtype=float)
    if d.ndim != 2 or 0 in d.shape or not np.isfinite(d).all() or (d < 0).any():
        raise ValueError(f"distances must be finite, not negative and of shape (P, N), P and N ≥ 1; got {d.shape}, {d}")
    mean, maximum = d.mean(axis=1), d.max(axis=1)
    if (mean == 0).any():
        raise ValueError(f"path {int(mean.argmin())} is one image throughout, so that it has no jerkiness")
    return Smoothness(mean, maximum, d.var(axis=1), maximum / mean)


def path_smoothness(
    generate: Generate,
    shape: tuple[int, ...],
    distance: Distance,
    *,
    num_pairs: int,
    num_points: int,
    path: Path = slerp,
    batch_size: int = 64,
    seed: int = 0,
    store: Store | None = None,
) -> dict[str, Measurement]:
    """Measure how evenly images change along paths.

    Args:
        generate: Map from latents (B, *shape) to images in [−1, 1].
        shape: Shape (C, H, W) of a latent.
        distance: Of adjacent frames, such as LPIPS.
        num_pairs: Number of paths P, at least 2; path i runs from latent 2i to latent 2i + 1 of the stream ``"paths"``,
            those of `isodiff.metrics.truth.path_truth`.
        num_points: Frames N + 1 of each path, at least 3, ends included.
        path: Function (a, b, τ) → points, with a name, or a `protocol` of plain JSON values.
        batch_size: Images at once.
        seed: Seed of the latents.
        store: Where finished paths are kept; scoped by the caller with the model.

    Returns:
        ``step_mean``, ``step_maximum``, ``step_variance`` and ``step_jerkiness``, means over pairs of `Smoothness`.
        The details of ``step_mean`` hold the profile along the path.

    Raises:
        ValueError: If a size is out of range, the path or distance has no name, `generate` does not return images, or a
            path is one image throughout.

    Note:
        Maximum and variance depend on N: compare at equal N. LPIPS is of second order in a small change, so that its
        jerkiness is nearer to that of squared speed.
    """
    if num_pairs < 2 or num_points < 3:
        raise ValueError(f"num_pairs must be at least 2 and num_points at least 3; got {num_pairs} and {num_points}")
    protocol = {**describe({"distance": distance})["distance"], "num_points": num_points, **_describe_path(path)}

    def compute(start: int, stop: int) -> Arrays:
        ends = draw_latents(shape, 2 * start, 2 * stop, seed=seed, stream="paths")
        frames = traverse(generate, ends[::2], ends[1::2], num_points, path=path, batch_size=batch_size)
        return {"distances": adjacent_distances(frames, distance).double().cpu().numpy()}

    size = max(1, batch_size // num_points)
    with torch.no_grad(), full_precision():
        distances = (store or Store()).chunks(
            compute, num_pairs, size=size, what="path smoothness", version=1, seed=seed, **protocol
        )["distances"]
    profile = {
        "value": distances.mean(axis=0).tolist(),
        "interval": [list(bootstrap_interval(column)) for column in distances.T],
    }
    details = {"mean": {"profile": profile}}
    return {
        f"step_{name}": Measurement.from_units(
            f"step_{name}", values, unit="pairs", seed=seed, protocol=protocol, details=details.get(name, {})
        )
        for name, values in smoothness(distances)._asdict().items()
    }


def _describe_path(path: Path) -> dict[str, Any]:
    protocol, name = getattr(path, "protocol", None), getattr(path, "__name__", "<lambda>")
    if protocol is None and name == "<lambda>":
        raise ValueError(f"path must be a named function or have a `protocol`, as results state it; got {path!r}")
    return {"path": name if protocol is None else dict(protocol)}
