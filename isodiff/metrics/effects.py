r"""What a move along a direction does to known factors: how much reaches its target, and how much spills over.

A direction d at a latent x is followed to both sides, and z(γ) ∈ [−1, 1]ᴷ are the factors of the image at γ ∈ {0, ±γ₁,
…, ±γ_L} with 0 < γ₁ < … < γ_L. The smaller half of these moves *chooses*, the larger half *scores*:

    target  j = argmax_k |c_k|,   c = mean_{small γ > 0} (z(γ) − z(−γ)),   and d is turned so that c_j > 0,
    change  Δ_k = mean_{large |γ|} |z_k(γ) − z_k(0)| / 2    (a factor has a range of 2),
    share   Δ_j / Σ_k Δ_k,   spill-over  1 − Δ_j / Σ_k Δ_k.

No image has a part in both, so that an error which looks like an effect cannot first choose its factor and then be
counted for it: where there is nothing but equal errors, the expected share is 1/K.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]
Target = Literal["latent", "shared"]
"""Who chooses the target factor: each latent for itself, or the other half of the latents for all."""

_RANGE = 2.0


@dataclasses.dataclass(frozen=True, eq=False)
class Effects:
    """Effects of moves along one direction at each of n latents, on K factors.

    Attributes:
        slope: (n, K) least-squares slope of each factor over γ, all moves, in ranges per unit of γ and for the
            direction as it was given.
        variation: (n, K) total variation of each factor along γ, all moves, in ranges.
        change: (n, K) Δ of the scoring moves, in ranges.
        target: (n,) index of the target factor.
        sign: (n,) ±1: the direction times this makes its target rise.
        monotone: (n,) whether the target rises by more than the tolerance over the scoring moves and 0, and on the way
            never falls by more than the tolerance below where it has been.
        correlation: (n,) Spearman's, of γ and the target over the same images; 0 where the target is constant.
    """

    slope: Array
    variation: Array
    change: Array
    target: NDArray[np.intp]
    sign: Array
    monotone: NDArray[np.bool_]
    correlation: Array

    @property
    def target_change(self) -> Array:
        """Change of the target, (n,), in ranges."""
        return np.take_along_axis(self.change, self.target[:, None], axis=1)[:, 0]

    @property
    def other_change(self) -> Array:
        """Summed changes of all other factors, (n,), in ranges."""
        return self.change.sum(axis=1) - self.target_change

    @property
    def share(self) -> Array:
        """Share of the target in all change, (n,), 0 to 1."""
        return self.target_change / self.change.sum(axis=1)

    @property
    def spill_over(self) -> Array:
        """Share of all other factors, (n,): ``1 − share``."""
        return 1 - self.share

    @property
    def largest_share(self) -> Array:
        """Share of whichever factor the scoring moves change most, (n,): chosen to flatter, an upper end of `share`."""
        return self.change.max(axis=1) / self.change.sum(axis=1)


def effects(factors: ArrayLike, gammas: ArrayLike, *, target: Target = "latent", tolerance: float = 0.05) -> Effects:
    """Return the effects of moves along one direction at each of n latents.

    Args:
        factors: Factors along each move, (n, G, K), each of range [−1, 1].
        gammas: Sizes of the moves, (G,), in any order: 0 and at least two sizes to both sides, ``{0, ±γ₁, …, ±γ_L}``.
            Of these ⌊L/2⌋ choose.
        target: ``"latent"`` lets the small moves at a latent choose its target: for directions that differ from latent
            to latent. ``"shared"`` asks for one meaning: the target of an even row is the factor that changes most over
            all odd rows, and the other way round. The small moves turn the direction in both cases.
        tolerance: Of monotonicity, in factors (range 2): what errors of the factors explain.

    Returns:
        The effects.

    Raises:
        ValueError: If shapes or sizes of moves are others, values are not finite, no factor changes at some latent,
            tolerance is negative, or there are fewer than two latents for a shared target.

    Note:
        Where small moves show little more than errors the choice is a guess, and the share lies below the one of the
        best factor; `Effects.largest_share` lies above it. Errors of the factors that all images of a move have in
        common survive the split.
    """
    z, gamma = _check(factors, gammas, target, tolerance)
    n, levels = len(z), len(gamma) // 2
    small = levels // 2
    up, down, middle = z[:, levels + 1 :], z[:, levels - 1 :: -1], z[:, [levels]]  # both outwards from γ = 0
    chosen = (up - down)[:, :small].mean(axis=1)
    large = np.concatenate([up[:, small:], down[:, small:]], axis=1)
    change = np.abs(large - middle).mean(axis=1) / _RANGE
    if (still := change.sum(axis=1) == 0).any():
        raise ValueError(f"the moves must change a factor; those of latent {int(still.argmax())} change none")

    if target == "latent":
        index = np.abs(chosen).argmax(axis=1)
    else:
        odd = np.arange(n) % 2
        index = np.array([change[odd == 1].mean(axis=0).argmax(), change[odd == 0].mean(axis=0).argmax()])[odd]
    sign = np.where(np.take_along_axis(chosen, index[:, None], axis=1)[:, 0] < 0, -1.0, 1.0)

    scored = np.abs(np.arange(-levels, levels + 1))
    scored = (scored == 0) | (scored > small)
    along = sign[:, None] * np.take_along_axis(z, index[:, None, None], axis=2)[:, scored, 0]
    fall = (np.maximum.accumulate(along, axis=1) - along).max(axis=1)
    centred = gamma - gamma.mean()
    return Effects(
        slope=np.einsum("g,ngk->nk", centred, z) / np.square(centred).sum() / _RANGE,
        variation=np.abs(np.diff(z, axis=1)).sum(axis=1) / _RANGE,
        change=change,
        target=index,
        sign=sign,
        monotone=(fall <= tolerance) & (along[:, -1] - along[:, 0] > tolerance),
        correlation=_rank_correlation(along),
    )


def _rank_correlation(rows: Array) -> Array:
    """Spearman's correlation of each row with its positions, 0 for a constant row."""
    position = np.arange(rows.shape[1]) - (rows.shape[1] - 1) / 2
    ranks = rankdata(rows, axis=1) - (rows.shape[1] + 1) / 2
    norm = np.sqrt(np.square(ranks).sum(axis=1) * np.square(position).sum())
    return np.divide(ranks @ position, norm, out=np.zeros(len(rows)), where=norm > 0)


def check_gammas(gammas: ArrayLike) -> Array:
    """Return sizes of moves in ascending order if there are 0 and two or more to both sides; ValueError if not."""
    gamma = np.sort(np.asarray(gammas, dtype=float))
    fits = gamma.ndim == 1 and gamma.size >= 5 and gamma.size % 2 == 1 and np.isfinite(gamma).all()
    if not fits or not np.allclose(gamma, -gamma[::-1], rtol=1e-6, atol=0) or (np.diff(gamma) <= 0).any():
        raise ValueError(
            f"gammas must hold 0 and the same two or more sizes to both sides, such as −2, −1, 0, 1, 2; got {gammas}"
        )
    return gamma


def _check(factors: ArrayLike, gammas: ArrayLike, target: str, tolerance: float) -> tuple[Array, Array]:
    """Return factors and moves in ascending order of γ."""
    gamma = check_gammas(gammas)
    z = np.asarray(factors, dtype=float)
    if z.ndim != 3 or z.shape[1] != gamma.size or 0 in z.shape:
        raise ValueError(f"factors must have shape (n, {gamma.size}, K), one row a move; got {z.shape}")
    if not np.isfinite(z).all():
        raise ValueError(f"factors must be finite; got {np.count_nonzero(~np.isfinite(z))} NaN or infinite values")
    if target not in get_args(Target):
        raise ValueError(f"target must be one of {', '.join(get_args(Target))}; got {target!r}")
    if target == "shared" and len(z) < 2:
        raise ValueError("a shared target needs at least 2 latents, one to choose for the other; got 1")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative; got {tolerance}")
    return z[:, np.argsort(np.asarray(gammas, dtype=float))], gamma
