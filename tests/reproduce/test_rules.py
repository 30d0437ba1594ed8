"""Intervals over units, the rules and the correction: against Student by hand, and at the boundaries."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from isodiff.reproduce.rules import Effect, Estimate, Within, holm

from ..geometry.tensors import refusals

VALUES = st.lists(st.floats(-2, 2), min_size=2, max_size=10).map(lambda v: [round(x, 6) for x in v])
VALUES = VALUES.filter(lambda values: np.std(values) > 1e-3)
close = partial(pytest.approx, rel=1e-6, abs=1e-12)
REPRODUCED, SMALLER, NOT, UNDECIDED = "reproduced", "smaller", "not reproduced", "undecided"


def one_sided(values: list[float], bound: float, alternative: str) -> float:
    """Return the p-value of Student's one-sided test, by hand."""
    t = (np.mean(values) - bound) / (np.std(values, ddof=1) / math.sqrt(len(values)))
    return float(stats.t.sf(t if alternative == "greater" else -t, len(values) - 1))


@given(VALUES)
def test_intervals_are_students(values: list[float]) -> None:
    found, mean, error = Estimate.of(values), np.mean(values), np.std(values, ddof=1) / math.sqrt(len(values))
    reach = stats.t.ppf(0.975, len(values) - 1) * error
    assert found.mean == pytest.approx(mean)
    assert found.error == pytest.approx(error, rel=1e-9)
    assert found.interval == pytest.approx((mean - reach, mean + reach), rel=1e-9, abs=1e-12)


@given(VALUES, st.sampled_from([-1, 1]), st.floats(0.01, 1))
def test_an_effect_follows_from_its_interval_and_estimate(values: list[float], sign: int, smallest: float) -> None:
    found = Estimate.of(values)
    verdict, p = Effect(sign, smallest).decide(found)
    low, high = sorted(sign * end for end in found.interval)
    if low > 0:
        assert verdict == (REPRODUCED if sign * found.mean >= smallest else SMALLER)
    else:
        assert verdict == (NOT if high < smallest else UNDECIDED)
    assert p == close(min(1, 2 * one_sided(values, 0.0, "greater" if sign > 0 else "less")))
    assert (p <= 0.05) == (low > 0)


@pytest.mark.parametrize(("n", "rate", "expected"), [(5, 0.05, 1.68), (5, 0.005, 3.16), (3, 0.05, 3.26)])
def test_power_is_that_of_simulated_trainings(n: int, rate: float, expected: float) -> None:
    values = np.random.default_rng(0).normal(size=(20_000, n))
    found = Estimate.of(values[0] / np.std(values[0], ddof=1)).detectable(rate)
    assert found == pytest.approx(expected, abs=0.01)
    low, _ = stats.ttest_1samp(values + found, 0.0, axis=1).confidence_interval(1 - rate)
    assert np.mean(low > 0) == pytest.approx(0.8, abs=0.01)


@given(VALUES, st.floats(-2, 1.5), st.floats(0.01, 3))
def test_bounds_follow_from_interval_and_tests(values: list[float], low: float, width: float) -> None:
    found, high = Estimate.of(values).interval, low + width
    verdict, p = Within(low, high).decide(Estimate.of(values))
    if found[1] < low or high < found[0]:
        assert verdict == NOT
    elif low <= found[0] <= found[1] <= high:
        assert verdict == REPRODUCED
    else:
        assert verdict == UNDECIDED
    p_inside = 2 * max(one_sided(values, low, "greater"), one_sided(values, high, "less"))
    assert p == close(min(1, p_inside))
    assert (p <= 0.05 + 1e-9) or verdict != REPRODUCED


@pytest.mark.parametrize(
    ("rule", "value", "verdict"),
    [
        (Effect(1, 0.5), 0.5, REPRODUCED),
        (Effect(1, 0.5), 0.25, SMALLER),
        (Effect(1, 0.5), 0.0, NOT),
        (Effect(-1, 0.25), 0.5, NOT),
        (Within(0.5, 0.75), 0.5, REPRODUCED),
        (Within(0.25, 0.5), 0.5, REPRODUCED),
        (Within(0.5, 0.75), 0.375, NOT),
    ],
)
def test_without_scatter_zero_is_no_effect_and_bounds_count(rule: Effect | Within, value: float, verdict: str) -> None:
    assert Estimate.of([value] * 3).interval == (value, value)
    assert rule.decide(Estimate.of([value] * 3))[0] == verdict


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_step_by_step(p_values: list[float]) -> None:
    """Reject the smallest of m if m p ≤ α, then the next if (m − 1) p ≤ α, and stop at the first that fails."""
    for rate, adjusted in ((rate, holm(p_values)) for rate in (0.05, 0.3)):
        rejected, order = set(), np.argsort(p_values, kind="stable")
        for rank, index in enumerate(order):
            if p_values[index] * (len(p_values) - rank) > rate:
                break
            rejected.add(int(index))
        assert {i for i, p in enumerate(adjusted) if p <= rate} == rejected


test_numbers_out_of_range_are_refused = refusals(
    (lambda: Estimate.of([0.5]), r"needs at least 2 finite numbers, one a unit; got \[0\.5\]"),
    (lambda: Estimate.of([0.5, math.nan]), r"got \[0\.5, nan\]"),
    (lambda: Effect(0, 0.1), r"should be -1 or 1 \[type=literal_error, input_value=0"),
    (lambda: Effect(-1, -0.1), "should be greater than 0"),
    (lambda: Within(0.5, 0.5), "low must be below high; got 0.5 and 0.5"),
    (lambda: Within(math.nan, 0.5), "got nan and 0.5"),
)
