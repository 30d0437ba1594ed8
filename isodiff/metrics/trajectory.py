r"""Relative trajectory length: how much longer than its chord a path of latents is in the bottleneck H.

    RTL(t) = E[ (length of h_t(τ), 0 ≤ τ ≤ 1) / ‖h_t(1) − h_t(0)‖ ],        mRTL = mean over t of RTL(t),

at the steps t of DDIM (Sec. 4.1 and Fig. 5, Hahm et al. 2024). 1 is a straight line in H. But an isometry keeps
lengths, not chords: the round embedding of the sphere takes the quarter arc between independent latents to a quarter
arc, with ratio (π/2)/√2 = 1.1107. A value of 1 on all pairs would be flattening, which no isometry of a sphere does.

The paper's path, "measured on the manifold" along slerp, "the geodesic in X", can be read in two ways. With
``path="x_T"`` slerp joins two latents x_T, DDIM carries every point down, and h_t(τ) is what the encoder makes of point
τ at step t. With ``path="x_t"`` only the ends are carried down, and slerp joins their x_t at each step, where latents
need not lie on a sphere; so the first is the default.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from isodiff.diffusion import bottleneck_hook, check_encoder, ddim_trajectory, encode
from isodiff.geometry import slerp
from isodiff.metrics.generator import Generator, draw_latents
from isodiff.metrics.measure import Arrays, Measurement, bootstrap_interval, full_precision, over_units

PathKind = Literal["x_T", "x_t"]
ROUND_EMBEDDING = math.pi / 2 / math.sqrt(2)
"""The ratio of a quarter arc, 1.1107: what the round embedding gives for independent latents."""


def trajectory_ratio(h: ArrayLike) -> NDArray[np.floating]:
    """Return length over chord of each path, ``Σⱼ ‖hⱼ₊₁ − hⱼ‖ / ‖h_N − h₀‖``: (P, N + 1, M) → (P,), N ≥ 2.

    A polyline is never longer than its curve: on an arc of angle θ shorter by the factor ``sin(θ/2N) / (θ/2N)``, 0.04 %
    for a quarter circle and N = 16.
    """
    h = np.asarray(h, dtype=float)
    if h.ndim != 3 or h.shape[1] < 3 or 0 in h.shape:
        raise ValueError(f"h must be (paths, at least 3 points, features); got shape {h.shape}")
    if not np.isfinite(h).all():
        raise ValueError(f"h must be finite; got {np.count_nonzero(~np.isfinite(h))} NaN or infinite values")
    chord = np.linalg.norm(h[:, -1] - h[:, 0], axis=1)
    if (chord == 0).any():
        raise ValueError(f"path {int(chord.argmin())} ends where it begins, so that it has no chord")
    return np.linalg.norm(np.diff(h, axis=1), axis=2).sum(axis=1) / chord


def relative_trajectory_length(
    generate: Generator, *, num_pairs: int, num_points: int, path: PathKind = "x_T", batch_size: int = 64, seed: int = 0
) -> Measurement:
    """Measure mRTL along the DDIM steps of a generator, a mean over pairs; the paper takes 20 steps.

    Path i runs from latent 2i to latent 2i + 1 of the stream "pairs", in `num_points` = N + 1 points, ends included;
    `batch_size` counts points. Details: ``steps`` t, ``value`` RTL(t) and its ``interval`` at each, and, where N is
    even, ``half_points``, mRTL of every second point: by how much finer paths are still longer. ``"x_T"`` costs
    (N + 1) P samples, as h is read off while they are made; ``"x_t"`` 2 P samples and (N + 1) P encoder passes a step.
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
        arrays: dict[str, list] = {"steps": [], "ratio": [], "coarse": []}
        for t, h in walk(generate, ends, num_points):
            points = h.flatten(1).unflatten(0, (stop - start, num_points)).double().cpu().numpy()
            arrays["steps"].append(np.full(stop - start, int(t)))
            arrays["ratio"].append(trajectory_ratio(points))
            if num_points >= 5 and num_points % 2:
                arrays["coarse"].append(trajectory_ratio(points[:, ::2]))
        return {name: np.stack(columns, axis=1) for name, columns in arrays.items() if columns}

    protocol = {"path": path, "num_points": num_points, "num_steps": generate.num_steps}
    size = max(1, batch_size // num_points)
    with torch.no_grad(), full_precision():
        arrays = over_units(compute, num_pairs, size=size, what="trajectory length", version=1, seed=seed, **protocol)
    ratio = arrays["ratio"]
    curve = {"value": ratio.mean(axis=0).tolist(), "interval": [list(bootstrap_interval(column)) for column in ratio.T]}
    details: dict[str, Any] = {"steps": arrays["steps"][0].tolist(), **curve, "round_embedding": ROUND_EMBEDDING}
    if "coarse" in arrays:
        details["half_points"] = float(arrays["coarse"].mean())
    fields = {"unit": "pairs", "seed": seed, "protocol": protocol, "details": details}
    return Measurement.from_units("mrtl", ratio.mean(axis=1), **fields)


def _walk_from_x_T(generate: Generator, ends: Tensor, num_points: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield t and h of every point of every path, pair by pair, read off while the points are carried down."""
    seen: list[Tensor] = []
    with bottleneck_hook(generate.unet, seen.append):  # append returns None: h stays as it is
        for t, _, _ in ddim_trajectory(generate.unet, generate.scheduler, _path(ends, num_points), generate.num_steps):
            yield t, seen.pop()


def _walk_at_x_t(generate: Generator, ends: Tensor, num_points: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield t and h of the paths between the two x_t of every pair, while these are carried down."""
    for t, x_t, _ in ddim_trajectory(generate.unet, generate.scheduler, ends, generate.num_steps):
        yield t, encode(generate.unet, _path(x_t, num_points), t)


def _path(ends: Tensor, num_points: int) -> Tensor:
    """Points (P · num_points, C, H, W) of the arcs between rows 2i and 2i + 1, pair by pair."""
    positions = np.linspace(0, 1, num_points).tolist()
    return torch.stack([slerp(ends[::2], ends[1::2], tau) for tau in positions], dim=1).flatten(0, 1)
