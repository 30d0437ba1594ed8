"""The step of the path length: which ε gives a derivative, and where rounding takes over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from isodiff.metrics.generator import draw_latents
from isodiff.metrics.intervals import bootstrap_interval
from isodiff.metrics.path_steps import (
    Distance,
    Mode,
    check_step,
    decode,
    describe,
    draw_paths,
    measure_all,
    path_points,
)
from isodiff.metrics.precision import full_precision
from isodiff.metrics.store import Arrays, Store

if TYPE_CHECKING:
    from isodiff.metrics.generator import Generate


def epsilon_sweep(
    generate: Generate,
    shape: tuple[int, ...],
    distances: Mapping[str, Distance],
    epsilons: Sequence[float],
    *,
    num_pairs: int,
    mode: Mode = "full",
    batch_size: int = 32,
    seed: int = 0,
    store: Store | None = None,
) -> dict[str, dict[str, Any]]:
    """Measure ``d/ε²`` at several ε on the same pairs, and the level that rounding alone reaches.

    At ε = 0 the same computation on the same numbers gives zero, which says nothing about rounding. At ε > 0 the two
    images come of different numbers and are rounded differently. So the floor compares the image at t with one that
    would be equal in exact arithmetic, or all but equal:

    - "company": the same latent decoded in other company: rows in reverse order, in batches of other sizes. Sums are
      then taken in another order.
    - "last bit": every number of x(t) moved to a neighbouring float32, up or down at random: no computation that
      stores its latent in float32 can tell the two apart from rounding.

    The floor is the larger of the two mean distances over ε²: what rounding adds on average. But rounding joins the
    difference of two images before it is squared, so a single pair can be wrong by up to about 2 √(floor · value),
    either way; only the average over pairs loses that part.

    Args:
        generate: As `perceptual_path_length`.
        shape: As there.
        distances: By name.
        epsilons: Steps, each in (0, 1].
        num_pairs: Pairs, at least 2: the first ones of `perceptual_path_length`.
        mode: As there.
        batch_size: As there.
        seed: As there.
        store: As there.

    Returns:
        For each distance ``epsilons`` (K,), ``value`` (K,) and ``interval`` (K, 2), the mean over all pairs of d/ε²
        (no percentile filter) with its bootstrap interval, ``floor`` (K,), ``noise``, the two mean distances by name,
        ``num_pairs`` and ``mode``: plain values.

    Raises:
        ValueError: As `perceptual_path_length`, or for no ε or fewer than 2 pairs.
        TypeError: As there.

    Note:
        Cost: (K + 3) P images and (K + 2) P distances of each kind.
    """
    if len(epsilons) == 0 or num_pairs < 2:
        raise ValueError(
            f"expected at least one epsilon and at least 2 pairs; got {len(epsilons)} and num_pairs={num_pairs}"
        )
    for epsilon in epsilons:
        check_step(epsilon, mode=mode)

    def compute(start: int, stop: int) -> Arrays:
        x, *ys = path_points(*draw_paths(shape, start, stop, mode, seed), epsilons, start=start)
        neighbour = torch.nextafter(x, draw_latents(shape, start, stop, seed=seed, stream="last bit"))
        images = [decode(generate, y) for y in (*ys, neighbour)]
        return measure_all(distances, decode(generate, x), [*images, decode_in_other_company(generate, x)])

    key = {
        "epsilons": [float(epsilon) for epsilon in epsilons],
        "mode": mode,
        "seed": seed,
        "distances": describe(distances),
    }
    with torch.no_grad(), full_precision():
        arrays = (store or Store()).chunks(compute, num_pairs, size=batch_size, what="epsilon sweep", version=1, **key)
    squares = np.square(np.asarray(epsilons, dtype=float))
    sweeps = {}
    for name in distances:
        found = arrays[f"distance {name}"]
        speeds = found[:, :-2] / squares
        noise = dict(zip(("last bit", "company"), found[:, -2:].mean(axis=0).tolist(), strict=True))
        sweeps[name] = {
            "epsilons": key["epsilons"],
            "value": speeds.mean(axis=0).tolist(),
            "interval": [list(bootstrap_interval(column)) for column in speeds.T],
            "floor": (max(noise.values()) / squares).tolist(),
            "noise": noise,
            "num_pairs": num_pairs,
            "mode": mode,
        }
    return sweeps


def decode_in_other_company(generate: Generate, x: Tensor) -> Tensor:
    """Return the same images, decoded in reverse order and in batches of other sizes than ``len(x)``."""
    if len(x) == 1:
        return decode(generate, torch.cat([x, x]))[:1]
    third = max(1, len(x) // 3)
    return torch.cat([decode(generate, rows) for rows in x.flip(0).split([third, len(x) - third])]).flip(0)
