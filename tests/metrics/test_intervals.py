"""Bootstrap intervals: coverage, width, pairing, and what may not be passed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from isodiff.metrics.intervals import bootstrap_interval, paired_bootstrap_interval, paired_ratio_interval


def test_coverage_is_near_the_level() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        low, high = bootstrap_interval(rng.normal(size=40), level=0.9, num_resamples=400, seed=trial)
        hits += low <= 0 <= high
    assert abs(hits / 300 - 0.9) < 3 * math.sqrt(0.9 * 0.1 / 300) + 0.02


def test_width_is_that_of_the_normal_law_for_many_values() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    low, high = bootstrap_interval(values)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / math.sqrt(2000), rel=0.06)


def test_other_statistics_and_seeds() -> None:
    values = np.arange(21.0)
    low, high = bootstrap_interval(values, np.median)
    assert low < 10 < high
    assert bootstrap_interval(values, np.median, seed=1) == bootstrap_interval(values, np.median, seed=1)
    low, high = bootstrap_interval(values, lambda v: float(np.max(v)))
    assert high == 20


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)


def test_pairing_removes_what_runs_share() -> None:
    rng = np.random.default_rng(0)
    shared = 100 * rng.normal(size=10)
    low, high = paired_bootstrap_interval(shared + 1 + 0.1 * rng.normal(size=10), shared)
    assert 0.8 < low < 1 < high < 1.2


def test_unpaired_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="got 3 and 2 values"):
        paired_bootstrap_interval([1.0, 2.0, 3.0], [1.0, 2.0])


@pytest.mark.parametrize("values", [[1.0], [[1.0, 2.0]], []])
def test_too_few_values_and_other_ranks_are_refused(values: list) -> None:
    with pytest.raises(ValueError, match="at least 2 entries, got shape"):
        bootstrap_interval(values)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="1 NaN or infinite"):
        bootstrap_interval([1.0, math.nan])


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_levels_out_of_range_are_refused(level: float) -> None:
    with pytest.raises(ValueError, match=f"between 0 and 1, got {level}"):
        bootstrap_interval([1.0, 2.0], level=level)


def test_no_resamples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        bootstrap_interval([1.0, 2.0], num_resamples=0)


def test_ratio_of_paired_means_covers_the_truth_and_uses_the_pairing() -> None:
    """Second observations that are the first times a noisy 2: the scatter that both share drops out."""
    rng = np.random.default_rng(0)
    covered, widths = 0, []
    for trial in range(200):
        shared = rng.gamma(2.0, size=100)
        first, second = 2 * shared * rng.normal(1, 0.05, 100), shared
        low, high = paired_ratio_interval(first, second, num_resamples=400, seed=trial)
        covered += low <= 2 <= high
        widths.append(high - low)
    assert covered >= 180
    assert np.mean(widths) < 0.06  # unpaired, the scatter of the gamma law alone would make it 0.8


def test_ratio_needs_pairs() -> None:
    with pytest.raises(ValueError, match="paired, got 3 and 2"):
        paired_ratio_interval([1.0, 2.0, 3.0], [1.0, 2.0])
