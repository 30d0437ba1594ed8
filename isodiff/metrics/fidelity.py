"""How far generated images are from real ones: FID, KID, precision and recall, and FID against the number of images.

With the moments μ and Σ of two samples of features, rows of a (n, d) and b (m, d), and k(x, y) = (x·y / d + 1)³,

    FID = ‖μ_a − μ_b‖² + Tr Σ_a + Tr Σ_b − 2 Tr (Σ_a Σ_b)^½    (Heusel et al. 2017),
    KID = mean_{i≠j} k(a_i, a_j) + mean_{i≠j} k(b_i, b_j) − 2 mean_{i,j} k(a_i, b_j)    (Bińkowski et al. 2018).

With AᵀA = Σ_a and BᵀB = Σ_b, centred features or Cholesky factors, Tr (Σ_a Σ_b)^½ is the nuclear norm ‖A Bᵀ‖_*. Both
intervals are jackknives over both sets at once, row i in group i modulo 20.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import svdvals
from scipy.linalg.lapack import dpstrf
from torch import Tensor

from isodiff.metrics.measure import GROUPS, Measurement, finite, over_points

Array = NDArray[np.float64]
Rows = NDArray[np.bool_]
Facts = Mapping[str, Any] | None


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Return the squared Fréchet distance of Gaussians with the moments (n − 1) of two samples, (n, d) and (m, d)."""
    a, b = _check_features(a, b, 2)
    return _frechet_of_rows(a, b)(np.ones(len(a), bool), np.ones(len(b), bool))


def kernel_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Return the unbiased squared maximum mean discrepancy with the cubic kernel; (n, d) and (m, d), n, m ≥ 2."""
    a, b = _check_features(a, b, 2)
    return float(_combine(_kernel_blocks(a, b, min(len(a), len(b), GROUPS)), np.sum))


def fid(real: ArrayLike, generated: ArrayLike, *, seed: int = 0, protocol: Facts = None) -> Measurement:
    """Measure FID of features, (n, d) and (m, d), n, m ≥ 20, rows in random order; the interval is at these sizes."""
    real, generated = _check_features(real, generated, GROUPS)
    distance = _frechet_of_rows(real, generated)
    kept = [(np.arange(len(real)) % GROUPS != g, np.arange(len(generated)) % GROUPS != g) for g in range(-1, GROUPS)]
    value, *replicates = [distance(*rows) for rows in kept]  # group −1 has no rows: nothing is left out
    return Measurement.from_jackknife("fid", value, replicates, **_facts(real, generated, seed, protocol))


def kid(real: ArrayLike, generated: ArrayLike, *, seed: int = 0, protocol: Facts = None) -> Measurement:
    """Measure KID as `fid` is measured: one U-statistic of all rows, where torch-fidelity averages random subsets."""
    real, generated = _check_features(real, generated, GROUPS)
    blocks = _kernel_blocks(real, generated, GROUPS)
    without_each = _combine(blocks, lambda block: block.sum() - block.sum(0) - block.sum(1) + np.diag(block))
    value = _combine(blocks, np.sum)
    return Measurement.from_jackknife("kid", value, without_each, **_facts(real, generated, seed, protocol))


def precision_recall(
    real: ArrayLike, generated: ArrayLike, *, seed: int = 0, protocol: Facts = None, neighbours: int = 3
) -> dict[str, Measurement]:
    """Measure what share of each set of features lies among the other (Kynkäänniemi et al. 2019, by torch-fidelity).

    A row is among a set if it is no farther from a member than that is from its own k-th neighbour. ``precision`` is
    the share of generated rows among the real ones, ``recall``, which sees lost variety, that of real rows among the
    generated ones. Both depend on n and have no interval here.
    """
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    real, generated = _check_features(real, generated, neighbours + 2)
    found = calculate_precision_recall_full(torch.from_numpy(generated), torch.from_numpy(real), neighbours)
    facts = _facts(real, generated, seed, {**(protocol or {}), "neighbours": neighbours})
    facts["protocol"].pop("groups")
    names = ("precision", "recall")
    return {n: Measurement(name=n, value=v, interval=None, **facts) for n, v in zip(names, found, strict=True)}


def _facts(real: Array, generated: Array, seed: int, protocol: Facts) -> dict[str, Any]:
    facts = {**(protocol or {}), "num_real": len(real), "num_features": real.shape[1], "groups": GROUPS}
    return {"n": len(generated), "unit": "images", "seed": seed, "protocol": facts}


def fid_curve(real: ArrayLike, generated: ArrayLike, *, repeats: int = 2, seed: int = 0) -> dict[str, Any]:
    """Return FID at n/8, n/4, n/2 and n rows and its limit, the intercept of a line in 1/n (FID∞, Chong & Forsyth).

    Both sets are shrunk, in `repeats` random orders. The intercept is free of bias once n exceeds d.
    """
    real, generated = _check_features(real, generated, 4)
    sizes = sorted({max(2, min(len(real), len(generated)) // parts) for parts in (8, 4, 2, 1)})
    random = np.random.default_rng(seed)
    orders = [(random.permutation(real), random.permutation(generated)) for _ in range(repeats)]
    values = np.array([[frechet_distance(a[:size], b[:size]) for size in sizes] for a, b in orders])
    slopes, intercepts = np.polyfit(1 / np.array(sizes), values.T, 1)  # of each repeat; their mean is the means' line
    line = {"intercept": float(intercepts.mean()), "slope": float(slopes.mean()), "intercepts": intercepts.tolist()}
    facts = {"num_features": real.shape[1], "repeats": repeats, "seed": seed}
    return {"sizes": sizes, "values": values.tolist(), "mean": values.mean(0).tolist(), **line, **facts}


def extract_features(images: NDArray[np.uint8], extractor: Callable[[Tensor], Tensor]) -> NDArray[np.float32]:
    """Return the features (N, d) of images (N, 1 or 3, H, W) by such as `inception_features`, kept by their digest."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        got = f"{getattr(images, 'dtype', type(images).__name__)} {getattr(images, 'shape', '')}"
        raise ValueError(f"images must be a uint8 array (N, 1 or 3, H, W) with N ≥ 1; got {got}")

    def compute(chunk: NDArray[np.uint8], start: int) -> dict[str, np.ndarray]:
        batches = torch.from_numpy(np.ascontiguousarray(chunk)).split(16)
        return {"features": np.concatenate([extractor(batch).cpu().numpy() for batch in batches])}

    return over_points(compute, images, size=64, what="features", extractor=dict(extractor.protocol))["features"]


def _frechet_of_rows(a: Array, b: Array) -> Callable[[Rows, Rows], float]:
    """Return FID as a function of the rows that are kept."""
    offset = b.mean(0)  # FID is invariant under translation; sums of squares are exact near the mean
    a, b = a - offset, b - offset
    few = len(a) * len(b) < a.shape[1] ** 2  # then the centred features are the smaller roots
    sums_a, sums_b = (None, None) if few else (a.T @ a, b.T @ b)

    def root(x: Array, sums: Array | None, rows: Rows) -> Array:
        n, mean, dropped = rows.sum(), x[rows].mean(0), x[~rows]
        if few:
            return (x[rows] - mean) / np.sqrt(n - 1)
        covariance = (sums - dropped.T @ dropped - n * np.outer(mean, mean)) / (n - 1)
        factor, pivots, rank, _ = dpstrf(covariance)  # pivoted, so that a singular covariance has a root as well
        unpivoted = np.empty_like(factor[:rank])
        unpivoted[:, pivots - 1] = np.triu(factor)[:rank]
        return unpivoted

    def distance(rows_a: Rows, rows_b: Rows) -> float:
        kept_a, kept_b = a[rows_a], b[rows_b]
        traces = kept_a.var(0, ddof=1).sum() + kept_b.var(0, ddof=1).sum()
        product = root(a, sums_a, rows_a) @ root(b, sums_b, rows_b).T
        root_trace = svdvals(product, overwrite_a=True, check_finite=False).sum() if product.size else 0.0
        return float(np.square(kept_a.mean(0) - kept_b.mean(0)).sum() + traces - 2 * root_trace)

    return distance


def _combine(blocks: list[tuple[int, Array, Array]], reduce: Callable[[Array], Array]) -> Array:
    return sum(sign * reduce(sums) / reduce(counts) for sign, sums, counts in blocks)


def _kernel_blocks(a: Array, b: Array, groups: int) -> list[tuple[int, Array, Array]]:
    """Sum the kernel over the pairs of rows between any two groups: the sign of a term of KID, its sums, its counts."""

    def block_sums(x: Array, y: Array, *, within: bool) -> tuple[Array, Array]:
        group_x, group_y = np.arange(len(x)) % groups, np.arange(len(y)) % groups
        sums, counts = np.zeros((groups, groups)), np.outer(np.bincount(group_x), np.bincount(group_y))
        for g in range(groups):
            u = x[g::groups] @ y.T / x.shape[1] + 1
            kernel = u * u * u
            if within:  # a row is no pair with itself
                np.put_along_axis(kernel, np.arange(g, len(x), groups)[:, None], 0, 1)
            sums[g] = np.bincount(group_y, kernel.sum(0))
        return sums, counts - np.diag(np.bincount(group_x)) if within else counts

    pairs = ((1, a, a, True), (1, b, b, True), (-2, a, b, False))
    return [(sign, *block_sums(x, y, within=within)) for sign, x, y, within in pairs]


def _check_features(a: ArrayLike, b: ArrayLike, needed: int) -> tuple[Array, Array]:
    """Return two sets of features in float64 if each has the rows needed, finite and of one dimension."""
    a, b = finite(a, "first features", needed, 1), finite(b, "second features", needed, 1)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features must have one dimension; got {a.shape[1]} and {b.shape[1]}")
    return a, b
