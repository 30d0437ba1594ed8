"""Distances between two sets of features: Fréchet's, behind FID, and the maximum mean discrepancy, behind KID.

With the moments μ and Σ of two samples, rows of a (n, d) and b (m, d), and the kernel k(x, y) = (x·y / d + 1)³,

    FID = ‖μ_a − μ_b‖² + Tr Σ_a + Tr Σ_b − 2 Tr (Σ_a Σ_b)^½    (Heusel et al. 2017),
    KID = mean_{i≠j} k(a_i, a_j) + mean_{i≠j} k(b_i, b_j) − 2 mean_{i,j} k(a_i, b_j)    (Bińkowski et al. 2018).

With any roots of the covariances, AᵀA = Σ_a and BᵀB = Σ_b, the last term of FID is a nuclear norm: Tr (Σ_a Σ_b)^½ =
‖A Bᵀ‖_*. The centred features are such roots, and so are Cholesky factors; the smaller product is taken.

Both distances are also needed without each of some groups of rows; what these share is computed once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import svdvals
from scipy.linalg.lapack import dpstrf

Array = NDArray[np.float64]
Rows = NDArray[np.bool_]


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Return the squared Fréchet distance of the Gaussians with the moments of two samples (FID on Inception features).

    Args:
        a: (n, d) features, n ≥ 2.
        b: (m, d) features, m ≥ 2.

    Returns:
        The distance, ≥ 0 up to rounding; covariances with n − 1 in the denominator, in float64.

    Raises:
        ValueError: For fewer rows, different d, or values that are not finite.

    Note:
        Biased upwards by O(1/n + 1/m). Cost: singular values of an n × m or d × d matrix, the smaller of the two.
    """
    a, b = check_features(a, b, 2)
    return frechet_of_rows(a, b)(np.ones(len(a), bool), np.ones(len(b), bool))


def kernel_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Return the unbiased squared maximum mean discrepancy with the cubic kernel (KID on Inception features).

    Args:
        a: (n, d) features, n ≥ 2.
        b: (m, d) features, m ≥ 2.

    Returns:
        The U-statistic, whose mean is 0 for equal distributions and which may be negative; in float64.

    Raises:
        ValueError: For fewer rows, different d, or values that are not finite.
    """
    a, b = check_features(a, b, 2)
    return float(_combine(_kernel_blocks(a, b, min(len(a), len(b), 20)), np.sum))


def frechet_of_rows(a: Array, b: Array) -> Callable[[Rows, Rows], float]:
    """Return FID as a function of the rows that are kept, with what all of them share made once."""
    offset = b.mean(0)  # FID is invariant under translation; sums of squares are exact near the mean
    a, b = a - offset, b - offset
    root_trace = _gram_root_trace(a, b) if len(a) * len(b) < a.shape[1] ** 2 else _covariance_root_trace(a, b)

    def distance(rows_a: Rows, rows_b: Rows) -> float:
        kept_a, kept_b = a[rows_a], b[rows_b]
        traces = kept_a.var(0, ddof=1).sum() + kept_b.var(0, ddof=1).sum()
        return float(np.square(kept_a.mean(0) - kept_b.mean(0)).sum() + traces - 2 * root_trace(rows_a, rows_b))

    return distance


def _gram_root_trace(a: Array, b: Array) -> Callable[[Rows, Rows], float]:
    """Tr (Σ_a Σ_b)^½ from the centred features themselves: n × m products, of which replicates are parts."""
    products = a @ b.T

    def root_trace(rows_a: Rows, rows_b: Rows) -> float:
        kept = products[np.ix_(rows_a, rows_b)]
        kept -= kept.mean(0)
        kept -= kept.mean(1, keepdims=True)
        n, m = kept.shape
        return svdvals(kept, overwrite_a=True, check_finite=False).sum() / np.sqrt((n - 1) * (m - 1))

    return root_trace


def _covariance_root_trace(a: Array, b: Array) -> Callable[[Rows, Rows], float]:
    """Tr (Σ_a Σ_b)^½ from d × d factors: the few rows that a replicate leaves out are taken from the sums of all."""
    sums = [rows.T @ rows for rows in (a, b)]

    def root(x: Array, total: Array, rows: Rows) -> Array:
        n, mean, dropped = rows.sum(), x[rows].mean(0), x[~rows]
        covariance = (total - dropped.T @ dropped - n * np.outer(mean, mean)) / (n - 1)
        factor, pivots, rank, _ = dpstrf(covariance)  # pivoted, so that a singular covariance has a root as well
        unpivoted = np.empty_like(factor[:rank])
        unpivoted[:, pivots - 1] = np.triu(factor)[:rank]
        return unpivoted

    def root_trace(rows_a: Rows, rows_b: Rows) -> float:
        product = root(a, sums[0], rows_a) @ root(b, sums[1], rows_b).T
        return svdvals(product, overwrite_a=True, check_finite=False).sum() if product.size else 0.0

    return root_trace


def kernel_leave_out(a: Array, b: Array, groups: int) -> tuple[float, Array]:
    """Return KID of all rows and, (groups,), without each group."""
    blocks = _kernel_blocks(a, b, groups)
    without_each = _combine(blocks, lambda block: block.sum() - block.sum(0) - block.sum(1) + np.diag(block))
    return float(_combine(blocks, np.sum)), without_each


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


def check_features(a: ArrayLike, b: ArrayLike, needed: int) -> tuple[Array, Array]:
    """Return two sets of features in float64 if each has the rows needed, finite and of one dimension."""
    checked = []
    for name, rows in (("first", a), ("second", b)):
        rows = np.asarray(rows, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] < 1:
            raise ValueError(f"the {name} features must have shape (n, d); got {rows.shape}")
        if len(rows) < needed:
            raise ValueError(f"the {name} features have {len(rows)} rows; at least {needed} are needed")
        if not np.isfinite(rows).all():
            raise ValueError(f"the {name} features must be finite; got {(~np.isfinite(rows)).sum()} NaN or infinite")
        checked.append(rows)
    if checked[0].shape[1] != checked[1].shape[1]:
        raise ValueError(f"features must have one dimension; got {checked[0].shape[1]} and {checked[1].shape[1]}")
    return checked[0], checked[1]
