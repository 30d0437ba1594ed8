r"""Relative trajectory length: how much longer than its chord a path of latents is in the bottleneck H.

    RTL(t) = E[ length of h_t(τ), 0 ≤ τ ≤ 1 / ‖h_t(1) − h_t(0)‖ ],        mRTL = mean over t of RTL(t),

at the steps t of DDIM (Sec. 4.1 and Fig. 5, Hahm et al. 2024). 1 is a straight line in H. But an isometry keeps
lengths, not chords: the round embedding of the sphere takes the quarter arc between independent latents to a quarter
arc, with ratio (π/2)/√2 = 1.1107. A value of 1 on all pairs would be flattening, which no isometry of a sphere does.

The paper speaks of two latents x, x′ ∈ X, of a distance "measured on the manifold, following along a path on {H_t}",
and of slerp, "the geodesic in X". That can be read in two ways:

- ``path="x_T"``: slerp joins two latents x_T; every point of it is carried down by DDIM, and h_t(τ) is what the
  encoder makes of point τ at step t. This is the path that an interpolation of images takes through all H_t.
- ``path="x_t"``: only the two ends are carried down, and at each step slerp joins their x_t:
  h_t(τ) = h(slerp(x_t, x_t′; τ), t). This is the encoder at one step, on a path that no interpolation visits.

The first is the default: it is one path in X followed through all H_t, as the text has it, and it takes slerp only
where latents lie on a sphere, which the paper (end of Sec. 3.2) does not assume of x_t for small t.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from isodiff.diffusion.hspace import bottleneck_hook, check_encoder, encode
from isodiff.diffusion.process import ddim_trajectory
from isodiff.geometry.sphere import slerp
from isodiff.metrics.generator import Generator, draw_latents
from isodiff.metrics.intervals import bootstrap_interval
from isodiff.metrics.measurement import Measurement
from isodiff.metrics.precision import full_precision
from isodiff.metrics.store import Arrays, Store

PathKind = Literal["x_T", "x_t"]
"""Where slerp is taken: between two latents x_T, or at every step between the two x_t."""

ROUND_EMBEDDING = math.pi / 2 / math.sqrt(2)
"""The ratio of a quarter arc, 1.1107: what the round embedding gives for independent latents."""


def trajectory_ratio(h: ArrayLike) -> NDArray[np.floating]:
    """Return length over chord of each path, ``Σⱼ ‖hⱼ₊₁ − hⱼ‖ / ‖h_N − h₀‖``.

    Args:
        h: Points of each path, (P, N + 1, M), with N ≥ 2.

    Returns:
        (P,), at least 1 but for rounding; unchanged by rotations, translations and scaling of h.

    Raises:
        ValueError: If the shape is another, values are not finite, or a path ends where it begins.

    Note:
        A polyline is never longer than the curve it is taken from. On an arc of angle θ it is shorter by the factor
        ``sin(θ/2N) / (θ/2N)``, 0.04 % for a quarter circle and N = 16.
    """
    h = np.asarray(h, dtype=float)
    if h.ndim != 3 or h.shape[1] < 3 or 0 in h.shape:
        raise ValueError(f"h must be (paths, at least 3 points, features); got shape {h.shape}")
    if not np.isfinite(h).all():
        raise ValueError(f"h must be finite; got {np.count_nonzero(~np.isfinite(h))} NaN or infinite values")
    chord = np.linalg.norm(h[:, -1] - h[:, 0], axis=1)
    if (chord == 0).any():
        raise ValueError(f"path {int(chord.argmin())} ends where it begins, so that it has no chord")
    length = sum(np.linalg.norm(h[:, j + 1] - h[:, j], axis=1) for j in range(h.shape[1] - 1))
    return length / chord


def relative_trajectory_length(
    generate: Generator,
    *,
    num_pairs: int,
    num_points: int,
    path: PathKind = "x_T",
    batch_size: int = 64,
    seed: int = 0,
    store: Store | None = None,
) -> Measurement:
    """Measure mRTL along the DDIM steps of a generator.

    Args:
        generate: The sampler, with its U-Net and its number of steps; the paper takes 20.
        num_pairs: Number of paths P, at least 2; path i runs from latent 2i to latent 2i + 1 of the stream "pairs".
        num_points: Points N + 1 of each path, at least 3, ends included.
        path: Where slerp is taken; see above.
        batch_size: Points of paths at a time, but at least one whole path.
        seed: Seed of the latents.
        store: Where finished paths are kept; scoped by the caller with the model.

    Returns:
        mRTL, a mean over pairs. Details: ``steps`` t, ``value`` RTL(t) and its ``interval`` at each, and
        ``round_embedding``; where N is even, ``half_points``, mRTL of every second point: by how much finer paths are
        still longer.

    Raises:
        TypeError: If `generate` is not a `Generator`, or its model has no bottleneck.
        ValueError: If a number is out of range, or a path has no length in H.

    Note:
        ``"x_T"`` costs (N + 1) P samples, as h is read off while they are made; ``"x_t"`` 2 P samples and (N + 1) P
        passes of the encoder at every step.
    """
    if not isinstance(generate, Generator):
        raise TypeError(f"generate must be a Generator, as h is read inside its U-Net; got {type(generate).__name__}")
    check_encoder(generate.unet)
    if num_pairs < 2 or num_points < 3:
        raise ValueError(f"num_pairs must be at least 2 and num_points at least 3; got {num_pairs} and {num_points}")
    if path not in get_args(PathKind):
        raise ValueError(f"path must be one of {', '.join(get_args(PathKind))}; got {path!r}")
    walk = _walk_from_x_T if path == "x_T" else _walk_at_x_t

    def compute(start: int, stop: int) -> Arrays:
        ends = draw_latents(generate.shape, 2 * start, 2 * stop, seed=seed, stream="pairs").to(generate.unet.device)
        steps, ratios, coarse = [], [], []
        for t, h in walk(generate, ends, num_points):
            points = h.flatten(1).unflatten(0, (stop - start, num_points)).double().cpu().numpy()
            steps.append(int(t))
            ratios.append(trajectory_ratio(points))
            if num_points >= 5 and num_points % 2:
                coarse.append(trajectory_ratio(points[:, ::2]))
        arrays = {"ratio": np.stack(ratios, axis=1), "steps": np.tile(steps, (stop - start, 1))}
        return arrays | ({"coarse": np.stack(coarse, axis=1)} if coarse else {})

    protocol = {"path": path, "num_points": num_points, "num_steps": generate.num_steps}
    size = max(1, batch_size // num_points)
    with torch.no_grad(), full_precision():
        arrays = (store or Store()).chunks(
            compute, num_pairs, size=size, what="trajectory length", version=1, seed=seed, **protocol
        )
    ratio = arrays["ratio"]
    details: dict[str, Any] = {
        "steps": arrays["steps"][0].tolist(),
        "value": ratio.mean(axis=0).tolist(),
        "interval": [list(bootstrap_interval(column)) for column in ratio.T],
        "round_embedding": ROUND_EMBEDDING,
    }
    if "coarse" in arrays:
        details["half_points"] = float(arrays["coarse"].mean())
    return Measurement.from_units(
        "mrtl", ratio.mean(axis=1), unit="pairs", seed=seed, protocol=protocol, details=details
    )


def _walk_from_x_T(generate: Generator, ends: Tensor, num_points: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield t and h of every point of every path, pair by pair, read off while the points are carried down."""
    x_T = _path(ends, num_points)
    seen: list[Tensor] = []
    with bottleneck_hook(generate.unet, seen.append):  # append returns None: h stays as it is
        for t, _, _ in ddim_trajectory(generate.unet, generate.scheduler, x_T, generate.num_steps):
            yield t, seen.pop()


def _walk_at_x_t(generate: Generator, ends: Tensor, num_points: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield t and h of the paths between the two x_t of every pair, while these are carried down."""
    for t, x_t, _ in ddim_trajectory(generate.unet, generate.scheduler, ends, generate.num_steps):
        yield t, encode(generate.unet, _path(x_t, num_points), t)


def _path(ends: Tensor, num_points: int) -> Tensor:
    """Points (P · num_points, C, H, W) of the arcs between rows 2i and 2i + 1, pair by pair."""
    positions = np.linspace(0, 1, num_points).tolist()
    return torch.stack([slerp(ends[::2], ends[1::2], tau) for tau in positions], dim=1).flatten(0, 1)
