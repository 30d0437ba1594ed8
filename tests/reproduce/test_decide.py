"""Intervals over seeds, the two rules and the correction: against scipy, by simulation, and at the boundaries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from isodiff.reproduce.decide import RATE, Effect, Estimate, Within, survivors

VALUES = st.lists(st.floats(-2, 2), min_size=2, max_size=10).map(lambda v: [round(x, 6) for x in v])
SMALLEST = st.floats(0, 1)
SIGNS = st.sampled_from([-1, 1])


def estimate(mean: float, reach: float, seeds: int = 5) -> Estimate:
    """Return an estimate whose interval is mean ± reach, by values of that mean and scatter."""
    shape = np.linspace(-1, 1, seeds)
    error = reach / stats.t.ppf(0.975, seeds - 1)
    return Estimate.of(mean + shape / shape.std(ddof=1) * error * math.sqrt(seeds))


def one_sided(values: tuple[float, ...], bound: float, alternative: str) -> float:
    return float(stats.ttest_1samp(values, bound, alternative=alternative).pvalue)


def scattered(values: list[float]) -> Estimate:
    assume(np.std(values) > 1e-3)
    return Estimate.of(values)


@given(VALUES)
def test_the_interval_is_students(values: list[float]) -> None:
    found = scattered(values)
    test = stats.ttest_1samp(values, 0.0)
    assert found.interval == pytest.approx(tuple(test.confidence_interval(0.95)), rel=1e-9, abs=1e-12)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.error == pytest.approx(stats.sem(values), rel=1e-9)


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_it_covers_the_truth_as_often_as_it_says(seeds: int) -> None:
    source = np.random.default_rng(seeds)
    trials, hits = 1500, 0
    for values in source.normal(0.3, 2.0, (trials, seeds)):
        low, high = Estimate.of(values).interval
        hits += low <= 0.3 <= high
    assert abs(hits / trials - 0.95) < 3.5 * math.sqrt(0.95 * 0.05 / trials)


def test_verdicts_err_no_more_often_than_one_time_in_forty() -> None:
    """At the worst truth of each rule: no effect, the smallest effect, and a difference that is just too large."""
    source = np.random.default_rng(0)
    noise, most = source.normal(0, 1, (600, 5)), 0.025 + 3.5 * math.sqrt(0.025 * 0.975 / 600)
    for rule, truth, wrong in (
        (Effect(1, 0.5), 0.0, "reproduced"),
        (Effect(-1, 0.5), 0.0, "reproduced"),
        (Effect(1, 0.5), 0.5, "not reproduced"),
        (Within(-9.0, 9.0), 9.0, "reproduced"),
        (Within(-0.5, 0.5), 0.5, "not reproduced"),
    ):
        verdicts = [rule.decide(Estimate.of(truth + values))[0] for values in noise]
        assert verdicts.count(wrong) / len(noise) < most, rule


@given(VALUES, st.floats(-2, 2))
def test_tails_are_those_of_scipy(values: list[float], bound: float) -> None:
    found = scattered(values)
    assert found.tail(bound, below=True) == pytest.approx(one_sided(values, bound, "less"), rel=1e-6, abs=1e-12)
    assert found.tail(bound, below=False) == pytest.approx(one_sided(values, bound, "greater"), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("mean", "reach", "verdict"),
    [
        (0.3, 0.1, "reproduced"),  # [0.2, 0.4]
        (0.3, 0.29, "reproduced"),  # [0.01, 0.59]: an effect, and θ is not left out
        (0.3, 0.31, "underpowered"),  # [−0.01, 0.61] holds no effect, and θ
        (0.0, 0.19, "not reproduced"),  # [−0.19, 0.19]
        (0.0, 0.21, "underpowered"),  # [−0.21, 0.21]
        (0.1, 0.09, "not reproduced"),  # [0.01, 0.19]: an effect, but smaller than any that counts
        (-0.5, 0.1, "not reproduced"),  # the other way
        (-0.5, 0.8, "underpowered"),
    ],
)
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_three_outcomes_of_an_effect(mean: float, reach: float, verdict: str, sign: int) -> None:
    found, p = Effect(sign, 0.2).decide(estimate(sign * mean, reach))
    assert found == verdict
    assert (p == 1.0) == (verdict == "underpowered")


@pytest.mark.parametrize(
    ("mean", "reach", "verdict"),
    [
        (0.1, 0.05, "reproduced"),
        (0.1, 0.099, "reproduced"),
        (0.1, 0.101, "underpowered"),  # passes the low bound
        (0.2, 0.099, "reproduced"),
        (0.2, 0.101, "underpowered"),  # passes the high bound
        (0.5, 0.199, "not reproduced"),
        (0.5, 0.201, "underpowered"),
        (-0.2, 0.199, "not reproduced"),
        (-0.2, 0.201, "underpowered"),
        (0.15, 1.0, "underpowered"),  # holds both bounds
    ],
)
def test_the_three_outcomes_of_bounds(mean: float, reach: float, verdict: str) -> None:
    found, p = Within(0.0, 0.3).decide(estimate(mean, reach))
    assert found == verdict
    assert (p == 1.0) == (verdict == "underpowered")


@pytest.mark.parametrize(
    ("rule", "unit", "text"),
    [
        (Effect(-1, math.log(2)), "%", "counts from -50 %"),
        (Effect(1, 0.25), "nats", "counts from +0.25 nats"),
        (Within(-0.02, 0.02), "%", "allowed from -2 to +2 %"),
        (Within(-1.0, math.log(1.25)), "%", "allowed up to +25 %"),
        (Within(-0.01, math.log(2)), "log", "allowed up to 2 times"),
        (Within(0.0, 1.25), "times", "allowed up to 1.25 times"),
        (Within(-0.01, 0.01), "part", "allowed from -0.01 to +0.01 part"),
        (Within(0.97, 1.03), "", "allowed from 0.97 to 1.03"),
    ],
)
def test_rules_in_words(rule: Effect | Within, unit: str, text: str) -> None:
    assert rule.text(unit) == text


def test_values_without_scatter_are_decided_at_the_boundaries_too() -> None:
    """An interval of no width: touching 0 is no effect, θ itself is one, and bounds belong to the range."""
    zero, half, third = (Estimate.of([value] * 3) for value in (0.0, 0.5, 0.375))
    assert half.interval == (0.5, 0.5)
    assert Effect(1, 0.5).decide(half) == ("reproduced", 0.0)
    assert Effect(1, 0.5).decide(third) == ("not reproduced", 0.0)
    assert Effect(1, 0.5).decide(zero) == ("not reproduced", 0.0)
    assert Effect(1, 0.0).decide(zero)[0] == "underpowered"
    assert Effect(-1, 0.25).decide(half) == ("not reproduced", 0.0)
    assert Within(0.25, 0.75).decide(half) == ("reproduced", 0.0)
    assert Within(0.5, 0.75).decide(half) == ("reproduced", 0.0)
    assert Within(0.25, 0.5).decide(half)[0] == "reproduced"
    assert Within(0.5, 0.75).decide(third) == ("not reproduced", 0.0)
    assert [half.tail(bound, below=True) for bound in (0.25, 0.5, 0.75)] == [1.0, 0.0, 0.0]


@given(VALUES, SIGNS, SMALLEST)
def test_an_effect_follows_from_its_interval_and_test(values: list[float], sign: int, smallest: float) -> None:
    found = scattered(values)
    verdict, p = Effect(sign, smallest).decide(found)
    low, high = sorted(sign * end for end in found.interval)
    away, towards = ("greater", "less") if sign > 0 else ("less", "greater")
    if verdict == "not reproduced":
        assert high < smallest
        assert p == pytest.approx(2 * one_sided(values, sign * smallest, towards), rel=1e-6, abs=1e-12)
    elif verdict == "reproduced":
        assert low > 0
        assert high >= smallest
        assert p == pytest.approx(2 * one_sided(values, 0.0, away), rel=1e-6, abs=1e-12)
    else:
        assert low <= 0 <= smallest <= high
        assert p == 1.0
    assert (p <= 0.05) == (verdict != "underpowered")


@given(VALUES, st.floats(-2, 1.5), st.floats(0.01, 3))
def test_bounds_follow_from_interval_and_tests(values: list[float], low: float, width: float) -> None:
    found, high = scattered(values), low + width
    verdict, p = Within(low, high).decide(found)
    above, below = one_sided(values, low, "greater"), one_sided(values, high, "less")
    if verdict == "reproduced":
        assert low <= found.interval[0] <= found.interval[1] <= high
        assert p == pytest.approx(2 * max(above, below), rel=1e-6, abs=1e-12)
    elif verdict == "not reproduced":
        assert found.interval[1] < low or high < found.interval[0]
        against = min(one_sided(values, low, "less"), one_sided(values, high, "greater"))
        assert p == pytest.approx(2 * against, rel=1e-6, abs=1e-12)
    else:
        assert p == 1.0
    assert verdict == "underpowered" or p <= 0.05 + 1e-9


@given(VALUES, SIGNS, SMALLEST)
def test_signs_mirror(values: list[float], sign: int, smallest: float) -> None:
    here, there = scattered(values), Estimate.of([-value for value in values])
    verdict, p = Effect(sign, smallest).decide(here)
    assert Effect(-sign, smallest).decide(there) == (verdict, pytest.approx(p))
    verdict, p = Within(-0.3, smallest).decide(here)
    assert Within(-smallest, 0.3).decide(there) == (verdict, pytest.approx(p))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.001, 0.5))
def test_survivors_are_those_of_scipy(p_values: list[float], rate: float) -> None:
    adjusted = stats.false_discovery_control(p_values)
    assume(np.all(np.abs(adjusted - rate) > 1e-9))  # there the two round in different ways
    named = {f"claim-{i}": p for i, p in enumerate(p_values)}
    expected = {f"claim-{i}" for i, p in enumerate(adjusted) if p <= rate}
    assert survivors(named, rate) == expected
    assert survivors(dict(reversed(named.items())), rate) == expected


def test_the_textbook_example() -> None:
    """The 15 p-values of Benjamini and Hochberg 1995, Sec. 3: four survive at 5 %, where Bonferroni keeps three."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528]
    named = {str(i): value for i, value in enumerate([*p, 0.7590, 1.0])}
    assert survivors(named) == {"0", "1", "2", "3"}
    assert sum(value <= RATE / 15 for value in named.values()) == 3


def test_of_true_nulls_one_in_twenty_folders_keeps_any() -> None:
    source = np.random.default_rng(0)
    kept = [bool(survivors(dict(enumerate(source.uniform(size=40))))) for _ in range(800)]
    assert abs(np.mean(kept) - RATE) < 3.5 * math.sqrt(RATE * (1 - RATE) / 800)


def test_what_was_not_decided_makes_it_harder() -> None:
    assert survivors({"a": 0.03}) == {"a"}
    assert survivors({"a": 0.03, "b": 1.0}) == set()
    assert survivors({"a": 0.03, "b": 0.03}) == {"a", "b"}
    assert survivors({}) == set()


@pytest.mark.parametrize("values", [[], [0.5], [0.5, math.nan], [0.5, math.inf], [[0.5, 0.25]], 0.5])
def test_an_estimate_needs_two_finite_numbers(values: object) -> None:
    with pytest.raises(ValueError, match="at least 2 finite numbers, one a seed; got") as refused:
        Estimate.of(values)
    assert str(np.asarray(values, dtype=float).tolist()) in str(refused.value)


@pytest.mark.parametrize(("sign", "smallest"), [(0, 0.1), (2, 0.1), (1, -0.1), (-1, math.nan)])
def test_an_effect_out_of_range_is_refused(sign: int, smallest: float) -> None:
    with pytest.raises(ValueError, match=f"sign must be -1 or 1 .* got {sign} and {smallest}"):
        Effect(sign, smallest)


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.5, 0.25), (math.nan, 0.5)])
def test_bounds_in_the_wrong_order_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match=f"low must be below high; got {low} and {high}"):
        Within(low, high)
