"""Bootstrap and jackknife intervals: how far a number from a few runs can be trusted (Efron 1979, Tukey 1958)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap
from scipy.stats import t as student

Statistic = Callable[..., NDArray[np.floating] | float]


def bootstrap_interval(
    values: ArrayLike,
    statistic: Statistic = np.mean,
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a statistic of independent values.

    Args:
        values: Independent observations, one a seed or sample, (n,) with ``n ≥ 2``.
        statistic: Function of the values; if it has an ``axis`` argument, as numpy's have, resamples go at once.
        level: Coverage aimed at, between 0 and 1.
        num_resamples: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: If there are fewer than two values, one is not finite, or an option is out of range.

    Note:
        With few values (n ≈ 10) percentile intervals are somewhat narrow: about 90 % of nominal 95 % ones cover.
    """
    observed = _check(values, "values", level, num_resamples)
    return _interval((observed,), statistic, level, num_resamples, seed)


def paired_bootstrap_interval(
    first: ArrayLike,
    second: ArrayLike,
    statistic: Statistic = np.mean,
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the interval of a statistic of the differences ``first − second`` between runs that share a seed.

    Args:
        first: One observation a seed, (n,).
        second: Observations at the same seeds, (n,).
        statistic: As in `bootstrap_interval`.
        level: As in `bootstrap_interval`.
        num_resamples: As in `bootstrap_interval`.
        seed: As in `bootstrap_interval`.

    Returns:
        Lower and upper end; an interval without zero is a difference.

    Raises:
        ValueError: If the lengths differ, or as `bootstrap_interval`.
    """
    one, other = _check_pair(first, second, level, num_resamples)
    return _interval((one - other,), statistic, level, num_resamples, seed)


def paired_ratio_interval(
    first: ArrayLike, second: ArrayLike, *, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the interval of the ratio of means ``mean(first) / mean(second)`` of paired observations.

    Args:
        first: One observation a pair, (n,).
        second: Observations of the same pairs, (n,), with a positive mean.
        level: As in `bootstrap_interval`.
        num_resamples: As in `bootstrap_interval`.
        seed: As in `bootstrap_interval`.

    Returns:
        Lower and upper end; an interval without one is a difference.

    Raises:
        ValueError: If the lengths differ, or as `bootstrap_interval`.
    """
    one, other = _check_pair(first, second, level, num_resamples)

    def ratio(a: NDArray[np.floating], b: NDArray[np.floating], axis: int = -1) -> NDArray[np.floating]:
        return np.mean(a, axis=axis) / np.mean(b, axis=axis)

    return _interval((one, other), ratio, level, num_resamples, seed)


def jackknife_interval(estimate: float, replicates: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of any smooth statistic from estimates that each leave out one of G equal groups of units.

    With ``θ₋g`` the estimate without group g, ``se² = (G − 1)/G · Σ (θ₋g − mean θ₋)²``, and the interval is
    ``θ ± t · se`` with Student's t of G − 1 degrees of freedom (Tukey 1958).

    Args:
        estimate: The statistic ``θ`` of all units.
        replicates: The estimates ``θ₋g``, (G,) with ``G ≥ 2``. For a difference of two models on the same units, the
            difference of their replicates.
        level: As in `bootstrap_interval`.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: As `bootstrap_interval`, or if the estimate is not finite.

    Note:
        A bootstrap draws some units twice; statistics that see the rank of a sample, such as the Fréchet distance, are
        then biased. The jackknife draws nothing twice. It fails for statistics that are not smooth, such as a median.
    """
    left_out = _check(replicates, "replicates", level, 1)
    if not np.isfinite(estimate):
        raise ValueError(f"estimate must be finite, got {estimate}")
    groups = left_out.size
    error = np.sqrt((groups - 1) / groups * np.square(left_out - left_out.mean()).sum())
    reach = float(student.ppf((1 + level) / 2, groups - 1) * error)
    return float(estimate) - reach, float(estimate) + reach


def _check(values: ArrayLike, name: str, level: float, num_resamples: int) -> NDArray[np.floating]:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or array.size < 2:
        raise ValueError(f"{name} must be one-dimensional with at least 2 entries, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {np.count_nonzero(~np.isfinite(array))} NaN or infinite entries")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")
    return array


def _check_pair(
    first: ArrayLike, second: ArrayLike, level: float, num_resamples: int
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    one, other = (_check(v, n, level, num_resamples) for v, n in ((first, "first"), (second, "second")))
    if one.shape != other.shape:
        raise ValueError(f"first and second must be paired, got {one.size} and {other.size} values")
    return one, other


def _interval(
    values: tuple[NDArray[np.floating], ...], statistic: Statistic, level: float, num_resamples: int, seed: int
) -> tuple[float, float]:
    result = bootstrap(
        values,
        statistic,
        paired=True,
        confidence_level=level,
        n_resamples=num_resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
