r"""Relative trajectory length: how much longer than its chord a path of latents is in the bottleneck H.

    RTL(t) = E[ (length of h_t(τ), 0 ≤ τ ≤ 1) / ‖h_t(1) − h_t(0)‖ ],        mRTL = mean over t of RTL(t),

at the steps t of DDIM (Sec. 4.1 and Fig. 5, Hahm et al. 2024). 1 is a straight line in H. But an isometry keeps
lengths, not chords: the round embedding of the sphere takes the quarter arc between independent latents to a quarter
arc, with ratio (π/2)/√2 = 1.1107. The paper's path along slerp can be read in two ways: "x_T" joins two latents x_T,
and DDIM carries every point down; "x_t" carries the ends down and joins their x_t at each step.
"""

import math
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from isodiff.diffusion import bottleneck_hook, check_encoder, ddim_trajectory, encode
from isodiff.geometry import slerp
from isodiff.metrics.generator import Generator, draw_latents
from isodiff.metrics.measure import Arrays, Measurement, finite, full_precision, means, over_units

PathKind = Literal["x_T", "x_t"]
ROUND_EMBEDDING = math.pi / 2 / math.sqrt(2)  # the ratio of a quarter arc


def trajectory_ratio(h: ArrayLike) -> NDArray[np.floating]:
    """Return length over chord, ``Σⱼ ‖hⱼ₊₁ − hⱼ‖ / ‖h_N − h₀‖``, of each path, (P, N + 1, M) → (P,), N ≥ 2."""
    h = finite(h, "h", 1, 3, 1)
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
    even, ``half_points``, mRTL of every second point.
    """
    if not isinstance(generate, Generator):
        raise TypeError(f"generate must be a Generator, as h is read inside its U-Net; got {type(generate).__name__}")
    check_encoder(generate.unet)
    if num_pairs < 2 or num_points < 3:
        raise ValueError(f"num_pairs must be at least 2 and num_points at least 3; got {num_pairs} and {num_points}")
    if path not in get_args(PathKind):
        raise ValueError(f"path must be one of {', '.join(get_args(PathKind))}; got {path!r}")

    def compute(start: int, stop: int) -> Arrays:
        ends = draw_latents(generate.shape, 2 * start, 2 * stop, seed=seed, stream="pairs").to(generate.unet.device)
        arrays: dict[str, list] = {"steps": [], "ratio": [], "coarse": []}
        for t, h in _walk(generate, ends, num_points, path):
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
    ratio, steps = arrays["ratio"], arrays["steps"][0].tolist()
    details = {"steps": steps, **means(ratio), "round_embedding": ROUND_EMBEDDING}
    if "coarse" in arrays:
        details["half_points"] = float(arrays["coarse"].mean())
    shared = {"unit": "pairs", "seed": seed, "protocol": protocol, "details": details}
    return Measurement.from_units("mrtl", ratio.mean(axis=1), **shared)


def _walk(generate: Generator, ends: Tensor, num_points: int, path: PathKind) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield t and h of every point of the paths between rows 2i and 2i + 1, pair by pair, at each step."""

    def arcs(x: Tensor) -> Tensor:
        points = [slerp(x[::2], x[1::2], tau) for tau in np.linspace(0, 1, num_points).tolist()]
        return torch.stack(points, dim=1).flatten(0, 1)

    if path == "x_t":  # the ends are carried down
        for t, x_t, _ in ddim_trajectory(generate.unet, generate.scheduler, ends, generate.num_steps):
            yield t, encode(generate.unet, arcs(x_t), t)
        return
    seen: list[Tensor] = []  # h, read off while every point is carried down; append returns None: h stays as it is
    with bottleneck_hook(generate.unet, seen.append):
        for t, _, _ in ddim_trajectory(generate.unet, generate.scheduler, arcs(ends), generate.num_steps):
            yield t, seen.pop()
