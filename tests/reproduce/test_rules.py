"""Intervals over seeds, the two rules and the correction: against Student by hand, and at the boundaries."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from isodiff.reproduce.rules import RATE, Effect, Estimate, Within, survivors

VALUES = st.lists(st.floats(-2, 2), min_size=2, max_size=10).map(lambda v: [round(x, 6) for x in v])
VALUES = VALUES.filter(lambda values: np.std(values) > 1e-3)
close = partial(pytest.approx, rel=1e-6, abs=1e-12)
REPRODUCED, NOT, UNDERPOWERED = "reproduced", "not reproduced", "underpowered"


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


@given(VALUES, st.sampled_from([-1, 1]), st.floats(0, 1))
def test_an_effect_follows_from_its_interval_and_test(values: list[float], sign: int, smallest: float) -> None:
    verdict, p = Effect(sign, smallest).decide(Estimate.of(values))
    low, high = sorted(sign * end for end in Estimate.of(values).interval)
    away, towards = ("greater", "less") if sign > 0 else ("less", "greater")
    assert verdict == (NOT if high < smallest else REPRODUCED if low > 0 else UNDERPOWERED)
    if verdict != UNDERPOWERED:
        bound, alternative = (sign * smallest, towards) if verdict == NOT else (0.0, away)
        assert p / 2 == close(one_sided(values, bound, alternative))
    assert (p <= 0.05) == (verdict != UNDERPOWERED)


@given(VALUES, st.floats(-2, 1.5), st.floats(0.01, 3))
def test_bounds_follow_from_interval_and_tests(values: list[float], low: float, width: float) -> None:
    found, high = Estimate.of(values).interval, low + width
    verdict, p = Within(low, high).decide(Estimate.of(values))
    if found[1] < low or high < found[0]:
        assert verdict == NOT
        assert p / 2 == close(min(one_sided(values, low, "less"), one_sided(values, high, "greater")))
    elif low <= found[0] <= found[1] <= high:
        assert verdict == REPRODUCED
        assert p / 2 == close(max(one_sided(values, low, "greater"), one_sided(values, high, "less")))
    else:
        assert (verdict, p) == (UNDERPOWERED, 1.0)
    assert verdict == UNDERPOWERED or p <= 0.05 + 1e-9


@pytest.mark.parametrize(
    ("rule", "value", "verdict"),
    [
        (Effect(1, 0.5), 0.5, REPRODUCED),
        (Effect(1, 0.0), 0.0, UNDERPOWERED),
        (Effect(-1, 0.25), 0.5, NOT),
        (Within(0.5, 0.75), 0.5, REPRODUCED),
        (Within(0.25, 0.5), 0.5, REPRODUCED),
        (Within(0.5, 0.75), 0.375, NOT),
    ],
)
def test_without_scatter_zero_is_no_effect_and_bounds_count(rule: Effect | Within, value: float, verdict: str) -> None:
    assert Estimate.of([value] * 3).interval == (value, value)
    assert rule.decide(Estimate.of([value] * 3)) == (verdict, float(verdict == UNDERPOWERED))


@given(st.lists(st.floats(0, 0.1), max_size=30))
def test_survivors_are_those_of_the_procedure_as_published(p_values: list[float]) -> None:
    """Let k be the largest i with P(i) ≤ i q / m: reject the first k (Benjamini and Hochberg 1995, Eq. 1)."""
    steps = [(p, RATE * rank / len(p_values)) for rank, p in enumerate(sorted(p_values), 1)]
    assume(all(abs(p - bound) > 1e-9 for p, bound in steps))  # there rounding decides
    largest = max((p for p, bound in steps if p <= bound), default=-1.0)
    named = {f"claim-{i}": p for i, p in enumerate(p_values)}
    assert survivors(named) == {name for name, p in named.items() if p <= largest}


@pytest.mark.parametrize(
    ("make", "numbers", "message"),
    [
        (Estimate.of, [[0.5]], "needs at least 2 finite numbers, one a seed; got [0.5]"),
        (Estimate.of, [[0.5, math.nan]], "got [0.5, nan]"),
        (Effect, [0, 0.1], "should be -1 or 1 [type=literal_error, input_value=0"),
        (Effect, [-1, -0.1], "should be greater than or equal to 0"),
        (Within, [0.5, 0.5], "low must be below high; got 0.5 and 0.5"),
        (Within, [math.nan, 0.5], "got nan and 0.5"),
    ],
)
def test_numbers_out_of_range_are_refused(make: Callable[..., object], numbers: list, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make(*numbers)
