"""How far generated images are from real ones: FID and KID with intervals, and FID against the size of the samples.

FID falls as samples grow, KID is unbiased; the intervals of both are delete-a-group jackknives over both sets at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from isodiff.metrics.feature_distances import (
    Array,
    check_features,
    frechet_distance,
    frechet_of_rows,
    kernel_distance,
    kernel_leave_out,
)
from isodiff.metrics.measurement import Measurement
from isodiff.metrics.store import Store, content_digest

__all__ = ["extract_features", "fid", "fid_curve", "frechet_distance", "kernel_distance", "kid"]

_CHUNK = 64  # images whose features are kept in one file: a killed run loses no more


class Extractor(Protocol):
    """What turns (N, C, H, W) uint8 images into (N, d) features and says by what protocol."""

    protocol: Mapping[str, Any]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features."""
        ...


def extract_features(
    images: NDArray[np.uint8], extractor: Extractor, *, batch_size: int = 16, store: Store | None = None
) -> NDArray[np.float32]:
    """Return the features of images, each piece of the work kept under a hash of the pixels it was made from.

    Args:
        images: (N, 1 or 3, H, W) uint8.
        extractor: Such as `inception_features`.
        batch_size: Images a pass of the network.
        store: Where features are kept; nowhere by default.

    Returns:
        (N, d) float32.

    Raises:
        ValueError: If there are no images, they are not uint8 of four axes, or the batch size is below 1.
    """
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        got = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise ValueError(f"images must be a uint8 array (N, 1 or 3, H, W) with N ≥ 1; got {got}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")

    def compute(chunk: NDArray[np.uint8]) -> dict[str, np.ndarray]:
        batches = torch.from_numpy(chunk).split(batch_size)
        return {"features": np.concatenate([extractor(batch).cpu().numpy() for batch in batches])}

    work = []
    for start in range(0, len(images), _CHUNK):
        chunk = np.ascontiguousarray(images[start : start + _CHUNK])
        key = {"what": "features", "images": content_digest(chunk), "extractor": dict(extractor.protocol)}
        work.append((partial(compute, chunk), key))
    return np.concatenate([piece["features"] for piece in (store or Store()).get_all(work)])


def fid(
    real: ArrayLike,
    generated: ArrayLike,
    *,
    groups: int = 20,
    seed: int = 0,
    protocol: Mapping[str, Any] | None = None,
) -> Measurement:
    """Measure FID with its jackknife interval; row i of either set is in group ``i % groups``.

    Args:
        real: (n, d) features of real images.
        generated: (m, d) features of generated ones; rows in random order.
        groups: Number of groups, ≥ 2, each left out once.
        seed: Seed of the draws that the images came from, for the record.
        protocol: What else decides the number.

    Returns:
        The measurement, n being that of the generated images.

    Raises:
        ValueError: For fewer than ``max(groups, 4)`` rows in a set, or as `frechet_distance`.

    Note:
        The interval is for the mean of FID at these sample sizes, not for its limit: FID depends on n; see `fid_curve`.
        Cost: ``groups + 1`` distances; products of the features are made once.
    """
    real, generated = check_features(real, generated, _needed(groups))
    distance = frechet_of_rows(real, generated)
    kept = [(np.arange(len(real)) % groups != g, np.arange(len(generated)) % groups != g) for g in range(-1, groups)]
    value, *replicates = [distance(*rows) for rows in kept]  # group −1 has no rows: nothing is left out
    return _measurement("fid", value, replicates, real, generated, groups, seed, protocol)


def kid(
    real: ArrayLike,
    generated: ArrayLike,
    *,
    groups: int = 20,
    seed: int = 0,
    protocol: Mapping[str, Any] | None = None,
) -> Measurement:
    """Measure KID with its jackknife interval; arguments and errors as `fid`.

    Note:
        One U-statistic of all rows, where torch-fidelity averages over random subsets. At equal distributions it is
        degenerate, and the interval then wider than it need be.
    """
    real, generated = check_features(real, generated, _needed(groups))
    value, replicates = kernel_leave_out(real, generated, groups)
    return _measurement("kid", value, replicates, real, generated, groups, seed, protocol)


def fid_curve(
    real: ArrayLike, generated: ArrayLike, sizes: Sequence[int], *, repeats: int = 5, seed: int = 0
) -> dict[str, Any]:
    """Return FID at growing n and its limit, the intercept of a line in 1/n (FID∞, Chong & Forsyth 2020).

    Args:
        real: (n, d) features.
        generated: (m, d) features.
        sizes: Numbers of rows of both sets, growing, at least two, each from 2 to the smaller set.
        repeats: Random orders of the rows, ≥ 1; in one order, smaller samples are part of larger ones.
        seed: Of the orders.

    Returns:
        Plain JSON values: ``sizes``; ``values``, one a size for each repeat; their ``mean`` over repeats; ``intercept``
        and ``slope`` of the least-squares line through the means; ``intercepts`` of each repeat; ``num_features`` d;
        ``repeats``; ``seed``.

    Raises:
        ValueError: For other sizes or repeats, or as `frechet_distance`.

    Note:
        Chong and Forsyth shrink the generated set only. Here both sets have n rows, because real ones are few as well:
        the bias of either falls as 1/n, so the intercept is free of both. That holds once n exceeds d (2,048 for
        Inception): below, the curve is steeper than the line, and the intercept is still above the limit.
    """
    sizes = [int(size) for size in sizes]
    real, generated = check_features(real, generated, 2)
    largest = min(len(real), len(generated))
    if len(sizes) < 2 or sizes != sorted(set(sizes)) or sizes[0] < 2 or sizes[-1] > largest:
        raise ValueError(f"sizes must be two or more growing numbers from 2 to {largest}; got {sizes}")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1; got {repeats}")
    random = np.random.default_rng(seed)
    values = np.empty((repeats, len(sizes)))
    for row in values:
        a, b = random.permutation(real), random.permutation(generated)
        row[:] = [frechet_distance(a[:size], b[:size]) for size in sizes]
    slopes, intercepts = np.polyfit(
        1 / np.array(sizes), values.T, 1
    )  # a line a repeat; their mean is that of the means
    return {
        "sizes": sizes,
        "values": values.tolist(),
        "mean": values.mean(0).tolist(),
        "intercept": float(intercepts.mean()),
        "slope": float(slopes.mean()),
        "intercepts": intercepts.tolist(),
        "num_features": real.shape[1],
        "repeats": repeats,
        "seed": seed,
    }


def _measurement(
    name: str,
    value: float,
    replicates: ArrayLike,
    real: Array,
    generated: Array,
    groups: int,
    seed: int,
    protocol: Mapping[str, Any] | None,
) -> Measurement:
    facts = {**(protocol or {}), "num_real": len(real), "num_features": real.shape[1], "groups": groups}
    fields = {"n": len(generated), "unit": "images", "seed": seed, "protocol": facts}
    return Measurement.from_jackknife(name, value, np.array(replicates), **fields)


def _needed(groups: int) -> int:
    if groups < 2:
        raise ValueError(f"groups must be at least 2; got {groups}")
    return max(groups, 4)  # so that no group is empty, and two rows are left without one
