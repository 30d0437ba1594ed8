r"""Shape of paths in a space of known factors, z₀, …, z_N ∈ ℝᴷ: do they go straight from one end to the other?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def excess_variation(factors: ArrayLike) -> NDArray[np.floating]:
    """Return how far each factor travels beyond what its ends require, ``Σⱼ |zⱼ₊₁ − zⱼ| − |z_N − z₀|``.

    Args:
        factors: Factors along each path, (P, N + 1, K), with N ≥ 1.

    Returns:
        (P, K), not negative; zero for a factor that never turns back. A path between two smiles that stops smiling on
        the way travels down and up again.

    Raises:
        ValueError: If the shape is another, or values are not finite.

    Note:
        Errors of the factors only ever add: independent ones of standard deviation s add up to 1.13 s a step.
    """
    z = _check(factors)
    return np.maximum(np.abs(np.diff(z, axis=1)).sum(axis=1) - np.abs(z[:, -1] - z[:, 0]), 0)


def overshoot(factors: ArrayLike) -> NDArray[np.floating]:
    """Return how far each factor leaves the range between its ends; above (below) and below (above) do not add up.

    Args:
        factors: As `excess_variation`.

    Returns:
        (P, K), not negative, at most half the excess variation. Errors of the factors hardly add: it is the robust
        companion of the excess, blind to wiggles between the ends.

    Raises:
        ValueError: As `excess_variation`.
    """
    z = _check(factors)
    ends = z[:, [0, -1]]
    return np.maximum(z.max(axis=1) - ends.max(axis=1), ends.min(axis=1) - z.min(axis=1))


def straightness(factors: ArrayLike) -> NDArray[np.floating]:
    """Return chord over length of each path in factor space, ``‖z_N − z₀‖ / Σⱼ ‖zⱼ₊₁ − zⱼ‖``.

    Args:
        factors: As `excess_variation`.

    Returns:
        (P,) between 0 (a closed loop) and 1 (a straight line, at whatever speed).

    Raises:
        ValueError: As `excess_variation`, or if a path does not move at all.
    """
    z = _check(factors)
    length = np.linalg.norm(np.diff(z, axis=1), axis=2).sum(axis=1)
    if (length == 0).any():
        raise ValueError(f"path {int(length.argmin())} has length zero in factor space; expected paths that move")
    return np.minimum(np.linalg.norm(z[:, -1] - z[:, 0], axis=1) / length, 1)


def factor_path_length(factors: ArrayLike) -> NDArray[np.floating]:
    """Return the mean squared speed of each path in factor space, ``N Σⱼ ‖zⱼ₊₁ − zⱼ‖²``.

    What the perceptual path length is to LPIPS, with the true factors in its place: at least the squared length, with
    equality at constant speed.

    Args:
        factors: As `excess_variation`.

    Returns:
        (P,), not negative.

    Raises:
        ValueError: As `excess_variation`.
    """
    steps = np.diff(_check(factors), axis=1)
    return steps.shape[1] * np.square(steps).sum(axis=(1, 2))


def _check(factors: ArrayLike) -> NDArray[np.floating]:
    z = np.asarray(factors, dtype=float)
    if z.ndim != 3 or z.shape[1] < 2 or 0 in z.shape:
        raise ValueError(f"factors must be (paths, at least 2 points, factors); got shape {z.shape}")
    if not np.isfinite(z).all():
        raise ValueError(f"factors must be finite; got {np.count_nonzero(~np.isfinite(z))} NaN or infinite values")
    return z
