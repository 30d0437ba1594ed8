"""Effects of moves on factors: known directions, noise that must not flatter, and what does not depend on order."""

from __future__ import annotations

from math import erfc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from isodiff.metrics.effects import effects

GAMMAS = np.array([-4.0, -3, -2, -1, 0, 1, 2, 3, 4])


def straight(slopes: np.ndarray, offset: float = 0.0) -> np.ndarray:
    """Factors (n, G, K) that are linear in γ with the given slopes (n, K)."""
    return offset + slopes[:, None, :] * GAMMAS[None, :, None]


def test_a_direction_of_one_factor_spills_nothing() -> None:
    slopes = np.zeros((3, 5))
    slopes[[0, 1, 2], [4, 0, 2]] = [0.1, -0.2, 0.05]
    found = effects(straight(slopes), GAMMAS)
    assert found.target.tolist() == [4, 0, 2]
    assert found.sign.tolist() == [1, -1, 1]
    assert np.allclose(found.share, 1)
    assert np.allclose(found.spill_over, 0)
    assert np.allclose(found.target_change, [0.1 * 3.5 / 2, 0.2 * 3.5 / 2, 0.05 * 3.5 / 2])  # mean of 3 and 4, range 2
    assert np.allclose(found.other_change, 0)
    assert np.allclose(found.slope, slopes / 2)
    assert np.allclose(found.variation, np.abs(slopes) * 8 / 2)
    assert found.monotone.all()
    assert np.allclose(found.correlation, 1)


def test_an_equal_change_of_all_factors_is_shared_by_all() -> None:
    found = effects(straight(np.full((4, 5), 0.1) * np.array([1, -1, 1, 1, -1])), GAMMAS)
    assert np.allclose(found.share, 1 / 5)
    assert np.allclose(found.spill_over, 4 / 5)
    assert np.allclose(found.largest_share, 1 / 5)


def test_what_comes_back_on_both_sides_is_spill_over_and_no_target() -> None:
    """A factor that rises to both sides is changed by the move, but the direction does not steer it."""
    z = straight(np.array([[0.05, 0.0]]))
    z[:, :, 1] = 0.1 * np.abs(GAMMAS)
    found = effects(z, GAMMAS)
    assert found.target.tolist() == [0]
    assert found.share == pytest.approx(1 / 3)
    assert found.largest_share == pytest.approx(2 / 3)
    assert found.slope[0, 1] == pytest.approx(0)
    assert found.variation[0, 1] == pytest.approx(0.1 * 8 / 2)


def test_noise_gets_the_share_of_chance_and_no_more() -> None:
    """The choice knows nothing of what it is scored on; scored on the same moves it would flatter by a half."""
    z = 0.02 * np.random.default_rng(0).standard_normal((5_000, 9, 10))
    found = effects(z, GAMMAS)
    error = found.share.std() / len(z) ** 0.5
    assert abs(found.share.mean() - 1 / 10) < 4 * error
    assert found.largest_share.mean() > 1.5 / 10
    shared = effects(z, GAMMAS, target="shared")
    assert abs(shared.share.mean() - 1 / 10) < 4 * error
    assert abs(found.correlation.mean()) < 4 / (len(z) * 4) ** 0.5  # of 5 scored images: variance 1/4
    rise = erfc(0.05 / 0.02 / 2) / 2  # chance that one end lies above the other by more than the tolerance
    assert found.monotone.mean() < rise + 4 * (rise / len(z)) ** 0.5
    assert not effects(1e-3 * z, GAMMAS).monotone.any()


def test_a_shared_target_is_chosen_by_the_other_half() -> None:
    slopes = np.full((4, 3), 0.01)
    slopes[[0, 2], 0] = 0.1  # what even latents change most scores odd ones, and the other way round
    slopes[[1, 3], 1] = -0.1
    found = effects(straight(slopes), GAMMAS, target="shared")
    assert found.target.tolist() == [1, 0, 1, 0]
    assert np.allclose(found.share, 0.01 / 0.12)
    agreeing = effects(straight(np.tile(slopes[:1], (4, 1))), GAMMAS, target="shared")
    assert np.allclose(agreeing.share, 0.1 / 0.12)


def test_monotone_up_to_the_tolerance() -> None:
    rising = np.array([-0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4])
    dip = rising.copy()
    dip[7] = -0.04  # falls by 0.04 below the middle image
    turned = rising.copy()
    turned[-1] = 0.1
    z = np.stack([rising, -rising, dip, turned], axis=0)[:, :, None]
    assert effects(z, GAMMAS).monotone.tolist() == [True, True, True, False]
    assert effects(z, GAMMAS, tolerance=0.03).monotone.tolist() == [True, True, False, False]
    assert effects(z, GAMMAS, tolerance=0.8).monotone.tolist() == [False] * 4  # nothing rises by more than that
    assert effects(z, GAMMAS).sign.tolist() == [1, -1, 1, 1]


def test_rank_correlation_is_spearmans() -> None:
    z = np.random.default_rng(1).normal(size=(6, 9, 1)).round(1)  # with ties
    found = effects(z, GAMMAS)
    scored = [0, 1, 4, 7, 8]
    expected = [s * spearmanr(GAMMAS[scored], row[scored, 0]).statistic for s, row in zip(found.sign, z, strict=True)]
    assert np.allclose(found.correlation, expected)
    flat = np.zeros((1, 9, 2))
    flat[0, :, 0] = [0, 0, -1, -1, 0, 1, 1, 0, 0]  # chosen by the small moves, still on the large ones
    flat[0, :, 1] = 0.1 * GAMMAS
    assert effects(flat, GAMMAS).correlation.tolist() == [0]


@settings(max_examples=10)
@given(st.integers(0, 10_000))
def test_order_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    z = rng.uniform(-1, 1, (5, 9, 4))
    rows, moves, factors = rng.permutation(5), rng.permutation(9), rng.permutation(4)
    found, moved = effects(z, GAMMAS), effects(z[rows][:, moves][:, :, factors], GAMMAS[moves])
    assert np.allclose(moved.share, found.share[rows])
    assert np.array_equal(factors[moved.target], found.target[rows])
    assert np.array_equal(moved.monotone, found.monotone[rows])
    assert np.allclose(moved.correlation, found.correlation[rows])
    assert np.allclose(moved.slope, found.slope[rows][:, factors])
    assert np.allclose(moved.variation, found.variation[rows][:, factors])


@settings(max_examples=10)
@given(st.integers(0, 10_000))
def test_the_sign_of_a_direction_does_not_matter(seed: int) -> None:
    z = np.random.default_rng(seed).uniform(-1, 1, (5, 9, 4))
    found, reversed_ = effects(z, GAMMAS), effects(z[:, ::-1], GAMMAS)
    assert np.array_equal(found.target, reversed_.target)
    assert np.array_equal(found.sign, -reversed_.sign)
    assert np.array_equal(found.monotone, reversed_.monotone)
    assert np.allclose(found.share, reversed_.share)
    assert np.allclose(found.correlation, reversed_.correlation)
    assert ((found.share > 0) & (found.share <= found.largest_share)).all()


@pytest.mark.parametrize(
    "gammas", [[0, 1, 2, 3, 4], [-2, -1, 1, 2], [-1, 0, 1], [-2, -1, 0, 1, 3], [-2, -2, 0, 2, 2], [[0.0]], [0] * 5]
)
def test_moves_that_do_not_pair_are_refused(gammas: list) -> None:
    with pytest.raises(ValueError, match=r"gammas must hold 0 and the same two or more sizes to both sides.*got"):
        effects(np.zeros((2, 5, 3)), gammas)


def test_bad_input_is_refused() -> None:
    z = straight(np.full((2, 3), 0.1))
    with pytest.raises(ValueError, match=r"shape \(n, 9, K\), one row a move; got \(2, 8, 3\)"):
        effects(z[:, 1:], GAMMAS)
    with pytest.raises(ValueError, match="finite; got 1 NaN"):
        effects(np.where(np.arange(54).reshape(2, 9, 3) == 7, np.nan, z), GAMMAS)
    with pytest.raises(ValueError, match="those of latent 1 change none"):
        effects(z * np.array([1, 0]).reshape(2, 1, 1), GAMMAS)
    with pytest.raises(ValueError, match="latent, shared; got 'both'"):
        effects(z, GAMMAS, target="both")
    with pytest.raises(ValueError, match="at least 2 latents"):
        effects(z[:1], GAMMAS, target="shared")
    with pytest.raises(ValueError, match="tolerance must not be negative; got nan"):
        effects(z, GAMMAS, tolerance=float("nan"))
